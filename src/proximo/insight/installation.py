"""What an installation of Proximo has, and what is wrong with it."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from proximo import native
from proximo.engines import library
from proximo.envs.config import cores
from proximo.errors import explain, faults
from proximo.run.preflight import memory

State = Literal["ok", "warning", "broken", "absent"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that was looked at."""

    state: State
    """absent: an option that is not installed, which is no fault."""
    subject: str
    found: str
    remedy: str = ""


EXTRAS = {
    "pictures": "learning curves and videos",
    "export": "policies as ONNX files",
    "box2d": "LunarLander, BipedalWalker, CarRacing",
    "mujoco": "HalfCheetah, Hopper, Ant, Humanoid, ...",
    "atari": "Atari games",
    "minigrid": "MiniGrid and BabyAI",
    "pettingzoo": "several agents",
    "dm-control": "DeepMind Control Suite, in an environment of its own: it wants an older MuJoCo",
    "envpool": "fast envs in C++, by --env.backend envpool",
    "brax": "envs of Brax, as brax:ant",
    "craftax": "Craftax; it brings pygame, which replaces pygame-ce",
    "gymnax": "envs of gymnax, as gymnax:CartPole-v1; with a Gymnasium below 1.4",
    "jumanji": "envs of Jumanji, as jumanji:Snake-v1",
    "navix": "MiniGrid as tensors, as navix:Navix-Empty-5x5-v0",
    "playground": "MuJoCo Playground, as playground:CartpoleBalance",
    "vmas": "worlds of several robots, as vmas:balance",
    "xminigrid": "XLand-MiniGrid, as xminigrid:MiniGrid-EmptyRandom-5x5",
    "language": "language models",
    "tensorboard": "TensorBoard, by --run.log tensorboard",
    "wandb": "Weights & Biases, by --run.log wandb",
    "mlflow": "MLflow, by --run.log mlflow",
    "trackio": "trackio, by --run.log trackio",
    "tune": "searches for settings, by proximo tune",
}
"""What the extras are for; one that is not here is shown without a purpose."""
PURPOSELESS = ("dev",)
"""Extras that no user needs."""
GIB = 2**30
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 a mount that is looked at
GPU_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Devices of NVIDIA's and AMD's drivers."""


def examine() -> Iterator[tuple[str, Iterator[Line]]]:
    """Look at everything: headings, and what stands below each."""
    yield "Python", _looked(_python, _packages)
    yield "Machine", _looked(_native, _processor, _memory, _gpu, _disk, _pictures)
    yield "Extras", _looked(_extras)


def _looked(*looks: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    for look in looks:
        try:
            lines = list(look())
        except faults() as error:  # the rest is looked at all the same
            found = f"cannot be looked at: {explain(error)}"
            lines = [Line(state="broken", subject=look.__name__.strip("_"), found=found)]
        yield from lines


def _python() -> Iterator[Line]:
    here = platform.python_version()
    try:
        wanted = importlib.metadata.metadata("proximo")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        yield Line(
            state="warning",
            subject="Proximo",
            found="runs from its sources, so the ranges of its packages are not known",
            remedy="pip install -e . in the folder of its sources",
        )
        wanted = ""
    within = fits(here, wanted)
    yield Line(
        state="ok" if within else "broken",
        subject="Python",
        found=f"{here} on {platform.system()} {platform.machine()}"
        + (f" (wanted: {wanted})" if wanted else ""),
        remedy="" if within else f"install Python {wanted}",
    )


def _packages() -> Iterator[Line]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for needed in _needed("proximo"):
            if not needed.extra:
                yield _package(needed.name, needed.range)


def _package(name: str, wanted: str) -> Line:
    """A package that must be there, in its range, and importable."""
    install = f"pip install '{name}{wanted}'"
    try:
        there = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Line(state="broken", subject=name, found="is not installed", remedy=install)
    try:
        importlib.import_module(name)
    except faults() as error:
        found = f"{there} cannot be imported: {explain(error)}"
        return Line(
            state="broken", subject=name, found=found, remedy=f"{install} --force-reinstall"
        )
    if not fits(there, wanted):
        found = f"{there}, but wanted is {wanted}"
        return Line(state="broken", subject=name, found=found, remedy=install)
    return Line(state="ok", subject=name, found=f"{there} (wanted: {wanted})")


class Needed(NamedTuple):
    """A requirement such as `onnx>=1.19; extra == "export"`."""

    name: str
    range: str
    extra: str


def _needed(package: str) -> Iterator[Needed]:
    """What a package needs on this Python. Raises `PackageNotFoundError`."""
    for requirement in importlib.metadata.requires(package) or []:
        what, _, condition = requirement.partition(";")
        name = re.match(r"[\w.-]+(\[[\w,.-]+\])?", what.strip())
        assert name, requirement
        marks = dict(
            re.findall(r"(python_version\s*[<>=!]+|extra\s*==)\s*[\"']([\w.-]+)", condition)
        )
        pythons = [mark.removeprefix("python_version") + v for mark, v in marks.items()]
        if fits(platform.python_version(), ",".join(pythons)):
            extra = next((value for mark, value in marks.items() if mark.startswith("extra")), "")
            yield Needed(name[0], what.strip()[name.end() :].strip("() "), extra)


def fits(version: str, wanted: str) -> bool:
    """A version lies in a range such as >=3.11,<3.15. What it does not understand, it lets pass."""
    compare: dict[str, Callable[[list[int], list[int]], bool]] = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a[: len(b)] <= b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
        "==": lambda a, b: a[: len(b)] == b,
        "!=": lambda a, b: a[: len(b)] != b,
    }
    here = _numbers(version)
    parts = re.findall(r"(>=|<=|==|!=|>|<)\s*([\d.]+)", wanted)
    return all(compare[sign](here, _numbers(bound)) for sign, bound in parts)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.match(r"[\d.]*", version.strip())[0].split(".") if part]  # type: ignore[index]


def _native() -> Iterator[Line]:
    loaded, missing = library.load()
    if loaded is None:
        yield Line(
            state="warning",
            subject="native engine",
            found=f"{missing}; training runs on PyTorch, several times slower for small networks",
            remedy="install a C++ compiler (g++ or clang++), then pip install -e . again",
        )
        return
    kernels = library.kernels()
    slow = kernels == "plain"
    yield Line(
        state="warning" if slow or not kernels else "ok",
        subject="native engine",
        found=f"version {native.ENGINE_VERSION}, "
        f"kernels {kernels or 'unknown: built from older sources'}"
        + (" (this processor has no AVX2: several times slower)" if slow else ""),
        remedy="" if kernels else "pip install -e . again",
    )
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    yield Line(
        state="ok" if compiler else "absent",
        subject="C++ compiler",
        found=compiler or "there is none: --run.engine compile needs one",
        remedy="" if compiler else "install g++ or clang++, if you want that engine",
    )


def processor_limit() -> float | None:
    """Cores that a container may use at a time, which may be a fraction; None: no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = CPU_MAX.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int(CPU_QUOTA.read_text())
        period_us = int(CPU_QUOTA.with_name("cpu.cfs_period_us").read_text())
        return None if quota_us <= 0 else quota_us / period_us
    return None


def _processor() -> Iterator[Line]:
    import torch

    usable, limit = cores(), processor_limit()
    found = f"{usable} usable of {os.cpu_count()}, {torch.get_num_threads()} threads of PyTorch"
    if given := os.environ.get("OMP_NUM_THREADS"):
        found += f" (OMP_NUM_THREADS is {given})"
    scarce = limit is not None and limit < usable
    if limit is not None:
        found += f"; the container allows {limit:g}"
    yield Line(
        state="warning" if scarce else "ok",
        subject="cores",
        found=found,
        remedy="--run.threads 1, and --cpuset-cpus for as many as the limit: threads beyond it "
        "wait for each other"
        if scarce
        else "",
    )


def _memory() -> Iterator[Line]:
    there = memory()
    yield Line(
        state="warning" if there < GIB else "ok",
        subject="memory",
        found=f"{there / GIB:.1f} GiB",
        remedy="a run of control takes about 250 MB, a language model more" if there < GIB else "",
    )
    if not SHARED_MEMORY.is_dir():
        return
    size = shutil.disk_usage(SHARED_MEMORY).total
    small = size < 2**28
    yield Line(
        state="warning" if small else "ok",
        subject="shared memory",
        found=f"{SHARED_MEMORY} has {size / 2**20:,.0f} MiB"
        + ("; Proximo's workers do not use it, but Gymnasium's AsyncVectorEnv does" * small),
        remedy="docker run --shm-size=1g, if you use that" if small else "",
    )


def _gpu() -> Iterator[Line]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            yield Line(
                state="ok",
                subject=f"GPU {number}",
                found=f"{about.name}, {about.total_memory / GIB:.0f} GiB, for networks of over a "
                "million parameters (--run.device auto) and for envs of tensors",
            )
    elif torch.backends.mps.is_available():
        yield Line(state="ok", subject="GPU", found="Apple's, by --run.device mps")
    elif driver := next((path for path in GPU_DRIVERS if path.exists()), None):
        yield Line(
            state="warning",
            subject="GPU",
            found=f"a driver is here ({driver}), but PyTorch {torch.__version__} cannot use it",
            remedy="install PyTorch for your GPU: https://pytorch.org/get-started",
        )
    else:
        yield Line(
            state="absent", subject="GPU", found="none; small networks are faster on the CPU anyway"
        )


def _disk() -> Iterator[Line]:
    here = Path.cwd()
    free, writable = shutil.disk_usage(here).free, os.access(here, os.W_OK)
    state: State = "broken" if free < 2**24 else "warning" if free < GIB or not writable else "ok"
    found = f"{free / GIB:,.1f} GiB free in the current folder, where runs go"
    yield Line(
        state=state,
        subject="disk",
        found=found + ("" if writable else "; it cannot be written to"),
        remedy="" if state == "ok" else "make room, or give another place by --run-dir",
    )
    try:
        tempfile.TemporaryFile().close()
    except OSError as error:
        yield Line(
            state="broken",
            subject="temporary files",
            found=f"cannot be made: {error}",
            remedy="set TMPDIR to a folder that can be written to",
        )


def _pictures() -> Iterator[Line]:
    names = ("DISPLAY", "WAYLAND_DISPLAY")
    shown = next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), "")
    other = sys.platform != "linux"
    yield Line(
        state="ok" if shown or other else "absent",
        subject="display",
        found=shown or ("the system's" if other else "none: play needs --video FILE"),
    )
    ffmpeg = shutil.which("ffmpeg")
    if importlib.util.find_spec("imageio_ffmpeg"):
        with contextlib.suppress(RuntimeError, OSError):
            ffmpeg = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    yield Line(
        state="ok" if ffmpeg else "absent",
        subject="ffmpeg",
        found=Path(ffmpeg).name if ffmpeg else "none: videos can only be .gif",
        remedy="" if ffmpeg else _install("pictures"),
    )
    if other or importlib.util.find_spec("mujoco") is None:
        return
    drawn = [name for name in ("EGL", "OSMesa") if ctypes.util.find_library(name)]
    fine = bool(drawn or shown)
    yield Line(
        state="ok" if fine else "warning",
        subject="MuJoCo's pictures",
        found=" and ".join(drawn) or ("by the display" if shown else "neither EGL nor OSMesa"),
        remedy="" if fine else "apt install libegl1 (or libosmesa6, and MUJOCO_GL=osmesa)",
    )


def _extras() -> Iterator[Line]:
    try:
        needed = list(_needed("proximo"))
    except importlib.metadata.PackageNotFoundError:
        return
    named = dict.fromkeys(n.extra for n in needed if n.extra and n.extra not in PURPOSELESS)
    for extra in named:
        purpose = EXTRAS.get(extra, extra)
        install = _install(extra)
        wanted = [(part.name, part.range) for part in needed if part.extra == extra]
        there = {name: version for name, _ in wanted if (version := _version(name))}
        missing = [name for name, _ in wanted if name not in there]
        wrong = [
            f"{n} {there[n]} is not {b}" for n, b in wanted if n in there and not fits(there[n], b)
        ]
        if missing:
            found = purpose + (f" (lacks {', '.join(missing)})" if there else " (not installed)")
            yield Line(state="absent", subject=f"[{extra}]", found=found, remedy=install)
        elif wrong:
            found = f"{purpose} ({'; '.join(wrong)})"
            yield Line(state="warning", subject=f"[{extra}]", found=found, remedy=install)
        else:
            versions = ", ".join(f"{name} {version}" for name, version in there.items())
            yield Line(state="ok", subject=f"[{extra}]", found=f"{purpose} ({versions})")


def _install(extra: str) -> str:
    """The line that installs an extra: from the sources, where Proximo is installed from them."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):
        about = importlib.metadata.distribution("proximo").read_text("direct_url.json")
        url = urllib.parse.urlsplit(json.loads(about or "{}").get("url", ""))
        if url.scheme == "file":
            return f"pip install -e {shlex.quote(f'{urllib.parse.unquote(url.path)}[{extra}]')}"
    return f"pip install 'proximo[{extra}]'"


def _version(name: str) -> str:
    """The installed version of a package; of NAME[extra], if that is there too."""
    plain, _, inner = name.partition("[")
    try:
        found = importlib.metadata.version(plain)
        if inner:
            for part in _needed(plain):
                if part.extra == inner.rstrip("]"):
                    importlib.metadata.version(part.name.partition("[")[0])
    except importlib.metadata.PackageNotFoundError:
        return ""
    return found
