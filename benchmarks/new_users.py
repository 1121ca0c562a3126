"""What is a row of a user worth whom the run has never seen, after so many clicks?

    MWUF_DATA_DIR=data python -m benchmarks.new_users [--tenth 5] [--backbone fm] [--method map]

MovieLens-1M as own logs. Users whose ID ends in 3, 4 or 5, and every second of the others, are left out of training. Of
those of one tenth with 30 ratings or more, the first 0 to 20 are a file for `mwuf warm --users`. Scored are all from
the 21st on whose item is old: the same for each number. With 0 clicks all users are the mean user. `FEWEST_CLICKS`
(`mwuf_dist/training/item_rule/frozen_users.py`) was chosen in tenths 3 and 4; tenth 5 is what is reported.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.record import Figure, Record, Row, command_line, table
from benchmarks.train_step import start_command
from mwuf_dist.config import Config, build, to_dict
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.finished_run import load_run
from mwuf_dist.serving.warm import users
from mwuf_dist.serving.warm.job import warm

CLICKS = (0, 1, 2, 3, 5, 10, 20)
_TENTHS = (3, 4, 5)
_MOST = max(CLICKS)


def config_of(log: Path, backbone: str, method: str) -> Config:
    """The run that the users come to."""
    values: dict[str, Any] = {
        "data": {
            "name": "logs",
            "old_above": 100,
            "warm_rows": 10,
            "logs": {"interactions": str(log), "label": "label"},
            "prepared_dir": str(log.parent / "prepared"),
        },
        "backbone": {"name": backbone},
        "embedding": {"dim": 16, "init_std": 0.01},
        "method": {"name": method},
        "pretrain": {"epochs": 3, "batch_size": 512, "learning_rate": 3e-3},
        "warm_up": {"epochs": 5, "learning_rate": 1e-2, "carry_over": True},
        "runtime": {"progress": "off", "device": "cpu"},
    }
    return build(values)


def ratings() -> np.ndarray:
    """User, item, rating, time [n, 4] of MovieLens-1M, by user and time."""
    lines = (Path(os.environ["MWUF_DATA_DIR"]) / "ml-1m" / "ratings.dat").read_text().splitlines()
    found = np.array([line.split("::") for line in lines], dtype=np.int64)
    return found[np.lexsort([np.arange(len(found)), found[:, 3], found[:, 0]])]


def write(rows: np.ndarray, path: Path) -> Path:
    """Writes ratings as a log of clicks."""
    names = {"user_id": rows[:, 0], "item_id": rows[:, 1], "label": (rows[:, 2] >= 4).astype(np.int64)}
    pq.write_table(pa.table(names | {"timestamp": rows[:, 3]}), path)
    return path


def scores_after(folder: Path, clicks: Path, runtime: Runtime, rows: np.ndarray, output: Path) -> np.ndarray:
    """The run's logits of some ratings after a job that has taken clicks of their users."""
    warm(folder, clicks, output, runtime, users=True)
    run = load_run(output, runtime)
    places = {one: place for place, one in enumerate(run.user_ids.to_pylist())}
    items = {one: place for place, one in enumerate(run.item_ids.to_pylist())}
    stranger = run.prepared.num_users
    user = torch.tensor([places.get(one, stranger) for one in rows[:, 0].tolist()])
    return run.scores(user, torch.tensor([items[one] for one in rows[:, 1].tolist()])).double().cpu().numpy()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenth", type=int, default=5, choices=_TENTHS)
    parser.add_argument("--backbone", default="fm")
    parser.add_argument("--method", default="map")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    users.FEWEST_CLICKS = 1  # every number is to be seen
    every = ratings()
    end = every[:, 0] % 10
    place = np.arange(len(every)) - np.searchsorted(every[:, 0], every[:, 0])
    num = np.bincount(every[:, 0])[every[:, 0]]
    theirs = (end == options.tenth) & (num >= 30)
    with tempfile.TemporaryDirectory(prefix="mwuf-new-users-") as scratch:
        folder = Path(scratch)
        log = write(every[~np.isin(end, _TENTHS) & (every[:, 0] % 2 == 1)], folder / "log.parquet")
        config = config_of(log, options.backbone, options.method)
        local.train(config, folder / "run")
        rows: list[Row] = []
        with start(config) as runtime:
            run = load_run(folder / "run", runtime)
            old = np.isin(every[:, 1], run.item_ids.to_numpy()[: run.num_old_items])
            scored = every[theirs & (place >= _MOST) & old]
            label = scored[:, 2] >= 4
            for clicks in CLICKS:
                # With none, a click of a user of the run: a job must have something to do.
                taken = theirs & (place < clicks) if clicks else (end == 1) & (place == 0)
                day = write(every[taken], folder / f"{clicks}.parquet")
                logit = scores_after(folder / "run", day, runtime, scored, folder / f"warm-{clicks}")
                found = auc(logit, label.astype(np.int64))
                loss = float(np.mean(np.logaddexp(0.0, np.where(label, -logit, logit))))
                more = {"clicks": clicks, "logloss": loss, "rows": len(scored), "users": len(np.unique(scored[:, 0]))}
                rows.append(Row(f"{clicks} clicks", "AUC", True, Figure.of("ours", [found]), more=more))
                print(f"{clicks} clicks: AUC {found:.4f}, log loss {loss:.4f}", flush=True)
    command = command_line("new_users", sys.argv[1:])
    record = Record("A user's row after so many clicks", command, to_dict(config), rows, threads=1)
    print(table([record]))
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    start_command("new_users", main)
