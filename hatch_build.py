"""Builds the native engine when the package is built, if there is a C++ compiler.

Without one the package is the same, only slower: PyTorch does the updates.
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
FLAGS = "-O3 -std=c++17 -fPIC -shared -fno-math-errno -fno-trapping-math -pthread -w"


class NativeEngine(BuildHookInterface):
    """Compiles engine.cpp, with the headers beside it, to engine.so."""

    def initialize(self, version, build_data):
        library = FOLDER / "engine.so"
        if self.target_name != "wheel":
            return
        compiler = self._compiler()
        if compiler is None:
            library.unlink(missing_ok=True)
            self.app.display_warning("no C++ compiler: Proximo is built without its native engine")
            return
        words = [*compiler, *FLAGS.split(), str(FOLDER / "engine.cpp"), "-o", str(library)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            library.unlink(missing_ok=True)
            self.app.display_warning(f"the native engine does not compile here:\n{done.stderr}")
            return
        build_data["artifacts"].append("src/proximo/native/engine.so")
        if version != "editable":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"

    @staticmethod
    def _compiler():
        if os.environ.get("PROXIMO_NATIVE") == "0" or sys.platform == "win32":
            return None
        named = shlex.split(os.environ.get("CXX", ""))
        if named:
            return named
        return next(([name] for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
