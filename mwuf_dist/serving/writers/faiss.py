"""A Faiss index of the item embeddings, by cosine, with its recall beside exact search stated in `export.json`.

The label of a vector is the number of its row in `items.parquet`, so that IDs may be text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mwuf_dist.config import UserError
from mwuf_dist.serving.deltas.reader import Delta, values_of
from mwuf_dist.serving.writers.parquet import ITEMS, ParquetWriter

INDEX = "items.faiss"
# Up to so many items exact search is as fast as an index.
_EXACT_UP_TO = 20_000
_NEIGHBOURS = 100
_QUERIES = 1000
RECALL = 0.99


class FaissWriter(ParquetWriter):
    """Writes what Parquet has, and `items.faiss`, which `faiss.read_index` opens."""

    def check(self) -> None:
        """See `Writer.check`."""
        _library()

    def files(self, folder: Path, entity: str) -> set[str]:
        """See `Writer.files`."""
        return super().files(folder, entity) | ({INDEX} if entity == "item" else set())

    def finish(self, folder: Path, about: dict[str, Any], deltas: Sequence[Delta] = ()) -> dict[str, Any]:
        """See `Writer.finish`."""
        faiss = _library()
        vectors = unit_rows(values_of(pq.read_table(folder / ITEMS, columns=["embedding"])["embedding"]))
        index, found = build_index(vectors)
        content = faiss.serialize_index(index)
        (folder / INDEX).write_bytes(content.data)
        return {"index": {"file": INDEX, "metric": "cosine", "label": f"row of {ITEMS}"} | found}


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [n, D] at length 1, whose inner products are cosines; a vector of zeros stays one."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(length, np.finfo(np.float32).tiny), dtype=np.float32)


def build_index(vectors: np.ndarray, exact_up_to: int = _EXACT_UP_TO) -> tuple[Any, dict[str, Any]]:
    """Returns (index of vectors [n, D] of length 1, what is known of it).

    Few vectors are searched exactly. For more the index has lists, about the root of their number, of which as many
    are searched (a power of two, kept in the index) as make recall@100 reach `RECALL` on a sample of the vectors.
    """
    faiss = _library()
    num, dim = vectors.shape
    exact = faiss.IndexFlatIP(dim)
    exact.add(vectors)
    if num <= exact_up_to:
        return exact, {"kind": "exact", "recall_at_100": 1.0}
    lists = int(np.sqrt(num))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = 0
    index.train(vectors)
    index.add(vectors)
    queries = vectors[np.random.default_rng(0).choice(num, min(_QUERIES, num), replace=False)]
    most = min(_NEIGHBOURS, num)
    expected = exact.search(queries, most)[0]
    recall, searched = 0.0, 1
    while True:
        index.nprobe = min(searched, lists)
        recall = recall_of(index.search(queries, most)[0], expected)
        if recall >= RECALL or searched >= lists:
            break
        searched *= 2
    return index, {"kind": "lists", "lists": lists, "searched_lists": index.nprobe, "recall_at_100": recall}


def recall_of(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the fraction of the neighbours that are as near as the exact ones, of cosines [n, k] in falling order.

    Compared by cosine, so that one of several items at the same distance is as good as another.
    """
    furthest = expected[:, -1:]
    return float((found >= furthest - 1e-6).mean())


def _library() -> Any:
    try:
        import faiss
    except ImportError:
        raise UserError("this format needs Faiss: pip install 'mwuf-dist[faiss]'") from None
    return faiss
