"""What new interactions and items do to the state of a run, before any row of phi_new has moved."""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.data.readers import ids as raw_ids
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.sources.logs import ANY_ITEM
from mwuf_dist.serving.served_log import Log, NewRows, distinct, find, in_order, is_known, taken, together
from mwuf_dist.serving.served_rows import Rows
from mwuf_dist.serving.served_state import WarmState, unknown_fields

NOT_TRAINED = "of items that the run has not been trained on"
OTHERWISE = "of items whose IDs are written as none of the run's"
POSITIVE = "positive"  # Kind of rows, where the input has labels.
ALMOST_ALL = 0.95


@dataclass(frozen=True)
class Change:
    """Holds what new interactions do to a state, before any row of phi_new has moved.

    Attributes:
        state: with the new items and interactions; `rows` are those of before, under the new indices.
        anew: indices of items whose row must be made again from the run's (or its first) row.
        going_on: indices of items whose row goes on from its last boundary.
        num_new: interactions that were new.
        num_known: that had been seen before, or stood in the input twice.
        num_of_old_items: of old items, whose rows are frozen unless they are asked to move.
        num_new_items: items never seen before.
        new_log: the interactions that were new, in order.
        fractions: of the rows that count, how many are of each kind that should change slowly from day to day.
    """

    state: WarmState
    anew: np.ndarray
    going_on: np.ndarray
    num_new: int
    num_known: int
    num_of_old_items: int
    num_new_items: int
    new_log: Log
    fractions: dict[str, float] = field(default_factory=dict)

    def without_fields(
        self, before: WarmState, prepared: Prepared, has_table: bool, in_rows: bool, is_day: bool = True
    ) -> list[str]:
        """Says how many items have come of which no table of items has a row; an alarm where a day is all such.

        Args:
            before: the state before.
            prepared: of the run, with its fields of items.
            has_table: a table of items was given.
            in_rows: to the run they were columns of the interactions, so that a table may have been forgotten.
            is_day: there are enough interactions to tell.
        """
        fields = [field.name for field in prepared.fields if field.side == "item" and field.name != ANY_ITEM]
        came = find(self.state.ids, before.ids) < 0
        num, of = int((came & ~self.state.listed).sum()), int(came.sum())
        if not num or not (has_table or fields):
            return []
        if not has_table:
            where = "; FILE may be the interactions themselves, where they have these columns" if in_rows else ""
            names = ", ".join(fields)
            return [f"{num:,} items never seen before have unknown fields ({names}): --items FILE gives them{where}"]
        clicked = np.unique(self.new_log["item"]) - self.state.num_run_items
        is_all = self.fractions.get(NOT_TRAINED, 0.0) > ALMOST_ALL
        is_all &= is_day and not self.state.listed[clicked[clicked >= 0]].any()
        said = f"{num:,} of {of:,} items never seen before have no row in the table of items: their fields are unknown"
        return [f"ALARM: {said}; are IDs of items written as in that table?" if is_all else said]


def change_by(
    state: WarmState,
    rows: NewRows,
    listed: tuple[pa.Array, pa.Table],
    run_ids: pa.Array,
    prepared: Prepared,
    run_log: Log,
    run_rows: np.ndarray,
    old_items: bool = False,
) -> Change:
    """Adds new interactions and items to a state.

    Args:
        state: of before.
        rows: the interactions.
        listed: raw IDs and fields of items.
        run_ids: raw IDs of the run's items.
        prepared: of the run.
        run_log: interactions that the run has seen of its own new items.
        run_rows: see `rows.rows_of_run`.
        old_items: interactions of old items count too.
    """
    grown, moved = _grow(state, rows.item_ids, listed, run_ids, prepared)
    log, old_rows = state.with_moved(moved)
    ids = pa.concat_arrays([run_ids, grown.ids])
    new = rows.log | {"item": find(rows.item_ids, ids)[rows.log["item"]]}
    assert not len(new["item"]) or new["item"].min() >= 0, "an item is neither the run's nor added"
    is_old = new["item"] < prepared.num_old_items
    num_of_old_items, num_counted = rows.num_counted(taken(new, is_old)), rows.num_counted(new)
    is_not_trained = new["item"] >= state.num_run_items
    is_otherwise = is_not_trained & raw_ids.written_otherwise(rows.item_ids, run_ids)[rows.log["item"]]
    num_of_new_items_rows, num_otherwise = (rows.num_counted(taken(new, one)) for one in (is_not_trained, is_otherwise))
    num_of_unseen_users = rows.num_counted(taken(new, new["user"] < 0))
    new = new if old_items else taken(new, ~is_old)
    new = taken(new, in_order(new))
    new = taken(new, ~is_known(new, together([log, run_log])))
    both = together([log, new])
    order = in_order(both)
    late = _late(old_rows, both["item"][order], order >= len(log["item"]), run_rows)
    touched = np.unique(new["item"]).astype(np.int64)
    anew = np.union1d(np.intersect1d(touched, late), _remade(state, grown, moved))
    return Change(
        state=dataclasses.replace(grown, log=taken(both, order), rows=old_rows),
        anew=anew,
        going_on=np.setdiff1d(touched, anew),
        num_new=rows.num_counted(new),
        num_known=num_counted - (0 if old_items else num_of_old_items) - rows.num_counted(new),
        num_of_old_items=num_of_old_items,
        num_new_items=len(grown.ids) - len(state.ids),
        new_log=new,
        fractions={
            "of old items": num_of_old_items / max(1, num_counted),
            NOT_TRAINED: num_of_new_items_rows / max(1, num_counted),
            OTHERWISE: num_otherwise / max(1, num_counted),
            "of users never seen": num_of_unseen_users / max(1, num_counted),
        }
        | ({} if rows.has_drawn or not num_counted else {POSITIVE: float((rows.log["label"] > 0).mean())}),
    )


def _remade(state: WarmState, grown: WarmState, moved: np.ndarray) -> np.ndarray:
    """Finds items that have appeared, with clicks or without, or whose fields came after their first clicks."""
    was_listed = np.zeros(len(grown.ids), dtype=bool)
    was_listed[moved] = state.listed
    appeared = np.ones(len(grown.ids), dtype=bool)
    appeared[moved] = False
    return state.num_run_items + np.flatnonzero(appeared | (grown.listed & ~was_listed))


def _late(rows: Rows, item: np.ndarray, is_new: np.ndarray, run_rows: np.ndarray) -> np.ndarray:
    """Returns items with a new interaction before their last boundary.

    Args:
        rows: of before, under the new indices.
        item: of each interaction, in order [R].
        is_new: whether it is new [R].
        run_rows: see `rows.rows_of_run`.
    """
    boundary = np.zeros(int(item.max(initial=-1)) + 1, dtype=np.int64)
    reached = rows.item < len(boundary)
    boundary[rows.item[reached]] = rows.boundary[reached]
    before = np.append(run_rows, 0)[np.minimum(item, len(run_rows))]
    place = np.arange(len(item)) - np.searchsorted(item, item) + before
    return np.unique(item[is_new & (place < boundary[item])])


def _grow(
    state: WarmState, item_ids: pa.Array, listed: tuple[pa.Array, pa.Table], run_ids: pa.Array, prepared: Prepared
) -> tuple[WarmState, np.ndarray]:
    """Returns the state with all items, and the position of each of the items of before among them [A]."""
    fresh = []
    for ids in (item_ids, listed[0]):
        own = as_type(ids, run_ids.type)
        fresh.append(own.filter(pa.array(find(own, run_ids) < 0)))
    ids = distinct(state.ids, *fresh)
    before, now = find(ids, state.ids), find(ids, as_type(listed[0], run_ids.type))
    given = np.zeros(len(ids), dtype=bool)
    given[before >= 0] = state.listed[before[before >= 0]]
    # Fields that were given once stay; of the three sources each item takes one row.
    sources = pa.concat_tables([state.fields, listed[1], unknown_fields(prepared, 1)])
    num_before, num_listed = len(state.ids), len(listed[0])
    source = np.where(given, before, np.where(now >= 0, num_before + now, num_before + num_listed))
    fields = sources.take(pa.array(source)).combine_chunks()
    grown = dataclasses.replace(state, ids=ids, fields=fields, listed=given | (now >= 0))
    moved = np.empty(num_before, dtype=np.int64)
    moved[before[before >= 0]] = np.flatnonzero(before >= 0)
    return grown, moved


def as_type(ids: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns IDs of items as the run's are.

    Raises:
        UserError: one is no number where these are.
    """
    if ids.type == kind:
        return ids
    try:
        return ids.cast(kind)
    except pa.ArrowInvalid:
        text = ids.cast(pa.string())
        wrong = text.filter(pc.invert(raw_ids.is_whole_number(text)))
        raise UserError(
            f"item ID {wrong[0].as_py()!r} is no number, and all items of the run have numbers; correct the ID"
        ) from None
