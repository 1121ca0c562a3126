"""What a run's own data hold beyond its warm sets, brought in by the daily job before the first export.

A run is evaluated on later rows of its new items and leaves items with fewer than 3K rows out, so that its export has
neither. A server wants both. The rows go through `mwuf warm`: what the run has seen is known there and counts once.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.config import Config
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import log_files, log_tables
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.run_files import open_prepared, read_run
from mwuf_dist.serving.warm.job import WarmReport, warm
from mwuf_dist.serving.writers import TableFormat


def catch_up(
    folder: Path,
    output: Path,
    runtime: Runtime,
    kind: TableFormat = "parquet",
    context: bool = False,
    prepared: Path | None = None,
) -> WarmReport:
    """Writes the run that has seen all of its data, where the daily job goes on.

    Of own logs the files are read again, and bring items with fewer than 3K rows too, with the fields that they have
    there. Of other data the set `test` is brought in, all that the prepared data hold.

    Args:
        folder: of a finished run.
        output: see `warm`.
        runtime: see `warm`.
        kind: see `warm`.
        context: see `warm`.
        prepared: see `load_run`.

    Raises:
        UserError: the logs are not where they were, or `output` holds something else.
    """
    config, results, _ = read_run(folder)
    if config.data.name == "logs":
        logs = config.data.logs
        items, note = _table_of_items(logs)
        report = warm(folder, Path(logs.interactions), output, runtime, items, None, kind, context, prepared)
        return dataclasses.replace(report, notes=(*report.notes, *note))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "test.parquet"
        pq.write_table(_rows_of_test(open_prepared(folder, config, results, prepared)), path)
        return warm(folder, path, output, runtime, None, None, kind, context, prepared)


def what_is_left_out(config: Config, prepared: Prepared) -> str:
    """Says what an export without a catch-up lacks."""
    fewest = 3 * config.data.warm_rows
    return (
        f"note: {prepared.num_rows('test'):,} later rows of the new items (set test) and the items with fewer than "
        f"{fewest} rows are not in it: --catch-up DIR brings in what the run's own data hold"
    )


def _rows_of_test(prepared: Prepared) -> pa.Table:
    rows = prepared.columns("test", ("user", "item", "label", "time"))
    ids = {side: prepared.raw_ids(side).take(pa.array(rows[side])) for side in ("user", "item")}
    columns = {"user_id": ids["user"], "item_id": ids["item"]}
    return pa.table(columns | {"label": rows["label"].astype(np.int64), "timestamp": rows["time"]})


def _table_of_items(logs: LogsConfig) -> tuple[Path | None, tuple[str, ...]]:
    """Returns the files that have all fields of the items, and what to say where none has."""
    wanted = {field.column or field.name for field in logs.fields if field.side == "item"}
    if not wanted:
        return None, ()
    tables = (
        (logs.items, "data.logs.items", logs.of_table("item")),
        (logs.interactions, "data.logs.interactions", dataclasses.replace(logs, header=())),
    )
    for named, what, how in tables:
        if named and wanted <= set(log_tables.column_names(_files(named, what, logs)[0], how)):
            return Path(named), ()
    return None, ("no file has all fields of the items: those with fewer than 3K rows have unknown fields",)


def _files(named: str, what: str, logs: LogsConfig) -> tuple[Path, ...]:
    return log_files.without_tables(log_files.find_files(named, what), logs.users, logs.items)
