"""Sums and exchanges of rows between ranks: through memory where they share a CPU's host, else by torch's own group."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from mwuf_dist.runtime.one_host import OneHost, connect

_BACKEND = "one_host"
_BY_GLOO = ("allgather", "allreduce", "alltoall", "barrier", "broadcast", "gather", "recv", "reduce", "scatter", "send")


class _Memory:
    """The memory that the ranks of the process group share: the group is the process's, so there is one."""

    def __init__(self) -> None:
        self.shared: OneHost | None = None


_memory = _Memory()


@contextlib.contextmanager
def through_memory(rank: int, world_size: int, timeout_s: float) -> Iterator[dist.ProcessGroup | None]:
    """Lets `sum_over_ranks_` go through memory, if the ranks of the process group share a host. A collective.

    Yields:
        A group of the same ranks for sharded tables, which exchanges rows through memory; None on several hosts.
    """

    def gather(value: Any) -> list[Any]:
        values = [value] * world_size
        dist.all_gather_object(values, value)
        return values

    _memory.shared = connect(rank, world_size, timeout_s, gather)
    try:
        if _memory.shared is None:
            yield None
            return
        group = dist.new_group(backend=_BACKEND, timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup), "every rank is in it"
        yield group
    finally:
        if _memory.shared is not None:
            _memory.shared.close()
        _memory.shared = None


def sum_over_ranks_(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a contiguous tensor over the ranks in place, with the same bits on each; returns it. A collective."""
    if dist.get_world_size() == 1:
        return tensor
    assert tensor.is_contiguous()
    if _memory.shared is not None and tensor.device.type == "cpu":
        return _memory.shared.sum_(tensor)
    dist.all_reduce(tensor)
    return tensor


class _Group(dist.ProcessGroup):
    """Does what sharded tables ask of a group in their steps through the shared memory, and the rest as gloo does.

    torch calls a method of a group written in Python by the name that its own C++ has for it.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)  # pyright: ignore[reportCallIssue]  its stubs have another signature only
        self._rank, self._size = rank, size
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        for name in _BY_GLOO:
            setattr(self, name, getattr(self._gloo, name))

    def getBackendName(self) -> str:
        return _BACKEND

    def alltoall_base(
        self, out: torch.Tensor, rows: torch.Tensor, out_sizes: list[int], row_sizes: list[int], _: object = None
    ) -> dist.Work:
        """See `torch.distributed.all_to_all_single`; without sizes every rank gets equally many rows."""
        even = [len(out) // self._size] * self._size
        _shared().exchange(list(out.split(out_sizes or even)), list(rows.split(row_sizes or even)))
        return _done(out)

    def _reduce_scatter_base(
        self, out: torch.Tensor, tensor: torch.Tensor, options: dist.ReduceScatterOptions
    ) -> dist.Work:
        """See `torch.distributed.reduce_scatter_tensor`."""
        assert options.reduceOp == dist.ReduceOp.SUM
        _shared().sum_pieces(out, tensor, self._rank * out.numel())
        return _done(out)

    def reduce_scatter(
        self, out: list[torch.Tensor], parts: list[list[torch.Tensor]], options: dist.ReduceScatterOptions
    ) -> dist.Work:
        """See `torch.distributed.reduce_scatter`: a part for each rank, of any length."""
        assert options.reduceOp == dist.ReduceOp.SUM
        start = sum(part.numel() for part in parts[0][: self._rank])
        _shared().sum_pieces(out[0], torch.cat([part.reshape(-1) for part in parts[0]]), start)
        return _done(out[0])

    def _allgather_base(self, out: torch.Tensor, tensor: torch.Tensor, _: object = None) -> dist.Work:
        """See `torch.distributed.all_gather_into_tensor`."""
        _shared().gather(out, tensor)
        return _done(out)


# Their names from torch 2.13 on.
for _new, _old in (
    ("all_to_all_single", _Group.alltoall_base),
    ("reduce_scatter_single", _Group._reduce_scatter_base),
    ("all_gather_single", _Group._allgather_base),
):
    setattr(_Group, _new, _old)


def _shared() -> OneHost:
    assert _memory.shared is not None, "the group is used outside `through_memory`"
    return _memory.shared


def _done(value: torch.Tensor) -> dist.Work:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(value)
    # Not in its stubs, and what torch's own groups in Python return.
    return c10d._create_work_from_future(future)  # pyright: ignore[reportAttributeAccessIssue]


dist.Backend.register_backend(_BACKEND, _Group, devices=["cpu"])
