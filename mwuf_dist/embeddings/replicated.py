"""Tables that every rank holds whole: their gradients are summed with the dense ones; no ids or rows are exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen
from torch import nn

from mwuf_dist.embeddings.sharding import TableSpec


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
