"""What devices can do: accelerators by their vendor's figures, this machine's CPU by a quick measurement."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mwuf_dist.config import UserError
from mwuf_dist.runtime.collectives import sum_over_ranks_, through_memory

# How often two ranks do what is timed; numbers of a long exchange.
_TIMES = 100
_LONG = 1 << 18
_GIGA = 1e9
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Device:
    """One rank's device.

    Attributes:
        name: as in `--device`.
        memory_bytes: for everything.
        flops_per_s: float32, without tensor cores.
        memory_bytes_per_s: reading and writing together.
        link_bytes_per_s: what a rank can send to ranks of its host, one way.
        network_bytes_per_s: the same to ranks of other hosts.
        per_host: ranks of a host.
        op_s: time of an operator that has nothing to do.
        latency_s: time of a collective that has nothing to send.
        crowding: how many times as long work takes when another rank of the host works too.
        is_here: this machine, where a step is timed instead of put together from the figures above.
        source: of the figures; `op_s` and `latency_s` of accelerators are in no data sheet and are assumptions.
    """

    name: str
    memory_bytes: float
    flops_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float
    per_host: int
    op_s: float
    latency_s: float
    source: str
    crowding: float = 1.0
    is_here: bool = False


# NVLink figures of data sheets add both directions: half of them goes one way. Network: one adapter per GPU in a DGX.
_NVIDIA_OP_S, _NVIDIA_LATENCY_S = 10e-6, 30e-6
DEVICES = {
    "a100": Device(
        *("a100", 80 * _GIGA, 19.5e12, 2039 * _GIGA, 300 * _GIGA, 25 * _GIGA, 8, _NVIDIA_OP_S, _NVIDIA_LATENCY_S),
        "NVIDIA A100 80GB SXM data sheet; DGX A100 data sheet (200 Gb/s)",
    ),
    "h100": Device(
        *("h100", 80 * _GIGA, 67e12, 3350 * _GIGA, 450 * _GIGA, 50 * _GIGA, 8, _NVIDIA_OP_S, _NVIDIA_LATENCY_S),
        "NVIDIA H100 SXM data sheet; DGX H100 data sheet (400 Gb/s)",
    ),
    "h200": Device(
        *("h200", 141 * _GIGA, 67e12, 4800 * _GIGA, 450 * _GIGA, 50 * _GIGA, 8, _NVIDIA_OP_S, _NVIDIA_LATENCY_S),
        "NVIDIA H200 SXM data sheet; DGX H200 data sheet (400 Gb/s)",
    ),
}


def this_cpu(world_size: int) -> Device:
    """Gives one thread of this machine, measured in about a second.

    For several ranks, what passes between two processes.
    """
    size = 1 << 22
    source, target = torch.ones(size), torch.empty(size)
    copy_s = _fastest(lambda: target.copy_(source))
    rows, weight = torch.ones(2048, 64), torch.ones(64, 64)
    product_s = _fastest(lambda: rows @ weight)
    one = torch.ones(1)
    op_s = _fastest(lambda: [one.add(1) for _ in range(1000)]) / 1000
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (os.cpu_count() or 1)
    flops_per_s, bytes_per_s = 2 * rows.numel() * 64 / product_s, 8 * size / copy_s
    crowding, latency_s, link = _two_ranks() if world_size > 1 else (1.0, 0.0, bytes_per_s)
    hosts = "" if world_size <= (os.cpu_count() or 1) else "; hosts like this one, the network between them assumed"
    return Device(
        *("cpu", memory, flops_per_s, bytes_per_s, link, 1 * _GIGA, os.cpu_count() or 1, op_s, latency_s),
        "measured here, one thread a rank; memory shared by the cores" + hosts,
        crowding,
        is_here=True,
    )


def _two_ranks() -> tuple[float, float, float]:
    """Measures of two processes (how much they slow each other down, seconds of an exchange, bytes/s of a rank)."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["torch.distributed"])
    with tempfile.TemporaryDirectory() as folder:
        results = forks.SimpleQueue()
        ranks = [forks.Process(target=_rank, args=(rank, f"{folder}/store", results)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise UserError("two processes of this machine cannot exchange anything: see above, and `mwuf doctor`")
        return results.get()


def _rank(rank: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    with through_memory(rank, 2, _TIMEOUT_S) as group:  # as a run has it
        rows, weight = torch.ones(2048, 64), torch.ones(64, 64)

        def work() -> None:
            torch.relu(rows @ weight)

        def exchange(size: int) -> None:
            dist.all_to_all_single(torch.empty(size), torch.ones(size), group=group)

        def exchange_twice() -> None:  # a step has both kinds
            exchange(2)
            sum_over_ranks_(torch.ones(2))

        # Means, as a step has many exchanges; and with work between them, because who is early waits for the other.
        alone_s = _mean_s(work) if rank == 0 else 0.0
        dist.barrier()
        both_s = _mean_s(work)
        dist.barrier()
        with_exchange_s = _mean_s(lambda: (work(), exchange(2)))
        with_two_s = _mean_s(lambda: (work(), exchange_twice()))
        with_long_s = _mean_s(lambda: (work(), exchange(_LONG)))
        if rank == 0:
            link = _LONG / 2 * 4 / max(1e-9, with_long_s - with_exchange_s)
            results.put((max(1.0, both_s / alone_s), max(0.0, with_two_s - both_s) / 2, link))
    dist.destroy_process_group()


def _mean_s(action: Callable[[], object]) -> float:
    for _ in range(5):
        action()
    clock = time.perf_counter()
    for _ in range(_TIMES):
        action()
    return (time.perf_counter() - clock) / _TIMES


def _fastest(action: Callable[[], object], times: int = 9) -> float:
    seconds = []
    for _ in range(times):
        clock = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - clock)
    return min(seconds)
