"""Counts what would make a processor wait for a GPU, on a machine that has none."""

import contextlib
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = ("cpu", "numpy", "item", "tolist", "__array__", "__bool__", "__float__", "__int__")
METHODS += ("__index__", "__contains__", "pin_memory")
# Results whose size, or whose value in Python, hangs on the numbers in a tensor.
OPERATIONS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "bincount"),
    *("unique_consecutive", "_unique2", "unique_dim", "repeat_interleave", "histc", "allclose"),
}
PACKAGE = str(Path(torch.__file__).parent)


class HostReads(TorchDispatchMode):
    """Host reads of tensors while it is on: `by_place` counts them, file by file.

    On the CPU nothing tells a tensor that would be on the device from one that would not. So every
    read counts, but those of tensors of the sizes in `ignored`.
    """

    def __init__(self):
        super().__init__()
        self.found = []
        self._stack = contextlib.ExitStack()
        self._inside = False

    @property
    def by_place(self):
        return Counter(self.found)

    def _count(self, what):
        if self._inside:  # `bool(x)` is `_local_scalar_dense` too
            return
        frames = [f for f in traceback.extract_stack() if not f.filename.startswith(PACKAGE)]
        frames = [f for f in frames if f.filename != __file__]
        last = next((f for f in reversed(frames) if "proximo" in f.filename), frames[-1])
        self.found.append(f"{what} at {Path(last.filename).name} {last.name}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masks = [x for x in indices if x is not None and x.dtype in (torch.bool, torch.uint8)]
        if name in OPERATIONS or masks:
            self._count(name)
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        for name in METHODS:
            original = getattr(torch.Tensor, name)

            def read(*args, original=original, name=name, **kwargs):
                self._count(f".{name}")
                before, self._inside = self._inside, True
                try:
                    return original(*args, **kwargs)
                finally:
                    self._inside = before

            self._stack.enter_context(mock.patch.object(torch.Tensor, name, read))
        return super().__enter__()

    def __exit__(self, *error):
        self._stack.close()
        return super().__exit__(*error)
