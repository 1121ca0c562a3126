"""What the daily job keeps in a run's folder, beside the model that it never touches.

    warm/state.json      what the state was made from, and the SHA-256 of the files beside it
    warm/items.parquet   items that the run has never seen: raw ID, fields, whether the fields were ever given
    warm/log.parquet     interactions of new items since the run: item, user, user_key, time, label, in order
    warm/rows.parquet    the rows of phi_new that have moved since the run, and where their last complete block ended

The files depend on the run and on the set of interactions and items that have come since, and on nothing else. Items
are named by index: those of the run as there, then the ones of `items.parquet` in ascending order of their raw ID.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import pyarrow.parquet as pq

from mwuf_dist.config import PHASES, UserError
from mwuf_dist.data.schema import RAW_ID
from mwuf_dist.data.shards import EntityTable, FieldColumn, Prepared, Side
from mwuf_dist.serving.warm.interactions import (
    LOG_COLUMNS,
    Log,
    NewRows,
    empty_log,
    find,
    in_order,
    is_known,
    taken,
    together,
)
from mwuf_dist.serving.warm.item_fields import unknown_fields

SCHEMA = 1
FOLDER = "warm"
# The name under which `Grown` offers the log beside the splits of the prepared data.
SERVED = "served"
_FILES = ("items.parquet", "log.parquet", "rows.parquet")
_LISTED = "fields_given"


@dataclass(frozen=True)
class Rows:
    """Rows of phi_new that are not the run's any more.

    Attributes:
        item: their indices, ascending [T], int64.
        served: [T, D] float32.
        at_boundary: where the last complete block has ended [T, D] float32.
        boundary: number of the item's interactions up to there [T], int64.
    """

    item: np.ndarray
    served: np.ndarray
    at_boundary: np.ndarray
    boundary: np.ndarray


@dataclass(frozen=True)
class WarmState:
    """See the head of this file.

    Attributes:
        num_run_items: items of the run.
        ids: raw IDs of the others [A], ascending.
        fields: their fields [A].
        listed: whether the fields were ever given [A], bool.
        log: interactions, in order.
        rows: that have moved.
        made_from: digests of the state before and of the input that led here.
    """

    num_run_items: int
    ids: pa.Array
    fields: pa.Table
    listed: np.ndarray
    log: Log
    rows: Rows
    made_from: dict[str, str]

    @property
    def num_items(self) -> int:
        """Items of the run and the others."""
        return self.num_run_items + len(self.ids)

    def counts(self) -> np.ndarray:
        """Interactions of each item since the run [I], int64."""
        return np.bincount(self.log["item"], minlength=self.num_items)

    def tables(self) -> dict[str, pa.Table]:
        """The files."""
        dim = self.rows.served.shape[1]
        vector = pa.list_(pa.float32(), dim)
        rows = {
            "item": self.rows.item,
            "row": pa.FixedSizeListArray.from_arrays(pa.array(self.rows.served.reshape(-1)), type=vector),
            "row_at_boundary": pa.FixedSizeListArray.from_arrays(
                pa.array(self.rows.at_boundary.reshape(-1)), type=vector
            ),
            "boundary": self.rows.boundary,
        }
        # Read back, the elements of a list have another name; the files must not tell.
        plain = [pa.list_(pa.int32()) if pa.types.is_list(kind) else kind for kind in self.fields.schema.types]
        fields = self.fields.cast(pa.schema(list(zip(self.fields.column_names, plain, strict=True))))
        items = fields.append_column(_LISTED, pa.array(self.listed)).add_column(0, RAW_ID, self.ids)
        return dict(zip(_FILES, (items, pa.table(self.log), pa.table(rows)), strict=True))


def new_state(prepared: Prepared, id_type: pa.DataType, dim: int) -> WarmState:
    """The state of a run that has just ended."""
    none = np.empty((0, dim), np.float32)
    rows = Rows(np.empty(0, np.int64), none, none, np.empty(0, np.int64))
    fields = unknown_fields(prepared, 0)
    return WarmState(prepared.num_items, pa.array([], id_type), fields, np.empty(0, bool), empty_log(), rows, {})


def save(state: WarmState, run: Path) -> str:
    """Writes `warm/` into a run's folder; returns the state's digest."""
    folder = run / FOLDER
    folder.mkdir()
    for name, table in state.tables().items():
        pq.write_table(table, folder / name, compression="none", use_dictionary=False, write_statistics=False)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _FILES}
    about = {"schema": SCHEMA, "num_run_items": state.num_run_items, "made_from": state.made_from, "files": files}
    (folder / "state.json").write_text(json.dumps(about, indent=1) + "\n")
    return digest_of(run)


def digest_of(run: Path) -> str:
    """Twelve hex digits that tell the states of one run from another; of a run that has just ended, "none"."""
    path = run / FOLDER / "state.json"
    if not path.exists():
        return "none"
    return hashlib.sha256(json.dumps(read_about(run)["files"], sort_keys=True).encode()).hexdigest()[:12]


def read_about(run: Path) -> dict[str, Any]:
    """The content of `state.json`; empty for a run that has just ended.

    Raises:
        UserError: it cannot be read, or another version wrote it.
    """
    path = run / FOLDER / "state.json"
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text())
        if about["schema"] == SCHEMA:
            return about
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the folder again from the run before it") from None
    raise UserError(f"{path}: state of schema {about['schema']!r}; this version reads {SCHEMA}")


def load(run: Path) -> WarmState | None:
    """The state in a run's folder; None where the job has never run.

    Raises:
        UserError: a file is damaged.
    """
    about = read_about(run)
    if not about:
        return None
    for name, digest in about["files"].items():
        path = run / FOLDER / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError(f"{path}: is missing or damaged; make the folder again from the run before it")
    items, log, rows = (pq.read_table(run / FOLDER / name).combine_chunks() for name in _FILES)
    served, at_boundary = (_vectors(rows[name]) for name in ("row", "row_at_boundary"))
    return WarmState(
        num_run_items=about["num_run_items"],
        ids=_array(items[RAW_ID]),
        fields=items.drop_columns([RAW_ID, _LISTED]),
        listed=_array(items[_LISTED]).to_numpy(zero_copy_only=False),
        log={name: log[name].to_numpy() for name in LOG_COLUMNS},
        rows=Rows(rows["item"].to_numpy().copy(), served, at_boundary, rows["boundary"].to_numpy()),
        made_from=about["made_from"],
    )


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    flat = _array(column).flatten().to_numpy()
    return flat.reshape(len(column), column.type.list_size).copy()  # Arrow's memory cannot be written to


@dataclass(frozen=True)
class Change:
    """What new rows do to a state, before any row of phi_new has moved.

    Attributes:
        state: with the new items and interactions; `rows` are those of before, under the new indices.
        anew: indices of items whose row must be made again from the run's (or its first) row.
        going_on: indices of items whose row goes on from its last boundary.
        num_new: interactions that were new.
        num_known: that had been seen before, or stood in the input twice.
        num_of_old_items: of old items, whose rows are frozen.
        num_new_items: items never seen before.
    """

    state: WarmState
    anew: np.ndarray
    going_on: np.ndarray
    num_new: int
    num_known: int
    num_of_old_items: int
    num_new_items: int


def change(
    state: WarmState,
    rows: NewRows,
    listed: tuple[pa.Array, pa.Table],
    run_ids: pa.Array,
    prepared: Prepared,
    run_log: Log,
    run_rows: int,
) -> Change:
    """Adds new interactions and items to a state.

    Args:
        state: of before.
        rows: the interactions.
        listed: raw IDs and fields of items.
        run_ids: raw IDs of the run's items.
        prepared: of the run.
        run_log: interactions that the run has seen of its own new items.
        run_rows: how many it has seen of each.
    """
    grown, moved = _grow(state, rows.item_ids, listed, run_ids, prepared)
    # The log of before under the new indices.
    log = state.log | {"item": _moved(state.log["item"], moved, state.num_run_items).astype(np.int32)}
    ids = pa.concat_arrays([run_ids, grown.ids])
    new = rows.log | {"item": find(rows.item_ids, ids)[rows.log["item"]]}
    is_old = new["item"] < prepared.num_old_items
    new = taken(new, ~is_old)
    new = taken(new, in_order(new))
    new = taken(new, ~is_known(new, together([log, run_log])))
    both = together([log, new])
    order = in_order(both)
    late = _late(state, moved, both["item"][order], order >= len(log["item"]), run_rows)
    old_rows = dataclasses.replace(state.rows, item=_moved(state.rows.item, moved, state.num_run_items))
    # Fields that came after the first clicks, and items without a click.
    was_listed = np.zeros(len(grown.ids), dtype=bool)
    was_listed[moved] = state.listed
    appeared = np.ones(len(grown.ids), dtype=bool)
    appeared[moved] = False
    remade = state.num_run_items + np.flatnonzero(appeared | (grown.listed & ~was_listed))
    touched = np.unique(new["item"]).astype(np.int64)
    anew = np.union1d(np.intersect1d(touched, late), remade)
    return Change(
        state=dataclasses.replace(grown, log=taken(both, order), rows=old_rows),
        anew=anew,
        going_on=np.setdiff1d(touched, anew),
        num_new=len(new["item"]),
        num_known=rows.num_rows - int(is_old.sum()) - len(new["item"]),
        num_of_old_items=int(is_old.sum()),
        num_new_items=len(grown.ids) - len(state.ids),
    )


def _moved(item: np.ndarray, moved: np.ndarray, num_run_items: int) -> np.ndarray:
    """Indices of before as indices of now: the run's stay, the others' place is `moved` [A]."""
    table = np.append(moved, 0)  # never read, so that an empty one can be indexed
    return np.where(item < num_run_items, item, num_run_items + table[np.maximum(item - num_run_items, -1)])


def _late(state: WarmState, moved: np.ndarray, item: np.ndarray, is_new: np.ndarray, run_rows: int) -> np.ndarray:
    """Items with a new interaction before their last boundary.

    Args:
        state: of before.
        moved: place of its items among the grown ones.
        item: of each interaction, in order [R].
        is_new: whether it is new [R].
        run_rows: interactions that the run has seen of each of its own items.
    """
    boundary = np.zeros(int(item.max(initial=-1)) + 1, dtype=np.int64)
    index = _moved(state.rows.item, moved, state.num_run_items)
    reached = index < len(boundary)
    boundary[index[reached]] = state.rows.boundary[reached]
    place = np.arange(len(item)) - np.searchsorted(item, item) + np.where(item < state.num_run_items, run_rows, 0)
    return np.unique(item[is_new & (place < boundary[item])])


def _grow(
    state: WarmState, item_ids: pa.Array, listed: tuple[pa.Array, pa.Table], run_ids: pa.Array, prepared: Prepared
) -> tuple[WarmState, np.ndarray]:
    """The state with all items, and the place of each of the items of before among them [A]."""
    fresh = []
    for ids in (item_ids, listed[0]):
        own = _as_type(ids, run_ids.type)
        fresh.append(own.filter(pa.array(find(own, run_ids) < 0)))
    ids = pc.unique(pa.concat_arrays([state.ids, *fresh]))
    ids = ids.take(pc.array_sort_indices(ids))
    before, now = find(ids, state.ids), find(ids, _as_type(listed[0], run_ids.type))
    given = np.zeros(len(ids), dtype=bool)
    given[before >= 0] = state.listed[before[before >= 0]]
    # Fields that were given once stay; of the three sources each item takes one row.
    sources = pa.concat_tables([state.fields, listed[1], unknown_fields(prepared, 1)])
    num_before, num_listed = len(state.ids), len(listed[0])
    source = np.where(given, before, np.where(now >= 0, num_before + now, num_before + num_listed))
    fields = sources.take(pa.array(source)).combine_chunks()
    grown = dataclasses.replace(state, ids=ids, fields=fields, listed=given | (now >= 0))
    moved = np.empty(num_before, dtype=np.int64)
    moved[before[before >= 0]] = np.flatnonzero(before >= 0)
    return grown, moved


def _as_type(ids: pa.Array, kind: pa.DataType) -> pa.Array:
    if ids.type == kind:
        return ids
    try:
        return ids.cast(kind)
    except pa.ArrowInvalid:
        text = ids.cast(pa.string())
        wrong = text.filter(pc.invert(pc.match_substring_regex(text, r"^-?[0-9]{1,18}$")))
        raise UserError(
            f"item ID {wrong[0].as_py()!r} is no number, and all items of the run have numbers; correct the ID"
        ) from None


class Grown(Prepared):
    """A run's prepared data with the items and interactions that have come since, and a user whom nobody knows.

    Items of the state follow those of the run. The last row of the users has index 0 in every field. The log stands
    beside the splits under the name `SERVED`; a user never seen is -1 there, which U(v) takes for the mean user.
    """

    def __init__(self, prepared: Prepared, state: WarmState) -> None:
        super().__init__(prepared.path, prepared.manifest)
        self.state = state

    @property
    def num_new_items(self) -> int:
        """See `Prepared`."""
        return super().num_new_items + len(self.state.ids)

    def entity(self, side: Side) -> EntityTable:
        """See `Prepared`."""
        table = super().entity(side)
        if side == "item":
            extra, raw_ids = self.state.fields, self.state.ids.to_numpy(zero_copy_only=False)
        else:
            extra, raw_ids = None, table.raw_ids[:1]
        columns = {name: _appended(column, extra) for name, column in table.columns.items()}
        return EntityTable(table.num_rows + len(raw_ids), np.concatenate([table.raw_ids, raw_ids]), columns)

    def num_rows(self, split: str) -> int:
        """See `Prepared`."""
        return len(self.state.log["item"]) if split == SERVED else super().num_rows(split)

    def read_rows(self, split: str, start: int, stop: int, names: Any) -> dict[str, np.ndarray]:
        """See `Prepared`."""
        if split == SERVED:
            return {name: self.state.log[name][start:stop] for name in names}
        return super().read_rows(split, start, stop, names)


def _appended(column: FieldColumn, extra: pa.Table | None) -> FieldColumn:
    """A column with rows behind it: those of a table, or one of index 0."""
    if column.offsets is None:
        values = np.zeros(1, dtype=np.int32) if extra is None else extra[column.field.name].to_numpy()
        return FieldColumn(column.field, None, np.concatenate([column.values, values]))
    if extra is None:
        lengths, values = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int32)
    else:
        lists = _array(extra[column.field.name])
        lengths, values = np.diff(lists.offsets.to_numpy()), lists.flatten().to_numpy()
    offsets = np.concatenate([column.offsets, column.offsets[-1] + np.cumsum(lengths)])
    return FieldColumn(column.field, offsets, np.concatenate([column.values, values]))


def phases_of(counts: np.ndarray, block_rows: int) -> np.ndarray:
    """Codes of the phases of items by their number of interactions [n], uint8."""
    return np.minimum(counts // block_rows, len(PHASES) - 1).astype(np.uint8)
