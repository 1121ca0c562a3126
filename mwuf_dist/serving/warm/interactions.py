"""What the daily job reads: new interactions in any order and any number of files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mwuf_dist.config import Config, UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import ids as raw_ids
from mwuf_dist.data.readers import labels, log_files, log_tables, times
from mwuf_dist.serving.served_log import LOG_COLUMNS, NewRows, find, id_keys


@dataclass(frozen=True)
class Columns:
    """Names of the columns of the new interactions; an empty one is the config's (`data.logs`)."""

    user: str = ""
    item: str = ""
    time: str = ""
    label: str = ""


def log_options(config: Config, columns: Columns) -> LogsConfig:
    """How the files are read: as the run's own logs where it has such, with columns that may be named anew.

    Raises:
        UserError: there is no column of times.
    """
    options = config.data.logs if config.data.name == "logs" else LogsConfig(label="label")
    named = {name: value for name, value in dataclasses.asdict(columns).items() if value}
    if "label" in named:
        named |= {"label_from": "", "label_is": (), "negatives_per_positive": 0}
    options = dataclasses.replace(options, **named)
    if not options.time:
        raise UserError("the run's data has no times; name the column of the times with --time")
    return options


def read_interactions(path: Path, options: LogsConfig, user_ids: pa.Array, is_logs: bool) -> NewRows:
    """Reads the interactions of a file or folder.

    Args:
        path: of Parquet or CSV.
        options: of `log_options`.
        user_ids: raw IDs of the run's users [U].
        is_logs: whether the run is of own logs, so that times are read as there; else they are whole numbers.

    Raises:
        UserError: a column is absent, a value cannot be read (with its place), or a row is not complete.
    """
    label_column = options.label or options.label_from  # empty: positives only
    wanted = list(dict.fromkeys(filter(None, [options.user, options.item, options.time, label_column])))
    table = log_tables.read(
        log_files.find_files(str(path), "--interactions"), wanted, options, "interactions", [options.time]
    )
    item, item_ids, _ = raw_ids.encode_ids(table.columns[options.item])
    raw_user, own_ids, _ = raw_ids.encode_ids(table.columns[options.user])
    label = labels.read_labels(table, options, whole=False)
    read = times.read_times(table, options, None if is_logs else times.WHOLE)
    time, has_time = read.values, read.has
    for name, bad in {
        options.user: raw_user < 0,
        options.item: item < 0,
        options.time: ~has_time,
        label_column: label == labels.MISSING,
    }.items():
        if bad.any() and not options.drop_incomplete:
            raise UserError(
                f"{table.place(int(np.argmax(bad)))}: {name} is missing ({int(bad.sum())} of {len(bad)} rows); fill it "
                "in or remove the rows"
            )
    kept = (raw_user >= 0) & (item >= 0) & has_time & (label != labels.MISSING)
    known = find(own_ids, user_ids)
    log = {
        "item": item[kept],
        "user": known[raw_user[kept]],
        "user_key": id_keys(own_ids)[raw_user[kept]],
        "time": time[kept],
        "label": label[kept],
    }
    columns = {name: log[name].astype(kind, copy=False) for name, kind in LOG_COLUMNS.items()}
    return NewRows(item_ids, columns, int((known < 0).sum()))
