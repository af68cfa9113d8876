"""Steps per second of rejax at one setting: the second call of its compiled training function.

Its evaluations while training are left out; envs and learning are one XLA program.
"""

import argparse
import time

from settings import WORKS, pin, report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    pin(chosen.threads)  # before JAX starts its threads
    import jax
    from rejax import PPO

    work = WORKS[chosen.work]
    total = work.whole_updates(chosen.steps)
    agent = PPO.create(
        env=work.env,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=work.num_envs,
        num_steps=work.steps,
        num_epochs=work.epochs,
        num_minibatches=work.samples // work.minibatch,
        learning_rate=work.learning_rate,
        gamma=work.gamma,
        gae_lambda=work.lam,
        ent_coef=work.entropy,
        clip_eps=work.value_clip or 0.2,
        vf_coef=0.5,
        max_grad_norm=0.5,
        total_timesteps=total,
        eval_freq=total,
        skip_initial_evaluation=True,
    )
    agent = agent.replace(eval_callback=lambda algorithm, state, key: ())
    train = jax.jit(agent.train)
    begin = time.perf_counter()
    jax.block_until_ready(train(jax.random.key(1)))
    compiled = time.perf_counter()
    jax.block_until_ready(train(jax.random.key(2)))
    seconds = time.perf_counter() - compiled
    report(
        steps_per_second=total / seconds,
        timed_steps=total,
        timed_seconds=seconds,
        first_call_seconds=compiled - begin,
    )


if __name__ == "__main__":
    main()
