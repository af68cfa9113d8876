"""Steps per second of Proximo at one setting, with its run folder, metrics and checkpoints.

Everything beyond the name of the setting is for scaling.py, which changes one thing at a time.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from settings import WORKS, Marks, Work

from proximo import PPO, EnvConfig, NetConfig, RolloutConfig, RunConfig, train


def learn(
    work: Work,
    total_steps: int,
    run_dir: Path,
    *,
    threads: int = 1,
    engine: str = "auto",
    seed: int = 1,
    hidden: tuple[int, ...] | None = None,
    callbacks: tuple = (),
) -> None:
    """Train with these settings; the run stays in its folder."""
    rate = work.learning_rate
    clip = work.value_clip
    train(
        EnvConfig(
            id=work.env,
            num_envs=work.num_envs,
            backend=work.backend,
            action_masks="method" if work.masked else "observation",
            reward_clip=1.0 if work.pixels else None,
        ),
        PPO(
            clip=work.clip,
            epochs=work.epochs,
            minibatch_size=work.minibatch,
            learning_rate=f"linear:{rate}:0" if work.anneal else rate,
            gamma=work.gamma,
            lam=work.lam,
            entropy_coef=work.entropy,
            normalize_reward=work.normalize,
            **({} if clip is None else {"value_loss": "clipped", "value_clip": clip}),
        ),
        rollout=RolloutConfig(steps=work.steps),
        net=NetConfig(
            hidden=hidden or ((512,) if work.pixels else (64, 64)),
            **({"trunk": "shared", "activation": "relu"} if work.pixels else {}),
            normalize_obs=work.normalize,
            **(
                {"recurrent": "lstm", "recurrent_size": work.recurrent_size}
                if work.recurrent_size
                else {}
            ),
            bptt_steps=work.bptt_steps,
        ),
        run_config=RunConfig(total_steps=total_steps, threads=threads, engine=engine, seed=seed),
        run_dir=run_dir,
        callbacks=callbacks,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--backend")
    parser.add_argument("--num-envs", type=int)
    parser.add_argument("--rollout", type=int, help="steps in each env per update")
    parser.add_argument("--minibatch", type=int)
    parser.add_argument(
        "--hidden",
        type=int,
        nargs="+",
    )
    chosen = parser.parse_args()
    changes = {
        "backend": chosen.backend,
        "num_envs": chosen.num_envs,
        "steps": chosen.rollout,
        "minibatch": chosen.minibatch,
    }
    work = dataclasses.replace(
        WORKS[chosen.work], **{key: value for key, value in changes.items() if value is not None}
    )
    marks = Marks()
    with tempfile.TemporaryDirectory() as folder:
        learn(
            work,
            work.whole_updates(chosen.steps),
            Path(folder) / "run",
            threads=chosen.threads,
            engine=chosen.engine,
            hidden=tuple(chosen.hidden) if chosen.hidden else None,
            callbacks=(lambda state, rollout, metrics: marks.add(state.steps),),
        )
    marks.report()


if __name__ == "__main__":
    main()
