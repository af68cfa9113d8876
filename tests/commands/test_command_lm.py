"""`proximo lm`: the stages from the command line, what they leave, and how they go on."""

import json
import signal

import pytest

pytest.importorskip("transformers")

from commands.command_line import proximo, refusal, succeeded
from commands.test_command_help import LIMIT, ask
from proximo.commands.lm import STAGES

TINY = [
    *("--model.layers", "1", "--model.width", "16", "--model.heads", "2"),
    *("--model.context", "16", "--updates", "4", "--seed", "1"),
]
PPO = [
    *("--prompts", "prompts.jsonl", "--run.sequences", "8", "--algorithm.minibatch-size", "4"),
    *("--sampling.max-tokens", "4", "--algorithm.learning-rate", "1e-3"),
]
REWARD = """
import os
from pathlib import Path

Path("imported").touch()


def vowels(completions, weight):
    if Path("signals").exists():
        numbers = Path("signals").read_text().split()
        Path("signals").unlink()
        for number in numbers:
            os.kill(os.getpid(), int(number))
    return [w * sum(c in "ae" for c in text) for text, w in zip(completions, weight)]
"""

ENV = """
from pathlib import Path

from gymnasium import Env
from gymnasium.spaces import Text

Path("imported").touch()


class Echo(Env):
    observation_space = action_space = Text(8, charset="abc")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.said = str(self.np_random.choice(["a", "b", "c"]))
        self.left = 2
        return self.said, {}

    def step(self, action):
        self.left -= 1
        return "b", float(self.said in action), self.left == 0, False, {}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with data and a reward, in which commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = {
        "texts": [{"prompt": "a", "completion": c} for c in ("bc", "cab", "e", "eb")],
        "pairs": [{"prompt": "a", "chosen": c + "a", "rejected": c} for c in ("b", "c", "e", "")],
        "prompts": [{"prompt": p, "weight": 1.0} for p in ("a", "bc", "e")],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "own_reward.py").write_text(REWARD)
    (tmp_path / "echo_env.py").write_text(ENV)
    return tmp_path


def rows(run):
    """metrics.jsonl, without the time."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    clock = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clock} for row in lines]


@pytest.mark.parametrize("stage", STAGES)
def test_help_of_every_stage_is_quick_and_needs_no_torch(stage):
    text, seconds = ask("lm", stage, "--help")
    assert f"usage: proximo lm {stage}" in text
    assert seconds < LIMIT
    assert "None" not in text
    assert "<class" not in text


def test_help_lists_the_stages():
    shown = succeeded(proximo("lm", "--help")).out
    assert proximo("lm").out == shown
    assert all(f"  {stage}" in shown and what in shown for stage, (_, what) in STAGES.items())


def test_the_three_stages_one_after_the_other(folder):
    shown = succeeded(proximo("lm", "sft", "--data", "texts.jsonl", "--run-dir", "base", *TINY)).out
    assert "4/4 updates  loss " in shown
    assert "run folder: base" in shown
    held = ["--algorithm.held-out", "0.25"]
    few = ["--updates", "4"]
    shown = succeeded(
        proximo(
            *("lm", "reward", "--model", "base", "--data", "pairs.jsonl", "--run-dir", "judge"),
            *few,
            *held,
        )
    ).out
    assert "held out accuracy" in shown
    shown = succeeded(
        proximo(
            "lm", "ppo", "--model", "base", "--reward", "judge", *PPO, "--run-dir", "tuned", *few
        )
    ).out
    assert "4/4 updates  score " in shown
    said = ["lm", "generate", "tuned", "--prompt", "a", "bc", "--sampling.max-tokens", "6"]
    shown = succeeded(proximo(*said, "--json")).out
    assert [json.loads(line)["prompt"] for line in shown.splitlines()] == ["a", "bc"]
    assert succeeded(proximo(*said, "--json")).out == shown
    assert succeeded(proximo(*said)).out.startswith("a | ")
    again = succeeded(proximo("lm", "resume", "tuned")).out
    assert "is finished: 4 updates" in again


def test_a_run_goes_on_exactly_and_code_needs_the_users_word(folder):
    line = ["lm", "ppo", *TINY, *PPO, "--reward", "own_reward:vowels", "--quiet"]
    shown = proximo(*line, "--run-dir", "straight", "--updates", "6", "--run.log-every", "2")
    assert succeeded(shown).out == ""
    succeeded(proximo(*line, "--run-dir", "short", "--run.log-every", "2"))
    (folder / "imported").unlink()
    message = refusal(proximo("lm", "resume", "short", "--updates", "6"))
    assert "own_reward:vowels, is code: importing it needs your word" in message
    assert "type: proximo lm resume short --updates 6 --reward own_reward:vowels" in message
    assert not (folder / "imported").exists()
    succeeded(proximo("lm", "resume", "short", "--updates", "6", "--reward", "own_reward:vowels"))
    assert rows(folder / "short") == rows(folder / "straight")
    assert [row["update"] for row in rows(folder / "short")] == [2, 4, 6]


def test_adapters_from_the_command_line(folder):
    lora = ["--model.lora-rank", "2", "--model.lora-targets", "c_attn", "c_fc"]
    succeeded(proximo("lm", "sft", "--data", "texts.jsonl", "--run-dir", "base", *TINY, *lora))
    line = ["lm", "ppo", *PPO, "--model", "base", "--reward", "own_reward:vowels", *lora]
    line += ["--kl.reference", "adapter", "--run.gradient-checkpointing", "--run.dtype", "bfloat16"]
    succeeded(proximo(*line, "--run-dir", "straight", "--updates", "5"))
    succeeded(proximo(*line, "--run-dir", "short", "--updates", "2"))
    succeeded(proximo("lm", "resume", "short", "--updates", "5", "--reward", "own_reward:vowels"))
    assert rows(folder / "short") == rows(folder / "straight")
    said = ["lm", "generate", "short", "--prompt", "a", "--sampling.max-tokens", "6"]
    assert succeeded(proximo(*said)).out.startswith("a | ")


def test_an_env_instead_of_prompts_and_a_reward(folder):
    line = ["lm", "ppo", *TINY, *PPO[2:], "--env", "echo_env:Echo", "--quiet"]
    succeeded(proximo(*line, "--run-dir", "straight", "--updates", "6"))
    succeeded(proximo(*line, "--run-dir", "short"))
    assert {row["turns"] for row in rows(folder / "short")} == {2.0}
    (folder / "imported").unlink()
    message = refusal(proximo("lm", "resume", "short", "--updates", "6"))
    assert "env, echo_env:Echo, is code: importing it needs your word" in message
    assert "resume short --updates 6 --env echo_env:Echo" in message
    assert not (folder / "imported").exists()
    succeeded(proximo("lm", "resume", "short", "--updates", "6", "--env", "echo_env:Echo"))
    assert rows(folder / "short") == rows(folder / "straight")
    with_prompts = [*line, "--prompts", "prompts.jsonl", "--run-dir", "prompted"]
    assert succeeded(proximo(*with_prompts)).out == ""


def test_signals_end_it_after_the_update_or_only_save(folder):
    words = ["lm", "ppo", "--model", "tiny", "--reward", "own_reward:vowels", *PPO, *TINY]
    straight = succeeded(proximo(*words, "--run-dir", "straight"))
    assert "SIGUSR1" not in straight.out
    (folder / "signals").write_text(str(int(signal.SIGUSR1)))
    saved = succeeded(proximo(*words, "--run-dir", "saved"))
    assert "SIGUSR1: saved after update 1\n" in saved.out
    (folder / "signals").write_text(str(int(signal.SIGTERM)))
    stopped = proximo(*words, "--run-dir", "stopped")
    assert stopped.code == 143
    assert stopped.err == "stopped after update 1; go on by: proximo lm resume stopped\n"
    assert len(rows(folder / "stopped")) == 1
    succeeded(proximo("lm", "resume", "stopped", "--reward", "own_reward:vowels"))
    files = [folder / name / "checkpoints/last.safetensors" for name in ("saved", "stopped")]
    expected = (folder / "straight/checkpoints/last.safetensors").read_bytes()
    assert [file.read_bytes() for file in files] == [expected] * 2
    assert rows(folder / "saved") == rows(folder / "stopped") == rows(folder / "straight")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lm", "tune"), "no stage 'tune' of proximo lm"),
        (("lm", "sft"), "name the data: --data FILE.jsonl"),
        (("lm", "ppo"), "name the data: --prompts FILE.jsonl"),
        (("lm", "ppo", "--prompts", "prompts.jsonl"), "name what scores completions"),
        (("lm", "sft", "--data", "prompts.jsonl"), "row 1 of prompts.jsonl has no 'completion'"),
        (("lm", "sft", "--data", "texts.jsonl", "--model", "away"), "there is no model 'away'"),
        (
            ("lm", "ppo", "--prompts", "texts.jsonl", "--reward", "own_reward:vowels"),
            "wants 'weight', but there are: ",
        ),
        (("lm", "ppo", *PPO, "--reward", "x:y", "--sampling.top-k", "3"), "top_k is 3, but PPO"),
        (
            ("lm", "ppo", *PPO, "--reward", "x:y", "--kl.reference", "adapter"),
            "no adapters to switch off: give model.lora_rank",
        ),
        (("lm", "ppo", "--env", "echo_env:Eko"), "echo_env has no 'Eko'"),
        (("lm", "ppo", "--env", "CartPole-v1"), "a language model talks with envs of which"),
        (
            ("lm", "ppo", "--env", "echo_env:Echo", "--reward", "own_reward:vowels"),
            "an env gives its own rewards",
        ),
        (("lm", "generate", "base"), "give prompts as text"),
        (("lm", "resume", "away"), "away is no run folder"),
    ],
)
def test_wrong_input(folder, words, said):
    assert said in refusal(proximo(*words))
    assert not (folder / "runs").exists()


def test_a_run_of_a_language_model_is_none_of_control(folder):
    succeeded(proximo("lm", "sft", "--data", "texts.jsonl", "--run-dir", "base", *TINY, "--quiet"))
    assert "is of a language model" in refusal(proximo("eval", "base"))
    assert "is of a language model" in refusal(proximo("resume", "base"))
    taken = proximo("lm", "sft", "--data", "texts.jsonl", "--run-dir", "base", *TINY)
    assert "go on with that run by: proximo lm resume base" in refusal(taken)


def test_without_a_name_runs_stand_beside_each_other(folder):
    for name in ("lm-sft-seed1", "lm-sft-seed1-2"):
        succeeded(proximo("lm", "sft", "--data", "texts.jsonl", *TINY, "--quiet"))
        assert (folder / "runs" / name / "result.json").is_file()
