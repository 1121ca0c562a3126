"""How fast are the stages through TorchRec's DistributedModelParallel on one and on two ranks, against plain PyTorch?

    python -m benchmarks.ranks configs/movielens-1m.toml [--section.key VALUE ...]

The global batch has 8192 rows, however many ranks share it. Every table is looked up by TorchRec's sharded collections,
also on one rank, where `mwuf run` would read it in place. The plain program is one process; while it takes its turn the
ranks wait. "ours" is rows of the global batch over the processor time of the busiest rank: what each rank would need if
it had a core for itself, with what it does to exchange rows, but without waiting for the others.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import plain_torch as plain
from benchmarks.contest import Feed, plain_model
from benchmarks.record import Figure, Record, Row, command_line, read, table
from benchmarks.train_step import benchmark_config
from mwuf_dist.config import Config, UserError
from mwuf_dist.data.loader import Batch, Loader
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training.frozen import Frozen
from mwuf_dist.training.meta_train import MetaTrain, initialise_new_ids
from mwuf_dist.training.optimizers import Adam
from mwuf_dist.training.pretrain import Pretrain
from mwuf_dist.training.run import Run, _prepare
from mwuf_dist.training.warm_up import WarmUp

BATCH_SIZE = 8192
_WARM_STEPS = 2
Step = Callable[[], Any]


class Stages:
    """The training stages of both programs; the plain one on the main rank only, with weights of its own."""

    def __init__(self, job: Run) -> None:
        self._job, self._config = job, job.config
        if job.prepared.num_rows("pretrain") < BATCH_SIZE:
            raise UserError(f"a batch has {BATCH_SIZE} rows and {job.config.data.name} fewer to train on: take another")
        rows = Loader(job.prepared, ["pretrain"], BATCH_SIZE, job.config.seed, job.runtime)
        self._batches = _for_ever(rows)
        self.shared: list[Tables] = [*job.model.pretrained_tables, job.model.new_ids]
        if job.runtime.is_main:
            alone = Runtime(0, 1, job.runtime.device, False)
            rows = Loader(job.prepared, ["pretrain"], BATCH_SIZE, job.config.seed, alone)
            self._feed = Feed(rows, job.model.num_old + 1, job.config.backbone.history_length)
            self._plain = plain_model(job.config, alone, job.prepared)

    def pretrain(self) -> tuple[Step, Step | None]:
        """(ours, the plain program's) step."""
        config, job = self._config, self._job
        stage = Pretrain(config, job.model, job.method)
        job.model.backbone.train()
        theirs = None
        if job.runtime.is_main:
            optimizer = plain.adam(self._plain, config.pretrain.learning_rate)
            theirs = lambda: plain.pretrain_step(self._plain, optimizer, self._feed.plain())  # noqa: E731
        return lambda: stage.step(next(self._batches)), theirs

    def meta_train(self) -> tuple[Step, Step | None]:
        """(ours, the plain program's) step."""
        config, job = self._config, self._job
        self.frozen = Frozen(job.model, config.embedding, job._mean_user())
        self.shared += [self.frozen.meta_inputs, self.frozen._parts]
        initialise_new_ids(config, job.model, job.method)
        self.frozen.set_users(ItemUsers(job.prepared, ["pretrain"]), range(job.model.num_old))
        stage = MetaTrain(config, job.model, self.frozen, job.method)
        theirs = None
        if job.runtime.is_main:
            frozen = plain.freeze(self._plain)
            self._phi_new = plain.common_initialisation(frozen, job.model.num_items)
            meta = plain.MetaNetworks(frozen.items.out_dim, job.model.dim, config.method.hidden, True)
            user_mean = self._phi_new.weight.detach().clone()
            cold = plain.adam(self._phi_new, config.meta_train.learning_rate_cold)
            warm = plain.adam(meta, config.meta_train.learning_rate_warm)
            args = (frozen, self._phi_new, meta, user_mean, cold, warm)
            theirs = lambda: plain.meta_train_step(*args, self._feed.plain())  # noqa: E731
        return lambda: stage.step(next(self._batches)), theirs

    def warm_up(self) -> tuple[Step, Step | None]:
        """(ours, the plain program's) step, on rows of `pretrain` so that there are enough of them."""
        job, rate = self._job, self._config.warm_up.learning_rate
        stage = WarmUp(self._config, job.model, self.frozen, job.method)
        optimizer = Adam(dense=[], tables=[(job.model.new_ids, rate)])
        theirs = None
        if job.runtime.is_main:
            of_plain = plain.adam(self._phi_new, rate)
            theirs = lambda: plain.warm_up_step(self._plain, self._phi_new, of_plain, self._feed.plain())  # noqa: E731
        return lambda: stage.step(next(self._batches), optimizer), theirs


def _for_ever(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from (batch for batch in loader.epoch(0) if batch.is_full)


def measure(config: Config, num_steps: int, rounds: int) -> list[Row]:
    """One row per stage, on the ranks that the launcher has started."""
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        folder = str(runtime.share(folder))
        job = Run(config, Path(folder), runtime, _prepare(config, runtime))
        stages, rows = Stages(job), []
        for name in ("pretrain", "meta_train", "warm_up"):
            ours, theirs = getattr(stages, name)()
            with contextlib.ExitStack() as stack:
                for tables in stages.shared:
                    stack.enter_context(tables.as_if_shared())
                seconds = _take_turns(ours, theirs, num_steps, rounds, runtime)
            mine, plains = (Figure.of(key, [BATCH_SIZE / value for value in values]) for key, values in seconds.items())
            rows.append(Row(name, "samples/CPU s", True, mine, plains, config={"ranks": runtime.world_size}))
        job.session.recorder.close()
        runtime.barrier()
    return rows


def _take_turns(
    ours: Step, theirs: Step | None, num_steps: int, rounds: int, runtime: Runtime
) -> dict[str, list[float]]:
    """Processor seconds of a step of the busiest rank, and of the plain program."""
    seconds: dict[str, list[float]] = {"ours": [], "plain PyTorch": []}
    for round_ in range(rounds + 1):
        for name, step in (("plain PyTorch", theirs), ("ours", ours)):
            num = num_steps if round_ else _WARM_STEPS
            runtime.barrier()
            begin = time.process_time()
            for _ in range(num if step is not None else 0):
                assert step is not None
                step()
            found = runtime.max(int((time.process_time() - begin) / num * 1e9)) / 1e9
            if round_:
                seconds[name].append(found)
    return seconds


def main() -> None:
    """Starts the ranks of each size, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.toml")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)  # one of the ranks: where its rows go
    options, keys = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    config = benchmark_config([options.config, *keys], BATCH_SIZE)
    about = {"data": config.data.name, "backbone": config.backbone.name, "batch_size": BATCH_SIZE}
    question = (
        f"Stages through DistributedModelParallel, {config.data.name}, {config.backbone.name}, batch {BATCH_SIZE}"
    )
    if options.rank:
        rows = measure(config, options.steps, options.rounds)
        if os.environ.get("RANK", "0") == "0":
            Record(question, "", about, rows, 1).write(options.rank)
        return
    rows = []
    for ranks in options.ranks:
        rows += _launch(ranks, [options.config, *keys], options)
    record = Record(question, command_line("ranks", sys.argv[1:]), about, rows, threads=1)
    print(table([record]))
    if options.output:
        record.write(options.output)


def _launch(ranks: int, arguments: list[str], options: argparse.Namespace) -> list[Row]:
    one = [sys.executable, "-W", "ignore"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        times = ["--steps", str(options.steps), "--rounds", str(options.rounds), "--rank", str(path)]
        command = [*one, *launcher, "-m", "benchmarks.ranks", *arguments, *times]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        return read(path).rows


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"ranks: {error}", file=sys.stderr)
        sys.exit(2)
