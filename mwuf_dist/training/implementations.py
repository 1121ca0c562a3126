"""Chooses how a run computes, once at its start: by autograd, or in loops that are compiled for this rank's CPU.

`Runtime.is_compiled` says whether the loops are there. Tables choose by it how rows are looked up, and here the two
models of a run are chosen. `results.json` names what was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from mwuf_kernels import BatchSide

from mwuf_dist.backbones.compiled_head import TrainedHead
from mwuf_dist.config import EmbeddingConfig
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.methods import Method
from mwuf_dist.training.frozen_model import CompiledFrozen, Frozen
from mwuf_dist.training.model import Model


class TrainedModel(Protocol):
    """The model as `pretrain` trains it."""

    implementation: str

    def logit(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """Computes logits [b] of a batch of old items' rows, with gradients to every table and weight. A collective.

        `following` is the batch of the next step, if that is known.
        """
        ...


class AutogradTrained:
    """Trains any backbone on any device, with what a method does to the item embeddings."""

    implementation = "autograd"

    def __init__(self, model: Model, change: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        self._model, self._change = model, change

    def logit(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """See `TrainedModel.logit`."""
        return self._model.logit(batch, self._change, following)


class CompiledTrained:
    """Trains a backbone that has a `TrainedHead`, in compiled loops over rows."""

    implementation = "compiled"

    def __init__(self, model: Model, head: TrainedHead) -> None:
        self._model, self._head = model, head

    def logit(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """See `TrainedModel.logit`."""
        model = self._model
        ids = model.fetches.fetched(batch, following)
        item_side = torch.cat([model.old_ids.rows(ids.old), model.item_fields(ids.fields)], dim=1)
        users = model.users.sides(model.user_tables, ids.user, model.runtime)
        width = item_side.shape[1]
        sides = [BatchSide(side.embeddings, side.index, width + side.column) for side in users]
        weight = None if batch.is_full else batch.weight
        return self._head.logit([*sides, BatchSide(item_side, ids.item, 0)], weight)


def trained_model(model: Model, method: Method) -> TrainedModel:
    """Chooses how `pretrain` computes logits; a method that changes item embeddings is left to autograd."""
    change = change_of(method)
    head = model.backbone.trained_head() if model.runtime.is_compiled and change is None else None
    return AutogradTrained(model, change) if head is None else CompiledTrained(model, head)


def change_of(method: Method) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Finds what a method does to item embeddings in `pretrain`; None for one that leaves them as they are."""
    return method.pretrain_item if type(method).pretrain_item is not Method.pretrain_item else None


def frozen_model(model: Model, config: EmbeddingConfig) -> Frozen:
    """Freezes a pretrained model, with losses and scores as this rank computes them best."""
    folds = model.backbone.config.precision == "float32" and model.backbone.fold() is not None
    return (CompiledFrozen if folds and model.runtime.is_compiled else Frozen)(model, config)


def named(trained: TrainedModel, frozen: Frozen) -> dict[str, object]:
    """Names what a run computes with, for its record."""
    model = frozen.model
    return {
        "trained_model": trained.implementation,
        "frozen_model": frozen.implementation,
        "lookups": {tables.name: tables.implementation for tables in (*model.pretrained_tables, model.new_ids)},
    }
