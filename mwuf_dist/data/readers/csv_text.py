"""Text of a log as plain UTF-8 lines, whatever it is compressed with, and whatever stands above its line of names.

Arrow parses CSV fast but knows one way of writing it. `Lines` stands between file and parser: it decompresses, decodes,
takes the byte order mark and the lines above the names off, makes one letter of a longer delimiter, and counts lines,
so that a quote that is never closed (which swallows lines) is noticed.
"""

from __future__ import annotations

import codecs
import csv as text_csv
import dataclasses
import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers.log_files import format_of

ONE_LETTER = "\x1f"  # Stands for a delimiter of several letters: the unit separator of ASCII.
_BLOCK_BYTES = 4 << 20
_HEAD_BYTES = 1 << 16  # In which the first line of data stands.
_MAX_HEAD_LINES = 100
text_csv.field_size_limit(1 << 30)  # Python's own of 128 KB is less than a page or a payload that some column holds.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the next but one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FOOTER = re.compile(r"^\s*(#|--|\(?\d+ rows?( affected| selected)?\)?\.?\s*$|=+\s*$|\Z)", re.IGNORECASE)


def wide_encoding(head: bytes) -> str:
    """Returns utf-16 or utf-32 for the first bytes of a text in it, by its mark or by its zeros; empty for others."""
    for mark, written in _MARKS[1:]:
        if head.startswith(mark):
            return written.rpartition("-")[0]
    zeros = [head[place::4].count(0) * 4 > 3 * len(head[place::4]) for place in range(4)]
    patterns = {"utf-32-le": "0111", "utf-32-be": "1110", "utf-16-le": "0101", "utf-16-be": "1010"}
    found = "".join(str(int(one)) for one in zeros)
    return next((name for name, pattern in patterns.items() if pattern == found), "")


def delimiter_of(path: Path, options: LogsConfig) -> str:
    """Finds what stands between two columns of a file."""
    return options.delimiter or ("\t" if ".tsv" in path.name.lower() else ",")


def parsed_delimiter(path: Path, options: LogsConfig) -> str:
    """Names the delimiter that stands in a file once `Lines` has passed."""
    named = delimiter_of(path, options)
    return named if len(named) == 1 else ONE_LETTER


class Lines(io.RawIOBase):
    """The lines of a file from its line of names on (from its first line of data, where it has no names), UTF-8.

    Attributes:
        num_lines: of those that have been read so far, not blank.
        num_above: lines above the first one that counts.
    """

    def __init__(self, path: Path, options: LogsConfig) -> None:
        super().__init__()
        form = format_of(path)
        self._raw: Any = pa.input_stream(str(path), compression=form.compression or None)
        self._delimiter = delimiter_of(path, options)
        self.num_lines, self.num_above = 0, 0
        self._ended, self._last = False, b"\n"
        head = self._raw.read(_HEAD_BYTES)
        encoding = options.encoding
        for mark, written in _MARKS:
            if head.startswith(mark):
                head, encoding = head[len(mark) :], written
                break
        utf8 = codecs.lookup(encoding).name in ("utf-8", "ascii")
        self._decoder = None if utf8 else codecs.getincrementaldecoder(encoding)()
        self._pending = self._plain(head)
        self._skip_head(bool(options.header))

    def readable(self) -> bool:
        """Says yes: it always is."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Reads at most `size` bytes (all of them: -1), none at the end."""
        if size is None or size < 0:
            return b"".join(iter(functools.partial(self.read, _BLOCK_BYTES), b""))
        if self._pending:
            out, self._pending = self._pending[:size], self._pending[size:]
        else:
            out = b""
            while not out and not self._ended:  # a decoder may hold everything back
                out = self._next(max(size // 2, 16) if self._decoder else size)
            if len(out) > size:
                out, self._pending = out[:size], out[size:]
        self._count(out)
        return out

    def _next(self, size: int) -> bytes:
        block = self._raw.read(size)
        self._ended = not block
        if len(self._delimiter) > 1:
            while block.endswith(self._delimiter[0].encode()) and (more := self._raw.read(1)):
                block += more  # a delimiter is not cut in two
        return self._plain(block)

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer."""
        got = self.read(len(buffer))
        buffer[: len(got)] = got
        return len(got)

    def _plain(self, block: bytes) -> bytes:
        if self._decoder is not None:
            block = self._decoder.decode(block, final=not block).encode()
        return block.replace(self._delimiter.encode(), ONE_LETTER.encode()) if len(self._delimiter) > 1 else block

    def _count(self, block: bytes) -> None:
        """Counts lines that hold something."""
        if not block:
            return
        if b"\n" not in block and b"\r" in block and self._last == b"\n" and not self.num_lines:
            self.num_lines += block.count(b"\r")  # an old Macintosh's line ends
            return
        blank = block.count(b"\n\n") + block.count(b"\n\r\n") + (self._last == b"\n" and block[:1] in b"\n\r")
        self.num_lines += block.count(b"\n") - blank
        self._last = block[-1:]

    @property
    def open_line(self) -> bool:
        """Whether the last line read has no line end."""
        return self._last not in (b"\n", b"\r")

    def _skip_head(self, no_names: bool) -> None:
        """Takes off what stands above the first line that counts: Excel's `sep=;`, comments, blank lines."""
        lines = self._pending.split(b"\n", _MAX_HEAD_LINES)
        delimiter = ONE_LETTER.encode() if len(self._delimiter) > 1 else self._delimiter.encode()
        at = 0
        while at < len(lines) - 1:
            line = lines[at].strip()
            if line and not re.match(rb'^"?sep=', line, re.IGNORECASE):
                if not line.startswith(b"#"):
                    break
                rest = next((one for one in lines[at + 1 : -1] if one.strip() and not one.startswith(b"#")), b"")
                if not no_names and rest.count(delimiter) == line.count(delimiter) > 0:
                    lines[at] = lines[at].lstrip(b"# ")  # names behind a #
                    break
            at += 1
        self.num_above = at
        self._pending = b"\n".join(lines[at:])


@dataclass(frozen=True)
class TextRow:
    """A row of a CSV as Python reads it.

    Attributes:
        line: its first line, from 1.
        values: of its columns.
        lines: its text, line by line.
    """

    line: int
    values: list[str]
    lines: list[str]


def unreadable(path: Path, error: Exception, with_delimiter: bool = False) -> UserError:
    """Makes the error of a file that cannot be read as CSV; `with_delimiter`: another one might mend it."""
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return UserError(f"{path}: the compressed file is cut short ({str(error)[:300]}): copy or write it again")
    if re.search(r"inflate|\bbz2?\b|lz4|zstd|decompress", str(error), re.IGNORECASE):
        return UserError(f"{path}: the compressed file is damaged ({str(error)[:300]}): copy or write it again")
    keys, names = "data.logs.encoding and .quote", "--encoding and --quote"
    if with_delimiter:
        keys, names = "data.logs.delimiter, .encoding and .quote", "--delimiter, --encoding and --quote"
    return UserError(f"{path}: cannot be read as CSV ({str(error)[:300]}); see {keys} (on the command line {names})")


def rows_of(path: Path, options: LogsConfig) -> Iterator[TextRow]:
    """Yields the rows of a CSV that are not blank, the names' line included; slow.

    Raises:
        UserError: the file cannot be read as text.
    """
    taken: list[str] = []

    def lines(text: io.TextIOWrapper) -> Iterator[str]:
        for line in text:
            taken.append(line)
            yield line

    try:
        source = Lines(path, options)
        text = io.TextIOWrapper(cast(Any, source), encoding="utf-8", newline="")
        quote = {"quotechar": options.quote} if options.quote else {"quoting": text_csv.QUOTE_NONE}
        rows = text_csv.reader(lines(text), delimiter=parsed_delimiter(path, options), **cast(Any, quote))
        line = 1 + source.num_above
        for values in rows:
            if values:
                yield TextRow(line, values, list(taken))
            line = rows.line_num + 1 + source.num_above
            taken.clear()
    except (OSError, EOFError, UnicodeError, LookupError, text_csv.Error) as error:
        raise unreadable(path, error) from None


def first_swallowed(path: Path, options: LogsConfig) -> tuple[int, int] | None:
    """Looks for rows that an unclosed quote has made of several: each of their lines has all the columns.

    Returns:
        The first line of the first such row and the number of lines that are lost in all; None where there is none.
    """
    delimiter = parsed_delimiter(path, options)
    expected = first = lost = 0
    for row in rows_of(path, options):
        expected = expected or len(row.values)
        if len(row.lines) > 1 and all(line.count(delimiter) == expected - 1 for line in row.lines):
            first, lost = first or row.line, lost + len(row.lines) - 1
    return (first, lost) if lost else None


def is_even_unquoted(path: Path, options: LogsConfig) -> bool:
    """Says whether every line has as many columns as the first one where quotes mean nothing."""
    rows = rows_of(path, dataclasses.replace(options, quote=""))
    expected = len(next(rows).values)
    return all(len(row.values) == expected for row in rows)


def is_footer(text: str) -> bool:
    """Says whether a line of another number of columns is one that programs put below (or above) a table."""
    return _FOOTER.match(text) is not None
