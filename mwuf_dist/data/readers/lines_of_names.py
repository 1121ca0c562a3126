"""Lines of column names that stand again within a file (`cat a.csv b.csv`), which are no rows."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable, needed_columns


def repeated_names(table: LogTable, options: LogsConfig) -> np.ndarray:
    """Returns rows in which each column holds its own name, in whatever case [R].

    Raises:
        UserError: columns hold each other's names: below that line all values stand in other columns.
    """
    _refuse_other_order(table, options)
    found = np.ones(table.num_rows, dtype=bool)
    for name in dict.fromkeys(filter(None, (options.user, options.item, options.time))):
        column = table.columns[name]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if not pa.types.is_string(kind) or not found.any():
            return np.zeros(table.num_rows, dtype=bool)
        index, values = codes(column)
        own = np.flatnonzero(pc.equal(pc.utf8_lower(values), name.lower()).to_numpy(zero_copy_only=False))
        found &= np.isin(index, own) if len(own) else False
    return found


def _refuse_other_order(table: LogTable, options: LogsConfig) -> None:
    names = pa.array([name.lower() for name in table.columns.column_names])
    strange = np.zeros(table.num_rows, dtype=np.int8)
    for name in needed_columns(options):
        column = table.columns[name]
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_string(kind):
            index, values = codes(column)
            lower = pc.utf8_lower(values)
            others = pc.and_(pc.is_in(lower, value_set=names), pc.not_equal(lower, name.lower()))
            if len(found := np.flatnonzero(others.to_numpy(zero_copy_only=False))):
                strange += np.isin(index, found)
    if (strange > 1).any():
        row = int(np.argmax(strange > 1))
        there = ", ".join(f"{name} = {table.columns[name][row].as_py()!r}" for name in needed_columns(options))
        raise UserError(
            f"{table.place(row)}: a line of names in another order ({there}): below it values stand in other columns; "
            "split the file there, or write all of it in one order"
        )
