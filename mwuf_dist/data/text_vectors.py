"""Vectors of items from their text, offline: TF-IDF of words and of character n-grams, and a truncated SVD.

Everything is fitted on the text of all items of the file, new ones too: a text carries no label, stands there before
the first click, and says nothing of whom an item will please, so nothing leaks. What was fitted stays in the file's
metadata, so that items that come later get vectors of the same meaning (`like`).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import encode, ids, log_files, log_tables
from mwuf_dist.data.readers.arrow_types import text_of
from mwuf_dist.data.vectors import column_of
from mwuf_dist.files import write_atomically

COLUMN = "text_vector"
_METADATA = b"mwuf text vectors"
_KINDS = {"word": (1, 2), "char_wb": (3, 5)}  # analyzer -> n-grams
_MOST_TERMS = 20_000  # of each kind, the most frequent
_FEWEST_ITEMS = 2  # that have a term


@dataclass(frozen=True)
class TextModel:
    """Holds what was fitted: terms, their weights and directions.

    Attributes:
        fields: columns whose text is joined.
        terms: analyzer -> its terms, in order.
        idf: of all terms, one analyzer after another [T], float32.
        components: [T, size], float16: Parquet bounds what metadata may take.
    """

    fields: tuple[str, ...]
    terms: dict[str, list[str]]
    idf: np.ndarray
    components: np.ndarray

    def transform(self, texts: Sequence[str]) -> np.ndarray:
        """Returns vectors [n, size] of texts, float32; zeros for one without a known term."""
        from scipy.sparse import diags, hstack
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.preprocessing import normalize

        blocks, first = [], 0
        for kind, terms in self.terms.items():
            counts = CountVectorizer(analyzer=kind, ngram_range=_KINDS[kind], vocabulary=terms).transform(texts)
            counts.data = 1 + np.log(counts.data)
            idf = self.idf[first : first + len(terms)].astype(np.float64)
            blocks.append(normalize(counts @ diags(idf)))
            first += len(terms)
        return np.asarray(hstack(blocks).tocsr() @ self.components.astype(np.float64), dtype=np.float32)

    def to_metadata(self) -> dict[bytes, bytes]:
        """Gives it as a Parquet file keeps it."""
        arrays = io.BytesIO()
        np.savez_compressed(arrays, idf=self.idf, components=self.components)
        about = {"fields": self.fields, "terms": self.terms, "arrays": base64.b64encode(arrays.getvalue()).decode()}
        return {_METADATA: json.dumps(about).encode()}

    @staticmethod
    def from_file(path: Path) -> TextModel:
        """Returns the reverse of `to_metadata`.

        Raises:
            UserError: the file was not written by `write_vectors`.
        """
        try:
            about: dict[str, Any] = json.loads((pq.read_schema(path).metadata or {})[_METADATA])
            arrays = np.load(io.BytesIO(base64.b64decode(about["arrays"])), allow_pickle=False)
            return TextModel(tuple(about["fields"]), about["terms"], arrays["idf"], arrays["components"])
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}: not a file of `mwuf vectors` ({type(error).__name__}: {error})") from None


def fit(texts: Sequence[str], fields: Sequence[str], size: int, seed: int = 0) -> TextModel:
    """Fits the terms, their weights and the directions in which texts differ most.

    Args:
        texts: of all items.
        fields: that they were made of.
        size: numbers of a vector; fewer where texts have fewer terms.
        seed: of the SVD.

    Raises:
        UserError: the texts have no terms in common.
    """
    from scipy.sparse import hstack
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    terms: dict[str, list[str]] = {}
    blocks, idf = [], []
    for kind, grams in _KINDS.items():
        # Nothing but the texts decides, not the order of the rows: ties among the most frequent go by their text.
        made = TfidfVectorizer(
            analyzer=kind, ngram_range=grams, max_features=_MOST_TERMS, min_df=_FEWEST_ITEMS, sublinear_tf=True
        )
        try:
            blocks.append(made.fit_transform(texts))
        except ValueError:
            continue  # no term is in two texts
        terms[kind] = made.get_feature_names_out().tolist()
        idf.append(made.idf_)
    width = sum(map(len, terms.values()))
    if width < 2 or len(texts) < 2:
        raise UserError(
            f"fields {', '.join(fields)}: no term stands in {_FEWEST_ITEMS} items: nothing to compare them by"
        )
    svd = TruncatedSVD(min(size, width - 1, len(texts) - 1), random_state=seed)
    svd.fit(hstack(blocks).tocsr())
    return TextModel(
        tuple(fields), terms, np.concatenate(idf).astype(np.float32), np.asarray(svd.components_).T.astype(np.float16)
    )


def write_vectors(
    source: str, options: LogsConfig, fields: Sequence[str], output: Path, size: int, like: Path | None = None
) -> tuple[int, int]:
    """Writes a Parquet file with a vector for each item of a table: what `data.item_vectors` reads.

    Args:
        source: table of the items, Parquet or CSV.
        options: how it is read; `item` is the column of the IDs.
        fields: columns of text or lists; empty with `like`.
        output: the file.
        size: numbers of a vector.
        like: an earlier file, by whose terms and directions these items get vectors.

    Returns:
        Number of items, and numbers of a vector.

    Raises:
        UserError: a column is absent, or there is no text.
    """
    model = None if like is None else TextModel.from_file(like)
    names = tuple(fields) if model is None else model.fields
    if not names:
        raise UserError("--fields is empty: name the columns whose text is meant, with commas between them")
    if model is not None and fields and tuple(fields) != names:
        raise UserError(f"--like {like} was made of {','.join(names)}: leave --fields out")
    files = log_files.find_files(source, "ITEMS")
    table = log_tables.read(files, list(dict.fromkeys([options.item, *names])), options, "items")
    entity, item_ids, _ = ids.encode_ids(table.columns[options.item])
    texts = _texts(table.columns.select(list(names)), entity, len(item_ids))
    model = model or fit(texts, names, size)
    vectors = model.transform(texts)
    column = column_of(vectors, np.array([bool(text.strip()) for text in texts]))
    made = pa.table({"item_id": item_ids, COLUMN: column}).replace_schema_metadata(model.to_metadata())
    buffer = pa.BufferOutputStream()
    pq.write_table(made, buffer)
    write_atomically(output, buffer.getvalue().to_pybytes())
    return len(item_ids), vectors.shape[1]


def _texts(columns: pa.Table, entity: np.ndarray, num: int) -> list[str]:
    """Returns the text of each item: its columns' one after another, lists as words; empty where there is none."""
    texts = [""] * num
    for column in columns.columns:
        rows = encode.first_rows(entity, column.is_valid().to_numpy(), np.arange(len(entity)), num)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        taken = column.take(pa.array(np.maximum(rows, 0))).combine_chunks()
        taken = taken if isinstance(taken, pa.Array) else pa.concat_arrays(taken.chunks)
        values = taken.to_pylist() if pa.types.is_list(taken.type) else text_of(taken).to_pylist()
        for item, (row, value) in enumerate(zip(rows, values, strict=True)):
            if row >= 0 and value is not None:
                words = " ".join(one for one in value if one) if isinstance(value, list) else str(value)
                texts[item] += f" {words.replace('|', ' ')}"
    return texts
