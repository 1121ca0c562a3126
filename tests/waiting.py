"""Waits for what can be seen: a test that sleeps instead fails on a machine that is slower than its author's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# A guard against waiting for ever, below pytest's own, so that the test can say why. On a busy machine it waits for a
# tenth of it.
LONGEST_S = 280.0


def wait_until(condition: Callable[[], T], told: Callable[[], str] = str, longest_s: float = LONGEST_S) -> T:
    """Waits until a condition holds, and returns what it gave.

    Args:
        condition: asked again and again.
        told: what to fail with when the time is up.
        longest_s: that it may take.
    """
    deadline = time.monotonic() + longest_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"this has not come to pass in {longest_s:g} s: {told()}"
        time.sleep(0.01)
    return found


def stop(process: int) -> None:
    """Stops a process, whose threads go on for a moment after the signal: until none does."""
    os.kill(process, signal.SIGSTOP)
    wait_until(lambda: all(_is_stopped(thread) for thread in Path(f"/proc/{process}/task").iterdir()))


def _is_stopped(thread: Path) -> bool:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] in "TX"
    except OSError:  # it has ended
        return True
