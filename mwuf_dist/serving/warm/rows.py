"""The part of a job that moves rows: what the serving rule needs of each item, looked up and handed to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.config import Config
from mwuf_dist.data.schema import SIDES
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.rule import (
    FEWEST_ROWS,
    WarmedRows,
    WarmRule,
    fitted_rows,
    frozen_double,
    item_groups,
    module_slope,
    rule_of,
    warm_rows,
)
from mwuf_dist.serving.served_log import Log, id_keys, taken, together
from mwuf_dist.serving.served_state import Grown, Rows
from mwuf_dist.serving.warm.change import Change
from mwuf_dist.serving.warm.first_rows import first_rows, frozen_method, regenerated_rows
from mwuf_dist.training.model import feature_store

# Interactions whose frozen parts are in memory at once.
_GROUP_ROWS = 1 << 18
_GROUP_ROWS_WITH_HISTORIES = 1 << 15  # DIN's part is all embeddings of a history.
# Interactions whose histories are encoded at once.
_ENCODED_ROWS = 1 << 13


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

    def rows(self, run: FinishedRun) -> Rows:
        """All rows that are not the run's, on the main rank (elsewhere what is there is not complete)."""
        state = self.change.state
        grown = Grown(self.prepared, state)
        self.users, self.items = (feature_store(self.config.embedding, grown, side, self.runtime) for side in SIDES)
        self.backbone = frozen_double(run.model.backbone)
        self.method = frozen_method(run, self.items, lambda items: self._item_fields(run, items))
        head = None if self.method.fits_items else self.backbone.fold()  # pyright: ignore[reportCallIssue]
        self.head = head if isinstance(head, FoldedHead) else None
        self.slope = module_slope(self.backbone) if self.head is None else self.head.gradient
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
        # A fit starts at an item's first row whatever the run has made of it.
        goes_on = (touched < state.num_run_items) & (not self.method.fits_items)
        start = np.empty((len(touched), run.model.dim), dtype=np.float32)
        boundary = np.where(goes_on, 3 * self.prepared.rows_of(self.config.data.warm_rows), 0)
        anew = at < 0
        start[~anew], boundary[~anew] = old.at_boundary[at[~anew]], old.boundary[at[~anew]]
        theirs = torch.from_numpy(touched[anew & goes_on])
        if run.run_rows is not None:
            start[anew & goes_on] = run.run_rows[theirs].numpy()
        elif len(theirs):  # a sharded table cannot look up nothing
            with torch.no_grad():
                start[anew & goes_on] = run.model.new_ids.rows(theirs.to(self.runtime.device)).cpu().numpy()
        first = touched[anew & ~goes_on]
        # The run's own items among them, which are fitted, do not start at draws by their ID.
        keys, unseen = np.zeros(len(first), dtype=np.uint64), first >= state.num_run_items
        keys[unseen] = id_keys(state.ids.take(pa.array(first[unseen] - state.num_run_items)))
        items = torch.from_numpy(first).to(self.runtime.device)
        start[anew & ~goes_on] = first_rows(
            run, self.method, items, keys, lambda items: self._item_fields(run, items)
        ).cpu()
        return start, boundary

    def _item_fields(self, run: FinishedRun, items: torch.Tensor) -> torch.Tensor:
        """Field embeddings [n, Fi*D] of items [n], float64."""
        with torch.no_grad():
            return run.model.item_tables(self.items.features(items)).double()

    def _fit(
        self, run: FinishedRun, touched: np.ndarray, start: np.ndarray, boundary: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(items, rows, rows at their boundary, boundary) by the rule, gathered on the main rank."""
        rule, runtime = rule_of(self.config, self.prepared), self.runtime
        # The run's rows of an item, then those that came since: both are sorted by item.
        log = together([self.run_log, self.change.state.log])
        log = taken(log, np.isin(log["item"], touched))
        log = taken(log, np.argsort(log["item"], kind="stable"))
        counts = np.diff(np.searchsorted(log["item"], np.append(touched, np.iinfo(np.int32).max)))
        ends, missing = np.cumsum(counts), self._missing(rule, touched)
        out = []
        for group in item_groups(counts, _GROUP_ROWS if run.histories is None else _GROUP_ROWS_WITH_HISTORIES):
            rows = taken(log, np.arange(int(ends[group[0]] - counts[group[0]]), int(ends[group[-1]])))
            frozen = self._parts(run, rule, touched[group], counts[group], boundary[group] - missing[group], rows)
            ours = np.arange(runtime.rank, len(group), runtime.world_size)
            sizes = counts[group], missing[group]
            made = self._made(rule, frozen, ours, start[group], boundary[group], *sizes, rows["label"])
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

    def _missing(self, rule: WarmRule, items: np.ndarray) -> np.ndarray:
        """Rows of items [T] that the blocks of the phases count and the run has not: see `rule.warm_rows`."""
        is_own = items < self.change.state.num_run_items
        of_run = np.bincount(self.run_log["item"], minlength=self.change.state.num_items)
        return np.where(is_own, 3 * rule.block_rows - of_run[items], 0)

    def _made(
        self,
        rule: WarmRule,
        frozen: _Frozen,
        ours: np.ndarray,
        start: np.ndarray,
        boundary: np.ndarray,
        counts: np.ndarray,
        missing: np.ndarray,
        labels: np.ndarray,
    ) -> WarmedRows:
        """The rule on `ours` of a group's items: no lookup, so that ranks need not keep step."""
        place, device = _of_items(counts, ours), self.runtime.device
        rows = torch.from_numpy(start[ours]).to(device)

        def parts(needed: np.ndarray) -> torch.Tensor:
            return frozen.parts(place[needed])

        if self.method.fits_items:
            return fitted_rows(self.method, self.backbone, rows, counts[ours], parts, labels[place])
        fields = frozen.item_fields[torch.from_numpy(ours).to(device)]

        def finish(index: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return regenerated_rows(self.method, rows, fields[index])

        regenerate = finish if self.method.regenerates else None
        sizes = boundary[ours], counts[ours]
        return warm_rows(rule, self.slope, rows, *sizes, parts, labels[place], regenerate, missing[ours])

    def _parts(
        self, run: FinishedRun, rule: WarmRule, items: np.ndarray, counts: np.ndarray, boundary: np.ndarray, rows: Log
    ) -> _Frozen:
        """Looks up what is frozen of a group's items and interactions, on every rank alike."""
        place = np.arange(len(rows["item"])) - np.repeat(np.cumsum(counts) - counts, counts)
        needed = np.flatnonzero((place >= np.repeat(boundary, counts)) | rule.carry_over | self.method.fits_items)
        unknown, device = self.users.num_rows - 1, self.runtime.device
        user = np.where(rows["user"] < 0, unknown, rows["user"]).astype(np.int64)
        distinct, inverse = np.unique(user[needed], return_inverse=True)
        of_row = np.zeros(len(user), dtype=np.int64)
        of_row[needed] = inverse
        # Never so few rows that a product of them would add in another order.
        distinct = np.append(distinct, np.full(FEWEST_ROWS, unknown))
        item = torch.from_numpy(np.append(items, np.repeat(items[:1], FEWEST_ROWS))).to(device)
        item_of, user_of = (
            torch.from_numpy(array).to(device) for array in (np.repeat(np.arange(len(items)), counts), of_row)
        )
        with torch.no_grad():
            user_side = run.model.user_tables(self.users.features(torch.from_numpy(distinct).to(device))).double()
            item_side = self._item_fields(run, item)
        if self.head is not None:
            sides = self.head.item_part(item_side), self.head.user_part(user_side)
            return _Frozen(item_side, sides, True, item_of, user_of, None)
        encoded = None
        if run.histories is not None:
            encoded = user_side.new_zeros(len(user), run.model.backbone.history_width)
            by_user = needed[np.argsort(user[needed], kind="stable")]  # so that what is made of a history is made once
            for part in np.split(by_user, range(_ENCODED_ROWS, len(by_user), _ENCODED_ROWS)):
                index = torch.from_numpy(part).to(device)
                context = torch.cat([item_side[item_of[index]], user_side[user_of[index]]], dim=1)
                encoded[index] = self._encoded(run, torch.from_numpy(user[part]).to(device), context)
        return _Frozen(item_side, (item_side, user_side), False, item_of, user_of, encoded)

    @torch.no_grad()
    def _encoded(self, run: FinishedRun, users: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Encodes users' histories [b, W] as they were at the end of the run, for fields [b, F*D].

        In float64, rounded to float32: the company of a row, by which padding differs, changes last bits of the former.
        """
        assert run.histories is not None
        company = torch.arange(FEWEST_ROWS, device=users.device) % run.prepared.num_users
        padded = F.pad(context, (0, 0, 0, FEWEST_ROWS))
        with run.model.item_tables.as_if_shared():  # or a row would depend on the number of ranks
            history = run.model.embedded_history(run.histories.whole(torch.cat([users, company])))
        fields = None if history.fields is None else history.fields.double()
        doubled = replace(history, labels=history.labels.double(), rows=history.rows.double(), fields=fields)
        return self.backbone.encode(doubled, padded)[: len(users)].float().double()  # pyright: ignore[reportCallIssue]


@dataclass(frozen=True)
class _Frozen:
    """Holds what is frozen of a group of items and their n interactions, in float64.

    Attributes:
        item_fields: of each item (and some more) [g, Fi*D].
        sides: (of the items [g, P], of the users [u, P]).
        is_folded: they are to be summed, for a folded head; else they stand side by side.
        item_of, user_of: position of each interaction's item and user in them [n].
        encoded: what the backbone makes of its history [n, W]; None for one that looks at none.
    """

    item_fields: torch.Tensor
    sides: tuple[torch.Tensor, torch.Tensor]
    is_folded: bool
    item_of: torch.Tensor
    user_of: torch.Tensor
    encoded: torch.Tensor | None

    def parts(self, places: np.ndarray) -> torch.Tensor:
        """Frozen parts of some interactions [m, P]."""
        index = torch.from_numpy(places).to(self.item_of.device)
        of_item, of_user = self.sides[0][self.item_of[index]], self.sides[1][self.user_of[index]]
        if self.is_folded:
            return of_item.add_(of_user)
        encoded = [] if self.encoded is None else [self.encoded[index]]
        return torch.cat([of_item, of_user, *encoded], dim=1)


def _of_items(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Positions of the interactions of some items, whose `counts` stand one after another."""
    mask = np.zeros(len(counts), dtype=bool)
    mask[chosen] = True
    return np.flatnonzero(np.repeat(mask, counts))
