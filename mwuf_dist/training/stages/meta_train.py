"""Stage `meta_train`: phi_new by L_cold, the meta networks by L_warm, everything else frozen (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from mwuf_kernels import backward_from

from mwuf_dist.config import Config, MetaTrainConfig
from mwuf_dist.data.batches.loader import Batch, Batches
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.embeddings.tiles import in_whole_tiles
from mwuf_dist.methods import Method
from mwuf_dist.training.batch_ids import FrozenIds
from mwuf_dist.training.checkpoint.files import Cursor
from mwuf_dist.training.checkpoint.save import module_state, table_state
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.loop import Session, named_position, train
from mwuf_dist.training.model import Model
from mwuf_dist.training.optimizers import Adam

# `epochs = "auto"`: one old item in this many is held out, and played as new to see when to stop.
_HELD_OUT_ONE_IN = 10
# The held-out loss has stopped falling when it falls by less than this fraction.
_SMALLEST_GAIN = 1e-4


@dataclass
class MetaTrain:
    """The stage with its optimizer, so that a checkpoint can be loaded into it before it starts."""

    config: Config
    model: Model
    frozen: Frozen
    method: Method

    def __post_init__(self) -> None:
        settings = self.config.meta_train
        self.optimizer = Adam(
            dense=[("method", self.method, settings.learning_rate_warm)],
            tables=[(self.model.new_ids, settings.learning_rate_cold)],
        )
        self._fetches = self.frozen.fetches(with_inputs=True)
        self._held_out: torch.Tensor | None = None
        if settings.epochs == "auto":
            self._held_out = held_out_items(self.config.seed, self.model.num_old).to(self.model.runtime.device)

    def tensors(self) -> dict[str, Any]:
        """Returns the state in the middle of the stage, without what `pretrain` made."""
        return meta_trained_tensors(self.model.new_ids, self.method) | self.optimizer.state()

    def run(self, session: Session, prepared: Prepared, start: Cursor, tensors: Any) -> None:
        """Trains from `start` to the end; `tensors` gives the whole state to save."""
        settings = self.config.meta_train
        loader = self.model.pretrain_rows(prepared, settings.order, settings.batch_size, self.config.seed)
        train_epochs(session, start, loader, settings, self.step, tensors, lambda: self._held_out_loss(loader))

    def step(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """Takes one step of Algorithm 1, in one backward; returns this rank's part of L_cold + L_warm.

        L_cold reaches the rows of phi_new, L_warm only the meta networks, because v_warm is made from v.detach(): both
        updates of the algorithm come from one lookup and one backward, with the same v. `following` is the batch of the
        next step, if that is known.
        """
        if self._held_out is not None:
            batch = replace(batch, weight=batch.weight * ~self._held_out[batch.item], is_full=False)
        loss = self.loss_with_gradients(batch, following)
        self.optimizer.sum_gradients(self.model.runtime)
        self.optimizer.step()
        return loss

    def loss_with_gradients(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """Computes L_cold + L_warm of this rank's rows, and gives phi_new and the meta networks their gradients."""
        ids = self.frozen.with_inputs(self._fetches.fetched(batch, following))
        rows, pair = self.model.new_ids.rows_to_train(ids.items), self._scale_and_shift(ids)
        losses, (d_rows, *d_pair) = self.frozen.losses_and_gradients(batch, rows, ids, pair)
        self.model.new_ids.set_gradient(ids.items, rows, d_rows)
        backward_from(pair, d_pair)
        return losses.sum()

    def _scale_and_shift(self, ids: FrozenIds) -> tuple[torch.Tensor, torch.Tensor]:
        assert ids.inputs is not None
        scale_and_shift = self.method.scale_and_shift(*ids.inputs)
        assert scale_and_shift is not None, "a method without meta networks has no stage meta_train"
        return scale_and_shift

    @torch.no_grad()
    def _held_out_loss(self, loader: Batches) -> float:
        """Returns l_warm over the rows of held-out items, whose rows of phi_new nothing has moved."""
        assert self._held_out is not None
        total = torch.zeros(2, dtype=torch.float64, device=self.model.runtime.device)
        for batch in loader.epoch(0):
            ours = replace(batch, weight=batch.weight * self._held_out[batch.item], is_full=False, num_rows=1)
            ids = self.frozen.with_inputs(self._fetches.fetched(batch))
            losses = self.frozen.losses(ours, self.model.new_ids.rows(ids.items), ids, self._scale_and_shift(ids))
            counted = ours.weight if ours.loss_weight is None else ours.loss_weight
            total += torch.stack([losses[1].double(), counted.sum().double()])
        loss, weight = self.model.runtime.sum(total).tolist()
        return loss / max(weight, 1.0)


def held_out_items(seed: int, num_old: int) -> torch.Tensor:
    """Returns the old items [num_old] bool that `epochs = "auto"` keeps from training: a tenth, and at least one."""
    place = torch.randperm(num_old, generator=torch.Generator().manual_seed(seed))
    return place < max(1, num_old // _HELD_OUT_ONE_IN)


def train_epochs(
    session: Session,
    start: Cursor,
    loader: Batches,
    settings: MetaTrainConfig,
    step: Callable[[Batch, Batch | None], torch.Tensor],
    tensors: Callable[[], dict[str, Any]],
    held_out_loss: Callable[[], float],
) -> None:
    """Trains `meta_train.epochs` epochs from `start`, or until `held_out_loss` stops falling."""
    if settings.epochs != "auto":
        train(session, start, loader, settings.epochs, step, tensors)
        return
    best = session.meta.held_out_loss if start.epoch else None
    for epoch in range(start.epoch, settings.max_epochs):
        train(session, replace(start, epoch=epoch), loader, epoch + 1, step, tensors)
        loss = held_out_loss()
        session.recorder.write(named_position(start) | {"epoch": epoch, "held_out_loss": loss}, epoch)
        if best is not None and loss > best * (1 - _SMALLEST_GAIN):
            return
        session.meta.held_out_loss = best = loss
        start = replace(start, step=0)


def meta_trained_tensors(new_ids: Tables, method: Method) -> dict[str, Any]:
    """Lists what the stage has made: phi_new and the meta networks."""
    return table_state(new_ids) | module_state("method", method)


@torch.no_grad()
def initialise_new_ids(config: Config, model: Model, method: Method, from_row: int = 0) -> None:
    """Starts phi_new: fresh draws, the mean row of phi_old (common initialisation), zeros, or the method's rows."""
    if method.initialisation == "random":
        model.new_ids.draw(config.embedding.init_std, config.seed, "new", from_row)
        return
    common = torch.zeros(model.dim, device=model.runtime.device)
    if method.initialisation == "mean":
        common = model.mean_old_row()

    def first_rows(rows: torch.Tensor) -> torch.Tensor:
        if method.initialisation == "own":
            return method.initial_rows(rows, model.item_fields(rows))
        return common.expand(len(rows), -1)

    model.new_ids.fill("new", in_whole_tiles(first_rows), range(from_row, model.num_items))
