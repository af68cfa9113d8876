"""A process that runs commands in children of its own, each killed before a file operation.

Each line of its input is JSON: a folder, the words of a command to run there, and after how many
operations on files below it is killed (null: never). It answers with the exit code, and with how
many operations there were.
"""

import json
import os
import sys

from proximo import disk
from proximo.cli import main
from proximo.commands import resuming, running, training
from proximo.run import keeping

WARM = (resuming, running, training)  # imported once, for all children
EVENTS = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}
KILLED = 99


def kill_before(number, pipe):
    """Count operations, and end this process, as kill -9 does, before that of this number."""
    here, done = os.getcwd(), [0]

    def count():
        if done[0] == number:
            os._exit(KILLED)
        done[0] += 1
        os.pwrite(pipe, done[0].to_bytes(8, "big"), 0)

    def audit(event, arguments):
        if event in EVENTS and isinstance(arguments[0], str | os.PathLike):
            path = os.path.abspath(os.fspath(arguments[0]))
            if path.startswith(here + os.sep) and not path.endswith((".py", ".pyc")):
                count()

    def counted(call):
        return lambda *arguments: (count(), call(*arguments))[1]

    sys.addaudithook(audit)
    os.fsync = counted(os.fsync)
    disk.Lines.write = counted(disk.Lines.write)


def serve():
    with open("/dev/null", "w") as null:
        os.dup2(null.fileno(), 2)
    for line in sys.stdin:
        place, words, number = json.loads(line)
        counter = os.memfd_create("operations")
        if (child := os.fork()) == 0:
            os.chdir(place)
            keeping.SAVE_INTERVAL, keeping.SAVE_SHARE = 0, float("inf")
            kill_before(number, counter)
            os._exit(main(words))
        _, status = os.waitpid(child, 0)
        done = int.from_bytes(os.pread(counter, 8, 0), "big")
        os.close(counter)
        print(os.waitstatus_to_exitcode(status), done, flush=True)


if __name__ == "__main__":
    serve()
