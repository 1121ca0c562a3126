"""The part of a job that moves rows: what the serving rule needs of each item, looked up and handed to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from mwuf_dist.config import Config, UserError
from mwuf_dist.data.id_keys import id_keys
from mwuf_dist.data.schema import SIDES, WEIGHT
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.served_log import Log, in_groups, of_items, own_values, together
from mwuf_dist.serving.served_rows import Rows
from mwuf_dist.serving.served_state import Grown
from mwuf_dist.serving.warm.change import Change
from mwuf_dist.training.item_rule.first_rows import first_rows
from mwuf_dist.training.item_rule.frozen_items import FrozenModel
from mwuf_dist.training.item_rule.rule import WarmRule, rule_of
from mwuf_dist.training.model import feature_store

# Interactions whose frozen parts are in memory at once.
_GROUP_ROWS = 1 << 18
_GROUP_ROWS_WITH_HISTORIES = 1 << 15  # DIN's part is all embeddings of a history.


@dataclass
class WarmJob:
    """The rows that must move, and what the rule needs of each.

    Lookups are collectives, so that every rank makes the same ones; the rule itself runs on a part of the items.
    """

    config: Config
    runtime: Runtime
    prepared: Prepared
    change: Change
    run_log: Log
    run_rows: np.ndarray

    def rows(self, run: FinishedRun) -> Rows:
        """Returns all rows that are not the run's, on the main rank (elsewhere what is there is not complete)."""
        state = self.change.state
        grown = Grown(self.prepared, state)
        users, items = (feature_store(self.config.embedding, grown, side, self.runtime) for side in SIDES)
        self.frozen = FrozenModel(run, users, items, run.histories)
        old = state.rows
        touched = np.union1d(self.change.anew, self.change.going_on)
        if self.frozen.method.regenerates and (touched < self.prepared.num_old_items).any():
            raise UserError(
                f"--old-items does not go with method.name = {self.config.method.name!r}: it would pass rows through "
                "its autoencoder that have never been; old items stay as they are without the option"
            )
        at = np.full(state.num_items, -1, dtype=np.int64)
        at[old.item] = np.arange(len(old.item))
        at[self.change.anew] = -1
        start, boundary = self._starts(run, touched, at[touched])
        return old.with_made(self._fit(run, touched, start, boundary))

    def _starts(self, run: FinishedRun, touched: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gives (rows [T, D], interactions before them [T]) where each item goes on.

        `at` is its place in the state or -1.
        """
        state, old = self.change.state, self.change.state.rows
        # A fit starts at an item's first row whatever the run has made of it.
        goes_on = (touched < state.num_run_items) & (not self.frozen.method.fits_items)
        start = np.empty((len(touched), run.model.dim), dtype=np.float32)
        boundary = np.where(goes_on, self._rows_of_run(touched), 0)
        anew = at < 0
        start[~anew], boundary[~anew] = old.at_boundary[at[~anew]], old.boundary[at[~anew]]
        is_old = touched < self.prepared.num_old_items
        of_old, of_new = anew & goes_on & is_old, anew & goes_on & ~is_old
        if of_old.any():  # a sharded table cannot look up nothing
            start[of_old] = _looked_up(run.model.old_ids.rows, touched[of_old], self.runtime)
        if run.run_rows is not None:
            start[of_new] = run.run_rows[torch.from_numpy(touched[of_new])].numpy()
        elif of_new.any():
            start[of_new] = _looked_up(run.model.new_ids.rows, touched[of_new], self.runtime)
        first = touched[anew & ~goes_on]
        # The run's own items among them, which are fitted, do not start at draws by their ID.
        keys, unseen = np.zeros(len(first), dtype=np.uint64), first >= state.num_run_items
        keys[unseen] = id_keys(state.ids.take(pa.array(first[unseen] - state.num_run_items)))
        items = torch.from_numpy(first).to(self.runtime.device)
        start[anew & ~goes_on] = first_rows(run, self.frozen.method, items, keys, self.frozen.item_fields).cpu()
        return start, boundary

    def _fit(self, run: FinishedRun, touched: np.ndarray, start: np.ndarray, boundary: np.ndarray) -> Rows:
        """Returns the rows of the items by the rule, in any order, gathered on the main rank."""
        rule, runtime = rule_of(self.config, self.prepared), self.runtime
        # The run's rows of an item, then those that came since: both are sorted by item.
        log, counts = of_items(together([self.run_log, self.change.state.log]), touched)
        missing = self._missing(touched)
        out = [Rows.none(run.model.dim)]
        most = _GROUP_ROWS if run.histories is None else _GROUP_ROWS_WITH_HISTORIES
        for group, rows in in_groups(log, counts, most):
            unread = boundary[group] - missing[group]
            frozen = self.frozen.of(rule, touched[group], counts[group], unread, rows["user"], own_values(rows))
            ours = np.arange(runtime.rank, len(group), runtime.world_size)
            sizes = counts[group], missing[group]
            clicks = rows["label"], rows.get(WEIGHT)
            made = self.frozen.rows(rule, frozen, ours, start[group], boundary[group], *sizes, *clicks)
            items = touched[group[ours]]
            out.append(Rows(items, made.rows.cpu().numpy(), made.at_boundary.cpu().numpy(), made.boundary))
        found = Rows.together(out)
        whole = [runtime.gather_rows(column) for column in vars(found).values()]
        return Rows(*(column for column in whole if column is not None)) if runtime.is_main else found

    def _missing(self, items: np.ndarray) -> np.ndarray:
        """Returns rows of items [T] that the blocks of the phases count and the run has not: see `rule.warm_rows`."""
        is_own = items < self.change.state.num_run_items
        of_run = np.bincount(self.run_log["item"], minlength=self.change.state.num_items)
        return np.where(is_own, self._rows_of_run(items) - of_run[items], 0)

    def _rows_of_run(self, items: np.ndarray) -> np.ndarray:
        return np.append(self.run_rows, 0)[np.minimum(items, len(self.run_rows))]


def rows_of_run(rule: WarmRule, prepared: Prepared, old_items: bool) -> np.ndarray:
    """Says how many interactions the blocks count of each item of the run before those that come since [I'], int64.

    The three phases of a new item. An old item stands at the end of the last block that its rows of `pretrain` fill, so
    that the more of them there were, the more interactions make a step.

    Args:
        rule: the numbers.
        prepared: of the run.
        old_items: whether old items move; else 0 stands for them.
    """
    counts = np.zeros(prepared.num_stored_items, dtype=np.int64)
    counts[prepared.num_old_items :] = rule.block_end(2)
    if old_items:
        of_old = np.zeros(prepared.num_old_items, dtype=np.int64)
        for part in prepared.in_parts("pretrain", ("item",)):
            of_old += np.bincount(part["item"], minlength=len(of_old))
        counts[: len(of_old)] = rule.last_end(of_old)
    return counts


def _looked_up(rows: Callable[[torch.Tensor], torch.Tensor], items: np.ndarray, runtime: Runtime) -> np.ndarray:
    with torch.no_grad():
        return rows(torch.from_numpy(items).to(runtime.device)).cpu().numpy()
