"""`mwuf vectors ITEMS`: its options and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Ge, Le

from mwuf_dist.cli.options import read_options
from mwuf_dist.config.logs import LogsConfig

_EXAMPLES = """\
Writes a vector for each item of a table, from its text, offline: TF-IDF of words and of character n-grams, reduced by
a truncated SVD. Section [data] of a config then takes the file: item_vectors = "vectors.parquet". Fitted on the text
of all items: a text has no label, so nothing leaks. --like gives items that come later vectors of the same meaning.

examples:
  mwuf vectors songs.parquet --item song --fields title,genres --output vectors.parquet
  mwuf vectors data/ml-1m/movies.dat --delimiter :: --header item_id,title,genres --encoding latin-1 --item item_id \\
      --fields title,genres --output vectors.parquet
  mwuf vectors new-songs.parquet --item song --like vectors.parquet --output new-vectors.parquet"""


@dataclass
class _Options:
    items: Annotated[Path, tyro.conf.Positional]  # Table of the items, Parquet or CSV.
    output: Path  # The Parquet file to write.
    fields: str = ""  # Columns of text, separated by commas.
    item: str = "item_id"  # Column of the IDs.
    size: Annotated[int, Ge(1), Le(16_384)] = 64  # Length of a vector.
    like: Path | None = None  # An earlier output: make vectors in the same space.
    header: str = ""  # Names of the columns, separated by commas, of files without a header line.
    delimiter: str = ""  # Delimiter of the columns; empty: detect it.
    encoding: str = "utf-8"  # Encoding of text files.


def run_command(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    options = read_options(_Options, arguments, "mwuf vectors", _EXAMPLES)
    from mwuf_dist.data.text_vectors import write_vectors

    how = LogsConfig(
        item=options.item, header=_names(options.header), delimiter=options.delimiter, encoding=options.encoding
    )
    fields = _names(options.fields)
    num, size = write_vectors(str(options.items), how, fields, options.output, options.size, options.like)
    print(f'{options.output}: {size} numbers for each of {num:,} items; data.item_vectors = "{options.output}"')
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
