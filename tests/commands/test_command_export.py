"""`proximo export`: an ONNX file that acts as the run's policy does."""

import shutil
import sys

import gymnasium as gym
import numpy as np
import pytest

from commands.command_line import proximo, refusal, succeeded, train, train_in
from commands.test_command_own_net import NET
from proximo import load

onnxruntime = pytest.importorskip("onnxruntime", reason="export is an extra")
pytest.importorskip("onnxscript", reason="export is an extra")


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_the_file_plays_the_episode_that_the_agent_plays(here, trained, checkpoint):
    words = ("export", trained, "--out", "p.onnx", "--checkpoint", checkpoint)
    said = succeeded(proximo(*words)).out
    agent = load(trained, checkpoint)
    assert said.startswith(f"{checkpoint} policy of {trained}, {agent.result['steps']} steps, in p")
    assert "takes observation float [batch, 4]\n" in said
    assert "gives action int64 [batch], distribution float [batch, 2]\n" in said
    assert "run on 32 random observations, it acts as the policy does" in said
    session = onnxruntime.InferenceSession("p.onnx")
    about = session.get_modelmeta().custom_metadata_map
    assert (about["env"], about["algorithm"]) == ("CartPole-v1", "ppo")
    assert about["steps"] == str(agent.result["steps"])
    env, over = gym.make("CartPole-v1"), False
    obs, _ = env.reset(seed=1)
    while not over:
        (action,) = session.run(["action"], {"observation": obs[None]})
        assert action[0] == agent.act(obs)
        obs, _, terminated, truncated, _ = env.step(action[0])
        over = terminated or truncated


def test_it_stands_in_the_run_folder_and_is_not_replaced_unasked(here, trained):
    shutil.copytree(trained, here / "r")
    succeeded(proximo("export", "r"))
    written = (here / "r/policy.onnx").read_bytes()
    (here / "r/policy.onnx").write_bytes(b"mine")
    message = refusal(proximo("export", "r"))
    assert message == (
        f"proximo: {here}/r/policy.onnx exists: choose another name, or say --overwrite "
        "(overwrite=True)"
    )
    assert (here / "r/policy.onnx").read_bytes() == b"mine"
    succeeded(proximo("export", "r", "--overwrite"))
    assert (here / "r/policy.onnx").read_bytes() == written
    assert not list((here / "r").glob(".*"))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("policy.pt", "policy.pt: its name must end in .onnx"),
        ("nowhere/p.onnx", "/nowhere"),
        ("folder.onnx", "that is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(here, trained, out, said):
    (here / "folder.onnx").mkdir()
    assert said in refusal(proximo("export", trained, "--out", out, "--overwrite"))


def test_a_missing_run_is_called_a_missing_run(here):
    assert "nowhere is no run folder" in refusal(proximo("export", "nowhere"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(here, trained, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(proximo("export", trained, "--out", "p.onnx"))
    assert message == f'proximo: export needs {package}: pip install "proximo[export]"'
    assert not (here / "p.onnx").exists()


def test_an_env_of_ones_own_is_not_imported(here, own_env):
    succeeded(train_in(own_env, "--run-dir", "r", steps=64))
    (here / "imported").unlink()
    del sys.modules["own_env"]
    succeeded(proximo("export", "r"))
    assert not (here / "imported").exists()
    (obs,) = np.zeros((1, 1, 2), np.float32)
    session = onnxruntime.InferenceSession("r/policy.onnx")
    (action,) = session.run(["action"], {"observation": obs})
    assert action[0] == load("r").act(obs[0])


def test_a_network_of_ones_own_is_asked_for_before_it_is_imported(here):
    (here / "own_net.py").write_text(NET)
    succeeded(train("--net.module", "own_net:Net", "--run-dir", "r", steps=64))
    (here / "imported").unlink()
    del sys.modules["own_net"]
    message = refusal(proximo("export", "r"))
    assert message == (
        "proximo: this run's network, own_net:Net, is code: importing it needs your word. If you "
        "trust it, type: proximo export r --net own_net:Net"
    )
    assert not (here / "imported").exists()
    succeeded(proximo("export", "r", "--net", "own_net:Net"))
    assert (here / "r/policy.onnx").is_file()
