"""Nothing heavy is imported before it is needed."""

import subprocess
import sys

HEAVY = (
    *("torch._dynamo", "sympy", "matplotlib", "imageio", "pandas", "scipy"),
    *("envpool", "ale_py", "minigrid", "pettingzoo", "optuna"),
)

CODE = f"""
import sys, proximo
assert "torch" not in sys.modules
proximo.train("CartPole-v1", proximo.PPO(minibatch_size=64), total_steps=1024, run_dir="run")
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_a_run_loads_what_it_uses_and_no_more(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
