"""Damaged and missing checkpoints: never loaded, and named."""

import math
import random
import shutil
from pathlib import Path

import pytest
import torch

from commands.command_line import continued, proximo, refusal, result, rows, succeeded, train
from proximo import UsageError, load
from proximo.run import checkpoint, keeping

FIRST_SCHEMA = Path(__file__).parent / "fixtures/schema-1"
PROBS = [[0.50524080, 0.49475917], [0.49296844, 0.50703162], [0.49841732, 0.50158268]]
VALUES = [0.19313568, -0.57255369, -0.25237647]
"""What its policy and its critic said of three observations when it was written."""

LAST = "checkpoints/last.safetensors"
CUTS = [0, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1]
CUTS += [0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99999]
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


@pytest.mark.parametrize("seed", range(50))
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
        ("resume", "r", "--total-steps", "576", "--strict"),
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


@pytest.fixture
def stopped(here):
    """A run of 8 updates that keeps its last three states."""
    words = ("--run.keep-last", "3", "--run.save-every", "3", "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "SAVE_INTERVAL", 0)
        patch.setattr(keeping, "SAVE_SHARE", math.inf)
        succeeded(train("--run-dir", "r", *words))
    return here / "r"


def damage(run, name):
    file = run / f"checkpoints/{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def remove(run, name):
    (run / f"checkpoints/{name}.safetensors").unlink()


def checkpoints(run):
    return {path.stem for path in (run / "checkpoints").iterdir()}


def test_the_last_three_states_are_kept(stopped):
    kept = {"last", "last-7", "last-6"}
    assert checkpoints(stopped) == {"update-0", "update-3", "update-6", "best", *kept}
    updates = [
        checkpoint.Checkpoint(stopped / f"checkpoints/{name}.safetensors").updates
        for name in sorted(kept)
    ]
    assert updates == [8, 6, 7]


@pytest.mark.parametrize(
    ("bad", "good", "update"),
    [
        (["last"], "last-7", 7),
        (["last", "last-7"], "update-6", 6),
        (["last", "last-7", "update-6"], "last-6", 6),
        (["last", "last-7", "update-6", "last-6"], "update-3", 3),
    ],
    ids=["last", "two", "three", "four"],
)
@pytest.mark.parametrize("how", [damage, remove])
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(stopped, bad, good, update, how):
    whole = (stopped / LAST).read_bytes()
    for name in bad:
        how(stopped, name)
    assert "last.safetensors" in refusal(proximo("resume", "r", "--strict"))
    went = proximo("resume", "r", "--quiet")
    assert went.code == 0
    assert went.err.count("\n") == len([n for n in bad if n == "last" or how is damage]) + 1
    assert (
        f"going on from {stopped}/checkpoints/{good}.safetensors, after update {update}" in went.err
    )
    assert went.err.splitlines()[0].removeprefix("proximo: ") in (stopped / "log").read_text()
    assert (stopped / LAST).read_bytes() == whole
    assert [row["update"] for row in rows("r")] == list(range(1, 9))


def test_what_is_kept_next_to_a_damaged_last_is_never_that(stopped, monkeypatch):
    damage(stopped, "last")
    (stopped / "checkpoints/last-6.safetensors").unlink()
    monkeypatch.setattr(keeping, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(keeping, "SAVE_SHARE", math.inf)
    assert proximo("resume", "r", "--total-steps", "640", "--quiet").code == 0
    for path in (stopped / "checkpoints").iterdir():
        assert checkpoint.Checkpoint(path).updates <= 10
    assert {"last-9", "last-8"} < checkpoints(stopped)


def test_a_finished_run_whose_last_state_is_damaged_is_not_finished(stopped):
    damage(stopped, "last")
    assert proximo("resume", "r", "--quiet").code == 0
    assert result("r")["updates"] == 8
    assert "is finished" in succeeded(proximo("resume", "r")).out


def test_a_run_without_a_whole_checkpoint_is_refused(run):
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    message = refusal(proximo("resume", run))
    assert "last.safetensors is damaged" in message
    assert "none to go on from" in message
    assert "--checkpoint" not in message


def test_a_policy_is_no_state_to_go_on_from(run):
    for path in (run / "checkpoints").iterdir():
        if path.stem != "best":
            path.unlink()
    assert "none to go on from" in refusal(proximo("resume", run))
    shutil.copy(run / "checkpoints/best.safetensors", run / LAST)
    assert "a policy and no more" in refusal(proximo("resume", run, "--total-steps", "576"))


def test_a_damaged_best_is_not_its_own_remedy(run):
    (run / "checkpoints/best.safetensors").write_bytes(b"")
    assert "--checkpoint best" not in refusal(proximo("eval", run, "--checkpoint", "best"))


def test_a_run_in_which_no_episode_ended_has_no_best_policy(here):
    succeeded(train("--run-dir", "r", "--rollout.steps", "4", "--algorithm.minibatch-size", "8"))
    (here / "r/checkpoints/best.safetensors").unlink(missing_ok=True)
    message = refusal(proximo("eval", "r", "--checkpoint", "best"))
    assert f"there is no checkpoint {here}/r/checkpoints/best.safetensors" in message
    assert "last" in message


def test_a_checkpoint_of_another_schema_is_refused(here, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "SCHEMA", 99)
        succeeded(train("--run-dir", "r", steps=64))
    shutil.copy(here / "r" / LAST, here / "r/checkpoints/last-0.safetensors")
    for verb in ("eval", "resume"):  # an older one would lose what the newer has learned
        message = refusal(proximo(verb, "r"))
        assert "schema 99" in message
        assert f"schema {checkpoint.SCHEMA}" in message


@pytest.fixture
def first_schema(here):
    """A run of the first version that kept checkpoints."""
    shutil.copytree(FIRST_SCHEMA, here / "old")
    return here / "old"


def test_a_checkpoint_of_the_first_schema_acts_as_it_did(first_schema):
    policy = load(first_schema).policy
    obs = torch.tensor([[0.1, -0.2, 0.03, 0.4], [-1, 0.5, -0.1, -0.6], [0, 1.5, 0.05, -2.0]])
    with torch.no_grad():
        probs = policy.distribution(obs).parameters.softmax(-1)
        values = policy.value(obs)
    torch.testing.assert_close(probs, torch.tensor(PROBS), atol=1e-6, rtol=0)
    torch.testing.assert_close(values, torch.tensor(VALUES), atol=1e-5, rtol=0)


def test_a_run_of_the_first_schema_goes_on(first_schema):
    before = rows("old")
    continued(proximo("resume", "old", "--total-steps", "160", "--quiet"))
    assert rows("old")[:4] == before
    assert rows("old")[4]["value_loss"] == pytest.approx(0.8768447, rel=1e-3)


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
