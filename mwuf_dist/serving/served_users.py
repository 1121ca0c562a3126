"""Users whom a run has never seen: their clicks on its items, and the rows that these have made (`mwuf warm --users`).

A log of users is a log of interactions with the sides exchanged, so that it is kept in order, and known rows are found,
by the same functions: `item` is the user, a position in `ServedUsers.ids`; `user` is the item, by its index in the run;
`user_key` is that number again, which orders clicks of one time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mwuf_dist.data.schema import RAW_ID
from mwuf_dist.data.vectors import column_of, matrix
from mwuf_dist.serving.served_log import Log, distinct, find, in_order, is_known, taken, together

FILES = ("users.parquet", "user_log.parquet")


@dataclass(frozen=True)
class ServedUsers:
    """Holds the users who came after the run.

    Attributes:
        ids: raw IDs, ascending [N], of the type that the run's users have.
        log: their clicks on items of the run, in order; see the head of this file.
        rows: their rows in the table of user IDs [N, D], float32; the mean user's of one with few clicks.
    """

    ids: pa.Array
    log: Log
    rows: np.ndarray

    def counts(self) -> np.ndarray:
        """Returns clicks of each user [N], int64."""
        return np.bincount(self.log["item"], minlength=len(self.ids))

    def tables(self) -> dict[str, pa.Table]:
        """Returns the files of the state that hold them."""
        users = pa.table({RAW_ID: self.ids, "row": column_of(self.rows)})
        return dict(zip(FILES, (users, pa.table(self.log)), strict=True))

    @staticmethod
    def of_tables(users: pa.Table, log: pa.Table) -> ServedUsers:
        """Returns the reverse of `tables`."""
        rows = matrix(array(users["row"]))
        return ServedUsers(array(users[RAW_ID]), {name: log[name].to_numpy() for name in log.column_names}, rows)


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
    grown = distinct(users.ids, ids.cast(users.ids.type).take(pa.array(np.unique(log["item"]))))
    of_before, of_new = find(users.ids, grown), find(ids.cast(users.ids.type), grown)
    before = users.log | {"item": of_before[users.log["item"]]}
    new = log | {"item": of_new[log["item"]]}
    new = taken(new, in_order(new))
    new = taken(new, ~is_known(new, before))
    both = together([before, new])
    rows = np.zeros((len(grown), users.rows.shape[1]), np.float32)
    rows[of_before] = users.rows
    return ServedUsers(grown, taken(both, in_order(both)), rows), new


def array(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column in one piece."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
