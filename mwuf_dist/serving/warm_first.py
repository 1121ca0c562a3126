"""The first row of an item that a run has never seen: what the run's method gave its own new items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from mwuf_dist.methods import Method
from mwuf_dist.serving.run_folder import FinishedRun
from mwuf_dist.serving.warm_rule import FEWEST_ROWS, frozen_double


@torch.no_grad()
def first_rows(run: FinishedRun, keys: np.ndarray, item_fields: Callable[[], torch.Tensor]) -> torch.Tensor:
    """First rows of phi_new [n, D], float32: as `initialise_new_ids` makes them, but by raw ID and not by index.

    Args:
        run: whose method and tables.
        keys: hashes of the raw IDs [n]: what a fresh draw depends on.
        item_fields: their field embeddings [n, Fi*D], of which only a generator of rows asks.
    """
    model, initialisation = run.model, run.method.initialisation
    if initialisation == "random":
        rows = np.empty((len(keys), model.dim), dtype=np.float32)
        for row, key in zip(rows, keys, strict=True):
            row[:] = np.random.default_rng([run.config.seed, int(key)]).normal(
                0, run.config.embedding.init_std, model.dim
            )
        return torch.from_numpy(rows).to(model.runtime.device)
    if initialisation == "mean":
        return model.mean_old_row().expand(len(keys), -1)
    if initialisation == "own":
        method = frozen_double(run.method)
        assert isinstance(method, Method)
        context = F.pad(item_fields().double(), (0, 0, 0, FEWEST_ROWS))
        assert not method.looks_up_items, "an item that the run has never seen has no index in it"
        nowhere = torch.full((len(context),), -1, device=context.device)
        return method.initial_rows(nowhere, context)[: len(keys)].float()
    return torch.zeros(len(keys), model.dim, device=model.runtime.device)
