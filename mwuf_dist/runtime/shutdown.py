"""How a run ends before its time: it is asked to stop, or a rank is lost.

Nothing heavy is imported, because the command line needs it at once.

SIGTERM asks. Between steps nothing is half done, so a training loop and a save hold the request back until then
(`held_back`); anywhere else there is nothing to save that the last checkpoint does not have, and the process leaves at
once. A second SIGTERM or SIGINT kills.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# What a shell reports for a process that SIGTERM ended.
STOPPED_EXIT_CODE = 128 + signal.SIGTERM


class StoppedError(Exception):
    """The run was asked to stop, and has left everything so that the same command goes on."""


class RankLostError(RuntimeError):
    """Another rank has died or hangs; the message says which."""


class _Request:
    """Whether this process was asked to stop: a signal is the process's, so there is one."""

    def __init__(self) -> None:
        self.made = False
        self.holders = 0


_request = _Request()


def asked_to_stop() -> bool:
    """Says whether a request is held back."""
    return _request.made


def ask_to_stop() -> None:
    """Asks the run to stop, as SIGTERM does."""
    _request.made = True
    if not _request.holders:
        raise StoppedError("stopped by SIGTERM")


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Lets a request only wait for `asked_to_stop` to be read; whoever holds it back leaves soon."""
    _request.holders += 1
    try:
        yield
    finally:
        _request.holders -= 1


@contextlib.contextmanager
def sigterm_asks() -> Iterator[None]:
    """Makes SIGTERM ask, and the second one, or a SIGINT after it, kill."""
    if threading.current_thread() is not threading.main_thread():  # only there may a handler be set
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        ask_to_stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, handle)
    _request.made = False
    try:
        yield
    finally:
        _request.made = False
        for number, handler in before.items():
            signal.signal(number, handler)
