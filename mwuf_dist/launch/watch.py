"""Signs of life on Ray: who is stopped or hangs, which Ray does not say of a process that has not ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

SECONDS_BETWEEN_QUESTIONS = 0.5
# Seconds that an actor has to answer what costs it nothing, before it is asked again.
_ANSWER_S = 5.0


class LostRank(Exception):
    """A rank ended without an answer, or says that another one is gone."""


@contextlib.contextmanager
def told_to_stop(coordinator_name: str, rank: int) -> Iterator[None]:
    """Sends this process SIGTERM when the launcher got one, which Ray does not pass on; asking is a sign of life."""
    ended = threading.Event()

    def listen() -> None:
        while not ended.wait(SECONDS_BETWEEN_QUESTIONS):
            with contextlib.suppress(RayError, ValueError):  # it is being started again, or stopped
                coordinator = ray.get_actor(coordinator_name)
                if ray.get(coordinator.is_stopping.remote(rank), timeout=_ANSWER_S):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        ended.set()
        listener.join(_ANSWER_S)


class Watch:
    """Looks whether the ranks and the actor that leases the lanes give signs of life: Ray does not, where they stop.

    Args:
        coordinator: the actor, which the ranks ask all the time.
        num_ranks: of this generation.
        timeout_s: who has been silent for longer is lost.
    """

    def __init__(self, coordinator: Any, num_ranks: int, timeout_s: float) -> None:
        self._coordinator = coordinator
        self._timeout_s = timeout_s
        self._last_sign = dict.fromkeys(range(num_ranks), time.monotonic())
        self._asked: tuple[Any, float] = (coordinator.silence.remote(), time.monotonic())

    def look(self, running: list[int]) -> None:
        """Raises `LostRank` where the actor, or one of the ranks that are running, is silent."""
        question, since = self._asked
        now = time.monotonic()
        if ray.wait([question], timeout=0)[0]:
            with contextlib.suppress(RayError):
                silences: Any = ray.get(question)
                for rank, silence_s in silences.items():
                    self._last_sign[rank] = max(self._last_sign[rank], now - silence_s)
            self._asked = (self._coordinator.silence.remote(), now)
        elif now - since > self._timeout_s:
            raise LostRank(f"the actor that leases the lanes gives no sign for {now - since:.0f} s: it is stopped")
        for rank in running:
            silence_s = now - self._last_sign[rank]
            if silence_s > self._timeout_s and now - since < _ANSWER_S:  # the actor, which would know, does answer
                raise LostRank(f"rank {rank} gives no sign for {silence_s:.0f} s: it is stopped or hangs")
