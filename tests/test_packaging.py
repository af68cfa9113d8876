"""Wheels: with a compiler, without one, with one that fails; and libraries that are not ours."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("src", "pyproject.toml", "hatch_build.py", "README.md", "LICENSE")
COMPILER = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


def build(folder, **environment):
    """A wheel from a copy of the sources, with this environment; returns its path."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    clean = {k: v for k, v in os.environ.items() if k not in ("CXX", "PROXIMO_NATIVE")}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words],
        cwd=source,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def train_with(wheel, folder, change=lambda package: None):
    """What a short run prints, with Proximo from this wheel and nowhere else."""
    site = folder / "site"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    change(site / "proximo")
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import proximo;"
        f"assert proximo.__file__.startswith({str(site)!r});"
        "from proximo.cli import main; sys.exit(main())"
    )
    words = ["train", "ppo", "CartPole-v1", "--total-steps", "500", "--run-dir", "run"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A wheel without the native engine."""
    return build(tmp_path_factory.mktemp("bare"), PROXIMO_NATIVE="0")


@needs_compiler
def test_with_a_compiler_one_wheel_serves_all_pythons_of_a_platform(tmp_path):
    wheel = build(tmp_path)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.stem.endswith(f"py3-none-{platform}")
    names = zipfile.ZipFile(wheel).namelist()
    assert "proximo/native/engine.so" in names
    page = ("page.html", "page.css", "page.js", "uPlot.iife.min.js", "uPlot.min.css")
    assert {f"proximo/insight/page/{n}" for n in (*page, "uPlot.LICENSE")} <= set(names)
    assert "engine: native (" in train_with(wheel, tmp_path)


def test_the_sources_hold_all_that_a_build_and_a_run_need(tmp_path):
    words = ["-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    kinds = ("*.py", "*.cpp", "*.h", "*.toml", "*.html", "*.css", "*.js", "*.LICENSE")
    needed = [p for kind in kinds for p in (ROOT / "src").rglob(kind)]
    assert {str(path.relative_to(ROOT)) for path in needed} <= names


@pytest.mark.parametrize("way", ["turned off", "no compiler", "one that fails"])
def test_without_one_everything_works_and_says_why_it_is_slower(tmp_path, bare, way):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    without = {"no compiler": {"PATH": str(tmp_path)}, "one that fails": {"CXX": str(broken)}}
    wheel = bare if way == "turned off" else build(tmp_path, **without[way])
    assert wheel.stem.endswith("py3-none-any")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    printed = train_with(wheel, tmp_path)
    assert "settings: preset cartpole" in printed
    assert "engine: torch (not native: it was not built when Proximo was installed" in printed


@needs_compiler
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot be loaded", marks=pytest.mark.long),
        ("int other() { return 0; }", "cannot be loaded"),
        ('extern "C" int proximo_version() { return 99; }', "is of version 99"),
    ],
    ids=["text", "another library", "another version"],
)
def test_a_library_that_is_not_ours_is_not_used(tmp_path, bare, content, message):
    def replace(package):
        library = package / "native" / "engine.so"
        if content is None:
            library.write_text("not a library")
            return
        source = tmp_path / "other.cpp"
        source.write_text(content)
        words = [COMPILER, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(words, check=True)

    printed = train_with(bare, tmp_path, replace)
    assert "engine: torch (not native:" in printed
    assert message in printed
