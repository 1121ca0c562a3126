"""`mwuf synthesize NAME`: raw files of any size in the layout of a public data set, with a cold-start problem in them.

The interactions are those of the generated data set (`sources/synthetic.py`), whose model says how users, items and
their fields make a click; `layouts.py` writes its entities in the columns of the public data set. Rows come out sorted
by one ID, as raw logs of this kind lie there, so neither in order of time nor of generation: they are dealt into
buckets of that ID on disk, and the buckets are sorted one after another. Memory: the entities and one bucket, however
many rows there are. A file depends on data set, rows and seed alone, not on the size of buckets or blocks.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv
from tqdm import tqdm

from mwuf_dist.config import SyntheticConfig, UserError
from mwuf_dist.data.locations import new_folder
from mwuf_dist.data.sources import synthetic
from mwuf_dist.data.sources.synthesized import write_mark
from mwuf_dist.data.synthesize import layouts
from mwuf_dist.data.synthesize.layouts import Layout

VERSION = 1  # Raise it when the same options would give other files.
MIN_ROWS = 1_000

BATCH_ROWS = 16 * synthetic.BLOCK_ROWS
BUCKET_ROWS = 1 << 22
_CSV = csv.WriteOptions(include_header=False, quoting_style="none")


def names() -> list[str]:
    """Returns the data sets that can be made."""
    return sorted([*layouts.LAYOUTS, "synthetic"])


def synthesize(name: str, num_rows: int, folder: Path, seed: int = 0, progress: bool = False) -> None:
    """Writes the raw files of a data set; written beside, then renamed.

    Args:
        name: one of `names()`.
        num_rows: interactions. Users, items and values of fields grow with them as in the public data set.
        folder: created; must not exist or be empty.
        seed: another one, other data.
        progress: show a progress bar.

    Raises:
        UserError: an option is out of range, or the folder holds something or cannot be written.
    """
    if name not in names():
        raise UserError(f"no data set {name!r} to synthesize: there are {', '.join(names())}")
    if num_rows < MIN_ROWS or num_rows >= 1 << 32:
        raise UserError(f"--rows {num_rows}: must be between {MIN_ROWS} and {(1 << 32) - 1}")
    if not 0 <= seed < 1 << 63:
        raise UserError(f"--seed {seed}: must be between 0 and 2^63 - 1")
    with tqdm(total=num_rows, desc="synthesize", unit="row", unit_scale=True, disable=not progress) as bar:
        if name == "synthetic":
            # As many rows per user and item as in the demo.
            small = SyntheticConfig()
            users, items = (round(one / small.num_rows * num_rows) for one in (small.num_users, small.num_items))
            options = dataclasses.replace(small, num_rows=num_rows, num_users=users, num_items=items, seed=seed)
            synthetic.write_raw(options, folder, written=bar.update)
        else:
            with new_folder(folder) as beside:
                _write(layouts.LAYOUTS[name], num_rows, beside, seed, bar.update)
                write_mark(beside, {"name": name, "version": VERSION, "rows": num_rows, "seed": seed})


def _write(layout: Layout, num_rows: int, folder: Path, seed: int, written: Callable[[int], object]) -> None:
    config = layout.options(num_rows, seed)
    world = synthetic.make_world(config)
    for name, (header, table) in layout.side_tables(world, seed).items():
        with (folder / name).open("wb") as file:
            file.write(header.encode())
            csv.write_csv(table, file, _CSV)
    header = layout.interactions_header
    with tempfile.TemporaryDirectory(dir=folder) as scratch, (folder / layout.interactions_file).open("wb") as file:
        file.write(header.encode())
        for rows in _sorted_rows(layout, config, world, Path(scratch)):
            for start in range(0, len(rows), BATCH_ROWS):
                block = rows[start : start + BATCH_ROWS]
                csv.write_csv(layout.interactions(block), file, _CSV)
                written(len(block))


def _sorted_rows(
    layout: Layout, config: SyntheticConfig, world: synthetic.World, scratch: Path
) -> Iterator[np.ndarray]:
    """Sorts all rows, as `layouts.ROW`, by the layout's ID and, within one, in an order that means nothing."""
    num_ids = config.num_items if layout.sorted_by == "item" else config.num_users
    num_buckets = -(-config.num_rows // BUCKET_ROWS)
    paths = [scratch / f"{bucket}" for bucket in range(num_buckets)]
    files = [path.open("wb") for path in paths]
    try:
        first = 0
        for batch in synthetic.generate_batches(config, BATCH_ROWS, world=world):
            rows = _rows_of(batch, first, layout.span_s)
            first += len(rows)
            bucket = rows[layout.sorted_by].astype(np.int64) * num_buckets // num_ids
            order = np.argsort(bucket, kind="stable")
            ends = np.cumsum(np.bincount(bucket, minlength=num_buckets))
            for file, part in zip(files, np.split(rows[order], ends[:-1]), strict=True):
                part.tofile(file)
    finally:
        for file in files:
            file.close()
    for path in paths:
        rows = np.fromfile(path, dtype=layouts.ROW)
        path.unlink()
        # No two rows have the same key: multiplying by an odd number permutes 32-bit integers.
        within = (rows["row"].astype(np.uint64) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
        yield rows[np.argsort((rows[layout.sorted_by].astype(np.uint64) << np.uint64(32)) | within)]


def _rows_of(batch: pa.RecordBatch, first: int, span_s: int) -> np.ndarray:
    rows = np.empty(batch.num_rows, dtype=layouts.ROW)
    for name in ("user", "item", "label"):
        rows[name] = batch[name].to_numpy()
    since = batch["time"].to_numpy() - synthetic.START_TIME_S
    rows["second"] = since * span_s // (synthetic.SPAN_S + synthetic.JITTER_S)
    rows["row"] = np.arange(first, first + len(rows), dtype=np.int64)
    return rows
