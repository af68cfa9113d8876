"""What all tests share: one thread, and the same examples in every run."""

import sys
from pathlib import Path

import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `from examples.spo import SPO`


def pytest_collection_modifyitems(items):
    """The rooms of long tests first: at the end no process is left alone with one of them."""
    rooms = ("learning", "faults", "language", "commands", "envs")
    items.sort(key=lambda item: ([*rooms, item.path.parent.name]).index(item.path.parent.name))


def pytest_runtest_setup():
    # Each anew: a command in a test before may have set its own, and small tensors then wait
    # for each other, on a busy machine ten times as long as they compute.
    torch.set_num_threads(1)


# No deadline: a shared machine is slow now and then.
settings.register_profile("proximo", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("proximo")
