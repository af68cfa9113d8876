"""Builds the native engine and the compiled environments, if there is a C++ compiler.

Without one the package is the same, only slower: PyTorch does the updates, Gymnasium the steps.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent / "src" / "proximo" / "native"
FLAGS = ("-O3", "-fPIC", "-shared", "-w")
ENGINE = ("-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-pthread")
STEPPER = ("-std=c++17", "-pthread")
# Products are rounded before they are added, as in Python.
ENV = ("-x", "c", "-ffp-contract=off", f"-I{FOLDER}")


class Native(BuildHookInterface):
    """Compiles engine.cpp and stepper.cpp, with the headers beside them, and each env's file."""

    def initialize(self, version, build_data):
        sources = {FOLDER / "engine.cpp": ENGINE, FOLDER / "stepper.cpp": STEPPER}
        sources |= dict.fromkeys(sorted((FOLDER / "envs").glob("*.c")), ENV)
        if self.target_name != "wheel":
            return
        compiler = self._compiler()
        if compiler is None:
            self.app.display_warning("no C++ compiler: Proximo is built without its native engine")
        built = [self._build(compiler, source, flags) for source, flags in sources.items()]
        libraries = [library for library in built if library]
        build_data["artifacts"] += [str(path.relative_to(self.root)) for path in libraries]
        if libraries and version != "editable":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"

    def _build(self, compiler, source, flags):
        """The library of a source, or None where it cannot be compiled: then there is none."""
        library = source.with_suffix(".so")
        library.unlink(missing_ok=True)
        if compiler is None:
            return None
        words = [*compiler, *FLAGS, *flags, str(source), "-o", str(library), "-lm"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"{source.name} does not compile here:\n{done.stderr}")
            return None
        return library

    @staticmethod
    def _compiler():
        if os.environ.get("PROXIMO_NATIVE") == "0" or sys.platform == "win32":
            return None
        named = shlex.split(os.environ.get("CXX", ""))
        if named:
            return named
        return next(([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
