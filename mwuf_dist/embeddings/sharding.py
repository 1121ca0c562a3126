"""Which rank holds which part of a table, and by which kernel: the sharding plan, which needs no device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.sharding_plan import column_wise, row_wise, table_wise

from mwuf_dist.config import EmbeddingConfig, UserError

# `auto` replicates a collection of at most so many rows beyond those that a rank looks up in a step: an exchange of
# ids, rows and gradients takes as long as summing, and stepping on, the gradients of some 16 thousand rows more.
_REPLICATED_ROWS = 1 << 14
# Of another collection it shards a table over all ranks from so many rows on.
_ROW_WISE_FROM = 1 << 14
# Tables that are only read cost no exchange where every rank holds them: `auto` replicates them up to so many bytes.
_REPLICATED_FROZEN_BYTES = 1 << 28


@dataclass(frozen=True)
class TableSpec:
    """One table: its name (also the feature's), number of rows, width, and pooling of a bag of ids."""

    name: str
    rows: int
    dim: int
    pooling: str = "sum"


def _is_fused(spec: TableSpec, config: EmbeddingConfig) -> bool:
    return config.optimizer == "rowwise_adagrad" or (config.optimizer == "auto" and spec.rows > config.fused_above_rows)


def _without_columns(sharding: str) -> str:
    # Tables of frozen parts have widths of their own, which nobody chose to be shared out by columns.
    return "row_wise" if sharding == "column_wise" else sharding


@dataclass(frozen=True)
class Placement:
    """How a table is laid over the ranks: `kind` of sharding, the rank that holds a `table_wise` one, its kernel.

    A `replicated` one is held whole by every rank.
    """

    kind: str
    rank: int
    is_fused: bool


def placements(
    specs: Sequence[TableSpec],
    config: EmbeddingConfig,
    world_size: int,
    trained: bool = True,
    rows_per_step: int = 0,
) -> dict[str, Placement]:
    """Gives the sharding plan of a collection; needs no device. TorchRec's planner offers no row-wise sharding on CPU.

    Args:
        specs: the tables.
        config: sharding and optimizer.
        world_size: number of ranks.
        trained: False for tables that are filled and then only read.
        rows_per_step: rows of a rank's part of a batch.

    Raises:
        UserError: the width of a table cannot be shared out by columns, or a table that trains in its own backward is
            to be replicated.
    """
    if world_size > 1 and _is_replicated(specs, config, trained, rows_per_step):
        return {spec.name: Placement("replicated", 0, False) for spec in specs}
    sharding = config.sharding if trained else _without_columns(config.sharding)
    load = [0] * world_size
    out: dict[str, Placement] = {}
    for spec in sorted(specs, key=lambda s: -s.rows * s.dim):
        kind = sharding
        if kind == "auto":
            kind = "row_wise" if world_size > 1 and spec.rows >= _ROW_WISE_FROM else "table_wise"
        if kind == "column_wise" and spec.dim % (4 * world_size):
            raise UserError(
                f"embedding.sharding = 'column_wise': table {spec.name} is {spec.dim} wide, which {world_size} ranks "
                "cannot share in columns that are multiples of 4: take a width that is a multiple of "
                f"{4 * world_size}, or row_wise"
            )
        rank = 0
        if kind == "row_wise" and _leaves_a_rank_empty(spec.rows, world_size):
            kind = "table_wise"
        if world_size == 1 or kind == "table_wise":
            kind, rank = "table_wise", load.index(min(load))
            load[rank] += spec.rows * spec.dim
        out[spec.name] = Placement(kind, rank, trained and _is_fused(spec, config))
    return out


def _leaves_a_rank_empty(rows: int, world_size: int) -> bool:
    """Says whether TorchRec, which gives every rank as many rows as the first, has none for the last.

    With such a table as its last, fbgemm's row-wise Adagrad for CPUs reads a size from behind the end of its list.
    """
    return -(-rows // world_size) * (world_size - 1) >= rows


def _is_replicated(specs: Sequence[TableSpec], config: EmbeddingConfig, trained: bool, rows_per_step: int) -> bool:
    """Says whether every rank holds a collection whole."""
    fused = [spec.name for spec in specs if trained and _is_fused(spec, config)]
    if config.sharding == "replicated":
        if fused:
            raise UserError(
                f"embedding.sharding = 'replicated': table {fused[0]} is trained by rowwise_adagrad, in the backward "
                "of the rank that holds it: take embedding.optimizer = 'adam', or embedding.sharding = 'auto'"
            )
        return True
    if config.sharding != "auto" or fused or len({spec.pooling for spec in specs}) != 1:
        return False
    if not trained:
        return sum(spec.rows * spec.dim for spec in specs) * 4 <= _REPLICATED_FROZEN_BYTES
    return sum(spec.rows for spec in specs) <= rows_per_step + _REPLICATED_ROWS


def sharding_of(placement: Placement, world_size: int) -> Callable:
    """Says a placement in TorchRec's words."""
    kernel = (EmbeddingComputeKernel.FUSED if placement.is_fused else EmbeddingComputeKernel.DENSE).value
    if placement.kind == "table_wise":
        return table_wise(rank=placement.rank, compute_kernel=kernel)
    if placement.kind == "column_wise":
        return column_wise(ranks=list(range(world_size)), compute_kernel=kernel)
    return row_wise(compute_kernel=kernel)


def torchrec_collection(specs: Sequence[TableSpec]) -> EmbeddingBagCollection:
    """Describes tables to TorchRec, as a collection without memory."""
    with _WithoutDraws():
        return EmbeddingBagCollection(device=torch.device("meta"), tables=[_torchrec_config(spec) for spec in specs])


class _WithoutDraws(TorchFunctionMode):
    """Makes `normal_` do nothing: on the meta device it fills nothing, and imports torch's compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


def _torchrec_config(spec: TableSpec) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=spec.name,
        embedding_dim=spec.dim,
        num_embeddings=spec.rows,
        feature_names=[spec.name],
        pooling=PoolingType.MEAN if spec.pooling == "mean" else PoolingType.SUM,
        # The sharded module starts at zero; `Tables.draw` or `Tables.fill` gives the first values.
        init_fn=nn.init.zeros_,
    )
