"""`mwuf plan`: the estimate as text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mwuf_dist.config import Config, UserError
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.planning.devices import DEVICES, Device, Network, this_cpu
from mwuf_dist.planning.estimate import Counts, Estimate, Size, count, estimate, fits, sizes
from mwuf_dist.runtime import start
from mwuf_dist.training.run import Run

_GB = 1e9
_NETWORK = Network()  # what the device's hosts have


def plan(
    config: Config, world_size: int, device: str, rows: float, users: float, items: float, network: Network = _NETWORK
) -> str:
    """Writes what `mwuf plan` prints.

    Args:
        config: of the run that is planned; its data are prepared, and its model does two steps here.
        world_size: number of ranks.
        device: a name of `DEVICES`, or `cpu` for this machine's.
        rows: rows of `pretrain`; 0 takes the data's.
        users: number of users; 0 lets them grow in proportion to the rows.
        items: number of items, old and new; likewise.
        network: what joins the hosts.

    Raises:
        UserError: the plan cannot be made.
    """
    if world_size < 1 or min(rows, users, items) < 0:
        raise UserError("--world-size must be at least 1, and --rows, --users and --items not negative")
    counts, size = counted(config, world_size, rows, users, items)
    measured = this_cpu(world_size, network.ranks_per_host) if device == "cpu" else DEVICES[device]
    found = measured.joined_by(network)
    return "\n".join(_lines(config, counts, size, found, estimate(config, counts, size, found)))


def counted(
    config: Config, world_size: int, rows: float = 0, users: float = 0, items: float = 0
) -> tuple[Counts, Size]:
    """Counts a step of the model on one rank of this machine."""
    here = replace(config, runtime=replace(config.runtime, device="cpu", progress="off", threads=1))
    prepared = prepare(here.data)
    with tempfile.TemporaryDirectory() as folder, start(here) as runtime:
        job = Run(here, Path(folder), runtime, prepared)
        counts = count(here, prepared, runtime, job.method, job.model)
        job.session.recorder.close()
    return counts, sizes(counts, prepared, world_size, rows, users, items)


def _lines(config: Config, counts: Counts, size: Size, device: Device, found: Estimate) -> Iterator[str]:
    yield (
        f"pretrain on {size.world_size} x {device.name}: {size.num_rows:,} rows, {size.num_users:,} users, "
        f"{size.num_items:,} items, batch {config.pretrain.batch_size:,}. Every figure below is an estimate."
    )
    yield "\nsharding plan"
    for collection, tables in found.specs.items():
        for spec in tables:
            placement = found.plan[collection][spec.name]
            where = f"rank {placement.rank}" if placement.kind == "table_wise" else "all ranks"
            optimizer = "rowwise_adagrad" if placement.is_fused else "adam"
            name = f"{collection}.{spec.name}"
            yield f"  {name:<28}{spec.rows:>16,} x {spec.dim:<5}{placement.kind:<12}{where:<11}{optimizer}"
    yield "\nmemory of the fullest rank, GB (beside what a process with torch and its libraries takes)"
    yield from _table({name: value / _GB for name, value in found.memory.items()}, "{:>14.3f}")
    yield f"  {'all, of ' + format(device.memory_bytes / _GB, '.0f'):<44}{found.memory_bytes / _GB:>14.3f}"
    yield "\nsent by the busiest rank in a step, MB"
    yield from _table({name: value / 1e6 for name, value in found.wire.items()}, "{:>14.3f}")
    yield "\ntime of a step, ms"
    yield from _table({name: value * 1e3 for name, value in found.seconds.items()}, "{:>14.3f}")
    batch = config.pretrain.batch_size
    epoch_s = size.num_rows / batch * found.step_s
    yield f"  {'step, when nothing overlaps':<44}{found.step_s * 1e3:>14.3f}"
    yield f"  {batch / found.step_s:,.0f} rows/s, {epoch_s / 3600:,.2f} h an epoch"
    yield from _assumptions(counts, size, device)
    yield from _warnings(config, size, device, found)


def _table(values: dict[str, float], form: str) -> Iterator[str]:
    return (f"  {name:<44}{form.format(value)}" for name, value in values.items())


def _assumptions(counts: Counts, size: Size, device: Device) -> Iterator[str]:
    network = "links of one host"
    if size.world_size > device.per_host:
        speed = f"{device.network_bytes_per_s * 8 / _GB:.4g} Gbit/s a rank, {device.delay_s * 1e3:.3g} ms one way"
        network = f"network of hosts with {device.per_host} ({speed})"
    yield "\nassumptions"
    yield f"  {device.name}: {device.source}"
    yield (
        f"  {device.flops_per_s / 1e12:.3g} TFLOP/s, {device.memory_bytes_per_s / _GB:.4g} GB/s of memory, "
        f"{network}, all at their full rate"
    )
    timed = f"steps timed here, {device.crowding:.2f} times as long where ranks share a host"
    operators = timed if device.is_here else f"{counts.num_ops} operators of {device.op_s * 1e6:.1f} us"
    yield (
        f"  {operators}, collectives of {device.latency_s * 1e6:.0f} us; "
        f"per row {counts.flops_per_row:,.0f} FLOP and {counts.kept_bytes_per_row:,.0f} bytes kept, counted in a step"
    )
    yield "  users and items grow with the rows unless --users and --items say otherwise; other fields do not"


def _warnings(config: Config, size: Size, device: Device, found: Estimate) -> Iterator[str]:
    if not fits(list(found.memory.values()), device):
        largest = max(found.memory, key=lambda name: found.memory[name])
        yield (
            f"\nwarning: {found.memory_bytes / _GB:.1f} GB do not fit on {device.name} with "
            f"{device.memory_bytes / _GB:.0f} GB; most is {largest}: take more ranks, a smaller embedding.dim, or "
            "embedding.optimizer = 'rowwise_adagrad'"
        )
    if config.pretrain.batch_size < 64 * size.world_size:
        yield (
            f"\nwarning: {size.world_size} ranks have {config.pretrain.batch_size / size.world_size:.0f} rows of a "
            "batch each: take a larger pretrain.batch_size"
        )
