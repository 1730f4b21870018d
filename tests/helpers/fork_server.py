"""Runs scripts as the interpreter does, each in a process forked from this one, which has the slow imports behind it.

One line of JSON on stdin for each script, one line with its exit status on stdout; it ends when stdin does. Nothing of
the project is imported here, so that a script in a copy of the project takes what lies there.
"""

import gc
import json
import os
import runpy
import signal
import sys

import matplotlib.pyplot  # noqa: F401
import torch

LONGEST = 300  # seconds that a script may take


def status_of(process: int) -> int:
    """How a script ended, which is killed when its time is up: its exit status, or minus the number of a signal."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(process, signal.SIGKILL))
    signal.alarm(LONGEST)
    status = os.waitpid(process, 0)[1]
    signal.alarm(0)
    return os.waitstatus_to_exitcode(status)


def script(argv: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    """What `python *argv` does in `folder`, with stdout and stderr in the folder `output`."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT), stream)
    path = os.path.abspath(argv[0])
    sys.argv, sys.path[0] = argv, os.path.dirname(path)
    runpy.run_path(path, run_name="__main__")


def main() -> None:
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            return script(**json.loads(line))  # and then the interpreter ends, or is ended, as it always is
        print(status_of(process), flush=True)


assert torch.get_num_threads() == 1, "a process with threads cannot be forked safely"
gc.freeze()  # what is imported is no garbage: to look for some would copy its memory at the end of every process
main()
