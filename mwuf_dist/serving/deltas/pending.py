"""The state in a folder as of its last delta: what `warm/` holds, and the deltas that have come since."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving import served_state
from mwuf_dist.serving.deltas import hashes
from mwuf_dist.serving.deltas.files import FOLDER, SUFFIX, name_of, read_chain
from mwuf_dist.serving.deltas.reader import Delta
from mwuf_dist.serving.deltas.replay import replayed
from mwuf_dist.serving.run_files import chain_of
from mwuf_dist.serving.served_state import WarmState


def load_state(folder: Path, run_ids: pa.Array) -> WarmState | None:
    """Returns the state of a run's folder; None where no job has ever run.

    Args:
        folder: of the run.
        run_ids: raw IDs of the run's items.

    Raises:
        UserError: a file is damaged, or a delta is missing.
    """
    state = served_state.load(folder)
    if state is None:
        return None
    paths = sorted(path for path in (folder / FOLDER).glob(f"*{SUFFIX}") if path.name > name_of(state.number))
    if not paths:
        return state
    state = hashes.with_hash(state, run_ids)
    return with_deltas(state, read_chain(paths, chain_of(folder), state.number, state.hash), run_ids)


def state_of(folder: Path, prepared: Prepared, dim: int) -> WarmState:
    """Returns the state of a run's folder with its hash; where no job has ever run, that of a run that has just ended.

    Args:
        folder: of the run.
        prepared: its data, without what has come since.
        dim: width of its rows.

    Raises:
        UserError: see `load_state`.
    """
    run_ids = prepared.raw_ids("item")
    state = load_state(folder, run_ids) or served_state.new_state(prepared, run_ids.type, dim)
    return hashes.with_hash(state, run_ids)


def with_deltas(state: WarmState, found: Sequence[Delta], run_ids: pa.Array) -> WarmState:
    """Returns the state after deltas that follow it, with their number, hash and position."""
    position: dict[str, Any] = dict(state.position)
    for delta in found:
        position = moved_on(position, delta.header.get("position", {}))
    days = found[-1].header.get("days", state.days)
    after, last = replayed(state, [delta.parts for delta in found], run_ids), found[-1].header
    return dataclasses.replace(after, number=last["number"], hash=last["after"], position=position, days=tuple(days))


def moved_on(position: dict[str, Any], taken: dict[str, Any]) -> dict[str, Any]:
    """Returns the position of a source after a batch, which says what it adds, and None of what is forgotten."""
    return {key: value for key, value in (position | taken).items() if value is not None}
