"""A trained policy, ready to act."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from proximo.algorithms.base import OnPolicy
from proximo.disk import replace, writable
from proximo.envs.base import Maker
from proximo.envs.config import EnvConfig
from proximo.envs.layers import close_all, title
from proximo.envs.make import make_env
from proximo.errors import UsageError, printable
from proximo.evaluation import EpisodePolicy, Scores, evaluate_policy, step_limit
from proximo.export import Exported, export
from proximo.imports import find
from proximo.nets.actor_critic import ActorCritic
from proximo.nets.custom import Maker as NetMaker
from proximo.run.checkpoint import Checkpoint, own_copy, write
from proximo.run.config import EVALUATION_SEED, Config, algorithm_name, make_policy, task_name
from proximo.run.consent import Named, allow, python_line
from proximo.run.folder import RunFolder, versions
from proximo.run.result import RunResult, html_table
from proximo.spaces import MASK, space_record


class Agent:
    """A policy with the configuration and spaces it was trained with."""

    def __init__(
        self,
        policy: ActorCritic,
        config: Config,
        spaces: tuple[gym.Space[Any], gym.Space[Any]],
        result: dict[str, Any] | None = None,
    ) -> None:
        self.policy = policy
        self.config = config
        self.obs_space, self.action_space = spaces
        self.result = RunResult(result or {})  # how the training ended: steps, returns, seconds
        self._generator = torch.Generator().manual_seed(config.run.seed)
        self.reset()

    def __repr__(self) -> str:
        facts = [task_name(self.config)]
        if "steps" in self.result:
            facts.append(f"{self.result['steps']:,} steps")
        if (mean := self.result.get("return_mean")) is not None:
            facts.append(f"return {mean:.1f}")
        return f"Agent({', '.join(facts)})"

    def _repr_html_(self) -> str:
        size = sum(parameter.numel() for parameter in self.policy.parameters())
        net = self.config.net
        cell = "" if net.recurrent == "none" else f", {net.recurrent} of {net.recurrent_size}"
        spaces = (" ".join(str(space).split()) for space in (self.obs_space, self.action_space))
        facts = zip(("observations", "actions"), spaces, strict=True)
        policy = ("policy", f"{size:,} parameters{cell}, on {self.policy.device}")
        pairs = [*facts, policy, *self.result.pairs()]
        return html_table(task_name(self.config), [(name, printable(text)) for name, text in pairs])

    def reset(self, rows: Any = None) -> None:
        """Begin other episodes: a recurrent policy forgets the last ones.

        rows: those of a batch whose episodes are over, as a mask [N] or as indices; None: all.
        """
        if rows is None:
            self._episodes = EpisodePolicy(self.policy)
        elif self._episodes.steps:
            state = self._episodes.recurrent_state
            state[torch.as_tensor(rows, device=state.device)] = 0

    def act(self, obs: Any, *, deterministic: bool = True) -> Any:
        """The action for one observation, or the actions for a batch of them, as the env takes it.

        obs: an observation, or N of them, stacked along a first axis (in each part of a Dict).
        A recurrent policy remembers each row by itself: see `reset`. deterministic: the most likely
        action; else one drawn from the policy. Raises `ValueError` for an observation of another
        shape, with a number that is not finite, or with a mask that allows nothing.
        """
        seen = self.policy.observations
        leaf = seen.leaves[0]
        try:
            axes = np.ndim(leaf.of(obs)) - len(leaf.space.shape or ())
            lead = np.shape(leaf.of(obs))[:axes] if axes == 1 else ()
            rows = np.empty((*lead, *seen.shape), seen.dtype)
            seen.write(obs, rows)
        except (UsageError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{error}: give one observation, or a batch [N, ...]") from error
        if not np.isfinite(rows).all():
            raise ValueError(f"the observation holds a number that is not finite: {obs}")
        batch = rows if lead else rows[None]
        if self.policy.stuck(batch).any():
            raise ValueError(f"the {MASK} of the observation allows no action: {obs}")
        actions = self._episodes.act_batch(batch, None if deterministic else self._generator)
        return self.policy.actions.given(actions if lead else actions[0])

    def save(self, folder: str | Path) -> None:
        """Write the policy to a new folder, for `load`. Raises `UsageError`."""
        place = RunFolder.create(folder, self.config)
        counters = dict.fromkeys(("smoothed", "best", "last_trial_steps"))
        numbers = {name: self.result.get(name, 0) for name in ("steps", "updates", "episodes")}
        record = {
            **(counters | numbers),
            "horizon": self.config.run.total_steps,
            "policy_only": True,
            "recent": [],
            "spaces": [space_record(space) for space in (self.obs_space, self.action_space)],
        }
        state = self.policy.state_dict()
        with writable(place.path):
            path = place.checkpoint("last")
            write(path, {f"policy.{name}": own_copy(x) for name, x in state.items()}, record)
        place.release()

    def export(self, path: str | Path, *, overwrite: bool = False) -> Exported:
        """Write the policy as one ONNX file, which takes its most likely actions without PyTorch.

        docs/export.md says what goes in and what comes out. The file was run before it is written,
        and acted as the policy does. Raises `UsageError` if it cannot be, or if a file is there.
        """
        about = {
            "proximo": str(versions()["proximo"]),
            "env": self.config.env.id,
            "algorithm": algorithm_name(self.config.algorithm),
            "steps": str(self.result.get("steps", "")),
            "observation_space": str(self.obs_space),
            "action_space": str(self.action_space),
        }
        hidden = self.config.net.privileged
        return export(
            self.policy, Path(path), about, write=replace, privileged=hidden, overwrite=overwrite
        )


def load(
    run: str | Path,
    checkpoint: str = "last",
    *,
    net: str | NetMaker | None = None,
    algorithm: str | type[OnPolicy] | None = None,
) -> Agent:
    """The policy of a run folder: its "last" or "best" one. Runs no code that the folder names.

    net, algorithm: the class of a network or an algorithm of your own, or its name, module:Class,
    which is imported. Raises `UsageError` if the folder or the checkpoint is missing or damaged, or
    if code is not named.
    """
    folder = RunFolder.open(run)
    named = Named(net=net, algorithm=algorithm)
    line = python_line(f"load({str(run)!r}")
    config = allow(folder.read_config(), named, ("net", "algorithm"), line)
    saved = Checkpoint(folder.checkpoint(checkpoint))
    own = find(net) if isinstance(net, str) else net
    if own is None:  # what the files say of sizes is compared before it is made
        with torch.device("meta"):
            saved.check_policy(make_policy(saved.spaces, config))
    policy = make_policy(saved.spaces, config, own)
    saved.load_policy(policy)
    trained = {"steps": saved.steps, "updates": saved.updates}
    return Agent(policy.eval(), config, saved.spaces, trained)


def evaluate(
    agent: Agent | str | Path,
    env: str | EnvConfig | Maker | gym.Env | None = None,
    *,
    episodes: int = 100,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    max_episode_steps: int | None = None,
    checkpoint: str = "last",
    net: str | NetMaker | None = None,
    algorithm: str | type[OnPolicy] | None = None,
) -> Scores:
    """Scores of seeded episodes, number i from seed + i: `returns`, `mean`, `summary()`.

    agent: an agent, or the folder of a run, of which checkpoint, net and algorithm are as in
    `load`. env: where to play, if not in the env of the run; code of your own that the folder of a
    run names must be given. max_episode_steps: steps at which an episode is cut off.

    Raises `UsageError` for an env with other spaces, or one that fails.
    """
    if episodes < 1 or seed < 0 or (max_episode_steps or 1) < 1:
        raise UsageError(
            f"episodes is {episodes}, seed {seed} and max_episode_steps {max_episode_steps}: give "
            "at least 1, 0 and 1"
        )
    played, named = agent, Named(env=env)
    if not isinstance(played, Agent):
        played = load(played, checkpoint, net=net, algorithm=algorithm)
        line = python_line(f"evaluate({str(agent)!r}")
        allow(played.config, named, ("env",) if env is not None else ("env", "wrappers"), line)
    config = played.config.env
    if isinstance(env, EnvConfig):
        config = env
    elif isinstance(env, str):
        config = dataclasses.replace(config, id=env)
    if own := isinstance(env, gym.Env):
        one_env = env
    else:
        one_env = make_env(config, None if isinstance(env, str | EnvConfig) else env)
    try:
        check_spaces(one_env, played)
        return evaluate_policy(
            played.policy,
            one_env,
            episodes=episodes,
            seed=seed,
            deterministic=deterministic,
            limit=step_limit(config, max_episode_steps or played.config.run.eval_max_episode_steps),
        )
    finally:
        close_all([] if own else [one_env])


def check_spaces(env: gym.Env[Any, Any], agent: Agent) -> None:
    """Refuse an env whose spaces are not those of the policy. Raises `UsageError`."""
    pairs = (
        ("observation", env.observation_space, agent.obs_space),
        ("action", env.action_space, agent.action_space),
    )
    for what, there, own in pairs:
        # A space of a class of the user's own is stored as the one of Gymnasium's that it extends.
        if there.shape != own.shape or own != there:
            raise UsageError(
                f"the {what} space of {title(env)} is {there}, but this policy was trained with "
                f"{own}: name the env it was trained in, or one with the same spaces"
            )
