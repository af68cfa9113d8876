"""The command line: a verb -> its command. Help imports nothing heavy."""

from __future__ import annotations

import importlib
import os
import sys

from proximo.commands.streams import standard_streams
from proximo.errors import TrainingError, UsageError, check_utf8, nearest

VERBS = {
    "train": ("training", "Train a policy in an env."),
    "resume": ("resuming", "Continue an interrupted or finished run, exactly where it stopped."),
    "eval": ("evaluation", "Play seeded episodes with a trained policy and print its scores."),
    "play": ("playing", "Show a trained policy on screen, or write a video of it."),
    "plot": ("plotting", "Draw learning curves of one or more runs."),
    "report": ("reporting", "Write all about one or several runs as one HTML page."),
    "export": ("exporting", "Write a trained policy as an ONNX file, which acts without PyTorch."),
    "doctor": ("doctor", "Examine the installation, an env or a run, and say what to do."),
    "check": ("doctor:check", "Play an env of your own at random, and report what is wrong."),
    "lm": ("lm", "Language models: fine-tuning, reward models, PPO with a KL penalty."),
    "tune": ("tuning", "Search for the settings with which an algorithm learns an env best."),
    "compare": ("comparing", "Train several algorithms with several seeds, and compare scores."),
}
"""Verb -> (module of `proximo.commands`, and its function if not `main`; description)."""


def usage() -> str:
    verbs = "\n".join(f"  {verb:9}{text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: proximo VERB ...\n\n"
        "Train agents with Proximal Policy Optimization.\n\n"
        f"{verbs}\n\n"
        "  proximo VERB --help    everything a verb takes\n"
        "  proximo --version\n\n"
        "For example:\n"
        "  proximo train ppo CartPole-v1 --seed 1 --run-dir runs/cartpole\n"
        "  proximo eval runs/cartpole\n"
        "  proximo play runs/cartpole --video cartpole.gif"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a verb. Exit codes: 0 done, 1 failed while training, 2 wrong input, 128 + n signal n."""
    with standard_streams():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    if verb == "--version":
        from proximo import __version__

        print(__version__)
        return 0
    try:
        _check_place(arguments)
        if verb not in VERBS:
            raise UsageError(f"there is no verb {verb!r}. {nearest(verb, VERBS)}")
        if "OMP_WAIT_POLICY" not in os.environ:
            # PyTorch's threads wait for each other in a loop: let them sleep sooner.
            os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        module, _, function = VERBS[verb][0].partition(":")
        command = importlib.import_module(f"proximo.commands.{module}")
        return int(getattr(command, function or "main")(rest) or 0)
    except UsageError as error:
        print(f"proximo: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"proximo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _check_place(arguments: list[str]) -> None:
    """Refuse words that are not UTF-8, and a current folder that was removed."""
    for word in arguments:
        check_utf8(word)
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("the current folder has been removed: change to another one") from error


if __name__ == "__main__":
    sys.exit(main())
