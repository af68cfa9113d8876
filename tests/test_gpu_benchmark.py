"""benchmarks/speed/gpu.py: its envs, its rows and its refusal, on a machine without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed" / "gpu.py"


def run(*words):
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.long
def test_it_refuses_without_a_gpu_and_a_short_run_tries_every_row_and_continues(tmp_path):
    refused = run()
    assert refused.returncode == 1
    assert refused.stderr.startswith("there is no GPU here")
    words = ("--device", "cpu", "--short", "--out", str(tmp_path))
    first = run(*words)
    assert first.returncode == 0, first.stderr
    rows = json.loads((tmp_path / "gpu-short.json").read_text())["rows"]
    assert len(rows) == 12
    assert all(
        run["us_per_step"] > run["us_per_step_env"] for runs in rows.values() for run in runs
    )
    assert "only shows that the script works" in (tmp_path / "gpu-short.md").read_text()
    again = run(*words)
    assert "1/1" not in again.stdout
    assert json.loads((tmp_path / "gpu-short.json").read_text())["rows"] == rows
