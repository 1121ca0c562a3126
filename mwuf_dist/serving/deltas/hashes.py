"""The hash of a state: a sum over its items, so that what a job changes tells how the hash changes.

Each item, row of phi_new, interaction, retired ID and user who came later is hashed by its raw ID and content to two
numbers of 64 bits; the hash of a state is the two sums, modulo 2^64. It does not depend on indices, on order, or on the
jobs that led to the state. It finds damage and mistakes, not malice.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from mwuf_dist.data.id_keys import id_keys, mixed
from mwuf_dist.serving.served_log import LOG_COLUMNS, Log
from mwuf_dist.serving.served_state import WarmState
from mwuf_dist.serving.served_users import array

_LANES = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
# What a number stands for, so that an item, a row and an interaction of the same numbers differ.
_ITEM, _FIELD, _ROW, _EVENT, _RETIRED, _USER, _USER_EVENT, _USER_FIELD = (np.uint64(code) for code in range(1, 9))

EMPTY = np.zeros(2, dtype=np.uint64)


def hash_of(state: WarmState, run_ids: pa.Array) -> np.ndarray:
    """Returns the hash of a state [2], uint64; of one in which nothing has happened, zeros.

    Args:
        state: of a run.
        run_ids: raw IDs of the run's items.
    """
    own = id_keys(state.ids)
    parts = [
        _sum(_ITEM, own, state.listed.astype(np.uint64)[:, None]),
        _sum(_ROW, _keys(state.rows.item, state, run_ids, own), _row_words(state)),
        _sum(_EVENT, _keys(state.log["item"], state, run_ids, own), _event_words(state.log)),
        _sum(_RETIRED, id_keys(state.retired.ids), state.retired.time.view(np.uint64)[:, None]),
    ]
    if state.users is not None:
        users, log = id_keys(state.users.ids), state.users.log
        items = id_keys(run_ids.take(pa.array(log["user"])))
        parts.append(_sum(_USER, users, state.users.rows.view(np.uint32).astype(np.uint64)))
        parts.append(_sum(_USER_EVENT, users[log["item"]], _event_words(log | {"user_key": items})))
        if state.users.fields is not None:  # of those of whom nothing was given nothing counts
            given = np.flatnonzero(state.users.listed)
            parts += _of_fields(_USER_FIELD, users[given], state.users.fields.take(pa.array(given)))
    parts += _of_fields(_FIELD, own, state.fields)
    return np.stack(parts).sum(axis=0, dtype=np.uint64)


def _of_fields(kind: np.uint64, keys: np.ndarray, fields: pa.Table) -> list[np.ndarray]:
    """Returns the two sums of each column of fields, of things with keys [n]."""
    parts = []
    for number, name in enumerate(fields.column_names):
        lengths, values = _lists(fields[name])
        place = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        words = np.stack([np.full(len(values), number), place, values], axis=1).astype(np.uint64)
        parts.append(_sum(kind, np.repeat(keys, lengths), words))
    return parts


def with_hash(state: WarmState, run_ids: pa.Array) -> WarmState:
    """Returns the state with its hash, which an earlier version has not written and a changed state has not got."""
    return state if state.hash else dataclasses.replace(state, hash=text_of(hash_of(state, run_ids)))


def text_of(value: np.ndarray) -> str:
    """Returns a hash as 32 hex digits."""
    return "".join(f"{int(lane):016x}" for lane in value)


def from_text(text: str) -> np.ndarray:
    """Returns the reverse of `text_of`."""
    return np.array([int(text[:16], 16), int(text[16:], 16)], dtype=np.uint64)


def _sum(kind: np.uint64, keys: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Returns the two sums over n things with keys [n] and content [n, w], all uint64."""
    sums = []
    for lane in _LANES:
        value = mixed(keys ^ (np.full(len(keys), kind) * lane))
        for column in range(words.shape[1]):
            value = mixed(value ^ (words[:, column] * lane))
        sums.append(value.sum(dtype=np.uint64))
    return np.array(sums, dtype=np.uint64)


def _keys(item: np.ndarray, state: WarmState, run_ids: pa.Array, own: np.ndarray) -> np.ndarray:
    """Hashes of the raw IDs of items [n] by their index."""
    distinct, inverse = np.unique(item, return_inverse=True)
    num_run = int(np.searchsorted(distinct, state.num_run_items))
    of_run = id_keys(run_ids.take(pa.array(distinct[:num_run].astype(np.int64))))
    return np.concatenate([of_run, own[distinct[num_run:].astype(np.int64) - state.num_run_items]])[inverse]


def _row_words(state: WarmState) -> np.ndarray:
    """Returns contents of the rows [T, D + 1]: two floats a word."""
    rows = state.rows
    both = np.concatenate([rows.served, rows.at_boundary], axis=1)
    return np.concatenate([np.ascontiguousarray(both).view(np.uint64), rows.boundary.view(np.uint64)[:, None]], axis=1)


def _event_words(log: Log) -> np.ndarray:
    beside = [values.view(np.uint32).astype(np.uint64) for name, values in log.items() if name not in LOG_COLUMNS]
    return np.stack(
        [log["user_key"], log["time"].view(np.uint64), log["label"].astype(np.int64).view(np.uint64), *beside], axis=1
    )


def _lists(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (lengths [A], values) of a field of items; the numbers of a vector by their bits."""
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not pa.types.is_list(column.type):
        values = column.to_numpy()
        return np.ones(len(values), dtype=np.int64), values
    whole = array(column)
    values = whole.flatten().to_numpy()
    is_vector = np.issubdtype(values.dtype, np.floating)
    return np.diff(whole.offsets.to_numpy()), values.astype(np.float32).view(np.uint32) if is_vector else values
