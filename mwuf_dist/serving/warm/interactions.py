"""What the daily job reads: new interactions in any order and any number of files, and fields of items never seen.

Two rows are the same interaction if they agree in user, item, time and label (whatever file they stand in). The order
of an item's interactions is by time, then by a hash of the user's raw ID, then by label: rows of several files have no
common place in a file, and an order that any of them had would make the result depend on how they were cut.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import Config, UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import encode, labels, log_tables

_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
LOG_COLUMNS = {"item": np.int32, "user": np.int32, "user_key": np.uint64, "time": np.int64, "label": np.int8}

Log = dict[str, np.ndarray]


@dataclass(frozen=True)
class Columns:
    """Names of the columns of the new interactions; an empty one is the config's (`data.logs`)."""

    user: str = ""
    item: str = ""
    time: str = ""
    label: str = ""


@dataclass(frozen=True)
class NewRows:
    """New interactions as they stand in the files, IDs made plain.

    Attributes:
        item_ids: distinct raw IDs, ascending [I'].
        log: columns `LOG_COLUMNS`; `item` is a place in `item_ids`, `user` the index of a user, -1 of one never seen.
        num_unseen_users: number of distinct users whom the run has never seen.
    """

    item_ids: pa.Array
    log: Log
    num_unseen_users: int

    @property
    def num_rows(self) -> int:
        """Rows of the files."""
        return len(self.log["item"])


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
        log_tables.find_files(str(path), "--interactions"), wanted, options, "interactions", [options.time]
    )
    item, item_ids = encode.encode_ids(table.columns[options.item])
    raw_user, own_ids = encode.encode_ids(table.columns[options.user])
    label = labels.read_labels(table, options, whole=False)
    time, has_time = labels.read_times(table, options, is_whole=not is_logs)
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


def find(ids: pa.Array, known: pa.Array) -> np.ndarray:
    """Place of each of `ids` [n] among known ones, -1 where it is none of them; int32 [n]."""
    if ids.type != known.type:
        ids, known = ids.cast(pa.string()), known.cast(pa.string())
    return pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy(zero_copy_only=False).astype(np.int32)


def id_keys(ids: pa.Array) -> np.ndarray:
    """64-bit hashes of raw IDs [n], uint64: of a number the same whether it was read as one or as text."""
    if pa.types.is_integer(ids.type):
        return mixed(ids.cast(pa.int64()).to_numpy().view(np.uint64))
    text = ids.cast(pa.string())
    number = pc.match_substring_regex(text, _INTEGER).to_numpy(zero_copy_only=False)
    keys = np.empty(len(ids), dtype=np.uint64)
    keys[number] = mixed(text.filter(pa.array(number)).cast(pa.int64()).to_numpy().view(np.uint64))
    hashes = [
        hashlib.blake2b(one.encode(), digest_size=8).digest() for one in text.filter(pa.array(~number)).to_pylist()
    ]
    keys[~number] = np.frombuffer(b"".join(hashes), dtype="<u8")
    return keys


def mixed(values: np.ndarray) -> np.ndarray:
    """Hashes [n] of uint64 [n]: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16), a bijection."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def in_order(log: Log) -> np.ndarray:
    """The rows of a log by (item, time, user, label), the first of equal ones only; int64 [n']."""
    order = np.lexsort([log["label"], log["user_key"], log["time"], log["item"]])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for name in ("item", "time", "user_key", "label"):
        values = log[name][order]
        same &= values[1:] == values[:-1]
    return order[np.concatenate([np.ones(min(len(order), 1), dtype=bool), ~same])]


def is_known(log: Log, known: Log) -> np.ndarray:
    """Which rows of a log [n] stand in another, bool; both name items alike."""
    if not len(known["item"]) or not len(log["item"]):
        return np.zeros(len(log["item"]), dtype=bool)
    both = {name: np.concatenate([known[name], log[name]]) for name in ("item", "time", "user_key", "label")}
    order = np.lexsort([both["label"], both["user_key"], both["time"], both["item"]])  # stable: known ones come first
    same = np.ones(len(order) - 1, dtype=bool)
    for values in both.values():
        same &= values[order][1:] == values[order][:-1]
    run = np.cumsum(np.concatenate([[True], ~same])) - 1  # which group of equal rows
    first_known = np.zeros(run[-1] + 1, dtype=bool)
    first_known[run[order < len(known["item"])]] = True
    out = np.empty(len(order), dtype=bool)
    out[order] = first_known[run]
    return out[len(known["item"]) :]


def empty_log() -> Log:
    """A log without rows."""
    return {name: np.empty(0, dtype=kind) for name, kind in LOG_COLUMNS.items()}


def together(logs: list[Log]) -> Log:
    """Several logs one after another."""
    return {name: np.concatenate([log[name] for log in logs]) for name in LOG_COLUMNS}


def taken(log: Log, rows: np.ndarray) -> Log:
    """Some rows of a log, by place or mask."""
    return {name: values[rows] for name, values in log.items()}
