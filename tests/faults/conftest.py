import resource

import pytest

from commands.command_line import here, own_env, trained

__all__ = ["here", "own_env", "trained"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Lift a limit on the size of files before the result is written, perhaps to a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
