"""A flag that there is not: the one that is meant, and the line to type."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence

USUAL = {
    "algorithm.learning-rate": ("lr", "learning-rate", "policy-lr", "pi-lr", "step-size"),
    "algorithm.critic-learning-rate": ("vf-lr", "value-lr", "critic-lr"),
    "algorithm.gamma": ("discount", "discount-factor"),
    "algorithm.lam": ("gae-lambda", "lambda", "gae-lam"),
    "algorithm.clip": ("clip-range", "clip-coef", "clip-ratio", "cliprange", "clip-eps", "epsilon"),
    "algorithm.value-clip": ("clip-range-vf", "vf-clip", "vf-clip-param"),
    "algorithm.entropy-coef": ("ent-coef", "entropy-coeff", "entropy-coefficient", "ent-weight"),
    "algorithm.value-coef": ("vf-coef", "vf-loss-coeff", "value-loss-coef"),
    "algorithm.epochs": ("n-epochs", "num-epochs", "update-epochs", "noptepochs", "ppo-epochs"),
    "algorithm.minibatch-size": ("batch-size", "mini-batch-size", "sgd-minibatch-size"),
    "algorithm.max-grad-norm": ("grad-clip", "max-gradient-norm", "clip-grad-norm"),
    "algorithm.normalize-advantage": ("norm-adv", "adv-norm"),
    "algorithm.optimizer-eps": ("adam-eps", "adam-epsilon"),
    "algorithm.target-kl": ("kl-target", "max-kl"),
    "rollout.steps": ("n-steps", "num-steps", "nsteps", "rollout-length", "horizon", "unroll"),
    "env.num_envs": ("num-envs", "n-envs", "nenvs", "envs", "num-env", "n-env"),
    "env.processes": ("num-workers", "n-workers", "workers", "n-proc"),
    "env.kwargs": ("env-kwargs", "env-config"),
    "env.max-episode-steps": ("time-limit", "max-steps", "max-ep-len"),
    "net.hidden": ("hidden-sizes", "net-arch", "hidden-size", "hidden-dim", "fcnet-hiddens"),
    "net.activation": ("activation-fn",),
    "net.normalize-obs": ("norm-obs", "obs-norm"),
    "algorithm.normalize-reward": ("norm-reward", "reward-norm"),
    "run.eval-every": ("eval-freq", "evaluation-interval"),
    "run.eval-episodes": ("n-eval-episodes", "num-eval-episodes"),
    "run.save-every": ("save-freq", "checkpoint-freq", "checkpoint-interval"),
    "run-dir": ("log-dir", "logdir", "output-dir", "save-dir", "save-path", "outdir"),
    "total-steps": (
        *("total-timesteps", "timesteps", "n-timesteps", "num-timesteps", "max-timesteps"),
        *("total-env-steps", "num-env-steps"),
    ),
    "stop-at": ("reward-threshold", "target-reward", "target-return"),
    "env": ("env-id", "env-name", "environment"),
}
"""Our flag -> what other libraries call it."""
SURE = 0.9
"""Likeness from which a name is not asked about."""


def message(verb: str, arguments: Sequence[str], unknown: Sequence[str], known: set[str]) -> str:
    """What is said of words that a verb does not take.

    known: its flags, without their dashes.
    """
    names = [word for word in unknown if re.match(r"--?[A-Za-z]", word)]
    flags = {word: _plain(word) for word in names if _plain(word) not in known}
    if not flags:
        return f"proximo {verb} has no place for {shlex.join(unknown)}: see proximo {verb} --help"
    meant = {word: _meant(name, known) for word, name in flags.items()}
    sure = {word: near[0] for word, near in meant.items() if len(near) == 1}
    there_is = " and ".join(f"--{name}" if len(name) > 1 else f"-{name}" for name in flags.values())
    text = f"proximo {verb} has no flag {there_is}."
    if len(sure) == len(flags):
        line = [_said(word, sure[word]) if word in sure else word for word in arguments]
        return f"{text} Type: {shlex.join(['proximo', *verb.split(), *line])}"
    for near in meant.values():
        if near:
            text += f" Did you mean {' or '.join(f'--{name}' for name in near)}?"
    return text if any(meant.values()) else f"{text} See proximo {verb} --help"


def _plain(word: str) -> str:
    return word.lstrip("-").partition("=")[0].replace("_", "-")


def _said(word: str, name: str) -> str:
    _, equals, value = word.partition("=")
    return f"--{name}{equals}{value}"


def _meant(name: str, known: set[str]) -> list[str]:
    """The flags that may be meant, the most likely ones."""
    name = name.lower()
    usual = [ours for ours, others in USUAL.items() if name in others and ours in known]
    ends = [flag for flag in known if name == flag.rpartition(".")[2]]
    # Of a setting and its short form, the short one.
    for found in (sorted(ends, key=len)[:1] if name in known else sorted(ends), usual):
        if found:
            return found
    lasts = {flag.rpartition(".")[2]: flag for flag in sorted(known, key=len, reverse=True)}
    others = {other: ours for ours, words in USUAL.items() for other in words if ours in known}
    words = {**others, **lasts, **{flag: flag for flag in known}}
    near = difflib.get_close_matches(name, words, n=3, cutoff=0.7)
    if near and difflib.SequenceMatcher(None, name, near[0]).ratio() > SURE:
        near = near[:1]
    return list(dict.fromkeys(words[word] for word in near))
