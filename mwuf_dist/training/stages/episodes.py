"""First part of stage `meta_train` for a method that learns from episodes: old items played as new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mwuf_kernels import without_library

from mwuf_dist.config import Config
from mwuf_dist.data.batches.episodes import EpisodeLoader, episodes_of
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import Episodes, Method
from mwuf_dist.runtime import generator_seed
from mwuf_dist.training.checkpoint.files import Cursor
from mwuf_dist.training.checkpoint.save import module_state
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.loop import Session
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.stages.meta_train import held_out_items, train_epochs


@dataclass
class EpisodeTrain:
    """Trains the method's weights on `Method.episode_loss`; everything else, phi_new too, is left alone."""

    config: Config
    frozen: Frozen
    method: Method

    def __post_init__(self) -> None:
        self.optimizer = Adam([("method", self.method, self.config.meta_train.learning_rate_warm)], tables=[])
        self._fetches = self.frozen.fetches(with_inputs=True, with_rows=False)
        self._half = self.config.data.warm_rows

    def tensors(self) -> dict[str, Any]:
        """Returns the state in the middle of it, without what `pretrain` made."""
        return module_state("method", self.method) | self.optimizer.state()

    def run(self, session: Session, prepared: Prepared, start: Cursor, tensors: Callable[[], dict[str, Any]]) -> None:
        """Trains from `start` to the end; `tensors` gives the whole state to save."""
        settings, seed = self.config.meta_train, self.config.seed
        histories = self.frozen.model.histories(prepared, 0)
        self._half = prepared.rows_of(self.config.data.warm_rows)
        parts: tuple[np.ndarray | None, ...] = (None,)  # all items
        if settings.epochs == "auto":
            held_out = held_out_items(seed, prepared.num_old_items).numpy()
            parts = (~held_out, held_out)
        loaders = [
            EpisodeLoader(prepared, self._half, settings.batch_size, seed, session.runtime, items, histories)
            for items in parts
        ]

        def held_out_loss() -> float:
            total = torch.zeros(2, dtype=torch.float64, device=session.runtime.device)
            for batch in loaders[1].epoch(0):
                total[0] += self.loss(batch).detach().double() * batch.num_rows
                total[1] += batch.weight.sum().double()
            loss, rows = session.runtime.sum(total).tolist()
            return loss / rows

        train_epochs(session, start, loaders[0], settings, self.step, tensors, held_out_loss)

    def step(self, batch: Batch, _: Batch | None = None) -> torch.Tensor:
        """Takes one step; returns this rank's part of the mean loss."""
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.sum_gradients(self.frozen.runtime)
        self.optimizer.step()
        return loss.detach()

    def loss(self, batch: Batch) -> torch.Tensor:
        """Computes this rank's part of the mean episode loss of a batch of `EpisodeLoader`."""
        half = self._half
        items = batch.item.view(-1, 2 * half)[:, 0]
        num_episodes = len(items)
        ids = self.frozen.with_inputs(self._fetches.fetched(batch))
        part = self.frozen.part_of(ids).unflatten(0, (num_episodes, 2, half))  # [E, 2, K, P]
        label = batch.label.view(num_episodes, 2, half)
        counted = None if batch.row_weight is None else batch.row_weight.view(num_episodes, 2, half)

        def loss_of(which: int) -> Callable[[torch.Tensor], torch.Tensor]:
            def loss(v: torch.Tensor) -> torch.Tensor:
                rows = v[:, None].expand(-1, half, -1).reshape(num_episodes * half, -1)  # [E*K, D]
                with without_library():  # whose gradients cannot be differentiated, as methods do here
                    logit = self.frozen.logit(rows, part[:, which].flatten(0, 1)).view(num_episodes, half)
                of_row = None if counted is None else counted[:, which]
                return F.binary_cross_entropy_with_logits(logit, label[:, which], of_row, reduction="none").mean(1)

            return loss

        runtime = self.frozen.runtime

        def normal(width: int) -> torch.Tensor:
            # Drawn for the global batch, of which ours is a part; padding gets zeros.
            seed = generator_seed(self.config.seed, 5, batch.epoch, batch.step)
            per_batch = self.config.meta_train.batch_size // (2 * half)
            draws = torch.randn(per_batch, width, generator=torch.Generator().manual_seed(seed))
            share = episodes_of(runtime, per_batch)
            draws = draws[share.start : share.stop]
            return F.pad(draws, (0, 0, 0, num_episodes - len(draws))).to(runtime.device)

        assert ids.inputs is not None
        item_context = ids.inputs[0].index_select(0, ids.index.view(-1, 2 * half)[:, 0])
        losses = self.method.episode_loss(Episodes(items, item_context, loss_of(0), loss_of(1), normal))
        weight = batch.weight.view(num_episodes, -1)[:, 0]
        return (losses * weight).sum() * (2 * half / batch.num_rows)
