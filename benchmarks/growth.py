"""Does a step stay as fast, and memory as small, when the ID tables or the training rows grow?

    python -m benchmarks.growth          # 10 thousand to 50 million rows a table, 1 to 100 million to train on
    python -m benchmarks.growth --tables 10_000 1_000_000 --rows 1_000_000

The whole step of `pretrain` (DeepFM, d = 16, fused row-wise Adagrad, batch 2048) by processor time, each size in a
process of its own. First the user-ID and the item-ID table grow together: once with every ID equally likely, which is
the hardest for the memory, and once with IDs as frequent as Zipf's law has them, as clicks are. Then the training rows
grow, with the loader that hands them out; steps are timed at the beginning, in the middle and at the end of the epoch.
"slope" is of log(time of a step) over log(size): 0 where nothing grows. Peak memory is resident, of the whole process;
what is left of it above the tables with their optimizer's state should be a constant.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.export import _memory_bytes
from benchmarks.made_up import write_prepared
from benchmarks.record import Figure, Record, Row, command_line, table
from mwuf_dist.config import Config, build
from mwuf_dist.data import shards
from mwuf_dist.data.batches.loader import Batch, Loader
from mwuf_dist.data.schema import Field, RawDataset
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import SPLITS
from mwuf_dist.methods import build_method
from mwuf_dist.runtime import start
from mwuf_dist.training.model import Model
from mwuf_dist.training.stages.pretrain import Pretrain

TABLE_SIZES = (10_000, 1_000_000, 10_000_000, 50_000_000)
ROW_COUNTS = (1_000_000, 10_000_000, 100_000_000)
GOAL = 1.5  # times as long at 10 million rows a table as at 10 thousand
BATCH_SIZE = 2048
_FIXED_TABLE, _FIXED_ROWS = 100_000, 1_000_000  # what stands still while the other grows
_WARM_STEPS, _TURN_STEPS = 20, 40


def make_data(folder: Path, table_size: int, num_rows: int, ids: str) -> Prepared:
    """A prepared folder of random rows: as many users as items, all old."""
    random = np.random.default_rng(0)
    columns = {name: _draw(random, table_size, num_rows, ids) for name in ("user", "item")}
    columns |= {"label": random.integers(2, size=num_rows, dtype=np.int8), "time": np.arange(num_rows)}
    values = {"category": 1_000}
    fields = [Field("user_id", "categorical", "user", table_size + 1)]
    fields += [Field(name, "categorical", "item", size) for name, size in values.items()]
    ids_of = np.arange(table_size, dtype=np.int32)
    items = {name: random.integers(1, size, table_size, dtype=np.int32) for name, size in values.items()}
    users = pa.table({"raw_id": ids_of, "user_id": ids_of + 1})
    dataset = RawDataset(pa.table(columns), users, pa.table({"raw_id": ids_of} | items), tuple(fields))
    rows = {name: np.arange(num_rows if name == "pretrain" else 1) for name in SPLITS}
    return write_prepared(dataset, table_size, rows, folder)


def _draw(random: np.random.Generator, size: int, num: int, ids: str) -> np.ndarray:
    if ids == "uniform":
        return random.integers(size, size=num, dtype=np.int32)
    # Zipf's law with exponent 1, by inversion of its continuous form: P(rank <= r) = log(1 + r) / log(1 + size).
    rank = np.expm1(random.random(num) * math.log1p(size)).astype(np.int64).clip(max=size - 1)
    # An odd factor scatters the frequent ones over the table, as IDs in the order of their first appearance are not.
    return (rank * 2_654_435_761 % size).astype(np.int32)


def settings() -> Config:
    """Every table with fused row-wise Adagrad."""
    return build(
        {
            "embedding": {"dim": 16, "optimizer": "rowwise_adagrad"},
            "backbone": {"name": "deepfm", "batch_norm": False},
            "pretrain": {"batch_size": BATCH_SIZE},
            "runtime": {"progress": "off", "threads": 1, "device": "cpu"},
        }
    )


def time_steps(folder: Path, turns: int) -> dict[str, Any]:
    """Steps of `pretrain` in this process, in so many turns spread over an epoch."""
    config = settings()
    with start(config) as runtime:
        prepared = Prepared(folder, json.loads((folder / shards.MANIFEST).read_text()))
        model = Model(config, prepared, runtime)
        method = build_method(config.method, model.dim, model.shape.num_item_fields * model.dim)
        stage = Pretrain(config, model, method)
        model.backbone.train()
        clock = time.perf_counter()
        loader = Loader(prepared, ["pretrain"], BATCH_SIZE, 0, runtime)
        batches = _spread(loader, _WARM_STEPS + turns * _TURN_STEPS)
        for batch in itertools.islice(batches, _WARM_STEPS):
            stage.step(batch)
        first_s = time.perf_counter() - clock
        step_us = []
        for _ in range(turns):
            processor = time.process_time()
            for batch in itertools.islice(batches, _TURN_STEPS):
                stage.step(batch)
            step_us.append((time.process_time() - processor) / _TURN_STEPS * 1e6)
        weights = sum(tables.bytes_per_rank() for tables in (*model.pretrained_tables, model.new_ids))
        states = sum(s.rows * 4 for t in (*model.pretrained_tables, model.new_ids) for s in t.specs.values())
    return {
        "step_us": step_us,
        "first_steps_s": round(first_s, 2),
        "table_bytes": weights + states,
        "peak_bytes": _memory_bytes("VmHWM"),
    }


def _spread(loader: Loader, num_steps: int) -> Iterator[Batch]:
    """Batches of the beginning, the middle and the end of an epoch."""
    needed = -(-num_steps // 3)
    for place in (0.0, 0.5, 1.0):
        first = int(place * max(0, loader.num_steps - needed - 1))
        epochs = (loader.epoch(epoch, 0 if epoch else first) for epoch in itertools.count())
        yield from itertools.islice(itertools.chain.from_iterable(epochs), needed)


def measure(name: str, table_size: int, num_rows: int, ids: str, options: argparse.Namespace) -> Row:
    """One size, data and steps each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        found: dict[str, Any] = {}
        for part in ("make", "time"):
            arguments = ["--part", part, folder, str(table_size), str(num_rows), ids, str(options.turns)]
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.growth", *arguments]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
    rate = Figure.of("ours", [BATCH_SIZE / value * 1e6 for value in found.pop("step_us")])
    sizes = {"rows_per_table": table_size, "training_rows": num_rows, "ids": ids}
    row = Row(name, "samples/CPU s", True, rate, config=sizes, more=found)
    print(f"{name}, {sizes}: {rate.p50:,.0f} samples/CPU s, {found['peak_bytes'] / 1e9:.2f} GB at the peak", flush=True)
    return row


def slope(rows: list[Row], key: str) -> float:
    """Slope of log(time of a step) over log(size), by least squares."""
    sizes = [math.log(row.config[key]) for row in rows]
    times = [-math.log(row.ours.p50) for row in rows if row.ours is not None]
    return float(np.polyfit(sizes, times, 1)[0])


def summary(rows: list[Row]) -> dict[str, Any]:
    """Slopes, how much longer a step takes, and what is left of the memory above the tables, over two sizes or more."""
    found: dict[str, Any] = {}
    for name, key in (
        ("tables grow, uniform", "rows_per_table"),
        ("tables grow, zipf", "rows_per_table"),
        ("rows grow", "training_rows"),
    ):
        chosen = [row for row in rows if row.name == name]
        if len(chosen) < 2:
            continue
        rates = {row.config[key]: row.ours.p50 for row in chosen if row.ours is not None}
        up_to = max(size for size in rates if name == "rows grow" or size <= 10_000_000)
        above = [row.more["peak_bytes"] - row.more["table_bytes"] for row in chosen]
        found[name] = {
            "slope": round(slope(chosen, key), 3),
            "times_as_long": round(rates[min(rates)] / rates[up_to], 2),
            "from": min(rates),
            "to": up_to,
            "peak_above_tables_mb": [round(value / 1e6) for value in above],
        }
    return found


def main() -> None:
    """Measures every size, prints the table and the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, nargs="*", default=TABLE_SIZES, help="rows in each ID table")
    parser.add_argument("--rows", type=int, nargs="*", default=ROW_COUNTS, help="training rows")
    parser.add_argument("--turns", type=int, default=12, help="turns of 40 steps at each size; the median counts")
    parser.add_argument("--scratch", type=Path, help="where files may be written; by default the temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--part", nargs=6, help=argparse.SUPPRESS)  # a process of its own
    options = parser.parse_args()
    if options.part:
        part, folder, table_size, num_rows, ids, turns = options.part
        if part == "make":
            make_data(Path(folder), int(table_size), int(num_rows), ids)
            print("{}")
        else:
            print(json.dumps(time_steps(Path(folder), int(turns))))
        return
    torch.set_num_threads(1)
    rows = [
        measure(f"tables grow, {ids}", size, _FIXED_ROWS, ids, options)
        for ids in ("uniform", "zipf")
        for size in options.tables
    ]
    rows += [measure("rows grow", _FIXED_TABLE, count, "zipf", options) for count in options.rows]
    found = summary(rows)
    command = command_line("growth", sys.argv[1:])
    about = {"backbone": "deepfm", "dim": 16, "batch_size": BATCH_SIZE, "optimizer": "rowwise_adagrad"}
    record = Record("Growth of a step of pretrain", command, about | {"growth": found}, rows, threads=1)
    print(table([record]))
    for name, line in found.items():
        print(
            f"{name}: {line['times_as_long']} times as long from {line['from']:,} to {line['to']:,}, slope "
            f"{line['slope']}, MB at the peak above the tables: {line['peak_above_tables_mb']}"
        )
    print(f"goal: {GOAL} times at 10 million rows a table")
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
