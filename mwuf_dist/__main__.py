"""The program: `mwuf`, and `python -m mwuf_dist` or `torchrun -m mwuf_dist`, which are the same."""

import atexit
import os
import sys
from typing import NoReturn

from mwuf_dist.cli import main


def program() -> NoReturn:
    """Runs the command, and ends the process without taking the interpreter down.

    Threads of torch's outlive a process group, and threads of Arrow's go on reading a file that was found wrong. One
    that asks for the interpreter while it is taken down aborts the process ("terminate called without an active
    exception"): one in fifty of the ranks, one in fifteen of the files on a busy machine.
    """
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        atexit._run_exitfuncs()
        code = end.code or 0
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except BrokenPipeError:  # `mwuf ... | head`: nobody reads on
            code = 1
        os._exit(code)
    raise AssertionError("main does not return")


if __name__ == "__main__":
    program()
