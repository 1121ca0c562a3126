"""Tables that every rank holds whole: their gradients are summed with the dense ones; no ids or rows are exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen
from torch import nn

from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.runtime import Runtime


class ReplicatedTables:
    """The kernel that TorchRec takes for dense tables of one rank, without what TorchRec puts around it.

    Args:
        specs: the tables, all of one pooling.
        device: where they lie.
    """

    def __init__(self, specs: Sequence[TableSpec], device: torch.device) -> None:
        (pooling,) = {spec.pooling for spec in specs}
        self.kernel = DenseTableBatchedEmbeddingBagsCodegen(
            [(spec.rows, spec.dim) for spec in specs],
            pooling_mode=PoolingMode.MEAN if pooling == "mean" else PoolingMode.SUM,
            use_cpu=device.type == "cpu",
        ).to(device)
        weights = self.kernel.weights
        assert isinstance(weights, nn.Parameter)
        self.weights = weights
        with torch.no_grad():
            weights.zero_()
        ends = itertools.accumulate(spec.rows * spec.dim for spec in specs)
        self.parts = {
            spec.name: (end - spec.rows * spec.dim, torch.Size((spec.rows, spec.dim)))
            for spec, end in zip(specs, ends, strict=True)
        }

    def table(self, name: str) -> torch.Tensor:
        """Returns rows [rows, width] of a table: a view, writing to it writes to the table."""
        start, shape = self.parts[name]
        return self.weights.detach()[start : start + shape.numel()].view(shape)

    def fill(
        self,
        name: str,
        compute: Callable[[torch.Tensor], torch.Tensor],
        rows: range,
        chunk_rows: int,
        runtime: Runtime,
    ) -> None:
        """Writes rows of a table: each rank computes a part of them, at most so many at once. See `Tables.fill`."""
        weight, chunk = self.table(name), chunk_rows * runtime.world_size
        for begin in range(rows.start, rows.stop, chunk):
            end = min(begin + chunk, rows.stop)
            each = -(-(end - begin) // runtime.world_size)
            first = min(begin + runtime.rank * each, end)
            last = min(first + each, end)
            ids = torch.full((each,), rows.start, device=runtime.device)
            torch.arange(first, last, out=ids[: last - first])
            block = torch.zeros_like(weight[begin:end])
            block[first - begin : last - begin] = compute(ids)[: last - first]
            weight[begin:end] = runtime.sum(block)
