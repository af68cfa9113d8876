"""Every pair of what can be combined, in few runs: each trains, resumes to the bit and acts."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from proximo import NetConfig, RolloutConfig, RunConfig, load, train
from proximo.envs.testing.probes import Match
from proximo.evaluation import evaluate_policy
from proximo.loop import run_control
from proximo.run.checkpoint import Checkpoint
from proximo.run.config import ALGORITHMS
from proximo.run.control import make_session
from proximo.run.folder import RunFolder

FACTORS = {
    "name": list(ALGORITHMS),
    "recurrent": ["none", "gru", "lstm"],
    "trunk": ["separate", "shared"],
    "seen": ["vector", "discrete", "image", "dict"],
    "done": list(Match.DONE),
    "masks": [False, True],
    "normalized": ["nothing", "observations", "returns", "rewards", "all"],
    "std": ["free", "softplus", "gsde"],
    "action": ["clip", "squash", "beta"],
    "module": ["Proximo's", "own"],
    "experience": ["steps", "episodes"],
}


def fits(case):
    """Whether these go together; what does not is refused, with tests of its own."""
    wrong = (
        case["name"] in ("qac", "trpo") and case["trunk"] == "shared",
        case["name"] == "reinforce" and case["trunk"] == "shared",
        case["masks"] and case["done"] in ("binary", "box"),
        case["normalized"] in ("observations", "all") and case["seen"] in ("image", "discrete"),
        case["std"] != "free" and case["action"] == "beta",
        {"free", "clip"} != {case["std"], case["action"]} and case["done"] not in ("box", "hybrid"),
    )
    return not any(wrong)


def pairs(case):
    return set(itertools.combinations(sorted(case.items()), 2))


def all_pairs(tries=60):
    """Cases that hold every pair of levels that any case can hold, each the best of some draws."""
    drawn = random.Random(0)

    def draw(fixed):
        case = {key: drawn.choice(levels) for key, levels in FACTORS.items()} | dict(fixed)
        return case if fits(case) else None

    items = [[(key, level) for level in levels] for key, levels in sorted(FACTORS.items())]
    missing = {
        pair for a, b in itertools.combinations(items, 2) for pair in itertools.product(a, b)
    }
    cases = []
    while missing:
        pair = min(missing, key=str)
        found = [case for _ in range(tries) if (case := draw(pair))]
        if found:
            cases.append(max(found, key=lambda case: len(pairs(case) & missing)))
            missing -= pairs(cases[-1])
        missing.discard(pair)
    return cases


class Chain(Match):
    """Up to four questions in a row; an odd number of them is cut off by time, an even one ends."""

    def reset(self, *, seed=None, options=None):
        seen, info = super().reset(seed=seed)
        self.questions, self.asked = 1 + int(self.np_random.integers(4)), 0
        return seen, info

    def step(self, action):
        _, reward, *_ = super().step(action)
        self._symbol = int(self.np_random.integers(3))
        self.asked += 1
        over, odd = self.asked == self.questions, self.questions % 2 == 1
        return self.observe(), reward, over and not odd, over and odd, {}


class Own(nn.Module):
    """One layer over all that is shown."""

    def __init__(self, space):
        super().__init__()
        self.layer = nn.LazyLinear(7)

    def forward(self, seen):
        parts = seen.values() if isinstance(seen, dict) else [seen]
        parts = [
            p if isinstance(p, torch.Tensor) else torch.cat(list(p.values()), -1) for p in parts
        ]
        return torch.tanh(self.layer(torch.cat([p.flatten(1).float() for p in parts], -1)))


@pytest.mark.parametrize(
    "case", all_pairs(), ids=lambda case: "-".join(str(level) for level in case.values())
)
def test_it_trains_resumes_to_the_bit_and_acts(case, tmp_path):
    def env():
        return Chain(case["seen"], case["done"], case["masks"])

    name, normalized = case["name"], case["normalized"]
    settings = {"normalize_reward": normalized in ("rewards", "all")}
    if name in ("ppo", "ppo-penalty", "trpo"):
        settings |= {"epochs": 2, "minibatch_size": 5}
    own = Own if case["module"] == "own" else None
    q_of_numbers = name == "qac" and case["done"] != "discrete"
    net = {} if own and not q_of_numbers else {"hidden": (8,)}
    if case["recurrent"] != "none":
        net |= {"recurrent_size": 5, "bptt_steps": 3}
    if case["std"] == "gsde":
        net["gsde_steps"] = 3

    def begin(folder, callbacks=()):
        return train(
            env,
            ALGORITHMS[name](gamma=0.9, entropy_coef=0.01, **settings),
            rollout=RolloutConfig(steps=8, episodes=3 if case["experience"] == "episodes" else 0),
            num_envs=2,
            net=NetConfig(
                **net,
                module=f"{__name__}:Own" if own else "",
                recurrent=case["recurrent"],
                trunk=case["trunk"],
                std=case["std"],
                action=case["action"],
                normalize_obs=normalized in ("observations", "all"),
                normalize_returns=normalized in ("returns", "all"),
            ),
            run_config=RunConfig(total_steps=40 if case["experience"] == "steps" else 14),
            run_dir=folder,
            callbacks=callbacks,
        )

    agent = begin(tmp_path / "straight")
    assert agent.result["updates"] >= 2
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())
    for row in RunFolder(tmp_path / "straight").read_metrics():
        readings = {k: v for k, v in row.items() if k != "explained_variance"}
        assert all(v is None or math.isfinite(v) for v in readings.values())

    begin(tmp_path / "parts", [lambda state, rollout, metrics: state.updates == 1])
    folder = RunFolder.open(tmp_path / "parts")
    saved = Checkpoint(folder.checkpoint("last"))
    assert saved.updates == 1
    session = make_session(folder.read_config(), folder=folder, source=env, resume=saved)
    assert not any("cannot be brought back" in note for note in session.log.setup_notes)
    run_control(session)
    ends = [RunFolder(tmp_path / part).checkpoint("last") for part in ("straight", "parts")]
    assert ends[0].read_bytes() == ends[1].read_bytes()

    again = load(tmp_path / "straight", net=own)
    for mode in (True, False):
        scores = [
            evaluate_policy(a.policy, env(), episodes=3, seed=5, deterministic=mode).returns
            for a in (agent, again)
        ]
        np.testing.assert_allclose(*scores, rtol=1e-4)  # products round by how weights are aligned


def test_the_runs_hold_what_matters_most():
    """All pairs, and so every algorithm with every memory, mask and space; and they are few."""
    cases = all_pairs()
    assert len(cases) < 60
    held = set().union(*map(pairs, cases))
    for name, recurrent in itertools.product(FACTORS["name"], FACTORS["recurrent"]):
        assert (("name", name), ("recurrent", recurrent)) in held
