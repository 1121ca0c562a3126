"""Which columns are features, whose, and of what kind."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data.init_config import names, texts
from mwuf_dist.data.init_config.label_guess import numbers_of
from mwuf_dist.data.readers import encode, log_files, log_tables, vectors
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable
from mwuf_dist.data.schema import RAW_ID, SIDES, USER_ID, Side

if TYPE_CHECKING:
    from mwuf_dist.data.init_config.propose import Proposal

NUMERIC_FROM = 30  # A column of numbers with at least so many distinct values may be numeric.
_NUMBER = r"^[+-]?[0-9][0-9.,]*$"
_FEW_WORDS, _FEW_OF = 3, 10  # At most so many words, each among so many times as many values.
_FEW = ("it has no value", "it has one value only")
_Kind = Literal["categorical", "multi_valued", "numeric"]


def constant_shares(log: LogTable, options: LogsConfig) -> dict[str, dict[Side, float]]:
    """Returns of each other column the fraction of users, and of items, that have one value of it."""
    taken = (options.user, options.item, options.time)
    of: dict[Side, encode.OneValue] = {
        side: encode.OneValue(codes(log.columns[getattr(options, side)])[0]) for side in SIDES
    }
    return {
        name: {side: one.share(log.columns[name]) or 0.0 for side, one in of.items()}
        for name in log.columns.column_names
        if name not in taken
    }


def has_one_value(column: pa.ChunkedArray) -> bool:
    """Says whether all rows agree."""
    return not pa.types.is_nested(column.type) and len(codes(column)[1]) < 2


def propose_fields(found: Proposal, log: LogTable, shares: dict[str, dict[Side, float]], constant_share: float) -> None:
    """Adds fields to a proposal, with what spoke for each, and the columns that are none, with why not."""
    options = found.options
    used = {options.user, options.item, options.time, options.label, options.label_from}
    of_rows = [one for one, share in shares.items() if one not in used and share["item"] < constant_share]
    for name in (one for one in of_rows if names.is_weight(one) and _could_weigh(log.columns[one])):
        used.add(name)
        found.left_out[name] = f"it may say what a row weighs in the losses: weight = {name!r} takes it so"
    fields: list[LogsField] = []
    for side in SIDES:
        id_column = getattr(options, side)
        if not (named := getattr(options, f"{side}s")):
            continue
        files = log_files.find_files(named, f"--{side}s")
        beside = options.of_table(side)
        table = log_tables.read(files, log_tables.column_names(files[0], beside), beside, f"{side}s", skip_unread=True)
        if id_column not in table.columns.column_names:
            there = ", ".join(table.columns.column_names)[:200]
            raise UserError(
                f"{files[0]}: no column {id_column!r} to join by (it has {there}); "
                f"rename its ID column so; where no line has names, --{side}s-header gives them"
            )
        unread = table.unread or {}
        if side == "item" and (given := vectors.proposed(files, unread)):
            unread = {name: kind for name, kind in unread.items() if name not in given}
            for name, size in given.items():
                used.add(name)
                found.notes[f"field {name}"] = f"in the table of items, {size:,} numbers each"
                fields.append(LogsField(name=name, side="item", kind="vector"))
        found.left_out |= {name: _why_unread(kind) for name, kind in unread.items()}
        found.left_out |= _not_in_all(files, beside, table.columns.column_names)
        of_ids = encode.OneValue(codes(table.columns[id_column])[0])
        for name in table.columns.column_names:
            if name != id_column and name in used:
                found.left_out[f"{name} of the table of {side}s"] = "another column has this name"
            elif name != id_column:
                used.add(name)
                share = of_ids.share(table.columns[name])
                several = share is not None and share < constant_share
                _add(found, fields, name, side, table.columns[name], f"in the table of {side}s", several)
    for name, of_sides in shares.items():
        if name in used:
            continue
        side = max(SIDES, key=lambda one: (of_sides[one], one == "item"))
        said = f"{of_sides['user']:.1%} of the users and {of_sides['item']:.1%} of the items have one value"
        if of_sides[side] < constant_share:
            _add_of_rows(found, fields, name, log.columns[name], said)
        else:
            _add(found, fields, name, side, log.columns[name], said)
    found.options = dataclasses.replace(found.options, fields=tuple(fields))


def _why_unread(kind: str) -> str:
    if kind.endswith("a vector"):
        return "its vectors have not all as many numbers, and a field takes those of one length"
    return f"its type is {kind}, which is not read"


def _not_in_all(files: Sequence[Path], options: LogsConfig, taken: Sequence[str]) -> dict[str, str]:
    """Says which columns of a side table's later files the first one lacks."""
    later = {name: path for path in files[1:] for name in log_tables.column_names(path, options)}
    return {name: f"{files[0]} has no such column" for name in later if name not in taken}


def _could_weigh(column: pa.ChunkedArray) -> bool:
    """Says whether all values are numbers from 0 on."""
    numbers = None if pa.types.is_nested(column.type) else numbers_of(column)
    return numbers is not None and not bool((numbers < 0).any())


def _add_of_rows(found: Proposal, fields: list[LogsField], name: str, column: pa.ChunkedArray, said: str) -> None:
    """Adds a column that changes from row to row as a field of rows, if its name says that it is known before all."""
    kind, _, _, reason = kind_of(name, column)
    if names.is_of_request(name) and kind in ("categorical", "numeric") and not reason:
        said += _words_among_numbers(column)
        found.notes[f"field {name}"] = f"{said}; leave it out if it is known only after the label"
        fields.append(LogsField(name=name, side="row", kind=kind))
        return
    found.left_out[name] = reason or (
        f"it changes from row to row ({said}); --constant-share takes less; if it is known before the label, it can be "
        'a field with side = "row"'
    )


def _add(
    found: Proposal,
    fields: list[LogsField],
    name: str,
    side: Side,
    column: pa.ChunkedArray,
    said: str,
    several: bool = False,
) -> None:
    """Adds a column as a field; `several`: where an ID has several rows, they have several values."""
    kind, separator, min_count, reason = kind_of(name, column)
    if several and kind == "numeric" and (names.is_amount(name) or not _are_whole(column)):
        said += f", where {side}s have several rows; the first counts"
    elif several:
        kind = "multi_valued"
        said += f", where {side}s have several rows; the values of all of them"
    if reason:
        found.left_out[name] = reason
        return
    said += _words_among_numbers(column)
    if names.is_outcome(name):
        said += "; if it is counted over these rows it knows their labels: leave it out then"
    taken = {one.name for one in fields} | {RAW_ID, USER_ID, "fields_given"}
    label, column_key = (name, "") if name not in taken else (f"{side}_{name}", name)
    separator = separator or LogsField(name=name, side=side).separator
    found.notes[f"field {label}"] = said
    fields.append(
        LogsField(name=label, side=side, kind=kind, column=column_key, separator=separator, min_count=min_count)
    )


def kind_of(name: str, column: pa.ChunkedArray) -> tuple[_Kind, str, int, str]:
    """Kind, separator, min_count of a column as a field; or, last, why it should be none."""
    if pa.types.is_nested(column.type):
        num = len(codes(pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type))[1])
        return "multi_valued", "", 1, "" if num > 1 else _FEW[num]
    if pa.types.is_timestamp(column.type):
        return "categorical", "", 1, "it is a time: a model that learns it has nothing for later ones"
    index, values = codes(column)
    if len(values) < 2:
        return "categorical", "", 1, _FEW[len(values)]
    if (numbers := numbers_of(column)) is not None:
        return _kind_of_numbers(name, numbers[~np.isnan(numbers)], len(values)), "", 1, ""
    text = values.cast(pa.string())
    if reason := texts.why_no_field(text):
        return "categorical", "", 1, reason
    if several := texts.separator_of(text):
        return "multi_valued", *several, ""
    if len(values) > 0.8 * max(1, int((index >= 0).sum())) and len(values) > 100:
        return "categorical", "", 1, f"nearly every row has another value ({len(values):,})"
    return "categorical", "", 1, ""


def _words_among_numbers(column: pa.ChunkedArray) -> str:
    """Says which few words stand among numbers, which make a category of each number."""
    values = None if pa.types.is_nested(column.type) else codes(column)[1]
    if values is None or not pa.types.is_string(values.type):
        return ""
    words = values.filter(pc.invert(pc.match_substring_regex(values, _NUMBER)))
    if not 0 < len(words) <= _FEW_WORDS or len(values) < _FEW_OF * len(words):
        return ""
    named = words.to_pylist()
    return (
        f"; {', '.join(map(repr, named))} stand among {len(values) - len(words):,} numbers: with "
        f"{' '.join(f'--missing {shlex.quote(one)}' for one in named)} it is a column of numbers"
    )


def _are_whole(column: pa.ChunkedArray) -> bool:
    numbers = numbers_of(column)
    return numbers is not None and not bool(np.mod(numbers[~np.isnan(numbers)], 1).any())


def _kind_of_numbers(name: str, numbers: np.ndarray, num_values: int) -> _Kind:
    """Codes are categories; amounts, and numbers of which nearly each is another, are numeric."""
    if np.mod(numbers, 1).any():
        return "numeric"
    if num_values < NUMERIC_FROM or names.is_code(name) or (_are_alike_ids(numbers) and not names.is_amount(name)):
        return "categorical"
    return "numeric"


def _are_alike_ids(numbers: np.ndarray) -> bool:
    """Says whether whole numbers are written like IDs: nearly all of as many digits, four and more, and no years."""
    values = np.unique(np.abs(numbers))
    digits = np.floor(np.log10(np.maximum(values, 1))).astype(np.int64) + 1
    most = int(np.bincount(digits).argmax())
    is_year = bool(((values >= 1800) & (values <= 2100)).all())
    return most >= 4 and not is_year and float((digits == most).mean()) >= 0.95
