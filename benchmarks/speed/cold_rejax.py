"""Train CartPole-v1 with rejax until an evaluation gives 475, and save the policy.

The settings are the library's own for this env. Training, evaluations and the stop are one
compiled program, so that it is compiled once and no step is taken after the stop.
"""

import json
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from rejax import PPO
from rejax.evaluate import evaluate

BETWEEN = 2500  # steps from one evaluation to the next
MOST = 200_000


def make_agent() -> PPO:
    return PPO.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "tanh"},
        num_envs=5,
        num_steps=100,
        num_epochs=5,
        num_minibatches=5,
        learning_rate=7.5e-4,
        max_grad_norm=0.5,
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        ent_coef=0.01,
        vf_coef=0.5,
    )


def best_action(agent, params):
    """The most likely action, as a function of observation and (unused) key."""

    def act(obs, key):
        dist = agent.actor.apply(params, obs[None], method="_action_dist")
        return dist.logits[0].argmax()

    return act


def learn(path: Path, seed: int) -> None:
    agent = make_agent()
    updates = BETWEEN // (agent.num_envs * agent.num_steps)

    def more(recurrent_state):
        state, _ = recurrent_state
        state = jax.lax.fori_loop(0, updates, lambda _, s: agent.train_iteration(s), state)
        act = best_action(agent, state.actor_ts.params)
        _, returns = evaluate(act, state.rng, agent.env, agent.env_params, 20)
        return state, returns.mean()

    def go_on(recurrent_state):
        state, mean = recurrent_state
        return (mean < 475) & (state.global_step < MOST)

    @jax.jit
    def train(key):
        return jax.lax.while_loop(go_on, more, (agent.init_state(key), jnp.float32(0)))

    state, _ = train(jax.random.key(seed))
    path.write_bytes(pickle.dumps(jax.device_get(state.actor_ts.params)))


def score(path: Path) -> None:
    import gymnasium as gym

    act = jax.jit(best_action(make_agent(), pickle.loads(path.read_bytes())))
    env, total = gym.make("CartPole-v1"), 0.0
    for episode in range(100):
        obs, _ = env.reset(seed=1_000_000 + episode)
        over = False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(int(act(obs, None)))
            total += reward
            over = terminated or truncated
    print(json.dumps({"return_mean": total / 100}))


if __name__ == "__main__":
    verb, folder, number = sys.argv[1:]
    saved = Path(folder) / "policy.pickle"
    learn(saved, int(number)) if verb == "train" else score(saved)
