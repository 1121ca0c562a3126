"""How much faster is each stage on several threads, and what would it be on more cores than this machine has?

    python -m benchmarks.threads configs/movielens-1m.toml [--busy 1] [--section.key VALUE ...]

Steps of each stage take turns on 1, 2, ... threads, by the clock, on a machine that should do nothing else: the median
counts. "ours" is the rate on most threads, the alternative that on one.

The curve is an ESTIMATE, from a model with three numbers: seconds on n cores = serial + max(shared / n, bytes /
bandwidth), no fewer than a step's largest task. `serial` and `shared` are fitted to one and two threads; `bytes` are
counted from the shapes (what a step reads and writes that no cache near a core keeps), and `bandwidth` is one core's,
measured here: a machine with more cores has more of it. The last rows say what the machine allows: what as many
processes make together, of products and of copies, beside one. With `--busy` other programs take so many cores
meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mwuf_kernels import set_num_threads

from benchmarks import roofline
from benchmarks.contest import Ours, full_batches
from benchmarks.record import Figure, Record, Row, command_line, interleaved, table
from benchmarks.train_step import STAGES, benchmark_config, start_command
from mwuf_dist.config import Config, UserError
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.runtime import start
from mwuf_dist.training.model import Model
from mwuf_dist.training.run import Run, _prepare

SIZES = (2048, 8192)
CORES = (1, 2, 4, 8, 16, 32, 64)
_COPIED_BYTES = 1 << 28
_SPAN = 144  # rows of the largest task (kernels/mwuf_kernels/cpu/rows.h)


def measure(config: Config, sizes: list[int], threads: list[int], num_steps: int, rounds: int) -> list[Row]:
    """A row for each stage and size.

    Raises:
        UserError: the data have fewer rows than a batch.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        prepared = _prepare(config, runtime)
        bandwidth = _bandwidth()
        for size in sizes:
            if size > prepared.num_rows("pretrain"):
                raise UserError(f"{prepared.num_rows('pretrain')} rows in pretrain make no batch of {size}")
            job = Run(config, Path(folder) / str(size), runtime, prepared)
            batches = full_batches(Loader(prepared, ["pretrain"], size, config.seed, runtime))
            ours = Ours(job, lambda batches=batches: next(batches))
            for stage in STAGES:
                step = getattr(ours, stage)()

                def on(num: int, step: Any = step) -> Any:
                    return lambda: (set_num_threads(num), step())

                steps = {str(num): on(num) for num in threads}
                few = max(2, num_steps * 2048 // size)
                interleaved(steps, 3, 1, time.perf_counter)  # warm
                seconds = interleaved(steps, few, rounds, time.perf_counter)
                figures = [Figure.of(f"{num} threads", [size / s for s in seconds[str(num)]]) for num in threads]
                moved = _bytes_per_step(stage, job.model, size)
                more = {"samples_per_s_by_threads": {num: f.p50 for num, f in zip(threads, figures, strict=True)}}
                more |= scaling(size, more["samples_per_s_by_threads"], moved, bandwidth)
                rows.append(Row(f"{stage}, batch {size}", "samples/s", True, figures[-1], figures[0], more=more))
            job.session.recorder.close()
    return rows


def scaling(size: int, rates: dict[int, float], moved_bytes: float, bandwidth: float) -> dict[str, Any]:
    """The model fitted to the rates [samples/s] on 1 and 2 threads, and what it says of more cores."""
    one, two = size / rates[1], size / rates[2]
    serial = min(max(2 * two - one, 0.0), one)
    shared = one - serial
    estimates = {}
    for cores in CORES:
        part = max(shared / cores, shared * min(1.0, _SPAN / size), moved_bytes / bandwidth if cores > 1 else 0.0)
        estimates[cores] = size / (serial + min(part, shared))
    return {
        "serial_s": serial,
        "shared_s": shared,
        "bytes_per_step": moved_bytes,
        "bandwidth_bytes_per_s": bandwidth,
        "estimated_samples_per_s_by_cores": estimates,
    }


def _bandwidth() -> float:
    """Bytes/s that a copy of more than the caches hold reads and writes, on one core of this machine."""
    source, target = torch.ones(_COPIED_BYTES // 4), torch.empty(_COPIED_BYTES // 4)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begin)
    return 2 * _COPIED_BYTES / min(times)


def _bytes_per_step(stage: str, model: Model, size: int) -> float:
    """Bytes that a step reads and writes: of rows, and of parameters with their gradients and moments."""
    dim, widths = model.dim, getattr(model.backbone.config, "hidden", [])
    hidden, part = sum(widths), sum(widths[:1]) + dim + 1
    trained = [model.new_ids] if stage != "pretrain" else [*model.pretrained_tables]
    floats = sum(tables.bytes_per_rank() for tables in trained) / 4
    # Of a parameter: its gradient is cleared, added to and read, both moments and itself are read and written.
    of_tables = 0.0 if stage == "evaluate" else 9 * floats
    per_row = {
        "pretrain": 4 * model.shape.num_fields * dim + 4 * hidden + 4 * dim,
        "meta_train": 2 * part + 6 * dim,
        "warm_up": 2 * part + 3 * dim,
        "evaluate": 2 * part + 1,
    }[stage]
    return 4 * (of_tables + size * per_row)


def _allowed(num: int) -> list[Row]:
    """Rows of what so many processes make together, which nothing that runs on as many threads can beat by much."""
    one, many = roofline.at_once(1), roofline.at_once(num)
    figures = {kind: (Figure.of(f"{num} processes", [many[kind]]), Figure.of("1 process", [one[kind]])) for kind in one}
    return [Row(kind, "1/s", True, *both) for kind, both in figures.items()]


@contextlib.contextmanager
def _busy(num: int) -> Iterator[None]:
    """Lets so many other programs compute without a pause."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.toml")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="1 and 2 must be among them")
    parser.add_argument("--steps", type=int, default=40, help="steps of a turn at batch 2048; fewer of larger ones")
    parser.add_argument("--rounds", type=int, default=7, help="turns; the median counts")
    parser.add_argument("--busy", type=int, default=0, help="programs that take a core each all the while")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options, keys = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    if not {1, 2} <= set(options.threads):
        parser.error("--threads: 1 and 2 must be among them, because the model is fitted to these")
    config = benchmark_config([options.config, *keys], max(options.batch_sizes))
    with _busy(options.busy):
        rows = measure(config, list(options.batch_sizes), sorted(options.threads), options.steps, options.rounds)
        allowed = _allowed(max(options.threads))
    record = Record(
        f"Stages by threads, {config.data.name}, {config.backbone.name}",
        command_line("threads", sys.argv[1:]),
        {"data": config.data.name, "backbone": config.backbone.name, "dim": config.embedding.dim, "busy": options.busy},
        [*rows, *allowed],
        max(options.threads),
    )
    print(table([record]))
    print("\nESTIMATE, thousand samples/s by cores (serial part and bytes of a step, see above):")
    for row in rows:
        curve = "  ".join(f"{n}: {r / 1e3:,.0f}" for n, r in row.more["estimated_samples_per_s_by_cores"].items())
        serial = row.more["serial_s"] / (row.more["serial_s"] + row.more["shared_s"])
        print(f"  {row.name}: serial {serial:.0%}, {row.more['bytes_per_step'] / 1e6:.1f} MB   {curve}")
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    start_command("threads", main)
