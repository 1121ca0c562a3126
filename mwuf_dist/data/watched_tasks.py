"""Tasks on Ray whose processes give signs of life.

Ray begins a task again whose process has died. Of a process that is stopped or hangs it says nothing: so such a one is
killed, and from there on is one that has died.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SIGN_EVERY_S = 1.0
_SECONDS_BETWEEN_QUESTIONS = 0.5


class Signs:
    """Knows of every task that runs when its process has last given a sign, and where that is."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, str, int]] = {}

    def sign(self, task: int, node: str, process: int) -> None:
        """Hears that a process that does a task lives."""
        self._last[task] = time.monotonic(), node, process

    def forget(self, task: int) -> None:
        """Hears that a task has ended, or its process was killed."""
        self._last.pop(task, None)

    def silence(self) -> dict[int, tuple[float, str, int]]:
        """Returns (seconds since the last sign, node, process) by task."""
        now = time.monotonic()
        return {task: (now - last, node, process) for task, (last, node, process) in self._last.items()}

    def place(self) -> tuple[str, int]:
        """Returns (node, process) of this actor."""
        return _place()


@dataclass(eq=False)
class Running:
    """A task that was begun.

    Each time that it is begun again it may give no sign for twice as long: on a busy machine a process that imports
    what its work needs may be slow and yet live, and would be killed without end.
    """

    number: int
    begin: Callable[[], Any]
    answer: Any
    since: float
    silent_s: float

    def begin_again(self) -> None:
        """Begins it once more."""
        self.answer = self.begin()
        self.is_given_time()

    def is_given_time(self) -> None:
        """Gives it twice as long, from now on."""
        self.since = time.monotonic()
        self.silent_s *= 2


class WatchedTasks:
    """Begins tasks on the Ray cluster that this process has joined, and kills processes that give no sign of life.

    Args:
        silent_s: who has given no sign for so many seconds is killed, the first time.
        max_retries: times that a task is begun again whose process was lost.
    """

    def __init__(self, silent_s: float, max_retries: int) -> None:
        import ray

        self._silent_s = silent_s
        self._task = ray.remote(max_retries=max_retries)(_signing)
        self._signs: Any = ray.remote(num_cpus=0, max_restarts=-1)(Signs).remote()
        self._running: dict[int, Running] = {}
        self._count = 0
        self._place = self._signs.place.remote()
        self._asked: tuple[Any, float] = (self._signs.silence.remote(), time.monotonic())

    def submit(self, function: Callable[..., Any], arguments: Sequence[Any], **options: Any) -> Running:
        """Begins `function(*arguments)` with these options of Ray's."""
        from ray import cloudpickle

        self._count += 1
        # Unpacked in the task: what that imports takes long, and signs are given meanwhile.
        work = cloudpickle.dumps((function, list(arguments)))
        number, task = self._count, self._task.options(**options)

        def begin() -> Any:
            return task.remote(self._signs, number, work)

        running = self._running[number] = Running(number, begin, begin(), time.monotonic(), self._silent_s)
        return running

    def wait(self, running: Sequence[Running]) -> Running:
        """Waits until one of some tasks has ended, and returns it; `ray.get` of its `answer` waits no more then."""
        import ray

        while True:
            done, _ = ray.wait([one.answer for one in running], num_returns=1, timeout=_SECONDS_BETWEEN_QUESTIONS)
            for one in running:
                if one.answer in done:
                    self._running.pop(one.number, None)
                    self._signs.forget.remote(one.number)
                    return one
            self._look()

    def close(self) -> None:
        """Ends the actor that knows the signs."""
        import ray

        ray.kill(self._signs)

    def _look(self) -> None:
        """Kills who is silent."""
        import ray
        from ray.exceptions import RayError

        question, since = self._asked
        now = time.monotonic()
        if ray.wait([question], timeout=0)[0]:
            silences: dict[int, tuple[float, str, int]] = {}
            with contextlib.suppress(RayError):
                silences = ray.get(question)
            self._judge(silences, since)
        elif now - since < self._silent_s:
            return
        else:  # the actor itself, which Ray starts again
            with contextlib.suppress(RayError):
                _kill(*ray.get(self._place, timeout=1))
            self._place = self._signs.place.remote()
        self._asked = (self._signs.silence.remote(), now)

    def _judge(self, silences: dict[int, tuple[float, str, int]], asked: float) -> None:
        """Kills those that were silent when the question was asked; begins again what has not begun."""
        import ray

        running = [one for one in self._running.values() if not ray.wait([one.answer], timeout=0)[0]]
        for one in running:
            silence_s, node, process = silences.get(one.number, (0.0, "", 0))
            if silence_s > one.silent_s:
                print(f"process {process} gives no sign for {silence_s:.0f} s: it is killed, and its work begun again")
                _kill(node, process)
                self._signs.forget.remote(one.number)
                one.is_given_time()
            elif one.number not in silences and asked - one.since > one.silent_s:
                # It waits for a free CPU; or it was given to a process that was stopped before, and will never begin.
                ray.cancel(one.answer, force=True)
                one.begin_again()


def _place() -> tuple[str, int]:
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


def _signing(signs: Any, task: int, work: bytes) -> Any:
    """Does a task in a worker, and gives signs beside it: before it imports what the work needs."""
    place, ended = _place(), threading.Event()

    def give_signs() -> None:
        while True:
            signs.sign.remote(task, *place)
            if ended.wait(_SIGN_EVERY_S):
                return

    giving = threading.Thread(target=give_signs, daemon=True)
    giving.start()
    try:
        function, arguments = pickle.loads(work)
        return function(*arguments)
    finally:
        ended.set()
        giving.join()
        signs.forget.remote(task)


def _kill(node: str, process: int) -> None:
    """Kills a process of Ray's on a node, from there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_kill_here).options(scheduling_strategy=there).remote(process)


def _kill_here(process: int) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::"):
            os.kill(process, signal.SIGKILL)
