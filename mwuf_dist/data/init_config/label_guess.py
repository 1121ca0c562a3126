"""Which column says what is a positive, and by which rule; one that looks like it and is not understood is refused."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.init_config import names, vocabulary
from mwuf_dist.data.init_config.actions import positive_action, refuse_names_of_files, refuse_times_of_label
from mwuf_dist.data.readers import encode, labels
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.ids import codes
from mwuf_dist.data.readers.log_tables import LogTable

NEGATIVES = 4
_MOST_CODES = 12  # of kinds of events
NO_LABEL = "none"  # --label none: every row is a positive.


@dataclass(frozen=True)
class LabelGuess:
    """A rule for labels.

    Attributes:
        options: with the rule in it.
        key: which key of `data.logs` the note stands beside.
        note: what spoke for it and against it.
    """

    options: LogsConfig
    key: str
    note: str


def guess_label(
    table: LogTable,
    options: LogsConfig,
    named: str = "",
    label_is: Sequence[str] = (),
    label_at_least: float | None = None,
    of_items: Sequence[str] = (),
    of_users: Sequence[str] = (),
) -> LabelGuess:
    """Finds the rule.

    Args:
        table: all rows.
        options: with user, item and time.
        named: `--label`: the column, or `none` for no label.
        label_is: `--label-is`: values that are positive.
        label_at_least: `--label-at-least`: the threshold.
        of_items: columns that are constant for items (an average, say), so that they tell nothing of a row.
        of_users: the same for users.

    Raises:
        UserError: a column looks like the label and is not understood; the message says which options there are.
    """
    if named == NO_LABEL:
        return _positives(options, "--label none: every row is taken as a positive")
    taken = (options.user, options.item, options.time)
    columns = table.columns
    rest = [one for one in columns.column_names if one not in taken and not pa.types.is_nested(columns[one].type)]
    lists = [one for one in columns.column_names if pa.types.is_nested(columns[one].type)]
    if named in lists:
        raise _is_list(table, named)
    if named or label_is or label_at_least is not None:
        return _named(table, options, rest, named, label_is, label_at_least)
    scored = sorted((one for one in rest if names.label_score(one)), key=names.label_score, reverse=True)
    for name in scored:
        found = _by_values(table, options, name)
        if found is not None:
            others = [one for one in scored if one != name]
            note = found.note + (f"; {', '.join(others)} could be it, too (--label)" if others else "")
            return dataclasses.replace(found, note=note)
    if scored:
        raise UserError(_not_understood(table, scored[0]))
    found = _by_rating_or_action(table, options, rest, of_items, of_users)
    if found is not None:
        return found
    if listed := [one for one in lists if names.label_score(one)]:
        raise _is_list(table, listed[0])
    changing = [one for one in rest if one not in (*of_items, *of_users)]
    for name in changing:
        if _says_what_happened(table, name) and (found := _by_action(table, options, name)) is not None:
            return dataclasses.replace(found, note=f"by its values: {found.note}")
    return _without_label(table, options, changing)


def _by_rating_or_action(
    table: LogTable, options: LogsConfig, rest: Sequence[str], of_items: Sequence[str], of_users: Sequence[str]
) -> LabelGuess | None:
    """Takes the threshold of a rating, or what happened, where a column's name says that it holds such.

    Raises:
        UserError: a rating is in words that say nothing, and no other column says what happened.
    """
    rating = names.rating_of([one for one in rest if one not in of_items])
    if rating and numbers_of(table.columns[rating]) is not None:
        return _halved(table, options, rating)
    in_words = bool(rating) and len(codes(table.columns[rating])[1]) > 1
    for name in filter(None, (rating if in_words else "", names.action_of(rest))):
        if (found := _by_action(table, options, name)) is not None:
            return found
    kind = next((one for one in rest if names.words(one) == ["type"] and one not in (*of_items, *of_users)), "")
    if kind and (found := _by_type(table, options, kind)) is not None:
        return found
    if in_words:
        raise UserError(_not_understood(table, rating))
    return None


def _is_list(table: LogTable, name: str) -> UserError:
    return UserError(
        f"{table.files[0]}: column {name!r} looks like the label, but is a list: name another with --label COLUMN, or "
        "--label none to take every row as a positive"
    )


def _without_label(table: LogTable, options: LogsConfig, changing: Sequence[str]) -> LabelGuess:
    """Takes every row as a positive, unless a column that changes from row to row could be the label.

    Raises:
        UserError: one holds 0 and 1.
    """
    flags = [one for one in changing if _is_zero_or_one(table, options, one)]
    if flags:
        raise UserError(
            f"{table.files[0]}: no column is named like a label, and {', '.join(flags)} hold 0 and 1: --label "
            f"{flags[0]} "
            "takes it as the label, --label none takes every row as a positive"
        )
    refuse_times_of_label(table, changing)
    refuse_names_of_files(table.files, "--label none takes every row of all files as a positive")
    numbers = [one for one in changing if not _is_zero_or_one(table, options, one) and _is_amount(table, one)][:4]
    said = f"; {', '.join(numbers)} are numbers of a row (--label {numbers[0]} --label-at-least N)" if numbers else ""
    if words := [one for one in changing if one not in numbers and _is_kind_of_row(table, one)][:4]:
        said += f"; {', '.join(words)} may say what happened (--label {words[0]} --label-is VALUE, of "
        said += f"{_listed(table, words[0])})"
    return _positives(options, f"no column looks like a label: every row is taken as a positive{said}")


def _positives(options: LogsConfig, note: str) -> LabelGuess:
    return LabelGuess(dataclasses.replace(options, negatives_per_positive=NEGATIVES), "negatives_per_positive", note)


def _named(
    table: LogTable,
    options: LogsConfig,
    rest: Sequence[str],
    named: str,
    label_is: Sequence[str],
    label_at_least: float | None,
) -> LabelGuess:
    name = named or names.action_of(rest) or next(filter(names.label_score, rest), "")
    name = name or names.rating_of(rest)
    if name not in table.columns.column_names:
        raise UserError(f"{table.files[0]}: no column {name!r} for the label; --label takes one of {', '.join(rest)}")
    if label_is:
        chosen = dataclasses.replace(options, label_from=name, label_is=tuple(label_is))
        labels.read_labels(table, chosen)  # names a value that no row has
        return LabelGuess(chosen, "label_is", f"as --label-is says; of {_listed(table, name)}")
    if label_at_least is not None:
        chosen = dataclasses.replace(options, label_from=name, label_at_least=label_at_least)
        return LabelGuess(chosen, "label_at_least", "as --label-at-least says")
    found = _by_values(table, options, name) or _by_action(table, options, name)
    if found is not None:
        return found
    if numbers_of(table.columns[name]) is not None:
        return _halved(table, options, name)
    raise UserError(_not_understood(table, name))


def _by_values(table: LogTable, options: LogsConfig, name: str) -> LabelGuess | None:
    """Returns a rule for a column that is named like a label; None where its values say nothing."""
    index, values = codes(table.columns[name])
    if not len(values):
        return None
    of_value = labels.label_of(values, dataclasses.replace(options, label=name))
    if (of_value >= 0).all():
        share = float(of_value[index[index >= 0]].mean())
        if 0 < share < 1:
            chosen = dataclasses.replace(options, label=name)
            note = f"by its name and its values ({_listed(table, name)}); {share:.1%} positive"
            return LabelGuess(chosen, "label", note)
        if share == 1 and not (index < 0).any():
            return _all_positives(options, name, values)
        raise _one_value(table, name, index, values)
    numbers = numbers_of(table.columns[name])
    known = np.empty(0) if numbers is None else numbers[~np.isnan(numbers)]
    if len(known) and known.min() == 0 and np.isfinite(known).all() and not np.mod(known, 1).any():
        chosen = dataclasses.replace(options, label_from=name, label_at_least=1.0)
        note = f"counts from 0 to {known.max():g}: {(known >= 1).mean():.1%} are 1 or more"
        return LabelGuess(chosen, "label_at_least", note)
    return _by_action(table, options, name)


def _by_action(table: LogTable, options: LogsConfig, name: str) -> LabelGuess | None:
    """Returns a rule for words of what happened; None where they are none.

    Raises:
        UserError: a word stands among numbers, or the column is named as what happened and no word is a positive.
    """
    index, distinct = codes(table.columns[name])
    values = text_of(distinct).to_pylist()
    if len(values) == 1 and (index < 0).any() and (names.label_score(name) or names.action_of([name])):
        raise _one_value(table, name, index, distinct)
    if len(values) == 1:
        return _all_positives(options, name, distinct)
    chosen = positive_action(values)
    if chosen is not None and _is_stray_word(index, distinct, options, name):
        raise UserError(_not_understood(table, name))
    if chosen is not None:
        alike = tuple(sorted(value for value in values if names.words(value) == names.words(chosen)))  # Buy and BUY
        made = dataclasses.replace(options, label_from=name, label_is=alike)
        return LabelGuess(made, "label_is", f"of {_listed(table, name)}; --label-is VALUE chooses others")
    if names.action_of([name]):
        raise UserError(_not_understood(table, name))
    return None


def _is_stray_word(index: np.ndarray, values: pa.Array, options: LogsConfig, name: str) -> bool:
    """Says whether words are the lesser part of a column of numbers, or of yes and no: buy among 0 and 1.

    Beside 0 (or no) alone they are what 1 would be.
    """
    of_value = labels.label_of(values, dataclasses.replace(options, label=name))
    is_number = (of_value >= 0) | ~np.isnan(encode.to_float(text_of(values)))
    counts = np.bincount(index[index >= 0], minlength=len(values))
    return bool((is_number & (of_value != 0)).any()) and counts[is_number].sum() > counts[~is_number].sum()


def _all_positives(options: LogsConfig, name: str, values: pa.Array) -> LabelGuess:
    return _positives(options, f"column {name!r} is {values[0].as_py()!r} in every row: a log of positives")


def _one_value(table: LogTable, name: str, index: np.ndarray, values: pa.Array) -> UserError:
    """Makes the error of a label with one value [V = 1], `index` [R] of which is negative where there is none."""
    num_gaps = int((index < 0).sum())
    return UserError(
        f"{table.files[0]}: column {name!r} looks like the label, but is {values[0].as_py()!r} in every row that has "
        "one"
        + (f" ({num_gaps:,} have none; if that means 0, write 0 there)" if num_gaps else "")
        + ": there is nothing to learn; name another with --label COLUMN, or --label none to take every row as a "
        "positive"
    )


def _by_type(table: LogTable, options: LogsConfig, name: str) -> LabelGuess | None:
    """Guesses for a column called `type`, which may hold what happened, as words or as codes, or anything."""
    values = text_of(codes(table.columns[name])[1]).to_pylist()
    if positive_action(values) is not None:
        return _by_action(table, options, name)
    if 2 <= len(values) <= _MOST_CODES and all(value.isdecimal() for value in values):
        raise UserError(_not_understood(table, name))
    return None


def _says_what_happened(table: LogTable, name: str) -> bool:
    """Says whether a column's few words are what a person did: a positive one, and one that is none."""
    values = codes(table.columns[name])[1]
    if not 2 <= len(values) <= _MOST_CODES or not pa.types.is_string(values.type):
        return False
    of_value = [set(names.words(value)) for value in values.to_pylist()]
    return positive_action(values.to_pylist()) is not None and any(one & vocabulary.NO_POSITIVE for one in of_value)


def _is_kind_of_row(table: LogTable, name: str) -> bool:
    """Says whether a column has a few words, which may be what happened in any language."""
    values = codes(table.columns[name])[1]
    if not 2 <= len(values) <= _MOST_CODES or names.is_of_request(name):
        return False
    return pa.types.is_string(values.type) and numbers_of(table.columns[name]) is None


def _is_amount(table: LogTable, name: str) -> bool:
    return names.words(name)[-1:] != ["id"] and numbers_of(table.columns[name]) is not None


def _halved(table: LogTable, options: LogsConfig, name: str) -> LabelGuess:
    numbers = numbers_of(table.columns[name])
    assert numbers is not None
    threshold, share = halving(numbers)
    if not 0.02 <= share <= 0.98:
        raise UserError(
            f"{table.files[0]}: no threshold of column {name!r} makes between 2 % and 98 % of the rows positive (the "
            f"nearest, {threshold:g}, makes {share:.1%}); say one with --label-at-least NUMBER, or --label none"
        )
    made = dataclasses.replace(options, label_from=name, label_at_least=threshold)
    note = f"makes {share:.0%} of the rows positive, of all thresholds the nearest to half"
    apart = _apart(numbers)
    if apart is None:
        return LabelGuess(made, "label_at_least", note)
    written, count, decides = apart[0], apart[1], apart[2] == threshold
    said = f"{written} ({count:,} rows) stands apart from the others: if it means no rating, remove these rows, or say "
    said += f"--missing {written}, which counts for all columns"
    if decides:
        raise UserError(
            f"{table.files[0]}: column {name!r}: {said}; if it is a rating, --label {name} --label-at-least "
            f"{threshold:g} makes {share:.0%} of the rows positive"
        )
    return LabelGuess(made, "label_at_least", f"{note}; {said}")


def _apart(numbers: np.ndarray) -> tuple[str, int, float] | None:
    """Finds a least or greatest number that may mean that there is none, as it does not fit the others' spacing.

    That is -1 beside numbers from 0 on, 0 beside stars from 1 to 5 or 10 (not among 0, 20, ..., 100), or a 99.

    Returns:
        It as it is written; in how many rows it stands; the threshold that tells it alone from the others.
    """
    values, counts = np.unique(numbers[np.isfinite(numbers)], return_counts=True)
    if len(values) < 4:
        return None
    (low, second), (last, high) = values[:2], values[-2:]
    is_below_stars = low == 0 and second in (0.5, 1) and high in (5, 10)
    is_below_all = low < 0 <= second and high > -low  # a scale from -1 to 1 has a -1
    is_far = low <= 0 and second - low > 2 * np.diff(values[1:]).max()
    is_low = is_below_stars or is_below_all or is_far
    if not is_low and high - last <= last - low:
        return None
    value, count, threshold = (low, counts[0], second) if is_low else (high, counts[-1], high)
    return str(int(value)) if float(value).is_integer() else repr(float(value)), int(count), float(threshold)


def halving(numbers: np.ndarray) -> tuple[float, float]:
    """Returns the threshold that makes the fraction of rows at or above it nearest to a half; that fraction."""
    values, counts = np.unique(numbers[np.isfinite(numbers)], return_counts=True)
    if len(values) < 2:
        return 1.0, 0.0
    shares = counts[::-1].cumsum()[::-1] / counts.sum()
    best = 1 + int(np.argmin(np.abs(shares[1:] - 0.5)))
    return float(values[best]), float(shares[best])


def numbers_of(column: pa.ChunkedArray) -> np.ndarray | None:
    """Returns each row's number, NaN where it is missing; None for a column of something else."""
    if pa.types.is_nested(column.type):
        return None
    index, values = codes(column)
    if pa.types.is_boolean(values.type) or pa.types.is_timestamp(values.type) or not len(values):
        return None
    numbers = encode.to_float(values.cast(pa.string()))
    return None if np.isnan(numbers).any() else np.append(numbers, np.nan)[index]


def _is_zero_or_one(table: LogTable, options: LogsConfig, name: str) -> bool:
    """Says whether a column says yes or no in each row, however it is written."""
    values = codes(table.columns[name])[1]
    if not 2 <= len(values) <= 6:
        return False
    return set(labels.label_of(values, dataclasses.replace(options, label=name)).tolist()) == {0, 1}


def _listed(table: LogTable, name: str) -> str:
    index, values = codes(table.columns[name])
    counts = np.bincount(index[index >= 0], minlength=len(values))
    order = np.argsort(-counts, kind="stable")[:12]
    texts = text_of(values).to_pylist()
    return ", ".join(f"{texts[k]} ({counts[k]:,})" for k in order) + (", ..." if len(values) > 12 else "")


def _not_understood(table: LogTable, name: str) -> str:
    return (
        f"{table.files[0]}: column {name!r} looks like the label, but its values ({_listed(table, name)}) do not say "
        f"what is a positive. Say it: --label {name} --label-is VALUE (the values that are), --label {name} "
        "--label-at-least NUMBER, --missing VALUE (one that stands for none), another --label COLUMN, or --label none "
        "to take every row as a positive"
    )
