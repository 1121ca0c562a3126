"""How many seconds does `mwuf warm` need from a file of a million clicks to exported embeddings?

    python -m benchmarks.warm                 # one thread, d = 16, DeepFM (64, 64), 5 passes over each block

A small run on synthetic data is trained first (not timed). The file holds clicks of its new items and of as many items
that it has never seen, popular ones more often (the k-th k^-0.5 times as often as the first), by its users and by some
whom it has never seen. Timed is the whole job: reading, opening the run, the rule, the proof, the export. `rule` is the
part that moves rows; CPU s is processor time, which other programs on the machine slow down less.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.record import Figure, Record, Row, command_line, table
from mwuf_dist.config import Config, build
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.training.item_rule import frozen_items as warm_job

_UNSEEN_SHARE = 0.05  # of the clicks, by users whom the run has never seen


def settings(folder: Path) -> Config:
    """The run: 20,000 users, 8,000 items."""
    return build(
        {
            "data": {
                "prepared_dir": str(folder),
                "old_above": 100,
                "synthetic": {"num_rows": 600_000, "num_users": 20_000, "num_items": 8_000},
            },
            "backbone": {"name": "deepfm"},
            "warm_up": {"epochs": 5, "learning_rate": 3e-3},
            "runtime": {"progress": "off", "threads": 1, "device": "cpu"},
        }
    )


def write_clicks(config: Config, num: int, path: Path) -> int:
    """Writes the file; returns the number of distinct items."""
    prepared, random = prepare(config.data), np.random.default_rng(0)
    known = prepared.entity("item").raw_ids[prepared.num_old_items :]
    items = random.permutation(np.concatenate([known, 10**7 + np.arange(len(known))]))
    weights = np.arange(1, len(items) + 1) ** -0.5
    item = items[random.choice(len(items), num, p=weights / weights.sum())]
    user = random.choice(prepared.entity("user").raw_ids, num)
    user[random.random(num) < _UNSEEN_SHARE] += 10**8
    columns = {
        "user_id": user,
        "item_id": item,
        "label": random.integers(2, size=num),
        "timestamp": np.arange(num) + 10**9,
    }
    pq.write_table(pa.table(columns), path)
    return len(np.unique(item))


def time_job(config: Config, run: Path, clicks: Path, output: Path) -> dict[str, Any]:
    """One job in this process."""
    rule_s = 0.0
    apply = warm_job.warm_rows

    def timed(*arguments: Any) -> Any:
        nonlocal rule_s
        clock = time.perf_counter()
        out = apply(*arguments)
        rule_s += time.perf_counter() - clock
        return out

    warm_job.warm_rows = timed
    with start(config) as runtime:
        clock, processor = time.perf_counter(), time.process_time()
        report = warm(run, clicks, output, runtime)
        seconds, cpu_s = time.perf_counter() - clock, time.process_time() - processor
    warm_job.warm_rows = apply
    return {
        "clicks": report.change.num_new,
        "items": report.num_changed,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "rule_s": rule_s,
        "clicks_per_cpu_s": report.change.num_new / cpu_s,
    }


def main() -> None:
    """Trains the run, times the job, prints a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=1_000_000)
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = settings(folder / "prepared")
        local.train(config, folder / "run")
        write_clicks(config, options.clicks, folder / "clicks.parquet")
        found = time_job(config, folder / "run", folder / "clicks.parquet", folder / "out")
    rate = Figure.of("ours", [found.pop("clicks_per_cpu_s")])
    row = Row("a file of clicks to exported rows", "clicks/CPU s", True, rate, more=found)
    command = command_line("warm", sys.argv[1:])
    record = Record("The daily job", command, {"clicks": options.clicks, "dim": 16}, [row], threads=1)
    print(table([record]))
    print(
        f"{found['clicks']:,} clicks of {found['items']:,} items: {found['seconds']:.1f} s ({found['cpu_s']:.1f} "
        f"CPU s), {found['rule_s']:.1f} s of them the rule"
    )
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
