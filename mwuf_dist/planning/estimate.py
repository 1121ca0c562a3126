"""What stage `pretrain` takes of each rank: an estimate from the model's own counts and a device's figures.

Operators, products and what autograd keeps are counted in one real step of the configured model over some rows, on
the CPU, and scaled to a rank's rows. Tables and their traffic follow from the sharding plan that a run would use. For
ranks on this machine's CPU no figure of a data sheet is needed: steps of two sizes are timed, with lookups taking the
way that they take on several ranks where there are to be several, and what one rank cannot show (an exchange with
another process) is timed between two.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mwuf_kernels import has_library, without_library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mwuf_dist.backbones.layers import GlobalBatchNorm
from mwuf_dist.config import Config
from mwuf_dist.data.batches.loader import IN_MEMORY_ROWS
from mwuf_dist.data.batches.order import WINDOW_ROWS
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.sharding import Placement, TableSpec, placements
from mwuf_dist.methods import Method
from mwuf_dist.planning.devices import Device
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.one_host import goes_with_rows
from mwuf_dist.training.implementations import AutogradTrained, change_of
from mwuf_dist.training.model import Model
from mwuf_dist.training.stages.pretrain import Pretrain

# Rows of the step that is counted.
_COUNTED_ROWS = 1024
# Steps that are timed: at most so many rows, and a quarter of them; so many each, after some to warm up.
_TIMED_ROWS = 4096
_TIMED_STEPS, _WARM_STEPS = 15, 3
_FLOAT = 4  # bytes
_ID = 8
_ROW_BYTES = 9  # user, item, label of an interaction
# Sent by TorchRec's lookup of a collection: how much will be sent, lengths, ids, rows, and the rows' gradients.
_COLLECTIVES_OF_A_LOOKUP = 5
# Sent by ranks of CPUs, which look up in all collections at once: rows, and their gradients with ids of the next step
# and, if that is short, what else is summed.
_COLLECTIVES_OF_LOOKUPS = 2
# Moments of the global batch, and what their gradient needs.
_COLLECTIVES_OF_A_BATCH_NORM = 2
# Code that torch, TorchRec and fbgemm load in the first step: fitted to what `benchmarks.plan` measured on a CPU.
_FIRST_STEP_BYTES = 60e6
# The dense Adam of a table: its gradient is set to zero, added to, read; weight and two moments are read and written.
_ADAM_PASSES = 10
# An activation is written, read in the backward, and its gradient is written and read.
_ACTIVATION_PASSES = 4


@dataclass(frozen=True)
class StepTimes:
    """Steps of one rank timed here: seconds of a step without rows, seconds per row; the loader's part included."""

    fixed_s: float
    row_s: float


@dataclass(frozen=True)
class Counts:
    """A step of the configured model: operators; per row, floating-point operations and bytes kept for the backward.

    `times` are of steps here, by themselves and, under `shared_times`, with lookups as they are on several ranks.
    """

    num_ops: int
    flops_per_row: float
    kept_bytes_per_row: float
    dense_bytes: int
    side_bytes: int
    num_batch_norms: int
    tables: dict[str, list[TableSpec]]
    num_rows: int
    num_users: int
    times: StepTimes
    shared_times: StepTimes


@dataclass(frozen=True)
class Size:
    """Holds what the run is planned for: ranks, rows of `pretrain`, users, items."""

    world_size: int
    num_rows: int
    num_users: int
    num_items: int


class _CountOps(TorchDispatchMode):
    num_ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_ops += 1
        return func(*args, **(kwargs or {}))


def count(config: Config, prepared: Prepared, runtime: Runtime, method: Method, model: Model) -> Counts:
    """Does one step of `pretrain` and counts.

    Args:
        config: of the run.
        prepared: its data.
        runtime: one rank on the CPU.
        method: of the run.
        model: of the run; trained by a step.
    """
    assert runtime.world_size == 1
    rows = min(_COUNTED_ROWS, config.pretrain.batch_size)
    stage = Pretrain(replace(config, pretrain=replace(config.pretrain, schedule="constant")), model, method)
    model.backbone.train()
    loader = model.pretrain_rows(prepared, config.pretrain.order, rows, config.seed)
    batch = next(loader.epoch(0))
    times = _step_times(config, prepared, stage)
    with contextlib.ExitStack() as ways:
        for tables in model.pretrained_tables:
            ways.enter_context(tables.as_if_shared())
        shared_times = _step_times(config, prepared, stage, as_if_shared=True)
    # From here on as an accelerator does it.
    stage.trained = AutogradTrained(model, change_of(method))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with contextlib.ExitStack() as ways:
        for tables in model.pretrained_tables:
            ways.enter_context(tables.by_kernel())
        # Of the loops that are compiled for a CPU nothing can be counted.
        with without_library(), FlopCounterMode(display=False) as flops, _CountOps() as ops, hooks:
            stage.step(batch)
    stores = (model.users, model.items)
    return Counts(
        ops.num_ops,
        flops.get_total_flops() / len(batch.user),
        sum(kept.values()) / len(batch.user),
        sum(p.numel() for p in model.dense_parameters()) * _FLOAT,
        sum(store.num_bytes for store in stores),
        sum(isinstance(module, GlobalBatchNorm) for module in model.backbone.modules()),
        {t.name: list(t.specs.values()) for t in (*model.pretrained_tables, model.new_ids)},
        prepared.num_rows("pretrain"),
        prepared.num_users,
        times,
        shared_times,
    )


def _step_times(config: Config, prepared: Prepared, stage: Pretrain, as_if_shared: bool = False) -> StepTimes:
    """Times steps of two sizes on one thread, with new rows for each, as in a run.

    Args:
        config: of the run.
        prepared: its data.
        stage: that is timed; it is trained.
        as_if_shared: like a rank of several, whose batch has padding.
    """
    settings = config.pretrain
    most = min(_TIMED_ROWS, settings.batch_size)
    seconds = {}
    for rows in (most, max(1, most // 4)):
        loader = stage.model.pretrain_rows(prepared, settings.order, rows, config.seed)
        batches = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())
        times = []
        for _ in range(_WARM_STEPS + _TIMED_STEPS):
            batch = next(batches)
            clock = time.process_time()  # other programs on the machine do not lengthen it
            stage.step(replace(batch, is_full=False) if as_if_shared else batch)
            times.append(time.process_time() - clock)
        seconds[rows] = statistics.median(times[_WARM_STEPS:])
    (more, long_s), (less, short_s) = seconds.items()
    row_s = max(0.0, (long_s - short_s) / max(1, more - less))
    return StepTimes(max(0.0, long_s - more * row_s), row_s)


@dataclass(frozen=True)
class Estimate:
    """Of the rank that has most: bytes by what they hold, bytes sent per step, seconds of a step by what takes them."""

    plan: dict[str, dict[str, Placement]]
    specs: dict[str, list[TableSpec]]
    memory: dict[str, float]
    wire: dict[str, float]
    seconds: dict[str, float]

    @property
    def memory_bytes(self) -> float:
        """All together, beside what a process with torch needs anyway."""
        return sum(self.memory.values())

    @property
    def step_s(self) -> float:
        """Of a step, when nothing overlaps."""
        return sum(self.seconds.values())


def estimate(config: Config, counts: Counts, size: Size, device: Device) -> Estimate:
    """Returns the plan of tables, and what it comes to on a device."""
    (new,) = counts.tables["new"]
    growth = size.num_items / new.rows
    specs = {name: [_resized(name, spec, size, growth) for spec in tables] for name, tables in counts.tables.items()}
    world, batch = size.world_size, config.pretrain.batch_size
    rows_of = {name: config.meta_train.batch_size if name == "new" else batch for name in specs}
    plan = {
        name: placements(tables, config.embedding, world, rows_per_step=rows_of[name] // world)
        for name, tables in specs.items()
    }
    rows = -(-batch // world)
    weights, optimizer, dense_tables = _tables(specs, plan, world)
    scale = size.num_users / counts.num_users
    held_rows = size.num_rows if size.num_rows <= IN_MEMORY_ROWS else 0
    window = min(size.num_rows, WINDOW_ROWS) / world
    memory = {
        "tables": weights,
        "gradients and optimizer state of tables": optimizer,
        "dense weights, gradients, moments": 4 * counts.dense_bytes,
        "activations": 2 * rows * counts.kept_bytes_per_row,
        "attributes of users and items": counts.side_bytes * max(1.0, scale),
        "code loaded in the first step": _FIRST_STEP_BYTES,
        "interactions read": _ROW_BYTES * (2 * held_rows + 2 * window),
    }
    if device.is_here and weights + optimizer >= config.checkpoint.background_from_mb * 1e6:
        memory["copies, while a save is written"] = weights + optimizer
    sharded = [name for name in ("user", "item", "old") if not _is_replicated(plan[name])]
    summed = counts.dense_bytes + sum(
        _FLOAT * spec.rows * spec.dim for name in ("user", "item", "old") if name not in sharded for spec in specs[name]
    )
    # As `Tables` chooses.
    by_column = any(placed.kind == "column_wise" for name in sharded for placed in plan[name].values())
    asks_for_rows = device.is_here and has_library() and not by_column
    exchange = _wire_of_distinct if asks_for_rows else _wire
    wire = exchange({name: specs[name] for name in sharded}, plan, world, batch)
    wire["gradients that every rank has"] = 2 * (world - 1) / world * summed
    lookups = len(sharded) * _COLLECTIVES_OF_A_LOOKUP
    if asks_for_rows and sharded:
        lookups = _COLLECTIVES_OF_LOOKUPS
    # Of dense gradients, in messages of its own.
    sums = 0 if asks_for_rows and sharded and goes_with_rows(summed, world) else 1
    collectives = lookups + counts.num_batch_norms * _COLLECTIVES_OF_A_BATCH_NORM + sums
    # The tables that the timed steps moved, all on one rank; a rank of the plan may hold more, or fewer.
    timed_plan = {name: placements(tables, config.embedding, 1) for name, tables in counts.tables.items()}
    timed_tables = _tables(counts.tables, timed_plan, 1)[2]
    times = counts.shared_times if sharded and world > 1 else counts.times
    seconds = _work(counts, times, device, rows, dense_tables - timed_tables, dense_tables)
    seconds |= seconds_of_exchanges(sum(wire.values()), collectives, device, world)
    return Estimate(plan, specs, memory, wire, seconds)


def seconds_of_exchanges(num_bytes: float, num_exchanges: float, device: Device, world_size: int) -> dict[str, float]:
    """Returns what exchanges take by what takes it: bytes that a rank sends, and how many exchanges there are."""
    if world_size == 1:
        return {"wire": 0.0, "collectives": 0.0}
    if world_size <= device.per_host:
        return {"wire": num_bytes / device.link_bytes_per_s, "collectives": num_exchanges * device.latency_s}
    return {
        "wire": num_bytes / device.network_bytes_per_s,
        "collectives": num_exchanges * device.latency_s,
        "delay of the network": num_exchanges * device.delay_s,
    }


def _work(
    counts: Counts, times: StepTimes, device: Device, rows: int, more_tables: float, dense_tables: float
) -> dict[str, float]:
    """Returns seconds of what a rank does in a step beside sending.

    Args:
        counts: of a step.
        times: of steps here that take the way of the plan.
        device: that it is for.
        rows: of this rank.
        more_tables: bytes of weights that Adam moves beyond those of the timed steps.
        dense_tables: bytes of weights that Adam moves.
    """
    if device.is_here:
        more_s = _ADAM_PASSES * more_tables / device.memory_bytes_per_s
        return {
            "whatever the rows, as timed here": device.crowding * max(0.0, times.fixed_s + more_s),
            "rows, as timed here": device.crowding * rows * times.row_s,
        }
    return {
        "operators": counts.num_ops * device.op_s,
        "products": rows * counts.flops_per_row / device.flops_per_s,
        "activations": _ACTIVATION_PASSES * rows * counts.kept_bytes_per_row / device.memory_bytes_per_s,
        "optimizer of tables": _ADAM_PASSES * dense_tables / device.memory_bytes_per_s,
    }


def _is_replicated(plan: dict[str, Placement]) -> bool:
    return {placement.kind for placement in plan.values()} == {"replicated"}


def _resized(collection: str, spec: TableSpec, size: Size, growth: float) -> TableSpec:
    """Returns tables of IDs grow with users and items; the values of other fields do not."""
    if spec.name == "user_id":
        return replace(spec, rows=size.num_users + 1)
    return replace(spec, rows=round(spec.rows * growth)) if collection in ("old", "new") else spec


def _tables(
    specs: dict[str, list[TableSpec]], plan: dict[str, dict[str, Placement]], world_size: int
) -> tuple[float, float, float]:
    """Counts of the fullest rank bytes of weights, of gradients and optimizer state, and of weights that Adam moves."""
    weights, optimizer, dense = ([0.0] * world_size for _ in range(3))
    for collection, tables in specs.items():
        for spec in tables:
            placement = plan[collection][spec.name]
            everywhere = placement.kind != "table_wise"
            held = spec.rows * spec.dim * _FLOAT / (world_size if everywhere and placement.kind != "replicated" else 1)
            for rank in range(world_size) if everywhere else [placement.rank]:
                weights[rank] += held
                if placement.is_fused:
                    optimizer[rank] += held / spec.dim
                elif collection != "new":  # trained in later stages, when the others are frozen
                    optimizer[rank] += 3 * held
                    dense[rank] += held
    fullest = max(range(world_size), key=lambda rank: weights[rank] + optimizer[rank])
    return weights[fullest], optimizer[fullest], max(dense)


def _wire(
    specs: dict[str, list[TableSpec]], plan: dict[str, dict[str, Placement]], world_size: int, batch: int
) -> dict[str, float]:
    """Gives bytes that the busiest rank sends per step.

    Ids of its rows, and rows or partial sums and their gradients.
    """
    others = (world_size - 1) / world_size
    ids, rows = 0.0, [0.0] * world_size
    for collection, tables in specs.items():
        for spec in tables:
            placement = plan[collection][spec.name]
            ids += batch / world_size * _ID * others * (world_size if placement.kind == "column_wise" else 1)
            width = spec.dim / (world_size if placement.kind == "column_wise" else 1)
            for rank in [placement.rank] if placement.kind == "table_wise" else range(world_size):
                # Of a table by rows every rank makes a partial sum for each row of the global batch.
                rows[rank] += batch * width * _FLOAT * others
    return {"ids": ids, "embedding rows": max(rows), "gradients of rows": max(rows)}


def _wire_of_distinct(
    specs: dict[str, list[TableSpec]], plan: dict[str, dict[str, Placement]], world_size: int, batch: int
) -> dict[str, float]:
    """Gives what `_wire` does where a rank sends each row that another asks for once: at most all of a table."""
    ids, rows, gradients = 0.0, [0.0] * world_size, 0.0
    for collection, tables in specs.items():
        for spec in tables:
            placement = plan[collection][spec.name]
            asked = min(batch / world_size, spec.rows) * (world_size - 1) / world_size  # of others by each, on average
            ids += asked * _ID
            gradients += asked * spec.dim * _FLOAT
            holders = [placement.rank] if placement.kind == "table_wise" else range(world_size)
            for rank in holders:
                rows[rank] += asked * spec.dim * _FLOAT * world_size / len(holders)
    return {"ids": ids, "embedding rows": max(rows), "gradients of rows": gradients}


def sizes(counts: Counts, prepared: Prepared, world_size: int, rows: float, users: float, items: float) -> Size:
    """Sizes the plan: what is not given (0) is that of the data, users and items in proportion to the rows."""
    scale = rows / counts.num_rows if rows else 1.0
    return Size(
        world_size,
        int(rows) or counts.num_rows,
        int(users) or round(prepared.num_users * scale),
        int(items) or round(prepared.num_items * scale),
    )


def fits(tables: Sequence[float], device: Device) -> bool:
    """Says whether so many bytes fit, with a tenth kept free for what a framework and its libraries take."""
    return sum(tables) <= 0.9 * device.memory_bytes
