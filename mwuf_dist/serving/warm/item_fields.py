"""Fields of items (or users) that a run has never seen, as indices of the run's own tables.

For own logs the vocabularies of the prepared data say which words and edges the indices stand for. Data prepared before
these were kept have the indices alone, and the words are learned again from the run's own files, which must be there: a
word and an index belong together that stand at exactly the same items. Data sets that come with the project give the
indices themselves (as `items.parquet` of the prepared folder has them).
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import pyarrow.parquet as pq

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data import vocabulary
from mwuf_dist.data.readers import encode, log_files, log_tables, vectors
from mwuf_dist.data.readers import ids as raw_ids
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.readers.log_tables import LogTable
from mwuf_dist.data.readers.times import read_times
from mwuf_dist.data.schema import RAW_ID, USER_ID, Field, Side
from mwuf_dist.data.shards import ENTITY_FILES, Prepared
from mwuf_dist.data.vectors import column_of, matrix, scaled
from mwuf_dist.serving.served_state import as_column, unknown_fields
from mwuf_dist.serving.warm.interactions import form_of_run


@dataclass(frozen=True)
class _Words:
    """Words of entities, jagged.

    Attributes:
        entity: of each word [W].
        text: of each word [W].
        lengths: number of words of each entity [E].
    """

    entity: np.ndarray
    text: pa.Array
    lengths: np.ndarray


def read_fields(
    path: Path, options: LogsConfig, prepared: Prepared, is_logs: bool, side: Side = "item"
) -> tuple[pa.Array, pa.Table, list[str]]:
    """Returns raw IDs, ascending [A], the run's fields of the items (or users) of a file [A], and notes on these.

    Args:
        path: Parquet or CSV, a row per item (of several the first counts).
        options: how it is read, and the fields of own logs.
        prepared: of the run.
        is_logs: whether the run is of own logs, so that the file has words and not indices.
        side: whose fields they are.

    Raises:
        UserError: a column is absent, or a value is wrong.
    """
    of_side = [field for field in prepared.fields if field.side == side and field.name != USER_ID]
    of_vectors = [field for field in of_side if field.kind == "vector"]
    fields = [field for field in of_side if field.kind != "vector"]
    named = {field.name: field for field in options.fields}
    if is_logs:  # without the field that stands for none, which no file has
        fields = [field for field in fields if field.name in named]
    if side == "user" and not fields:
        raise UserError(f"{path}: the run has no field of users but their IDs: leave --user-fields out")
    columns = {field.name: (named[field.name].column or field.name) if is_logs else field.name for field in fields}
    options, id_column = options.of_table(side), getattr(options, side)
    option = {"item": "--items", "user": "--user-fields"}[side]
    files = log_files.without_tables(log_files.find_files(str(path), option), options.users, options.items)
    there = set(log_tables.column_names(files[0], options))
    # Vectors of a file of their own (data.item_vectors) may come beside the fields, or not at all.
    vector_of = {field.name: named[field.name].column or field.name for field in of_vectors if field.name in named}
    vector_of |= {field.name: field.name for field in of_vectors if field.name not in named and field.name in there}
    wanted = list({id_column: 0} | dict.fromkeys([*columns.values(), *vector_of.values()]))
    table = log_tables.read(files, wanted, options, f"{side}s", vectors=[*vector_of.values()])
    form = form_of_run(prepared, is_logs)
    id_form = raw_ids.form_of(prepared.raw_ids(side)) if form is None else getattr(form, side)
    entity, ids, _ = raw_ids.encode_ids(table.columns[id_column], id_form)
    known, words_of = None, vocabulary.read(prepared) if is_logs else None
    if is_logs and words_of is None:
        known = pq.read_table(prepared.path / ENTITY_FILES[side], memory_map=True).combine_chunks()
    unknown = unknown_fields(prepared, len(ids), side)
    out = {name: unknown[name] for name in unknown.column_names}
    notes = [*table.notes, *_notes_on_ids(ids, entity, prepared.raw_ids(side), table, id_column, option)]
    for field in fields:
        own = named[field.name] if is_logs else LogsField(name=field.name, side=side, kind=field.kind)
        column, rows, differ = encode.values_of_table(own, table.columns[columns[field.name]], entity, len(ids))
        _refuse_lists(own, column, files[0])
        if differ:
            notes.append(f"{field.name}: {differ:,} {side}s have several rows with other values; the first counts")
        if words_of is not None:
            out[field.name], strange = _by_words(field, own, column, rows, words_of[field.name])
            notes += vocabulary.note_of_unknown(field.name, f"{side}s", *strange, own.kind == "numeric")
        elif known is None:
            out[field.name] = as_column(field, *_indices(field, _words(column, rows, "|"), path))
        else:
            out[field.name] = _encoded(field, own, column, rows, _own_column(own, options, prepared, known), known)
    for name, column_name in vector_of.items():
        column = table.columns[column_name]
        rows = encode.first_rows(entity, column.is_valid().to_numpy(), np.arange(table.num_rows), len(ids))
        out[name] = _standardised(name, column, rows, prepared, table)
    return ids, pa.table(out), notes


def _notes_on_ids(
    ids: pa.Array, entity: np.ndarray, known: pa.Array, table: LogTable, column: str, option: str
) -> list[str]:
    """Says how many rows have no ID, and how many IDs are the run's own, whose fields stay as they are.

    Raises:
        UserError: an ID is a word, where all of the run are whole numbers.
    """
    if pa.types.is_integer(known.type) and not pa.types.is_integer(ids.type):
        is_word = pc.invert(raw_ids.is_whole_number(ids)).to_numpy(zero_copy_only=False)
        row = int(np.argmax(np.append(is_word, False)[entity]))
        raise UserError(
            f"{table.place(row)}: {column} is {ids[int(entity[row])].as_py()!r}, and all {table.what} of the run have "
            f"whole numbers of 64 bits, as {known[0].as_py()}; correct or remove it"
        )
    lacking, num_known = int((entity < 0).sum()), int((raw_ids.find(ids, known) >= 0).sum())
    said = [f"{option}: {lacking:,} of {len(entity):,} rows are left out: no {column}"] if lacking else []
    if num_known:
        said.append(f"{option}: {num_known:,} of {len(ids):,} {table.what} are the run's own, whose fields stay")
    return said


def _refuse_lists(own: LogsField, column: pa.ChunkedArray, path: Path) -> None:
    if own.kind != "multi_valued" and pa.types.is_nested(column.type):
        raise UserError(
            f"{path}: column {own.column or own.name!r} is a list, and field {own.name!r} of the run takes one value: "
            "write it as the run's own tables have it"
        )


def _standardised(
    name: str, column: pa.ChunkedArray, rows: np.ndarray, prepared: Prepared, table: LogTable
) -> pa.Array:
    """Returns vectors by the statistics of the run's old items."""
    scale = prepared.manifest["vectors"][name]

    def refuse(row: int, why: str) -> UserError:
        return UserError(f"{table.place(row)}: {name} {why}")

    found = vectors.encode_vectors(name, column, rows, refuse, len(scale["mean"]))
    has = found.is_valid().to_numpy(zero_copy_only=False)
    return column_of(scaled(matrix(found), has, scale))


def _by_words(
    field: Field, own: LogsField, column: pa.ChunkedArray, rows: np.ndarray, words_of: pa.Table
) -> tuple[pa.Array, tuple[int, int, str]]:
    """Returns a field of the new items by the vocabulary of the run.

    Second: how many of them have a value that the run does not know, of how many there are, and such a value.
    """
    if own.kind == "categorical":  # its words have the blanks and quotes that stand there
        values = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        text = text_of(pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type))
        text = text.take(pa.array(rows, mask=rows < 0))
        index = vocabulary.index_of_words(words_of, text)
        strange = np.flatnonzero((rows >= 0) & (index == 0))
        made = as_column(field, index, np.ones(len(index), dtype=np.int64))
        return made, (len(strange), len(rows), text[int(strange[0])].as_py() if len(strange) else "")
    words = _words(column, rows, own.separator if own.kind == "multi_valued" else "")
    if own.kind == "numeric":
        index = vocabulary.index_of_numbers(words_of, encode.to_float(words.text))
    else:
        index = vocabulary.index_of_words(words_of, words.text)
    strange = np.flatnonzero(index == 0)
    example = words.text[int(strange[0])].as_py() if len(strange) else ""
    made = as_column(field, *_filled(words, index, field))
    return made, (len(np.unique(words.entity[strange])), len(rows), example)


def _indices(field: Field, words: _Words, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices that stand in the file themselves."""
    number = encode.to_float(words.text)
    bad = ~((number >= 0) & (number < field.size) & (number == np.floor(number)))
    if bad.any():
        value = words.text[int(np.argmax(bad))].as_py()
        raise UserError(
            f"{path}: {field.name} = {value!r}: this data set's fields are given by index, 0 (unknown) to "
            f"{field.size - 1}, as items.parquet of the prepared folder has them"
        )
    return _filled(words, number.astype(np.int32), field)


def _filled(words: _Words, index: np.ndarray, field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Gives (values, lengths) of all entities: unknown words of a list are left out, an entity without any has [0]."""
    if field.kind == "categorical":
        out = np.zeros(len(words.lengths), dtype=np.int32)
        out[words.entity[::-1]] = index[::-1]
        return out, np.ones(len(out), dtype=np.int64)
    kept = index > 0
    lengths = np.bincount(words.entity[kept], minlength=len(words.lengths))
    empty = np.flatnonzero(lengths == 0)
    starts = np.cumsum(lengths) - lengths
    return np.insert(index[kept], starts[empty], 0).astype(np.int32), np.maximum(lengths, 1)


def _words(column: pa.ChunkedArray, rows: np.ndarray, separator: str) -> _Words:
    """Returns words of entities whose value stands in these rows [E], -1 for none."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    taken = column.take(pa.array(rows, mask=rows < 0)).combine_chunks()
    if not pa.types.is_list(taken.type):
        taken = text_of(taken)
        taken = encode.split(taken, separator) if separator else pc.split_pattern(taken, "\x00")
    lengths = pc.fill_null(pc.list_value_length(taken), 0).to_numpy(zero_copy_only=False)
    text = encode.words_of(taken.flatten())
    entity = np.repeat(np.arange(len(rows)), lengths)
    # Each word of an entity once, at its first position; empty ones are none.
    code = text.dictionary_encode()
    place = np.unique(entity * (len(code.dictionary) + 1) + code.indices.to_numpy(), return_index=True)[1]
    place = np.sort(place)
    place = place[np.asarray(pc.not_equal(text.take(pa.array(place)), ""))] if len(place) else place
    entity = entity[place]
    return _Words(entity, text.take(pa.array(place)), np.bincount(entity, minlength=len(rows)))


def _own_column(
    field: LogsField, options: LogsConfig, prepared: Prepared, known: pa.Table
) -> tuple[pa.ChunkedArray, np.ndarray]:
    """Returns a field's column in the run's own files, and the row of each of the run's items there, -1 for none."""
    name = field.column or field.name
    side: Side = "user" if field.side == "user" else "item"
    id_column, of_side = getattr(options, side), getattr(options, f"{side}s")
    files = log_files.find_files(of_side, f"data.logs.{side}s") if of_side else ()
    if files and name in log_tables.column_names(files[0], options.of_table(side)):
        table = log_tables.read(files, [id_column, name], options.of_table(side), f"{side}s")
        order = np.arange(table.num_rows)
    else:
        files = log_files.find_files(options.interactions, "data.logs.interactions")
        table = log_tables.read(files, [id_column, name, options.time], options, "interactions", [options.time])
        order = np.argsort(read_times(table, options).values, kind="stable")
    column = table.columns[name]
    entity = raw_ids.find_rows(table.columns[id_column], known[RAW_ID].chunk(0))
    return column, encode.first_rows(entity, column.is_valid().to_numpy(), order, known.num_rows)


def _encoded(
    field: Field,
    own: LogsField,
    column: pa.ChunkedArray,
    rows: np.ndarray,
    run: tuple[pa.ChunkedArray, np.ndarray],
    known: pa.Table,
) -> pa.Array:
    """Returns a field of the new items by what the run's own items have."""
    separator = own.separator if own.kind == "multi_valued" else ""
    theirs, words = _words(*run, separator), _words(column, rows, separator)
    codes = known[field.name].chunk(0)
    is_number = own.kind == "numeric"
    index = _buckets(theirs, codes.to_numpy(), words) if is_number else _learned(theirs, codes, words.text)
    return as_column(field, *_filled(words, index, field))


def _buckets(theirs: _Words, codes: np.ndarray, words: _Words) -> np.ndarray:
    """Gives quantile bucket of each number [W].

    The first whose largest number in the run is not smaller, else the last.
    """
    number, code = encode.to_float(theirs.text), codes[theirs.entity]
    highest = np.full(codes.max(initial=0) + 1, -np.inf)
    known = np.isfinite(number) & (code > 0)
    np.maximum.at(highest, code[known], number[known])
    ends = np.maximum.accumulate(highest[1:])
    wanted = encode.to_float(words.text)
    index = 1 + np.minimum(np.searchsorted(ends, np.nan_to_num(wanted), side="left"), max(len(ends) - 1, 0))
    return np.where(np.isfinite(wanted) & (len(ends) > 0), index, 0).astype(np.int32)


def _learned(theirs: _Words, codes: pa.Array, text: pa.Array) -> np.ndarray:
    """Returns the index of each word [W] by the run's items, 0 for one that none of them has."""
    if pa.types.is_list(codes.type):
        lengths = np.diff(codes.offsets.to_numpy())
        code_entity, code = np.repeat(np.arange(len(lengths)), lengths), codes.flatten().to_numpy()
    else:
        code_entity, code = np.arange(len(codes)), codes.to_numpy()
    code_entity, code = code_entity[code > 0], code[code > 0]
    encoded = theirs.text.dictionary_encode()
    rank = np.argsort(pc.array_sort_indices(encoded.dictionary).to_numpy())  # words in the order of their text
    word = rank[encoded.indices.to_numpy()]
    # The items of each word, and of each index, as one number: the sum of random numbers of the items.
    marks = np.random.default_rng(0).integers(1 << 62, size=len(theirs.lengths), dtype=np.uint64)
    word_marks, code_marks = (np.zeros(size, np.uint64) for size in (len(rank), code.max(initial=0) + 1))
    np.add.at(word_marks, word, marks[theirs.entity])
    np.add.at(code_marks, code, marks[code_entity])
    # Both ascend by text, so that of words at the same items the first has the first index.
    by_word, by_code = np.argsort(word_marks, kind="stable"), 1 + np.argsort(code_marks[1:], kind="stable")
    index = np.zeros(len(rank), dtype=np.int32)
    for sorted_words, sorted_codes in _groups(word_marks, by_word, code_marks, by_code):
        num = min(len(sorted_words), len(sorted_codes))
        index[sorted_words[:num]] = sorted_codes[:num]
    sorted_words = encoded.dictionary.take(pc.array_sort_indices(encoded.dictionary))
    place = pc.fill_null(pc.index_in(text, value_set=sorted_words), -1).to_numpy(zero_copy_only=False)
    return np.append(index, np.int32(0))[place]


def _groups(
    word_marks: np.ndarray, by_word: np.ndarray, code_marks: np.ndarray, by_code: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (words, indices) that stand at the same items."""
    wanted = np.intersect1d(word_marks[by_word], code_marks[by_code])
    wanted = wanted[wanted > 0]
    bounds = []
    for marks, order in ((word_marks, by_word), (code_marks, by_code)):
        values = marks[order]
        starts, stops = (np.searchsorted(values, wanted, side=side) for side in ("left", "right"))
        bounds.append([order[a:b] for a, b in zip(starts, stops, strict=True)])
    return list(zip(*bounds, strict=True))
