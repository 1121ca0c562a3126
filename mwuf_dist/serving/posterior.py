"""How sure a run is of rows that its method has fitted: the posterior's variances, from the clicks that it has seen."""

from __future__ import annotations

import numpy as np
import torch

from mwuf_dist.config import WARM_SETS, UserError
from mwuf_dist.data.schema import WEIGHT
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.served_log import Log, in_groups, own_values, ranges, taken
from mwuf_dist.training.item_rule.frozen_items import FrozenModel
from mwuf_dist.training.item_rule.rule import WarmRule, rule_of

# Interactions whose frozen parts are in memory at once.
_GROUP_ROWS = 1 << 15


class Posterior:
    """The posterior of a run's new items, given all of their interactions: the warm sets, and what `mwuf warm` brought.

    Args:
        run: whose method has one.

    Raises:
        UserError: it has none.
    """

    def __init__(self, run: FinishedRun) -> None:
        if not run.method.has_posterior:
            raise UserError(
                f"--uncertainty: method {run.config.method.name!r} trains rows by steps and has no posterior of them; "
                "method.name = 'map' fits them and has one"
            )
        self._run, self._rule = run, rule_of(run.config, run.prepared)
        self._frozen = FrozenModel(run, run.model.users, run.model.items, run.histories)
        names = ("user", "item", *run.prepared.row_columns)
        parts = [run.prepared.columns(split, names) for split in (*WARM_SETS, *run.served_splits)]
        log = {name: np.concatenate([part[name] for part in parts]) for name in names}
        log |= {name: log[name].astype(np.int64) for name in ("user", "item")}
        self._log = taken(log, np.argsort(log["item"], kind="stable"))

    @torch.no_grad()
    def variances(self, items: np.ndarray) -> np.ndarray:
        """Gives variances of the rows of items [n, D], float32; NaN of an old item, which was trained. A collective."""
        run = self._run
        found = np.full((len(items), run.model.dim), np.nan, dtype=np.float32)
        is_new = items >= run.num_old_items
        if is_new.any():
            ours = items[is_new].astype(np.int64)
            first, last = (np.searchsorted(self._log["item"], ours, side=side) for side in ("left", "right"))
            counts = last - first
            log = taken(self._log, ranges(first, counts))
            rows = run.model.new_ids.rows(torch.from_numpy(ours).to(run.model.runtime.device)).cpu().numpy()
            found[is_new] = variances_of(self._frozen, self._rule, ours, rows, counts, log)
        return found


def variances_of(
    frozen: FrozenModel, rule: WarmRule, items: np.ndarray, rows: np.ndarray, counts: np.ndarray, log: Log
) -> np.ndarray:
    """Returns the posterior's variances of the rows [n, D] of items [n].

    Args:
        frozen: the model that they were fitted to.
        rule: its numbers.
        items: their indices.
        rows: fitted.
        counts: number of interactions of each.
        log: these, item after item.
    """
    found = np.empty_like(rows)
    for group, clicks in in_groups(log, counts, _GROUP_ROWS):
        nothing = np.zeros(len(group), dtype=np.int64)
        of_group = frozen.of(rule, items[group], counts[group], nothing, clicks["user"], own_values(clicks))
        found[group] = frozen.variances(of_group, rows[group], counts[group], clicks.get(WEIGHT))
    return found
