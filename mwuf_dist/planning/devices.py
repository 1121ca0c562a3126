"""What devices can do: accelerators by their vendor's figures, this machine's CPU by a quick measurement."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from mwuf_dist.config import UserError
from mwuf_dist.runtime.collectives import directly, sum_over_ranks_

# How often two ranks do what is timed; numbers of a long exchange.
_TIMES = 100
_LONG = 1 << 18
_GIGA = 1e9
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Network:
    """Describes what joins hosts, and how ranks are spread over them.

    Attributes:
        bytes_per_s: of a rank, one way; 0: what a device's hosts have by its data sheet, 1 GB/s for hosts like this.
        delay_s: until the first bit arrives, one way.
        ranks_per_host: 0: as many as the device's hosts have devices, or this one cores.
    """

    bytes_per_s: float = 0.0
    delay_s: float = 0.0
    ranks_per_host: int = 0


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
        delay_s: of the network, one way.
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
    delay_s: float = 0.0
    is_here: bool = False

    def joined_by(self, network: Network) -> Device:
        """Gives the same device in hosts that such a network joins."""
        return replace(
            self,
            network_bytes_per_s=network.bytes_per_s or self.network_bytes_per_s,
            delay_s=network.delay_s,
            per_host=network.ranks_per_host or self.per_host,
        )


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


def this_cpu(world_size: int, ranks_per_host: int = 0) -> Device:
    """Gives one thread of this machine, measured in about a second of processor time.

    For several ranks, what passes between two processes: through memory, or sockets where hosts have fewer ranks.
    """
    per_host = ranks_per_host or os.cpu_count() or 1
    size = 1 << 22
    source, target = torch.ones(size), torch.empty(size)
    copy_s = _fastest(lambda: target.copy_(source))
    rows, weight = torch.ones(2048, 64), torch.ones(64, 64)
    product_s = _fastest(lambda: rows @ weight)
    one = torch.ones(1)
    op_s = _fastest(lambda: [one.add(1) for _ in range(1000)]) / 1000
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (os.cpu_count() or 1)
    flops_per_s, bytes_per_s = 2 * rows.numel() * 64 / product_s, 8 * size / copy_s
    crowding, latency_s, link = (
        _two_ranks(one_host=world_size <= per_host) if world_size > 1 else (1.0, 0.0, bytes_per_s)
    )
    hosts = "" if world_size <= per_host else "; hosts like this one, the network between them assumed"
    return Device(
        *("cpu", memory, flops_per_s, bytes_per_s, link, 1 * _GIGA, per_host, op_s, latency_s),
        "measured here, one thread a rank; memory shared by the cores" + hosts,
        crowding if per_host > 1 else 1.0,
        is_here=True,
    )


def _two_ranks(one_host: bool) -> tuple[float, float, float]:
    """Measures of two processes (how much they slow each other down, seconds of an exchange, bytes/s of a rank)."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["torch.distributed"])
    with tempfile.TemporaryDirectory() as folder:
        results = forks.SimpleQueue()
        ranks = [forks.Process(target=_rank, args=(rank, f"{folder}/store", one_host, results)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise UserError("two processes of this machine cannot exchange anything: see above, and `mwuf doctor`")
        return results.get()


def _rank(rank: int, store: str, one_host: bool, results: Any) -> None:
    # As torchrun does: a scheduler that shares a busy machine out to sessions gives two ranks in one only half each.
    os.setsid()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    with directly(rank, 2, _TIMEOUT_S, "127.0.0.1", one_host) as group:  # as a run has it
        rows, weight = torch.ones(2048, 64), torch.ones(64, 64)

        def work() -> None:
            torch.relu(rows @ weight)

        def exchange(size: int) -> None:
            dist.all_to_all_single(torch.empty(size), torch.ones(size), group=group)

        def exchange_twice() -> None:  # a step has both kinds
            exchange(2)
            sum_over_ranks_(torch.ones(2))

        # Means, as a step has many exchanges; and with work between them, because who is early waits for the other.
        # Work by processor time, which other programs do not lengthen; waiting shows on the clock alone.
        alone_s, _ = _mean_s(work) if rank == 0 else (0.0, 0.0)
        dist.barrier()
        crowded_s, both_s = _mean_s(work)
        dist.barrier()
        _, with_exchange_s = _mean_s(lambda: (work(), exchange(2)))
        _, with_two_s = _mean_s(lambda: (work(), exchange_twice()))
        _, with_long_s = _mean_s(lambda: (work(), exchange(_LONG)))
        if rank == 0:
            link = _LONG / 2 * 4 / max(1e-9, with_long_s - with_exchange_s)
            results.put((max(1.0, crowded_s / alone_s), max(0.0, with_two_s - both_s) / 2, link))
    dist.destroy_process_group()


def _mean_s(action: Callable[[], object]) -> tuple[float, float]:
    """Returns seconds of an action by processor time and by the clock."""
    for _ in range(5):
        action()
    processor, clock = time.process_time(), time.perf_counter()
    for _ in range(_TIMES):
        action()
    return (time.process_time() - processor) / _TIMES, (time.perf_counter() - clock) / _TIMES


def _fastest(action: Callable[[], object], times: int = 9) -> float:
    seconds = []
    for _ in range(times):
        clock = time.process_time()
        action()
        seconds.append(time.process_time() - clock)
    return min(seconds)
