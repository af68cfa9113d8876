"""Vector envs that hold tensors already, on any device: simulators that run on a GPU.

Nothing is read on the host from a rollout's first step to its last: errors are looked for at the
end, when the returns and lengths of the finished episodes come over in one transfer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from proximo.envs.base import episode_seed, first_step
from proximo.envs.vector import VectorEnvs
from proximo.errors import UsageError, faults
from proximo.spaces import MASK, Leaf, Observations, sizes, torch_dtype
from proximo.types import EnvState, Episode, RolloutBuffer


@dataclass(frozen=True, kw_only=True)
class TensorRolloutBuffer:
    """`RolloutBuffer` as tensors on one device."""

    obs: Tensor  # [T + 1, N, *obs]
    action: Tensor  # [T, N, *act]
    parameters: Tensor  # [2, N, P]
    env_action: Tensor  # [T, N, *]
    reward: Tensor  # [T, N] float64, or float32 on a device that has no other
    terminated: Tensor  # [T, N] bool
    done: Tensor  # [T, N] bool
    valid: Tensor  # [T, N] bool
    final_obs: list[Tensor | None]  # per step: [N, *obs] true successors; empty: rows of obs

    def __len__(self) -> int:
        return len(self.reward)

    def on_host(self) -> RolloutBuffer:
        """As NumPy arrays, without `final_obs`."""
        tensors = [(name, x) for name, x in vars(self).items() if name != "final_obs"]
        return RolloutBuffer(**{name: tensor.cpu().numpy() for name, tensor in tensors})


class Account(NamedTuple):
    """Results of a rollout."""

    final: Tensor  # [F, *obs] the true successors of the steps that ended an episode
    rows: Tensor  # [F] int64: which steps those were, as t*N + i
    episodes: tuple[Episode, ...]
    finite: bool  # all observations and rewards
    fault: str  # what else was wrong, and where, or nothing
    num_valid: int  # steps that count


class TensorEnvs(VectorEnvs):
    """A Gymnasium vector env of tensors, in whichever autoreset mode it declares.

    To know whether an episode ended would be a read on the host. So in same-step mode
    `info["final_obs"]` holds a row for every env, and in disabled mode `reset` is called after
    every step, with a `reset_mask` that may be all False.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], seed: int, device: torch.device) -> None:
        super().__init__(envs, seed)
        self.device = device
        self._resetting = torch.zeros(self.count, dtype=torch.bool, device=device)
        self.rollouts = 0
        """Rollouts that were stepped one by one, before one is recorded as a CUDA graph."""
        self.graph: Any = None

    def fresh(self, state: EnvState) -> None:
        super().fresh(state)
        self._resetting.copy_(torch.from_numpy(state.resetting))

    def _begin(self, state: EnvState, begun: np.ndarray) -> Any:
        starts = self.stagger and not len(state.obs) and not state.episode.any()
        rows = super()._begin(state, begun)
        if starts:
            numbers = range(self.count)
            self._begin_at([first_step(self._seed, i, self.time_limit) for i in numbers])
        return rows

    @property
    def time_limit(self) -> int | None:
        """That of envs which count their steps as those of Isaac Lab do."""
        plain: Any = self.envs.unwrapped
        counts = isinstance(getattr(plain, "episode_length_buf", None), Tensor)
        return int(plain.max_episode_length) if counts else None

    def _begin_at(self, steps: list[int]) -> None:
        """Let the time limits of the envs count these steps as taken."""
        plain: Any = self.envs.unwrapped
        plain.episode_length_buf.copy_(torch.tensor(steps))

    def given(self, action: np.ndarray) -> Any:
        return self.actions.nested(torch.from_numpy(action.copy()).to(self.device))

    def reset_some(self, which: np.ndarray | Tensor) -> Any:
        mask = torch.as_tensor(which, device=self.device).clone()
        return self.envs.reset(options={"reset_mask": mask})[0]

    def _laid(self, seen: Any) -> Any:
        return as_rows(self.observations, seen, self.count)

    def step(self, state: EnvState, buffer: TensorRolloutBuffer, t: int) -> None:  # type: ignore[override]
        action = self.actions.nested(buffer.env_action[t].clone())  # the simulator may change it
        obs, reward, terminated, truncated, info = self.envs.step(action)
        if t == 0:
            self._check(reward, terminated, truncated)
        ended = terminated | truncated
        if self.mode is AutoresetMode.NEXT_STEP:
            buffer.valid[t] = ~self._resetting
            ended = ended & ~self._resetting
            self._resetting.copy_(ended)  # in place, as in a CUDA graph it must be
        buffer.reward[t] = reward
        buffer.terminated[t], buffer.done[t] = terminated & ended, ended
        following = buffer.obs[t + 1]
        write(self.observations, obs, following)
        if self.mode is AutoresetMode.SAME_STEP:
            last = torch.empty_like(following) if "final_obs" in info else None
            if last is not None:
                write(self.observations, info["final_obs"], last)
            buffer.final_obs.append(last)
        elif self.mode is AutoresetMode.DISABLED:
            buffer.final_obs.append(following.clone())
            write(self.observations, self.reset_some(ended), following)

    def _check(self, reward: Any, terminated: Any, truncated: Any) -> None:
        answers = {"reward": reward, "terminated": terminated, "truncated": truncated}
        for name, value in answers.items():
            shown, fits = value, False
            if isinstance(value, Tensor):
                shown = f"{value.dtype} of shape {tuple(value.shape)}"
                fits = value.shape == (self.count,)
                fits = fits and (name == "reward" or value.dtype is torch.bool)
            if not fits:
                kind = "a tensor" if name == "reward" else "a tensor of bool"
                raise UsageError(
                    f"the vector env's {name} is {shown}: as its observations are tensors, it "
                    f"must be {kind} of shape ({self.count},)"
                )


class Snapshots(VectorEnv[Any, Any, Any], ABC):
    """A vector env of tensors whose whole state can be had as arrays: a run resumes exactly."""

    limit: int | None = None
    """Steps after which it truncates an episode, if `begin_at` can move that."""

    def begin_at(self, steps: list[int]) -> None:
        """Count so many steps as taken in the running episodes, one number per env."""
        raise NotImplementedError

    @abstractmethod
    def snapshot(self) -> tuple[np.ndarray, ...]:
        """Its state, in arrays of always the same types and shapes."""

    @abstractmethod
    def restore(self, saved: tuple[np.ndarray, ...]) -> bool:
        """Bring it back to such a state; False: it cannot be brought back."""


class SnapshotEnvs(TensorEnvs):
    """`TensorEnvs` whose state is saved with the run."""

    replayable = True

    def __init__(self, envs: Snapshots, seed: int, device: torch.device) -> None:
        super().__init__(envs, seed, device)
        self._snapshots = envs

    def _begin(self, state: EnvState, begun: np.ndarray) -> Any:
        rows = super()._begin(state, begun)
        self.remember(state, None)
        return rows

    @property
    def time_limit(self) -> int | None:
        return self._snapshots.limit

    def _begin_at(self, steps: list[int]) -> None:
        self._snapshots.begin_at(steps)

    def remember(self, state: EnvState, buffer: Any) -> None:
        state.simulation = self._snapshots.snapshot()

    def restore(self, state: EnvState) -> bool:
        if not self._snapshots.restore(state.simulation):
            return super().restore(state)
        state.obs = torch.as_tensor(state.obs).to(self.device)
        self._resetting = torch.from_numpy(state.resetting).to(self.device)
        return True


def held_on(envs: VectorEnv[Any, Any, Any], seed: int) -> torch.device | None:
    """The device of the observations that `reset` returns; None: they are NumPy arrays."""
    try:
        answer = envs.reset(seed=episode_seed(seed, 0, 0))
    except faults():  # it is named where the envs are checked, or reset for good
        return None
    seen = answer[0] if isinstance(answer, tuple) and answer else None
    while isinstance(seen, dict | tuple) and seen:
        seen = next(iter(seen.values() if isinstance(seen, dict) else seen))
    return seen.device if isinstance(seen, Tensor) else None


def write(observations: Observations, seen: Any, rows: Tensor) -> None:
    """`Observations.write` for tensors. A choice out of its range leaves its columns 0, unseen."""

    def take(leaf: Leaf, seen: Any) -> Tensor:
        part = leaf.of(seen)
        if isinstance(part, Tensor) and part.device == rows.device:
            return part
        where = part.device if isinstance(part, Tensor) else type(part).__name__
        raise UsageError(
            f"an env returned {leaf.name} as {where}, but other observations as tensors on "
            f"{rows.device}: all must be there"
        )

    observations.write(seen, rows, take)


def as_rows(observations: Observations, seen: Any, count: int) -> Tensor:
    """Observations of N envs as rows, [N, *obs], where their tensors are."""
    kind, device = torch_dtype(observations.dtype), observations.leaves[0].of(seen).device
    rows = torch.empty((count, *observations.shape), dtype=kind, device=device)
    write(observations, seen, rows)
    return rows


def account(
    buffer: TensorRolloutBuffer,
    mask: Tensor,
    env: EnvState,
    observations: Observations,
    choices: tuple[int, ...],
    *,
    stagger: bool = False,
) -> Account:
    """Bring the returns and lengths of the running episodes up to date; what has finished.

    mask: [T, N] the steps that count. choices: how much there is to choose from, choice by choice.
    stagger: the first episode of an env is not scored.
    Reads on the host how many episodes ended, and then all that it needs in one transfer.
    """
    count, exact = buffer.reward.shape[1], buffer.reward
    paid = torch.where(buffer.valid, exact, 0)
    values = torch.stack([paid, buffer.valid.to(exact)], 1)  # [T, 2, N]
    running = torch.from_numpy(np.stack([env.ret, env.length])).to(exact)  # [2, N]
    sums, goes_on = torch.empty_like(values), (~buffer.done).to(exact)
    keep = torch.ones_like(running[0])
    # One after the other, from zero: a sum over all of them less another one is rounded otherwise.
    for value, here, keeps in zip(values.unbind(), sums.unbind(), goes_on.unbind(), strict=True):
        running, keep = torch.addcmul(value, running, keep, out=here), keeps
    running = running * keep

    index = buffer.done.flatten().nonzero().squeeze(-1)  # [F], in order of time
    episodes = sums.transpose(0, 1).flatten(1)[:, index]  # [2, F]
    final = _successors(buffer, index)
    reward = buffer.reward.to(buffer.parameters.dtype)  # as the policy learns from it
    finite = torch.stack([x.isfinite().all() for x in (buffer.obs, reward, final)]).all()
    faults = list(_faults(buffer, observations, choices))
    results = (
        *(episodes.flatten(), mask.flatten()[index], buffer.terminated.flatten()[index]),
        *(running.flatten(), buffer.done.sum(0), mask.sum(0)),
        torch.zeros_like(index[:0]) if buffer.final_obs else buffer.done[-1],
        torch.stack([finite, *(where.any() for _, where in faults)]),
    )
    numbers = torch.cat([x.to(exact.dtype) for x in results]).cpu().numpy()
    pieces = np.split(numbers, [*accumulate(x.numel() for x in results)][:-1])
    pairs, counts, terminated, now, more, valid, resetting, flags = pieces
    env.ret, length = now.reshape(2, -1).astype(np.float64)
    env.length = length.astype(np.int64)
    if stagger:
        owner, first = np.unique(index.cpu().numpy() % count, return_index=True)
        counts[first[env.episode[owner] == 0]] = 0
    env.episode += more.astype(np.int64)
    env.resetting = resetting.astype(bool) if len(resetting) else np.zeros(count, bool)
    finished = tuple(
        Episode(float(ret), int(length), bool(by_task))
        for ret, length, by_task, counted in zip(
            *pairs.reshape(2, -1), terminated, counts, strict=True
        )
        if counted
    )
    present = [fault for fault, flag in zip(faults, flags[1:], strict=True) if flag]
    text = ""
    if present:  # the first step and env where it holds
        words, where = present[0]
        t, i = where.nonzero()[0].tolist()
        text = f"env {i} {words}, at step {t}"
    return Account(final, index, finished, bool(flags[0]), text, int(valid.sum()))


def _successors(buffer: TensorRolloutBuffer, index: Tensor) -> Tensor:
    """[F, *obs] true successors of the steps in which an episode ended."""
    following = buffer.obs[1:]
    if not buffer.final_obs:
        return following.flatten(0, 1)[index]
    count = buffer.obs.shape[1]
    numbers = torch.bincount(index // count, minlength=len(buffer)).tolist()
    envs = torch.split(index % count, numbers)
    rows = (a if a is not None else b for a, b in zip(buffer.final_obs, following, strict=True))
    return torch.cat([row[ended] for row, ended in zip(rows, envs, strict=True)])


def _faults(
    buffer: TensorRolloutBuffer, observations: Observations, choices: tuple[int, ...]
) -> Iterator[tuple[str, Tensor]]:
    """Error texts, each with where it would hold: [T, N] or [T + 1, N] bool."""
    absent = [rows is None for rows in buffer.final_obs]
    if any(absent):
        lacking = torch.tensor(absent, device=buffer.done.device)
        words = "ended an episode, but info has no final_obs, which same-step mode needs"
        yield words, buffer.done & lacking.unsqueeze(-1)
    for leaf in observations.leaves:
        if counts := sizes(leaf.space):
            chosen = buffer.obs[..., leaf.begin : leaf.end].sum(-1)
            words = f"returned {leaf.name} with a number that is not in {leaf.space}"
            yield words, chosen != len(counts)
    if (legal := observations.legal(buffer.obs[:-1])) is not None:
        some = torch.stack([x.any(-1) for x in torch.split(legal, list(choices), -1)]).all(0)
        words = f"shows an {MASK} that allows no action: one must be legal until the episode ends"
        yield words, buffer.valid & ~some
