"""What the indices of fields of own logs stand for: `vocabulary.parquet` of a prepared folder.

A field with words has a row for each of its indices from 1 on, in their order; a numeric one a row for the upper edge
of each bucket. So a run reads fields of items that come later by itself, wherever its own logs are by then.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import
import pyarrow.parquet as pq

from mwuf_dist.data.schema import Side
from mwuf_dist.data.shards import VOCABULARY_FILE, Prepared


def write(folder: Path, vocabularies: Mapping[str, pa.Array]) -> None:
    """Writes the words (string) or edges (float64) of each field, by its name; nothing where there are none."""
    if not vocabularies:
        return
    parts = []
    for name, values in vocabularies.items():
        is_text = pa.types.is_string(values.type)
        none = pa.nulls(len(values), pa.float64() if is_text else pa.string())
        words, edges = (values, none) if is_text else (none, values.cast(pa.float64()))
        parts.append(pa.table({"field": pa.array([name] * len(values), pa.string()), "word": words, "edge": edges}))
    table = pa.concat_tables(parts).replace_schema_metadata({"fields": "\n".join(vocabularies)})
    pq.write_table(table, folder / VOCABULARY_FILE)


def read(prepared: Prepared) -> dict[str, pa.Table] | None:
    """Returns the rows of each field, columns `word` and `edge`; None for data prepared before they were kept."""
    if VOCABULARY_FILE not in prepared.manifest["entities"]:
        return None
    table = pq.read_table(prepared.whole(VOCABULARY_FILE), memory_map=True)
    names = (table.schema.metadata or {})[b"fields"].decode().split("\n")
    return {name: table.filter(pc.equal(table["field"], name)) for name in names}


def index_of_words(table: pa.Table, words: pa.Array) -> np.ndarray:
    """Returns the index of each word [W], 0 for unknown ones, int32."""
    place = pc.index_in(words, value_set=table["word"].combine_chunks().cast(words.type))
    return (pc.fill_null(place, -1).to_numpy(zero_copy_only=False) + 1).astype(np.int32)


def index_of_numbers(table: pa.Table, numbers: np.ndarray) -> np.ndarray:
    """Gives bucket of each number [W], 0 for what is not finite, int32.

    What is above the last edge is in the last bucket.
    """
    edges = table["edge"].to_numpy()
    index = 1 + np.searchsorted(edges, np.nan_to_num(numbers), side="left")
    return np.where(np.isfinite(numbers), np.minimum(index, len(edges)), 0).astype(np.int32)


def note_of_unknown(name: str, of: str, num: int, total: int, example: str, is_number: bool) -> list[str]:
    """Says how many later rows (or items) have a value that the data set gives no meaning, and like what."""
    if not num:
        return []
    what = "no number" if is_number else "none that the run knows"
    return [f"{name}: {num:,} of {total:,} {of} have a value that is {what} (like {example!r}): it counts as unknown"]


def described(prepared: Prepared, items: Sequence[int], side: Side = "item") -> list[str]:
    """Says what fields of items (users) hold, in words: "color green, price up to 3"; empty without a vocabulary."""
    tables, columns = read(prepared) or {}, prepared.entity(side).columns
    found: list[list[str]] = [[] for _ in items]
    for name, table in tables.items():
        if name not in columns:
            continue
        column, words, edges = columns[name], table["word"], table["edge"]
        for item, said in zip(items, found, strict=True):
            own = slice(item, item + 1) if column.offsets is None else slice(*column.offsets[item : item + 2].tolist())
            indices = [index - 1 for index in column.values[own].tolist() if index > 0]
            texts = [words[one].as_py() or f"up to {edges[one].as_py():g}" for one in indices]
            said += [f"{name} {' | '.join(texts)}"] if texts else []
    return [", ".join(said) for said in found]
