"""What devices can do: accelerators by their vendor's figures, this machine's CPU by a quick measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_GIGA = 1e9


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


def this_cpu() -> Device:
    """One thread of this machine, measured in about a second; link and latency are assumptions for gloo."""
    size = 1 << 22
    source, target = torch.ones(size), torch.empty(size)
    copy_s = _fastest(lambda: target.copy_(source))
    rows, weight = torch.ones(2048, 64), torch.ones(64, 64)
    product_s = _fastest(lambda: rows @ weight)
    one = torch.ones(1)
    op_s = _fastest(lambda: [one.add(1) for _ in range(1000)]) / 1000
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (os.cpu_count() or 1)
    flops_per_s, bytes_per_s = 2 * rows.numel() * 64 / product_s, 8 * size / copy_s
    return Device(
        *("cpu", memory, flops_per_s, bytes_per_s, 1 * _GIGA, 1 * _GIGA, os.cpu_count() or 1, op_s, 3e-4),
        "measured here, one thread; memory shared by the cores; link and latency assumed",
    )


def _fastest(action: Callable[[], object], times: int = 9) -> float:
    seconds = []
    for _ in range(times):
        clock = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - clock)
    return min(seconds)
