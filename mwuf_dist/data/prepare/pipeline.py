"""From raw data to the files of a prepared folder, step by step: what `steps.py` does to one piece of work.

This process holds what there is per user and per item, never the rows.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.data import schema, shards, vocabulary
from mwuf_dist.data.prepare import history_files, sorted_runs, steps
from mwuf_dist.data.prepare.steps import Chunk
from mwuf_dist.data.prepare.workers import InProcess, Pool
from mwuf_dist.data.schema import INTERACTION_TYPES, Entities, RawPieces, row_types
from mwuf_dist.data.split import SPLITS, Roles, SplitRule, item_roles, stream_roles
from mwuf_dist.data.stream_rule import Seen, StreamRule, past_only

STEPS = ("read", "split", "users", "histories", "shards")


@dataclass(frozen=True)
class _Ids:
    """Distinct IDs, ascending [E], and the number of rows of each [E]."""

    ids: np.ndarray
    rows: np.ndarray


def write_prepared(
    raw: RawPieces,
    rule: SplitRule,
    folder: Path,
    facts: dict[str, Any],
    pool: Pool | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes all files of a prepared folder, the manifest last.

    Args:
        raw: the raw data.
        rule: which rows go where.
        folder: exists and is empty.
        facts: first entries of the manifest.
        pool: who does the pieces of work; None: this process.
        step: called with the name of each of STEPS when it begins.

    Raises:
        UserError: the raw data is wrong, or the rule leaves no old or no new item.
    """
    folder, pool = folder.resolve(), pool or InProcess()
    scratch = folder / ".scratch"
    scratch.mkdir()
    step("read")
    chunks = _read(raw, scratch, InProcess() if raw.is_in_memory else pool)
    users, items = _ids(raw, scratch, chunks)
    past = None if rule.stream is None else _past(raw, scratch, chunks, rule.stream, users, items, pool)
    entities = _entities(raw, users, items, past)
    step("split")
    if past is not None:
        roles = stream_roles(items.rows, past.item_rows)
    else:
        since = rule.new_since
        before = None if since is None else _rows_before(raw, scratch, chunks, since, users, items, pool)[1]
        roles = item_roles(items.rows, rule, before)
    day_0 = None if past is None else past.day_0
    steps.write_table(scratch / "item-table", items.ids, roles.new_index)
    entities, users = _users_in_order(scratch, entities, users, past)
    groups = _split_new_items(scratch, chunks, roles, rule, day_0, pool)
    step("users")
    left_out = _rows_by_user(scratch, chunks, roles, groups, day_0, pool)
    step("histories")
    groups = _histories(scratch, chunks, users, raw.negatives_per_positive > 0, pool)
    step("shards")
    splits = {name: _shards(scratch, folder, name, groups, pool) for name in SPLITS}
    facts = {
        **facts,
        "negatives_per_positive": raw.negatives_per_positive,
        **({} if raw.form is None else {"form": raw.form}),
        **({"notes": list(raw.notes)} if raw.notes else {}),
        **({} if day_0 is None or rule.stream is None else {"day_0": day_0, "day": rule.stream.day}),
        "positive_share": _positive_share(splits, left_out if rule.old_items_as_new else None),
        "histories": history_files.join(scratch, folder, groups, splits),
    }
    types = _types(sorted_runs.read(scratch / f"pretrain-{groups[0]}"))
    shutil.rmtree(scratch)
    vocabulary.write(folder, raw.vocabularies)
    shards.write_rest(folder, facts, entities, roles, types, splits)


def _types(columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns the types of the columns of interactions, by their names."""
    kinds = {name: kind for name, kind in INTERACTION_TYPES.items() if name in columns} | row_types(columns)
    return {name: str(kind) for name, kind in kinds.items()} | {"row": "int64"}


def _read(raw: RawPieces, scratch: Path, pool: Pool) -> list[Chunk]:
    chunks: list[Chunk] = []
    start = 0
    pieces = (
        (raw.read, piece, scratch, number, raw.negatives_per_positive > 0) for number, piece in enumerate(raw.pieces)
    )
    for names in pool.map(steps.read_piece, pieces):
        for name, num_rows in names:
            chunks.append(Chunk(name, start, num_rows))
            start += num_rows
    return chunks


@dataclass(frozen=True)
class _Past:
    """Holds what there is before day 0: when that is, users and items by the place of their IDs, rows of each item."""

    day_0: int
    seen: Seen
    item_rows: np.ndarray


def _ids(raw: RawPieces, scratch: Path, chunks: Sequence[Chunk]) -> tuple[_Ids, _Ids]:
    """Returns the IDs that the chunks have for users and for items."""
    users, items = (_distinct([scratch / f"{side}s-{chunk.name}" for chunk in chunks]) for side in ("user", "item"))
    if not raw.ids_are_rows:
        return users, items
    known = raw.entities(users.ids, items.ids, items.rows)
    return _of_all(users, known.users), _of_all(items, known.items)


def _past(
    raw: RawPieces, scratch: Path, chunks: Sequence[Chunk], rule: StreamRule, users: _Ids, items: _Ids, pool: Pool
) -> _Past:
    first = min(pool.map(steps.first_time, ((scratch, chunk) for chunk in chunks)))
    day_0 = rule.day_0(first)
    has_users, item_rows = _rows_before(raw, scratch, chunks, day_0, users, items, pool)
    return _Past(day_0, Seen(has_users, item_rows > 0), item_rows)


def _rows_before(
    raw: RawPieces, scratch: Path, chunks: Sequence[Chunk], time: int, users: _Ids, items: _Ids, pool: Pool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (whether each user has a row before a time [U], rows that count of each item before it [I])."""
    has_users, item_rows = np.zeros(len(users.ids), dtype=bool), np.zeros(len(items.ids), dtype=np.int64)
    work = ((scratch, chunk, time, raw.negatives_per_positive > 0) for chunk in chunks)
    for of_users, of_items, num_rows in pool.map(steps.rows_before, work):
        has_users[np.searchsorted(users.ids, of_users)] = True
        item_rows[np.searchsorted(items.ids, of_items)] += num_rows
    return has_users, item_rows


def _entities(raw: RawPieces, users: _Ids, items: _Ids, past: _Past | None) -> Entities:
    """Returns users and items; under the stream protocol in the vocabularies of what was there before day 0."""
    if past is None:
        entities = raw.entities(users.ids, items.ids, items.rows)
    else:
        entities = past_only(raw.entities(users.ids, items.ids, items.rows, past.seen), past.seen, raw.fewest)
    entities.check()
    return entities


def _distinct(paths: Sequence[Path]) -> _Ids:
    """Returns the IDs of all chunks. Merged when there are twice as many, so that the same ID is seldom looked at."""
    merged = _Ids(np.zeros(0, np.int64), np.zeros(0, np.int64))
    waiting: list[_Ids] = []
    for path in paths:
        waiting.append(_Ids(*sorted_runs.read(path).values()))
        if sum(len(one.ids) for one in waiting) > len(merged.ids):
            merged, waiting = _merge([merged, *waiting]), []
    return _merge([merged, *waiting])


def _merge(parts: Sequence[_Ids]) -> _Ids:
    ids, rows = (np.concatenate(columns) for columns in zip(*((one.ids, one.rows) for one in parts), strict=True))
    order = np.argsort(ids)
    ids = ids[order]
    is_first = np.ones(len(ids), dtype=bool)
    is_first[1:] = ids[1:] != ids[:-1]
    starts = np.flatnonzero(is_first)
    return _Ids(ids[starts], np.add.reduceat(rows[order], starts) if len(starts) else rows)


def _of_all(found: _Ids, table: pa.Table) -> _Ids:
    """Returns every row of an entity table, those without interactions too."""
    rows = np.zeros(table.num_rows, dtype=np.int64)
    rows[found.ids] = found.rows
    return _Ids(np.arange(table.num_rows), rows)


def _users_in_order(scratch: Path, entities: Entities, users: _Ids, past: _Past | None) -> tuple[Entities, _Ids]:
    """Gives the users in the order of their index, which is written for `look_up`.

    Ascending, those before day 0 first.
    """
    order = np.arange(len(users.ids)) if past is None else np.argsort(~past.seen.users, kind="stable")
    index = np.empty(len(order), dtype=np.int32)
    index[order] = np.arange(len(order), dtype=np.int32)
    steps.write_table(scratch / "user-table", users.ids, index)
    if past is None:
        return entities, users
    return replace(entities, users=entities.users.take(pa.array(order))), _Ids(users.ids[order], users.rows[order])


def _groups(rows: np.ndarray) -> list[tuple[int, int]]:
    """Returns neighbouring entities, a piece of work together: the first of each group and the one after its last."""
    ends = np.cumsum(rows)
    total = int(ends[-1]) if len(ends) else 0
    num = max(1, -(-total // schema.PIECE_ROWS))
    bounds = np.searchsorted(ends, [total * index // num for index in range(1, num)]).tolist()
    return list(itertools.pairwise(sorted({0, *bounds, len(rows)})))


def _split_new_items(
    scratch: Path, chunks: Sequence[Chunk], roles: Roles, rule: SplitRule, day_0: int | None, pool: Pool
) -> range:
    _all(pool.map(steps.new_item_rows, ((scratch, chunk, roles.num_old_items) for chunk in chunks)))
    groups = [(first + roles.num_old_items, stop + roles.num_old_items) for first, stop in _groups(roles.new_item_rows)]
    work = ((scratch, chunks, number, *group, rule, day_0 or 0) for number, group in enumerate(groups))
    _all(pool.map(steps.split_new_items, work))
    _remove(scratch, "new-*")
    return range(len(groups))


def _rows_by_user(
    scratch: Path, chunks: Sequence[Chunk], roles: Roles, groups: range, day_0: int | None, pool: Pool
) -> tuple[int, int]:
    """Returns the number and positives of the rows of really new items that are left out."""
    num_items = len(roles.item_order)
    work = ((scratch, chunk, roles.num_old_items, num_items, len(groups), day_0) for chunk in chunks)
    left_out = np.sum([(0, 0), *pool.map(steps.rows_by_user, work)], axis=0)
    _remove(scratch, "chunk-*", "split-*")
    return int(left_out[0]), int(left_out[1])


def _histories(scratch: Path, chunks: Sequence[Chunk], users: _Ids, only_positives: bool, pool: Pool) -> range:
    groups = _groups(users.rows)
    work = ((scratch, chunks, number, *group, only_positives) for number, group in enumerate(groups))
    _all(pool.map(steps.histories, work))
    _remove(scratch, "user-*")
    return range(len(groups))


def _shards(scratch: Path, folder: Path, split: str, groups: range, pool: Pool) -> dict[str, Any]:
    """Writes the files of a split; what the manifest says of it."""
    paths = [scratch / f"{split}-{number}" for number in groups]
    columns = [sorted_runs.read(path) for path in paths]
    num_rows = sum(len(one["row"]) for one in columns)
    group_rows = shards.row_group_rows(num_rows)
    file_rows = shards.MAX_FILE_ROWS // group_rows * group_rows
    (folder / split).mkdir()
    cuts = [sorted_runs.cut(columns, min(rank, num_rows)) for rank in range(0, num_rows + file_rows, file_rows)]

    def work() -> Iterator[tuple[Any, ...]]:
        for part, bounds in enumerate(itertools.pairwise(cuts)):
            ranges = [(str(path), first, stop) for path, first, stop in zip(paths, *bounds, strict=True)]
            yield scratch, folder, split, part, ranges, group_rows

    files = list(pool.map(steps.shard, work()))
    positives = sum(file.pop("positives") for file in files)
    return {"rows": num_rows, "positives": positives, "row_group_rows": group_rows, "files": files}


def _positive_share(splits: dict[str, Any], left_out: tuple[int, int] | None) -> dict[str, float]:
    """Returns mean label of the rows of old items, of new items and, when old items play new, of the really new ones.

    The last two differ (on MovieLens-1M .53 against .41), and so may what is best for played and for new items.
    """
    of_new = [splits[name] for name in SPLITS[1:]]
    share = {
        "old_items": splits["pretrain"]["positives"] / splits["pretrain"]["rows"],
        "new_items": sum(one["positives"] for one in of_new) / max(1, sum(one["rows"] for one in of_new)),
    }
    if left_out is not None:
        share["really_new_items"] = left_out[1] / left_out[0] if left_out[0] else 0.0
    return {name: round(value, 6) for name, value in share.items()}


def _all(results: Iterator[Any]) -> None:
    for _ in results:
        pass


def _remove(scratch: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in scratch.glob(pattern):
            path.unlink()
