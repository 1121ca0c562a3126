"""Actors of Ray that are stopped, which Ray itself does not notice: they are missed in time, and named."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mwuf_dist.data.batches import lanes
from mwuf_dist.data.batches.lanes import Leases, start_coordinator
from mwuf_dist.data.watched_tasks import WatchedTasks
from mwuf_dist.launch import watch as watch_module
from mwuf_dist.launch.watch import LostRank, Watch
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.shutdown import RankLostError
from tests.waiting import stop, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.dist]


# So much later are the clocks of a watch and its actor where a test lets time pass. Far above what a machine may stand
# still, and the patience of a watch is in the middle: both sides have a minute.
LATER_S, PATIENCE_S = 120.0, 60.0


def _lost(watch: Watch, running: list[int]) -> str:
    """What a watch says at last of who is lost."""

    def look() -> str:
        try:
            watch.look(running)
        except LostRank as lost:
            return str(lost)
        return ""

    return wait_until(look)


def _be_later(module: ModuleType) -> None:
    module.time = SimpleNamespace(monotonic=lambda: time.monotonic() + LATER_S)  # type: ignore[attr-defined]


@pytest.fixture
def coordinator(cluster: Any) -> Any:
    name = f"mwuf-lanes-of-{os.getpid()}-{time.monotonic_ns()}"
    actor = start_coordinator(name)
    cluster.get(actor.renew.remote())  # it has started
    yield name, actor
    cluster.kill(actor)


def test_the_actor_that_leases_the_lanes_is_missed_when_it_is_stopped(cluster: Any, coordinator: Any) -> None:
    name, actor = coordinator
    patient, leases = (
        Leases(Runtime(0, 1, torch.device("cpu"), False, lane_coordinator=name, timeout_s=seconds))
        for seconds in (PATIENCE_S, 1.0)
    )
    assert patient.lanes(8) == range(8)
    watch = Watch(actor, 1, 1.0)
    process = cluster.get(actor.__ray_call__.remote(lambda _actor: os.getpid()))
    stop(process)
    try:
        with pytest.raises(RankLostError, match="rank 0 stops, because the Ray actor that leases the lanes gives no"):
            leases.renew()
        assert "the actor that leases the lanes gives no sign for" in _lost(watch, [])
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_rank_that_asks_no_more_is_missed_and_one_that_asks_or_has_ended_is_not(
    cluster: Any, coordinator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, actor = coordinator
    cluster.get([actor.is_stopping.remote(rank) for rank in range(2)])
    watch = Watch(actor, 2, PATIENCE_S)
    monkeypatch.setattr(watch_module, "_ANSWER_S", PATIENCE_S)
    monkeypatch.setattr(watch_module, "time", time)  # what it is again in the end

    def look(running: list[int]) -> None:
        """With the answer to a question that is asked now: the one before may be older than a rank's last sign."""
        for those in ([], running):
            cluster.wait([watch._asked[0]])
            watch.look(those)

    cluster.get(actor.__ray_call__.remote(lambda _actor: _be_later(lanes)))
    look([])  # what it had been asked before was answered before
    _be_later(watch_module)
    with pytest.raises(LostRank, match="rank 0 gives no sign for"):
        look([0, 1])
    cluster.get(actor.is_stopping.remote(0))
    look([0])
    with pytest.raises(LostRank, match="rank 1 gives no sign for"):
        look([0, 1])


def _stops_once(marker: Path) -> int:
    """Stops its process, the first time."""
    if not marker.exists():
        marker.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    return os.getpid()


def test_work_of_a_process_that_is_stopped_at_it_or_before_is_begun_again(cluster: Any, tmp_path: Path) -> None:
    tasks = WatchedTasks(silent_s=3.0, max_retries=3)
    try:
        stopped = tasks.submit(_stops_once, (tmp_path / "marker",))
        assert tasks.wait([stopped]) is stopped
        worker = cluster.get(stopped.answer)
        assert worker != int((tmp_path / "marker").read_text())
        stop(worker)  # idle, so that Ray gives it the next task
        try:
            more = [tasks.submit(os.getpid, ()) for _ in range(2)]
            for one in more:
                tasks.wait([one])
            assert worker not in [cluster.get(one.answer) for one in more]
        finally:
            with contextlib.suppress(ProcessLookupError):  # Ray may have ended it
                os.kill(worker, signal.SIGKILL)
    finally:
        tasks.close()


def test_a_task_that_is_begun_again_is_given_twice_as_long_each_time(cluster: Any) -> None:
    tasks = WatchedTasks(silent_s=3.0, max_retries=0)
    try:
        waiting = tasks.submit(os.getpid, (), num_cpus=1000)  # Ray never has room for it
        for patience_s in (3.0, 6.0, 12.0):
            answer = waiting.answer
            tasks._judge({}, asked=waiting.since + patience_s - 0.1)
            assert waiting.answer is answer
            tasks._judge({}, asked=waiting.since + patience_s + 0.1)
            assert waiting.answer is not answer
    finally:
        cluster.cancel(waiting.answer, force=True)
        tasks.close()
