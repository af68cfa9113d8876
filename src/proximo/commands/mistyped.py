"""A flag that there is not: the one that is meant, and the line to type."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence

from proximo.run.toml import RENAMED_SETTINGS

USUAL = {
    "algorithm.learning-rate": ("policy-lr", "pi-lr", "step-size"),
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
    "env.num-envs": ("n-envs", "nenvs", "envs", "num-env", "n-env"),
    "env.processes": ("num-workers", "n-workers", "workers", "n-proc"),
    "env.kwargs": ("env-kwargs", "env-config"),
    "env.stagger": ("init-at-random-ep-len", "random-episode-length"),
    "env.max-episode-steps": ("time-limit", "max-steps", "max-ep-len"),
    "net.hidden": ("hidden-sizes", "net-arch", "hidden-size", "hidden-dim", "fcnet-hiddens"),
    "net.activation": ("activation-fn",),
    "net.normalize-obs": ("norm-obs", "obs-norm"),
    "algorithm.normalize-reward": ("norm-reward", "reward-norm"),
    "run.eval-every": ("eval-freq", "evaluation-interval"),
    "run.eval-episodes": ("n-eval-episodes", "num-eval-episodes"),
    "run.save-every": ("save-freq", "checkpoint-freq", "checkpoint-interval"),
    "run.log": ("report-to", "log-with", "tensorboard-log", "track", "logger"),
    "run-dir": ("log-dir", "logdir", "output-dir", "save-dir", "save-path", "outdir"),
    "run.total-steps": (
        *("total-timesteps", "timesteps", "n-timesteps", "num-timesteps", "max-timesteps"),
        *("total-env-steps", "num-env-steps"),
    ),
    "run.updates": ("num-updates", "n-updates", "iterations", "num-iterations", "max-updates"),
    "run.stop-at": ("reward-threshold", "target-reward", "target-return"),
    "env.id": ("env-id", "env-name", "environment"),
}
"""Our flag -> what other libraries call it."""
FORMER = {old.replace("_", "-"): new.replace("_", "-") for old, new in RENAMED_SETTINGS.items()}
FORMER["world"] = "env"  # names of schema 1
"""Flag of an earlier version -> flag."""
SURE = 0.9  # likeness from which a name is not asked about


def message(
    verb: str, arguments: Sequence[str], unknown: Sequence[str], known: Mapping[str, str]
) -> str:
    """Error for words that a verb does not take.

    known: every form of its flags -> the long one, without dashes.
    """
    names = [word for word in unknown if re.match(r"--?[A-Za-z]", word)]
    typed = {word: _plain(word) for word in names if _plain(word) not in known}
    if not typed:
        return f"proximo {verb} has no place for {shlex.join(unknown)}: see proximo {verb} --help"
    meant = {word: _meant(name, known) for word, name in typed.items()}
    sure = {word: near[0] for word, near in meant.items() if len(near) == 1}
    renamed = [f"--{n} is now --{sure[w]}" for w, n in typed.items() if w in sure and n in FORMER]
    there_is = " and ".join(f"--{name}" if len(name) > 1 else f"-{name}" for name in typed.values())
    text = f"proximo {verb} has no flag {there_is}{': ' * bool(renamed)}{', '.join(renamed)}."
    if len(sure) == len(typed):
        line = [_replaced(word, sure[word]) if word in sure else word for word in arguments]
        return f"{text} Type: {shlex.join(['proximo', *verb.split(), *line])}"
    for near in meant.values():
        if near:
            text += f" Did you mean {' or '.join(f'--{name}' for name in near)}?"
    return text if any(meant.values()) else f"{text} See proximo {verb} --help"


def _plain(word: str) -> str:
    return word.lstrip("-").partition("=")[0].replace("_", "-")


def _replaced(word: str, name: str) -> str:
    _, equals, value = word.partition("=")
    return f"--{name}{equals}{value}"


def _meant(name: str, known: Mapping[str, str]) -> list[str]:
    """The most likely flags, each in the first of its short forms where it has one."""
    name = name.lower()
    others = {other: ours for ours, words in USUAL.items() for other in words} | FORMER
    others |= {old.rpartition(".")[2]: new for old, new in FORMER.items()}
    others = {other: ours for other, ours in others.items() if ours in known}
    ends = {flag for flag in known.values() if name == flag.rpartition(".")[2]}
    near = sorted(ends)
    if not near and name in others:
        near = [others[name]]
    elif not near:
        lasts = {flag.rpartition(".")[2]: flag for flag in known.values()}
        words = {**others, **lasts, **known}
        close = difflib.get_close_matches(name, words, n=3, cutoff=0.75)
        if close and difflib.SequenceMatcher(None, name, close[0]).ratio() > SURE:
            close = close[:1]
        near = [words[word] for word in close]
    forms = ([form for form in known if known[form] == known[flag]] for flag in near)
    return list(dict.fromkeys(short[0] if short else long for long, *short in forms))
