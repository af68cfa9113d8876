"""Damaged and missing checkpoints: never loaded, and named."""

import random
import shutil

import pytest

from commands.command_line import proximo, refusal, succeeded, train
from proximo import UsageError, load
from proximo.run import checkpoint

LAST = "checkpoints/last.safetensors"
CUTS = [0.0, 0.00001, 0.0001, 0.01, 0.05, 0.1, 0.3, 0.6, 0.9, 0.99999]
"""Shares of the file that are left, from nothing to all but the last byte."""


@pytest.fixture
def run(here, trained):
    """A finished run, to be damaged."""
    shutil.copytree(trained, here / "r")
    return here / "r"


def damaged(run):
    """The message with which every way to read the last checkpoint refuses it."""
    with pytest.raises(UsageError) as found:
        load(run)
    assert str(found.value) in refusal(proximo("eval", run))
    return str(found.value)


@pytest.mark.parametrize("share", CUTS)
def test_a_checkpoint_that_was_cut_off_is_never_loaded(run, share):
    whole = (run / LAST).read_bytes()
    (run / LAST).write_bytes(whole[: min(int(len(whole) * share), len(whole) - 1)])
    message = damaged(run)
    assert str(run / LAST) in message
    assert "damaged" in message


@pytest.mark.parametrize("seed", range(24))
def test_a_checkpoint_with_one_bit_flipped_is_never_loaded(run, seed):
    content = bytearray((run / LAST).read_bytes())
    chance = random.Random(seed)
    # Half of the flips where it matters most: in the header, which holds everything but numbers.
    header = 8 + int.from_bytes(content[:8], "little")
    place = chance.randrange(header if seed % 2 else len(content))
    content[place] ^= 1 << chance.randrange(8)
    (run / LAST).write_bytes(content)
    message = damaged(run)
    assert str(run / LAST) in message
    assert "damaged" in message


@pytest.mark.parametrize(
    "content",
    [b"not a checkpoint", b"\x80\x04N.", bytes(1000), b"\x02" + bytes(7) + b"{}"],
    ids=["text", "a pickle", "zeros", "no tensors"],
)
def test_a_file_that_is_no_checkpoint_is_never_loaded(run, content):
    (run / LAST).write_bytes(content)
    assert "damaged" in damaged(run)


def test_numbers_that_were_appended_are_noticed(run):
    with (run / LAST).open("ab") as file:
        file.write(b"\0")
    assert "damaged" in damaged(run)


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "r"),
        ("play", "r", "--video", "r.gif"),
        ("resume", "r", "--total-steps", "576"),
        ("train", "ppo", "CartPole-v1", "--from", "r", "--run-dir", "new"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_every_verb_refuses_a_checkpoint_that_cannot_be_used(here, run, words, how):
    if how == "missing":
        (run / LAST).unlink()
    else:
        (run / LAST).write_bytes((run / LAST).read_bytes()[:-1])
    before = sorted(here.rglob("*"))
    message = refusal(proximo(*words))
    assert message.startswith("proximo: ")
    assert LAST in message
    assert sorted(here.rglob("*")) == before


def test_a_missing_checkpoint_is_answered_with_those_that_are_there(run):
    (run / LAST).unlink()
    message = refusal(proximo("eval", run))
    assert "there is no checkpoint" in message
    assert "best" in message
    assert "update-0" in message


def test_the_best_policy_is_still_there_when_the_last_is_damaged(run):
    (run / LAST).write_bytes(b"")
    assert "best.safetensors" in refusal(proximo("eval", run))
    succeeded(proximo("eval", run, "--checkpoint", "best", "--episodes", "1"))


def test_resume_is_not_advised_an_option_that_it_does_not_have(run):
    (run / LAST).write_bytes(b"")
    assert "--checkpoint" not in refusal(proximo("resume", run))


def test_a_damaged_best_is_not_its_own_remedy(run):
    (run / "checkpoints/best.safetensors").write_bytes(b"")
    assert "--checkpoint best" not in refusal(proximo("eval", run, "--checkpoint", "best"))


def test_a_run_in_which_no_episode_ended_has_no_best_policy(here):
    succeeded(train("--run-dir", "r", "--rollout.steps", "4", "--algorithm.minibatch-size", "8"))
    (here / "r/checkpoints/best.safetensors").unlink(missing_ok=True)
    message = refusal(proximo("eval", "r", "--checkpoint", "best"))
    assert "there is no checkpoint r/checkpoints/best.safetensors" in message
    assert "last" in message


def test_a_checkpoint_of_another_schema_is_refused(here, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "SCHEMA", 99)
        succeeded(train("--run-dir", "r", steps=64))
    message = refusal(proximo("eval", "r"))
    assert "schema 99" in message
    assert f"schema {checkpoint.SCHEMA}" in message


def test_a_checkpoint_of_a_network_of_another_size_is_refused(run):
    file = run / "config.toml"
    file.write_text(file.read_text().replace("hidden = [64, 64]", "hidden = [32, 32]"))
    message = refusal(proximo("eval", run))
    assert "(64, 4)" in message
    assert "(32, 4)" in message


def test_a_damaged_configuration_is_refused(run):
    (run / "config.toml").write_text("[algorithm\n")
    for verb in ("eval", "resume"):
        assert "config.toml is not TOML" in refusal(proximo(verb, run))


def test_a_write_that_was_cut_off_leaves_the_checkpoint_before_it(run):
    (run / "checkpoints/.last.safetensors.partial").write_bytes(b"half a checkp")
    succeeded(proximo("eval", run, "--episodes", "1"))
    succeeded(proximo("resume", run, "--total-steps", "576", "--quiet"))
