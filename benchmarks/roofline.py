"""The machine's own roofline: how fast it copies and multiplies now, and what a sample costs at least.

A step can be no faster than its bytes at the bandwidth of a plain copy, nor than its floating-point operations at the
rate of a large matrix product: `Roof.samples_per_s`. Both are measured beside what is compared with them, in the same
process, because a machine that others use too is not as fast as its data sheet.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

_COPIED = 1 << 24  # numbers: 64 MB, more than the caches hold
_SIDE = 1024  # of the matrices that are multiplied
_BLOCKS_MB = (4, 16, 64)  # that processes copy at once: they fit the second cache, the last one, and none
_SECONDS_AT_ONCE = 0.5
_ADAM_PASSES = 7  # over each weight: gradient, weight and two moments read, weight and moments written


@dataclass(frozen=True)
class Cost:
    """What one sample needs at least.

    Attributes:
        flops: floating-point operations of all matrix products, a multiplication and an addition being two.
        num_bytes: read and written to memory, if everything that can stay in a cache does.
    """

    flops: float
    num_bytes: float


@dataclass(frozen=True)
class Roof:
    """What the machine can do.

    Attributes:
        flops_per_s: of a product of float32 matrices.
        bytes_per_s: of a copy, read and written bytes both.
    """

    flops_per_s: float
    bytes_per_s: float

    def samples_per_s(self, cost: Cost) -> float:
        """The rate that nothing can beat: by operations or by bytes, whichever takes longer."""
        return 1 / max(cost.flops / self.flops_per_s, cost.num_bytes / self.bytes_per_s)


def measure(clock: Callable[[], float] = time.process_time, rounds: int = 9, onednn: bool = False) -> Roof:
    """Measures both on the threads that torch has now.

    Args:
        clock: in seconds.
        rounds: the median of so many counts.
        onednn: whether a product is the faster of torch's and oneDNN's, which has its result in memory of its own.
    """
    source = torch.zeros(_COPIED)
    target = torch.empty_like(source)
    left, right = torch.randn(2, _SIDE, _SIDE)
    product = torch.empty(_SIDE, _SIDE)
    copy_s = _seconds(lambda: target.copy_(source), clock, rounds)
    product_s = _seconds(lambda: torch.mm(left, right, out=product), clock, rounds)
    if onednn and torch.backends.mkldnn.is_available():
        of_onednn = left.to_mkldnn()
        product_s = min(product_s, _seconds(lambda: F.linear(of_onednn, right), clock, rounds))
    return Roof(2 * _SIDE**3 / product_s, 2 * source.nbytes / copy_s)


def at_once(num_processes: int) -> dict[str, float]:
    """What so many processes of one thread do side by side, all together: products and copies, bytes/s or operations/s.

    More cores help no more than this where the work is of that kind: they share the memory and the last cache.
    """
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(num_processes), context.Queue()
    workers = [context.Process(target=_at_once, args=(begin, results)) for _ in range(num_processes)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    return {kind: sum(rates[kind] for rates in found) for kind in found[0]}


def _at_once(begin: Any, results: Any) -> None:
    torch.set_num_threads(1)
    left, right, product = torch.randn(3, _SIDE // 4, _SIDE // 4)
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "products of matrices": (lambda: torch.mm(left, right, out=product), 2 * len(left) ** 3)
    }
    for size in _BLOCKS_MB:
        source = torch.zeros(size << 18)
        target = torch.empty_like(source)
        calls[f"copies of {size} MB"] = (lambda a=source, b=target: b.copy_(a)), 2 * source.nbytes
    rates = {}
    for kind, (call, work) in calls.items():
        call()
        begin.wait()
        started, num = time.perf_counter(), 0
        while time.perf_counter() - started < _SECONDS_AT_ONCE:
            call()
            num += 1
        rates[kind] = num * work / (time.perf_counter() - started)
    results.put(rates)


def flops_of(step: Callable[[], object]) -> int:
    """Counts the floating-point operations of the matrix products of a step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def fewest_bytes(trained: int, frozen: int, batch_size: int, numbers: float, has_gradient: bool) -> float:
    """Bytes that a sample of a step moves at least where Adam goes over everything that is trained, tables too.

    Args:
        trained: weights and numbers of tables that the step trains: see `training_bytes`.
        frozen: dense weights that it only reads.
        batch_size: samples of a step.
        numbers: of the rows of tables that a sample looks up.
        has_gradient: whether some of these get one: it is added to what Adam reads.
    """
    weights = (3 + _ADAM_PASSES) * trained + frozen
    return 4 * (weights / batch_size + numbers * (3 if has_gradient else 1))


def training_bytes(num_weights: int, batch_size: int, rows: float, row_bytes: int, state_bytes: int = 0) -> float:
    """Bytes that a sample of a training step moves at least.

    Args:
        num_weights: dense weights, float32, trained by Adam: read forward and backward, their gradient written, one
            pass of Adam; shared by the samples of a batch.
        batch_size: samples of a step.
        rows: rows of tables that a sample uses: read forward, read and written by their optimizer.
        row_bytes: of such a row.
        state_bytes: of its optimizer's state, read and written.
    """
    dense = (3 + _ADAM_PASSES) * 4 * num_weights / batch_size
    return dense + rows * (3 * row_bytes + 2 * state_bytes)


def _seconds(call: Callable[[], object], clock: Callable[[], float], rounds: int) -> float:
    call()
    found = []
    for _ in range(rounds):
        begin = clock()
        call()
        found.append(clock() - begin)
    return median(found)
