"""Actors of Ray that are stopped, which Ray itself does not notice: they are missed in time, and named."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mwuf_dist.data.batches.lanes import Leases, start_coordinator
from mwuf_dist.data.watched_tasks import WatchedTasks
from mwuf_dist.launch.watch import LostRank, Watch
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.shutdown import RankLostError

pytestmark = [pytest.mark.ray, pytest.mark.dist]


def _looked(watch: Watch, running: list[int], seconds: float = 5.0) -> str:
    """What a watch says of who is lost; nothing where nobody is for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            watch.look(running)
        except LostRank as lost:
            return str(lost)
        time.sleep(0.05)
    return ""


@pytest.fixture
def coordinator(cluster: Any) -> Any:
    name = f"mwuf-lanes-of-{os.getpid()}-{time.monotonic_ns()}"
    actor = start_coordinator(name)
    cluster.get(actor.renew.remote())  # it has started
    yield name, actor
    cluster.kill(actor)


def test_the_actor_that_leases_the_lanes_is_missed_when_it_is_stopped(cluster: Any, coordinator: Any) -> None:
    name, actor = coordinator
    leases = Leases(Runtime(0, 1, torch.device("cpu"), False, lane_coordinator=name, timeout_s=1.0))
    assert leases.lanes(8) == range(8)
    watch = Watch(actor, 1, 1.0)
    process = cluster.get(actor.__ray_call__.remote(lambda _actor: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(RankLostError, match="rank 0 stops, because the Ray actor that leases the lanes gives no"):
            leases.renew()
        assert "the actor that leases the lanes gives no sign for" in _looked(watch, [])
    finally:
        os.kill(process, signal.SIGCONT)


def test_a_rank_that_asks_no_more_is_missed_and_one_that_asks_or_has_ended_is_not(
    cluster: Any, coordinator: Any
) -> None:
    _, actor = coordinator
    cluster.get([actor.is_stopping.remote(rank) for rank in range(2)])
    watch = Watch(actor, 2, 1.0)
    assert _looked(watch, [], 2.0) == ""
    cluster.get(actor.is_stopping.remote(0))
    watch.look([])
    time.sleep(0.2)
    assert _looked(watch, [0, 1]).startswith("rank 1 gives no sign for")


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
        os.kill(worker, signal.SIGSTOP)  # idle, so that Ray gives it the next task
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
