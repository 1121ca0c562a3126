"""Whoever is stopped, the others end in time and say who it is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mwuf_dist.config import UserError, build, merge
from mwuf_dist.runtime import start
from mwuf_dist.runtime.runtime import _meeting_point
from mwuf_dist.runtime.shutdown import RankLostError
from mwuf_dist.runtime.waits import NoAnswerError, within
from tests.faults.ranks import _FORKS, VALUES, Launch, forked
from tests.waiting import LONGEST_S, stop

TIMEOUT_S = 3
# Beyond it: MARGIN_S and a roll call, 8 s, and four times as long as all of it for a machine that others use too.
# Whoever has waited for the others to come (COME_S) is later than that.
IN_TIME_S = 5 * (TIMEOUT_S + 8)
CONFIG = build(merge(VALUES, {"runtime": {"timeout_s": TIMEOUT_S}}))


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _rank(place: str, stopped: int, store: int) -> None:
    """A rank of two; one of them, or the process that holds the store, is stopped at a place."""
    from mwuf_dist.runtime import heartbeat
    from mwuf_dist.runtime import runtime as module

    if place == "start":  # elsewhere all come, on a busy machine one of them late
        heartbeat.COME_S = module.COME_S = 2.0
    os.environ["MWUF_NATIVE"] = "0"
    if store:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    is_it = os.environ["RANK"] == str(stopped)
    if place == "start" and is_it:
        _stop()
    try:
        with start(CONFIG) as runtime:
            runtime.barrier()
            if place == "store":
                runtime.on_main(lambda: stop(store))
            elif place == "main":
                runtime.on_main(_stop)
            elif is_it:
                _stop()
            elif place == "beside":
                runtime.beside()
            elif place == "sum":
                runtime.sum(torch.ones(3))
            elif place == "gather":
                runtime.gather("us")
            elif place == "barrier":
                runtime.barrier()
    except RankLostError as error:
        print(error, flush=True)
        sys.exit(1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _hold_store(port: int) -> None:
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    time.sleep(LONGEST_S)
    del store


@contextlib.contextmanager
def _held_store() -> Iterator[tuple[int, int]]:
    """A store in a process of its own, as torchrun has it: (port, process)."""
    port = _free_port()
    holder = _FORKS.Process(target=_hold_store, args=(port,), daemon=True)
    holder.start()
    dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    try:
        assert holder.pid is not None
        yield port, holder.pid
    finally:
        holder.kill()
        holder.join()


RANK_1 = "rank 0 stops, because rank 1"
STORE = "rank 1 stops, because rank 0, which holds the store"
# Place, which rank is stopped, whether rank 0 holds the store: what its peer says.
CASES = [
    ("start", 1, True, RANK_1 + " has not come within 5 s (runtime.timeout_s and 2 s)"),
    ("start", 0, True, "rank 1 stops, because rank 0 does not answer at 127.0.0.1:"),
    ("gather", 0, True, STORE),
    ("main", 0, True, STORE),
    ("beside", 0, True, STORE),
    ("beside", 1, False, RANK_1 + " does not answer: it has died or hangs"),
    ("main", 0, False, "rank 0 has given no sign for 3 s"),
]


@pytest.mark.dist
def test_a_rank_that_is_stopped_anywhere_is_named_by_its_peer_in_time(tmp_path: Path) -> None:
    launches: list[tuple[Any, Launch]] = []
    with contextlib.ExitStack() as stack:
        for number, case in enumerate(CASES):
            place, stopped, rank_0_holds, _ = case
            port = _free_port() if rank_0_holds else None
            launch = stack.enter_context(forked(_rank, (place, stopped, 0), tmp_path / str(number), 2, port=port))
            launches.append((case, launch))
        deadline = time.monotonic() + IN_TIME_S
        for case, launch in launches:
            peer = launch.processes[1 - case[1]]
            peer.join(max(0.0, deadline - time.monotonic()))
            assert peer.exitcode == 1 and case[3] in launch.said(1 - case[1]), (case, launch.said())


@pytest.mark.dist
def test_a_launcher_that_is_stopped_with_the_store_is_named_by_the_ranks(tmp_path: Path) -> None:
    with (
        _held_store() as (port, holder),
        forked(_rank, ("store", -1, holder), tmp_path / "log", 2, port=port) as launch,
    ):
        began = time.monotonic()
        launch.wait()
        assert time.monotonic() - began < IN_TIME_S
        assert [process.exitcode for process in launch.processes] == [1, 1]
        for rank in range(2):
            assert "torchrun, which holds the store" in launch.said(rank)


def test_a_call_that_hangs_is_left_and_what_it_returns_or_raises_is_passed_on() -> None:
    assert within(10, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 // 0)
    with pytest.raises(NoAnswerError, match=r"no answer for 0\.05 s"):
        within(0.05, lambda: time.sleep(5))


def test_the_store_of_rank_0_listens_at_the_address_of_the_ranks_alone() -> None:
    port = _free_port()
    store, _ = _meeting_point.__wrapped__("127.0.0.1", port, True, 5.0)
    listening = [
        line.split()[1]
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"], "127.0.0.1, the other way round"
    store.set("it", "works")
    assert store.get("it") == b"works"


def test_a_port_that_is_taken_is_the_users_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(UserError, match="cannot be listened at"):
        _meeting_point.__wrapped__("127.0.0.1", server.getsockname()[1], True, 5.0)
