"""Which column is the time of a row, by its name and its values, and how it is written."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.init_config import names
from mwuf_dist.data.init_config.label_guess import numbers_of
from mwuf_dist.data.readers import encode, times
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable

if TYPE_CHECKING:
    from mwuf_dist.data.init_config.propose import Asked, Proposal

TIME_FORMATS = ("%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y")
TIME_FORMATS += ("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d-%m-%Y")
TIME_FORMATS += ("%m-%d-%Y %H:%M:%S", "%m-%d-%Y %H:%M", "%m-%d-%Y", "%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p")
TIME_FORMATS += ("%m/%d/%Y, %I:%M:%S %p", "%d/%m/%Y, %H:%M:%S", "%d.%m.%Y, %H:%M:%S")  # of browsers
TIME_FORMATS += ("%d-%b-%Y %H:%M:%S", "%d-%b-%Y", "%d %b %Y %H:%M:%S", "%d %b %Y")
TIME_FORMATS += tuple(one.replace("%Y", "%y") for one in TIME_FORMATS)
TIME_FORMATS += ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y.%m.%d %H:%M:%S", "%Y-%m-%d %I:%M:%S %p")
TIME_FORMATS += ("%Y%m%dT%H%M%SZ", "%Y%m%dT%H%M%S", "%b %d, %Y", "%B %d, %Y", "%d %B %Y", "%b %d, %Y %I:%M:%S %p")
TIME_FORMATS += ("%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y", "%d/%b/%Y:%H:%M:%S %z")
TIME_FORMATS += ("%a, %d %b %Y %H:%M:%S %Z", "%a, %d %b %Y %H:%M:%S %z")
_TRIED = 100  # So many values say whether a form is worth a look at all of them.
_OF_THE_DAY = "hours of the day"
_OF_DAY = r"^([01]?[0-9]|2[0-4]):[0-9]{2}(:[0-9]{2}([.,][0-9]+)?)?( ?[AaPp]\.?[Mm]\.?)?$"
_MUCH_LONGER = 5
_MOST_GAPS = 0.2  # A column with more rows without a time is no finer one.


def propose_time(found: Proposal, log: LogTable, asked: Asked) -> None:
    """Adds the column of the time to a proposal, and how dates are written.

    Raises:
        UserError: a column looks like the time and is none that is understood, or several could be meant.
    """
    options = found.options
    rest = [name for name in log.columns.column_names if name not in (options.user, options.item)]
    if asked.time == "none":
        found.options, found.notes["time"] = dataclasses.replace(options, time=""), "as --time none says"
        return
    if asked.time and asked.time not in rest:
        raise UserError(f"{log.files[0]}: no column {asked.time!r}; --time takes one of {', '.join(rest)}")
    parts = [one for one in rest if names.is_part_of_a_date(one, rest)]
    hours = [one for one in rest if one != asked.time and one not in parts and _is_hour_of_day(one, log.columns[one])]
    whole = [one for one in rest if one not in (*parts, *hours)]
    scored = sorted((one for one in whole if names.time_score(one)), key=names.time_score, reverse=True)
    dates = [one for one in whole if one not in scored and _holds_dates(log.columns[one])]
    tried = [f"{one} holds {_OF_THE_DAY}" for one in hours]
    accepted: dict[str, str] = {}
    for name in [asked.time] if asked.time else [*scored, *dates]:
        if pa.types.is_nested(log.columns[name].type):
            tried.append(f"{name} holds lists")
            continue
        if not asked.time and len(codes(log.columns[name])[1]) < 2:
            tried.append(f"{name} has one value")
            continue
        form = _time_format(found, log, name, asked.time_format)
        if form is None:
            tried.append(_why_no_time(found, log, name))
            continue
        accepted[name] = form
    if not asked.time:
        taken = next(iter(accepted), "")
        found.refuse_lacking(log, "time", taken, names.time_score)
        names.refuse_unread(log.unread or {}, log.files[0], "time", taken, names.time_score)
    if accepted:
        name = asked.time or _finest(found, log, accepted)
        if not asked.time:
            _refuse_times_of_the_day(found, log, name, accepted[name])
        form, others = accepted[name], [one for one in [*scored, *dates] if one != name][:3]
        why = "as --time says" if asked.time else "by its name" if name in scored else "its values are dates"
        found.notes["time"] = why + (f"; {', '.join(others)} could be it, too (--time)" if others else "")
        found.options = dataclasses.replace(options, time=name, time_format=form)
        if not asked.time_format:
            form, found.notes["time_format"] = _day_and_month(found.options, log)
            found.options = dataclasses.replace(found.options, time_format=form)
        read = times.read_times(log, found.options)
        if read.form.is_recent and read.has.any():
            first, last = (read.values[read.has].min(), read.values[read.has].max())
            found.notes["time"] += f"; from {_day(first)} to {_day(last)}"
        elif read.form.kind in ("number", "date"):
            what = "numbers are no moments" if read.form.kind == "number" else "dates are not"
            found.notes["time"] += f"; its {what} of the years 1973 to 2103: only their order counts"
        return
    _no_time(found, log, parts, tried)


def _day(microseconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(int(microseconds) // 10**6, datetime.UTC):%Y-%m-%d}"


def _refuse_times_of_the_day(found: Proposal, log: LogTable, day: str, form: str) -> None:
    """Refuses a column of days beside which the time of the day stands in a column of its own.

    Raises:
        UserError: it names both.
    """
    read = times.read_times(log, dataclasses.replace(found.options, time=day, time_format=form))
    if read.form.kind != "date" or np.mod(read.values, 86_400 * 10**6).any():
        return
    for name, column in zip(log.columns.column_names, log.columns.columns, strict=True):
        if name == day or not names.time_score(name) or pa.types.is_nested(column.type):
            continue
        if _is_time_of_day(text_of(codes(column)[1])) and not _is_of_an_entity(found.options, log, column):
            raise UserError(
                f"{log.files[0]}: the time is written in parts ({day}, {name}): make one column of them, or say --time "
                f"{day}, so that the day alone counts"
            )


def _is_of_an_entity(options: LogsConfig, log: LogTable, column: pa.ChunkedArray) -> bool:
    """Says whether each user, or each item, has one value of a column (when a shop opens)."""
    ids = (codes(log.columns[name])[0] for name in (options.user, options.item))
    return any((encode.OneValue(one).share(column) or 0.0) >= options.constant_share for one in ids)


def _is_time_of_day(values: pa.Array) -> bool:
    """Says whether all of distinct values are times of a day: 13:21:33, or more of them than hours as 132133.

    3:25 is none where no value reaches eight hours: a log has no days that end at eight in the morning, and songs are
    shorter.
    """
    if len(values) < 2 or not pa.types.is_string(values.type):
        return False
    if pc.all(pc.match_substring_regex(values, _OF_DAY)).as_py():
        of_half_days = pc.any(pc.match_substring_regex(values, "[AaPp]")).as_py()
        return of_half_days or pc.any(pc.match_substring_regex(values, r"^(0?[89]|1[0-9]|2[0-4]):")).as_py()
    packed = pc.match_substring_regex(pc.utf8_lpad(values, 6, "0"), r"^([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9]$")
    return len(values) > 24 and bool(pc.all(packed).as_py())


def _no_time(found: Proposal, log: LogTable, parts: list[str], tried: list[str]) -> None:
    """Proposes that the order of the rows counts, if no column looks like a time that is not understood."""
    if parts:
        raise UserError(
            f"{log.files[0]}: the time is written in parts ({', '.join(parts)}, ...): make one column of them, name "
            "another with --time COLUMN, or say --time none, so that the order of the rows counts"
        )
    refused = [one for one in tried if not one.endswith(("one value", _OF_THE_DAY))]
    if refused:
        raise UserError(
            f"{log.files[0]}: a column looks like the time, but not all of it is a number or a known form of date "
            f"({'; '.join(refused)}): name another with --time COLUMN, say how dates are written with --time-format "
            "(as strptime has it) or what stands for none with --missing, or say --time none, so that the order of the "
            "rows counts"
        )
    found.notes["time"] = "no column looks like a time (--time names one): the order of the rows counts"
    found.notes["time"] += f"; {'; '.join(tried)}" if tried else ""
    if len(log.files) > 1:
        found.notes["time"] += f", and of the files: {log.files[0].name}, {log.files[1].name}, ..."
    found.options = dataclasses.replace(found.options, time="")


def _day_and_month(options: LogsConfig, log: LogTable) -> tuple[str, str]:
    """Returns the format, with day, month and year in the order in which the rows are in order of time, and a note.

    Raises:
        UserError: nothing tells which order it is.
    """
    form = options.time_format
    found = re.match(r"(%[dm])([/.-])(%[dm])\2(%[yY])", form)
    if found is None:
        return form, ""
    first, sign, second, year = found.groups()
    # With points nobody writes the month first.
    orders = [(first, second, year), *([(second, first, year)] if sign != "." else [])]
    orders += [(year, "%m", "%d")] if year == "%y" else []
    forms = [sign.join(one) + form[found.end() :] for one in orders]
    column = log.columns[options.time]
    read = {
        one: times.read_times(log, dataclasses.replace(options, time_format=one)) for one in forms if _fits(column, one)
    }
    read = {one: of for one, of in read.items() if of.bad.sum() <= 0.01 * len(of.bad)}
    # 31/12/20 is no day of 2031: an order that gives years to come gives way to one that gives none. Days to come may
    # be right: bookings have them, and clocks ahead of UTC.
    next_year = datetime.datetime(datetime.datetime.now(datetime.UTC).year + 1, 1, 2, tzinfo=datetime.UTC)
    read = {one: of for one, of in read.items() if of.values.max() < next_year.timestamp() * 1e6} or read
    read = {one: read[one] for one in _of_plausible_years(read)}
    if len(forms) == 1:
        return forms[0], "with points the day stands first"
    if len(read) == 1:
        return next(iter(read)), "a number above 12, a year to come or many years tell the day from the rest"
    ordered = [one for one, of in read.items() if bool((np.diff(of.values[of.has]) >= 0).all())]
    if len(ordered) == 1:
        return ordered[0], "so the rows are in order of time; the other way round they are not"
    raise UserError(
        f"{log.files[0]}: no date of {options.time} (like {column.drop_null()[0].as_py()!r}) tells which of its "
        "numbers is the day: say it, " + " or ".join(f"--time-format {one!r}" for one in read)
    )


def _of_plausible_years(read: Mapping[str, times.Times]) -> list[str]:
    """Returns formats without those that begin with the year, or do not, where it makes the log much longer.

    01/09/20 to 25/09/20 are days of a month, and not one day of each of 25 years.
    """
    spans = {one: max(86_400 * 10**6, int(np.ptp(of.values[of.has]))) for one, of in read.items()}

    def is_plausible(form: str) -> bool:
        others = [span for one, span in spans.items() if one.startswith("%y") != form.startswith("%y")]
        return not others or spans[form] <= _MUCH_LONGER * min(others)

    return [form for form in spans if is_plausible(form)]


def _fits(column: pa.ChunkedArray, form: str) -> bool:
    """Says whether any of a column's first values is written so; a form without a name of it is for numbers and ISO."""
    first = column.slice(0, 10 * _TRIED).drop_null().slice(0, _TRIED)
    return not form or not len(first) or times.formatted(first.cast(pa.string()), form).null_count < len(first)


def _finest(found: Proposal, log: LogTable, accepted: dict[str, str]) -> str:
    """Picks of the columns of times the one named best, or a much finer one of true times (a date beside it)."""
    first = next(iter(accepted))
    moments: dict[str, int] = {}
    for name, form in accepted.items():
        read = times.read_times(log, dataclasses.replace(found.options, time=name, time_format=form))
        is_moment = read.form.kind == "date" or read.form.is_recent
        is_full = read.has.mean() > 1 - _MOST_GAPS
        moments[name] = len(codes(log.columns[name])[1]) if is_moment and is_full and names.time_score(name) else 0
    finest = max(accepted, key=lambda name: moments[name])
    return finest if moments[finest] >= 2 * max(1, moments[first]) else first


def _is_hour_of_day(name: str, column: pa.ChunkedArray) -> bool:
    """Says whether a column named after hours has none but those of a day, which begin again each day."""
    if names.words(name)[-1:] != ["hour"] or pa.types.is_nested(column.type) or pa.types.is_timestamp(column.type):
        return False
    numbers = numbers_of(column)
    return numbers is not None and bool(np.isin(numbers[~np.isnan(numbers)], np.arange(25)).all())


def _holds_dates(column: pa.ChunkedArray) -> bool:
    """Says whether values are dates, whatever the column's name."""
    if pa.types.is_timestamp(column.type):
        return True
    if pa.types.is_nested(column.type):
        return False
    values = codes(column)[1]
    return pa.types.is_string(values.type) and len(values) > 1 and bool(
        pc.all(pc.match_substring_regex(values, r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}.*)?$")).as_py()
    )  # fmt: skip


def _why_no_time(found: Proposal, log: LogTable, name: str) -> str:
    """Says what is no time in a column, where most of it is, or else what its values are like."""
    with contextlib.suppress(UserError):
        bad = times.read_times(log, dataclasses.replace(found.options, time=name)).bad
        if bad.mean() < 0.5:
            row = int(np.argmax(bad))
            example = f"{str(log.columns[name][row].as_py())!r} in {log.place(row)}"
            return f"{name} is a time in most rows, and none in {int(bad.sum()):,}, like {example}"
    return f"{name} is like {_examples(log.columns[name])}"


def _examples(column: pa.ChunkedArray) -> str:
    """Names a value of a column, and one of another kind (a word among numbers) where there is one."""
    values = codes(column)[1].cast(pa.string())
    kinds = pc.if_else(pc.match_substring_regex(values, r"^[+-]?[0-9.]+$"), 0, pc.if_else(
        pc.match_substring_regex(values, r"^[0-9]{1,4}[-/.:]"), 1, 2))  # fmt: skip
    first = [pc.index(kinds, kind).as_py() for kind in range(3)]
    return " and ".join(repr(values[place].as_py()) for place in sorted(first) if place >= 0)


def _packed_format(column: pa.ChunkedArray) -> str:
    """Returns the format of dates that are written as one number (20200131, 20200131235959); empty: they are none."""
    if pa.types.is_nested(column.type) or pa.types.is_timestamp(column.type) or pa.types.is_boolean(column.type):
        return ""
    text = text_of(codes(column)[1])
    for form in ("%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S"):
        digits = 2 * form.count("%") + 2
        if pc.all(pc.match_substring_regex(text, rf"^(19|20)[0-9]{{{digits - 2}}}$")).as_py():
            read = pc.strptime(text, format=form, unit="s", error_is_null=True)
            return form if not read.null_count else ""
    return _year_last(text)


def _year_last(text: pa.Array) -> str:
    """Returns the format of days that are written as one number with the year at its end; empty: they are none.

    Raises:
        UserError: nothing tells the day from the month.
    """
    if len(text) < 2 or not pc.all(pc.match_substring_regex(text, r"^[0-9]{3,4}(19|20)[0-9]{2}$")).as_py():
        return ""
    padded = pc.utf8_lpad(text, 8, "0")
    forms = [
        form
        for form in ("%d%m%Y", "%m%d%Y")
        if not pc.strptime(padded, format=form, unit="s", error_is_null=True).null_count
    ]
    if forms and (len(forms) > 1 or pc.min(pc.utf8_length(text)).as_py() < 8):
        raise UserError(
            f"dates like {text[0].as_py()!r} are days with the year at the end, whose order as numbers is not that of "
            f"time: write them with all digits, and say --time-format {' or '.join(forms)}"
        )
    return forms[0] if forms else ""


def _is_one_value(column: pa.ChunkedArray, bad: np.ndarray) -> bool:
    """Says whether one value alone is no time (0, which means none), in at most so many rows as may have gaps."""
    return bool(bad.mean() <= _MOST_GAPS) and len(np.unique(codes(column)[0][bad])) == 1


def _time_format(found: Proposal, log: LogTable, name: str, asked: str) -> str | None:
    """Says how the column's times are written (empty: numbers or ISO 8601), None where they are no times."""
    packed = "" if asked else _packed_format(log.columns[name])
    for form in [asked or packed] if asked or packed else ["", *TIME_FORMATS]:
        if not (asked or packed or _fits(log.columns[name], form)):
            continue
        tried = dataclasses.replace(found.options, time=name, time_format=form)
        try:
            read = times.read_times(log, tried)
        except UserError as error:
            if asked or "one unit" in str(error):
                raise
            continue
        if read.bad.sum() <= 0.01 * len(read.bad) or (form == "" and _is_one_value(log.columns[name], read.bad)):
            return form
    return None
