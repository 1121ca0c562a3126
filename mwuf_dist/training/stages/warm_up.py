"""Stages `warm_up` and `evaluate`: new items' rows of phi_new by L_cold, phase by phase, and the scores in between."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from mwuf_dist.config import WARM_SETS, Config
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.data.batches.loader import Batch, Loader
from mwuf_dist.data.schema import row_column
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.tiles import TILE_ROWS, in_whole_tiles
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.methods import Method
from mwuf_dist.training.checkpoint.files import Cursor
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.loop import Session, train
from mwuf_dist.training.model import Model
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.stages.item_fit import ItemFit
from mwuf_dist.training.stages.meta_train import initialise_new_ids

# Rows scored at once by a rank.
_SCORE_ROWS = 1 << 15
_SCALED_ITEMS = 1 << 16


@dataclass
class WarmUp:
    """The phases after `cold`. Only rows of new items in phi_new move; every method has the same budget."""

    config: Config
    model: Model
    frozen: Frozen
    method: Method
    # Of the sets that are finished, since `finish_phase`.
    histories: Histories | None = field(init=False, default=None)
    _fit: ItemFit | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._fetches = self.frozen.fetches()
        if self.method.fits_items:
            self._fit = ItemFit(self.model, self.frozen, self.method)

    def run_phase(self, session: Session, prepared: Prepared, phase: int) -> None:
        """Trains the phase's rows (1, 2, 3 for warm-a, b, c), with a fresh optimizer.

        It is short: a run that is stopped within it starts the phase again from the checkpoint at its beginning.
        """
        if self._fit is not None:
            self._fit_phase(self._fit, session, prepared, phase)
            return
        settings = self.config.warm_up
        splits = WARM_SETS[:phase] if settings.carry_over else WARM_SETS[phase - 1 : phase]
        optimizer = Adam(dense=[], tables=[(self.model.new_ids, settings.learning_rate)])
        self.model.new_ids.reset_optimizer()
        seed = self.config.seed * len(WARM_SETS) + phase
        histories = self.model.histories(prepared, phase - 1)
        loader = Loader(prepared, splits, settings.batch_size, seed, session.runtime, histories=histories)

        def step(batch: Batch, following: Batch | None) -> torch.Tensor:
            return self.step(batch, optimizer, following)

        train(session, Cursor("warm_up", phase), loader, settings.epochs, step, tensors=None)
        if self.method.regenerates:
            new_items = range(self.model.num_old, self.model.num_items)
            self.model.new_ids.fill("new", in_whole_tiles(self._regenerated), new_items)

    @torch.no_grad()
    def _regenerated(self, items: torch.Tensor) -> torch.Tensor:
        return self.method.regenerated_rows(self.model.new_ids.rows(items), self.frozen.inputs(items)[0])

    def _fit_phase(self, fit: ItemFit, session: Session, prepared: Prepared, phase: int) -> None:
        clock = time.perf_counter()
        # The first rows are those before any click, whatever the phases before have made of them.
        initialise_new_ids(self.config, self.model, self.method, from_row=self.model.num_old)
        items = torch.arange(self.model.num_old, self.model.num_items, device=self.model.runtime.device)
        with torch.no_grad():
            start = self.model.new_ids.rows(items)
        num_rows = fit.run_phase(prepared, phase, start)
        session.count("warm_up", num_rows, time.perf_counter() - clock)

    def step(self, batch: Batch, optimizer: Adam, following: Batch | None = None) -> torch.Tensor:
        """Takes one step on L_cold; returns this rank's part of it.

        `following` is the batch of the next step, if that is known.
        """
        loss = self.loss_with_gradients(batch, following)
        optimizer.sum_gradients(self.model.runtime)
        optimizer.step()
        return loss

    def loss_with_gradients(self, batch: Batch, following: Batch | None = None) -> torch.Tensor:
        """Computes L_cold of this rank's rows, and gives phi_new its gradient."""
        ids = self._fetches.fetched(batch, following)
        rows = self.model.new_ids.rows_to_train(ids.items)
        losses, (d_rows,) = self.frozen.losses_and_gradients(batch, rows, ids)
        self.model.new_ids.set_gradient(ids.items, rows, d_rows)
        return losses.sum()

    def finish_phase(self, prepared: Prepared, phase: int) -> None:
        """Takes U(v) of the new items and the histories from the sets that are finished now: none is still to score.

        With that, and phi_new as it is now, new items are ready to be scored.
        """
        users = ItemUsers(prepared, WARM_SETS[:phase], events=self.config.data.events)
        self.frozen.set_users(users, range(self.model.num_old, self.model.num_items))
        self.histories = self.model.histories(prepared, phase)
        self.frozen.serve(self.scored_rows)

    def scored_rows(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings [n, D] that items [n] are scored with, as they are now."""
        return self.method.warm_rows(self.model.new_ids.rows(items), *self.frozen.inputs(items))

    @torch.no_grad()
    def mean_abs_scale(self) -> float | None:
        """Returns mean |scale| over (the first 65,536) new items: a step in a row moves what is scored by so much more.

        None for a method without a scale. A collective.
        """
        if not self.method.meta_trained:
            return None
        first = self.model.num_old
        last = min(self.model.num_items, first + _SCALED_ITEMS)
        items = torch.arange(first, last, device=self.model.runtime.device)
        pair = self.method.scale_and_shift(*self.frozen.inputs(items))
        return None if pair is None else float(pair[0].abs().mean())

    @torch.no_grad()
    def score(self, prepared: Prepared, split: str) -> np.ndarray | None:
        """Gives logits of a split's rows in stored order, float64 [n], on the main rank.

        None on the others. A collective.
        """
        runtime = self.model.runtime
        names = tuple(row_column(one.name) for one in prepared.row_fields)
        num_rows = prepared.num_rows(split)
        begin = runtime.rank * num_rows // runtime.world_size
        end = (runtime.rank + 1) * num_rows // runtime.world_size
        columns = prepared.read_rows(split, begin, end, ("user", "item", *names))
        scores = []
        # Known without asking: the rank that has most has so many, and each looks up as many at once.
        most = -(-num_rows // runtime.world_size)

        def padded(values: torch.Tensor, size: int) -> torch.Tensor:
            return torch.nn.functional.pad(values, (0, size - len(values)))

        def given(name: str, rows: slice) -> torch.Tensor:
            part = columns[name][rows.start - begin : rows.stop - begin]
            return torch.from_numpy(part.astype(np.int64)).to(runtime.device)

        for index in range(-(-most // _SCORE_ROWS)):
            size = min(_SCORE_ROWS, most - index * _SCORE_ROWS)
            size = -(-size // TILE_ROWS) * TILE_ROWS  # equal rows have equal bits, whichever rank scores them
            first = min(begin + index * _SCORE_ROWS, end)
            rows = slice(first, min(first + _SCORE_ROWS, end))
            user, item = given("user", rows), given("item", rows)
            values = torch.stack([padded(given(name, rows), size) for name in names], dim=1) if names else None
            users, items, history = padded(user, size), padded(item, size), None
            if self.histories is not None:
                before = torch.from_numpy(self.histories.before(split, rows.start, rows.stop).astype(np.int64))
                history = self.histories.of(users, padded(before.to(runtime.device), size), in_pretrain=False)
            logits = self.frozen.served_logit(users, items, history, values)
            scores.append(logits[: len(user)].double().cpu().numpy())
        return runtime.gather_rows(np.concatenate([np.empty(0), *scores]))
