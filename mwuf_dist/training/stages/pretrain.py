"""Stage `pretrain`: theta, the feature tables and phi_old on the rows of old items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mwuf_dist.config import Config
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.data.schema import row_column
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import Method
from mwuf_dist.runtime import draws, generator_seed
from mwuf_dist.training.checkpoint.files import Cursor
from mwuf_dist.training.checkpoint.save import module_state, table_state
from mwuf_dist.training.implementations import trained_model
from mwuf_dist.training.loop import Session, train
from mwuf_dist.training.model import Model, loss_sum
from mwuf_dist.training.optimizers import Adam


@dataclass
class Pretrain:
    """The stage with its optimizer, so that a checkpoint can be loaded into it before it starts."""

    config: Config
    model: Model
    method: Method

    def __post_init__(self) -> None:
        settings = self.config.pretrain
        self.optimizer = Adam(
            dense=[(name, module, settings.learning_rate) for name, module in dense_modules(self.model)],
            tables=[
                (self.model.user_tables, settings.learning_rate),
                (self.model.item_tables, settings.learning_rate),
                (self.model.old_ids, settings.learning_rate_ids or settings.learning_rate),
                *((tables, settings.learning_rate) for tables in self.model.row_tables),
            ],
            weight_decay=settings.weight_decay,
        )
        self._num_steps = 0  # of the whole stage
        self._item_weight: torch.Tensor | None = None  # [num_old]
        self.trained = trained_model(self.model, self.method)

    def tensors(self) -> dict[str, Any]:
        """Returns the state in the middle of the stage."""
        return pretrained_tensors(self.model) | self.optimizer.state()

    def run(self, session: Session, prepared: Prepared, start: Cursor) -> None:
        """Trains from `start` to the end, then gives values that no row has used a sensible embedding."""
        settings, runtime = self.config.pretrain, session.runtime
        loader = self.model.pretrain_rows(prepared, settings.order, settings.batch_size, self.config.seed)
        self._num_steps = settings.epochs * loader.num_steps
        if settings.item_weight == "equal":
            self._item_weight = equal_item_weights(prepared).to(runtime.device)
        self.model.backbone.train()
        train(session, start, loader, settings.epochs, self.step, self.tensors)
        fill_unused_rows(self.model, prepared)

    def step(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """Takes one step; returns this rank's part of the mean loss.

        `following` is the batch of the next step, if that is known.
        """
        # Masks are a function of the cursor, so that a resumed run draws the same ones; torch's generator is for code
        # that is not the package's own.
        runtime, key = self.model.runtime, (self.config.seed, 2, batch.epoch, batch.step)
        draws.begin(*key, first_row=batch.first_row)
        runtime.seed(generator_seed(*key, runtime.rank))
        weight = None if self._item_weight is None else self._item_weight[batch.item]
        loss = loss_sum(self.trained.logit(batch, following), batch, weight)
        loss.backward()
        self.optimizer.sum_gradients(runtime)
        self.optimizer.step(self._rate(batch))
        return loss.detach()

    def _rate(self, batch: Batch) -> float:
        """Returns the schedule: a function of the cursor, so that a resumed run goes on with it."""
        if self.config.pretrain.schedule == "constant":
            return 1.0
        done = batch.epoch * (self._num_steps // self.config.pretrain.epochs) + batch.step
        return 0.5 * (1 + math.cos(math.pi * done / self._num_steps))


def equal_item_weights(prepared: Prepared) -> torch.Tensor:
    """Weighs rows by their old item [num_old] so that all items weigh the same and the mean row weighs 1."""
    counts = np.bincount(prepared.columns("pretrain", ("item",))["item"], minlength=prepared.num_old_items)
    return torch.from_numpy(counts.sum() / len(counts) / np.maximum(counts, 1)).float()


def pretrained_tensors(model: Model) -> dict[str, Any]:
    """Lists what the stage has made: tables, backbone and the projections of vectors."""
    tensors = table_state(*model.pretrained_tables)
    for name, module in dense_modules(model):
        tensors |= module_state(name, module)
    return tensors


def dense_modules(model: Model) -> list[tuple[str, nn.Module]]:
    """Returns the modules that the stage trains, by the names that they have in a checkpoint."""
    return [("backbone", model.backbone), *([("vectors", model.vector_fields)] if model.items.vectors else [])]


@torch.no_grad()
def fill_unused_rows(model: Model, prepared: Prepared) -> None:
    """Gives values that no pretraining row had (users, title tokens of new items only) the mean row of those that had.

    What they hold until here is the draw that they started with, which is noise to everything that comes later.
    """
    names = [row_column(field.name) for field in prepared.row_fields]
    columns = prepared.columns("pretrain", ("user", "item", *names))
    for store, tables, index in (
        (model.users, model.user_tables, columns["user"]),
        (model.items, model.item_tables, columns["item"]),
        *zip(model.rows, model.row_tables, (columns[name] for name in names), strict=True),
    ):
        seen = torch.zeros(store.num_rows, dtype=torch.bool)
        seen[torch.from_numpy(index).long()] = True
        for field, used in store.used_values(seen.nonzero().squeeze(1).to(model.runtime.device)).items():
            mean = tables.mean_row(field, used)
            for shard in tables.shards(field):
                unused = ~used[shard.row : shard.row + len(shard.weight)].to(shard.weight.device)
                shard.weight[unused] = mean[shard.column : shard.column + shard.weight.shape[1]]
