"""Users whom a run has never seen: their clicks on its items, and the rows that these have made (`mwuf warm --users`).

A log of users is a log of interactions with the sides exchanged, so that it is kept in order, and known rows are found,
by the same functions: `item` is the user, a position in `ServedUsers.ids`; `user` is the item, by its index in the run;
`user_key` is that number again, which orders clicks of one time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.data.schema import RAW_ID
from mwuf_dist.data.vectors import column_of, matrix
from mwuf_dist.serving.served_log import Log, distinct, find, in_order, is_known, taken, together

FILES = ("users.parquet", "user_log.parquet")
LISTED = "fields_given"


@dataclass(frozen=True)
class ServedUsers:
    """Holds the users who came after the run.

    Attributes:
        ids: raw IDs, ascending [N], of the type that the run's users have.
        log: their clicks on items of the run, in order; see the head of this file.
        rows: their rows in the table of user IDs [N, D], float32; the mean user's of one with few clicks.
        fields: their other fields, as indices of the run's tables [N]; None: none were ever given.
        listed: whose were given [N], bool.
    """

    ids: pa.Array
    log: Log
    rows: np.ndarray
    fields: pa.Table | None = None
    listed: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    def counts(self) -> np.ndarray:
        """Returns clicks of each user [N], int64."""
        return np.bincount(self.log["item"], minlength=len(self.ids))

    def tables(self) -> dict[str, pa.Table]:
        """Returns the files of the state that hold them."""
        users = pa.table({RAW_ID: self.ids, "row": column_of(self.rows)} | self.given(np.arange(len(self.ids))))
        return dict(zip(FILES, (users, pa.table(self.log)), strict=True))

    def given(self, users: np.ndarray) -> dict[str, Any]:
        """Returns the fields of some of them as columns, and whose were given; nothing where none ever were."""
        if self.fields is None:
            return {}
        columns = {name: self.fields[name].take(pa.array(users)) for name in self.fields.column_names}
        return columns | {LISTED: self.listed[users]}

    @staticmethod
    def of_tables(users: pa.Table, log: pa.Table) -> ServedUsers:
        """Returns the reverse of `tables`."""
        rows = matrix(array(users["row"]))
        clicks = {name: log[name].to_numpy() for name in log.column_names}
        return ServedUsers(array(users[RAW_ID]), clicks, rows, *fields_of(users))


def nobody(id_type: pa.DataType, log: Log, dim: int) -> ServedUsers:
    """Gives no users, with the type of their IDs, an empty log and the width of rows."""
    return ServedUsers(pa.array([], id_type), log, np.empty((0, dim), np.float32))


def with_clicks(users: ServedUsers, ids: pa.Array, log: Log) -> tuple[ServedUsers, Log]:
    """Adds clicks; rows of users who were not there are zeros until they are made.

    Args:
        users: of before.
        ids: raw IDs of users [n].
        log: their clicks, whose `item` is a position in `ids`.

    Returns:
        The users, and the clicks that were new, in order, by their place in these.
    """
    ids = ids.cast(users.ids.type)
    grown = _grown(users, ids.take(pa.array(np.unique(log["item"]))))
    new = log | {"item": find(ids, grown.ids)[log["item"]]}
    new = taken(new, in_order(new))
    new = taken(new, ~is_known(new, grown.log))
    both = together([grown.log, new])
    return replace(grown, log=taken(both, in_order(both))), new


def with_fields(users: ServedUsers, ids: pa.Array, fields: pa.Table) -> tuple[ServedUsers, np.ndarray]:
    """Adds fields, and users who were not there; fields that were given once stay.

    Args:
        users: of before.
        ids: raw IDs [n], distinct.
        fields: theirs [n].

    Returns:
        The users, and who of them has got fields, ascending.
    """
    grown = _grown(users, ids.cast(users.ids.type))
    now = find(grown.ids, ids.cast(users.ids.type))
    got = (now >= 0) & ~grown.listed
    before = fields.slice(0, 0) if grown.fields is None else grown.fields
    every = _with_unknown(pa.concat_tables([before, fields.cast(before.schema)]))
    source = np.where(got, len(before) + now, np.where(grown.listed, np.arange(len(got)), len(every) - 1))
    known = every.take(pa.array(source)).combine_chunks()
    return replace(grown, fields=known, listed=grown.listed | got), np.flatnonzero(got)


def fields_of(table: pa.Table) -> tuple[pa.Table | None, np.ndarray]:
    """Returns `fields` and `listed` of a table with the columns of `ServedUsers.given`, if it has these."""
    if LISTED not in table.column_names:
        return None, np.zeros(len(table), bool)
    names = [name for name in table.column_names if name not in (RAW_ID, "user_id", "row", LISTED)]
    return table.select(names), table[LISTED].to_numpy().astype(bool)


def _grown(users: ServedUsers, ids: pa.Array) -> ServedUsers:
    """Adds users of whom nothing is known; their rows are zeros until they are made."""
    grown = distinct(users.ids, ids)
    of_before = find(users.ids, grown)
    rows = np.zeros((len(grown), users.rows.shape[1]), np.float32)
    rows[of_before] = users.rows
    listed = np.zeros(len(grown), bool)
    listed[of_before] = users.listed if users.fields is not None else False
    fields = users.fields
    if fields is not None:
        every, source = _with_unknown(fields), find(grown, users.ids)
        fields = every.take(pa.array(np.where(source < 0, len(fields), source))).combine_chunks()
    log = users.log | {"item": of_before[users.log["item"]]}
    return ServedUsers(grown, log, rows, fields, listed)


def _with_unknown(fields: pa.Table) -> pa.Table:
    """Returns fields with those of somebody of whom nothing is known behind them: index 0 everywhere."""
    unknown = {one.name: pa.array([[0] if pa.types.is_list(one.type) else 0], one.type) for one in fields.schema}
    return pa.concat_tables([fields, pa.table(unknown, schema=fields.schema)]).combine_chunks()


def array(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column in one piece."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
