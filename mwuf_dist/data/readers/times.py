"""Times of rows as microseconds, in a unit that belongs to the data set and not to a file or a value.

A number says nothing of its unit, but times of this age do: most of a data set's times lie between 1973 and 2103 in
one unit of seconds, milliseconds, microseconds or nanoseconds and in no other. `TimeForm` keeps that unit, so that a
later file is
read by it: a file in another unit is refused, and a single value far outside (a 99999999999999 among seconds, year
9999) is one bad row. Numbers that are no such times (days since a start, a counter) are kept as they are.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers.log_tables import LogTable

Unit = Literal["s", "ms", "us", "ns", "number"]

EARLIEST_S, LATEST_S = 1e8, 4.2e9  # March 1973 and February 2103, in seconds since 1970
_PER_S: dict[Unit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "number": "plain numbers"}
_FEW = 10  # So many rows of a file say nothing of its unit.
_MIXED_FROM = 0.01  # So large a fraction of a file in another unit is no accident.
_LARGEST = 9.2e18
_LEAST_YEAR = 1000
_THOUSANDS, _DECIMAL = r"^[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?$", r"^[+-]?[0-9]+,[0-9]+$"


@dataclass(frozen=True)
class TimeForm:
    """How a data set writes times.

    Attributes:
        kind: `order` (no column: a row's place is its time), `number`, `date` (text or a type of dates), or `whole`
            (numbers that are kept as they are, of the data sets that come with the project).
        unit: of `number`; `number` for those that are no times since 1970.
        scale: what a number is multiplied by: to microseconds, or (unit `number`) to keep its fractions.
        is_recent: whether times lie between 1973 and 2103, so that one outside is wrong.
    """

    kind: Literal["order", "number", "date", "whole"]
    unit: Unit = "number"
    scale: float = 1.0
    is_recent: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Gives it as JSON has it."""
        return {"kind": self.kind, "unit": self.unit, "scale": self.scale, "is_recent": self.is_recent}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> TimeForm:
        """Returns the reverse of `to_dict`."""
        return TimeForm(values["kind"], values["unit"], values["scale"], values["is_recent"])


WHOLE = TimeForm("whole")


@dataclass(frozen=True)
class Times:
    """Times of rows.

    Attributes:
        values: microseconds since 1970, or what `TimeForm` says; 0 where there is none, int64 [R].
        has: whether there is a time, bool [R].
        bad: whether there is something else: a word, a value far outside of the others; bool [R].
        form: how they are written.
    """

    values: np.ndarray
    has: np.ndarray
    bad: np.ndarray
    form: TimeForm


def read_times(table: LogTable, options: LogsConfig, form: TimeForm | None = None) -> Times:
    """Returns times of all rows.

    Args:
        table: the rows.
        options: which column, and how dates are written.
        form: of the data set that the rows belong to; None: their own.

    Raises:
        UserError: the column holds no times, or two files (or a file and the data set) have different units.
    """
    if not options.time:
        every = np.ones(table.num_rows, dtype=bool)
        return Times(np.arange(table.num_rows), every, ~every, TimeForm("order"))
    column = table.columns[options.time]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type) or pa.types.is_nested(column.type):
        raise UserError(f"{table.files[0]}: column {options.time!r} has type {column.type}, which is no time")
    number, has, bad, is_date = _read(column, table, options)
    if form is None:
        form = _form_of(number, has, table, options, is_date)
    elif (form.kind == "date" and not is_date) or (form.kind == "number" and is_date):
        ours, theirs = ("dates", "numbers") if is_date else ("numbers", "dates")
        raise UserError(f"{table.files[0]}: {options.time} holds {ours}, where the data set has {theirs}: convert one")
    elif form.kind == "number":
        _refuse_other_units(number, has, table, options, form.unit)
    values, outside = _scaled(number, has, form)
    return Times(np.where(outside, 0, values), has & ~outside, bad | outside, form)


def as_first_prepared(form: TimeForm) -> TimeForm:
    """Returns the form with the scale that the first versions prepared data with (milliseconds as nanoseconds)."""
    old = {"s": 1e6, "ms": 1e6, "us": 1.0, "ns": 1.0}
    return dataclasses.replace(form, scale=old[form.unit]) if form.kind == "number" and form.unit in old else form


def why_bad(table: LogTable, options: LogsConfig, times: Times, row: int) -> str:
    """Says what is wrong with the time of a row, and what to do."""
    value = table.columns[options.time][row].as_py()
    if options.time_format:
        return (
            f"{value!r}, not as data.logs.time_format = {options.time_format!r} has it; correct the row or the format"
        )
    if times.form.kind == "whole" and isinstance(value, float):
        return f"{value!r}; times of this data set are whole numbers; correct it"
    if isinstance(value, str) and times.form.kind != "date" and _is_number(value) is False:
        return (
            f"{value!r}, neither a number nor an ISO 8601 date like the rows before it; correct it, or say in "
            "data.logs.time_format (--time-format) how dates are written (as strptime has it)"
        )
    if times.form.is_recent and (not isinstance(value, str) or _is_number(value)):
        return (
            f"{value!r}, no time in {_WORDS[times.form.unit]} of the years 1973 to 2103, as the others are; correct it"
        )
    return (
        f"{value!r}, neither a number nor an ISO 8601 date of the years 1973 to 2103 like the rows before it; "
        "correct it, "
        "or say in data.logs.time_format (--time-format) how dates are written (as strptime has it)"
    )


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _read(
    column: pa.ChunkedArray, table: LogTable, options: LogsConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Gives numbers (int64 or float64) or microseconds of dates [R].

    Whether there is one; what is something else; dates?
    """
    is_date = pa.types.is_timestamp(column.type)
    given = column.is_valid().to_numpy()
    if pa.types.is_string(column.type):
        if options.time_format:
            parsed, is_date = formatted(column, options.time_format), True
        else:
            parsed, is_date = _parsed(column)
        if parsed is None or (given.any() and parsed.null_count == len(parsed)):
            row = int(np.argmax(given))
            how = f"not as data.logs.time_format = {options.time_format!r} has it" if options.time_format else (
                "neither a number nor an ISO 8601 date; say in data.logs.time_format (--time-format) how dates are "
                "written (as strptime has it)"
            )  # fmt: skip
            raise UserError(f"{table.place(row)}: {options.time} is {column[row].as_py()!r}, {how}")
        column = parsed
    elif options.time_format and not is_date:  # 20200131 among numbers of a Parquet file
        column, is_date = formatted(column.cast(pa.string()), options.time_format), True
    has = column.is_valid().to_numpy()
    if is_date or pa.types.is_integer(column.type):
        number = column.cast(pa.int64()).fill_null(0).to_numpy()
    else:
        number = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
        has = has & np.isfinite(number)
        number = np.where(has, number, 0.0)
    return number, has, given & ~has, is_date


def _parsed(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray | None, bool]:
    """Gives text as numbers or as ISO 8601 dates, whichever most rows are.

    Null where a row is neither. Second: dates.
    """
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us")):
        if (cast := _cast(column, kind)) is not None:
            return cast, pa.types.is_timestamp(kind)
    column = _with_points(column)
    numbers = pc.fill_null(pc.match_substring_regex(column, r"^[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\.?$"), False)
    dates, plain = _iso(column)
    if 2 * (pc.sum(numbers).as_py() or 0) >= (pc.sum(dates).as_py() or 0) + (pc.sum(numbers).as_py() or 0):
        if not pc.any(numbers).as_py():
            return None, False
        kept = pc.if_else(numbers, column, None)
        whole = _cast(kept, pa.int64())
        return (whole if whole is not None else _cast(kept, pa.float64())), False
    return _cast_dates(pc.if_else(dates, plain, None)), True


def _with_points(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Gives numbers whose thousands, or whose fractions, stand behind commas as numbers with at most a point."""
    commas = pc.match_substring(column, ",")
    for form, instead in ((_THOUSANDS, ""), (_DECIMAL, ".")):
        fits = pc.match_substring_regex(column, form)
        if pc.any(fits).as_py() and pc.all(pc.or_(pc.invert(commas), fits)).as_py():
            return pc.if_else(fits, pc.replace_substring(column, ",", instead), column)
    return column


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return None


_DATE = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}(:?\d{2})?)?)?$"


def _iso(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Says which texts are ISO 8601 dates.

    All of them as Arrow reads it: at most six digits of a second, `UTC` as Z.
    """
    text = pc.replace_substring_regex(column, r"\s*(UTC|GMT|Z|z|\+00:?00|\+00)$", "Z")
    text = pc.replace_substring_regex(text, r"^(\d{4}-\d{2}-\d{2})[tT_ ]+(\d{2}:)", r"\1T\2")
    text = pc.replace_substring_regex(text, r"([.,])(\d{1,6})\d*", r".\2")
    text = pc.replace_substring_regex(text, r"\s+([+-]\d{2}:?\d{2})$", r"\1")
    text = pc.replace_substring_regex(text, r"^(\d{4}-\d{2}-\d{2})Z$", r"\1")
    return pc.fill_null(pc.match_substring_regex(text, _DATE), False), text


def _cast_dates(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Gives microseconds of ISO 8601 dates, with a zone or without one (which counts as UTC).

    Null where one is none.
    """
    zone = pc.fill_null(pc.match_substring_regex(text, r"(Z|[+-]\d{2}(:?\d{2})?)$"), False)
    dated = pc.fill_null(pc.match_substring_regex(text, r":\d{2}"), False)
    zone = pc.and_(zone, dated)
    parts = []
    for chosen, kind in ((zone, pa.timestamp("us", "UTC")), (pc.invert(zone), pa.timestamp("us"))):
        part = pc.if_else(chosen, text, None)
        cast = _cast(part, kind)
        if cast is None:  # a 31st of February somewhere
            cast = pa.chunked_array([pa.array([_one_date(one) for one in part.to_pylist()], pa.int64())]).cast(
                pa.timestamp("us")
            )
        parts.append(cast.cast(pa.int64()))
    return pc.coalesce(*parts).cast(pa.timestamp("us"))


def _one_date(text: str | None) -> int | None:
    try:
        when = datetime.datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return None if when is None else _microseconds(when)


def _microseconds(when: datetime.datetime) -> int:
    when = when if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    return (when - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def formatted(column: pa.ChunkedArray, form: str) -> pa.ChunkedArray:
    """Gives text by a format of strptime, null where it does not fit; fractions of a second (%f) and zones (%z) too."""
    if re.search(r"%[zZ]", form):
        distinct = column.dictionary_encode().combine_chunks()
        distinct = distinct.chunk(0) if isinstance(distinct, pa.ChunkedArray) else distinct
        parsed = pa.array([_by_python(one, form) for one in distinct.dictionary.to_pylist()], pa.int64())
        return pa.chunked_array([parsed.take(distinct.indices)]).cast(pa.timestamp("us"))
    fraction = None
    if (found := re.search(r"([.,])%f", form)) is not None:
        sign = re.escape(found.group(1))
        digits = pc.struct_field(pc.extract_regex(column, rf":\d{{2}}{sign}(?P<digits>\d{{1,6}})"), "digits")
        fraction = pc.fill_null(pc.utf8_rpad(digits, 6, "0").cast(pa.int64()), 0)
        column = pc.replace_substring_regex(column, rf"(:\d{{2}}){sign}\d+", r"\1")
        form = form.replace(found.group(0), "")
    parsed = pc.strptime(column, format=form, unit="us", error_is_null=True)
    if "%Y" in form:  # which strptime lets have two digits, and 31/12/20 is of no year 20
        parsed = pc.if_else(pc.greater_equal(pc.year(parsed), _LEAST_YEAR), parsed, None)
    if fraction is not None:
        parsed = pc.add(parsed.cast(pa.int64()), fraction).cast(pa.timestamp("us"))
    return parsed


def _by_python(text: str | None, form: str) -> int | None:
    try:
        return None if text is None else _microseconds(datetime.datetime.strptime(text, form))
    except ValueError:
        return None


def _unit_counts(number: np.ndarray) -> dict[Unit, int]:
    """Says how many numbers are times between 1973 and 2103 in each unit."""
    size = np.abs(number)
    return {unit: int(((size >= EARLIEST_S * per) & (size <= LATEST_S * per)).sum()) for unit, per in _PER_S.items()}


def _unit_of(number: np.ndarray) -> Unit:
    """Returns the unit of most numbers."""
    counts = _unit_counts(number)
    best = max(counts, key=lambda unit: counts[unit])
    return best if 2 * counts[best] >= max(len(number), 1) else "number"


def _form_of(number: np.ndarray, has: np.ndarray, table: LogTable, options: LogsConfig, is_date: bool) -> TimeForm:
    if is_date:
        return TimeForm("date", "us", 1.0, is_recent=_unit_of(number[has]) == "us")
    unit: Unit = _unit_of(number[has])
    if unit == "number":  # no unit has half of all rows: a file's own may tell
        of_files: list[Unit] = [_unit_of(number[a:b][has[a:b]]) for a, b in _bounds(table) if has[a:b].any()]
        told: list[Unit] = [one for one in of_files if one != "number"]
        unit = told[0] if told else unit
    _refuse_other_units(number, has, table, options, unit)
    if unit != "number":
        return TimeForm("number", unit, 1e6 / _PER_S[unit], is_recent=True)
    # Millionths keep fractions of numbers that are small enough; most of them decide, not the largest.
    typical = float(np.median(np.abs(number[has]))) if has.any() else 0.0
    return TimeForm("number", unit, 1.0 if typical >= 1e11 else 1e6)


def _refuse_other_units(number: np.ndarray, has: np.ndarray, table: LogTable, options: LogsConfig, unit: Unit) -> None:
    """Refuses a file (or a good part of one) in another unit than the data set's."""
    units = [_unit_of(number[a:b][has[a:b]]) if has[a:b].any() else unit for a, b in _bounds(table)]
    like = next((path for path, one in zip(table.files, units, strict=True) if one == unit), None)
    for (start, stop), path, one in zip(_bounds(table), table.files, units, strict=True):
        values = number[start:stop][has[start:stop]]
        counts = _unit_counts(values)
        if one != unit and (one != "number" or (unit != "number" and len(values) > _FEW)):
            other = f"{like} has {_WORDS[unit]}" if like else f"the data set has {_WORDS[unit]}"
            raise UserError(
                f"{path}: its times ({options.time}, like {values[0]}) are {_WORDS[one]}, but {other}: bring all "
                "files to "
                "one unit"
            )
        for wrong, count in counts.items():
            if wrong != unit and unit != "number" and count > 1 and count >= _MIXED_FROM * len(values):
                per = _PER_S[wrong]
                size = np.abs(number[start:stop])
                row = int(np.argmax(has[start:stop] & (size >= EARLIEST_S * per) & (size <= LATEST_S * per)))
                raise UserError(
                    f"{table.place(start + row)}: {options.time} is {number[start + row]}, in {_WORDS[wrong]}, as are "
                    f"{count} rows of this file; its other times are in {_WORDS[unit]}: bring all to one unit"
                )


def _bounds(table: LogTable) -> list[tuple[int, int]]:
    return list(zip(table.starts[:-1].tolist(), table.starts[1:].tolist(), strict=True))


def _scaled(number: np.ndarray, has: np.ndarray, form: TimeForm) -> tuple[np.ndarray, np.ndarray]:
    """Times as int64; which of them are far outside of what the form allows."""
    size = np.abs(number.astype(np.float64))
    outside = has & (size * max(form.scale, 1.0) > _LARGEST)
    if form.is_recent:
        per = 1e6 if form.kind == "date" else _PER_S[form.unit]
        outside |= has & ((number < EARLIEST_S * per) | (size > LATEST_S * per))
    number = np.where(outside, 0, number)
    if form.kind == "whole":
        outside |= has & (number != np.floor(number))
    if form.scale == 1.0 or number.dtype != np.int64:
        scaled = np.round(number * form.scale) if number.dtype != np.int64 else number
    elif form.scale >= 1.0:
        scaled = number * int(form.scale)
    else:
        scaled = number // round(1 / form.scale)
    return scaled.astype(np.int64), outside
