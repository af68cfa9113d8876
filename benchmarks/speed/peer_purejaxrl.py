"""Steps per second of a checkout of PureJaxRL at one setting: its compiled function's second call.

It is not on the package index; its algorithm is imported as it is, only its settings are given.
"""

import argparse
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

from settings import WORKS, pin, report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    pin(chosen.threads)  # before JAX starts its threads
    import jax

    # Its wrappers also import the envs of Brax and Navix, which this setting does not use.
    unused = ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix")
    sys.modules.update({name: MagicMock() for name in unused})
    sys.path.insert(0, str(chosen.checkout / "purejaxrl"))
    from ppo import make_train

    work = WORKS[chosen.work]
    total = work.whole_updates(chosen.steps)
    settings = {
        "ENV_NAME": work.env,
        "LR": work.learning_rate,
        "ANNEAL_LR": work.anneal,
        "NUM_ENVS": work.num_envs,
        "NUM_STEPS": work.steps,
        "TOTAL_TIMESTEPS": total,
        "UPDATE_EPOCHS": work.epochs,
        "NUM_MINIBATCHES": work.samples // work.minibatch,
        "GAMMA": work.gamma,
        "GAE_LAMBDA": work.lam,
        "CLIP_EPS": work.value_clip or 0.2,
        "ENT_COEF": work.entropy,
        "VF_COEF": 0.5,
        "MAX_GRAD_NORM": 0.5,
        "ACTIVATION": "tanh",
    }
    train = jax.jit(make_train(settings))
    begin = time.perf_counter()
    jax.block_until_ready(train(jax.random.PRNGKey(1)))
    compiled = time.perf_counter()
    jax.block_until_ready(train(jax.random.PRNGKey(2)))
    seconds = time.perf_counter() - compiled
    report(
        steps_per_second=total / seconds,
        timed_steps=total,
        timed_seconds=seconds,
        first_call_seconds=compiled - begin,
    )


if __name__ == "__main__":
    main()
