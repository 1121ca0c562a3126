"""What rows of own logs hold beside user, item, time and label: fields of their own, and what they weigh.

A field of a row (its position, device or hour) is a column of the interactions, encoded as one of users or items is,
but over rows: its vocabulary, and the quantiles of its buckets, are those of the rows that count.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data import vocabulary
from mwuf_dist.data.readers import encode as encoder
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.gate import Rows
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.schema import WEIGHT, Field, row_column
from mwuf_dist.data.shards import Prepared


def check(options: LogsConfig) -> None:
    """Refuses keys of weights that say nothing.

    Raises:
        UserError: it names the key.
    """
    if options.weights and not options.weight:
        raise UserError("data.logs.weights says what values weigh, and of which column is missing: data.logs.weight")
    _weights_of_values(options)


def columns(options: LogsConfig) -> list[str]:
    """Returns columns of the interactions that are read for fields of the rows and for their weight."""
    names = [field.column or field.name for field in fields_of_rows(options)]
    return [*names, options.weight] if options.weight else names


def fields_of_rows(options: LogsConfig) -> list[LogsField]:
    """Returns the fields of the rows themselves."""
    return [field for field in options.fields if field.side == "row"]


def encode(
    log: Rows, kept: np.ndarray, options: LogsConfig, words: dict[str, pa.Array]
) -> tuple[dict[str, np.ndarray], list[Field], list[str]]:
    """Returns columns of a data set's rows by their name in the interactions, the fields, and notes.

    Args:
        log: the rows, with the columns of `columns`.
        kept: places of those that count [R'].
        options: the fields and the weight.
        words: gets the vocabularies.

    Raises:
        UserError: a value is no number where one is wanted, or a weight is missing or below 0; it names the place.
    """
    made: dict[str, np.ndarray] = {}
    fields: list[Field] = []
    notes: list[str] = []
    for own in fields_of_rows(options):
        name = own.column or own.name
        column = log.table.columns[name]

        def refuse(row: int, why: str, name: str = name) -> UserError:
            return UserError(f"{log.table.place(row)}: {name} {why}")

        found = encoder.encode_field(own, column, kept, refuse)
        assert found.vocabulary is not None
        words[own.name], made[row_column(own.name)] = found.vocabulary, found.values.to_numpy()
        fields.append(found.field)
        notes += found.notes("rows", len(kept))
    if options.weight:
        made[WEIGHT] = weights(log, kept, options)
        if len(kept) and not made[WEIGHT].any():
            raise UserError(f"{log.table.files[0]}: every row weighs 0 by {options.weight}: nothing to learn")
    return made, fields, notes


def by_words(
    log: Rows, kept: np.ndarray, options: LogsConfig, vocabularies: Mapping[str, pa.Table]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the columns of later rows, by the vocabularies of the data set, and notes; an unknown value is index 0.

    Args:
        log: as for `encode`.
        kept: as there.
        options: as there.
        vocabularies: of `vocabulary.read`.

    Raises:
        UserError: see `encode`.
    """
    made: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for own in fields_of_rows(options):
        column = log.table.columns[own.column or own.name]
        if pa.types.is_nested(column.type):
            raise UserError(
                f"{log.table.files[0]}: {own.column or own.name} is a list, and field {own.name!r} of the run's rows "
                "takes one value: write it as the run's own logs have it"
            )
        index, values = codes(column)
        text, words = text_of(values), vocabularies[own.name]
        if own.kind == "numeric":
            found = vocabulary.index_of_numbers(words, encoder.to_float(text))
        else:
            found = vocabulary.index_of_words(words, text)
        of_row = np.append(found, np.int32(0))[index[kept]].astype(np.int32)
        strange = np.flatnonzero((of_row == 0) & (index[kept] >= 0))
        example = text[int(index[kept[strange[0]]])].as_py() if len(strange) else ""
        is_number = own.kind == "numeric"
        notes += vocabulary.note_of_unknown(own.name, "rows", len(strange), len(kept), example, is_number)
        made[row_column(own.name)] = of_row
    if options.weight:
        made[WEIGHT] = weights(log, kept, options)
        if len(kept) and not made[WEIGHT].any():
            notes.append(f"every row weighs 0 by {options.weight}: no row of an item or user moves by them")
    return made, notes


def indices(rows: Mapping[str, Sequence[Any]], options: LogsConfig, prepared: Prepared) -> np.ndarray:
    """Returns indices [n, Fr] of raw values of the fields of n rows, int64, in the order of `Prepared.row_fields`.

    Args:
        rows: field -> its values [n]; of a field that is not there all are unknown.
        options: the fields.
        prepared: of the data set.

    Raises:
        UserError: the data set has no such field, or fields have different numbers of values.
    """
    named, words = {field.name: field for field in fields_of_rows(options)}, vocabulary.read(prepared) or {}
    for name in rows:
        if name not in named:
            there = f"there are {', '.join(named)}" if named else "the run's rows have none"
            raise UserError(f"no field {name!r} of the interactions: {there}")
    if len({len(values) for values in rows.values()}) > 1:
        raise UserError("fields of rows have different numbers of values")
    num = len(next(iter(rows.values())))
    made = np.zeros((num, len(prepared.row_fields)), dtype=np.int64)
    for place, field in enumerate(prepared.row_fields):
        if field.name not in rows:
            continue
        text = text_of(pa.array(rows[field.name]))
        is_number = named[field.name].kind == "numeric"
        find = vocabulary.index_of_numbers if is_number else vocabulary.index_of_words
        made[:, place] = find(words[field.name], encoder.to_float(text) if is_number else text)
    return made


def weights(log: Rows, kept: np.ndarray, options: LogsConfig) -> np.ndarray:
    """Reads what rows weigh [R'], float32.

    Raises:
        UserError: a weight is missing, no number or below 0.
    """
    column = log.table.columns[options.weight]
    if pa.types.is_nested(column.type):
        raise UserError(f"{log.table.files[0]}: column {options.weight!r} is a list, which is no weight; name another")
    index, values = codes(column)
    of_value = _weights_of_values(options)
    if of_value:
        there = [of_value.get(one, 1.0) for one in text_of(values).to_pylist()]
        return np.append(np.array(there, np.float32), np.float32(1))[index[kept]]
    number = np.append(encoder.to_float(text_of(values)), np.nan)[index[kept]]
    bad = np.flatnonzero(~(np.isfinite(number) & (number >= 0)))
    if len(bad):
        row = int(kept[bad[0]])
        value = log.table.columns[options.weight][row].as_py()
        raise UserError(
            f"{log.table.place(row)}: {options.weight} is {value!r}, no weight, which is a number from 0 on; correct "
            'it, or say what each value weighs (data.logs.weights = ["click=1", "buy=5"])'
        )
    return number.astype(np.float32)


def absent_values(log: Rows, options: LogsConfig) -> list[str]:
    """Says which values that have a weight no row of a data set has: one that is misspelt weighs 1."""
    if not options.weights:
        return []
    there = text_of(codes(log.table.columns[options.weight])[1]).drop_null().to_pylist()
    said = []
    for value in _weights_of_values(options):
        if value not in there:
            near = difflib.get_close_matches(value, there, n=1, cutoff=0.0)
            like = f"; did you mean {near[0]!r}?" if near else ""
            said.append(f"data.logs.weights: no row has {options.weight} = {value!r}{like}")
    return said


def _weights_of_values(options: LogsConfig) -> dict[str, float]:
    found = {}
    for one in options.weights:
        value, sign, number = one.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not sign or not 0 <= weight < np.inf:
            raise UserError(f'data.logs.weights: {one!r} is no value and its weight: write "buy=5"')
        found[value.strip()] = weight
    return found
