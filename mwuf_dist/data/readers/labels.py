"""Labels of rows by the rule of the config."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import difflib

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.encode import to_float
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable

MISSING = -1  # The row has no label.
WRONG = -2  # It has something that the rule cannot read.
_ZERO, _ONE = ("false", "f", "no", "n", "negative", "neg", "off"), ("true", "t", "yes", "y", "positive", "pos", "on")


def read_labels(table: LogTable, options: LogsConfig, whole: bool = True) -> np.ndarray:
    """Returns the label of each row by the rule of the config, `MISSING` where its column has none; int8 [R].

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
    column = table.columns[name]
    if pa.types.is_nested(column.type):
        raise UserError(f"{table.files[0]}: column {name!r} is a list, which is no label; name another")
    index, values = codes(column)
    of_value = label_of(values, options, table if whole else None)
    label = np.append(of_value, np.int8(MISSING))[index]
    if (label == WRONG).any():
        row = int(np.argmax(label == WRONG))
        raise UserError(f"{table.place(row)}: {why_wrong(name, values[int(index[row])].as_py(), options)}")
    if whole:
        _refuse_one_class(label[label >= 0], name, table)
    return label


def label_of(values: pa.Array, options: LogsConfig, whole: LogTable | None = None) -> np.ndarray:
    """Returns the label of each distinct value, `WRONG` where the rule cannot read it; int8 [V].

    Args:
        values: of the label's column, none missing.
        options: the rule.
        whole: the table, where the values are all there are; a value of `label_is` that it lacks is then refused.
    """
    if options.label:
        return _zero_or_one(values)
    if options.label_is:
        return _one_of(values, options, whole)
    if pa.types.is_timestamp(values.type):
        return np.full(len(values), WRONG, dtype=np.int8)
    number = to_float(values) if pa.types.is_string(values.type) else values.cast(pa.float64()).to_numpy(False)
    return np.where(np.isfinite(number), number >= options.label_at_least, WRONG).astype(np.int8)


def why_wrong(name: str, value: object, options: LogsConfig) -> str:
    """Says what is wrong with a value of the label's column, and what to do."""
    if options.label:
        return (
            f"{name} is {value!r}, neither 0 nor 1; to make labels of such a column set data.logs.label_from = "
            f"{name!r} "
            "with data.logs.label_at_least or data.logs.label_is, and no label (`mwuf init` and `mwuf adopt` have "
            "--label-at-least and --label-is)"
        )
    return (
        f"{name} is {value!r}, no number that could be at least {options.label_at_least}; correct it, add it to "
        "data.logs.missing (--missing), or set data.logs.label_is to the values that are positive"
    )


def _zero_or_one(values: pa.Array) -> np.ndarray:
    """Returns 0 and 1 however they are written: 0.0 and 1.0, true and false, t and f, yes and no, -1 and 1."""
    text = [one.strip().lower() for one in text_of(values).to_pylist()]
    number = to_float(pa.array(text, pa.string())) if text else np.empty(0)
    of_value = np.full(len(text), WRONG, dtype=np.int8)
    is_zero, is_one = (np.array([one in words for one in text], dtype=bool) for words in (_ZERO, _ONE))
    of_value[is_zero | (number == 0)] = 0
    of_value[is_one | (number == 1)] = 1
    if not (number == 0).any():
        of_value[number == -1] = 0
    return of_value


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
        advice = "there is no positive row in it; check the label rule"
        if label[0]:
            advice = "for data of positives only, name no label column and set data.logs.negatives_per_positive"
        raise UserError(f"{table.files[0]}: every label by column {name!r} is {label[0]}: nothing to learn; {advice}")
