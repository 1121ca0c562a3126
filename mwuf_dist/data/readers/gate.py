r"""The one gate for logs: `init`, `run`, `warm` and `adopt` all get users, items, times and labels of rows here.

`read_rows` reads files and gives each row its user, item, time and label in normal form, or says why it has none:

* IDs in the normal form of `ids` (12.0 is 12; decimals and 64-bit IDs are exact; CSV and Parquet agree);
* times in microseconds, in one unit (`times`); labels 0 or 1 by the rule of the config (`labels`);
* a row without one of them is an error that names its place, or is left out and counted (`drop_incomplete`);
* a line of names that stands again within a file (`cat a.csv b.csv`) is no row (`log_tables`);
* `DataForm` is what a later file must agree with: who has trained on a data set keeps it (`to_dict`) and passes it on.

    rows = read_rows(find_files("day.csv", "--interactions"), options, form=DataForm.from_dict(kept))
    known = ids.find(rows.user_ids, ids_of_the_run, rows.form.user)     # -1: never seen
    rows.user[rows.kept], rows.time[rows.kept], rows.label[rows.kept]   # the rows that count
    print("\n".join(rows.notes()))                                       # what was not used
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import ids, labels, log_tables
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.ids import IdForm
from mwuf_dist.data.readers.log_tables import LogTable, needed_columns
from mwuf_dist.data.readers.times import TimeForm, Times, read_times, why_bad

_MOST_LABELS = 1_000  # Values of a label's column that are kept with a data set.
_NAMED = 5  # Labels, files.
_LEAVE_OUT = "leave such rows out (data.logs.drop_incomplete = true; for warm and adopt --drop-incomplete)"
_DAY_S = 86_400.0  # Clocks and time zones differ by less.


@dataclass(frozen=True)
class DataForm:
    """How a data set writes IDs and times; later files are read by it.

    Attributes:
        user, item: form of the IDs.
        time: unit of the times.
        labels: the values of the label's column, where some of them are positive (`label_is`); empty for other rules,
            and for data prepared before they were kept.
    """

    user: IdForm
    item: IdForm
    time: TimeForm
    labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Gives it as JSON has it."""
        made: dict[str, Any] = {"user": self.user.to_dict(), "item": self.item.to_dict(), "time": self.time.to_dict()}
        return made | ({"labels": list(self.labels)} if self.labels else {})

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DataForm:
        """Returns the reverse of `to_dict`."""
        user, item = IdForm.from_dict(values["user"]), IdForm.from_dict(values["item"])
        return DataForm(user, item, TimeForm.from_dict(values["time"]), tuple(values.get("labels", ())))


@dataclass(frozen=True)
class Rows:
    """Rows of a log in normal form.

    Attributes:
        table: all columns that were asked for, all rows of the files [R].
        user, item: place of each row's ID in `user_ids` and `item_ids`; -1 where the row does not count, int32 [R].
        user_ids, item_ids: distinct IDs of the rows that count, ascending, int64 or string [U], [I].
        label: 0 or 1, negative where there is none, int8 [R].
        time: microseconds (see `TimeForm`), int64 [R].
        kept: places of the rows that count, ascending, int64 [R'].
        form: how IDs and times are written.
        left_out: reason -> number of rows that do not count.
        remarks: what else a person should know, a sentence each.
    """

    table: LogTable
    user: np.ndarray
    item: np.ndarray
    user_ids: pa.Array
    item_ids: pa.Array
    label: np.ndarray
    time: np.ndarray
    kept: np.ndarray
    form: DataForm
    left_out: dict[str, int]
    remarks: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Says what was not used, and what was taken in a way that may surprise; a sentence each."""
        left = [f"{num:,} of {self.table.num_rows:,} rows are left out: {why}" for why, num in self.left_out.items()]
        return [*left, *self.remarks, *self.table.notes]


def read_rows(
    files: Sequence[Path],
    options: LogsConfig,
    what: str = "interactions",
    more: Sequence[str] = (),
    form: DataForm | None = None,
    whole: bool = True,
    skip_unread: bool = False,
) -> Rows:
    """Reads the rows of files.

    Args:
        files: from `log_files.find_files`.
        options: columns, label rule and how the files are written.
        what: `interactions`, for messages.
        more: further columns to keep in `table`.
        form: of the data set that the files go on with; None: the files are the data set.
        whole: the files are all rows there are, so that both classes must be among them.
        skip_unread: leave columns of `more` out that have a type which nothing can read (`LogTable.unread`).

    Raises:
        UserError: a column is absent, a value cannot be read, a row is incomplete (unless `drop_incomplete`), the units
            of times differ, or no row is left; it names the file, the column and, where there is one, the line.
    """
    return rows_of(read_table(files, options, what, more, skip_unread), options, form, whole)


def read_table(
    files: Sequence[Path],
    options: LogsConfig,
    what: str = "interactions",
    more: Sequence[str] = (),
    skip_unread: bool = False,
) -> LogTable:
    """Reads the columns of `read_rows`, for `rows_of`."""
    needed = needed_columns(options)
    names = list(dict.fromkeys([*needed, *more]))
    table = log_tables.read(files, names, options, what, plain=[options.time], skip_unread=skip_unread)
    for name in (table.unread or {}).keys() & needed:
        log_tables.read(files, [name], options, what)  # raises, with the file
    return table


def rows_of(table: LogTable, options: LogsConfig, form: DataForm | None = None, whole: bool = True) -> Rows:
    """Returns the rows of a table that has been read; see `read_rows`."""
    label_column = options.label or options.label_from
    label = labels.read_labels(table, options, whole=whole)
    times = read_times(table, options, form.time if form else None)
    has = {
        options.user: table.columns[options.user].is_valid().to_numpy(),
        options.item: table.columns[options.item].is_valid().to_numpy(),
        options.time: times.has | times.bad,
        label_column: label != labels.MISSING,
    }
    left_out: dict[str, int] = {}
    good = np.ones(table.num_rows, dtype=bool)
    for name, there in has.items():
        missing = good & ~there
        if missing.any() and not options.drop_incomplete:
            raise _incomplete(table, name, missing)
        left_out[f"no {name}"] = int(missing.sum())
        good &= there
    bad = good & times.bad
    if bad.any() and not options.drop_incomplete:
        raise _bad_time(table, options, times, bad)
    left_out[f"{options.time} is no time like the others"] = int(bad.sum())
    kept = np.flatnonzero(good & ~times.bad)
    if not len(kept):
        raise UserError(f"{table.files[0]}: no row has all of {', '.join(filter(None, has))}")
    user, user_ids, user_form, of_users = _ids(table, options.user, form.user if form else None, kept)
    item, item_ids, item_form, of_items = _ids(table, options.item, form.item if form else None, kept)
    labels_of = form.labels if form else _words_of_labels(table, options)
    made = DataForm(user_form, item_form, times.form, labels_of)
    left_out = {why: num for why, num in left_out.items() if num}
    of_times = [*_future(table, times, options, kept), *_cut_times(table, options)]
    remarks = (*of_users, *of_items, *_new_labels(table, options, labels_of, kept), *of_times)
    return Rows(table, user, item, user_ids, item_ids, label, times.values, kept, made, left_out, remarks)


def _words_of_labels(table: LogTable, options: LogsConfig) -> tuple[str, ...]:
    """Returns the values among which `label_is` chooses, ascending; none where they are no small vocabulary."""
    if not options.label_is:
        return ()
    words = text_of(ids.codes(table.columns[options.label_from])[1]).to_pylist()
    return tuple(sorted(words)) if len(words) <= _MOST_LABELS else ()


def _new_labels(table: LogTable, options: LogsConfig, known: tuple[str, ...], kept: np.ndarray) -> list[str]:
    """Says how many rows have a value in the label's column that the data set does not have: none is positive."""
    if not known or not options.label_is:
        return []
    old = frozenset(known)
    index, values = ids.codes(table.columns[options.label_from])
    num = np.bincount(index[kept], minlength=len(values))
    fresh = {word: int(n) for word, n in zip(text_of(values).to_pylist(), num, strict=True) if n and word not in old}
    if not fresh:
        return []
    named = ", ".join(map(repr, list(fresh)[:_NAMED])) + (", ..." if len(fresh) > _NAMED else "")
    return [
        f"{sum(fresh.values()):,} of {len(kept):,} rows have a value of {options.label_from} that the run's logs have "
        f"not ({named}): their label is 0, as positive is {', '.join(map(repr, options.label_is))} alone"
    ]


def _future(table: LogTable, times: Times, options: LogsConfig, kept: np.ndarray) -> list[str]:
    """Says how many rows are later than now, which clocks that are wrong make, and of several files in which."""
    if times.form.kind != "date" and not times.form.is_recent:
        return []
    late = times.values[kept] > int((time.time() + _DAY_S) * 1e6)
    if not late.any():
        return []
    latest = datetime.datetime.fromtimestamp(int(times.values[kept].max()) // 1_000_000, datetime.UTC)
    files = [table.files[one].name for one in np.unique(np.searchsorted(table.starts, kept[late], side="right") - 1)]
    where = "" if len(table.files) == 1 else f", in {', '.join(files[:_NAMED])}"
    where += f" and {len(files) - _NAMED:,} more files" if where and len(files) > _NAMED else ""
    return [
        f"{int(late.sum()):,} of {len(kept):,} rows have a {options.time} in the future, up to {latest:%Y-%m-%d}"
        f"{where}: if a clock was wrong, correct them"
    ]


def _cut_times(table: LogTable, options: LogsConfig) -> list[str]:
    """Says how many times have lost their last digits to a spreadsheet: 1.60937E+12 is any of ten million."""
    values = table.columns[options.time] if options.time else pa.chunked_array([[]], pa.string())
    if pa.types.is_dictionary(values.type):
        values = ids.codes(values)[1]
    if not (cut := ids.from_spreadsheets(values)):
        return []
    return [
        f"values of {options.time} are like {cut[0]}: a spreadsheet has cut their digits, and rows that were apart "
        "in time are at one moment; export the column anew"
    ]


def _incomplete(table: LogTable, name: str, missing: np.ndarray) -> UserError:
    return UserError(
        f"{table.place(int(np.argmax(missing)))}: {name} is missing ({int(missing.sum())} of {len(missing)} rows); "
        f"fill it in, or {_LEAVE_OUT}"
    )


def _bad_time(table: LogTable, options: LogsConfig, times: Times, bad: np.ndarray) -> UserError:
    row = int(np.argmax(bad))
    why = why_bad(table, options, times, row)
    leave = "" if int(bad.sum()) > len(bad) // 2 else f", or {_LEAVE_OUT}"
    return UserError(f"{table.place(row)}: {options.time} is {why}{leave}")


def _ids(
    table: LogTable, name: str, form: IdForm | None, kept: np.ndarray
) -> tuple[np.ndarray, pa.Array, IdForm, list[str]]:
    """Returns the place of each row's ID, the IDs, their form, and remarks on them."""
    column = table.columns[name]
    if pa.types.is_nested(column.type):
        raise UserError(f"{table.files[0]}: column {name!r} is a list, which is no ID; name another")
    try:
        of_row, found, form = ids.encode_ids(column, form, kept, table.starts)
    except ids.InexactIdsError:
        raise UserError(
            f"{table.files[0]}: column {name!r} holds floating point numbers of 2^53 and more, whose last digits are "
            "lost: different IDs may have become one; write it as int64 or as text"
        ) from None
    index, values = ids.codes(column)
    _refuse_nul(table, name, index, values)
    present = values.take(pa.array(np.flatnonzero(np.bincount(index[kept], minlength=len(values)))))
    return of_row, found, form, _remarks_on_ids(name, found, present)


def _remarks_on_ids(name: str, found: pa.Array, present: pa.Array) -> list[str]:
    """Says what of the IDs of a column may be wrong; `present` are its values as they are written."""
    remarks = []
    if (twice := len(present) - len(found)) > 0:
        remarks.append(f"{twice:,} values of {name} are another way of writing an ID that is there too (12.0 and 12)")
    num_alike, pair = ids.alike(found)
    if num_alike:
        remarks.append(
            f"{num_alike:,} of {len(found):,} values of {name} differ from another in letter case, signs around or "
            f"within them, or how a letter is coded alone, as {pair[0]!r} and {pair[1]!r} do: they are different IDs "
            "here"
        )
    in_quotes = "stand in quotes that are part of them", "data.logs.quote (--quote) takes those off that are one sign"
    like_a_list = "look like lists", "each counts as one ID; if it stands for several, write a row for each of them"
    for example, (what, advice) in ((ids.in_quotes(found), in_quotes), (ids.like_a_list(found), like_a_list)):
        if example:
            remarks.append(f"values of {name} {what}, as {example!r} does: {advice}")
    if words := ids.nobody(found):
        remarks.append(
            f"{', '.join(map(repr, words))} of {name}, beside {len(found) - len(words):,} other IDs, may stand for "
            "nobody: then add it to data.logs.missing (--missing)"
        )
    if cut := ids.from_spreadsheets(present):
        remarks.append(
            f"{len(cut):,} values of {name} are like {cut[0]}: a spreadsheet has cut their digits; IDs are lost"
        )
    return remarks


def _refuse_nul(table: LogTable, name: str, index: np.ndarray, values: pa.Array) -> None:
    """Refuses IDs with a NUL, which a file has that was cut off by a crash or is still being written."""
    if not pa.types.is_string(values.type) or not pc.any(has := pc.match_substring(values, "\0")).as_py():
        return
    row = int(np.argmax(np.isin(index, np.flatnonzero(has.to_numpy(zero_copy_only=False)))))
    raise UserError(
        f"{table.place(row)}: {name} holds a NUL, as the text of a file does whose writing was cut off: copy or write "
        "it again, or remove the line"
    )
