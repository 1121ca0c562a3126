"""`mwuf warm --users`: users whom the run has never seen get a row from their own clicks.

A user's row is a function of the user's clicks on items of the run and of nothing else that comes: items stand in it as
the run has left them, whatever has become of them since. So it does not depend on how clicks were cut into files, on
their order, or on what the rows of items have done; and rows of new items do not depend on it, because a user whom the
run has never seen is the mean user there. Clicks on items that the run has not are left out, and so are those on a
retired ID that are later than what was known when it was retired: they are of another item.

Of data of positives only, n items are drawn for each click, of the class of its item (old or new), in proportion to
their positive rows in the run's sets, by a hash of the user, the item, the time and the seed; none that the user has a
click on. They are drawn when the row is made, from all of the user's clicks, and kept nowhere.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.config import WARM_SETS, Config
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.id_keys import id_keys, mixed
from mwuf_dist.data.readers import ids as raw_ids
from mwuf_dist.data.schema import WEIGHT
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.embeddings.user_means import ItemUsers, mean_users
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.served_log import (
    Log,
    NewRows,
    empty_log,
    find,
    in_groups,
    in_order,
    of_items,
    own_values,
    taken,
    together,
)
from mwuf_dist.serving.served_state import WarmState, users_of_fields
from mwuf_dist.serving.served_users import ServedUsers, nobody, with_clicks, with_fields
from mwuf_dist.serving.warm.negatives import picked
from mwuf_dist.training.item_rule.frozen_items import FrozenModel
from mwuf_dist.training.item_rule.frozen_users import FEWEST_CLICKS, ClickedItems, LogitOfUser, user_rows
from mwuf_dist.training.item_rule.rule import places_of, rule_of

# Clicks whose frozen parts are in memory at once.
_GROUP_ROWS = 1 << 15
# A processor multiplies rows in tiles, and what is left over in another way, with other last bits.
_TILE_ROWS = 64


@dataclass(frozen=True)
class UserChange:
    """Holds what new clicks do to the users that came after the run, before any row is made.

    Attributes:
        users: all of them, with the clicks.
        touched: who has a new click or new fields, ascending.
        new_log: the clicks that were new, in order.
        num_left_out: clicks on items that the run does not have.
        num_listed: users whose fields came.
    """

    users: ServedUsers
    touched: np.ndarray
    new_log: Log
    num_left_out: int
    num_listed: int = 0

    def text(self) -> str:
        """Returns for a terminal."""
        fields = f", {self.num_listed:,} have got fields" if self.num_listed else ""
        num = len(np.unique(self.new_log["item"]))
        return (
            f"{num:,} users never seen have {len(self.new_log['item']):,} new interactions with items of "
            f"the run, which make their rows ({self.num_left_out:,} are with other items){fields}; "
            f"{len(self.users.ids):,} users have come since the run"
        )


def users_by(
    state: WarmState,
    rows: NewRows,
    every_id: pa.Array,
    prepared: Prepared,
    listed: tuple[pa.Array, pa.Table] | None = None,
) -> UserChange:
    """Adds the clicks and the fields of users whom the run has never seen to those of before.

    Args:
        state: of before.
        rows: the interactions, those of retired items too.
        every_id: raw IDs of the run's items, those of retired ones too.
        prepared: of the run.
        listed: raw IDs and fields of users, of the run's own too, which stay as they are.
    """
    kind, dim = prepared.raw_ids("user").type, state.rows.served.shape[1]
    before = state.users or nobody(kind, empty_log(prepared.row_columns), dim)
    ids = _as_type(before.ids[:0] if rows.unseen_users is None else rows.unseen_users, kind)
    user, item = _places(rows.log["user_key"], ids), find(rows.item_ids, every_id)[rows.log["item"]]
    tomb = np.append(state.retired.time, np.iinfo(np.int64).max)[find(rows.item_ids, state.retired.ids)]
    is_theirs = (rows.log["user"] < 0) & (user >= 0)
    has_item = (item >= 0) & (rows.log["time"] <= tomb[rows.log["item"]])
    log = rows.log | {"item": user, "user": item, "user_key": item.astype(np.int64).view(np.uint64)}
    users, new = with_clicks(before, ids, taken(log, is_theirs & has_item))
    num_left_out, got = int((is_theirs & ~has_item).sum()), np.empty(0, np.int64)
    if listed is not None:
        clicked = users.ids
        users, got = with_fields(users, *_of_strangers(listed, prepared.raw_ids("user")))
        new = new | {"item": find(clicked, users.ids)[new["item"]]}
    return UserChange(users, np.union1d(new["item"], got), new, num_left_out, len(got))


def _of_strangers(listed: tuple[pa.Array, pa.Table], known: pa.Array) -> tuple[pa.Array, pa.Table]:
    """Leaves users of the run out of IDs and fields, and IDs that they could not have."""
    ids, fields = listed
    kept = find(ids, known) < 0
    if ids.type != known.type and pa.types.is_integer(known.type):
        is_number = raw_ids.is_whole_number(ids.cast(pa.string()))
        kept &= is_number.to_numpy(zero_copy_only=False)
    return ids.filter(pa.array(kept)).cast(known.type), fields.filter(pa.array(kept))


@dataclass
class UserJob:
    """Makes rows of users. Lookups are collectives; the rule runs on a part of the users on each rank.

    Attributes:
        config: of the run.
        runtime: ranks and device.
        prepared: of the run, without what has come since.
        options: of the interactions: how many negatives are drawn.
        run: opened on these ranks, in the state before.
        frozen: its frozen model.
    """

    config: Config
    runtime: Runtime
    prepared: Prepared
    options: LogsConfig
    run: FinishedRun
    frozen: FrozenModel

    @functools.cached_property
    def _users_of_items(self) -> ItemUsers:
        return ItemUsers(self.prepared, WARM_SETS, events=self.config.data.events)

    def users(self, change: UserChange) -> ServedUsers | None:
        """Returns the users with the rows of those who have a new click, on the main rank; None for nobody."""
        users, touched = change.users, change.touched
        if not len(users.ids):
            return None
        rows = users.rows.copy()
        start = self.run.mean_user
        rows[touched] = start.cpu().numpy()
        has_row = users.counts()[touched] >= FEWEST_CLICKS
        if has_row.any():
            place, made = self._made(users, touched[has_row], start)
            rows[place] = made
        return replace(users, rows=rows)

    def _made(self, users: ServedUsers, chosen: np.ndarray, start: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Gives (who, their rows) of some users, gathered on the main rank."""
        rule, runtime, model = rule_of(self.config, self.prepared), self.runtime, self.run.model
        log = taken(users.log, np.isin(users.log["item"], chosen))
        if self.options.negatives_per_positive:
            drawn = self.options.negatives_per_positive, self.options.negatives_seed
            log = with_drawn_items(log, id_keys(users.ids), self.prepared, *drawn)
        log, counts = of_items(log, chosen)
        logit = LogitOfUser(self.frozen.backbone, model.shape)
        out = [(np.empty(0, np.int64), np.empty((0, model.dim), np.float32))]
        for group, rows in in_groups(log, counts, _GROUP_ROWS):
            ours = np.arange(runtime.rank, len(group), runtime.world_size)
            clicks, place = self._clicks(rows, users), places_of(counts[group], ours)
            weights = rows[WEIGHT][place] if WEIGHT in rows else None
            targets = counts[group[ours]], rows["label"][place], weights
            found = user_rows(rule, self.frozen.method, logit, start, clicks.taken(place), *targets)
            out.append((chosen[group[ours]].astype(np.int64), found.cpu().numpy()))
        columns = [np.concatenate(column) for column in zip(*out, strict=True)]
        gathered = [runtime.gather_rows(column) for column in columns]
        place, rows = (ours if whole is None else whole for ours, whole in zip(columns, gathered, strict=True))
        return place, rows

    def _clicks(self, rows: Log, users: ServedUsers) -> ClickedItems:
        """Looks up what is frozen of clicks. A collective."""
        distinct, inverse = np.unique(rows["user"].astype(np.int64), return_inverse=True)
        # In whole tiles, so that bits of an item do not depend on which others there are.
        padded = np.append(distinct, np.repeat(distinct[:1], -len(distinct) % _TILE_ROWS))
        items = torch.from_numpy(padded).to(self.runtime.device)
        own = None
        if self.run.model.rows:
            own = self.frozen.own_fields(own_values(rows), np.arange(len(inverse)), len(inverse))
        item_of = torch.from_numpy(inverse).to(items.device)
        embeddings = embeddings_of_run(self.run, self._users_of_items, items).double()
        who, person = np.unique(rows["item"].astype(np.int64), return_inverse=True)
        persons, person_of = self._persons(users, who), torch.from_numpy(person).to(items.device)
        return ClickedItems(embeddings, self.frozen.item_fields(items), item_of, own, persons, person_of)

    @torch.no_grad()
    def _persons(self, users: ServedUsers, who: np.ndarray) -> torch.Tensor:
        """Looks up field embeddings [k, Fu*D], float64, of users [k]. A collective."""
        if users.fields is None:
            return self.frozen.unknown_user().expand(len(who), -1)
        fields = users.fields.take(pa.array(np.append(who, np.repeat(who[:1], -len(who) % _TILE_ROWS))))
        device = self.runtime.device
        store = FeatureStore(users_of_fields(fields, self.prepared), device, self.config.embedding.smooth_ordinal)
        every = torch.arange(store.num_rows, device=device)
        return self.run.model.user_tables(store.features(every)).double()[: len(who)]


@torch.no_grad()
def embeddings_of_run(run: FinishedRun, users: ItemUsers, items: torch.Tensor) -> torch.Tensor:
    """Gives embeddings [n, D] of items of a run as its training has left them, whatever jobs have done since.

    A collective.

    Args:
        run: in any state.
        users: of the items in the run's own sets.
        items: in whole tiles, none that came after the run.
    """
    model, is_old = run.model, items < run.num_old_items
    new = items.masked_fill(is_old, run.num_old_items)
    rows = model.new_ids.rows(new) if run.run_rows is None else run.run_rows[new.cpu()].to(items.device)
    means = mean_users(users, new, model.user_tables, run.mean_user, model.runtime)
    warm = run.method.warm_rows(rows, model.item_fields(new), means)
    return torch.where(is_old[:, None], model.old_ids.rows(items.masked_fill(~is_old, 0)), warm)


def with_drawn_items(log: Log, user_keys: np.ndarray, prepared: Prepared, per_positive: int, seed: int) -> Log:
    """Returns a log of users with the negatives that are drawn for its clicks, in order.

    Args:
        log: clicks of users, all of each.
        user_keys: hashes of the IDs of all users [N].
        prepared: of the run.
        per_positive: so many for each.
        seed: of the draw.
    """
    popularity = np.zeros((2, prepared.num_items), dtype=np.int64)
    for split in prepared.manifest["splits"]:
        for part in prepared.in_parts(split, ("item", "label")):
            popularity[0] += np.bincount(part["item"][part["label"] == 1], minlength=prepared.num_items)
    popularity[1, : prepared.num_old_items] = popularity[0, : prepared.num_old_items]
    popularity[0, : prepared.num_old_items] = 0
    kind = (log["user"] < prepared.num_old_items).astype(int)
    source = np.repeat(np.flatnonzero(popularity.sum(axis=1)[kind] > 0), per_positive)
    of_source, number = taken(log, source), np.arange(len(source)) % per_positive
    first = user_keys[of_source["item"]] ^ mixed(np.full(1, seed, dtype=np.uint64))
    for part in (of_source["user_key"], of_source["time"].view(np.uint64), number.view(np.uint64)):
        first = mixed(first) + part
    owner, liked = of_source["item"].astype(np.int64), log["item"].astype(np.int64) * prepared.num_items + log["user"]

    def refused(place: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        return np.isin(owner[place] * prepared.num_items + candidate, liked)

    drawn = picked(first, kind[source], popularity, refused)
    kept = drawn >= 0
    columns = {"user": drawn[kept].astype(np.int32), "user_key": drawn[kept].view(np.uint64)}
    columns |= {"label": np.zeros(int(kept.sum()), dtype=np.int8)}
    if WEIGHT in log:  # a drawn row is no behaviour
        columns[WEIGHT] = np.ones(int(kept.sum()), dtype=np.float32)
    both = together([log, taken(of_source, kept) | columns])
    return taken(both, in_order(both))


def _as_type(ids: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns those of the IDs that the run's users could have, as theirs are."""
    if ids.type == kind:
        return ids
    text = ids.cast(pa.string())
    if pa.types.is_integer(kind):
        text = text.filter(raw_ids.is_whole_number(text))
    return text.cast(kind)


def _places(keys: np.ndarray, ids: pa.Array) -> np.ndarray:
    """Returns the position of the ID with each of these hashes [n], -1 where there is none, int32 [n]."""
    if not len(ids):
        return np.full(len(keys), -1, dtype=np.int32)
    known = id_keys(ids)
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known[order], keys), len(order) - 1)]
    return np.where(known[place] == keys, place, -1).astype(np.int32)
