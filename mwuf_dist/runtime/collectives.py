"""Sums and exchanges of rows between ranks: of CPUs by ways of our own, else by torch's own group.

Ranks of one host go through memory that they share (`one_host`), those of several through sockets (`many_hosts`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from mwuf_dist.runtime import many_hosts, one_host
from mwuf_dist.runtime.many_hosts import ManyHosts
from mwuf_dist.runtime.one_host import OneHost

_BACKEND = "mwuf"
_BY_GLOO = ("allgather", "allreduce", "alltoall", "barrier", "broadcast", "gather", "recv", "reduce", "scatter", "send")


class _Way:
    """How the ranks of the process group talk: the group is the process's, so there is one."""

    def __init__(self) -> None:
        self.direct: OneHost | ManyHosts | None = None


_way = _Way()


@contextlib.contextmanager
def directly(
    rank: int, world_size: int, timeout_s: float, master: str, shares_memory: bool = True
) -> Iterator[dist.ProcessGroup | None]:
    """Lets `sum_over_ranks_` go through memory, or sockets between hosts, instead of gloo. A collective.

    Args:
        rank: ours.
        world_size: number of ranks, at least 2.
        timeout_s: how long a rank may keep the others waiting.
        master: address of the main rank.
        shares_memory: False: sockets also where one host has all ranks.

    Yields:
        A group of the same ranks for sharded tables, which exchanges rows in the same way; None where gloo has to do.
    """

    def gather(value: Any) -> list[Any]:
        values = [value] * world_size
        dist.all_gather_object(values, value)
        return values

    _way.direct = one_host.connect(rank, world_size, timeout_s, gather) if shares_memory else None
    if _way.direct is None:
        _way.direct = many_hosts.connect(rank, timeout_s, gather, master)
    try:
        if _way.direct is None:
            yield None
            return
        group = dist.new_group(backend=_BACKEND, timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup), "every rank is in it"
        yield group
    finally:
        if _way.direct is not None:
            _way.direct.close()
        _way.direct = None


def sum_over_ranks_(tensor: torch.Tensor) -> torch.Tensor:
    """Sums a contiguous tensor over the ranks in place, with the same bits on each; returns it. A collective."""
    if dist.get_world_size() == 1:
        return tensor
    assert tensor.is_contiguous()
    if _way.direct is not None and tensor.device.type == "cpu":
        return _way.direct.sum_(tensor)
    dist.all_reduce(tensor)
    return tensor


def exchange_over_ranks(out: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> None:
    """Gives every rank its one of `parts`, and fills `out` with what each has for us. A collective of `directly`."""
    if len(parts) == 1:
        out[0].copy_(parts[0])
        return
    _direct().exchange(out, parts)


def give_over_ranks(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gives every rank its one of `parts` [n]; returns what each has for us, however much.

    A collective of `directly`.
    """
    return list(parts) if len(parts) == 1 else _direct().give(parts)


def gather_on_main(array: np.ndarray) -> list[np.ndarray]:
    """Gives the main rank what every rank has [n, ...], in their order; the others get nothing. A collective."""
    if _way.direct is None:
        found: list[np.ndarray] | None = [array] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(array, found)
        return found or []
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    ours = torch.frombuffer(written.getbuffer(), dtype=torch.uint8)
    given = give_over_ranks([ours, *[ours[:0]] * (dist.get_world_size() - 1)])
    return [np.load(io.BytesIO(one.numpy().tobytes())) for one in given] if dist.get_rank() == 0 else []


class _Group(dist.ProcessGroup):
    """Does what sharded tables ask of a group in their steps directly, and the rest as gloo does.

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
        _direct().exchange(list(out.split(out_sizes or even)), list(rows.split(row_sizes or even)))
        return _done(out)

    def _reduce_scatter_base(
        self, out: torch.Tensor, tensor: torch.Tensor, options: dist.ReduceScatterOptions
    ) -> dist.Work:
        """See `torch.distributed.reduce_scatter_tensor`."""
        assert options.reduceOp == dist.ReduceOp.SUM
        _direct().sum_parts(out, tensor.view(-1).tensor_split(self._size))
        return _done(out)

    def reduce_scatter(
        self, out: list[torch.Tensor], parts: list[list[torch.Tensor]], options: dist.ReduceScatterOptions
    ) -> dist.Work:
        """See `torch.distributed.reduce_scatter`: a part for each rank, of any length."""
        assert options.reduceOp == dist.ReduceOp.SUM
        _direct().sum_parts(out[0], parts[0])
        return _done(out[0])

    def _allgather_base(self, out: torch.Tensor, tensor: torch.Tensor, _: object = None) -> dist.Work:
        """See `torch.distributed.all_gather_into_tensor`."""
        _direct().gather(out, tensor)
        return _done(out)


# Their names from torch 2.13 on.
for _new, _old in (
    ("all_to_all_single", _Group.alltoall_base),
    ("reduce_scatter_single", _Group._reduce_scatter_base),
    ("all_gather_single", _Group._allgather_base),
):
    setattr(_Group, _new, _old)


def _direct() -> OneHost | ManyHosts:
    assert _way.direct is not None, "the group is used outside `directly`"
    return _way.direct


def _done(value: torch.Tensor) -> dist.Work:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(value)
    # Not in its stubs, and what torch's own groups in Python return.
    return c10d._create_work_from_future(future)  # pyright: ignore[reportAttributeAccessIssue]


dist.Backend.register_backend(_BACKEND, _Group, devices=["cpu"])
