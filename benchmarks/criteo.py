"""How fast is a step of `pretrain` with DLRM on data of Criteo's shape, against plain TorchRec and the roofline?

    python -m benchmarks.criteo                      # one rank and two, batch 2048
    python -m benchmarks.criteo --part-of-rows 64    # smaller tables

Made-up data: 26 tables whose sizes keep the proportions of the published ones of Criteo Kaggle (33.8 million rows, at
d = 128 17.3 GB), each cut to `1 / --part-of-rows` of its rows and at least 3, 13 numbers, and IDs by Zipf's law. Criteo
has neither users nor items: here its largest table is the item's ID, the next the user's, and the others are their
fields, so that a row has as many lookups in as large tables. The numbers are a vector of the item.

The alternative is TorchRec's own DLRM (`torchrec.models.dlrm`) with MLPerf's layers, its tables sharded by TorchRec's
planner and trained by fused row-wise Adagrad, its MLPs by Adam, on batches that are ready in memory; on several ranks
under TorchRec's DistributedModelParallel. Ours has the loader in it. Before anything is timed both get the same weights
and their first losses are compared; then they take turns, with one rank by processor time, with two by the clock. The
limit is the rate that this machine's copies allow and its matrix products, the faster of torch's and oneDNN's, measured
in the same turns: see roofline.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.models.dlrm import DLRM
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from benchmarks import roofline
from benchmarks.growth import _draw
from benchmarks.made_up import write_prepared
from benchmarks.record import Figure, Record, Row, command_line, read, table
from mwuf_dist.config import Config, build
from mwuf_dist.data import shards, vectors
from mwuf_dist.data.batches.loader import Batch, Loader
from mwuf_dist.data.schema import Field, RawDataset
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import SPLITS
from mwuf_dist.methods import build_method
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training.model import Model
from mwuf_dist.training.stages.pretrain import Pretrain

# Rows of the 26 tables of Criteo Kaggle, as facebookresearch/dlrm counts them.
KAGGLE_ROWS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
NUM_NUMBERS, DIM = 13, 128
BOTTOM, TOP = (512, 256), (1024, 1024, 512, 256)  # of MLPerf's DLRM
GOALS = {"alternative": 1.5, "limit": 0.5}
_ROWS, _READY_BATCHES, _WARM_STEPS = 200_000, 8, 2
_LOSS_TOLERANCE = 1e-4
_ADAGRAD_LR = 0.02


def table_rows(part: int) -> list[int]:
    """Rows of each table, largest first, cut to a part."""
    return sorted((max(3, rows // part) for rows in KAGGLE_ROWS), reverse=True)


def make_data(folder: Path, part: int) -> Prepared:
    """A prepared folder: items are the largest table, users the next, every other one a field of either."""
    random = np.random.default_rng(0)
    num_items, num_users, *others = table_rows(part)
    columns = {
        "user": _draw(random, num_users, _ROWS, "zipf"),
        "item": _draw(random, num_items, _ROWS, "zipf"),
        "label": random.integers(2, size=_ROWS, dtype=np.int8),
        "time": np.arange(_ROWS),
    }
    sides: dict[str, dict[str, np.ndarray]] = {
        "item": {"raw_id": np.arange(num_items)},
        "user": {"raw_id": np.arange(num_users)},
    }
    sides["user"]["user_id"] = np.arange(1, num_users + 1, dtype=np.int32)
    fields = [Field("user_id", "categorical", "user", num_users + 1)]
    for place, size in enumerate(others):
        side, num = ("item", num_items) if place % 2 == 0 else ("user", num_users)
        sides[side][f"c{place}"] = _draw(random, size, num, "zipf")
        fields.append(Field(f"c{place}", "categorical", side, size))
    items = pa.table(sides["item"]).append_column(
        "numbers", vectors.column_of(random.standard_normal((num_items, NUM_NUMBERS), dtype=np.float32))
    )
    fields.append(Field("numbers", "vector", "item", NUM_NUMBERS))
    ordered = sorted(fields, key=lambda field: field.side, reverse=True)  # users' before items'
    dataset = RawDataset(pa.table(columns), pa.table(sides["user"]), items, tuple(ordered))
    rows = {name: np.arange(_ROWS if name == "pretrain" else 1) for name in SPLITS}
    return write_prepared(dataset, num_items, rows, folder)


def settings(batch_size: int) -> Config:
    """The run: tables by fused row-wise Adagrad, as the alternative trains them."""
    return build(
        {
            "embedding": {"dim": DIM, "optimizer": "rowwise_adagrad", "rowwise_adagrad_lr": _ADAGRAD_LR},
            "backbone": {"name": "dlrm", "bottom": BOTTOM, "hidden": TOP},
            "pretrain": {"batch_size": batch_size},
            "runtime": {"progress": "off", "threads": 1, "device": "cpu"},
        }
    )


class Plain:
    """TorchRec's DLRM on this rank's part of ready batches.

    Args:
        model: ours, whose tables it has too, and whose weights it starts with.
        batches: of this rank.
        learning_rate: of the MLPs.
    """

    def __init__(self, model: Model, batches: list[Batch], learning_rate: float) -> None:
        self._names = ["old", *model.items.tables, *model.users.tables]
        sizes = [model.num_old, *(field.size for field in (*model.items.fields, *model.users.fields))]
        configs = [
            EmbeddingBagConfig(name=name, embedding_dim=DIM, num_embeddings=size, feature_names=[name])
            for name, size in zip(self._names, sizes, strict=True)
        ]
        bags = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        apply_optimizer_in_backward(RowWiseAdagrad, bags.parameters(), {"lr": _ADAGRAD_LR})
        dlrm = DLRM(bags, NUM_NUMBERS, [*BOTTOM, DIM], [*TOP, 1])
        self.model = DistributedModelParallel(dlrm, device=torch.device("cpu"))
        dense = [weight for name, weight in dlrm.named_parameters() if "embedding_bag" not in name]
        self._optimizer = torch.optim.Adam(dense, learning_rate)
        self.num_weights = sum(weight.numel() for weight in dense)
        self._ready = itertools.cycle([self._of(model, batch) for batch in batches])

    def _of(self, model: Model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fields = [
            store.ids.by_field(index)[0] for store, index in ((model.items, batch.item), (model.users, batch.user))
        ]
        first = [store._first.repeat_interleave(len(batch.item)) for store in (model.items, model.users)]
        ids = [batch.item, *(found - shift for found, shift in zip(fields, first, strict=True))]
        return model.items.vectors["numbers"][batch.item], torch.cat(ids), batch.label

    def step(self) -> torch.Tensor:
        """One step; the mean loss of this rank's rows."""
        dense, ids, label = next(self._ready)
        lengths = torch.ones(len(ids), dtype=torch.int64)
        self._optimizer.zero_grad()
        logit = self.model(dense, KeyedJaggedTensor(self._names, ids, lengths=lengths)).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(logit, label)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


@torch.no_grad()
def _same_weights(model: Model, plain: Plain) -> None:
    """Gives our model what the plain one starts with; the numbers' map is widened by zeros."""
    weights = dict(plain.model.module.named_parameters())
    backbone: Any = model.backbone
    bottom = [weight for name, weight in weights.items() if "dense_arch" in name]
    top = [weight for name, weight in weights.items() if "over_arch" in name]
    (numbers,) = model.vector_fields.maps
    numbers.zero_()[:, :NUM_NUMBERS] = torch.eye(NUM_NUMBERS)
    ours = [weight for linear in backbone.bottom for weight in (linear.weight, linear.bias)]
    ours[0].zero_()[:, :NUM_NUMBERS] = bottom[0]
    for mine, theirs in zip(ours[1:], bottom[1:], strict=True):
        mine.copy_(theirs)
    linears = [*backbone.mlp.linears, backbone.mlp.out]
    for mine, theirs in zip((w for linear in linears for w in (linear.weight, linear.bias)), top, strict=True):
        mine.copy_(theirs)
    # Tables of zeros on both sides would hide the products: every row is the same draw.
    row = torch.randn(DIM, generator=torch.Generator().manual_seed(1)) / DIM**0.5
    for tables in model.pretrained_tables:
        for name in tables.specs:
            for shard in tables.shards(name):
                shard.weight.copy_(row[shard.column : shard.column + shard.weight.shape[1]].expand_as(shard.weight))
    for name, weight in weights.items():
        if "embedding_bag" in name:
            for part in _parts(weight):
                if part.numel():  # else another rank holds the table
                    part.copy_(row.expand_as(part))


def _parts(weight: Any) -> list[torch.Tensor]:
    """What this rank holds of a table, however TorchRec shards it."""
    if hasattr(weight, "local_shards"):
        return [shard.tensor for shard in weight.local_shards()]
    return [weight.to_local() if hasattr(weight, "to_local") else weight]


def measure(folder: Path, batch_size: int, num_steps: int, rounds: int) -> list[Row]:
    """One row, on the ranks that the launcher has started."""
    config = settings(batch_size)
    with start(config) as runtime:
        prepared = Prepared(folder, json.loads((folder / shards.MANIFEST).read_text()))
        torch.manual_seed(0)
        model = Model(config, prepared, runtime)
        stage = Pretrain(config, model, build_method(config.method, model.dim, model.shape.num_item_fields * model.dim))
        model.backbone.train()
        loader = Loader(prepared, ["pretrain"], batch_size, 0, runtime)
        plain = Plain(model, list(itertools.islice(loader.epoch(0), _READY_BATCHES)), config.pretrain.learning_rate)
        _same_weights(model, plain)
        batches = _full(loader)

        def ours() -> torch.Tensor:
            return stage.step(next(batches))

        for _ in range(_WARM_STEPS):
            found = torch.stack([ours(), plain.step() / runtime.world_size])
            runtime.sum(found)
            assert abs(found[0] - found[1]) <= _LOSS_TOLERANCE * found[1], f"losses {found.tolist()}"
        cost = _cost(plain, batch_size, runtime)
        clock = time.process_time if runtime.world_size == 1 else time.perf_counter
        seconds: dict[str, list[float]] = {"TorchRec": [], "ours": []}
        roofs = []
        for _ in range(rounds):
            for name, step in (("TorchRec", plain.step), ("ours", ours)):
                runtime.barrier()
                begin = clock()
                for _ in range(num_steps):
                    step()
                seconds[name].append(runtime.max(int((clock() - begin) / num_steps * 1e9)) / 1e9)
            runtime.barrier()
            roofs.append(roofline.measure(clock, 3, onednn=True))
        limits = [roof.samples_per_s(cost) * runtime.world_size for roof in roofs]
        rates = {name: Figure.of(name, [batch_size / one for one in found]) for name, found in seconds.items()}
        more = {
            "flops_per_sample": round(cost.flops),
            "bytes_per_sample": round(cost.num_bytes),
            "gflops_per_s": round(float(np.median([roof.flops_per_s for roof in roofs])) / 1e9, 1),
            "copy_gb_per_s": round(float(np.median([roof.bytes_per_s for roof in roofs])) / 1e9, 1),
        }
        about = {"ranks": runtime.world_size, "batch_size": batch_size}
        unit = "samples/CPU s" if runtime.world_size == 1 else "samples/s"
        limit = Figure.of("roofline", limits)
        return [Row("pretrain, DLRM", unit, True, rates["ours"], rates["TorchRec"], limit, about, more=more)]


def _cost(plain: Plain, batch_size: int, runtime: Runtime) -> roofline.Cost:
    """Of a sample of the plain program: its tables' rows, its dense weights, its matrix products."""
    flops = roofline.flops_of(plain.step) / (batch_size // runtime.world_size)
    rows = len(KAGGLE_ROWS)
    share = batch_size // runtime.world_size
    return roofline.Cost(flops, roofline.training_bytes(plain.num_weights, share, rows, 4 * DIM, 4))


def _full(loader: Loader) -> Iterator[Batch]:
    """The batches that the plain program has, for ever: the same first ones, as losses are compared."""
    while True:
        yield from itertools.islice(loader.epoch(0), _READY_BATCHES)


def _launch(ranks: int, folder: Path, options: argparse.Namespace) -> list[Row]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    path = folder / f"rows-{ranks}.json"
    times = ["--batch-size", str(options.batch_size), "--steps", str(options.steps), "--rounds", str(options.rounds)]
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "benchmarks.criteo", *times, "--rank", str(folder)]
    subprocess.run([*command, "--output", str(path)], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    return read(path).rows


def main() -> None:
    """Makes the data, starts the ranks of each size, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=2048, help="of the global batch")
    parser.add_argument("--part-of-rows", type=int, default=16, help="tables have 1 / so many of Criteo's rows")
    parser.add_argument("--steps", type=int, default=2, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)  # one of the ranks: where its data lies
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    question = "Criteo's shape, DLRM"
    if options.rank:
        rows = measure(options.rank / "data", options.batch_size, options.steps, options.rounds)
        if os.environ.get("RANK", "0") == "0":
            Record(question, "", {}, rows, 1).write(options.output)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        (data := Path(scratch) / "data").mkdir()
        make_data(data, options.part_of_rows)
        for ranks in options.ranks:
            rows += _launch(ranks, Path(scratch), options)
    sizes = table_rows(options.part_of_rows)
    about = {
        "part_of_rows": options.part_of_rows,
        "table_rows": sum(sizes),
        "dim": DIM,
        "table_bytes": sum(sizes) * DIM * 4,
    }
    record = Record(question, command_line("criteo", sys.argv[1:]), about, rows, threads=1)
    print(table([record]))
    print(f"goal: {GOALS['alternative']} times TorchRec, {GOALS['limit']:.0%} of the roofline")
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
