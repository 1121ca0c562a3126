"""Tables as TorchRec collections, sharded by DistributedModelParallel on any number of ranks, one included.

A `Tables` is one `EmbeddingBagCollection`. The bag form is used for single ids too: on CPU the backward of the sequence
form is 25 times slower (14.0 against 0.56 ms at 16k ids). Lookups return one row per bag; frozen tables are looked up
under `torch.no_grad()`, because `requires_grad_(False)` does not freeze a fused table.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan
from torchrec.distributed.types import ShardingEnv, ShardingPlan
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from mwuf_dist.config import EmbeddingConfig
from mwuf_dist.embeddings.lookups import KernelLookups, LoopLookups
from mwuf_dist.embeddings.replicated import ReplicatedTables
from mwuf_dist.embeddings.sharded import Fetched, shards_of
from mwuf_dist.embeddings.sharded_lookups import ShardedLookups
from mwuf_dist.embeddings.sharding import Placement, TableSpec, placements, sharding_of, torchrec_collection
from mwuf_dist.runtime import Runtime, generator_seed

# Notes of no use to a run: that a dense kernel ignores caching parameters it was not given, and one on tracing.
logging.getLogger("torchrec.distributed.utils").setLevel(logging.ERROR)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

# Rows drawn from one generator: the draws of a row do not depend on which rank holds it.
_INIT_BLOCK_ROWS = 1 << 16
# Rows computed at once when a table is filled from other tables.
_FILL_CHUNK_ROWS = 1 << 14


@dataclass(frozen=True)
class LocalShard:
    """The part of a table that this rank holds: rows [row, row + n) and columns [column, column + m) of the table."""

    row: int
    column: int
    weight: torch.Tensor


@dataclass(frozen=True)
class FlatParameter:
    """The weights of the tables of one kernel, end to end, so that an optimizer takes them in one stride.

    Attributes:
        weights: flat; its gradient is theirs.
        parts: (first element, shape) of each table's part.
    """

    weights: nn.Parameter
    parts: dict[str, tuple[int, torch.Size]]


class Tables:
    """One sharded collection.

    Args:
        name: of the collection, in checkpoints and messages.
        specs: its tables; a lookup's columns are in this order.
        config: sharding and optimizer.
        runtime: ranks and device.
        trained: False for tables that are filled and then only read: they get no fused optimizer.
        rows_per_step: rows of a rank's part of a batch, which `embedding.sharding = "auto"` goes by.
    """

    def __init__(
        self,
        name: str,
        specs: Sequence[TableSpec],
        config: EmbeddingConfig,
        runtime: Runtime,
        trained: bool = True,
        rows_per_step: int = 0,
    ) -> None:
        self.name = name
        self.specs = {spec.name: spec for spec in specs}
        self._names = list(self.specs)
        self._runtime = runtime
        layout = placements(specs, config, runtime.world_size, trained, rows_per_step)
        self.plan = {table: placement.kind for table, placement in layout.items()}
        self.kernels = {table: "rowwise_adagrad" if p.is_fused else "adam" for table, p in layout.items()}
        self._replicated = None
        if "replicated" in self.plan.values():
            self._replicated = ReplicatedTables(specs, runtime.device)
        else:
            self._shard(specs, config, layout)
        self.is_whole = runtime.world_size == 1 or self._replicated is not None
        self._local = self._local_kernel()
        self.lookups = self._chosen_lookups()

    def _shard(self, specs: Sequence[TableSpec], config: EmbeddingConfig, layout: dict[str, Placement]) -> None:
        """Makes TorchRec's collection of the tables."""
        name, runtime = self.name, self._runtime
        # The loss is divided by the global weight, so gradients are summed over the ranks, not averaged.
        set_gradient_division(False)
        fused = {name for name, placement in layout.items() if placement.is_fused}
        collection = torchrec_collection(specs)
        for table in fused:
            parameter = collection.embedding_bags[table].get_parameter("weight")
            apply_optimizer_in_backward(RowWiseAdagrad, [parameter], {"lr": config.rowwise_adagrad_lr})
        # torchrec types a sharder of a collection and a sharder of any module as unrelated.
        sharder: Any = EmbeddingBagCollectionSharder()
        plan = construct_module_sharding_plan(
            collection,
            {name: sharding_of(placement, runtime.world_size) for name, placement in layout.items()},
            sharder,
            local_size=runtime.ranks_per_host,
            world_size=runtime.world_size,
            device_type=runtime.device.type,
        )
        group = runtime.group_of_tables or dist.group.WORLD
        assert group is not None
        self._module = DistributedModelParallel(
            nn.ModuleDict({name: collection}),
            device=runtime.device,
            plan=ShardingPlan({name: plan}),
            sharders=[sharder],
            env=ShardingEnv.from_process_group(group),
            init_data_parallel=False,
        )
        self._collection = self._module.module.get_submodule(name)

    def __call__(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Returns pooled rows [bags, sum of the tables' widths], tables in the order of `specs`.

        A collective: every rank passes equally many bags (see `Runtime.pad` and `Runtime.distinct`).
        """
        if self._local is not None:
            return self._local(features.values(), features.offsets())
        keyed = self._collection(features).wait()
        if keyed.keys() == self._names:
            return keyed.values()
        return torch.cat([keyed[name] for name in self._names], dim=1)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns rows [n, widths] of every table at the same `ids` [n]. A collective."""
        return self.lookups.rows(ids)

    def rows_to_train(self, ids: torch.Tensor) -> torch.Tensor:
        """Looks up rows [n, width] of the only table for a step that knows their gradient: see `set_gradient`."""
        return self.lookups.rows_to_train(ids)

    def set_gradient(self, ids: torch.Tensor, rows: torch.Tensor, d_rows: torch.Tensor) -> None:
        """Gives the only table the gradient [n, width] of `rows_to_train` of different `ids` [n]. A collective."""
        self.lookups.set_gradient(ids, rows, d_rows)

    def gradients_to_send(self) -> list[Fetched]:
        """Lists what has gradients of other ranks' rows since the last time, where `lookups` keep them."""
        return self.lookups.gradients() if isinstance(self.lookups, ShardedLookups) else []

    def rows_by_table(self, ids: torch.Tensor) -> Sequence[torch.Tensor]:
        """Looks up rows [n, width] of each table at the same `ids` [n], without gradients. A collective."""
        return self.lookups.rows_by_table(ids)

    @property
    def takes_any_number(self) -> bool:
        """Whether ranks may look up different numbers of rows at once."""
        return self.is_whole or isinstance(self.lookups, ShardedLookups)

    def _local_kernel(self) -> nn.Module | None:
        """Returns the kernel that holds all tables, where this rank is the only one and they share a kernel.

        TorchRec's way to it exchanges ids and rows between ranks; with one rank that is 0.3 ms a lookup for nothing.
        """
        if self._replicated is not None:
            return self._replicated.kernel
        if self._runtime.world_size > 1:
            return None
        sharded: Any = self._collection
        kernels = [kernel for lookup in sharded._lookups for kernel in lookup._emb_modules]
        if len(kernels) != 1 or [table.name for table in kernels[0].config.embedding_tables] != self._names:
            return None
        return kernels[0]._emb_module

    @contextlib.contextmanager
    def as_if_shared(self) -> Iterator[None]:
        """Makes a lookup take the way of several ranks, though this one is alone.

        To time what that costs, or for the same bits on any number of ranks: a mean of rows is rounded otherwise there.
        """
        if self._replicated is not None:
            yield
            return
        before = self._local, self.lookups
        self._local, self.lookups = None, self._shared_lookups
        try:
            yield
        finally:
            self._local, self.lookups = before

    @contextlib.contextmanager
    def by_kernel(self) -> Iterator[None]:
        """Makes a lookup take TorchRec's kernel, as on an accelerator."""
        before, self.lookups = self.lookups, self._kernel_lookups()
        try:
            yield
        finally:
            self.lookups = before

    @functools.cached_property
    def _shared_lookups(self) -> KernelLookups | ShardedLookups:
        """How rows are looked up on several ranks: by TorchRec's exchanges on accelerators, and of columns."""
        runtime, specs = self._runtime, list(self.specs.values())
        is_direct = runtime.world_size == 1 or runtime.group_of_tables is not None
        if not runtime.is_compiled or not is_direct or "column_wise" in self.plan.values():
            return self._kernel_lookups()
        shards, num_segments = shards_of(self._collection, specs, runtime)
        return ShardedLookups(shards, specs, num_segments)

    def _kernel_lookups(self) -> KernelLookups:
        return KernelLookups(list(self.specs.values()), self, self._runtime.device)

    def _chosen_lookups(self) -> KernelLookups | LoopLookups | ShardedLookups:
        """Chooses loops where this rank has all tables and no fused kernel trains them, or else other ways."""
        if not self.is_whole:
            return self._shared_lookups
        if self._local is None or not self._runtime.is_compiled or "adam" not in self.kernels.values():
            return self._kernel_lookups()
        weights = self._local.weights
        assert isinstance(weights, nn.Parameter)
        return LoopLookups(weights, list(self.specs.values()))

    @property
    def implementation(self) -> str:
        """Names how rows are looked up: "compiled", "sharded" or "torchrec"."""
        return self.lookups.implementation

    def rows_of(self, table: str, ids: torch.Tensor) -> torch.Tensor:
        """Returns rows [n, width] of one table; the others get empty bags. A collective."""
        lengths = [torch.full((len(ids),), int(name == table)) for name in self._names]
        out = self(KeyedJaggedTensor(self._names, ids.contiguous(), lengths=torch.cat(lengths).to(ids.device)))
        start = sum(self.specs[name].dim for name in self._names[: self._names.index(table)])
        return out[:, start : start + self.specs[table].dim]

    def rows_once(self, *ids: torch.Tensor) -> list[torch.Tensor]:
        """Returns rows [u, width] of the only table, without gradients, and which of them the `ids` [n] have, [n] each.

        A collective.
        """
        return self.lookups.rows_once(*ids)

    def bag_sums(self, *ids: torch.Tensor) -> torch.Tensor:
        """Sums the only table's rows at each of the `ids` [n] to [n, width]. A collective."""
        return self.lookups.bag_sums(*ids)

    def flat_parameters(self) -> list[FlatParameter]:
        """Lists local weights that a torch optimizer trains (fused ones train in their backward), kernel by kernel."""
        if self._replicated is not None:
            return [FlatParameter(self._replicated.weights, self._replicated.parts)]
        found: dict[int, FlatParameter] = {}
        for key, parameter in self._module.named_parameters():
            part: Any = parameter  # torchrec's slice of its kernel's weights
            table = key.split(".")[-2]
            if self.kernels[table] != "adam":
                continue
            # A table that other ranks hold is an empty parameter here, and no slice.
            flat, start = (part._original_tensor, part._start_offset) if part.numel() else (part, 0)
            found.setdefault(id(flat), FlatParameter(flat, {})).parts[table] = start, part.shape
        return list(found.values())

    def shards(self, table: str) -> list[LocalShard]:
        """Gives this rank's parts of a table: views, writing to them writes to the table."""
        if self._replicated is not None:
            return [LocalShard(0, 0, self._replicated.table(table))]
        sharded = self._collection.state_dict()[f"embedding_bags.{table}.weight"]
        return [
            LocalShard(shard.metadata.shard_offsets[0], shard.metadata.shard_offsets[1], shard.tensor)
            for shard in sharded.local_shards()
        ]

    def whole(self, table: str) -> torch.Tensor | None:
        """Returns a table's rows [rows, width] where this rank holds all of them, to be read in place; else None."""
        shards = self.shards(table)
        return shards[0].weight.detach() if self.is_whole and len(shards) == 1 else None

    @torch.no_grad()
    def draw(self, std: float, seed: int, table: str | None = None, from_row: int = 0) -> None:
        """Fills tables (or rows from `from_row` on of one table) with draws from N(0, std^2).

        A row's draws depend on the seed, the table and the row alone, not on the sharding.
        """
        for spec in self.specs.values() if table is None else [self.specs[table]]:
            salt = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:6], "big")
            for shard in self.shards(spec.name):
                for first in range(0, spec.rows, _INIT_BLOCK_ROWS):
                    last = min(first + _INIT_BLOCK_ROWS, spec.rows)
                    begin, end = max(first, shard.row, from_row), min(last, shard.row + len(shard.weight))
                    if begin >= end:
                        continue
                    # Always the whole block: how torch fills a tensor depends on its size.
                    generator = torch.Generator().manual_seed(generator_seed(seed, salt, first))
                    block = torch.empty(last - first, spec.dim).normal_(0, std, generator=generator)
                    columns = slice(shard.column, shard.column + shard.weight.shape[1])
                    values = block[begin - first : end - first, columns]
                    shard.weight[begin - shard.row : end - shard.row] = values.to(shard.weight.device)

    @torch.no_grad()
    def fill(self, table: str, compute: Callable[[torch.Tensor], torch.Tensor], rows: range | None = None) -> None:
        """Writes rows of a table, each rank those that it holds. A collective when `compute` is one.

        Args:
            table: its name.
            compute: from row numbers [n] to their values [n, width]; called equally often and with equally many rows
                on every rank (the first of `rows` stands in where a rank has fewer).
            rows: which rows; all by default.
        """
        chosen = rows if rows is not None else range(self.specs[table].rows)
        if self._replicated is not None:
            self._replicated.fill(table, compute, chosen, _FILL_CHUNK_ROWS, self._runtime)
            return
        device = self._runtime.device
        pieces = [
            (shard, begin, min(begin + _FILL_CHUNK_ROWS, stop))
            for shard in self.shards(table)
            for start, stop in [(max(chosen.start, shard.row), min(chosen.stop, shard.row + len(shard.weight)))]
            for begin in range(start, max(start, stop), _FILL_CHUNK_ROWS)
        ]
        for index in range(self._runtime.max(len(pieces))):
            if index >= len(pieces):
                compute(self._runtime.pad(torch.empty(0, dtype=torch.int64, device=device), chosen.start))
                continue
            shard, begin, end = pieces[index]
            values = compute(self._runtime.pad(torch.arange(begin, end, device=device), chosen.start))[: end - begin]
            columns = slice(shard.column, shard.column + shard.weight.shape[1])
            shard.weight[begin - shard.row : end - shard.row] = values[:, columns]

    @torch.no_grad()
    def mean_row(self, table: str, used: torch.Tensor | None = None) -> torch.Tensor:
        """Averages a table's rows [width] (those where `used` [rows] is true), without gathering the table."""
        spec = self.specs[table]
        total = torch.zeros(spec.dim, dtype=torch.float64, device=self._runtime.device)
        for shard in self.shards(table):
            weight = shard.weight.double()
            if used is not None:
                weight = weight[used[shard.row : shard.row + len(weight)].to(weight.device)]
            total[shard.column : shard.column + weight.shape[1]] += weight.sum(0)
        count = spec.rows if used is None else int(used.sum())
        total = total if self._replicated is not None else self._runtime.sum(total)
        return (total / max(1, count)).float()

    @torch.no_grad()
    def reset_optimizer(self) -> None:
        """Forgets what fused optimizers have accumulated, as if they were made anew."""
        if self._replicated is not None:
            return
        for key, value in self.state().items():
            if key.startswith(f"{self.name}.fused."):
                assert isinstance(value, ShardedTensor)
                for shard in value.local_shards():
                    shard.tensor.zero_()

    def state(self) -> dict[str, object]:
        """Returns tensors by table, sharded or whole, for a checkpoint; loading writes into them in place."""
        if self._replicated is not None:
            return {f"{self.name}.{table}": self._replicated.table(table) for table in self._names}
        state: dict[str, object] = {
            f"{self.name}.{table}": self._collection.state_dict()[f"embedding_bags.{table}.weight"]
            for table in self._names
        }
        fused = self._module.fused_optimizer.state_dict().get("state", {})
        for values in fused.values():
            state |= {f"{self.name}.fused.{key}": value for key, value in values.items()}
        return state

    def like(self, table: str, local: torch.Tensor) -> torch.Tensor | ShardedTensor:
        """Returns a tensor with the table's layout around a tensor of this rank's shape: an optimizer's moment."""
        if self._replicated is not None:
            return local
        sharded = self._collection.state_dict()[f"embedding_bags.{table}.weight"]
        shards = [Shard(local, shard.metadata) for shard in sharded.local_shards()]
        return ShardedTensor._init_from_local_shards_and_global_metadata(shards, sharded.metadata())

    def bytes_per_rank(self) -> int:
        """Returns bytes of weights that this rank holds."""
        return sum(s.weight.numel() * s.weight.element_size() for name in self._names for s in self.shards(name))
