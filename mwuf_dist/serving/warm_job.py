"""The part of a job that moves rows: what the serving rule needs of each item, looked up and handed to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.backbones.folded import FoldedHead
from mwuf_dist.config import Config
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.run_folder import FinishedRun
from mwuf_dist.serving.warm_first import first_rows
from mwuf_dist.serving.warm_input import Log, id_keys, taken, together
from mwuf_dist.serving.warm_rule import (
    FEWEST_ROWS,
    WarmRule,
    folded_slope,
    frozen_double,
    module_slope,
    rule_of,
    warm_rows,
)
from mwuf_dist.serving.warm_state import Change, Grown, Rows

# Interactions whose frozen parts are in memory at once.
_GROUP_ROWS = 1 << 18


@dataclass
class WarmJob:
    """The rows that must move, and what the rule needs of each.

    Lookups are collectives, so that every rank makes the same ones; the rule itself runs on a share of the items.
    """

    config: Config
    runtime: Runtime
    prepared: Prepared
    change: Change
    run_log: Log

    def rows(self, run: FinishedRun) -> Rows:
        """All rows that are not the run's, on the main rank (elsewhere what is there is not complete)."""
        state, device = self.change.state, self.runtime.device
        grown = Grown(self.prepared, state)
        self.items = FeatureStore(grown.entity("item"), device)
        self.users = FeatureStore(grown.entity("user"), device)
        backbone = frozen_double(run.model.backbone)
        head = backbone.fold()  # pyright: ignore[reportCallIssue]
        self.head = head if isinstance(head, FoldedHead) else None
        self.slope = folded_slope(self.head) if self.head is not None else module_slope(backbone)
        old = state.rows
        touched = np.union1d(self.change.anew, self.change.going_on)
        at = np.full(state.num_items, -1, dtype=np.int64)
        at[old.item] = np.arange(len(old.item))
        at[self.change.anew] = -1
        start, boundary = self._starts(run, touched, at[touched])
        made = self._fit(run, touched, start, boundary)
        kept = np.isin(old.item, touched, invert=True)
        parts = [(old.item[kept], old.served[kept], old.at_boundary[kept], old.boundary[kept]), made]
        item, served, at_boundary, boundary = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(item)
        return Rows(item[order], served[order], at_boundary[order], boundary[order])

    def _starts(self, run: FinishedRun, touched: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows [T, D], interactions before them [T]) where each item goes on; `at` is its place in the state or -1."""
        state, old = self.change.state, self.change.state.rows
        is_run = touched < state.num_run_items
        start = np.empty((len(touched), run.model.dim), dtype=np.float32)
        boundary = np.where(is_run, 3 * self.config.data.warm_rows, 0)
        anew = at < 0
        start[~anew], boundary[~anew] = old.at_boundary[at[~anew]], old.boundary[at[~anew]]
        theirs = torch.from_numpy(touched[anew & is_run])
        if run.run_rows is not None:
            start[anew & is_run] = run.run_rows[theirs].numpy()
        else:
            with torch.no_grad():
                start[anew & is_run] = run.model.new_ids.rows(theirs.to(self.runtime.device)).cpu().numpy()
        unseen = touched[anew & ~is_run]
        ids = state.ids.take(pa.array(unseen - state.num_run_items))
        start[anew & ~is_run] = first_rows(run, id_keys(ids), lambda: self._item_fields(run, unseen)).cpu().numpy()
        return start, boundary

    def _item_fields(self, run: FinishedRun, items: np.ndarray) -> torch.Tensor:
        index = torch.from_numpy(items.astype(np.int64)).to(self.runtime.device)
        with torch.no_grad():
            return run.model.item_tables(self.items.features(index))

    def _fit(
        self, run: FinishedRun, touched: np.ndarray, start: np.ndarray, boundary: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(items, rows, rows at their boundary, boundary) by the rule, gathered on the main rank."""
        rule, runtime = rule_of(self.config), self.runtime
        # The run's rows of an item, then those that came since: both are sorted by item.
        log = together([self.run_log, self.change.state.log])
        log = taken(log, np.isin(log["item"], touched))
        log = taken(log, np.argsort(log["item"], kind="stable"))
        counts = np.diff(np.searchsorted(log["item"], np.append(touched, np.iinfo(np.int32).max)))
        ends = np.cumsum(counts)
        out = []
        for group in _groups(counts):
            rows = taken(log, np.arange(int(ends[group[0]] - counts[group[0]]), int(ends[group[-1]])))
            parts = self._parts(run, rule, touched[group], counts[group], boundary[group], rows)
            ours = np.arange(runtime.rank, len(group), runtime.world_size)
            place = _of_items(counts[group], ours)
            # An array of its own: `parts` of our items' rows are those at these places of the group.
            made = warm_rows(
                rule,
                self.slope,
                torch.from_numpy(start[group[ours]]).to(runtime.device),
                boundary[group[ours]],
                counts[group[ours]],
                lambda needed, place=place, parts=parts: parts(place[needed]),
                rows["label"][place],
            )
            items = touched[group[ours]]
            out.append((items, made.rows.cpu().numpy(), made.at_boundary.cpu().numpy(), made.boundary))
        dim = start.shape[1]
        none = (np.empty(0, np.int64), np.empty((0, dim), np.float32), np.empty((0, dim), np.float32))
        columns = [np.concatenate(column) for column in zip(*out, (*none, np.empty(0, np.int64)), strict=True)]
        gathered = [runtime.gather_rows(column) for column in columns]
        items, rows, at_boundary, boundary = (
            ours if whole is None else whole for ours, whole in zip(columns, gathered, strict=True)
        )
        return items, rows, at_boundary, boundary

    def _parts(
        self, run: FinishedRun, rule: WarmRule, items: np.ndarray, counts: np.ndarray, boundary: np.ndarray, rows: Log
    ) -> Callable[[np.ndarray], torch.Tensor]:
        """Frozen parts in float64 of a group's interactions by their place. Looks up on every rank alike."""
        place = np.arange(len(rows["item"])) - np.repeat(np.cumsum(counts) - counts, counts)
        needed = np.flatnonzero((place >= np.repeat(boundary, counts)) | rule.carry_over)
        unknown = self.users.num_rows - 1
        user = np.where(rows["user"] < 0, unknown, rows["user"]).astype(np.int64)
        distinct, inverse = np.unique(user[needed], return_inverse=True)
        of_row = np.zeros(len(user), dtype=np.int64)
        of_row[needed] = inverse
        # Never so few rows that a product of them would add in another order.
        distinct = np.append(distinct, np.full(FEWEST_ROWS, unknown))
        item = np.append(items, np.repeat(items[:1], FEWEST_ROWS))
        of_item = torch.from_numpy(np.repeat(np.arange(len(items)), counts))
        with torch.no_grad():
            index = torch.from_numpy(distinct).to(self.runtime.device)
            user_side = run.model.user_tables(self.users.features(index)).double()
            item_side = self._item_fields(run, item).double()
        if self.head is not None:
            user_side, item_side = self.head.user_part(user_side), self.head.item_part(item_side)
        users, device, head = torch.from_numpy(of_row), user_side.device, self.head

        def parts(places: np.ndarray) -> torch.Tensor:
            index = torch.from_numpy(places)
            one, other = item_side[of_item[index].to(device)], user_side[users[index].to(device)]
            return torch.cat([one, other], dim=1) if head is None else one + other

        return parts


def _groups(counts: np.ndarray) -> list[np.ndarray]:
    """Items cut into groups of about `_GROUP_ROWS` interactions, at least one item each."""
    group = np.cumsum(counts) // _GROUP_ROWS
    cuts = np.flatnonzero(np.diff(group)) + 1
    return [part for part in np.split(np.arange(len(counts)), cuts) if len(part)]


def _of_items(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Places of the interactions of some items, whose `counts` stand one after another."""
    mask = np.zeros(len(counts), dtype=bool)
    mask[chosen] = True
    return np.flatnonzero(np.repeat(mask, counts))
