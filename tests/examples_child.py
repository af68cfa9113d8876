"""A process that runs commands in children of its own, each killed while it saves.

Each line of its input is JSON: a folder, the words of a command to run there, and after how many
complete saves its child is killed, in the next one. It answers with the exit code.
"""

import json
import math
import os
import signal
import sys
from pathlib import Path

from proximo.cli import main
from proximo.commands import resuming, running, training
from proximo.run import keeping

WARM = (resuming, running, training)  # imported once, for all children


def kill_after(saves):
    """Save after each update, and kill this process before the last step of a save."""
    keeping.SAVE_INTERVAL, keeping.SAVE_SHARE = 0, math.inf
    replace, left = os.replace, [saves]

    def counted(source, target, **folders):
        if Path(target).name == "last.safetensors":
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
        return replace(source, target, **folders)

    os.replace = counted


def serve():
    for line in sys.stdin:
        place, words, saves = json.loads(line)
        if (child := os.fork()) == 0:
            os.chdir(place)
            kill_after(saves)
            os._exit(main(words))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
