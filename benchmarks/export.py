"""How many items a second does `mwuf export` write, and in how much memory?

    python -m benchmarks.export                 # 10 million items, d = 16, all three formats

A prepared folder with so many new items is made up (three item fields, one row per item in each warm set), a model of
random weights stands for the trained one, and the very code of `mwuf export` writes every item: lookups of the cold
rows and of the fields, mean users, bulk_warm, files. Each format runs in a process of its own, so that its peak memory
is its own: "before" is what the process held before the first item was written (the model's tables, the users of each
item), "more" what writing added to it at its peak. items/s counts reading the users of each item ("state") too;
items/CPU s is the same by processor time of all threads together, which other programs on the machine slow down less:
with a core to itself the command reaches it by the clock, and more with several. "load" is how many programs wanted a
core in the last minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.made_up import write_prepared
from benchmarks.record import Figure, Record, Row, command_line, table
from mwuf_dist.config import Config, build, config_hash
from mwuf_dist.data.manifest import read_manifest
from mwuf_dist.data.schema import Field, RawDataset
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import build_method
from mwuf_dist.runtime import start
from mwuf_dist.serving.export.chunks import num_threads
from mwuf_dist.serving.export.export import write_items
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.writers import writer_of
from mwuf_dist.training.model import Model

FORMATS = ("parquet", "safetensors", "npy")
GOAL_ITEMS_PER_S = 1e6
_NUM_USERS = 100_000
_NUM_OLD = 1_000
_FIELD_SIZES = {"category": 1_000, "brand": 50_000, "shop": 100_000}


def make_data(folder: Path, num_items: int) -> None:
    """A prepared folder of random interactions."""
    random = np.random.default_rng(0)
    # As in a split, where rows are in the order of time.
    new = np.arange(_NUM_OLD, _NUM_OLD + num_items, dtype=np.int32)
    warm = np.concatenate([random.permutation(new) for _ in range(3)])
    item = np.concatenate([np.arange(_NUM_OLD, dtype=np.int32), warm, warm[:1]])
    columns = {
        "user": random.integers(_NUM_USERS, size=len(item), dtype=np.int32),
        "item": item,
        "label": random.integers(2, size=len(item), dtype=np.int8),
        "time": np.arange(len(item)),
    }
    total = _NUM_OLD + num_items
    items = {name: random.integers(1, size, total, dtype=np.int32) for name, size in _FIELD_SIZES.items()}
    users = {"raw_id": np.arange(_NUM_USERS), "user_id": np.arange(1, _NUM_USERS + 1, dtype=np.int32)}
    fields = [Field("user_id", "categorical", "user", _NUM_USERS + 1)]
    fields += [Field(name, "categorical", "item", size) for name, size in _FIELD_SIZES.items()]
    item_table = pa.table({"raw_id": np.arange(total) + 10**9} | items)
    dataset = RawDataset(pa.table(columns), pa.table(users), item_table, tuple(fields))
    ends = np.cumsum([_NUM_OLD, num_items, num_items, num_items, 1])
    names = ("pretrain", "warm_a", "warm_b", "warm_c", "test")
    rows = {name: np.arange(start, end) for name, start, end in zip(names, [0, *ends], ends, strict=False)}
    # No backbone here looks at histories.
    write_prepared(dataset, _NUM_OLD, rows, folder)


def time_export(data: Path, kind: Any, output: Path) -> dict[str, Any]:
    """One export in this process."""
    config: Config = build({"embedding": {"dim": 16}, "method": {"name": "mwuf"}})
    manifest = read_manifest(data)
    assert manifest is not None
    with start(config) as runtime:
        prepared = Prepared(data, manifest)
        model = Model(config, prepared, runtime)
        method = build_method(config.method, model.dim, model.shape.num_item_fields * model.dim)
        for parameter in method.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        model.new_ids.draw(0.01, 0)
        run = FinishedRun(output, config, {"config_hash": config_hash(config)}, prepared, model, method)
        clock, processor = time.perf_counter(), time.process_time()
        run.load_state()
        state_s = time.perf_counter() - clock
        _forget_peak()
        before = _memory_bytes("VmRSS")
        num_items = write_items(run, run.served_items(old_items=False), writer_of(kind), output)
        seconds, cpu_s = time.perf_counter() - clock, time.process_time() - processor
    return {
        "format": kind,
        "items": num_items,
        "state_s": state_s,
        "write_s": seconds - state_s,
        "items_per_s": num_items / seconds,
        "items_per_cpu_s": num_items / cpu_s,
        "load": os.getloadavg()[0],
        "file_bytes": sum(path.stat().st_size for path in output.iterdir()),
        "before_bytes": before,
        "peak_bytes": _memory_bytes("VmHWM"),
    }


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from here


def _memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Makes the data, runs every format, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # data, format, output: a process of its own
    options = parser.parse_args()
    if options.one:
        data, kind, output = options.one
        print(json.dumps(time_export(Path(data), kind, Path(output))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        make_data(data, options.items)
        for kind in options.formats:
            output = Path(scratch) / kind
            output.mkdir()
            command = [sys.executable, "-m", "benchmarks.export", "--one", str(data), kind, str(output)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(row_of(json.loads(done.stdout.splitlines()[-1])))
    command = command_line("export", sys.argv[1:])
    record = Record(
        "Export of warm embeddings", command, {"items": options.items, "dim": 16}, rows, threads=num_threads()
    )
    print(table([record]))
    print("format          items/s   state s   write s   file MB   before MB   peak MB more   load")
    for row in rows:
        more = row.more["peak_bytes"] - row.more["before_bytes"]
        print(
            f"{row.name:<12} {row.more['items_per_s']:>10,.0f} {row.more['state_s']:>9.2f} "
            f"{row.more['write_s']:>9.2f} {row.more['file_bytes'] / 1e6:>9,.0f} "
            f"{row.more['before_bytes'] / 1e6:>11,.0f} {more / 1e6:>14,.0f} {row.more['load']:>6.1f}"
        )
    print(f"goal: {GOAL_ITEMS_PER_S:,.0f} items/s")
    if options.output:
        record.write(options.output)


def row_of(measured: dict[str, Any]) -> Row:
    """One format's row, of what its process printed."""
    rate = Figure.of("ours", [measured.pop("items_per_cpu_s")])
    return Row(measured.pop("format"), "items/CPU s", True, rate, more=measured)


if __name__ == "__main__":
    main()
