"""How fast are the three training stages and evaluation, against a plain PyTorch program and the matrix products alone?

    python -m benchmarks.train_step configs/movielens-1m.toml

Everything is timed in one process, interleaved (plain, ours, limit, plain, ours, limit, ...), and medians are shown.
Both programs do the same work on the same rows: equal model, weights, optimizer and batches, and their losses of the
first steps are compared before anything is timed. The limit is the rate at which the backbone's matrix products alone
would run, forward and backward as far as the stage needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import plain_torch as plain
from mwuf_dist.config import Config, UserError, load_config
from mwuf_dist.data.loader import Batch, Loader
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.runtime import start
from mwuf_dist.training.frozen import Frozen
from mwuf_dist.training.meta_train import MetaTrain, initialise_new_ids
from mwuf_dist.training.model import Model
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.pretrain import Pretrain
from mwuf_dist.training.run import Run, _prepare
from mwuf_dist.training.warm_up import WarmUp

STAGES = ("pretrain", "meta_train", "warm_up", "evaluate")
# Losses of the two programs over the first steps agree to this, relative to the loss.
LOSS_TOLERANCE = 1e-5

Step = Callable[[], Any]


def plain_fields(store: Any) -> list[plain.Field]:
    """Our side table as the plain program's fields."""
    return [
        plain.Field(field.name, field.size, values, offsets)
        for field, values, offsets in zip(store.fields, store._values, store._offsets, strict=True)
    ]


def plain_copy(model: Model, config: Config) -> plain.PlainModel:
    """The plain program's model with our weights; its fields stand in another order in the first layer."""
    copy = plain.PlainModel(
        config.backbone.name,
        plain_fields(model.users),
        plain_fields(model.items),
        model.num_old,
        model.dim,
        config.backbone.hidden,
        config.backbone.batch_norm,
        config.backbone.dropout,
    )
    with torch.no_grad():
        for side, tables in ((copy.users, model.user_tables), (copy.items, model.item_tables)):
            for table, name in zip(side.tables, tables.specs, strict=True):
                table.get_parameter("weight").copy_(tables.shards(name)[0].weight)
        copy.phi_old.weight.copy_(model.old_ids.shards("old")[0].weight)
        # Ours: item ID, item fields, user fields. Theirs: user fields, item ID, item fields.
        width = (1 + model.shape.num_item_fields) * model.dim
        ours = dict(model.backbone.named_parameters())
        theirs = [m for m in copy.mlp if isinstance(m, nn.Linear)]
        pairs = [("linear", copy.linear), *((f"mlp.linears.{i}", m) for i, m in enumerate(theirs[:-1]))]
        for name, module in [*pairs, ("mlp.out", theirs[-1])]:
            weight = ours[f"{name}.weight"]
            if name in ("linear", "mlp.linears.0"):
                weight = torch.cat([weight[:, width:], weight[:, :width]], dim=1)
            module.weight.copy_(weight)
            module.bias.zero_()
            if f"{name}.bias" in ours:
                module.bias.copy_(ours[f"{name}.bias"])
    return copy


class Feed:
    """Batches for ever, by the loader (ours) or by tensor indexing (plain), in the same order."""

    def __init__(self, loader: Loader) -> None:
        self._ours = (batch for epoch in itertools.repeat(0) for batch in loader.epoch(epoch) if batch.is_full)
        rows = [batch for batch in loader.epoch(0) if batch.is_full]
        self._columns = tuple(torch.cat([getattr(b, name) for b in rows]) for name in ("user", "item", "label"))
        self._order = torch.randperm(len(rows) * loader.batch_size)
        # Stored shuffled back, so that indexing with the permutation gives the loader's order.
        for column in self._columns:
            column[self._order] = column.clone()
        self._batch_size = loader.batch_size
        self._plain = self._index()

    def ours(self) -> Batch:
        """The next batch from the loader."""
        return next(self._ours)

    def plain(self) -> plain.Batch:
        """The next batch by indexing columns with a slice of a permutation."""
        return next(self._plain)

    def _index(self) -> Iterator[plain.Batch]:
        for start_row in itertools.cycle(range(0, len(self._order), self._batch_size)):
            rows = self._order[start_row : start_row + self._batch_size]
            yield plain.Batch(*(column[rows] for column in self._columns))


def products_alone(model: Model, config: Config, batch_size: int) -> dict[str, Step]:
    """The matrix products of the backbone on random rows, per stage: the compute limit."""
    width = model.shape.num_fields * model.dim
    widths = [width, *config.backbone.hidden, 1]
    weights = [torch.randn(a, b) / a**0.5 for a, b in itertools.pairwise(widths)]
    item_widths = [torch.randn(model.dim, widths[1]) / 4, *weights[1:]]
    x, v = torch.randn(batch_size, width), torch.randn(batch_size, model.dim)

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

    # With everything but the item embedding frozen, the first layer's other products need not be done at all.
    return {
        "pretrain": lambda: step(1, x, weights, True),
        "meta_train": lambda: step(2, v, item_widths, False),
        "warm_up": lambda: step(1, v, item_widths, False),
        "evaluate": lambda: step(1, v, item_widths, None),
    }


class Contestants:
    """Both programs in the same state, stage by stage."""

    def __init__(self, job: Run) -> None:
        config, self.model, self.runtime = job.config, job.model, job.runtime
        self.config, self.job, self.batch_size = config, job, config.pretrain.batch_size
        self.limit = products_alone(self.model, config, self.batch_size)
        self.feed = Feed(Loader(job.prepared, ["pretrain"], self.batch_size, config.seed, job.runtime))
        self.plain = plain_copy(self.model, config)

    def pretrain(self) -> tuple[Step, Step]:
        """(plain, ours) steps of `pretrain`."""
        optimizer = plain.adam(self.plain, self.config.pretrain.learning_rate)
        stage = Pretrain(self.config, self.model, self.job.method)
        self.model.backbone.train()
        return (
            lambda: plain.pretrain_step(self.plain, optimizer, self.feed.plain()),
            lambda: stage.step(self.feed.ours()),
        )

    def meta_train(self) -> tuple[Step, Step]:
        """(plain, ours) steps of `meta_train`, on our pretrained weights."""
        job, config = self.job, self.config
        self.frozen = Frozen(self.model, config.embedding, job._mean_user())
        initialise_new_ids(config, self.model, job.method)
        self.frozen.set_users(ItemUsers(job.prepared, ["pretrain"]), range(self.model.num_old))
        stage = MetaTrain(config, self.model, self.frozen, job.method)
        self.plain = plain.freeze(plain_copy(self.model, config))
        self.phi_new = plain.common_initialisation(self.plain, self.model.num_items)
        self.meta = plain.MetaNetworks(self.plain.items.out_dim, self.model.dim, config.method.hidden, True)
        with torch.no_grad():
            for theirs, ours in zip(self.meta.parameters(), job.method.parameters(), strict=True):
                theirs.copy_(ours)
            _, self.user_mean = self.frozen.inputs(torch.arange(self.model.num_items))
        cold = plain.adam(self.phi_new, config.meta_train.learning_rate_cold)
        warm = plain.adam(self.meta, config.meta_train.learning_rate_warm)
        args = (self.plain, self.phi_new, self.meta, self.user_mean, cold, warm)
        return (
            lambda: sum(plain.meta_train_step(*args, self.feed.plain())),
            lambda: stage.step(self.feed.ours()),
        )

    def warm_up(self) -> tuple[Step, Step]:
        """(plain, ours) steps of `warm_up`, on rows of `pretrain` so that there are enough of them."""
        stage = WarmUp(self.config, self.model, self.frozen, self.job.method)
        ours = Adam(dense=[], tables=[(self.model.new_ids, self.config.warm_up.learning_rate)])
        with torch.no_grad():
            self.phi_new.weight.copy_(self.model.new_ids.shards("new")[0].weight)
        theirs = plain.adam(self.phi_new, self.config.warm_up.learning_rate)
        return (
            lambda: plain.warm_up_step(self.plain, self.phi_new, theirs, self.feed.plain()),
            lambda: stage.step(self.feed.ours(), ours),
        )

    def evaluate(self) -> tuple[Step, Step]:
        """(plain, ours) scoring of one batch with warm embeddings."""
        stage = WarmUp(self.config, self.model, self.frozen, self.job.method)
        items = plain.warm_embeddings(self.plain, self.phi_new, self.meta, self.user_mean)

        def ours() -> None:
            batch = self.feed.ours()
            with torch.no_grad():
                stage._logit(batch.user, batch.item)

        return lambda: plain.score(self.plain, items, self.feed.plain()), ours


def time_interleaved(steps: dict[str, Step], num_steps: int, rounds: int) -> dict[str, float]:
    """Median seconds per step of each contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            clock = time.perf_counter()
            for _ in range(num_steps):
                step()
            seconds[name].append((time.perf_counter() - clock) / num_steps)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(job: Run, num_steps: int, rounds: int) -> list[dict[str, Any]]:
    """One record per stage."""
    contestants = Contestants(job)
    records = []
    for stage in STAGES:
        theirs, ours = getattr(contestants, stage)()
        if stage != "evaluate":
            for _ in range(5):
                expected, found = float(theirs()), float(ours())
                assert abs(found - expected) <= LOSS_TOLERANCE * expected, f"{stage}: losses {found} and {expected}"
        steps = {"plain": theirs, "ours": ours, "limit": contestants.limit[stage]}
        time_interleaved(steps, 3, 1)  # warm
        seconds = time_interleaved(steps, num_steps, rounds)
        rates = {name: contestants.batch_size / value for name, value in seconds.items()}
        records.append({"stage": stage, **{f"{name}_samples_per_s": round(rate) for name, rate in rates.items()}})
    return records


def show(records: list[dict[str, Any]]) -> None:
    """Prints the table."""
    print(f"{'':<12}{'plain':>12}{'ours':>12}{'ratio':>8}{'products alone':>16}{'share':>8}   thousand samples/s")
    for record in records:
        plain_rate, ours, limit = (record[f"{name}_samples_per_s"] for name in ("plain", "ours", "limit"))
        print(
            f"{record['stage']:<12}{plain_rate / 1e3:>12.0f}{ours / 1e3:>12.0f}{ours / plain_rate:>8.2f}"
            f"{limit / 1e3:>16.0f}{ours / limit:>8.0%}"
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/demo.toml"))
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant; the median counts")
    parser.add_argument("--json", type=Path, help="write the records here")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    config = load_config(arguments.config, {"checkpoint": {"every_s": 0.0}, "runtime": {"progress": "off"}})
    config = dataclasses.replace(
        config,
        pretrain=dataclasses.replace(config.pretrain, batch_size=arguments.batch_size, weight_decay=0.0),
        method=dataclasses.replace(config.method, name="mwuf", residual=True),
        backbone=dataclasses.replace(config.backbone, batch_norm=False, dropout=0.0),
    )
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        job = Run(config, Path(folder), runtime, _prepare(config, runtime))
        records = measure(job, arguments.steps, arguments.rounds)
    threads = torch.get_num_threads()
    print(f"{config.data.name}, {config.backbone.name}, batch {arguments.batch_size}, {threads} thread(s), float32")
    show(records)
    if arguments.json:
        content = {"config": config.data.name, "backbone": config.backbone.name, "threads": threads}
        arguments.json.write_text(json.dumps(content | {"batch": arguments.batch_size, "records": records}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"train_step: {error}", file=sys.stderr)
        sys.exit(2)
