"""How many samples/s does each stage make as the batch grows, on a GPU where there is one, and what takes the time?

    python -m benchmarks.batch_sizes configs/movielens-1m.toml
    python -m benchmarks.batch_sizes configs/demo.toml --batch-sizes 512 2048 --runtime.device cpu

Steps of each stage at each size, by the clock on a GPU and by processor time without one. `more` of each row of the
record has the parts: the operators that took most of a step's time in the profiler, on the GPU where there is one, and
their shares of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import Ours, full_batches
from benchmarks.record import Figure, Record, Row, command_line, cpu, processor_clock, table
from benchmarks.train_step import STAGES, benchmark_config, start_command
from mwuf_dist.config import Config, UserError
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training.run import Run, _prepare

SIZES = (8192, 32_768, 131_072, 262_144)
_WARM_STEPS = 3
_PARTS = 8


def measure(config: Config, sizes: Sequence[int], num_steps: int, rounds: int) -> list[Row]:
    """A row for each stage and size.

    Raises:
        UserError: the data have fewer rows than a batch.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        prepared = _prepare(config, runtime)
        for size in sizes:
            if size > prepared.num_rows("pretrain"):
                raise UserError(f"{prepared.num_rows('pretrain')} rows in pretrain make no batch of {size}")
            job = Run(config, Path(folder) / str(size), runtime, prepared)
            histories = job.model.histories(prepared, 0)
            batches = full_batches(Loader(prepared, ["pretrain"], size, config.seed, runtime, histories=histories))
            ours = Ours(job, lambda batches=batches: next(batches))
            for stage in STAGES:
                step = getattr(ours, stage)()
                rows.append(_row(stage, size, step, runtime, num_steps, rounds))
            job.session.recorder.close()
    return rows


def _row(stage: str, size: int, step: Callable[[], object], runtime: Runtime, num_steps: int, rounds: int) -> Row:
    on_gpu = runtime.device.type == "cuda"
    clock, unit = (time.perf_counter, "s") if on_gpu else processor_clock(torch.get_num_threads())
    for _ in range(_WARM_STEPS):
        step()
    rates = []
    for _ in range(rounds):
        _wait(runtime)
        began = clock()
        for _ in range(num_steps):
            step()
        _wait(runtime)
        rates.append(num_steps * size / (clock() - began))
    parts = _parts(step, num_steps, on_gpu)
    return Row(f"{stage}, batch {size}", f"samples/{unit}", True, Figure.of("ours", rates), more={"parts": parts})


def _wait(runtime: Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


def _parts(step: Callable[[], object], num_steps: int, on_gpu: bool) -> dict[str, float]:
    """The operators with the largest shares of all operators' own time, and those shares."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as profiler:
        for _ in range(num_steps):
            step()
    events = profiler.key_averages()
    times = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
    total = sum(times.values())
    largest = sorted(times, key=lambda name: times[name], reverse=True)[:_PARTS]
    return {name: round(times[name] / total, 3) for name in largest}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.toml")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--steps", type=int, default=3, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options, keys = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    config = benchmark_config([options.config, *keys], max(options.batch_sizes), on_cpu=False)
    rows = measure(config, options.batch_sizes, options.steps, options.rounds)
    on_gpu = torch.cuda.is_available() and config.runtime.device != "cpu"
    record = Record(
        f"Stages by batch size, {config.data.name}, {config.backbone.name}",
        command_line("batch_sizes", sys.argv[1:]),
        {"data": config.data.name, "backbone": config.backbone.name, "dim": config.embedding.dim},
        rows,
        torch.get_num_threads(),
        {"kind": "cuda", "name": torch.cuda.get_device_name()} if on_gpu else cpu(),
    )
    print(table([record]))
    for row in rows:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row.more["parts"].items())
        print(f"  {row.name}: {shares}")
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    start_command("batch_sizes", main)
