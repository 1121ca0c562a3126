"""Who does the pieces of work of `prepare`: this process, or the workers of a Ray cluster.

Ray hands out pieces of work, in which files are named; pyarrow reads and writes the files. What a piece of work writes
depends on its arguments alone and gets its name when it is complete, so that a piece whose worker is lost is done
again, by another worker, as if nothing had been.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from mwuf_dist.config import UserError
from mwuf_dist.data.watched_tasks import Running, WatchedTasks

_MAX_RETRIES = 3  # of a piece of work whose worker is lost
SILENT_S = 60.0  # A worker that has given no sign of life for so long is lost too.


class Pool(Protocol):
    """Who does the pieces of work."""

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Returns what `function(*one)` returns for each of the arguments, in their order."""
        ...


class InProcess:
    """This process does one after another."""

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """See `Pool.map`."""
        return (function(*one) for one in arguments)


class OnRay:
    """Workers of the Ray cluster that this process has joined, each with one CPU.

    Args:
        num_workers: how many pieces of work are done at once.

    Attributes:
        cpu_s: processor time of all pieces of work that were done.
        peak_bytes: the most memory that a worker has had resident.
    """

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._tasks: WatchedTasks | None = None
        self.cpu_s = 0.0
        self.peak_bytes = 0

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """See `Pool.map`.

        Raises:
            UserError: a piece of work has raised it, or its workers were lost again and again.
        """
        tasks = self._tasks = self._tasks or WatchedTasks(SILENT_S, _MAX_RETRIES)
        begun: deque[Running] = deque()
        running: list[Running] = []
        for one in arguments:
            begun.append(tasks.submit(_work, (function, one), name="prepare", num_cpus=1))
            running.append(begun[-1])
            if len(running) == self._num_workers:
                running.remove(tasks.wait(running))
            while begun and begun[0] not in running:
                yield self._result(begun.popleft())
        while begun:
            while begun[0] in running:
                running.remove(tasks.wait(running))
            yield self._result(begun.popleft())

    def _result(self, ended: Running) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result, cpu_s, peak_bytes = ray.get(ended.answer)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except RayError as error:
            raise UserError(
                f"prepare: one piece of work was lost {_MAX_RETRIES + 1} times ({type(error).__name__}): see the log "
                "of the cluster; where memory is short, take fewer --num-workers"
            ) from None
        self.cpu_s += cpu_s
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        return result


def _work(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float, int]:
    """Returns a piece of work, with its processor time in s and the peak memory of this worker in bytes."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    clock = time.process_time()
    result = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return result, time.process_time() - clock, peak
