"""An explanation whose replay of the warm-up is held against the run."""

from __future__ import annotations

import torch

from mwuf_dist.serving.explain import Explanation, explain
from mwuf_dist.serving.finished_run import FinishedRun
from tests.bounds import near


def replayed(run: FinishedRun) -> Explanation:
    """The explanation of a new item, after a check that it ends at the row and the score of the run."""
    index = run.num_old_items + 3
    found = explain(run, run.item_ids[index].as_py())
    assert found.replay_error == 0.0
    users = torch.randint(run.prepared.num_users, (1024,), generator=torch.Generator().manual_seed(0))
    expected = run.scores(users, torch.full_like(users, index)).sigmoid().mean()
    assert found.history[-1].score == near(float(expected), num_terms=100)
    return found
