"""What rows of own logs say: their label by the rule of the config, and their time as a number."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import difflib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers.encode import codes, text_of, to_float
from mwuf_dist.data.readers.log_tables import LogTable

MISSING = -1
# No time in seconds or milliseconds since 1970 is as large before the year 2255, and none in microseconds as small
# since April 1970; a millionth of it still fits into 64 bits.
_MICROSECONDS_FROM = 9e12
_MILLIONTHS = 1_000_000
_ZERO, _ONE = ("0", "0.0", "false"), ("1", "1.0", "true")


def read_labels(table: LogTable, options: LogsConfig, whole: bool = True) -> np.ndarray:
    """Label of each row by the rule of the config, `MISSING` where its column has none; int8 [R].

    Args:
        table: the rows.
        options: the rule.
        whole: they are all rows there are. Of a part of them nobody can say that it lacks a value or a class.

    Raises:
        UserError: a value that the rule cannot read (with file and line), or all labels are the same.
    """
    name = options.label or options.label_from
    if not name:
        return np.ones(table.num_rows, dtype=np.int8)
    index, values = codes(table.columns[name])
    if options.label:
        of_value = _zero_or_one(values)
    elif options.label_is:
        of_value = _one_of(values, options, table if whole else None)
    else:
        number = to_float(values) if pa.types.is_string(values.type) else values.cast(pa.float64()).to_numpy(False)
        of_value = np.where(np.isnan(number), MISSING, number >= options.label_at_least).astype(np.int8)
    bad = np.flatnonzero(of_value == MISSING)
    if len(bad):
        row = int(np.argmax(np.isin(index, bad)))
        value = values[int(index[row])].as_py()
        if options.label:
            raise UserError(
                f"{table.place(row)}: {name} is {value!r}, neither 0 nor 1; to make labels of such a column set "
                f"data.logs.label_from = {name!r} with data.logs.label_at_least or data.logs.label_is, and no label"
            )
        raise UserError(
            f"{table.place(row)}: {name} is {value!r}, no number that could be at least {options.label_at_least}; "
            "correct it, or set data.logs.label_is to the values that are positive"
        )
    label = np.append(of_value, np.int8(MISSING))[index]
    if whole:
        _refuse_one_class(label[label != MISSING], name, table)
    return label


def _zero_or_one(values: pa.Array) -> np.ndarray:
    text = [one.strip().lower() for one in values.cast(pa.string()).to_pylist()]
    return np.array([1 if one in _ONE else 0 if one in _ZERO else MISSING for one in text], dtype=np.int8)


def _one_of(values: pa.Array, options: LogsConfig, whole: LogTable | None) -> np.ndarray:
    there = text_of(values).to_pylist()
    for wanted in options.label_is:
        if whole is not None and wanted not in there:
            near = difflib.get_close_matches(wanted, there, n=1, cutoff=0.0)
            raise UserError(
                f"data.logs.label_is: no row of {whole.files[0].parent} has {options.label_from} = {wanted!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return np.array([one in options.label_is for one in there], dtype=np.int8)


def _refuse_one_class(label: np.ndarray, name: str, table: LogTable) -> None:
    if len(label) and (label == label[0]).all():
        advice = "check the label rule"
        if label[0]:
            advice = "for data of positives only, name no label column and set data.logs.negatives_per_positive"
        raise UserError(f"{table.files[0]}: every label by column {name!r} is {label[0]}: nothing to learn; {advice}")


def read_times(table: LogTable, options: LogsConfig, is_whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Time of each row and whether it has one.

    Numbers below 9e12 become millionths of their unit (of seconds: microseconds), rounded, so that files of whole and
    of fractional seconds agree; larger ones can only be microseconds or less, and are rounded. Dates become
    microseconds. Only the order of times matters.

    Args:
        table: the rows.
        options: which column.
        is_whole: times are whole numbers and stay as they are.

    Returns:
        Times, int64 [R] (0 where missing); whether there is one, bool [R].

    Raises:
        UserError: a time is no number and no date, or not whole where it has to be; it names file and line.
    """
    if not options.time:
        return np.arange(table.num_rows), np.ones(table.num_rows, dtype=bool)
    column = table.columns[options.time]
    if pa.types.is_dictionary(column.type):  # files that disagreed on its type
        column = column.cast(column.type.value_type)
    if options.time_format:
        return _formatted(column.cast(pa.string()), table, options)
    if pa.types.is_string(column.type):
        column = _parsed(column, table, options)
    if pa.types.is_floating(column.type):
        return _from_fractions(column.to_numpy(), table, options, is_whole)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
        return column.cast(pa.int64()).fill_null(0).to_numpy(), column.is_valid().to_numpy()
    if not pa.types.is_integer(column.type):
        raise UserError(f"{table.files[0]}: column {options.time!r} has type {column.type}, which is no time")
    time = column.cast(pa.int64()).fill_null(0).to_numpy()
    scale = 1 if is_whole or np.abs(time).max(initial=0) >= _MICROSECONDS_FROM else _MILLIONTHS
    return time * scale, column.is_valid().to_numpy()


def _from_fractions(
    number: np.ndarray, table: LogTable, options: LogsConfig, is_whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(number)
    number = np.where(known, number, 0)
    if is_whole and (number != np.floor(number)).any():
        row = int(np.argmax(number != np.floor(number)))
        raise UserError(
            f"{table.place(row)}: {options.time} is {number[row]}; times of this data set are whole numbers"
        )
    scale = 1 if is_whole or np.abs(number).max(initial=0) >= _MICROSECONDS_FROM else _MILLIONTHS
    return np.round(number * scale).astype(np.int64), known


def _formatted(column: pa.ChunkedArray, table: LogTable, options: LogsConfig) -> tuple[np.ndarray, np.ndarray]:
    parsed = pc.strptime(column, format=options.time_format, unit="us", error_is_null=True)
    bad = pc.and_(column.is_valid(), parsed.is_null()).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"{table.place(row)}: {options.time} is {column[row].as_py()!r}, not as data.logs.time_format = "
            f"{options.time_format!r} has it; correct the row or the format"
        )
    return parsed.cast(pa.int64()).fill_null(0).to_numpy(), parsed.is_valid().to_numpy()


_TIME_TYPES = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"))


def _parsed(column: pa.ChunkedArray, table: LogTable, options: LogsConfig) -> pa.ChunkedArray:
    """Text as numbers or ISO 8601 dates: the first way in which every row can be read."""
    for kind in _TIME_TYPES:
        if _casts(column, kind):
            return column.cast(kind)
    # The way that goes furthest tells which row is wrong.
    row = max(_first_refused(column, kind) for kind in _TIME_TYPES)
    raise UserError(
        f"{table.place(row)}: {options.time} is {column[row].as_py()!r}, neither a number nor an ISO 8601 date like "
        "the rows before it; correct it, or say in data.logs.time_format how dates are written (as strptime has it)"
    )


def _casts(column: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        column.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _first_refused(column: pa.ChunkedArray, kind: pa.DataType) -> int:
    """The first row that cannot be cast, by halves."""
    low, high = 0, len(column)  # rows before `low` can be cast, one of those before `high` cannot
    while high - low > 1:
        middle = (low + high) // 2
        if _casts(column.slice(low, middle - low), kind):
            low = middle
        else:
            high = middle
    return low
