"""How the files of a log are written: delimiter, quotes, letters, names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import csv_text, log_files
from mwuf_dist.data.readers.absent_columns import looks_like_data

# The last ones count only where no other makes columns: Hive writes \x01, and blanks stand within names, too.
_DELIMITERS = (",", ";", "\t", "|", "::", "\x01", "^", "~", " ")
_SAMPLE_LINES = 50


def how_written(
    path: Path,
    options: LogsConfig,
    header: tuple[str, ...],
    delimiter: str,
    quote: str | None,
    encoding: str,
    prefix: str = "",
) -> LogsConfig:
    """Gives the options of reading for a file like this one.

    What is given stands. `prefix` is that of the command's options.

    Raises:
        UserError: its letters are in no known encoding, or an unclosed quote swallows lines.
    """
    named = {"quote": "" if quote == "none" else quote} if quote is not None else {}
    usual = {"delimiter": "", "quote": LogsConfig.quote} | named
    options = dataclasses.replace(options, header=header, encoding=encoding or "utf-8", **usual)
    if log_files.is_parquet(path):
        return options
    if not encoding:
        options = dataclasses.replace(options, encoding=_encoding(path, options, prefix))
    delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter) or _delimiter(path, options)
    options = dataclasses.replace(options, delimiter=delimiter)
    swallows = quote is None and csv_text.first_swallowed(path, options) is not None
    return dataclasses.replace(options, quote="") if swallows and csv_text.is_even_unquoted(path, options) else options


def _encoding(path: Path, options: LogsConfig, prefix: str) -> str:
    """Returns utf-8, or utf-16 and utf-32 by their byte order mark or their zeros.

    Raises:
        UserError: the text is in neither.
    """
    with path.open("rb") as file:
        if wide := csv_text.wide_encoding(file.read(64)):
            return wide
    try:
        for _, row in zip(range(10_000), csv_text.rows_of(path, options), strict=False):
            del row
    except UserError as error:
        if "the compressed file is" in str(error):
            raise
        hint = f"--{prefix}encoding cp1252 (or latin-1, utf-16, gb18030, shift_jis, ...)"
        raise UserError(f"{error}; say it: {hint}") from None
    return "utf-8"


def _delimiter(path: Path, options: LogsConfig) -> str:
    """Finds what divides the lines into equally many columns, empty where that is the default."""
    usual = csv_text.delimiter_of(path, options)
    best, most = usual, 1
    for one in (usual, *_DELIMITERS):
        tried = dataclasses.replace(options, delimiter=one)
        widths = [len(row.values) for _, row in zip(range(_SAMPLE_LINES), csv_text.rows_of(path, tried), strict=False)]
        if widths and widths[0] > most and (most == 1 or one == "::") and widths.count(widths[0]) >= 0.9 * len(widths):
            best, most = one, widths[0]
    return "" if best == usual else best


def refuse_data_for_names(path: Path, names: Sequence[str], header: Sequence[str], how: str) -> None:
    """Refuses a first line that is data, where no names are given: two numbers are among its values.

    Raises:
        UserError: it names the option `how`.
    """
    if header or log_files.is_parquet(path):
        return
    if looks_like_data(names):
        raise UserError(
            f"{path}: the first line ({', '.join(names)[:120]}) looks like data and not like names. If the file has no "
            f"line of names, give them: {how}"
        )
