"""The two programs that take turns, ours and the plain one; `Contestants` are in the same state, on the same rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import plain_torch as plain
from mwuf_dist.config import Config
from mwuf_dist.data.batches.histories import Histories, History
from mwuf_dist.data.batches.loader import Batch, Loader
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.methods.mwuf import MwufConfig
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.implementations import frozen_model
from mwuf_dist.training.model import Model
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.meta_train import MetaTrain, initialise_new_ids
from mwuf_dist.training.stages.pretrain import Pretrain
from mwuf_dist.training.stages.warm_up import WarmUp

Step = Callable[[], Any]


def plain_fields(store: FeatureStore) -> list[plain.Field]:
    """Our side table as the plain program's fields."""
    bags = store.features(torch.arange(store.num_rows)).to_dict()
    return [
        plain.Field(
            field.name,
            field.size,
            bags[table].values(),
            bags[table].offsets() if field.kind == "multi_valued" else None,
        )
        for field, table in zip(store.fields, store.tables, strict=True)
    ]


def plain_model(config: Config, runtime: Runtime, prepared: Prepared) -> plain.PlainModel:
    """The plain program's model of the same data, with draws of its own."""
    users, items = (FeatureStore(prepared.entity(side), runtime.device) for side in ("user", "item"))
    keys: Any = config.backbone
    return plain.PlainModel(
        keys.name,
        plain_fields(users),
        plain_fields(items),
        prepared.num_old_items,
        config.embedding.dim,
        keys.hidden,
        getattr(keys, "batch_norm", False),
        keys.dropout,
        config.embedding.init_std,
        getattr(keys, "log_neurons", 0),
        getattr(torch, keys.precision),
    )


@torch.no_grad()
def plain_copy(model: Model, config: Config, prepared: Prepared) -> plain.PlainModel:
    """The plain program's model with our weights; both have the fields in the same order."""
    copy = plain_model(config, model.runtime, prepared)
    for side, tables in ((copy.users, model.user_tables), (copy.items, model.item_tables)):
        for table, name in zip(side.tables, tables.specs, strict=True):
            table.get_parameter("weight").copy_(tables.shards(name)[0].weight)
    old = model.old_ids.shards("old")[0].weight
    copy.phi_old.weight[: len(old)] = old
    for values in (nn.Module.parameters, _moments):
        for theirs, ours in zip(values(copy.head), values(model.backbone), strict=True):
            theirs.copy_(ours)
    return copy


def _moments(module: nn.Module) -> Iterator[torch.Tensor]:
    """Running moments of its BatchNorms."""
    return (value for name, value in module.named_buffers() if "running" in name)


def full_batches(loader: Loader) -> Iterator[Batch]:
    """The full batches of the first epoch, for ever."""
    return (batch for epoch in itertools.repeat(0) for batch in loader.epoch(epoch) if batch.is_full)


class Feed:
    """Batches for ever, by the loader (ours) or by tensor indexing (plain), in the same order.

    Args:
        loader: of ours.
        padding: item that pads a history.
        history_length: of a padded history; 0: there is none.
        liked: how often each user liked each old item `[num_users, num_old]`, where histories are read off that.
    """

    def __init__(self, loader: Loader, padding: int, history_length: int, liked: torch.Tensor | None = None) -> None:
        self._ours = full_batches(loader)
        rows = [batch for batch in loader.epoch(0) if batch.is_full]
        self._columns = [torch.cat([getattr(b, name) for b in rows]) for name in ("user", "item", "label")]
        if history_length:
            histories = [padded(b.history, padding, history_length) for b in rows if b.history is not None]
            self._columns += [torch.cat(histories)]
        self._liked = liked
        self._order = torch.randperm(len(rows) * loader.batch_size)
        # Stored shuffled back, so that indexing with the permutation gives the loader's order.
        for column in self._columns:
            column[self._order] = column.clone()
        self._batch_size = loader.batch_size
        self._plain, self._third = self._index(), self._index()

    def ours(self) -> Batch:
        """The next batch from the loader."""
        return next(self._ours)

    def plain(self) -> plain.Batch:
        """The next batch by indexing columns with a slice of a permutation."""
        return next(self._plain)

    def third(self) -> plain.Batch:
        """The same for a third program, in an order of its own: the first two stay on the same rows."""
        return next(self._third)

    def _index(self) -> Iterator[plain.Batch]:
        for start_row in itertools.cycle(range(0, len(self._order), self._batch_size)):
            rows = self._order[start_row : start_row + self._batch_size]
            columns = [column[rows] for column in self._columns]
            if self._liked is None:
                yield plain.Batch(*columns)
                continue
            user, item, label = columns
            history = self._liked[user]
            history[torch.arange(len(item)), item] -= (label > 0).float()
            yield plain.Batch(user, item, label, history)


def padded(history: History, padding: int, length: int) -> torch.Tensor:
    """A batch's histories as a matrix `[b, length]`, padded behind."""
    out = torch.full((len(history.lengths), length), padding)
    out[torch.arange(length) < history.lengths[:, None]] = history.items.clamp(max=padding - 1)
    return out[history.group]


def liked_items(histories: Histories, prepared: Prepared) -> torch.Tensor:
    """How often each old item is in each user's history `[num_users, num_old]`."""
    whole = histories.whole(torch.arange(prepared.num_users))
    user = torch.repeat_interleave(torch.arange(prepared.num_users), whole.lengths)
    liked = torch.zeros(prepared.num_users, prepared.num_old_items)
    return liked.index_put((user, whole.items), torch.ones(len(user)), accumulate=True)


def products_alone(model: Model, config: Config, batch_size: int) -> dict[str, Step]:
    """The matrix products of the backbone's MLP on random rows, per stage: the compute limit."""
    keys: Any = config.backbone
    # The encoder has its MLP behind the attention.
    ends = "cold.0" if keys.name == "encoder" else "linears.0"
    first = next(module for name, module in model.backbone.named_modules() if name.endswith(ends))
    assert isinstance(first, nn.Linear)
    width, folded = first.in_features, model.backbone.fold()
    widths = [width, *keys.hidden[: 1 if keys.name == "encoder" else None], 1]
    dtype = getattr(torch, config.backbone.precision)

    def draws(a: int, b: int) -> torch.Tensor:
        return torch.randn(a, b).to(dtype)

    weights = [draws(a, b) / a**0.5 for a, b in itertools.pairwise(widths)]
    own = width if folded is None else folded.num_inputs
    own_weights = [draws(own, widths[1]) / 4, *weights[1:]] if folded else weights
    x, v = draws(batch_size, width), draws(batch_size, own)

    def forward(first: torch.Tensor, layers: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(itertools.accumulate(layers, lambda h, w: F.relu(h @ w), initial=first))

    def backward(states: list[torch.Tensor], layers: list[torch.Tensor], weight_gradients: bool) -> None:
        gradient = torch.ones_like(states[-1])
        for state, layer in zip(reversed(states[:-1]), reversed(layers), strict=True):
            if weight_gradients:
                torch.mm(state.t(), gradient)
            gradient = gradient @ layer.t()

    def step(passes: int, first: torch.Tensor, layers: list[torch.Tensor], weight_gradients: bool | None) -> None:
        for _ in range(passes):
            states = forward(first, layers)
            if weight_gradients is not None:
                backward(states, layers, weight_gradients)

    # Where the frozen parts fold, the first layer's products with what is of a user or an item alone need not be done.
    return {
        "pretrain": lambda: step(1, x, weights, True),
        "meta_train": lambda: step(2, v, own_weights, False),
        "warm_up": lambda: step(1, v, own_weights, False),
        "evaluate": lambda: step(1, v, own_weights, None),
    }


class Ours:
    """Our stages, one after the other, on batches that `next_batch` gives. Collectives on several ranks."""

    def __init__(self, job: Run, next_batch: Callable[[], Batch]) -> None:
        self._job, self._next_batch = job, next_batch
        self._following: Batch | None = None

    def _next(self) -> tuple[Batch, Batch]:
        """The next batch and the one behind it, as a run's steps get them."""
        batch, self._following = self._following or self._next_batch(), self._next_batch()
        return batch, self._following

    def pretrain(self) -> Step:
        """A step of `pretrain`."""
        stage = Pretrain(self._job.config, self._job.model, self._job.method)
        self._job.model.backbone.train()
        return lambda: stage.step(*self._next())

    def meta_train(self) -> Step:
        """A step of `meta_train`, on the weights as `pretrain` has left them."""
        job, config = self._job, self._job.config
        self.frozen = frozen_model(job.model, config.embedding)
        initialise_new_ids(config, job.model, job.method)
        self.frozen.set_users(
            ItemUsers(job.prepared, ["pretrain"], events=job.config.data.events), range(job.model.num_old)
        )
        stage = MetaTrain(config, job.model, self.frozen, job.method)
        return lambda: stage.step(*self._next())

    def warm_up(self) -> Step:
        """A step of `warm_up`, on rows of `pretrain` so that there are enough of them."""
        job = self._job
        stage = WarmUp(job.config, job.model, self.frozen, job.method)
        optimizer = Adam(dense=[], tables=[(job.model.new_ids, job.config.warm_up.learning_rate)])

        def step() -> Any:
            batch, following = self._next()
            return stage.step(batch, optimizer, following)

        return step

    def evaluate(self) -> Step:
        """Scoring of a batch with warm embeddings: of new items, where the frozen parts fold."""
        job, frozen = self._job, self.frozen
        stage = WarmUp(job.config, job.model, frozen, job.method)
        frozen.serve(stage.scored_rows)
        if job.model.backbone.fold() is None:

            def scored() -> torch.Tensor:
                batch, _ = self._next()
                return frozen.served_logit(batch.user, batch.item, batch.history)

            return scored
        # New items only may have a part with the embedding they are scored with.
        batch_size = len(self._next()[0].user)
        columns = [column.to(job.runtime.device) for column in scored_columns(job.prepared, batch_size)]
        turns = slices(len(columns[0]), batch_size)

        def served() -> torch.Tensor:
            rows = next(turns)
            user, item = (column[rows].long() for column in columns)
            return frozen.served_logit(user, item)

        return served


class Plain:
    """The plain program's stages, likewise; with weights of its own but for what is copied into them."""

    def __init__(
        self,
        config: Config,
        model: plain.PlainModel,
        num_items: int,
        next_batch: Callable[[], plain.Batch],
        compiles: bool = False,
    ) -> None:
        self._config, self._num_items, self._next, self._compiles = config, num_items, next_batch, compiles
        self.model = model
        if compiles:
            plain.compiled(model)

    def pretrain(self) -> Step:
        """A step of `pretrain`."""
        optimizer = plain.adam(self.model, self._config.pretrain.learning_rate)
        return lambda: plain.pretrain_step(self.model, optimizer, self._next())

    def meta_train(self) -> Step:
        """A step of `meta_train`."""
        config, frozen = self._config, plain.freeze(self.model)
        self.phi_new = plain.common_initialisation(frozen, self._num_items)
        assert isinstance(config.method, MwufConfig)
        self.meta = plain.MetaNetworks(frozen.items.out_dim, config.embedding.dim, config.method.hidden, True)
        if self._compiles:
            plain.compiled(self.meta)
        self.user_mean = self.phi_new.weight.detach().clone()
        cold = plain.adam(self.phi_new, config.meta_train.learning_rate_cold)
        warm = plain.adam(self.meta, config.meta_train.learning_rate_warm)
        args = (frozen, self.phi_new, self.meta, self.user_mean, cold, warm)
        return lambda: sum(plain.meta_train_step(*args, self._next()))

    def warm_up(self) -> Step:
        """A step of `warm_up`."""
        optimizer = plain.adam(self.phi_new, self._config.warm_up.learning_rate)
        return lambda: plain.warm_up_step(self.model, self.phi_new, optimizer, self._next())


class Contestants:
    """Both programs in the same state, stage by stage."""

    def __init__(self, job: Run) -> None:
        config, self.model, self.runtime = job.config, job.model, job.runtime
        self.config, self.job, self.batch_size = config, job, config.pretrain.batch_size
        self.limit = products_alone(self.model, config, self.batch_size)
        histories = self.model.histories(job.prepared, 0)
        rows = Loader(job.prepared, ["pretrain"], self.batch_size, config.seed, job.runtime, histories=histories)
        liked = liked_items(histories, job.prepared) if histories and not self.model.backbone.history_length else None
        self.feed = Feed(rows, self.model.num_old + 1, self.model.backbone.history_length, liked)
        self.ours = Ours(job, self.feed.ours)
        copy = plain_copy(self.model, config, job.prepared)
        self.plain = Plain(config, copy, self.model.num_items, self.feed.plain)

    def pretrain(self) -> tuple[Step, Step]:
        """(plain, ours) steps of `pretrain`."""
        return self.plain.pretrain(), self.ours.pretrain()

    def meta_train(self) -> tuple[Step, Step]:
        """(plain, ours) steps of `meta_train`, on our pretrained weights."""
        ours = self.ours.meta_train()
        self.plain.model = plain_copy(self.model, self.config, self.job.prepared)
        theirs = self.plain.meta_train()
        with torch.no_grad():
            for weight, of_ours in zip(self.plain.meta.parameters(), self.job.method.parameters(), strict=True):
                weight.copy_(of_ours)
            self.plain.user_mean.copy_(self.ours.frozen.inputs(torch.arange(self.model.num_items))[1])
        return theirs, ours

    def warm_up(self) -> tuple[Step, Step]:
        """(plain, ours) steps of `warm_up`."""
        with torch.no_grad():
            self.plain.phi_new.weight.copy_(self.model.new_ids.shards("new")[0].weight)
        return self.plain.warm_up(), self.ours.warm_up()

    def evaluate(self) -> tuple[Step, Step]:
        """(plain, ours) scoring of one batch with warm embeddings."""
        ours = self.ours.evaluate()
        return self._scoring(self.plain), ours

    def compiled(self, stage: str) -> Step:
        """The plain program's step of a stage by `torch.compile`, after the stage's own method was called."""
        if stage in ("pretrain", "meta_train"):
            copy = plain_copy(self.model, self.config, self.job.prepared)
            self._compiled = Plain(self.config, copy, self.model.num_items, self.feed.third, compiles=True)
        return self._scoring(self._compiled) if stage == "evaluate" else getattr(self._compiled, stage)()

    def _scoring(self, theirs: Plain) -> Step:
        items = plain.warm_embeddings(theirs.model, theirs.phi_new, theirs.meta, theirs.user_mean)
        if self.model.backbone.fold() is None:
            return lambda: plain.score(theirs.model, items, self.feed.plain())
        widened = [column.long() for column in scored_columns(self.job.prepared, self.batch_size)]
        turns = slices(len(widened[0]), self.batch_size)

        def scored() -> torch.Tensor:
            rows = next(turns)
            user, item = (column[rows] for column in widened)
            return plain.score(theirs.model, items, plain.Batch(user, item, user))

        return scored


def scored_columns(prepared: Prepared, num_rows: int) -> list[torch.Tensor]:
    """(users, items) of the test set as they are stored, over again where it has fewer than `num_rows` rows."""
    stored = prepared.columns("test", ("user", "item"))
    columns = (stored[name] for name in ("user", "item"))
    return [torch.from_numpy(np.resize(column, max(num_rows, len(column)))) for column in columns]


def slices(num_rows: int, batch_size: int) -> Iterator[slice]:
    """The rows of full batches, in stored order, for ever: how `WarmUp.score` reads them."""
    starts = range(0, num_rows - batch_size + 1, batch_size)
    return (slice(start, start + batch_size) for start in itertools.cycle(starts))
