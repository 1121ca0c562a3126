"""Reads Parquet and CSV files, one or a folder of them, as one Arrow table whose rows can be traced to file and line.

Every column of a CSV is read as text (a guess from its first rows would fail on the first odd ID); what it means is
decided by who asks. Text and numbers come dictionary-encoded: a log repeats itself, so that later steps look at each
distinct value once. What is not read as it stands (lines below the table, empty files) is noted.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from tqdm import tqdm

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import arrow_types, csv_text, lines_of_names
from mwuf_dist.data.readers.absent_columns import absent
from mwuf_dist.data.readers.ids import refuse_inexact
from mwuf_dist.data.readers.log_files import format_of, is_parquet, partitions, unlike_folder

DICTIONARY = pa.dictionary(pa.int32(), pa.string())
_BLOCK_BYTES = 8 << 20  # Parsed at once: each block has dictionaries of its own, which are joined at the end.
_PROGRESS_FROM_FILES = 10


@dataclass(frozen=True)
class LogTable:
    """Columns of all files of one kind, one after another.

    Attributes:
        what: `interactions`, `users` or `items`, as the config calls them.
        columns: the columns, of the types of `arrow_types.simple`.
        files: the files, in the order of their rows.
        starts: number of rows before each file, and of all of them [F + 1].
        options: how CSV files were read.
        notes: what of the files was passed over, a sentence each.
        unread: column -> its type, of those that were wanted and that nothing can read (`skip_unread`).
        gone: place in `files` -> the file's lines that hold its names again and are no rows, ascending.
    """

    what: str
    columns: pa.Table
    files: tuple[Path, ...]
    starts: np.ndarray
    options: LogsConfig
    notes: tuple[str, ...] = ()
    unread: dict[str, str] | None = None
    gone: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.columns.num_rows

    def file_of(self, row: int) -> int:
        """Says which file (place in `files`) a row stands in."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def place(self, row: int) -> str:
        """Says where a row stands: `file:line` of a CSV, `file: row r (counted from 0)` of a Parquet file."""
        part = self.file_of(row)
        row -= int(self.starts[part])
        for before in self.gone.get(part, ()):
            row += before <= row
        return _place(self.files[part], row, self.options)


def _place(path: Path, row: int, options: LogsConfig) -> str:
    if is_parquet(path):
        return f"{path}: row {row} (counted from 0)"
    expected, number = len(options.header), 0 if options.header else -1
    for one in csv_text.rows_of(path, options):
        expected = expected or len(one.values)
        if len(one.values) == expected:
            if number == row:
                return f"{path}:{one.line}"
            number += 1
    return f"{path}: row {row}"


def needed_columns(options: LogsConfig) -> list[str]:
    """Returns the columns without which a row is none: user, item, time and label, as far as there are such."""
    return [one for one in (options.user, options.item, options.time, options.label or options.label_from) if one]


def column_names(path: Path, options: LogsConfig) -> list[str]:
    """Returns names of a file's columns, those of its folders (`day=2020-09-01/`) last.

    Raises:
        UserError: the file cannot be read, is empty, or has a name twice.
    """
    names = _own_names(path, options)
    return [*names, *(name for name in partitions(path) if name not in names)]


def _own_names(path: Path, options: LogsConfig) -> list[str]:
    form = format_of(path)
    if form.kind == "other":
        raise UserError(f"{path}: {form.why_not}")
    if form.kind == "empty":
        raise UserError(f"{path}: is empty: no line of column names; remove the file")
    try:
        if is_parquet(path):
            names = pq.read_schema(path).names
        elif options.header:
            names = list(options.header)
        else:
            first = next(csv_text.rows_of(path, options), None)
            names = _plain_names(first.values if first else [])
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); is it a complete {_format(path)} file?") from None
    if not names:
        raise UserError(f"{path}: is empty: no line of column names; remove the file")
    if odd := [name for name in names if "\0" in name]:
        raise UserError(
            f"{path}: the name of column {odd[0][:40]!r} holds a NUL, as no key of a config does; rename it"
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: two columns are named {twice[0]!r}; rename one")
    return names


def _plain_names(names: Sequence[str]) -> list[str]:
    """Names without blanks and quotes around them; one that is empty (pandas' index) gets one."""
    plain = [re.sub(r'^"(.*)"$', r"\1", name.strip(" \t\r\n\ufeff\xa0")).strip() for name in names]
    return [name or f"column_{number}" for number, name in enumerate(plain, start=1)]


def read(
    files: Sequence[Path],
    names: Sequence[str],
    options: LogsConfig,
    what: str,
    plain: Sequence[str] = (),
    skip_unread: bool = False,
    progress: bool = False,
    vectors: Sequence[str] = (),
) -> LogTable:
    """Reads columns of all files.

    Args:
        files: from `find_files`.
        names: the columns wanted.
        options: how CSV is written.
        what: `interactions`, `users` or `items`.
        plain: columns that are not worth a dictionary (times).
        skip_unread: leave columns out that have a type which nothing can read (`LogTable.unread`).
        progress: show a bar where there are many files.
        vectors: columns that are read as list<float32>.

    Raises:
        UserError: a column is absent (its nearest neighbour is named), a file is malformed (with its line), there are
            no rows.
    """
    notes: list[str] = []
    unread: dict[str, str] | None = {} if skip_unread else None
    parts, used, gone = [], [], {}
    quiet = not progress or len(files) < _PROGRESS_FROM_FILES
    with tqdm(total=len(files), desc=f"read {what}", unit="file", disable=quiet) as bar:
        for path in files:
            bar.update()
            if format_of(path).kind == "empty" and len(files) > 1:
                notes.append(f"{path} is empty")
                continue
            there = column_names(path, options)
            for name in names:
                if name not in there:
                    raise absent(path, there, name, what, used[0] if used else None)
            *part, again = _read_file(path, names, options, plain, notes, unread, vectors)
            if len(again):
                gone[len(used)] = again
                notes.append(f"{path}: its column names stand in it {len(again):,} times more; these are no rows")
            parts.append(part)
            used.append(path)
    starts = np.cumsum([0] + [part[0] for part in parts])
    if not starts[-1]:
        where = f"{files[0]}{' and the files beside it' if len(files) > 1 else ''}"
        raise UserError(f"{where}: no rows of {what}, only names of columns; if there are none, leave the file out")
    columns = _joined([part[1] for part in parts], used, [one for one in names if not unread or one not in unread])
    return LogTable(what, pa.table(columns), tuple(used), starts, options, tuple(notes), unread, gone)


def _joined(
    parts: Sequence[dict[str, pa.ChunkedArray]], files: Sequence[Path], names: Sequence[str]
) -> dict[str, pa.ChunkedArray | pa.DictionaryArray]:
    """Returns the columns of all files, each file's part of them one after another; takes them from `parts`."""
    columns = {}
    for name in names:
        joined = arrow_types.together([part.pop(name) for part in parts])
        if isinstance(joined, tuple):
            one, other = (files[place] for place in joined)
            raise UserError(f"column {name!r} is a list in {one} and text in {other}: write it alike in both")
        columns[name] = joined
        pa.default_memory_pool().release_unused()  # else what joins took stays with Arrow: .1 GB of 385 files
    return columns


def _read_file(
    path: Path,
    names: Sequence[str],
    options: LogsConfig,
    plain: Sequence[str],
    notes: list[str],
    unread: dict[str, str] | None,
    vectors: Sequence[str] = (),
) -> tuple[int, dict[str, pa.ChunkedArray], np.ndarray]:
    """Returns rows of one file, its columns, and which of its lines hold names again."""
    folder = {name: value for name, value in partitions(path).items() if name in names}
    own = [name for name in names if name not in folder]
    own_names = _own_names(path, options) if folder else names
    own += [name for name in folder if name in own_names]  # what stands in the file counts
    table = _read_parquet(path, own, plain) if is_parquet(path) else _read_csv(path, own, options, plain, notes)
    found = lines_of_names.find(table)
    again = found.again
    for rows, what in ((found.in_another_order, "in another order"), (found.of_another_file, "of another file")):
        if len(rows):
            raise _of_other_columns(path, table, int(rows[0]), options, what)
    if len(again):
        table = table.filter(pa.array(~np.isin(np.arange(len(table)), again)))
    num_rows = table.num_rows
    columns = {}
    for name in names:
        raw = (
            table[name]
            if name in own
            else pa.chunked_array([pa.repeat(pa.scalar(folder[name], pa.string()), num_rows)])
        )
        if name in vectors:
            columns[name] = _vectors(path, name, raw)
            continue
        if name in (options.user, options.item):
            refuse_inexact(path, name, raw)
        try:
            one = arrow_types.simple(raw, options.missing) if name not in plain else _unencoded(raw, options)
        except arrow_types.UnreadTypeError as error:
            if unread is None:
                raise unread_type(path, name, str(error)) from None
            unread[name] = str(error)
            one = pa.chunked_array([pa.nulls(num_rows, pa.string())])
        columns[name] = one
        if name in folder and name in own and not any(f"column {name!r}" in said for said in notes):
            notes += unlike_folder(path, name, folder[name], one)
    return num_rows, columns, again


def _of_other_columns(path: Path, table: pa.Table, row: int, options: LogsConfig, what: str) -> UserError:
    there = ", ".join(f"{name} = {table[name][row].as_py()!r}" for name in table.column_names)[:300]
    return UserError(
        f"{_place(path, row, options)}: a line of names {what} ({there}): below it values stand in other columns; "
        "split the file there, or write all of it with the same columns in one order"
    )


def unread_type(path: Path, name: str, kind: str) -> UserError:
    """Makes the error of a column that nothing can read."""
    return UserError(f"{path}: column {name!r} has type {kind}, which is not read; write it as text, number or list")


def _vectors(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not arrow_types.is_vectors(column.type):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        raise UserError(
            f"{path}: column {name!r} has type {kind}, and its field is a vector: write it in Parquet as a list "
            "of numbers, or set another kind"
        )
    return arrow_types.as_vectors(column)


def _unencoded(column: pa.ChunkedArray, options: LogsConfig) -> pa.ChunkedArray:
    """Does as `simple`, but a number for each row; texts that are all integers are int64, unless they have a format."""
    kind = column.type
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return column.cast(pa.int64())
    if pa.types.is_string(kind) and not options.time_format:
        with contextlib.suppress(pa.ArrowInvalid):
            return column.cast(pa.int64())
    one = arrow_types.simple(column, options.missing)
    return one.cast(one.type.value_type) if pa.types.is_dictionary(one.type) else one


def _read_parquet(path: Path, names: Sequence[str], plain: Sequence[str]) -> pa.Table:
    try:
        schema = pq.read_schema(path)
        encoded = [n for n in names if n not in plain and schema.field(n).type in (pa.string(), pa.large_string())]
        table = pq.read_table(path, columns=list(names), partitioning=cast(Any, None), read_dictionary=encoded)
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); is it a complete Parquet file?") from None
    for name in table.column_names:
        try:
            table[name].validate(full=True)  # Parquet's own readers believe that text is UTF-8.
        except pa.ArrowInvalid as error:
            why = str(error).rpartition("Invalid: ")[2].split(" at ")[0]
            raise UserError(
                f"{path}: column {name!r} cannot be read ({why}): text is to be UTF-8; write it so, or as binary if it "
                "is none"
            ) from None
    return table


def _read_csv(
    path: Path, names: Sequence[str], options: LogsConfig, plain: Sequence[str], notes: list[str]
) -> pa.Table:
    uneven: list[csv.InvalidRow] = []

    def keep_for_later(row: csv.InvalidRow) -> str:
        uneven.append(row)
        return "skip" if len(uneven) < 100 else "error"

    source = None
    try:
        source = csv_text.Lines(path, options)
        table = csv.read_csv(
            pa.PythonFile(source, mode="r"),
            read_options=csv.ReadOptions(
                column_names=_own_names(path, options), skip_rows=0 if options.header else 1, block_size=_BLOCK_BYTES
            ),
            parse_options=csv.ParseOptions(
                delimiter=csv_text.parsed_delimiter(path, options),
                quote_char=options.quote or False,
                newlines_in_values=bool(options.quote),
                invalid_row_handler=keep_for_later,
            ),
            convert_options=csv.ConvertOptions(
                include_columns=list(names),
                column_types={name: pa.string() if name in plain else DICTIONARY for name in names},
                null_values=list(options.missing),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (OSError, pa.ArrowException, LookupError, UnicodeError, EOFError, ValueError) as error:
        _refuse_uneven_lines(path, options, footers_too=True)
        raise csv_text.unreadable(path, error, with_delimiter=True) from None
    if uneven:
        if not all(csv_text.is_footer(row.text) for row in uneven):
            _refuse_uneven_lines(path, options)
        notes.append(f"{path}: {len(uneven)} lines that are no rows, like {uneven[0].text[:60]!r}")
    _note_lines(path, options, source, table.num_rows + len(uneven) + (not options.header), notes)
    return table


def _note_lines(path: Path, options: LogsConfig, source: csv_text.Lines, expected: int, notes: list[str]) -> None:
    """Notes lines above the table; looks into a file that has more lines than rows."""
    if source.num_above:
        notes.append(f"{path}: {source.num_above} lines above the line of names")
    if source.num_lines + source.open_line <= expected or not options.quote:
        return
    swallowed = csv_text.first_swallowed(path, options)
    if swallowed is not None:
        line, lost = swallowed
        raise UserError(
            f"{path}:{line}: a quote {options.quote!r} that is never closed swallows the lines after it ({lost} "
            "lines of "
            'the file are lost so); if quotes mean nothing in this file set data.logs.quote = "" (--quote '
            "none), else close or remove the quote"
        )
    notes.append(f"{path}: {source.num_lines + source.open_line - expected} line ends stand within quoted values")


def _refuse_uneven_lines(path: Path, options: LogsConfig, footers_too: bool = False) -> None:
    """Says which line has another number of columns, which Arrow does not."""
    expected, known = len(options.header), len(options.header)
    for row in csv_text.rows_of(path, options):
        expected = expected or len(row.values)
        text = csv_text.delimiter_of(path, options).join(row.values)
        if len(row.values) != expected and (footers_too or not csv_text.is_footer(text)):
            advice = "correct or remove the line"
            if '\\"' in text:
                advice = "quotes within values are to be doubled, and not behind a backslash (in Spark: escape = '\"')"
            elif not known and row.line <= 3:
                advice = (
                    "if the lines above it are no names, remove them, or name the delimiter (data.logs.delimiter, on "
                    "the command line --delimiter)"
                )
            raise UserError(
                f"{path}:{row.line}: expected {expected} columns, found {len(row.values)}: {text[:120]!r}; {advice}"
            ) from None


def _format(path: Path) -> str:
    return "Parquet" if is_parquet(path) else "CSV"
