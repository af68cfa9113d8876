"""Settings per (algorithm, task), each with its source and, where there is one, its result."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from proximo.errors import UsageError, nearest
from proximo.run.config import Tables


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that differ from the defaults, for one algorithm on some tasks."""

    name: str
    algorithm: str
    envs: tuple[str, ...]  # names or patterns; the first, a name, is what `--preset NAME` runs
    settings: Tables
    source: str
    result: str
    by_name: bool = False  # used only where it is asked for

    def measured(self, env: str) -> bool:
        """There is a result in this env, not only in another one of `envs`."""
        return env in self.result.split()

    @property
    def tables(self) -> Tables:
        """The settings, with the algorithm that they are of."""
        own = {"name": self.algorithm, **self.settings.get("algorithm", {})}
        return {**self.settings, "algorithm": own}


MUJOCO = tuple(
    f"{name}-v5"
    for name in [
        "HalfCheetah",
        "Hopper",
        "Walker2d",
        "Ant",
        "Humanoid",
        "HumanoidStandup",
        "Swimmer",
        "Reacher",
        "Pusher",
        "InvertedPendulum",
        "InvertedDoublePendulum",
    ]
)

TUNED = (
    Preset(
        name="cartpole",
        algorithm="ppo",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "gamma": 0.98,
                "lam": 0.8,
                "learning_rate": "linear:1e-3:0",
                "clip": "linear:0.2:0",
                "epochs": 20,
                "minibatch_size": 250,
            },
            "rollout": {"steps": 25},
            "env": {"num_envs": 10},
            "run": {"total_steps": 100_000},
        },
        source="RL Baselines3 Zoo, with 10 x 25 steps for its 8 x 32",
        result=("CartPole-v1 500.0 ± 0.0 (95% interval), worst of 10 seeds 500.0"),
    ),
    Preset(
        name="pendulum",
        algorithm="ppo",
        envs=("Pendulum-v1",),
        settings={
            "algorithm": {
                "gamma": 0.95,
                "learning_rate": "linear:1e-3:0",
                "epochs": 15,
                "minibatch_size": 64,
                "target_kl": 0.03,
            },
            "net": {"normalize_returns": True},
            "rollout": {"steps": 200},
            "env": {"num_envs": 5},
            "run": {"total_steps": 100_000},
        },
        source="own: five whole episodes an update, standardised returns, falling learning rate",
        result=("Pendulum-v1 -167.0 ± 3.7 (95% interval), worst of 10 seeds -176.8"),
    ),
    Preset(
        name="lunarlander",
        algorithm="ppo",
        envs=("LunarLander-v3", "LunarLanderContinuous-v3"),
        settings={
            "algorithm": {
                "gamma": 0.999,
                "lam": 0.98,
                "learning_rate": "linear:3e-4:0",
                "entropy_coef": "linear:0.01:0",
                "normalize_reward": True,
                "epochs": 4,
                "minibatch_size": 64,
            },
            "rollout": {"steps": 1000},
            "env": {"num_envs": 16},
            "run": {"total_steps": 992_000},
        },
        source="RL Baselines3 Zoo, with scaled rewards, falling learning rate and entropy bonus",
        result=(
            "LunarLander-v3 267.5 ± 4.9 (95% interval), worst of 10 seeds 255.8; "
            "LunarLanderContinuous-v3 269.4 ± 8.1 (95% interval), worst of 10 seeds 242.4"
        ),
    ),
    Preset(
        name="mountaincar",
        algorithm="ppo",
        envs=("MountainCar-v0",),
        settings={
            "algorithm": {
                "learning_rate": "linear:1e-3:0",
                "lam": 0.98,
                "normalize_reward": True,
                "epochs": 4,
                "minibatch_size": 64,
            },
            "net": {"normalize_obs": True},
            "rollout": {"steps": 16},
            "env": {"num_envs": 16},
            "run": {"total_steps": 999_936},
        },
        source="RL Baselines3 Zoo, with scaled rewards and a larger, falling learning rate",
        result=("MountainCar-v0 -103.9 ± 2.9 (95% interval), worst of 10 seeds -110.3"),
    ),
    Preset(
        name="mujoco",
        algorithm="ppo",
        envs=MUJOCO,
        settings={
            "algorithm": {
                "learning_rate": "linear:3e-4:0",
                "normalize_reward": True,
                "epochs": 10,
                "minibatch_size": 64,
            },
            "net": {"normalize_obs": True, "log_std": -0.5},
            "rollout": {"steps": 250},
            "env": {"num_envs": 8},
            "run": {"total_steps": 1_000_000},
        },
        source="Huang et al. 2022 (37 details), with 8 x 250 steps for 1 x 2048 and a smaller "
        "first deviation (Andrychowicz et al. 2021)",
        result=("HalfCheetah-v5 5430.3 ± 935.4 (95% interval), worst of 10 seeds 3779.1"),
    ),
    Preset(
        name="atari",
        algorithm="ppo",
        envs=("ALE/Pong-v5", "ALE/*"),
        settings={
            "algorithm": {
                "learning_rate": "linear:2.5e-4:0",
                "clip": 0.1,
                "epochs": 4,
                "minibatch_size": 256,
                "entropy_coef": 0.01,
            },
            "net": {"hidden": (512,), "activation": "relu", "trunk": "shared"},
            "rollout": {"steps": 128},
            "env": {"num_envs": 8, "reward_clip": 1.0},
            "run": {"total_steps": 9_999_360},
        },
        source="CleanRL's for Atari (those of OpenAI's baselines), without the clipped value loss "
        "and with sticky actions; a lost life ends nothing unless env.kwargs says life_loss_info",
        result="not measured here: its budget is a matter of hours",
    ),
    Preset(
        name="cartpole-reinforce",
        algorithm="reinforce",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "learning_rate": "linear:1e-2:0",
                "critic_learning_rate": "linear:3e-2:0",
            },
            "rollout": {"episodes": 4},
            "env": {"num_envs": 4},
            "run": {"total_steps": 200_000},
        },
        source="own: four whole episodes an update, a faster critic",
        result="CartPole-v1 499.4 ± 1.8 (95% interval), worst of 5 seeds 496.8",
    ),
    Preset(
        name="cartpole-qac",
        algorithm="qac",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "gamma": 0.95,
                "normalize_advantage": "batch",
                "learning_rate": "linear:1e-3:0",
                "critic_learning_rate": "linear:1e-2:0",
                "entropy_coef": 0.01,
            },
            "rollout": {"steps": 8},
            "env": {"num_envs": 8},
            "run": {"total_steps": 200_000},
        },
        source="own: 64 steps an update, Q standardised over them, a faster critic, an entropy "
        "bonus",
        result="CartPole-v1 454.4 ± 119.6 (95% interval), worst of 5 seeds 282.2",
    ),
    Preset(
        name="cartpole-a2c",
        algorithm="a2c",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "gamma": 0.98,
                "lam": 0.95,
                "optimizer": "adam",
                "learning_rate": "linear:3e-3:0",
            },
            "rollout": {"steps": 16},
            "env": {"num_envs": 8},
            "run": {"total_steps": 199_936},
        },
        source="own: 8 x 16 steps an update, Adam",
        result="CartPole-v1 500.0 ± 0.0 (95% interval), worst of 5 seeds 500.0",
    ),
    Preset(
        name="cartpole-trpo",
        algorithm="trpo",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {"gamma": 0.98, "cg_damping": 0.01, "minibatch_size": 128},
            "rollout": {"steps": 128},
            "env": {"num_envs": 8},
            "run": {"total_steps": 199_680},
        },
        source="RL Baselines3 Zoo, with 8 x 128 steps for 2 x 512",
        result="CartPole-v1 500.0 ± 0.0 (95% interval), worst of 5 seeds 500.0",
    ),
    Preset(
        name="cartpole-ppo-penalty",
        algorithm="ppo-penalty",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {"gamma": 0.98, "learning_rate": "linear:1e-3:0"},
            "rollout": {"steps": 128},
            "env": {"num_envs": 8},
            "run": {"total_steps": 199_680},
        },
        source="own: 8 x 128 steps an update, falling learning rate",
        result="CartPole-v1 500.0 ± 0.0 (95% interval), worst of 5 seeds 500.0",
    ),
    Preset(
        name="pendulum-a2c",
        algorithm="a2c",
        envs=("Pendulum-v1",),
        settings={
            "algorithm": {
                "gamma": 0.9,
                "lam": 0.9,
                "normalize_advantage": "batch",
                "optimizer": "adam",
                "learning_rate": "linear:1e-3:0",
                "critic_learning_rate": "linear:5e-3:0",
            },
            "net": {"activation": "relu", "mean": "tanh"},
            "rollout": {"steps": 8},
            "env": {"num_envs": 8, "reward_shift": 8.0, "reward_scale": 0.125},
            "run": {"total_steps": 300_032},
        },
        source="own: 64 steps an update, the mean within bounds, a faster critic",
        result="Pendulum-v1 -185.7 ± 15.4 (95% interval), worst of 5 seeds -204.0",
    ),
    Preset(
        name="pendulum-trpo",
        algorithm="trpo",
        envs=("Pendulum-v1",),
        settings={
            "algorithm": {"gamma": 0.95, "cg_damping": 0.01, "epochs": 15},
            "net": {"normalize_returns": True},
            "rollout": {"steps": 200},
            "env": {"num_envs": 5},
            "run": {"total_steps": 300_000},
        },
        source="the preset pendulum, with trpo's step",
        result="Pendulum-v1 -164.5 ± 15.8 (95% interval), worst of 5 seeds -186.8",
    ),
    Preset(
        name="pendulum-ppo-penalty",
        algorithm="ppo-penalty",
        envs=("Pendulum-v1",),
        settings={
            "algorithm": {"gamma": 0.95, "learning_rate": "linear:1e-3:0", "epochs": 15},
            "net": {"normalize_returns": True},
            "rollout": {"steps": 200},
            "env": {"num_envs": 5},
            "run": {"total_steps": 300_000},
        },
        source="the preset pendulum, with a penalty for its clip",
        result="Pendulum-v1 -160.0 ± 3.0 (95% interval), worst of 5 seeds -164.1",
    ),
    Preset(
        name="lunarlander-a2c",
        algorithm="a2c",
        envs=("LunarLander-v3", "LunarLanderContinuous-v3"),
        settings={
            "algorithm": {
                "gamma": 0.995,
                "normalize_reward": True,
                "learning_rate": "linear:1e-3:0",
                "entropy_coef": "linear:0.01:0",
            },
            "net": {"normalize_obs": True},
            "rollout": {"steps": 8},
            "env": {"num_envs": 8},
            "run": {"total_steps": 1_000_000},
        },
        source="RL Baselines3 Zoo, with scaled observations and rewards, a falling entropy bonus",
        result="LunarLander-v3 144.2 ± 73.8 (95% interval), worst of 5 seeds 59.7",
    ),
    Preset(
        name="lunarlander-trpo",
        algorithm="trpo",
        envs=("LunarLander-v3", "LunarLanderContinuous-v3"),
        settings={
            "algorithm": {
                "gamma": 0.999,
                "lam": 0.98,
                "normalize_reward": True,
                "cg_damping": 0.01,
                "epochs": 4,
            },
            "rollout": {"steps": 256},
            "env": {"num_envs": 16},
            "run": {"total_steps": 999_424},
        },
        source="the preset lunarlander, with trpo's step and shorter rollouts",
        result="LunarLander-v3 226.6 ± 75.8 (95% interval), worst of 5 seeds 133.4",
    ),
    Preset(
        name="lunarlander-ppo-penalty",
        algorithm="ppo-penalty",
        envs=("LunarLander-v3", "LunarLanderContinuous-v3"),
        settings={
            "algorithm": {
                "gamma": 0.999,
                "lam": 0.98,
                "learning_rate": "linear:3e-4:0",
                "entropy_coef": "linear:0.01:0",
                "normalize_reward": True,
                "epochs": 8,
            },
            "rollout": {"steps": 1000},
            "env": {"num_envs": 16},
            "run": {"total_steps": 992_000},
        },
        source="the preset lunarlander, with a penalty for its clip, and more epochs to feel it",
        result="LunarLander-v3 257.3 ± 32.9 (95% interval), worst of 5 seeds 210.0",
    ),
    Preset(
        name="mujoco-a2c",
        algorithm="a2c",
        envs=MUJOCO,
        settings={
            "algorithm": {
                "lam": 0.95,
                "normalize_advantage": "batch",
                "normalize_reward": True,
                "optimizer": "adam",
                "learning_rate": "linear:1e-3:0",
            },
            "net": {"normalize_obs": True, "log_std": -0.5},
            "rollout": {"steps": 16},
            "env": {"num_envs": 8},
            "run": {"total_steps": 1_000_064},
        },
        source="the preset mujoco, with a step of Adam every 8 x 16 steps",
        result="HalfCheetah-v5 2339.7 ± 4031.3 (95% interval), worst of 3 seeds 1393.1",
    ),
    Preset(
        name="mujoco-trpo",
        algorithm="trpo",
        envs=MUJOCO,
        settings={
            "algorithm": {"normalize_reward": True, "max_kl": 0.02},
            "net": {"normalize_obs": True, "log_std": -0.5},
            "rollout": {"steps": 250},
            "env": {"num_envs": 8},
            "run": {"total_steps": 1_000_000},
        },
        source="the preset mujoco, with trpo's step",
        result="HalfCheetah-v5 4593.9 ± 1646.0 (95% interval), worst of 3 seeds 4159.6",
    ),
    Preset(
        name="mujoco-ppo-penalty",
        algorithm="ppo-penalty",
        envs=MUJOCO,
        settings={
            "algorithm": {"normalize_reward": True, "learning_rate": "linear:3e-4:0"},
            "net": {"normalize_obs": True, "log_std": -0.5},
            "rollout": {"steps": 250},
            "env": {"num_envs": 8},
            "run": {"total_steps": 1_000_000},
        },
        source="the preset mujoco, with a penalty for its clip",
        result="HalfCheetah-v5 5328.9 ± 1141.3 (95% interval), worst of 3 seeds 4798.5",
    ),
)
"""`result`: mean of 100 deterministic episodes of the last policy on unseen seeds."""


TAUGHT = (
    Preset(
        name="teaching-episodic",
        algorithm="ppo",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "advantage": "monte-carlo",
                "normalize_advantage": "episode",
                "learning_rate": 1e-3,
                "critic_learning_rate": 3e-3,
                "optimizer_eps": 1e-8,
                "epochs": 5,
                "minibatches": "episodes",
                "max_grad_norm": None,
                "value_loss": "huber",
                "value_coef": 1.0,
            },
            "net": {"hidden": (128,), "activation": "relu", "orthogonal": False},
            "rollout": {"episodes": 4},
            "env": {"num_envs": 1},
            "run": {"total_steps": 500_000, "total_episodes": 600},
        },
        source="Monte-Carlo actor-critic PPO, an update every few episodes, a step per episode; "
        "the critic learns the returns as they are, and a time limit is no termination",
        result="",
        by_name=True,
    ),
    Preset(
        name="qac",
        algorithm="qac",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "gamma": 0.98,
                "learning_rate": 3e-4,
                "critic_learning_rate": 3e-3,
                "entropy_coef": 0.01,
            },
            "env": {"num_envs": 1},
            "run": {"total_steps": 100_000, "log_every": 100},
        },
        source="actor-critic with Q(S,A), a step of both at every step of one env",
        result="",
        by_name=True,
    ),
    Preset(
        name="a2c",
        algorithm="a2c",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {"advantage": "td0", "learning_rate": "linear:3e-3:0"},
            "rollout": {"steps": 16},
            "env": {"num_envs": 8},
            "run": {"total_steps": 200_000},
        },
        source="A = R + gamma V(S') - V(S) over many steps of many episodes, then one update",
        result="",
        by_name=True,
    ),
    Preset(
        name="teaching-cartpole",
        algorithm="ppo",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "gamma": 0.98,
                "value_target": "td0",
                "normalize_advantage": "none",
                "learning_rate": 1e-3,
                "critic_learning_rate": 1e-2,
                "optimizer_eps": 1e-8,
                "minibatches": "whole",
                "max_grad_norm": None,
                "value_coef": 1.0,
            },
            "net": {"hidden": (128,), "activation": "relu", "orthogonal": False},
            "rollout": {"episodes": 1},
            "env": {"num_envs": 1, "max_episode_steps": 200},
            "run": {"total_steps": 100_000, "total_episodes": 500, "success_at": 195},
        },
        source="Hands-on RL, chapter 12: an update per episode; a time limit is no termination",
        result="",
        by_name=True,
    ),
    Preset(
        name="teaching-pendulum",
        algorithm="ppo",
        envs=("Pendulum-v1",),
        settings={
            "algorithm": {
                "gamma": 0.9,
                "lam": 0.9,
                "value_target": "td0",
                "normalize_advantage": "none",
                "learning_rate": 1e-4,
                "critic_learning_rate": 5e-3,
                "optimizer_eps": 1e-8,
                "minibatches": "whole",
                "max_grad_norm": None,
                "value_coef": 1.0,
                "entropy_coef": "linear:0.02:0",
            },
            "net": {
                "hidden": (128,),
                "activation": "relu",
                "orthogonal": False,
                "mean": "tanh",
                "std": "softplus",
                "log_std": -0.3665,  # softplus(0) = 0.693, where an output of 0 begins
            },
            "rollout": {"episodes": 1},
            "env": {"num_envs": 1, "reward_shift": 8.0, "reward_scale": 0.125},
            "run": {"total_steps": 400_000, "total_episodes": 2_000},
        },
        source="Hands-on RL, chapter 12: mean 2 tanh, deviation softplus, rewards (r + 8)/8; a "
        "time limit is no termination, and an entropy bonus that falls to 0 keeps it exploring",
        result="",
        by_name=True,
    ),
    Preset(
        name="teaching-vectorised",
        algorithm="ppo",
        envs=("CartPole-v1",),
        settings={
            "algorithm": {
                "learning_rate": 1e-4,
                "normalize_advantage": "batch",
                "epochs": 4,
                "minibatch_size": 64,
                "entropy_coef": "linear:0.02:0:0.001",
                "value_loss": "clipped",
                "value_coef": 0.25,  # half of a half: the listing's loss has a factor of its own
            },
            "net": {"activation": "relu", "trunk": "shared"},
            "rollout": {"steps": 256},
            "env": {"num_envs": 8},
            "run": {"total_steps": 500_000, "smoothed_from": 0.0, "success_at": 200.0},
        },
        source="8 envs x 256 steps in shuffled minibatches, a shared trunk, the best policy by a "
        "moving average; each env has its own bootstrap and its own advantages",
        result="",
        by_name=True,
    ),
)
"""Systems of the teaching literature, with what was wrong in them put right."""

PRESETS = (*TUNED, *TAUGHT)


def find_preset(algorithm: str, env: str) -> Preset | None:
    """The preset for a task, if there is one."""
    own = (p for p in PRESETS if p.algorithm == algorithm and not p.by_name)
    return next((p for p in own if any(fnmatchcase(env, name) for name in p.envs)), None)


def named_preset(name: str) -> Preset:
    """The preset of this name, or `UsageError` with those that are near."""
    by_name = {preset.name: preset for preset in PRESETS}
    if name not in by_name:
        raise UsageError(f"there is no preset {name!r}. {nearest(name, by_name)}")
    return by_name[name]
