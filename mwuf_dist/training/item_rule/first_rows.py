"""The run's method as the daily job uses it: first rows of items never seen, and what it makes of a block's rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from mwuf_dist.config import Config
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.methods import Method, build_method
from mwuf_dist.training.item_rule.rule import FEWEST_ROWS
from mwuf_dist.training.model import Model, pretrained_items

# Field embeddings [n, Fi*D] in float64 of items [n].
ItemFields = Callable[[torch.Tensor], torch.Tensor]


class Trained(Protocol):
    """Holds what the rule reads of a run: a finished one, or one whose warm-up has not begun."""

    @property
    def config(self) -> Config:
        """Of the run."""
        ...

    @property
    def prepared(self) -> Prepared:
        """Its data."""
        ...

    @property
    def model(self) -> Model:
        """Theta and the tables, in eval mode."""
        ...

    @property
    def method(self) -> Method:
        """With its meta networks, trained."""
        ...


def frozen_method(run: Trained, features: FeatureStore, item_fields: ItemFields) -> Method:
    """Returns the run's method in float64, attached to the run's old items and to all items that there are by now.

    Args:
        run: whose method.
        features: fields of all items.
        item_fields: their embeddings.
    """
    model, old_rows = run.model, run.model.old_ids.rows
    method = build_method(run.config.method, model.dim, model.shape.num_item_fields * model.dim)
    method.load_state_dict(run.method.state_dict())
    items = pretrained_items(model, run.prepared)
    method.attach(
        dataclasses.replace(
            items,
            features=features,
            old_rows=torch.no_grad()(lambda index: old_rows(index).double()),
            context=item_fields,
            mean_old_row=lambda: items.mean_old_row().double(),
        )
    )
    return method.to(model.runtime.device).double().eval().requires_grad_(False)


@torch.no_grad()
def first_rows(
    run: Trained, method: Method, items: torch.Tensor, keys: np.ndarray, item_fields: ItemFields
) -> torch.Tensor:
    """Gives first rows of phi_new [n, D], float32: as `initialise_new_ids` makes them, but by raw ID and not by index.

    Args:
        run: whose tables.
        method: of `frozen_method`.
        items: the items [n].
        keys: hashes of their raw IDs [n]: what a fresh draw depends on.
        item_fields: embeddings of the items' fields.
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
        padded = with_company(items, model.num_old)
        return method.initial_rows(padded, item_fields(padded))[: len(items)].float()
    return torch.zeros(len(keys), model.dim, device=model.runtime.device)


@torch.no_grad()
def regenerated_rows(method: Method, rows: torch.Tensor, item_fields: torch.Tensor) -> torch.Tensor:
    """Regenerates rows [n, D], float32, at the end of a block, given fields [n, Fi*D]."""
    padding = (0, 0, 0, FEWEST_ROWS)
    return method.regenerated_rows(F.pad(rows.double(), padding), F.pad(item_fields, padding))[: len(rows)].float()


def with_company(items: torch.Tensor, num_old: int) -> torch.Tensor:
    """Returns items with `FEWEST_ROWS` old ones behind: in a product of fewer rows, bits depend on their number."""
    return torch.cat([items, torch.arange(FEWEST_ROWS, device=items.device) % num_old])
