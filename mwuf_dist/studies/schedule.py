"""Tasks that wait for each other, one after the other here or several side by side elsewhere.

A task that fails takes only those with it that need it; the others go on. Who does the work is a `Runner`: this
process, or worker processes that Ray places (`mwuf_dist.launch.side_by_side`).
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from mwuf_dist.config import UserError
from mwuf_dist.runtime.shutdown import StoppedError


@dataclass(frozen=True)
class Task:
    """A piece of work.

    Attributes:
        name: of its own among the tasks.
        action: called with the results of the tasks that it needs, in their order. Another process must be able to
            import it: a function of a module, or a partial of one.
        needs: names of the tasks that come first.
        is_counted: whether progress counts it.
    """

    name: str
    action: Callable[..., Any]
    needs: tuple[str, ...] = ()
    is_counted: bool = True


@dataclass(frozen=True)
class Failure:
    """Why a task has no result; `trace` where it was no fault of the user's input, `is_late` where none was made."""

    reason: str
    trace: str = ""
    is_late: bool = False


class Runner(Protocol):
    """Where tasks are done.

    Attributes:
        num_slots: how many at once.
    """

    num_slots: int

    def submit(self, task: Task, inputs: Sequence[Any]) -> None:
        """Begins a task; at most `num_slots` have begun and not ended."""
        ...

    def wait(self) -> tuple[str, Any]:
        """Returns the name of a task that has ended, and its result or `Failure`."""
        ...


class Here:
    """This process, one task at a time.

    Args:
        alone: no other rank takes part. Where some do, one that failed by itself must end, or they wait for it.
    """

    num_slots = 1

    def __init__(self, alone: bool = True) -> None:
        self._alone = alone
        self._next: tuple[Task, Sequence[Any]] | None = None

    def submit(self, task: Task, inputs: Sequence[Any]) -> None:
        """See `Runner.submit`."""
        self._next = task, inputs

    def wait(self) -> tuple[str, Any]:
        """See `Runner.wait`: does the task."""
        assert self._next is not None
        task, inputs = self._next
        return task.name, attempt(task.action, inputs, self._alone)


class Until:
    """A runner that begins nothing any more once the time is up; what has begun ends.

    Args:
        runner: who does the tasks.
        left_s: seconds that are left.
    """

    def __init__(self, runner: Runner, left_s: Callable[[], float]) -> None:
        self.num_slots = runner.num_slots
        self._runner, self._left_s = runner, left_s
        self._late: list[str] = []

    def submit(self, task: Task, inputs: Sequence[Any]) -> None:
        """See `Runner.submit`."""
        if self._left_s() > 0:
            self._runner.submit(task, inputs)
        else:
            self._late.append(task.name)

    def wait(self) -> tuple[str, Any]:
        """See `Runner.wait`."""
        if self._late:
            return self._late.pop(), Failure("the time was up before its turn", is_late=True)
        return self._runner.wait()


def attempt(action: Callable[..., Any], inputs: Sequence[Any], catch_all: bool = True) -> Any:
    """Returns the result of an action, or a `Failure`; without `catch_all` only the user's errors are one."""
    try:
        return action(*inputs)
    except UserError as error:
        return Failure(str(error))
    except StoppedError:
        raise  # the whole study was asked to stop, not this task alone
    except Exception as error:
        if not catch_all:
            raise
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


class Progress:
    """Tells how many tasks are done and how long the rest will take: a bar on a terminal, else a line for each.

    Args:
        num_tasks: that are counted, those included that were done before.
        num_before: done before.
        say: prints a line.
    """

    def __init__(self, num_tasks: int, num_before: int, say: Callable[[str], None]) -> None:
        self._num_tasks, self._num_before, self._num_done = num_tasks, num_before, num_before
        self._say = say
        self._start = time.monotonic()
        self._bar = tqdm(
            total=num_tasks, initial=num_before, desc="all cells", unit="cell", disable=not os.isatty(2), smoothing=0
        )

    def ended(self, task: Task, outcome: Any) -> None:
        """Hears that a task has ended, with its result or a `Failure`."""
        if isinstance(outcome, Failure) and not outcome.is_late:
            self._say(f"FAILED {task.name}: {outcome.reason}")
        if not task.is_counted:
            return
        self._num_done += 1
        self._bar.update()
        if not isinstance(outcome, Failure):
            spent = time.monotonic() - self._start
            left = spent / (self._num_done - self._num_before) * (self._num_tasks - self._num_done)
            rest = f", about {duration(left)} left" if left else ""
            self._say(f"[{self._num_done}/{self._num_tasks}] {task.name}   after {duration(spent)}{rest}")

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Returns 48 s, 12 min, 3.1 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def do_tasks(tasks: Sequence[Task], runner: Runner, ended: Callable[[Task, Any], None]) -> dict[str, Any]:
    """Does all tasks, as many at once as the runner has slots; among those that are ready, the first comes first.

    Args:
        tasks: what to do; `needs` name earlier ones.
        runner: who does them.
        ended: told of each task and its outcome.

    Returns:
        The result of each task by its name, or its `Failure`.
    """
    waiting = {task.name: task for task in tasks}
    assert len(waiting) == len(tasks), "two tasks of one name"
    outcomes: dict[str, Any] = {}
    running: dict[str, Task] = {}

    def end(task: Task, outcome: Any) -> None:
        outcomes[task.name] = outcome
        ended(task, outcome)

    while waiting or running:
        for task in list(waiting.values()):
            failed = next((need for need in task.needs if isinstance(outcomes.get(need), Failure)), None)
            if failed is not None:
                del waiting[task.name]
                is_late = outcomes[failed].is_late
                end(task, Failure(f"{failed}, which it needs, {'was late' if is_late else 'failed'}", is_late=is_late))
            elif len(running) < runner.num_slots and all(need in outcomes for need in task.needs):
                running[task.name] = waiting.pop(task.name)
                runner.submit(task, [outcomes[need] for need in task.needs])
        assert running or not waiting, f"tasks that wait for each other: {sorted(waiting)}"
        if running:
            name, outcome = runner.wait()
            end(running.pop(name), outcome)
    return outcomes
