"""How fast is `pretrain` on two ranks with tables of ten million rows each, which no rank can hold twice, against one?

    python -m benchmarks.large_tables [--table-rows 10_000_000] [--batch-sizes 8192 32768]

Made-up data with as many users as items and IDs by Zipf's law, DeepFM, fused row-wise Adagrad: a replica of such tables
on every rank, with their gradients summed in every step, is what DistributedDataParallel would do, and each step would
send all of them. The tables are sharded by rows over the ranks; beside that the main rank has a model of its own with
the same tables whole, and both take turns: while one rank works alone, the others wait. By the clock, one thread a
rank: leave as many cores idle as there are ranks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks import growth
from benchmarks.ranks import take_turns
from benchmarks.record import Figure, Record, Row, command_line, read, table
from mwuf_dist.config import Config
from mwuf_dist.data import shards
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import build_method
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training.model import Model
from mwuf_dist.training.stages.pretrain import Pretrain

GOAL = 1.5  # times one rank
_TRAINING_ROWS = 1_000_000


def measure(folder: Path, batch_sizes: list[int], num_steps: int, rounds: int) -> list[Row]:
    """A row for each batch size, on the ranks that the launcher has started."""
    config = growth.settings()
    rows = []
    with start(config) as runtime:
        prepared = Prepared(folder, json.loads((folder / shards.MANIFEST).read_text()))
        alone = replace(runtime, rank=0, world_size=1, peers=None, group_of_tables=dist.new_group([0]))
        ours = _stage(config, prepared, runtime)
        whole = _stage(config, prepared, alone) if runtime.is_main else None
        for batch_size in batch_sizes:
            step = _steps(ours, prepared, batch_size, runtime)
            steps: dict[str, Callable[[], object]] = {"one rank": lambda: None, "ours": step}
            if whole is not None:
                steps["one rank"] = _steps(whole, prepared, batch_size, alone)
            found = take_turns(steps, num_steps, rounds, runtime)
            one, mine = (Figure.of(name, [batch_size / value for value in values]) for name, values in found.items())
            about = {"ranks": runtime.world_size, "batch_size": batch_size}
            more = {"sharding": ours.model.old_ids.plan["old"]}
            rows.append(Row("pretrain", "samples/s", True, mine, one, config=about, more=more))
    return rows


def _stage(config: Config, prepared: Prepared, runtime: Runtime) -> Pretrain:
    model = Model(config, prepared, runtime)
    model.backbone.train()
    return Pretrain(config, model, build_method(config.method, model.dim, model.shape.num_item_fields * model.dim))


def _steps(stage: Pretrain, prepared: Prepared, batch_size: int, runtime: Runtime) -> Callable[[], object]:
    loader = Loader(prepared, ["pretrain"], batch_size, 0, runtime)
    batches = (batch for epoch in itertools.count() for batch in loader.epoch(epoch) if batch.is_full)
    return lambda: stage.step(next(batches))


def main() -> None:
    """Makes the data, starts the ranks, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table-rows", type=int, default=10_000_000, help="of each of the two ID tables")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8192, 32768], help="of the global batch")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)  # one of the ranks: where its data lies
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    about = {"backbone": "deepfm", "dim": 16, "rows_per_table": options.table_rows, "optimizer": "rowwise_adagrad"}
    question = f"Two ID tables of {options.table_rows:,} rows, sharded, against one rank"
    if options.rank:
        rows = measure(options.rank / "data", options.batch_sizes, options.steps, options.rounds)
        if os.environ.get("RANK", "0") == "0":
            Record(question, "", about, rows, 1).write(options.rank / "rows.json")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        (data := Path(scratch) / "data").mkdir()
        growth.make_data(data, options.table_rows, _TRAINING_ROWS, "zipf")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        command = [sys.executable, "-W", "ignore", *launcher, "-m", "benchmarks.large_tables", *sys.argv[1:]]
        subprocess.run([*command, "--rank", scratch], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
        rows = read(Path(scratch) / "rows.json").rows
    record = Record(question, command_line("large_tables", sys.argv[1:]), about, rows, threads=1)
    print(table([record]))
    print(f"goal: {GOAL} times one rank")
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
