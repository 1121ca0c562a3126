"""The items of a run as an export holds them, some ten thousand at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.serving.run_folder import FinishedRun

# Items of a chunk.
_ROWS = 1 << 16
# Threads that compute chunks; each chunk in work is some 25 MB.
_MOST_THREADS = 4


@dataclass(frozen=True)
class ItemChunk:
    """Some items as an export holds them.

    Attributes:
        item_id: raw IDs [n], int64 or string.
        embedding: what the backbone reads in the item's place [n, D], float32.
        phase: code [n] uint8 of each item's phase in `PHASE_NAMES`.
        interactions: number of rows of each item that the model has seen [n], int64.
    """

    item_id: pa.Array
    embedding: np.ndarray
    phase: np.ndarray
    interactions: np.ndarray


def chunks(run: FinishedRun, items: np.ndarray | range) -> Iterator[ItemChunk]:
    """The items with these indices, in their order; a few chunks are computed side by side."""
    run.load_state()
    parts = [items[first : first + _ROWS] for first in range(0, len(items), _ROWS)]
    side_by_side = _num_threads(run)
    if side_by_side == 1:
        yield from (_chunk(run, part) for part in parts)
        return
    with ThreadPoolExecutor(side_by_side) as pool:
        pending: deque[Future[ItemChunk]] = deque()
        for part in parts:
            pending.append(pool.submit(_chunk, run, part))
            if len(pending) > side_by_side:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _chunk(run: FinishedRun, part: np.ndarray | range) -> ItemChunk:
    index = torch.as_tensor(part if isinstance(part, np.ndarray) else np.arange(part.start, part.stop))
    vectors = run.embeddings(index.to(run.model.runtime.device)).cpu().numpy()
    return ItemChunk(run.ids_of(part), vectors, run.phase_codes(index), run.num_interactions[index.numpy()])


def _num_threads(run: FinishedRun) -> int:
    """Lookups of several ranks are collectives in one order, and only plain tables may be read side by side."""
    model = run.model
    tables = (model.user_tables, model.item_tables, model.old_ids, model.new_ids)
    if model.runtime.world_size > 1 or any(table.direct is None for table in tables):
        return 1
    return num_threads()


def num_threads() -> int:
    """Threads that compute chunks of plain tables: one a core, up to some."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))
