"""What two states differ in, as the tables of a delta, and a state with deltas put in.

Everything stands by raw ID, because indices of items that the run has never seen move as others come and go:

    items     others than the run's: item_id, their fields, whether those were ever given
    rows      of phi_new: item_id, row, row_at_boundary, boundary
    log       new interactions: item_id, user, user_key, time, label
    retired   item_id, time (see `served_state.Retired`)
    users     others than the run's who have a new click or new fields: user_id, row, and where fields were ever given
              these, and whether they were; only where there are any
    user_log  their new clicks: user_id, item_id, time, label
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.data.vectors import column_of, matrix
from mwuf_dist.serving.served_log import Log, distinct, find, in_order, ranges, taken, together
from mwuf_dist.serving.served_rows import Rows
from mwuf_dist.serving.served_state import Retired, WarmState
from mwuf_dist.serving.served_users import ServedUsers, fields_of, nobody, with_clicks, with_fields
from mwuf_dist.serving.served_users import array as _array

Parts = dict[str, pa.Table]
ID, USER = "item_id", "user_id"
_LISTED = "fields_given"


def ids_of(items: np.ndarray, state: WarmState, run_ids: pa.Array) -> pa.Array:
    """Returns raw IDs [n] of items of a state by index [n]; no array of all IDs is made."""
    items = items.astype(np.int64)
    is_other = items >= state.num_run_items
    own = run_ids.take(pa.array(np.where(is_other, 0, items))) if len(run_ids) else pa.nulls(len(items), run_ids.type)
    if not is_other.any():
        return own
    others = state.ids.take(pa.array(np.where(is_other, items - state.num_run_items, 0)))
    return pc.if_else(pa.array(is_other), others, own)


def parts_of(state: WarmState, touched: np.ndarray, new_log: Log, retired: Retired, run_ids: pa.Array) -> Parts:
    """Returns the tables of a delta that leads to a state.

    Args:
        state: after it.
        touched: items whose row, fields or interactions have changed, ascending.
        new_log: interactions that came.
        retired: IDs that went, with their time.
        run_ids: raw IDs of the run's items.
    """
    others = touched[touched >= state.num_run_items] - state.num_run_items
    items = state.fields.take(pa.array(others)).append_column(_LISTED, pa.array(state.listed[others]))
    rows = state.rows.of(touched)
    return {
        "items": items.add_column(0, ID, state.ids.take(pa.array(others))),
        "rows": pa.table(
            {
                ID: ids_of(rows.item, state, run_ids),
                "row": column_of(rows.served),
                "row_at_boundary": column_of(rows.at_boundary),
                "boundary": rows.boundary,
            }
        ),
        "log": pa.table({ID: ids_of(new_log["item"], state, run_ids)} | _without_item(new_log)),
        "retired": pa.table({ID: retired.ids, "time": retired.time}),
    }


def user_parts_of(users: ServedUsers, touched: np.ndarray, new_log: Log, run_ids: pa.Array) -> Parts:
    """Returns the tables of a delta that are about users.

    Args:
        users: after it.
        touched: who has a new click.
        new_log: these.
        run_ids: raw IDs of all items of the run.
    """
    log = {name: values for name, values in new_log.items() if name not in ("item", "user", "user_key")}
    ids = {USER: users.ids.take(pa.array(new_log["item"])), ID: run_ids.take(pa.array(new_log["user"]))}
    rows = {USER: users.ids.take(pa.array(touched)), "row": column_of(users.rows[touched])} | users.given(touched)
    return {"users": pa.table(rows), "user_log": pa.table(ids | log)}


def restricted(state: WarmState, ids: pa.Array, run_ids: pa.Array) -> WarmState:
    """Returns the part of a state that is about some items [n], by raw ID; the run's own items keep their index."""
    kept = np.flatnonzero(pc.is_in(state.ids, value_set=ids).to_numpy(zero_copy_only=False))
    own = find(ids, run_ids)
    item = np.union1d(own[own >= 0].astype(np.int64), kept + state.num_run_items)
    first, last = (np.searchsorted(state.log["item"], item, side=side) for side in ("left", "right"))
    part = dataclasses.replace(state, log=taken(state.log, ranges(first, last - first)), rows=state.rows.of(item))
    moved = np.full(len(state.ids), -1, dtype=np.int64)
    moved[kept] = np.arange(len(kept))
    log, rows = part.with_moved(moved)
    tombs = pc.is_in(state.retired.ids, value_set=ids).to_numpy(zero_copy_only=False)
    return dataclasses.replace(
        state,
        ids=state.ids.take(pa.array(kept)),
        fields=state.fields.take(pa.array(kept)).combine_chunks(),
        listed=state.listed[kept],
        log=log,
        rows=rows,
        retired=Retired(state.retired.ids.filter(pa.array(tombs)), state.retired.time[tombs]),
    )


def without(state: WarmState, dead: np.ndarray) -> tuple[WarmState, np.ndarray]:
    """Gives the state without some items [n], and the index of each of its items in what is left, -1 of a dead one [I].

    Those of the run keep their index: nothing else of them stays.
    """
    is_dead = np.zeros(state.num_items, dtype=bool)
    is_dead[dead] = True
    lives = ~is_dead[state.num_run_items :]
    moved = np.where(is_dead, -1, np.arange(state.num_items))
    moved[state.num_run_items :][lives] = state.num_run_items + np.arange(int(lives.sum()))
    log, rows = taken(state.log, ~is_dead[state.log["item"]]), state.rows.taken(~is_dead[state.rows.item])
    left = dataclasses.replace(
        state,
        ids=state.ids.filter(pa.array(lives)),
        fields=state.fields.filter(pa.array(lives)).combine_chunks(),
        listed=state.listed[lives],
        log=log | {"item": moved[log["item"]].astype(np.int32)},
        rows=dataclasses.replace(rows, item=moved[rows.item]),
    )
    return left, moved


def with_retired(retired: Retired, more: Retired) -> Retired:
    """Joins both; an ID that is in both has its later time."""
    if not len(more.ids):
        return retired
    ids = distinct(retired.ids, more.ids)
    time = np.full(len(ids), np.iinfo(np.int64).min)
    for part in (retired, more):
        np.maximum.at(time, find(part.ids, ids), part.time)
    return Retired(ids, time)


def replayed(state: WarmState, deltas: Sequence[Parts], run_ids: pa.Array) -> WarmState:
    """Returns the state with deltas put in, one after another; `number`, `hash` and `position` are the caller's.

    Args:
        state: that the first was made from.
        deltas: in their order.
        run_ids: raw IDs of all items of the run.
    """
    if not deltas:
        return state
    items, rows, log, retired = (_in_order(deltas, name) for name in ("items", "rows", "log", "retired"))
    last_ids, last = _last(retired)
    tombs = Retired(last_ids, retired["time"].to_numpy()[last])
    died = retired["step"].to_numpy()[last]
    items, rows, log = (_born_after(table, last_ids, died) for table in (items, rows, log))
    items, rows = (table.take(pa.array(_last(table)[1])) for table in (items, rows))
    state, _ = without(state, np.flatnonzero(_is_in(state, last_ids, run_ids)))
    tombstones = with_retired(state.retired, tombs)
    state = dataclasses.replace(state, retired=tombstones)
    users = _users_after(state, [parts for parts in deltas if "users" in parts], run_ids)
    return dataclasses.replace(_put_in(state, items, rows, log, state.run_ids(run_ids)), users=users)


def _users_after(state: WarmState, deltas: Sequence[Parts], run_ids: pa.Array) -> ServedUsers | None:
    """Returns the users that came after the run, after deltas that have some."""
    users, dim = state.users, state.rows.served.shape[1]
    for parts in deltas:
        ids, clicks, columns = _array(parts["users"][USER]), parts["user_log"], state.log
        users = users or nobody(ids.type, {name: values[:0] for name, values in columns.items()}, dim)
        item = find(_array(clicks[ID]), run_ids)
        assert not len(item) or item.min() >= 0, "a delta names an item that the run does not have"
        log = {"item": find(_array(clicks[USER]), ids), "user": item, "user_key": item.astype(np.uint64)}
        more = {name: clicks[name].to_numpy() for name in columns if name not in log}
        users, _ = with_clicks(users, ids, {name: (log | more)[name] for name in columns})
        fields, listed = fields_of(parts["users"])
        if fields is not None:
            given = pa.array(np.flatnonzero(listed))
            users, _ = with_fields(users, ids.take(given), fields.take(given))
        users.rows[find(ids, users.ids)] = matrix(_array(parts["users"]["row"]))
    return users


def _put_in(state: WarmState, items: pa.Table, rows: pa.Table, log: pa.Table, run_ids: pa.Array) -> WarmState:
    """Returns the state with items, rows (in the place of those that are there) and interactions put in."""
    new = _array(items[ID])
    ids = distinct(state.ids, new)
    before, now = find(ids, state.ids), find(ids, new)
    source = np.where(now >= 0, len(state.ids) + now, before)
    fields = pa.concat_tables([state.fields, items.select(state.fields.column_names).cast(state.fields.schema)])
    listed = np.concatenate([state.listed, _array(items[_LISTED]).to_numpy(zero_copy_only=False)])
    old_log, old_rows = state.with_moved(find(state.ids, ids).astype(np.int64))

    def index(column: pa.ChunkedArray) -> np.ndarray:
        found, own = find(_array(column), ids), find(_array(column), run_ids)
        out = np.where(found >= 0, state.num_run_items + found.astype(np.int64), own)
        assert not len(out) or out.min() >= 0, "a delta names an item that it does not bring"
        return out

    columns = {name: log[name].to_numpy() for name in state.log if name != "item"}
    both = together([old_log, {"item": index(log[ID]).astype(np.int32)} | columns])
    served, at_boundary = (matrix(_array(rows[name])) for name in ("row", "row_at_boundary"))
    return dataclasses.replace(
        state,
        ids=ids,
        fields=fields.take(pa.array(source)).combine_chunks(),
        listed=listed[source],
        log=taken(both, in_order(both)),
        rows=old_rows.with_made(Rows(index(rows[ID]), served, at_boundary, rows["boundary"].to_numpy())),
    )


def _in_order(deltas: Sequence[Parts], name: str) -> pa.Table:
    """Returns a table of all deltas, with the place of its delta as `step`."""
    tables = [
        parts[name].append_column("step", pa.array(np.full(parts[name].num_rows, step)))
        for step, parts in enumerate(deltas)
    ]
    return pa.concat_tables(tables).combine_chunks()


def _last(table: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """Returns (IDs of a table, ascending; the place where each stands for the last time)."""
    ids = _array(table[ID])
    found = distinct(ids)
    last = np.zeros(len(found), dtype=np.int64)
    np.maximum.at(last, find(ids, found), np.arange(len(ids)))
    return found, last


def _born_after(table: pa.Table, dead: pa.Array, died: np.ndarray) -> pa.Table:
    """Gives the rows of a table that came after their ID was retired, if it was: `dead` [n] at the steps `died` [n]."""
    step = np.append(died, -1)[find(_array(table[ID]), dead)]
    return table.filter(pa.array(table["step"].to_numpy() > step))


def _is_in(state: WarmState, ids: pa.Array, run_ids: pa.Array) -> np.ndarray:
    """Says which items of a state [I] have one of these IDs."""
    living = state.run_ids(run_ids)
    parts = [pc.is_in(part, value_set=ids).to_numpy(zero_copy_only=False) for part in (living, state.ids)]
    return np.concatenate(parts)


def _without_item(log: Log) -> dict[str, np.ndarray]:
    return {name: values for name, values in log.items() if name != "item"}
