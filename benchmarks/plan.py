"""Is what `mwuf plan` estimates near what a run takes? Memory and step time of `pretrain` on this CPU.

    python -m benchmarks.plan configs/movielens-1m.toml            # 1 and 2 ranks

The estimate is made first, then the ranks run steps of `pretrain`, one thread each; in turns, and medians of the
rounds are compared. "memory" is what a rank's process grew by between its start (with torch and torchrec imported) and
its peak, of the rank that grew most; the step is the median of rank 0's in a round, of one rank by processor time, of
several by the clock, as they wait for each other. The ratio is measured over estimated. On a machine that does other
things, ranks that wait for each other many times a step take several times as long: measure on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.export import _forget_peak, _memory_bytes
from benchmarks.record import Figure, Record, Row, command_line, table
from mwuf_dist.config import Config, load_config
from mwuf_dist.data.batches.loader import Batch, Batches
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.planning.devices import this_cpu
from mwuf_dist.planning.estimate import estimate
from mwuf_dist.planning.report import counted
from mwuf_dist.runtime import start
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.pretrain import Pretrain

_WARM_STEPS = 5


def _batches(loader: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def train_steps(config: Config, num_steps: int) -> dict[str, Any]:
    """Steps of `pretrain` on this rank: seconds of one, and bytes that the process grew by on the fullest rank."""
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        prepared = prepare(config.data)
        _forget_peak()
        before = _memory_bytes("VmRSS")
        job = Run(config, Path(folder), runtime, prepared)
        stage = Pretrain(config, job.model, job.method)
        job.model.backbone.train()
        loader = job.model.pretrain_rows(prepared, config.pretrain.order, config.pretrain.batch_size, config.seed)
        batches = _batches(loader)
        clock = time.process_time if runtime.world_size == 1 else time.perf_counter
        seconds = []
        for _ in range(_WARM_STEPS + num_steps):
            begin = clock()
            stage.step(next(batches))
            seconds.append(clock() - begin)
        grown = runtime.max(_memory_bytes("VmHWM") - before)
        job.session.recorder.close()
    return {"step_s": statistics.median(seconds[_WARM_STEPS:]), "memory_bytes": grown}


def compare(path: Path, world_size: int, num_steps: int) -> dict[str, Any]:
    """Estimates, then measures in processes of their own."""
    config = _config(path)
    counts, size = counted(config, world_size)
    found = estimate(config, counts, size, this_cpu(world_size))
    one = [sys.executable]
    many = [*one, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    command = [*(many if world_size > 1 else one), "-m", "benchmarks.plan", str(path), "--measure", str(num_steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return {
        "estimated_step_s": found.step_s,
        "measured_step_s": measured["step_s"],
        "estimated_bytes": found.memory_bytes,
        "measured_bytes": measured["memory_bytes"],
    }


def _config(path: Path) -> Config:
    no_saves = {"every_s": 0.0, "background_from_mb": 1e9}
    return load_config(path, {"checkpoint": no_saves, "runtime": {"progress": "off", "device": "cpu"}})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/demo.toml"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)  # steps: a rank
    options = parser.parse_args()
    if options.measure:
        record = train_steps(_config(options.config), options.measure)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(record), flush=True)
        return
    found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in options.ranks}
    for _ in range(options.rounds):
        for ranks, rounds in found.items():
            rounds.append(compare(options.config, ranks, options.steps))
    rows = [row for ranks, rounds in found.items() for row in rows_of(ranks, rounds)]
    command = command_line("plan", sys.argv[1:])
    record = Record(
        "Estimates of mwuf plan (ours), and what was measured (the alternative)",
        command,
        {"steps": options.steps, "rounds": options.rounds},
        rows,
        threads=1,
    )
    print(table([record]))
    if options.output:
        record.write(options.output)


def rows_of(ranks: int, rounds: list[dict[str, Any]]) -> list[Row]:
    """Step time and memory of one number of ranks: the estimates beside what was measured."""
    return [
        Row(
            name,
            unit,
            False,
            Figure.of("estimated", [found[f"estimated_{what}"] * scale for found in rounds]),
            Figure.of("measured", [found[f"measured_{what}"] * scale for found in rounds]),
            config={"ranks": ranks},
        )
        for name, unit, what, scale in (("step", "ms", "step_s", 1e3), ("memory", "MB", "bytes", 1e-6))
    ]


if __name__ == "__main__":
    main()
