"""Runs commands of pamusic with one standard stream closed, each in a process of its own; a program for the tests.

Knows processes and descriptors. PyTorch and the like are loaded once: each command runs in a fork of this program. The
closed stream becomes None, as where Python starts without it.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

# What takes long to load, for all commands.
import matplotlib  # noqa: F401

import pamusic.cli.app
import pamusic.compose.benchmark
import pamusic.compose.token_stream
import pamusic.evaluation.comparison
import pamusic.music.synthesis
import pamusic.training.trainer  # noqa: F401
from pamusic.cli import main

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
LONGEST = 60  # seconds of a command


def run(words, closed, folder):
    """Run a command and return its exit status, or minus a signal, and what it wrote on standard error."""
    errors = Path(folder) / "stderr"
    child = os.fork()
    if child == 0:
        status = 70
        try:
            signal.alarm(LONGEST)
            with errors.open("w") as file:
                os.dup2(file.fileno(), 2)
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 0)
            os.dup2(nowhere, 1)
            os.close(nowhere)
            os.close(STREAMS[closed])
            setattr(sys, closed, None)
            sys.argv = ["pamusic", *words]
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            if closed != "stderr":
                traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), errors.read_text()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
