"""Your own logs: Parquet or CSV files whose columns section `data.logs` names.

The rules, in this order:

* Files of a folder are read by name, one after another; a row's position in them breaks ties in time.
* A row without user, item, time or label is an error, or left out with `drop_incomplete`.
* Of rows alike in user, item, time and label the first stays (`repeated_rows`).
* With no label column every row is positive, and rows of label 0 are drawn (`negatives.py` states how).
* A field in a side table has the value of the first row of the user (or item) that has one; a field in the
  interactions that of the earliest such row. Missing, rare and never-listed ones are index 0.
* Where no field of the items is named, all items share the field `any_item`: the meta scaling network, which reads an
  item's fields, then gives every item the same scale.
* Users and items are those of the interactions; in a side table alone they have nothing to train on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.config.logs import LogsConfig, LogsField, TableForm
from mwuf_dist.data.readers import encode, gate, ids, log_files, log_tables, row_values
from mwuf_dist.data.readers.arrow_types import numbers_in
from mwuf_dist.data.readers.gate import Rows
from mwuf_dist.data.readers.log_tables import LogTable
from mwuf_dist.data.readers.negatives import add_negatives
from mwuf_dist.data.readers.repeated import repeated
from mwuf_dist.data.schema import RAW_ID, SET, SIDES, USER_ID, WEIGHT, Field, RawDataset, RawPieces, Side
from mwuf_dist.data.sources.content import content_of
from mwuf_dist.data.split import NO_SPLIT, SplitRule
from mwuf_dist.data.stream_rule import Seen

ANY_ITEM = "any_item"  # Of items without fields; index 0, like what an item never seen has.
NAME = "logs"
VERSION = 5  # Raise it when the same files would give other tables.
_FORMS = ("users_form", "items_form")
_KEEP = '; data.logs.repeated_rows = "keep" counts them'
NEGATIVES_VERSION = 2  # Raise it when other rows of label 0 would be drawn.


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Reader version, the options but for where the files lie, and what each of them holds."""
    options = config.logs
    check_options(options)
    files = {key: content_of(found) for key, found in _files(options).items()}
    how = {name: value for name, value in dataclasses.asdict(options).items() if name not in files}
    # What was prepared before there were these keys stays as it is.
    later = {"constant_share"} | {name for name in _FORMS if getattr(options, name) == TableForm()}
    later |= set() if options.weight else {"weight", "weights"}
    if numbers_in(options.missing):
        how["missing_numbers"] = True  # what was prepared before took them for values where a column was of numbers
    how = {name: value for name, value in how.items() if name not in later}
    found = {"source": NAME, "version": VERSION, "files": files, **how}
    if options.negatives_per_positive:
        found["negatives_rule"] = NEGATIVES_VERSION
    with_tables = [side for side in SIDES if getattr(options, f"{side}s")]
    if any(field.kind == "multi_valued" and field.side in with_tables for field in options.fields):
        found["rows_of_tables"] = "all"  # what was prepared before had the first row of an ID alone
    has_item_field = any(field.side == "item" and field.kind != "vector" for field in options.fields)
    return found if has_item_field else found | {"item_field": ANY_ITEM}


def pieces(config: DataConfig) -> RawPieces:
    """Returns the data set, cut into pieces."""
    return load(config).in_pieces(config.name)


def load(config: DataConfig, draw: bool = True) -> RawDataset:
    """Reads, labels and joins the files.

    Args:
        config: section `data`.
        draw: draw the negatives of a log of positives, for which N and K must give old and new items.

    Raises:
        UserError: something in the files or the options is wrong; it names the file, the column and, where there is
            one, the line.
    """
    options = config.logs
    check_options(options)
    made = join(read(options), options, SplitRule.of(config) if draw else None)
    passed_over = [
        note
        for key in ("interactions", "users", "items")
        if getattr(options, key)
        for note in log_files.find(getattr(options, key), f"data.logs.{key}").notes()
    ]
    return dataclasses.replace(made, notes=(*dict.fromkeys(passed_over), *made.notes))


def read(options: LogsConfig) -> Rows:
    """Yields the rows of the interactions, with the columns of all fields that stand there."""
    return gate.read_rows(interaction_files(options), options, more=columns_of_fields(options))


def join(log: Rows, options: LogsConfig, rule: SplitRule | None = None) -> RawDataset:
    """Makes the data set of rows that have been read: without repeated ones, with fields and drawn negatives.

    Negatives are drawn by sets, which `rule` makes; None draws none.
    """
    alike = repeated(log, options.repeated_rows)
    kept, notes = log.kept[~alike.again], [*log.notes(), *alike.notes(log, _KEEP)]
    seen = _seen(log, kept, rule)
    words: dict[str, pa.Array] = {}
    sides = {side: _entity_table(side, log, kept, options, notes, seen, words) for side in SIDES}
    rows, row_item, row_label = kept, log.item[kept], log.label[kept]
    num_drawn, more, source = options.negatives_per_positive, {}, np.empty(0, np.int64)
    if num_drawn and rule is not None:
        source, row_item, row_label, more[SET] = add_negatives(
            log.user[kept], row_item, log.time[kept], len(log.item_ids), rule, num_drawn, options.negatives_seed
        )
        rows = kept[source]
        if len(rows) == len(kept):
            raise UserError(
                f"{log.table.files[0]}: no row of label 0 could be drawn: each user has every item. A log of positives "
                "needs users who do not take everything; more of them, or a column of labels (data.logs.label)"
            )
        notes += _not_drawn(row_label, more[SET], num_drawn)
    of_rows, row_fields, of_values = row_values.encode(log, kept, options, words)
    notes += [*of_values, *row_values.absent_values(log, options)]
    if of_rows and rule is not None and rule.stream is not None:
        raise UserError(
            "data.logs.weight and fields with side = 'row' do not go with study.protocol = 'stream': leave them out"
        )
    place = source if num_drawn and rule is not None else np.arange(len(kept))
    more |= {name: values[place] for name, values in of_rows.items()}
    if WEIGHT in more and num_drawn:  # a drawn row is no behaviour
        more[WEIGHT] = np.where(row_label == 1, more[WEIGHT], np.float32(1))
    columns = {"user": log.user[rows], "item": row_item, "label": row_label, "time": log.time[rows], **more}
    (users, user_fields), (items, item_fields) = sides["user"], sides["item"]
    fields, form = (*user_fields, *item_fields, *row_fields), log.form.to_dict()
    return RawDataset(
        pa.table(columns), users, items, fields, num_drawn if SET in more else 0, form, tuple(notes), vocabularies=words
    )


def _not_drawn(label: np.ndarray, sets: np.ndarray, num_drawn: int) -> list[str]:
    """Says how many rows of label 0 are lacking beside the positive ones of the sets."""
    wanted = num_drawn * int((label[sets != NO_SPLIT] == 1).sum())
    lacking = wanted - int((label == 0).sum())
    return [f"{lacking:,} of {wanted:,} rows of label 0 could not be drawn: no other item was there"] if lacking else []


def check_options(options: LogsConfig) -> None:
    """Refuses options that contradict each other.

    Raises:
        UserError: it names the keys.
    """
    if not options.interactions:
        raise UserError(
            "data.logs.interactions is empty: name your file or folder (`mwuf init LOGS` writes a whole config for it)"
        )
    labelled = [key for key in ("label", "label_from", "negatives_per_positive") if getattr(options, key)]
    if len(labelled) != 1:
        found = " and ".join(labelled) or "none of them"
        raise UserError(
            "data.logs: labels come from exactly one of `label` (a column of 0 and 1), `label_from` (with "
            f"`label_at_least` or `label_is`) and `negatives_per_positive` (data of positives only); found {found}"
        )
    if options.user == options.item:
        raise UserError(f"data.logs.user and data.logs.item are the same column, {options.user!r}: name two")
    row_values.check(options)
    taken: dict[str, str] = {RAW_ID: "reserved", USER_ID: "reserved for the user's own ID, which is always a field"}
    uses = {options.label: "label", options.label_from: "label", options.time: "time"}
    for index, field in enumerate(options.fields):
        where = f"data.logs.fields.{index}"
        if field.name in taken:
            raise UserError(f"{where}.name = {field.name!r} is {taken[field.name]}: choose another name")
        taken[field.name] = "the name of another field"
        column = field.column or field.name
        if column in uses:
            raise UserError(f"{where}: column {column!r} is the {uses[column]}, which no feature may know: remove it")
        if field.kind == "vector" and not (field.side == "item" and options.items):
            raise UserError(
                f"{where}: a vector is a column of the items: set side to item, and data.logs.items to their table"
            )
        if field.side == "row" and field.kind not in ("categorical", "numeric"):
            raise UserError(f"{where}: a field of a row is categorical or numeric, not {field.kind}: name another kind")
        if column in (options.user, options.item):
            raise UserError(f"{where}: column {column!r} is an ID, which the model has without a field: remove it")


def interaction_files(options: LogsConfig) -> tuple[Path, ...]:
    """Returns the files of the interactions."""
    return _files(options)["interactions"]


def _files(options: LogsConfig) -> dict[str, tuple[Path, ...]]:
    """Returns the files of the interactions and of the side tables, which may lie in the same folder."""
    named = {"users": options.users, "items": options.items, "interactions": options.interactions}
    found = {key: log_files.find_files(path, f"data.logs.{key}") for key, path in named.items() if path}
    interactions = log_files.without_tables(found["interactions"], options.users, options.items)
    if {*interactions} <= {*found.get("users", ()), *found.get("items", ())}:
        raise UserError("data.logs.interactions names the files of the side tables: name those of the interactions")
    return {**found, "interactions": interactions}


def columns_of_fields(options: LogsConfig) -> list[str]:
    """Columns of fields that stand in the interactions."""
    names = []
    for side in SIDES:
        in_side_table = _side_columns(options, side)
        fields = [field for field in options.fields if field.side == side and field.kind != "vector"]
        names += [column for field in fields if (column := _column(field)) not in in_side_table]
    return [*names, *row_values.columns(options)]


def _side_columns(options: LogsConfig, side: Side) -> list[str]:
    """Columns of a side table; none where there is no such table."""
    named = getattr(options, f"{side}s")
    if not named:
        return []
    return log_tables.column_names(log_files.find_files(named, f"data.logs.{side}s")[0], options.of_table(side))


def _column(field: LogsField) -> str:
    return field.column or field.name


def _seen(log: Rows, kept: np.ndarray, rule: SplitRule | None) -> Seen | None:
    """Says who has a row before day 0 of the stream protocol; None under the other."""
    if rule is None or rule.stream is None or not len(kept):
        return None
    before = kept[log.time[kept] < rule.stream.day_0(int(log.time[kept].min()))]
    return Seen(
        np.bincount(log.user[before], minlength=len(log.user_ids)) > 0,
        np.bincount(log.item[before], minlength=len(log.item_ids)) > 0,
    )


def _entity_table(
    side: Side,
    log: Rows,
    kept: np.ndarray,
    options: LogsConfig,
    notes: list[str],
    seen: Seen | None,
    words: dict[str, pa.Array],
) -> tuple[pa.Table, list[Field]]:
    """Makes the table of one side, and its fields; `notes` gets what has no use there, `words` the vocabularies."""
    own_ids, of_row = (log.user_ids, log.user) if side == "user" else (log.item_ids, log.item)
    columns: dict[str, Any] = {RAW_ID: own_ids}
    fields = []
    if side == "user":
        columns[USER_ID] = np.arange(1, len(own_ids) + 1, dtype=np.int32)
        fields.append(Field(USER_ID, "categorical", "user", len(own_ids) + 1))
    wanted = [field for field in options.fields if field.side == side]
    there = _side_columns(options, side)
    for field in wanted:
        if field.kind == "vector" and _column(field) not in there:
            raise UserError(
                f"field {field.name!r}: no column {_column(field)!r} in data.logs.items, where a vector stands; its "
                f"columns: {', '.join(there)[:300]}"
            )
    joined = _join(side, log, [field for field in wanted if _column(field) in there], options)
    if joined is not None:
        notes += [*joined[0].notes, *_unmatched(joined[1], len(own_ids), f"{side}s")]
    earliest = kept[np.argsort(log.time[kept], kind="stable")]
    one_value: encode.OneValue | None = None
    for field in wanted:
        name = _column(field)
        if name in there:
            assert joined is not None
            table, entity = joined
            column, rows, differ = encode.values_of_table(field, table.columns[name], entity, len(own_ids))
            notes += _first_counts(field, differ)
        else:
            table, entity, column = log.table, of_row, log.table.columns[name]
            one_value = one_value or encode.OneValue(entity)
            notes += _not_constant(field, one_value.share(column), options)
            rows = encode.first_rows(entity, column.is_valid().to_numpy(), earliest, len(own_ids))
        refuse = _Refuse(table, name)
        of_side = None if seen is None else (seen.users if side == "user" else seen.items)
        made = encode.encode_field(field, column, rows, refuse, of_side)
        notes += made.notes(f"{side}s", len(rows))
        columns[field.name] = made.values
        words |= {} if made.vocabulary is None else {field.name: made.vocabulary}
        fields.append(made.field)
    if all(field.kind == "vector" for field in fields):
        columns[ANY_ITEM] = np.zeros(len(own_ids), dtype=np.int32)
        fields.insert(0, Field(ANY_ITEM, "categorical", "item", 1))
    return pa.table(columns), fields


def _first_counts(field: LogsField, num: int) -> list[str]:
    """Says of how many users or items a side table has several values of a field that takes one."""
    if not num:
        return []
    return [
        f"field {field.name!r}: {num:,} {field.side}s have several rows with other values in the table of "
        f'{field.side}s; the first counts. With kind = "multi_valued" all of them do'
    ]


def _not_constant(field: LogsField, share: float | None, options: LogsConfig) -> list[str]:
    """Says of a field of users or items that it changes from row to row, where fewer than enough have one value."""
    if share is None or share >= options.constant_share:
        return []
    return [
        f"field {field.name!r}: {share:.1%} of the {field.side}s with several rows have one value of column "
        f"{_column(field)!r}, fewer than data.logs.constant_share = {options.constant_share:g}; of the others the "
        "earliest counts"
    ]


@dataclasses.dataclass(frozen=True)
class _Refuse:
    """Makes the error of a row of a column."""

    table: LogTable
    column: str

    def __call__(self, row: int, why: str) -> UserError:
        return UserError(f"{self.table.place(row)}: {self.column} {why}")


def _unmatched(entity: np.ndarray, num_entities: int, what: str) -> list[str]:
    """Counts rows of a side table without an interaction, and entities of interactions that have no row there."""
    strangers, lacking = int((entity < 0).sum()), num_entities - len(np.unique(entity[entity >= 0]))
    said = [f"{strangers:,} of its {len(entity):,} rows have no interaction"] if strangers else []
    said += [f"{lacking:,} of the {num_entities:,} {what} of the interactions have no row in it"] if lacking else []
    return [f"table of {what}: {', '.join(said)}"] if said else []


def _join(side: Side, log: Rows, fields: list[LogsField], options: LogsConfig) -> tuple[LogTable, np.ndarray] | None:
    """Returns the side table and the entity of each of its rows, -1 for those that the interactions do not have."""
    key, names = f"{side}s", [_column(field) for field in fields]
    if not getattr(options, key) or not names:
        return None
    known, form = (log.user_ids, log.form.user) if side == "user" else (log.item_ids, log.form.item)
    id_column = getattr(options, side)
    files = log_files.find_files(getattr(options, key), f"data.logs.{key}")
    vectors = [_column(field) for field in fields if field.kind == "vector"]
    wanted = list(dict.fromkeys([id_column, *names]))
    table = log_tables.read(files, wanted, options.of_table(side), key, vectors=vectors)
    entity = ids.find_rows(table.columns[id_column], known, form)
    if not (entity >= 0).any():
        raise UserError(
            f"{files[0]}: none of its {table.num_rows} {key} is in the interactions (there {id_column} is like "
            f"{known[0].as_py()!r}, here like {table.columns[id_column][0].as_py()!r}); is it the right table?"
        )
    return table, entity
