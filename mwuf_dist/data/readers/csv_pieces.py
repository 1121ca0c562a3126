"""Raw interactions of public data sets: CSV files of any size, cut into pieces that are read block by block.

Side tables of users and items, which are far smaller, are read by `tables.read`; `join` gives each entity its row.
"""

from __future__ import annotations

import gzip
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsField
from mwuf_dist.data.readers import encode
from mwuf_dist.data.readers.log_tables import LogTable
from mwuf_dist.data.schema import RAW_ID, USER_ID, Field, Side

BLOCK_BYTES = 16 << 20  # Parsed at once; 1 to 64 MiB differ by less than a tenth in time.
PIECE_BYTES = 128 << 20  # A piece of work: 3 to 5 million rows.


@dataclass(frozen=True)
class Column:
    """A column of a raw file that is read.

    Attributes:
        name: its name, or the name that it gets where the file has no line of names.
        kind: its Arrow type.
        pattern: what every value must match; only looked at once something is wrong.
        what: the same in words.
    """

    name: str
    kind: pa.DataType
    pattern: str = r"-?[0-9]{1,18}"
    what: str = "an integer"


@dataclass(frozen=True)
class RawCsv:
    """One kind of raw file.

    Attributes:
        header: names of all columns, in order.
        wanted: the columns to read.
        named: whether the first line holds the names.
    """

    header: tuple[str, ...]
    wanted: tuple[Column, ...]
    named: bool


def find_files(folder: Path, names: Sequence[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Finds of each name the file `name` or else `name.gz` in a folder; and the names that have neither."""
    found = {
        name: next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None) for name in names
    }
    missing = tuple(name for name, path in found.items() if path is None)
    return tuple(path for path in found.values() if path is not None), missing


@dataclass(frozen=True)
class CsvPiece:
    """Lines of a raw file.

    Attributes:
        path: the file.
        names: of its columns.
        start, stop: bytes of the lines; None: all of the file, which is compressed.
    """

    path: Path
    names: tuple[str, ...]
    start: int | None = None
    stop: int | None = None


def pieces_of(paths: Sequence[Path], kind: RawCsv) -> tuple[CsvPiece, ...]:
    """Returns all lines of files, one file after another, whatever reads them.

    Args:
        paths: the files.
        kind: how they are laid out.

    Raises:
        UserError: a file is absent, empty or truncated, or there is no line.
    """
    pieces = []
    for path in (path.resolve() for path in paths):
        names = tuple(_names(path, kind))
        refuse_cut_line(path)
        if path.name.endswith(".gz"):
            pieces.append(CsvPiece(path, names))
            continue
        bounds = _line_starts(path, kind.named)
        pieces += [CsvPiece(path, names, *one) for one in itertools.pairwise(bounds)]
    if not pieces:
        raise UserError(f"{paths[0]}: no rows; get the file again")
    return tuple(pieces)


def _line_starts(path: Path, skip_first: bool) -> list[int]:
    """Says where a line begins, about every PIECE_BYTES, and the end of the file."""
    size = path.stat().st_size
    starts = []
    with path.open("rb") as file:
        if skip_first:
            file.readline()
        while file.tell() < size:
            starts.append(file.tell())
            file.seek(starts[-1] + PIECE_BYTES - 1)
            file.readline()
    return [*starts, size] if starts else []


def read_piece(
    piece: CsvPiece, kind: RawCsv, convert: Callable[[dict[str, Any]], dict[str, np.ndarray] | None]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of a piece, block by block.

    Args:
        piece: from `pieces_of`.
        kind: how the file is laid out.
        convert: from the Arrow columns of one block to the arrays that are kept of it, or None where a value is not
            allowed; the file is then searched for the line.

    Raises:
        UserError: the file is truncated or malformed; it names the line.
    """
    for batch in _batches(piece, kind):
        columns = {column.name: batch[column.name] for column in kind.wanted}
        complete = not any(column.null_count for column in columns.values())
        converted = convert(columns) if complete else None
        if converted is None:
            raise _first_bad_line(piece.path, kind, "a value that is not allowed")
        yield converted


def _batches(piece: CsvPiece, kind: RawCsv) -> Iterator[pa.RecordBatch]:
    path, whole = piece.path, piece.start is None
    try:
        reader = csv.open_csv(
            str(path) if whole else _lines(piece),
            read_options=csv.ReadOptions(
                column_names=list(piece.names), skip_rows=int(kind.named and whole), block_size=BLOCK_BYTES
            ),
            parse_options=csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(
                include_columns=[column.name for column in kind.wanted],
                column_types={column.name: column.kind for column in kind.wanted},
                null_values=[],
                strings_can_be_null=False,
            ),
        )
        yield from reader
    except (OSError, pa.ArrowException) as error:
        raise _first_bad_line(path, kind, str(error)[:200]) from None


def _lines(piece: CsvPiece) -> pa.NativeFile:
    assert piece.start is not None and piece.stop is not None
    with pa.memory_map(str(piece.path)) as file:
        file.seek(piece.start)
        return pa.BufferReader(file.read_buffer(piece.stop - piece.start))


def _names(path: Path, kind: RawCsv) -> list[str]:
    """Returns names of the file's columns, checked where the file has them."""
    expected = ",".join(kind.header)
    try:
        with open_text(path) as file:
            first = file.readline()
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); is the file complete?") from None
    if not first:
        raise UserError(f"{path}: is empty; get the file again (its columns are {expected})")
    if not kind.named:
        return list(kind.header)
    names = [name.strip().lstrip("\ufeff") for name in first.split(",")]
    for column in kind.wanted:
        if column.name not in names:
            raise UserError(f"{path}:1: expected the names {expected}, found {first.strip()[:120]!r}; is it this file?")
    return names


def open_text(path: Path) -> Any:
    """Returns a text file, gzipped or not."""
    opened = gzip.open if path.name.endswith(".gz") else open
    return opened(path, "rt", encoding="utf-8", errors="replace", newline="\n")


def refuse_cut_line(path: Path) -> None:
    """Refuses a file without a line end: a line cut short may look whole, with a shorter number at its end.

    A cut .gz needs no look: it does not decompress.

    Raises:
        UserError: the last line is not ended.
    """
    if path.name.endswith(".gz"):
        return
    with path.open("rb") as file:
        file.seek(-1, 2)
        whole = file.read(1) == b"\n"
    if not whole:
        raise UserError(
            f"{path}: the last line has no line end: the file is truncated. Get it again; or, if you know that it is "
            "whole, add the line end"
        )


def _first_bad_line(path: Path, kind: RawCsv, otherwise: str) -> UserError:
    """Says which line is wrong and why, which Arrow does not; slow, but only on the way out."""
    names = _names(path, kind)
    places = [(names.index(column.name), column, re.compile(column.pattern, re.ASCII)) for column in kind.wanted]
    try:
        with open_text(path) as file:
            for line, text in enumerate(file, start=1):
                if kind.named and line == 1:
                    continue
                values = text.rstrip("\r\n").split(",")
                if len(values) != len(names):
                    what = f"expected {len(names)} columns {','.join(names)}, found {len(values)}: {text.rstrip()!r}"
                    return UserError(f"{path}:{line}: {what}; correct or remove the line")
                for place, column, pattern in places:
                    if not pattern.fullmatch(values[place]):
                        what = f"{column.name} is {values[place]!r}, not {column.what}"
                        return UserError(f"{path}:{line}: {what}; correct or remove the line")
    except (OSError, EOFError) as error:
        otherwise = str(error)
    return UserError(f"{path}: cannot be read ({otherwise}); is the file complete?")


def narrow(column: pa.Array) -> np.ndarray:
    """Returns integers as int32 where all of them fit."""
    values = column.to_numpy()
    info = np.iinfo(np.int32)
    fits = not len(values) or (values.min() >= info.min and values.max() <= info.max)
    return values.astype(np.int32) if fits else values


def join(
    side: Side,
    ids: np.ndarray,
    table: LogTable,
    id_column: str,
    fields: Mapping[str, LogsField],
    kept: np.ndarray,
    seen: np.ndarray | None = None,
) -> tuple[pa.Table, list[Field]]:
    """Returns the entity table of one side: a left join, in which entities without a row are unknown (index 0).

    Args:
        side: which.
        ids: the entities' IDs [E].
        table: the raw side table, its IDs plain text; of several rows of an ID the first counts.
        id_column: its column of IDs.
        fields: column of the table -> the field made of it.
        kept: whose values make the vocabularies and buckets; the others are unknown in every field [E].
        seen: who makes them under the stream protocol, where all are kept [E].

    Raises:
        UserError: a malformed value, or a table that has none of the entities.
    """
    entity = _find(table, id_column, ids)
    if not (entity >= 0).any():
        raise UserError(f"{table.files[0]}: none of its {table.what} is in the interactions; is it the right file?")
    everything = np.ones(table.num_rows, dtype=bool)
    rows = encode.first_rows(entity, everything, np.arange(table.num_rows), len(ids))
    if seen is None:
        rows[~kept] = -1
    columns: dict[str, Any] = {RAW_ID: ids}
    made = []
    if side == "user":
        columns[USER_ID] = np.arange(1, len(ids) + 1, dtype=np.int32)
        made.append(Field(USER_ID, "categorical", "user", len(ids) + 1))
    for name, field in fields.items():

        def refuse(row: int, why: str, name: str = name) -> UserError:
            return UserError(f"{table.place(row)}: {name} {why}")

        one = encode.encode_field(field, table.columns[name], rows, refuse, seen)
        columns[field.name] = one.values
        made.append(one.field)
    return pa.table(columns), made


def _fits(text: str) -> bool:
    """Says whether a text is a whole number of 64 bits."""
    return re.fullmatch(r"-?[0-9]+", text) is not None and -(2**63) <= int(text) < 2**63


def _find(table: LogTable, id_column: str, ids: np.ndarray) -> np.ndarray:
    """Finds each row's ID among the known ones, which ascend; -1 where it is missing or unknown [rows of table]."""
    column = table.columns[id_column]
    try:
        found = column.cast(pa.int64()).fill_null(-1 << 63).to_numpy()
    except pa.ArrowInvalid:
        bad = [row for row, one in enumerate(column.to_pylist()) if one and not _fits(one)]
        where, value = table.place(bad[0]), column[bad[0]].as_py()
        raise UserError(f"{where}: {id_column} is {value!r}, not an integer; correct or remove the line") from None
    place = np.minimum(np.searchsorted(ids, found), len(ids) - 1)
    return np.where(ids[place] == found, place, -1)
