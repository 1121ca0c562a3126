"""Tasks are done after what they need, as many at once as there are slots, and a failure takes only what needs it."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from mwuf_dist.config import UserError
from mwuf_dist.runtime.shutdown import StoppedError
from mwuf_dist.studies.schedule import Failure, Here, Progress, Task, attempt, do_tasks, duration


class Slots:
    """A runner whose tasks end in an order drawn by chance; it watches what runs at once."""

    def __init__(self, num_slots: int, seed: int = 0) -> None:
        self.num_slots = num_slots
        self._draw = random.Random(seed)
        self._running: dict[str, tuple[Task, Sequence[Any]]] = {}
        self.begun: list[str] = []
        self.most = 0

    def submit(self, task: Task, inputs: Sequence[Any]) -> None:
        self._running[task.name] = task, inputs
        self.begun.append(task.name)
        self.most = max(self.most, len(self._running))

    def wait(self) -> tuple[str, Any]:
        name = self._draw.choice(sorted(self._running))
        task, inputs = self._running.pop(name)
        return name, attempt(task.action, inputs)


def fails(*_: Any) -> None:
    raise UserError("no such thing")


def breaks(*_: Any) -> None:
    raise RuntimeError("a bug")


def tasks_of_a_study(num_seeds: int = 5) -> list[Task]:
    """Per seed a pretraining, and two runs on it."""
    found = []
    for seed in range(num_seeds):
        found.append(Task(f"pretraining {seed}", functools.partial(int, seed)))
        for method in ("base", "mwuf"):
            found.append(Task(f"{method} {seed}", lambda pretrained: pretrained * 10, (f"pretraining {seed}",)))
    return found


@pytest.mark.parametrize("num_slots", [1, 2, 4, 100])
@pytest.mark.parametrize("draw", range(5))
def test_every_task_is_done_once_after_what_it_needs_with_its_results(num_slots: int, draw: int) -> None:
    tasks, runner, ended = tasks_of_a_study(), Slots(num_slots, draw), []
    outcomes = do_tasks(tasks, runner, lambda task, outcome: ended.append(task.name))
    assert sorted(runner.begun) == sorted(ended) == sorted(task.name for task in tasks)
    assert all(ended.index(need) < ended.index(task.name) for task in tasks for need in task.needs)
    assert outcomes["base 3"] == outcomes["mwuf 3"] == 30
    assert runner.most == min(num_slots, runner.most)
    assert num_slots > 4 or runner.most == num_slots, "a slot was left empty"


def test_one_slot_does_them_in_their_order() -> None:
    runner = Slots(1)
    tasks = tasks_of_a_study()
    do_tasks(tasks, runner, lambda *_: None)
    assert runner.begun == [task.name for task in tasks]


def test_a_failure_takes_those_that_need_it_and_no_other() -> None:
    tasks = [
        Task("a", fails),
        Task("b", int, ("a",)),
        Task("c", int, ("b",)),
        Task("d", functools.partial(int, 7)),
        Task("e", breaks, ("d",)),
    ]
    runner = Slots(2)
    outcomes = do_tasks(tasks, runner, lambda *_: None)
    assert outcomes["a"] == Failure("no such thing")
    assert outcomes["b"] == Failure("a, which it needs, failed")
    assert outcomes["c"] == Failure("b, which it needs, failed")
    assert outcomes["d"] == 7
    assert outcomes["e"].reason == "RuntimeError: a bug" and "in breaks" in outcomes["e"].trace
    assert "b" not in runner.begun


def test_this_process_stops_at_a_bug_where_other_ranks_wait_for_it() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        do_tasks([Task("e", breaks)], Here(alone=False), lambda *_: None)
    assert do_tasks([Task("e", breaks)], Here(), lambda *_: None)["e"].reason == "RuntimeError: a bug"
    assert do_tasks([Task("a", fails)], Here(alone=False), lambda *_: None)["a"] == Failure("no such thing")


def test_a_study_that_is_asked_to_stop_begins_no_other_task() -> None:
    def stops() -> None:
        raise StoppedError("stopped by SIGTERM")

    begun: list[str] = []
    with pytest.raises(StoppedError):
        do_tasks([Task("a", stops), Task("b", lambda: begun.append("b"))], Here(), lambda *_: None)
    assert begun == []


def test_progress_counts_what_was_done_before_and_tells_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr("mwuf_dist.studies.schedule.time", SimpleNamespace(monotonic=lambda: next(clock)))
    progress = Progress(6, 3, said.append)
    progress.ended(Task("pretraining", int, is_counted=False), 1)
    progress.ended(Task("x", int), 1)
    progress.ended(Task("y", int), Failure("because"))
    progress.ended(Task("z", int), 1)
    progress.close()
    assert said == ["[4/6] x   after 60 s, about 2 min left", "FAILED y: because", "[6/6] z   after 2 min"]


def test_durations_have_two_digits_or_more_and_a_unit() -> None:
    assert [duration(seconds) for seconds in (0.4, 48, 720, 11_160)] == ["0 s", "48 s", "12 min", "3.1 h"]
