"""How fast are the stages through TorchRec's DistributedModelParallel on one and on two ranks, against plain PyTorch?

    python -m benchmarks.ranks configs/movielens-1m.toml [--section.key VALUE ...]

The global batch has 8192 rows, however many ranks share it; tables are row-wise unless `--embedding.sharding` says
otherwise. Every table in shards is looked up by TorchRec's collections, also on one rank, where `mwuf run` would read
it in place. The plain program is one process; while it takes its turn the ranks wait. "ours" is rows of the global
batch over the processor time of the busiest rank: what each rank would need if it had a core for itself, with what it
does to exchange rows, but without waiting for the others.
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
from pathlib import Path

from benchmarks.contest import Feed, Ours, Plain, Step, full_batches, plain_model
from benchmarks.record import Figure, Record, Row, command_line, read, table
from benchmarks.train_step import benchmark_config, start_command
from mwuf_dist.config import Config, UserError
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training.run import Run, _prepare

BATCH_SIZE = 8192
_WARM_STEPS = 2


class Stages:
    """The training stages of both programs; the plain one on the main rank only, with weights of its own."""

    def __init__(self, job: Run) -> None:
        if job.prepared.num_rows("pretrain") < BATCH_SIZE:
            raise UserError(f"a batch has {BATCH_SIZE} rows and {job.config.data.name} fewer to train on: take another")
        self._job = job
        batches = full_batches(_rows(job, job.runtime))
        self._ours, self._plain = Ours(job, lambda: next(batches)), None
        if job.runtime.is_main:
            alone = Runtime(0, 1, job.runtime.device, False)
            feed = Feed(_rows(job, alone), job.model.num_old + 1, job.model.backbone.history_length)
            model = plain_model(job.config, alone, job.prepared)
            self._plain = Plain(job.config, model, job.model.num_items, feed.plain)

    def steps(self, name: str) -> tuple[Step, Step | None]:
        """(ours, the plain program's) step of the next stage."""
        return getattr(self._ours, name)(), self._plain and getattr(self._plain, name)()

    def tables(self, name: str) -> list[Tables]:
        """What a step of a stage looks up."""
        model = self._job.model
        frozen = [] if name == "pretrain" else [self._ours.frozen.meta_inputs, self._ours.frozen._parts]
        return [*model.pretrained_tables, model.new_ids, *frozen]


def _rows(job: Run, runtime: Runtime) -> Loader:
    return Loader(job.prepared, ["pretrain"], BATCH_SIZE, job.config.seed, runtime)


def measure(config: Config, num_steps: int, rounds: int) -> list[Row]:
    """One row per stage, on the ranks that the launcher has started."""
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        folder = str(runtime.broadcast(folder))
        job = Run(config, Path(folder), runtime, _prepare(config, runtime))
        stages, rows = Stages(job), []
        for name in ("pretrain", "meta_train", "warm_up"):
            ours, theirs = stages.steps(name)
            with contextlib.ExitStack() as stack:
                for tables in stages.tables(name):
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
        # Replicated tables, which `auto` makes of small ones, would be read in place.
        sharding = [] if "--embedding.sharding" in arguments else ["--embedding.sharding", "row_wise"]
        command = [*one, *launcher, "-m", "benchmarks.ranks", *arguments, *sharding, *times]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        return read(path).rows


if __name__ == "__main__":
    start_command("ranks", main)
