"""Processor seconds of RLtools' own PPO on Pendulum, built from a checkout, and its final score.

As its README builds it no BLAS is used. With --blas the header that links it is put back: the
program then needs OpenBLAS. The score is of the 1,000 greedy episodes that the program plays last,
whose time counts with the rest (about 5%).
"""

import argparse
import os
import re
import resource
import subprocess
from pathlib import Path

from settings import pin, report

PROGRAM = "src/rl/environments/pendulum/ppo/cpu/training.cpp"
BEFORE = "#include <rl_tools/nn/optimizers/adam/instance/operations_generic.h>"
MUX = "#include <rl_tools/nn/operations_cpu_mux.h>"


def build(checkout: Path, blas: bool) -> Path:
    source = (checkout / PROGRAM).read_text()
    flags = ["-std=c++17", "-Ofast", "-march=native", "-DBENCHMARK", f"-I{checkout}/include"]
    libraries = []
    if blas:
        assert BEFORE in source
        source = source.replace(BEFORE, f"{BEFORE}\n{MUX}")
        flags.append("-DRL_TOOLS_BACKEND_ENABLE_OPENBLAS")
        libraries.append("-lopenblas")
    program, binary = Path("training.cpp"), Path("training")
    program.write_text(source)
    flags.append(f"-I{(checkout / PROGRAM).parent}")  # its config.h
    subprocess.run(["g++", *flags, program, "-o", binary, *libraries], check=True)
    return binary.absolute()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--blas", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    binary = build(chosen.checkout, chosen.blas)
    pin(chosen.threads)

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    env = os.environ | {"OPENBLAS_NUM_THREADS": str(chosen.threads)}
    done = subprocess.run([binary], capture_output=True, text=True, check=True, env=env)
    score = float(re.findall(r"Mean return: (\S+)", done.stdout)[-1])
    report(cpu_seconds=spent() - before, final_return=score)


if __name__ == "__main__":
    main()
