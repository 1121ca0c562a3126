"""The items and users of a run as an export holds them, some ten thousand at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.config import UserError
from mwuf_dist.data.vectors import column_of
from mwuf_dist.serving.finished_run import PHASE_NAMES, FinishedRun
from mwuf_dist.serving.posterior import Posterior

# Rows of a chunk.
_ROWS = 1 << 16
# Threads that compute chunks; each chunk in work is some 25 MB.
_MOST_THREADS = 4

# Name of a column -> its NumPy type and its width, 0 where a row has one value.
Columns = dict[str, tuple[str, int]]


@dataclass(frozen=True)
class Chunk:
    """Some items or users as an export holds them.

    Attributes:
        ids: raw IDs [n], int64 or string.
        columns: the values of the columns that `item_columns` or `user_columns` names, [n] or [n, width].
    """

    ids: pa.Array
    columns: dict[str, np.ndarray]


def item_columns(run: FinishedRun, context: bool, uncertainty: bool = False) -> Columns:
    """Names the columns of an item in an export.

    `embedding`, what the backbone reads for the item; `phase`, a code in `PHASE_NAMES`; `interactions`, the
    number of its rows that the model has seen; with `context` its part of what the model reads beside the embedding;
    with `uncertainty` the `variance` of each number of the embedding, NaN of an old item.
    """
    columns = {"embedding": ("float32", run.model.dim), "phase": ("uint8", 0), "interactions": ("int64", 0)}
    width = run.model.shape.num_item_fields * run.model.dim
    columns |= {"item_context": ("float32", width)} if context else {}
    return columns | ({"variance": ("float32", run.model.dim)} if uncertainty else {})


def user_columns(run: FinishedRun) -> Columns:
    """Names the columns of a user in an export: the user's part of what the model reads beside the embedding."""
    width = run.model.shape.num_user_fields * run.model.dim + run.model.backbone.history_width
    return {"user_context": ("float32", width)}


def item_chunks(
    run: FinishedRun, items: np.ndarray | range, context: bool = False, uncertainty: bool = False
) -> Iterator[Chunk]:
    """Yields the items with these indices, in their order; a few chunks are computed side by side."""
    run.load_state()
    posterior = Posterior(run) if uncertainty else None
    parts = [items[first : first + _ROWS] for first in range(0, len(items), _ROWS)]
    side_by_side = _num_threads(run)
    if side_by_side == 1:
        yield from (_items(run, part, context, posterior) for part in parts)
        return
    with ThreadPoolExecutor(side_by_side) as pool:
        pending: deque[Future[Chunk]] = deque()
        for part in parts:
            pending.append(pool.submit(_items, run, part, context, posterior))
            if len(pending) > side_by_side:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def user_chunks(run: FinishedRun, users: np.ndarray | range | None = None) -> Iterator[Chunk]:
    """Yields users with these indices, in their order; None: all that the run knows. A collective."""
    users = range(len(run.user_ids)) if users is None else users
    for first in range(0, len(users), _ROWS):
        part = np.asarray(users[first : first + _ROWS])
        context = run.user_context(torch.from_numpy(part)).cpu().numpy()
        yield Chunk(run.user_ids.take(pa.array(part)), {"user_context": context})


def has_user_contexts(run: FinishedRun) -> bool:
    """Says whether a user has a context of its own, see `FinishedRun.user_context`. A collective."""
    try:
        return len(run.unknown_user_context()) > 0
    except UserError:
        return False


def served_users_table(run: FinishedRun, users: np.ndarray) -> pa.Table:
    """Returns the users with these indices as a server holds them, in memory. A collective."""
    return as_table(list(user_chunks(run, users)), run.user_ids.type, user_columns(run), "user_id")


def served_table(run: FinishedRun, items: np.ndarray) -> pa.Table:
    """Returns the items with these indices as a server holds them, in memory. A collective."""
    run.load_state()
    uncertainty = run.method.has_posterior
    columns = item_columns(run, True, uncertainty)
    return as_table(list(item_chunks(run, items, True, uncertainty)), run.item_ids.type, columns)


def as_table(chunks: Sequence[Chunk], id_type: pa.DataType, columns: Columns, name_of_id: str = "item_id") -> pa.Table:
    """Returns chunks as one table: the IDs and the columns, vectors as lists of float32, phase as text."""
    ids = pa.chunked_array([chunk.ids for chunk in chunks], id_type)
    table = {name_of_id: ids}
    for name, (dtype, width) in columns.items():
        shape = (0, width) if width else (0,)
        values = np.concatenate([np.empty(shape, dtype), *(chunk.columns[name] for chunk in chunks)])
        if name == "phase":
            table[name] = pa.array(PHASE_NAMES).take(pa.array(values.astype(np.int8)))
        elif width:
            table[name] = column_of(values)
        else:
            table[name] = pa.array(values)
    return pa.table(table)


def _items(run: FinishedRun, part: np.ndarray | range, context: bool, posterior: Posterior | None) -> Chunk:
    index = torch.as_tensor(part if isinstance(part, np.ndarray) else np.arange(part.start, part.stop))
    items = index.to(run.model.runtime.device)
    columns = {
        "embedding": run.embeddings(items).cpu().numpy(),
        "phase": run.phase_codes(index),
        "interactions": run.num_interactions[index.numpy()],
    }
    if context:
        columns["item_context"] = run.item_context(items).cpu().numpy()
    if posterior is not None:
        columns["variance"] = posterior.variances(index.numpy())
    return Chunk(run.ids_of(part), columns)


def _num_threads(run: FinishedRun) -> int:
    """Returns lookups of several ranks are collectives in one order, and only plain tables may be read side by side."""
    model = run.model
    tables = (*model.pretrained_tables, model.new_ids)
    if model.runtime.world_size > 1 or not all(table.lookups.is_thread_safe for table in tables):
        return 1
    return num_threads()


def num_threads() -> int:
    """Returns threads that compute chunks of plain tables: one a core, up to some."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))
