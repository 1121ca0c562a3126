"""What the daily job keeps in a run's folder, beside the model that it never touches.

    warm/state.json      what the state was made from, and the SHA-256 of the files beside it
    warm/items.parquet   items that the run has never seen: raw ID, fields, whether the fields were ever given
    warm/log.parquet     interactions of new items since the run: item, user, user_key, time, label, in order
    warm/rows.parquet    the rows of phi_new that have moved since the run, and where their last complete block ended
    warm/retired.parquet IDs that have been retired, and until which time; only where there are any
    warm/users.parquet, warm/user_log.parquet    see `served_users.py`; only where there are any

The files depend on the run and on the set of interactions and items that have come since, and on nothing else. Items
are named by index: those of the run as there, then the ones of `items.parquet` in ascending order of their raw ID.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import pyarrow.parquet as pq

from mwuf_dist.config import PHASES, UserError
from mwuf_dist.data import vectors
from mwuf_dist.data.schema import RAW_ID, USER_ID, Field, list_column
from mwuf_dist.data.shards import EntityTable, FieldColumn, Prepared, Side
from mwuf_dist.files import DamagedError, read_json, write_json
from mwuf_dist.serving import served_users
from mwuf_dist.serving.served_log import Log, empty_log
from mwuf_dist.serving.served_rows import Rows
from mwuf_dist.serving.served_users import ServedUsers
from mwuf_dist.serving.served_users import array as _array

SCHEMA = 1
# So that a version that knows of none does not serve them.
_SCHEMA_WITH_RETIRED, _SCHEMA_WITH_USERS = 2, 3
FOLDER = "warm"
# The name under which `Grown` offers the log beside the splits of the prepared data.
SERVED = "served"
_FILES = ("items.parquet", "log.parquet", "rows.parquet")
_RETIRED = "retired.parquet"
_LISTED = "fields_given"


@dataclass(frozen=True)
class Retired:
    """Raw IDs that have been retired, so that what is still to come of the items behind them is not taken for new.

    An ID of the run's own items stands for another item from then on, if for any.

    Attributes:
        ids: ascending [R].
        time: the newest interaction that was known then [R], int64: the ID's interactions up to it are the old item's.
    """

    ids: pa.Array
    time: np.ndarray

    @staticmethod
    def none(id_type: pa.DataType) -> Retired:
        """Gives no IDs, of a type."""
        return Retired(pa.array([], id_type), np.empty(0, np.int64))


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
        retired: IDs that have been retired.
        days: of each job that led here, the fractions of its rows (`Change.fractions`), for comparison.
        number: of the last delta that led here; 0 for none.
        hash: `hashes.text_of` of the state; empty where an earlier version wrote it.
        position: what a job that follows a source has taken of it.
        users: who came after the run and has a row; None: nobody.
    """

    num_run_items: int
    ids: pa.Array
    fields: pa.Table
    listed: np.ndarray
    log: Log
    rows: Rows
    made_from: dict[str, str]
    retired: Retired
    days: tuple[dict[str, float], ...] = ()
    number: int = 0
    hash: str = ""
    position: dict[str, Any] = field(default_factory=dict)
    users: ServedUsers | None = None

    @property
    def num_items(self) -> int:
        """Items of the run and the others."""
        return self.num_run_items + len(self.ids)

    def counts(self) -> np.ndarray:
        """Returns interactions of each item since the run [I], int64."""
        return np.bincount(self.log["item"], minlength=self.num_items)

    def with_moved(self, moved: np.ndarray) -> tuple[Log, Rows]:
        """Returns the log and the rows with the indices that items have in another state of the run.

        Args:
            moved: position there of each of `ids` [A]; the run's items stay where they are.
        """
        indices = self.num_run_items + np.append(moved, -1)  # never read there, so that an empty one can be indexed

        def there(item: np.ndarray) -> np.ndarray:
            own = item < self.num_run_items
            return np.where(own, item, indices[np.where(own, -1, item - self.num_run_items)])

        log = self.log | {"item": there(self.log["item"]).astype(np.int32)}
        return log, replace(self.rows, item=there(self.rows.item))

    def tables(self) -> dict[str, pa.Table]:
        """Returns the files."""
        rows = {"item": self.rows.item, "row": vectors.column_of(self.rows.served)}
        rows |= {"row_at_boundary": vectors.column_of(self.rows.at_boundary), "boundary": self.rows.boundary}
        # Read back, the elements of a list have another name; the files must not tell.
        plain = [_plain_type(kind) for kind in self.fields.schema.types]
        fields = self.fields.cast(pa.schema(list(zip(self.fields.column_names, plain, strict=True))))
        items = fields.append_column(_LISTED, pa.array(self.listed)).add_column(0, RAW_ID, self.ids)
        found: dict[str, pa.Table] = dict(zip(_FILES, (items, pa.table(self.log), pa.table(rows)), strict=True))
        if len(self.retired.ids):
            found[_RETIRED] = pa.table({RAW_ID: self.retired.ids, "time": self.retired.time})
        return found | (self.users.tables() if self.users is not None else {})

    def run_ids(self, ids: pa.Array) -> pa.Array:
        """Returns raw IDs of the run's items [I], null where the item has been retired."""
        if not len(self.retired.ids):
            return ids
        return pc.if_else(pc.is_in(ids, value_set=self.retired.ids), pa.scalar(None, ids.type), ids)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.float32(), kind.list_size)
    return pa.list_(pa.int32()) if pa.types.is_list(kind) else kind


def new_state(prepared: Prepared, id_type: pa.DataType, dim: int) -> WarmState:
    """Returns the state of a run that has just ended."""
    ids, fields, listed = pa.array([], id_type), unknown_fields(prepared, 0), np.empty(0, bool)
    log, rows = empty_log(prepared.row_columns), Rows.none(dim)
    return WarmState(prepared.num_items, ids, fields, listed, log, rows, {}, Retired.none(id_type))


def save(state: WarmState, run: Path) -> str:
    """Writes `warm/` into a run's folder; returns the state's digest."""
    (run / FOLDER).mkdir()
    save_into(state, run / FOLDER)
    return digest_of(run)


def save_into(state: WarmState, folder: Path) -> None:
    """Writes the files of a state into an empty folder."""
    tables = state.tables()
    for name, table in tables.items():
        pq.write_table(table, folder / name, compression="none", use_dictionary=False, write_statistics=False)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in tables}
    schema = _SCHEMA_WITH_RETIRED if _RETIRED in tables else SCHEMA
    schema = schema if state.users is None else _SCHEMA_WITH_USERS
    about = {"schema": schema, "num_run_items": state.num_run_items, "made_from": state.made_from, "files": files}
    about |= {"days": list(state.days), "number": state.number, "hash": state.hash, "position": state.position}
    write_json(folder / "state.json", about)


def write_run(state: WarmState, folder: Path, checkpoint: Path, beside: Path) -> None:
    """Writes a run's folder with a state: the run's files, linked where the file system can, and `warm/`.

    Args:
        state: to be written.
        folder: of the run.
        checkpoint: its last one.
        beside: an empty folder.
    """
    names = ["config.toml", "results.json", "checkpoints/LATEST"]
    names += [f"checkpoints/{checkpoint.name}/{path.name}" for path in checkpoint.iterdir()]
    for name in names:
        link(folder / name, beside / name)
    save(state, beside)


def link(path: Path, target: Path) -> None:
    """Makes a file that stands elsewhere too: linked where the file system can, copied elsewhere."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(path, target)


def digest_of(run: Path) -> str:
    """Returns twelve hex digits that tell the states of one run from another; of a run that has just ended, "none"."""
    path = run / FOLDER / "state.json"
    if not path.exists():
        return "none"
    return hashlib.sha256(json.dumps(read_about(run)["files"], sort_keys=True).encode()).hexdigest()[:12]


def read_about(run: Path) -> dict[str, Any]:
    """Returns the content of `state.json`; empty for a run that has just ended.

    Raises:
        UserError: it cannot be read, or another version wrote it.
    """
    path = run / FOLDER / "state.json"
    if not path.exists():
        return {}
    try:
        about = read_json(path)
        if about["schema"] in (SCHEMA, _SCHEMA_WITH_RETIRED, _SCHEMA_WITH_USERS):
            return about
    except (DamagedError, OSError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make the folder again from the run before it") from None
    raise UserError(f"{path}: state of schema {about['schema']!r}; this version reads {SCHEMA} to {_SCHEMA_WITH_USERS}")


def load(run: Path) -> WarmState | None:
    """Returns the state in a run's folder; None where the job has never run.

    Raises:
        UserError: a file is damaged.
    """
    about = read_about(run)
    if not about:
        return None
    has_retired = _RETIRED in about["files"]
    of_users = served_users.FILES if served_users.FILES[0] in about["files"] else ()
    for name in (*_FILES, *((_RETIRED,) if has_retired else ()), *of_users):
        path = run / FOLDER / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != about["files"].get(name):
            raise UserError(f"{path}: is missing or damaged; make the folder again from the run before it")
    items, log, rows = (pq.read_table(run / FOLDER / name).combine_chunks() for name in _FILES)
    retired = Retired.none(items.schema.field(RAW_ID).type)
    if has_retired:
        table = pq.read_table(run / FOLDER / _RETIRED)
        retired = Retired(_array(table[RAW_ID]), table["time"].to_numpy().copy())
    served, at_boundary = (vectors.matrix(_array(rows[name])) for name in ("row", "row_at_boundary"))
    return WarmState(
        num_run_items=about["num_run_items"],
        ids=_array(items[RAW_ID]),
        fields=items.drop_columns([RAW_ID, _LISTED]),
        listed=_array(items[_LISTED]).to_numpy(zero_copy_only=False),
        log={name: log[name].to_numpy() for name in log.column_names},
        rows=Rows(rows["item"].to_numpy().copy(), served, at_boundary, rows["boundary"].to_numpy()),
        made_from=about["made_from"],
        retired=retired,
        days=tuple(about.get("days", ())),
        number=about.get("number", 0),
        hash=about.get("hash", ""),
        position=about.get("position", {}),
        users=ServedUsers.of_tables(*(pq.read_table(run / FOLDER / name) for name in of_users)) if of_users else None,
    )


class Grown(Prepared):
    """A run's prepared data with the items and interactions that have come since, and a user whom nobody knows.

    Items of the state follow those of the run, and so do users who have a row by now, with the fields that were given
    of them. The last row of the users has index 0 in every field. The log stands beside the splits under the name
    `SERVED`; a user whom the run has never seen is -1 there, which U(v) takes for the mean user.
    """

    def __init__(self, prepared: Prepared, state: WarmState) -> None:
        super().__init__(prepared.path, prepared.manifest)
        self.state = state

    @property
    def num_new_items(self) -> int:
        """See `Prepared`."""
        return super().num_new_items + len(self.state.ids)

    @property
    def num_users(self) -> int:
        """See `Prepared`; without the last row, which is nobody's."""
        return super().num_users + self._num_new_users

    @property
    def _num_new_users(self) -> int:
        return 0 if self.state.users is None else len(self.state.users.ids)

    @property
    def fields(self) -> tuple[Field, ...]:
        """See `Prepared`."""
        more = self._num_new_users
        return tuple(replace(one, size=one.size + more) if one.name == USER_ID else one for one in super().fields)

    def entity(self, side: Side) -> EntityTable:
        """See `Prepared`."""
        table = super().entity(side)
        if side == "item":
            columns = {name: _appended(column, self.state.fields) for name, column in table.columns.items()}
            raw_ids = self.state.ids.to_numpy(zero_copy_only=False)
        else:
            columns = {name: self._with_new_users(column) for name, column in table.columns.items()}
            new = [] if self.state.users is None else [self.state.users.ids.to_numpy(zero_copy_only=False)]
            raw_ids = np.concatenate([*new, table.raw_ids[:1]])
        return EntityTable(table.num_rows + len(raw_ids), np.concatenate([table.raw_ids, raw_ids]), columns)

    def _with_new_users(self, column: FieldColumn) -> FieldColumn:
        """Adds to a column of users what is known of each who came later (of IDs their own), and index 0 for nobody."""
        more, users = self._num_new_users, self.state.users
        if users is not None and users.fields is not None and column.field.name in users.fields.column_names:
            return self._with_one_more(_appended(column, users.fields))
        values = np.zeros(more + 1, dtype=np.int32)
        if column.offsets is not None:
            offsets = np.concatenate([column.offsets, column.offsets[-1] + 1 + np.arange(more + 1)])
            return FieldColumn(column.field, offsets, np.concatenate([column.values, values]))
        if column.field.name == USER_ID:
            values[:more] = 1 + super().num_users + np.arange(more)
        return FieldColumn(column.field, None, np.concatenate([column.values, values]))

    @staticmethod
    def _with_one_more(column: FieldColumn) -> FieldColumn:
        values = np.append(column.values, np.int32(0))
        offsets = None if column.offsets is None else np.append(column.offsets, column.offsets[-1] + 1)
        return FieldColumn(column.field, offsets, values)

    def num_rows(self, split: str) -> int:
        """See `Prepared`."""
        return len(self.state.log["item"]) if split == SERVED else super().num_rows(split)

    def read_rows(self, split: str, start: int, stop: int, names: Any) -> dict[str, np.ndarray]:
        """See `Prepared`."""
        if split == SERVED:
            return {name: self.state.log[name][start:stop] for name in names}
        return super().read_rows(split, start, stop, names)


def _appended(column: FieldColumn, extra: pa.Table) -> FieldColumn:
    """Returns a column with the rows of a table behind it."""
    if column.field.kind == "vector":
        more = vectors.matrix(_array(extra[column.field.name]))
        return FieldColumn(column.field, None, np.concatenate([column.values, more]))
    if column.offsets is None:
        values = extra[column.field.name].to_numpy()
        return FieldColumn(column.field, None, np.concatenate([column.values, values]))
    lists = _array(extra[column.field.name])
    lengths, values = np.diff(lists.offsets.to_numpy()), lists.flatten().to_numpy()
    offsets = np.concatenate([column.offsets, column.offsets[-1] + np.cumsum(lengths)])
    return FieldColumn(column.field, offsets, np.concatenate([column.values, values]))


def users_of_fields(fields: pa.Table, prepared: Prepared) -> EntityTable:
    """Returns users with these fields [n] and no ID of their own."""
    none = np.zeros(len(fields), np.int32)
    columns = {}
    for name, column in prepared.entity("user").columns.items():
        if name == USER_ID:
            columns[name] = FieldColumn(column.field, None, none)
        else:
            offsets = None if column.offsets is None else column.offsets[:1]
            columns[name] = _appended(FieldColumn(column.field, offsets, column.values[:0]), fields)
    return EntityTable(len(fields), none, columns)


def unknown_fields(prepared: Prepared, num: int, side: Side = "item") -> pa.Table:
    """Returns the fields of `num` items (or users) of which nothing is known: index 0, and for a vector zeros."""
    columns = {
        field.name: as_column(field, np.zeros(num, dtype=np.int32), np.ones(num, dtype=np.int64))
        for field in prepared.fields
        if field.side == side and field.name != USER_ID
    }
    return pa.table(columns)


def as_column(field: Field, values: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """Returns a field's column from the values of all entities one after another, and how many each has [n]."""
    if field.kind == "vector":
        return vectors.column_of(np.zeros((len(lengths), field.size)))
    return pa.array(values) if field.kind == "categorical" else list_column(lengths, values)


def phases_of(counts: np.ndarray, block_rows: int) -> np.ndarray:
    """Returns codes of the phases of items by their number of interactions [n], uint8."""
    return np.minimum(counts // block_rows, len(PHASES) - 1).astype(np.uint8)
