"""Which items a job retires, and what of its input is still of items that are retired.

A retired item leaves the state, exports and servers. Its ID may come back, as a new item that starts anew: with an
interaction later than all that were known when it was retired. Earlier ones are the old item's, and are left out,
so that the same file again does not bring it back; and so is a mere line of `--items`.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import datetime
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mwuf_dist.config import WARM_SETS, UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import ids as raw_ids
from mwuf_dist.data.readers import log_files, log_tables
from mwuf_dist.data.readers.times import EARLIEST_S
from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving.deltas import replay
from mwuf_dist.serving.served_log import NewRows, find, taken
from mwuf_dist.serving.served_state import Retired, WarmState
from mwuf_dist.serving.warm.change import Change

_DAY_S = 86_400


@dataclass(frozen=True)
class Retiring:
    """Says which items a job is to retire.

    Attributes:
        listed: table (Parquet or CSV) whose column of the item has their IDs, or these.
        after_days: new items without an interaction in so many days before the newest one.
    """

    listed: Path | pa.Array | None = None
    after_days: float | None = None

    def __bool__(self) -> bool:
        return self.listed is not None or self.after_days is not None


def without_the_retired(
    rows: NewRows, listed: tuple[pa.Array, pa.Table], state: WarmState
) -> tuple[NewRows, tuple[pa.Array, pa.Table], int]:
    """Gives (input and listed items without what is of retired ones, how many interactions were left out)."""
    retired = state.retired
    if not len(retired.ids):
        return rows, listed, 0
    ids = rows.item_ids
    tomb = find(ids, retired.ids)
    until = np.append(retired.time, np.iinfo(np.int64).min)[tomb]
    late = (tomb >= 0)[rows.log["item"]] & (rows.log["time"] <= until[rows.log["item"]])
    log = taken(rows.log, ~late)
    left, item = np.unique(log["item"], return_inverse=True)
    kept = dataclasses.replace(rows, item_ids=ids.take(pa.array(left)), log=log | {"item": item.astype(np.int32)})
    lives = (find(listed[0], retired.ids) < 0) | (find(listed[0], state.ids) >= 0)
    lives |= find(listed[0], kept.item_ids) >= 0
    mask = pa.array(lives)
    return kept, (listed[0].filter(mask), listed[1].filter(mask)), rows.num_counted(rows.log) - kept.num_counted(log)


def retire(
    change: Change,
    retiring: Retiring,
    options: LogsConfig,
    prepared: Prepared,
    run_ids: pa.Array,
    is_logs: bool,
    newest: int = np.iinfo(np.int64).min,
) -> tuple[Change, Retired, list[str]]:
    """Returns (The change without the items that go, who they are, what to say).

    Args:
        change: that the interactions of the job have made.
        retiring: which.
        options: how a list of IDs is read.
        prepared: of the run.
        run_ids: raw IDs of the run's items, null of those that have gone before.
        is_logs: whether the run is of own logs, whose times are microseconds.
        newest: interaction that is known, where the state is not all there is.

    Raises:
        UserError: a list cannot be read, or times are no dates.
    """
    state, form = change.state, raw_ids.form_of(prepared.raw_ids("item"))
    last = _last_times(state, prepared)
    newest = int(last.max(initial=newest))
    dead, notes = np.zeros(state.num_items, dtype=bool), []
    if retiring.listed is not None:
        listed = retiring.listed
        listed = ids_to_retire(listed, options) if isinstance(listed, Path) else listed
        own, others = (raw_ids.find(listed, ids, form) for ids in (prepared.raw_ids("item"), state.ids))
        own[~np.append(run_ids.is_valid().to_numpy(zero_copy_only=False), False)[own]] = -1
        dead[own[own >= 0]] = True
        dead[state.num_run_items + others[others >= 0]] = True
        if unknown := int(((own < 0) & (others < 0)).sum()):
            notes.append(f"{unknown:,} of the {len(listed):,} IDs to retire are of no item that is there")
    if retiring.after_days is not None:
        is_seen = last > np.iinfo(np.int64).min
        dead |= is_seen & (last < newest - _as_time(retiring.after_days, newest, is_logs))
        dead[: state.num_run_items] &= run_ids.is_valid().to_numpy(zero_copy_only=False)
    gone = np.flatnonzero(dead)
    ids = replay.ids_of(gone, state, run_ids)
    retired = Retired(ids, np.full(len(ids), newest))
    left, moved = replay.without(state, gone)
    left = dataclasses.replace(left, retired=replay.with_retired(state.retired, retired))
    anew, going_on = (index[index >= 0] for index in (moved[change.anew], moved[change.going_on]))
    log = taken(change.new_log, moved[change.new_log["item"]] >= 0)
    log |= {"item": moved[log["item"]].astype(np.int32)}
    notes.append(f"{len(gone):,} items retired")
    return dataclasses.replace(change, state=left, anew=anew, going_on=going_on, new_log=log), retired, notes


def ids_to_retire(path: Path, options: LogsConfig) -> pa.Array:
    """Returns the IDs that a table lists.

    Raises:
        UserError: it cannot be read.
    """
    files = log_files.find_files(str(path), "--retire")
    table = log_tables.read(files, [options.item], dataclasses.replace(options, header=()), "items to retire")
    return raw_ids.encode_ids(table.columns[options.item])[1]


def _last_times(state: WarmState, prepared: Prepared) -> np.ndarray:
    """Gives time of the last interaction of each new item [I].

    The smallest number of an old one, or one without any.
    """
    last = np.full(state.num_items, np.iinfo(np.int64).min)
    for split in (*WARM_SETS, "test"):
        columns = prepared.columns(split, ("item", "time"))
        np.maximum.at(last, columns["item"], columns["time"])
    np.maximum.at(last, state.log["item"], state.log["time"])
    return last


def _as_time(days: float, newest: int, is_logs: bool) -> int:
    """Returns a number of days in the unit of the times."""
    seconds = newest / 1e6 if is_logs else newest
    if seconds < EARLIEST_S:
        raise UserError(
            "--retire-after-days: the times of this run's data are no dates; name the items with --retire FILE"
        )
    if seconds > time.time() + _DAY_S:
        latest = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        raise UserError(
            f"--retire-after-days counts from the newest interaction, which is of {latest:%Y-%m-%d}, in the future: "
            "correct its time, or name the items with --retire FILE"
        )
    return int(days * _DAY_S * (1e6 if is_logs else 1))
