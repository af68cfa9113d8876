"""A process that trains where it is told to, in children of its own that can be killed quickly.

Each line of its input is the words of a command. It answers with the child's number at once, with
a line when its first checkpoint is complete or never will be, and when it has ended with how, and
with the last update after which a checkpoint was complete.
"""

import math
import os
import sys

from proximo.cli import main
from proximo.commands import resuming, running, training
from proximo.run import keeping

WARM = (resuming, running, training)  # imported once, for all children


def report_saves(pipe):
    """Write the update of every complete checkpoint, and save after each update."""
    last = keeping.CheckpointManager.last

    def reported(keeper, updates, write):
        last(keeper, updates, write)
        os.write(pipe, updates.to_bytes(8, "big"))

    keeping.CheckpointManager.last = reported
    keeping.SAVE_INTERVAL, keeping.SAVE_SHARE = 0, math.inf


def serve():
    for line in sys.stdin:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reader)
            report_saves(writer)
            os._exit(main(line.split()))
        os.close(writer)
        print(child, flush=True)
        saved = -1
        with os.fdopen(reader, "rb") as reports:
            while report := reports.read(8):
                if saved < 0:
                    print("saved", flush=True)
                saved = int.from_bytes(report, "big")
        if saved < 0:
            print("never", flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), saved, flush=True)


if __name__ == "__main__":
    serve()
