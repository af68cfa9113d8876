"""The same examples in every run, and no deadline: a shared machine is slow now and then."""

from hypothesis import settings

settings.register_profile("proximo", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("proximo")
