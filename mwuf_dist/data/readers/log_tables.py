"""Reads Parquet and CSV files, one or a folder of them, as one Arrow table whose rows can be traced to file and line.

Every column of a CSV is read as text (a guess from its first rows would fail on the first odd ID); what it means is
decided by who asks. Text and numbers come dictionary-encoded: a log repeats itself, so that later steps look at each
distinct value once.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import csv as text_csv
import difflib
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import pyarrow.parquet as pq
from pyarrow import csv

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.locations import data_dir

ENDINGS = (".parquet", ".pq", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
PARQUET = (".parquet", ".pq")
DICTIONARY = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class LogTable:
    """Columns of all files of one kind, one after another.

    Attributes:
        what: `interactions`, `users` or `items`, as the config calls them.
        columns: the columns; text, integers and floats dictionary-encoded, unless asked for plain.
        files: the files, in the order of their rows.
        starts: number of rows before each file, and of all of them [F + 1].
        options: how CSV files were read.
    """

    what: str
    columns: pa.Table
    files: tuple[Path, ...]
    starts: np.ndarray
    options: LogsConfig

    @property
    def num_rows(self) -> int:
        """Rows of all files."""
        return self.columns.num_rows

    def place(self, row: int) -> str:
        """Where a row stands: `file:line` of a CSV, `file: row r (counted from 0)` of a Parquet file."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        path, row = self.files[part], row - int(self.starts[part])
        if is_parquet(path):
            return f"{path}: row {row} (counted from 0)"
        skipped = 0 if self.options.header else 1
        for number, (line, _) in enumerate(_text_rows(path, self.options)):
            if number == row + skipped:
                return f"{path}:{line}"
        return f"{path}: row {row}"


def is_parquet(path: Path) -> bool:
    """Whether a file's name says Parquet (else it is read as CSV)."""
    return path.name.lower().endswith(PARQUET)


def find_files(named: str, key: str) -> tuple[Path, ...]:
    """The files of a path of the config: itself, or all of a folder by name; relative ones also in `$MWUF_DATA_DIR`.

    Args:
        named: the path.
        key: the config key, for errors.

    Raises:
        UserError: there is nothing there, or nothing of a kind that is read.
    """
    path = Path(named).expanduser()
    below = data_dir()
    if not path.exists() and below is not None and (below / path).exists():
        path = below / path
    if not path.exists():
        tried = f"{path}" + (f" or {below / path}" if below is not None and not path.is_absolute() else "")
        raise UserError(f"{key} = {named!r}: there is no {tried}; name a file or a folder of files")
    if path.is_file():
        if not path.name.lower().endswith(ENDINGS):
            raise UserError(f"{key} = {named!r}: the name must end in one of {', '.join(ENDINGS)}; rename the file")
        return (path,)
    visible = (one for one in path.rglob("*") if not any(p.startswith((".", "_")) for p in one.relative_to(path).parts))
    files = tuple(sorted(one for one in visible if one.is_file() and one.name.lower().endswith(ENDINGS)))
    if not files:
        raise UserError(f"{key} = {named!r}: the folder has no file that ends in one of {', '.join(ENDINGS)}")
    return files


def column_names(path: Path, options: LogsConfig) -> list[str]:
    """Names of a file's columns.

    Raises:
        UserError: the file cannot be read, is empty, or has a name twice.
    """
    try:
        if is_parquet(path):
            names = pq.read_schema(path).names
        elif options.header:
            names = list(options.header)
        else:
            names = next(_text_rows(path, options), (0, []))[1]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); is it a complete {_format(path)} file?") from None
    if not names:
        raise UserError(f"{path}: is empty: no line of column names; remove the file")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: two columns are named {twice[0]!r}; rename one")
    return names


def read(
    files: Sequence[Path], names: Sequence[str], options: LogsConfig, what: str, plain: Sequence[str] = ()
) -> LogTable:
    """Reads columns of all files.

    Args:
        files: from `find_files`.
        names: the columns wanted.
        options: how CSV is written.
        what: `interactions`, `users` or `items`.
        plain: columns that are not worth a dictionary (times).

    Raises:
        UserError: a column is absent (its nearest neighbour is named), a file is malformed (with its line), there are
            no rows.
    """
    parts = []
    for path in files:
        _refuse_absent(column_names(path, options), names, path)
        if is_parquet(path):
            parts.append(_read_parquet(path, names, options, plain))
        else:
            parts.append(_read_csv(path, names, options, plain))
    starts = np.cumsum([0] + [part.num_rows for part in parts])
    if not starts[-1]:
        raise UserError(f"{files[0]}{' and the files beside it' if len(files) > 1 else ''}: no rows of {what}")
    columns = {name: _together([part[name] for part in parts]) for name in names}
    return LogTable(what, pa.table(columns), tuple(files), starts, options)


def _refuse_absent(there: Sequence[str], names: Sequence[str], path: Path) -> None:
    for name in names:
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1, cutoff=0.0)[0]
            raise UserError(f"{path}: no column {name!r}; did you mean {near!r}? Its columns: {', '.join(there)}")


def _read_parquet(path: Path, names: Sequence[str], options: LogsConfig, plain: Sequence[str]) -> pa.Table:
    try:
        table = pq.read_table(path, columns=list(names), partitioning=None)  # pyright: ignore[reportArgumentType]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error}); is it a complete Parquet file?") from None
    columns = {name: _simple(table[name], path, name, options.missing) for name in names}
    return pa.table({name: one if name in plain else _encoded(one) for name, one in columns.items()})


def _simple(column: pa.ChunkedArray, path: Path, name: str, missing: Sequence[str]) -> pa.ChunkedArray:
    """The column with few types: string, int64, double, bool, timestamp, or a list; null is what is missing."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        column, kind = column.cast(pa.string()), pa.string()
    if pa.types.is_string(kind):
        return pc.if_else(pc.is_in(column, value_set=pa.array(missing, pa.string())), None, column)
    if pa.types.is_integer(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: column {name!r}: {error}; write it as text or as int64") from None
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(column), None, column)  # pandas writes a gap among numbers as NaN.
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("us"))
    known = (pa.types.is_boolean, pa.types.is_timestamp, pa.types.is_list, pa.types.is_large_list)
    if not any(one(kind) for one in known):
        raise UserError(f"{path}: column {name!r} has type {kind}, which is not read; write it as text, number or list")
    return column


def _encoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.dictionary_encode()
    return column


def _read_csv(path: Path, names: Sequence[str], options: LogsConfig, plain: Sequence[str]) -> pa.Table:
    try:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(encoding=options.encoding, column_names=list(options.header) or None),
            parse_options=csv.ParseOptions(delimiter=_delimiter(path, options), newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=list(names),
                column_types={name: pa.string() if name in plain else DICTIONARY for name in names},
                null_values=list(options.missing),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (OSError, pa.ArrowException, LookupError, UnicodeError) as error:
        _refuse_uneven_lines(path, options)
        raise UserError(
            f"{path}: cannot be read as CSV ({str(error)[:300]}); see data.logs.delimiter and .encoding"
        ) from None


def _refuse_uneven_lines(path: Path, options: LogsConfig) -> None:
    """Says which line has another number of columns, which Arrow does not."""
    expected = len(options.header)
    for line, parts in _text_rows(path, options):
        expected = expected or len(parts)
        if len(parts) != expected:
            raise UserError(
                f"{path}:{line}: expected {expected} columns, found {len(parts)}: {','.join(parts)[:120]!r}; correct "
                "or remove the line"
            ) from None


def _text_rows(path: Path, options: LogsConfig) -> Iterator[tuple[int, list[str]]]:
    """(first line, from 1, and values) of each row of a CSV that is not blank, the names' line included; slow."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding=options.encoding, newline="") as file:
            rows = text_csv.reader(file, delimiter=_delimiter(path, options))
            line = 1
            for parts in rows:
                if parts:
                    if line == 1:
                        parts[0] = parts[0].removeprefix("\ufeff")
                    yield line, parts
                line = rows.line_num + 1
    except (OSError, EOFError, UnicodeError, LookupError, text_csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); see data.logs.encoding") from None


def _delimiter(path: Path, options: LogsConfig) -> str:
    if len(options.delimiter) > 1:
        raise UserError(f"data.logs.delimiter = {options.delimiter!r}: must be one letter, such as ',' or '|'")
    return options.delimiter or ("\t" if path.name.lower().endswith((".tsv", ".tsv.gz")) else ",")


def _format(path: Path) -> str:
    return "Parquet" if is_parquet(path) else "CSV"


def _together(parts: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """One column of all files; files that disagree on its type (7 here, "A7" there) make it text."""
    kinds = {part.type for part in parts}
    if len(kinds) > 1:
        plain = [one.cast(one.type.value_type) if pa.types.is_dictionary(one.type) else one for one in parts]
        if any(pa.types.is_floating(one.type) for one in plain):
            plain = [one.cast(pa.float64()) if pa.types.is_integer(one.type) else one for one in plain]
        if len({one.type for one in plain}) > 1:
            plain = [one if pa.types.is_nested(one.type) else one.cast(pa.string()) for one in plain]
        parts = [_encoded(one) for one in plain]
    column = pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)
    return column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
