"""How an item's scores moved with the interactions that `mwuf warm` has brought.

The serving rule makes a row of the first n interactions of an item whatever came later, so the score after each of them
is found by applying it to fewer: what a job would have served that had seen no more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.served_log import taken
from mwuf_dist.serving.served_state import SERVED, new_state
from mwuf_dist.serving.warm.change import Change
from mwuf_dist.serving.warm.job import seen_by_run
from mwuf_dist.serving.warm.rows import WarmJob

# Moments looked at, at most.
_NUM_POINTS = 16


@torch.no_grad()
def served_scores(run: FinishedRun, index: int, users: torch.Tensor) -> list[tuple[int, float]]:
    """(interactions since the run, mean probability over `users` [n]) of a new item, the first before any of them.

    Empty where the item has had no interaction since the run.
    """
    state = run.state
    if state is None or (index < state.num_run_items and not (state.log["item"] == index).any()):
        return []
    device = run.model.runtime.device
    own = taken(state.log, state.log["item"] == index)
    user_ids = run.prepared.raw_ids("user")
    run_log = seen_by_run(run.prepared, np.array([index]), user_ids)
    # No row of before: the item goes on from the run's row, or its first one.
    none = new_state(run.prepared, state.ids.type, run.model.dim).rows
    nothing = np.empty(0, dtype=np.int64)
    out = []
    num = len(own["item"])
    for clicks in np.unique(np.linspace(0, num, min(num, _NUM_POINTS) + 1).round().astype(int)):
        log = taken(own, np.arange(clicks))
        change = Change(replace(state, log=log, rows=none), np.array([index]), nothing, 0, 0, 0, 0)
        made = WarmJob(run.config, run.model.runtime, run.prepared, change, run_log).rows(run)
        row = torch.from_numpy(made.served).to(device)
        users_of = [one["user"][run.prepared.is_event(one["label"], run.config.data.events)] for one in (run_log, log)]
        seen = torch.from_numpy(np.concatenate(users_of).astype(np.int64)).to(device)
        mean = run.model.user_tables.rows_of("user_id", seen + 1).mean(0) if len(seen) else run.mean_user
        item = torch.full_like(users, index)
        warm = run.method.warm_rows(row, run.model.item_fields(item[:1]), mean[None])
        backbone = run.model.backbone
        logit = backbone.in_precision(backbone, warm.expand(len(users), -1), run.context(users, item))
        out.append((int(clicks), float(logit.sigmoid().mean())))
    return out


__all__ = ["SERVED", "served_scores"]
