"""Waits that end: a call into native code that has no timeout of its own gets one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NoAnswerError(RuntimeError):
    """A call has not returned in time; the thread that waits in it is left behind."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Calls something that may hang, as a store or an actor does whose process is stopped.

    The call is made in a thread of its own, because Python cannot interrupt native code. Where it hangs, so does that
    thread, until its process ends; whatever it holds must not be asked again.

    Args:
        seconds: how long it may take.
        call: to make.

    Returns:
        What the call returns; what it raises is raised here.

    Raises:
        NoAnswerError: the time is up.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def make() -> None:
        try:
            returned.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not returned:
        raise NoAnswerError(f"no answer for {seconds:g} s")
    return returned[0]
