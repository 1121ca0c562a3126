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

_MAX_RETRIES = 3  # of a piece of work whose worker is lost


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
        self.cpu_s = 0.0
        self.peak_bytes = 0

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """See `Pool.map`.

        Raises:
            UserError: a piece of work has raised it, or its workers were lost again and again.
        """
        import ray

        work = ray.remote(max_retries=_MAX_RETRIES, num_cpus=1)(_work)
        answers: deque[Any] = deque()
        running: list[Any] = []
        for one in arguments:
            answers.append(work.remote(function, one))
            running.append(answers[-1])
            if len(running) == self._num_workers:
                _, running = ray.wait(running, num_returns=1)
            while answers and answers[0] not in running:
                yield self._answer(answers.popleft())
        while answers:
            yield self._answer(answers.popleft())

    def _answer(self, running: Any) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result, cpu_s, peak_bytes = ray.get(running)
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
    """A piece of work, with its processor time in s and the peak memory of this worker in bytes."""
    import pyarrow as pa

    pa.set_cpu_count(1)
    clock = time.process_time()
    result = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return result, time.process_time() - clock, peak
