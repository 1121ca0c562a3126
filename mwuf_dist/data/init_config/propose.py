"""Looks at someone's logs and proposes section `data.logs`: which column is what, by its name and by its content."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data.readers import encode, log_files, log_tables, times
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable
from mwuf_dist.data.schema import RAW_ID, USER_ID, Side

USER_NAMES = ("user_id", "userid", "user", "uid", "customer", "member", "visitor", "account", "listener", "reader")
ITEM_NAMES = (
    "item_id",
    "itemid",
    "item",
    "iid",
    "movie",
    "film",
    "product",
    "article",
    "adgroup",
    "ad",
    "track",
    "song",
)
ITEM_NAMES += ("video", "book", "recipe", "news", "sku", "asin", "game", "business", "place", "podcast", "show")
TIME_NAMES = ("timestamp", "time_stamp", "event_time", "time", "ts", "datetime", "date", "created", "played", "day")
TIME_NAMES += ("when",)
LABEL_NAMES = ("label", "clicked", "is_click", "click", "clk", "target", "liked", "like", "purchased", "bought")
RATING_NAMES = ("rating", "stars", "score", "overall", "grade")
ACTION_NAMES = ("event_type", "event", "behavior_type", "behavior", "behaviour", "action", "btag")
# From the rarest and most telling on: the first that is there is what counts as positive.
POSITIVE_ACTIONS = ("buy", "purchase", "transaction", "order", "cart", "like", "fav", "click")
TIME_FORMATS = ("%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y")
TIME_FORMATS += ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y")
SEPARATORS = ("|", ";", ",", " ")
NEGATIVES = 4
NUMERIC_FROM = 30  # A column of numbers with at least so many distinct values is numeric.
CONSTANT_SHARE = 0.99  # So many of the users (or items) have one value of the column: it is theirs.


@dataclass
class Proposal:
    """What was found.

    Attributes:
        options: section `data.logs`.
        notes: per key or field name, what a person should know of the choice.
        left_out: column -> why it is no field.
    """

    options: LogsConfig
    notes: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def propose(interactions: str, users: str = "", items: str = "", **named: str) -> Proposal:
    """Proposes a section for logs.

    Args:
        interactions: file or folder.
        users: side table, or empty.
        items: the same for items.
        named: columns that the user names: `user`, `item`, `time`, `label`; empty ones are looked for.

    Raises:
        UserError: the files cannot be read, or no column looks like the user or the item.
    """
    options = LogsConfig(interactions=interactions, users=users, items=items)
    files = log_files.find_files(interactions, "LOGS")
    beside = {path for key in (users, items) if key for path in log_files.find_files(key, "--users or --items")}
    files = tuple(path for path in files if path not in beside)
    options = dataclasses.replace(options, delimiter=_delimiter(files[0]))
    names = log_tables.column_names(files[0], options)
    log = log_tables.read(files, names, options, "interactions")
    found = Proposal(options)
    user = named.get("user") or _by_name(names, USER_NAMES)
    item = named.get("item") or _by_name([name for name in names if name != user], ITEM_NAMES)
    for what, column in (("user", user), ("item", item)):
        if column not in names:
            raise UserError(f"{files[0]}: no column looks like the {what}; name it: --{what} one of {', '.join(names)}")
    found.options = dataclasses.replace(found.options, user=user, item=item)
    _propose_time(found, log, named.get("time", ""))
    _propose_label(found, log, named.get("label", ""))
    _propose_incomplete(found, log)
    _propose_fields(found, log)
    return found


def _delimiter(path: Path) -> str:
    """What divides the line of names, empty where that is the default."""
    if log_files.is_parquet(path):
        return ""
    line = ",".join(log_tables.column_names(path, LogsConfig(delimiter="\x1f")))
    best = max((",", ";", "\t", "|"), key=line.count)
    usual = "\t" if ".tsv" in path.name.lower() else ","
    return "" if best == usual or not line.count(best) else best


def _by_name(names: Sequence[str], wanted: Sequence[str]) -> str:
    """The column whose name is one of the wanted, or has one of them as a word; empty where there is none."""
    plain = {name: re.sub(r"[^a-z0-9]+", "_", name.strip().lower()) for name in names}
    for word in wanted:
        for name, text in plain.items():
            if text == word:
                return name
    for word in wanted:
        for name, text in plain.items():
            if word in text.split("_") or f"{word}id" in text.split("_"):
                return name
    return ""


def _propose_time(found: Proposal, log: LogTable, named: str) -> None:
    options = found.options
    rest = [name for name in log.columns.column_names if name not in (options.user, options.item)]
    time = named or _by_name(rest, TIME_NAMES)
    if not time:
        found.notes["time"] = "no column looks like a time (--time names one): the order of the rows counts"
        found.options = dataclasses.replace(options, time="")
        return
    for form in ("", *TIME_FORMATS):
        tried = dataclasses.replace(options, time=time, time_format=form)
        try:
            times.read_times(log, tried)
        except UserError:
            continue
        found.options = tried
        if (form and "%d/%m" in form) or "%m/%d/" in form:
            found.notes["time_format"] = "day and month may be the other way round: look at a date above 12"
        return
    raise UserError(
        f"{log.files[0]}: column {time!r} looks like the time, but {log.columns[time][0].as_py()!r} is no number and "
        "no known form of date; name another with --time COLUMN"
    )


def _propose_label(found: Proposal, log: LogTable, named: str) -> None:
    options = found.options
    taken = (options.user, options.item, options.time)
    rest = [name for name in log.columns.column_names if name not in taken and not _is_list(log.columns[name])]
    for name in filter(None, (named, *(_by_name([one], LABEL_NAMES) for one in rest))):
        if _is_binary(log.columns[name]):
            found.options = dataclasses.replace(options, label=name)
            return
    entity = _entities(log, options)
    binary = [one for one in rest if _is_binary(log.columns[one]) and _side_of(log.columns[one], entity) is None]
    if len(binary) == 1 and not named:
        found.options = dataclasses.replace(options, label=binary[0])
        found.notes["label"] = "the only column of 0 and 1 that changes from row to row"
        return
    rating = named or _by_name(rest, RATING_NAMES)
    if rating and (numbers := _numbers(log.columns[rating])) is not None:
        threshold, share = _halving(numbers)
        found.options = dataclasses.replace(options, label_from=rating, label_at_least=threshold)
        found.notes["label_at_least"] = f"makes {share:.0%} of the rows positive, of all thresholds the nearest to half"
        return
    action = named or _by_name(rest, ACTION_NAMES)
    if action:
        values = text_of(codes(log.columns[action])[1]).to_pylist()
        positive = [next((v for v in values if word in v.lower()), None) for word in POSITIVE_ACTIONS]
        chosen = next(filter(None, positive), None)
        if chosen and len(values) > 1:
            found.options = dataclasses.replace(options, label_from=action, label_is=(chosen,))
            found.notes["label_is"] = f"of {', '.join(sorted(values)[:12])}"
            return
    if named:
        raise UserError(f"--label {named}: the column is neither 0 or 1, nor numbers, nor actions like 'buy'")
    found.options = dataclasses.replace(options, negatives_per_positive=NEGATIVES)
    found.notes["negatives_per_positive"] = "no column looks like a label: every row is taken as a positive"


def _is_list(column: pa.ChunkedArray) -> bool:
    return pa.types.is_list(column.type) or pa.types.is_large_list(column.type)


def _is_binary(column: pa.ChunkedArray) -> bool:
    values = {text.lower() for text in text_of(codes(column)[1]).to_pylist()}
    return values in ({"0", "1"}, {"false", "true"})


def _numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """Each row's number, NaN where it is missing; None for a column of something else."""
    index, values = codes(column)
    if pa.types.is_boolean(values.type) or pa.types.is_timestamp(values.type) or not len(values):
        return None
    numbers = encode.to_float(values.cast(pa.string()))
    return None if np.isnan(numbers).any() else np.append(numbers, np.nan)[index]


def _halving(numbers: np.ndarray) -> tuple[float, float]:
    """The threshold that makes the share of rows at or above it nearest to a half; that share."""
    known = numbers[~np.isnan(numbers)]
    shares = {float(one): float((known >= one).mean()) for one in np.unique(known)[1:101]}
    best = min(shares, key=lambda one: abs(shares[one] - 0.5), default=1.0)
    return best, shares.get(best, 0.0)


def _propose_incomplete(found: Proposal, log: LogTable) -> None:
    needed = (found.options.user, found.options.item, found.options.time, found.options.label)
    gaps = {name: log.columns[name].null_count for name in (*needed, found.options.label_from) if name}
    if any(gaps.values()):
        found.options = dataclasses.replace(found.options, drop_incomplete=True)
        found.notes["drop_incomplete"] = "missing: " + ", ".join(f"{n} x {name}" for name, n in gaps.items() if n)


def _propose_fields(found: Proposal, log: LogTable) -> None:
    options = found.options
    used = {options.user, options.item, options.time, options.label, options.label_from}
    sides: tuple[Side, Side] = ("user", "item")
    fields: list[LogsField] = []
    for side in sides:
        id_column = getattr(options, side)
        if not (named := getattr(options, f"{side}s")):
            continue
        files = log_files.find_files(named, f"--{side}s")
        table = log_tables.read(files, log_tables.column_names(files[0], options), options, f"{side}s")
        if id_column not in table.columns.column_names:
            raise UserError(f"{files[0]}: no column {id_column!r} to join by; rename its ID column so")
        for name in table.columns.column_names:
            if name != id_column and name not in used:
                used.add(name)
                _add_field(found, fields, name, side, table.columns[name])
    entity = _entities(log, options)
    for name in log.columns.column_names:
        if name in used:
            continue
        side = _side_of(log.columns[name], entity)
        if side is None:
            found.left_out[name] = "it changes from row to row, for users and for items: no feature of either"
        else:
            _add_field(found, fields, name, side, log.columns[name])
    found.options = dataclasses.replace(found.options, fields=tuple(fields))


def _entities(log: LogTable, options: LogsConfig) -> dict[Side, np.ndarray]:
    """User and item of each row, -1 where missing."""
    return {"user": codes(log.columns[options.user])[0], "item": codes(log.columns[options.item])[0]}


def _side_of(column: pa.ChunkedArray, entity: dict[Side, np.ndarray]) -> Side | None:
    """Whose feature a column of the interactions is: theirs who have one value each."""
    if _is_list(column):
        column = pa.chunked_array([pa.array([None if one is None else str(one) for one in column.to_pylist()])])
    index, values = codes(column)
    shares: dict[Side, float] = {}
    for side, of_row in entity.items():
        known = (index >= 0) & (of_row >= 0)
        num = int(of_row.max(initial=-1)) + 1
        pairs = np.unique(of_row[known].astype(np.int64) * (len(values) + 1) + index[known])
        kinds = np.bincount(pairs // (len(values) + 1), minlength=num)
        several = np.bincount(of_row[known], minlength=num) > 1  # One row alone says nothing.
        shares[side] = float((kinds[several] == 1).mean()) if several.any() else 0.0
    best = max(shares, key=lambda side: (shares[side], side == "item"))
    return best if shares[best] >= CONSTANT_SHARE else None


def _add_field(found: Proposal, fields: list[LogsField], name: str, side: Side, column: pa.ChunkedArray) -> None:
    kind, separator, min_count, reason = _kind_of(column)
    if reason:
        found.left_out[name] = reason
        return
    taken = {one.name for one in fields} | {RAW_ID, USER_ID}
    label, column_key = (name, "") if name not in taken else (f"{side}_{name}", name)
    separator = separator or LogsField(name=name, side=side).separator
    fields.append(
        LogsField(name=label, side=side, kind=kind, column=column_key, separator=separator, min_count=min_count)
    )


_Kind = Literal["categorical", "multi_valued", "numeric"]


def _kind_of(column: pa.ChunkedArray) -> tuple[_Kind, str, int, str]:
    """Kind, separator, min_count of a column as a field; or, last, why it should be none."""
    if _is_list(column):
        return "multi_valued", "", 1, ""
    if pa.types.is_timestamp(column.type):
        return "categorical", "", 1, "it is a time: a model that learns it has nothing for later ones"
    index, values = codes(column)
    if len(values) < 2:
        return "categorical", "", 1, "it has one value only"
    if (numbers := _numbers(column)) is not None:
        whole = not np.mod(numbers[~np.isnan(numbers)], 1).any()
        return ("categorical" if whole and len(values) < NUMERIC_FROM else "numeric"), "", 1, ""
    text = values.cast(pa.string())
    for separator in SEPARATORS:
        parts = pc.split_pattern(text, separator)
        lengths = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
        words = len(pc.unique(parts.flatten()))
        # Values put together from a smaller set; the words of a title count when they come back.
        if (lengths > 1).mean() > 0.2 and words < 0.7 * lengths.sum():
            return "multi_valued", separator, 2 if separator == " " else 1, ""
    if len(values) > 0.8 * max(1, int((index >= 0).sum())) and len(values) > 100:
        return "categorical", "", 1, f"nearly every row has another value ({len(values):,})"
    return "categorical", "", 1, ""
