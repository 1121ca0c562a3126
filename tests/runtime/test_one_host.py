"""Ranks talk through memory on one host and sockets on several: what they get, and what they are told of one gone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mwuf_dist.config import build, merge
from mwuf_dist.runtime import Runtime, many_hosts, one_host, start
from mwuf_dist.runtime.collectives import give_over_ranks, sum_over_ranks_
from mwuf_dist.runtime.shutdown import RankLostError
from tests.faults.ranks import VALUES, forked

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memory is shared by descriptors on Linux only"),
]

CONFIG = build(merge(VALUES, {"runtime": {"timeout_s": 20}}))


def _shared_memory() -> list[str]:
    """Names of the shared memory that this process holds."""
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the folder that was listed
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [name for name in names if "mwuf-slot" in name]


def be_a_host() -> None:
    """Lets this rank take itself for the only one of its host."""
    own = secrets.token_hex()
    one_host._host = lambda: (own, 0, 0)


def _check_gathered(runtime: Runtime) -> None:
    for kind, shape in ((np.float32, (5, 3)), (np.int64, (1 << 20,)), (np.float64, (0,)), (bool, (7, 2, 2))):
        of_ranks = [np.full((shape[0] * other, *shape[1:]), other, kind) for other in range(runtime.world_size)]
        whole = runtime.gather_rows(of_ranks[runtime.rank])  # rank 0 has none
        if not runtime.is_main:
            assert whole is None
            continue
        assert whole is not None and whole.dtype == kind and np.array_equal(whole, np.concatenate(of_ranks))
    mixed = runtime.gather_rows(np.ones(2, np.float32 if runtime.is_main else np.float64))
    assert mixed is None or mixed.tolist() == [1.0] * 2 * runtime.world_size


def _check_everything(num_hosts: int) -> None:
    """In a rank: random sizes and types, short and longer than a slot; every rank knows what each has."""
    if num_hosts > 1:
        be_a_host()
    with start(CONFIG) as runtime:
        assert bool(_shared_memory()) == (num_hosts == 1)
        assert runtime.group_of_tables is not None
        rank, world_size, group = runtime.rank, runtime.world_size, runtime.group_of_tables
        random = torch.Generator()
        for number in range(60):
            random.manual_seed(number)
            length = int(torch.randint(1, 600_000 if number % 20 == 3 else 20_000, (1,), generator=random))
            kind = (torch.float32, torch.float64, torch.bfloat16)[number % 3]
            rows = [torch.randn(length, generator=random).to(kind) for _ in range(world_size)]
            total = rows[0] + rows[1]
            for row in rows[2:]:
                total += row
            assert torch.equal(sum_over_ranks_(rows[rank].clone()), total)  # in the order of ranks: the same bits

            pieces = [torch.randn(world_size, length, generator=random) for _ in range(world_size)]
            piece = torch.empty(length)
            dist.reduce_scatter_tensor(piece, pieces[rank], group=group)
            torch.testing.assert_close(piece.double(), torch.stack(pieces).double().sum(0)[rank], rtol=1e-6, atol=1e-6)
            lengths = [length + other for other in range(world_size)]
            uneven = [torch.randn(sum(lengths), generator=random) for _ in range(world_size)]
            piece = torch.empty(lengths[rank])
            dist.reduce_scatter(piece, list(uneven[rank].split(lengths)), group=group)
            total = torch.stack(uneven).double().sum(0).split(lengths)[rank]
            torch.testing.assert_close(piece.double(), total, rtol=1e-6, atol=1e-6)
            lists = [torch.empty(length) for _ in range(world_size)]
            dist.all_gather(lists, torch.full((length,), float(rank)), group=group)
            assert all(bool((one == other).all()) for other, one in enumerate(lists))
            everything = torch.empty(world_size * length, dtype=kind)
            dist.all_gather_into_tensor(everything, rows[rank], group=group)
            assert torch.equal(everything, torch.cat(rows))

            sizes = torch.randint(0, 5000 if number % 4 else 2, (world_size, world_size), generator=random)
            parts = [torch.full((int(sizes[rank, other]), 2), 10 * rank + other) for other in range(world_size)]
            theirs = torch.empty((int(sizes[:, rank].sum()), 2), dtype=torch.int64)
            work = dist.all_to_all_single(
                theirs, torch.cat(parts), sizes[:, rank].tolist(), sizes[rank].tolist(), group=group, async_op=True
            )
            assert work is not None
            work.wait()
            expected = [torch.full((int(sizes[other, rank]), 2), 10 * other + rank) for other in range(world_size)]
            assert torch.equal(theirs, torch.cat(expected))
            given = give_over_ranks([part.view(-1) for part in parts])
            assert all(torch.equal(one, other.view(-1)) for one, other in zip(given, expected, strict=True))
        # More than the buffers between two ranks hold, to some of them.
        given = give_over_ranks([torch.full((other << 20,), 10 * rank + other) for other in range(world_size)])
        assert all(torch.equal(one, torch.full((rank << 20,), 10 * other + rank)) for other, one in enumerate(given))
        _check_gathered(runtime)
        even = torch.empty(world_size)
        dist.all_to_all_single(even, torch.arange(float(world_size)) + 10 * rank, group=group)
        assert torch.equal(even, 10.0 * torch.arange(world_size) + rank)
        runtime.barrier()
    assert not _shared_memory(), "memory is left"


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("hosts", ["one", "many"])
def test_sums_and_exchanges_are_those_of_the_ranks_and_leave_nothing_behind(
    hosts: str, ranks: int, tmp_path: Path
) -> None:
    with forked(_check_everything, (1 if hosts == "one" else ranks,), tmp_path / "log", ranks) as launch:
        assert launch.wait() == [0] * ranks, launch.said()


def _wait_for_rank_0() -> None:
    with start(CONFIG) as runtime:
        if runtime.rank == 0:
            time.sleep(1)
        before = time.thread_time()
        runtime.sum(torch.ones(3))
        assert time.thread_time() - before < 0.5
        runtime.barrier()


def test_who_waits_long_for_the_others_sleeps(tmp_path: Path) -> None:
    with forked(_wait_for_rank_0, (), tmp_path / "log", 2) as launch:
        assert launch.wait() == [0, 0], launch.said()


def _lose_rank_1(how: int, on_many: bool) -> None:
    if on_many:
        be_a_host()
    try:
        with start(build(merge(VALUES, {"runtime": {"timeout_s": 2}}))) as runtime:
            runtime.sum(torch.ones(3))
            if runtime.rank == 1:
                os.kill(os.getpid(), how)
            runtime.sum(torch.ones(3))
    except RankLostError as error:
        print(error, flush=True)
        sys.exit(1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("on_many", [False, True])
def test_a_rank_that_dies_or_is_stopped_in_a_sum_is_named(on_many: bool, how: signal.Signals, tmp_path: Path) -> None:
    with forked(_lose_rank_1, (int(how), on_many), tmp_path / "log", 3) as launch:
        for rank in (0, 2):
            launch.processes[rank].join(60)
            assert launch.processes[rank].exitcode == 1, launch.said()
            assert f"rank {rank} stops, because rank 1 does not answer" in launch.said(rank)


def _sum_by_gloo(addresses: tuple[str, str]) -> None:
    be_a_host()
    many_hosts._our_address = lambda master: addresses[int(os.environ["RANK"])]
    with start(CONFIG) as runtime:
        assert runtime.group_of_tables is None
        assert sum_over_ranks_(torch.full((5,), runtime.rank + 1.0)).tolist() == [3.0] * 5
        whole = runtime.gather_rows(np.full((1 + runtime.rank, 2), runtime.rank))
        assert (None if whole is None else whole.tolist()) == (None if runtime.rank else [[0, 0], [1, 1], [1, 1]])


@pytest.mark.parametrize(
    "addresses",
    [("192.0.2.1", "192.0.2.1"), ("::1", "127.0.0.1"), ("127.0.0.1", "::1")],
    ids=["of nobody", "IPv6 and 4", "IPv4 and 6"],
)
def test_ranks_that_cannot_connect_sum_by_gloo(addresses: tuple[str, str], tmp_path: Path) -> None:
    with forked(_sum_by_gloo, (addresses,), tmp_path / "log", 2) as launch:
        assert launch.wait() == [0, 0], launch.said()


def test_a_host_has_the_address_that_leads_to_the_main_rank_or_of_the_named_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert many_hosts._our_address("localhost") in ("127.0.0.1", "::1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert many_hosts._our_address("192.0.2.1") == "127.0.0.1"


def test_whoever_does_not_know_the_secret_is_no_rank() -> None:
    listening = one_host._listen(2)
    assert listening is not None
    everybody = [("host", listening.getsockname(), b"a" * 32), ("host", "", b"b" * 32)]
    stranger, rank_1 = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
    with listening, stranger, rank_1:
        stranger.connect(listening.getsockname())
        stranger.sendall(b"c" * 32 + b"b" * 32)
        rank_1.connect(listening.getsockname())
        rank_1.sendall(b"a" * 32 + b"b" * 32)
        found = one_host.sockets_to_others(0, everybody, listening, 10)
        with found[1]:
            rank_1.sendall(b"hello")
            assert list(found) == [1] and found[1].recv(5) == b"hello"
            assert stranger.recv(1) == b"", "the stranger is still connected"
