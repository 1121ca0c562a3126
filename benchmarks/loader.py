"""How fast is the loader alone, from Parquet to ready batches, against a bare pyarrow scan of the same columns?

    python -m benchmarks.loader                 # 16 million rows, batch 2048, one thread
    python -m benchmarks.loader --threads 2

A prepared folder of random rows is made up. One pass reads it with the code of training (`Loader.epoch`): once with the
columns in memory, reading them included, once by windows, as data too large for memory are read, and each in every
order of `pretrain.order` that the loader has. The bare scan reads user, item and label of every row group and does
nothing with them. All take turns in one process, with the files in the page cache; medians. The scan has one thread. On
one thread all is by processor time (rows/CPU s), which other programs slow down less than the clock (rows/s).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.made_up import write_prepared
from benchmarks.record import Figure, Record, Row, command_line, table
from mwuf_dist.data.batches import loader as loader_module
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.data.batches.order import EpochOrder, Order
from mwuf_dist.data.schema import Field, RawDataset
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import SPLITS
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.allocator import keep_freed_memory

GOAL = 0.5  # of the bare scan's rows/s
_COLUMNS = ["user", "item", "label"]
_NUM_USERS, _NUM_ITEMS = 1_000_000, 100_000


def make_data(folder: Path, num_rows: int) -> Prepared:
    """A prepared folder whose `pretrain` has random rows."""
    random = np.random.default_rng(0)
    columns = {
        "user": random.integers(_NUM_USERS, size=num_rows, dtype=np.int32),
        "item": random.integers(_NUM_ITEMS, size=num_rows, dtype=np.int32),
        "label": random.integers(2, size=num_rows, dtype=np.int8),
        "time": np.arange(num_rows),
    }
    users = {"raw_id": np.arange(_NUM_USERS), "user_id": np.arange(1, _NUM_USERS + 1, dtype=np.int32)}
    fields = (Field("user_id", "categorical", "user", _NUM_USERS + 1),)
    items = pa.table({"raw_id": np.arange(_NUM_ITEMS)})
    dataset = RawDataset(pa.table(columns), pa.table(users), items, fields)
    rows = {name: np.arange(num_rows if name == "pretrain" else 1) for name in SPLITS}
    return write_prepared(dataset, _NUM_ITEMS, rows, folder)


def scan(prepared: Prepared) -> int:
    """Reads the columns of every row group; the number of rows."""
    total = 0
    for file in prepared.manifest["splits"]["pretrain"]["files"]:
        with pq.ParquetFile(prepared.path / file["path"], memory_map=True) as parquet:
            for group in range(parquet.num_row_groups):
                total += parquet.read_row_group(group, columns=_COLUMNS, use_threads=False).num_rows
    return total


def load(prepared: Prepared, batch_size: int, order: Order, in_memory: bool, threads: int) -> int:
    """Makes every batch of an epoch; the number of rows."""
    runtime = Runtime(0, 1, torch.device("cpu"), False, threads=threads)
    limit = prepared.num_rows("pretrain") if in_memory else 0
    with mock.patch.object(loader_module, "IN_MEMORY_ROWS", limit):
        loader = Loader(prepared, ["pretrain"], batch_size, 0, runtime, order)
        return sum(batch.num_rows for batch in loader.epoch(0))


def draw(prepared: Prepared, batch_size: int) -> int:
    """Draws the permutations of an epoch and reads nothing; the number of rows."""
    size = prepared.row_group_rows("pretrain")
    starts = range(0, prepared.num_rows("pretrain"), size)
    groups = tuple(min(size, prepared.num_rows("pretrain") - start) for start in starts)
    order = EpochOrder(groups, batch_size, seed=0, epoch=0)
    windows = range(-(-order.num_steps // order.window_steps))
    return sum(len(order.window(lane, index)[1]) for index in windows for lane in range(order.lanes))


def measure(prepared: Prepared, batch_size: int, rounds: int, threads: int) -> list[Row]:
    """One row per order and place of the columns; the bare scan is the limit."""
    passes: dict[str, Callable[[], int]] = {
        "bare scan": lambda: scan(prepared),
        "permutations alone": lambda: draw(prepared, batch_size),
    }
    for place, in_memory in (("memory", True), ("windows", False)):
        for order in get_args(Order):
            passes[f"{place}, {order}"] = lambda o=order, m=in_memory: load(prepared, batch_size, o, m, threads)
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    cpu_s: dict[str, list[float]] = {name: [] for name in passes}
    num_rows = prepared.num_rows("pretrain")
    for _ in range(rounds + 1):  # the first round fills the page cache
        for name, one_pass in passes.items():
            clock, processor = time.perf_counter(), time.process_time()
            assert one_pass() == num_rows, f"{name} has not read every row"
            seconds[name].append(time.perf_counter() - clock)
            cpu_s[name].append(time.process_time() - processor)
    unit, times = ("rows/CPU s", cpu_s) if threads == 1 else ("rows/s", seconds)
    found = {name: [num_rows / value for value in values[1:]] for name, values in times.items()}
    limit = Figure.of("bare scan", found["bare scan"])
    return [
        Row(
            name,
            unit,
            True,
            Figure.of("ours", found[name]),
            limit=limit,
            more={"rows_per_s": round(num_rows / statistics.median(seconds[name][1:]))},
        )
        for name in passes
        if name != "bare scan"
    ]


def main() -> None:
    """Makes the data, runs the passes in turn, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_000_000)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1, help="of the loader")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    keep_freed_memory()  # as a rank of a run does
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(make_data(Path(scratch), options.rows), options.batch_size, options.rounds, options.threads)
    sizes = {"rows": options.rows, "batch_size": options.batch_size}
    command = command_line("loader", sys.argv[1:])
    record = Record("Loader, from Parquet to batches", command, sizes, rows, options.threads)
    print(f"{table([record])}\ngoal: {GOAL:.0%} of the bare scan")
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
