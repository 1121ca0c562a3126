"""A run of own logs in a folder of its own, small enough to train in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from mwuf_dist.config import Config, build
from tests.tiny import TINY

NUM_OLD, NUM_NEW, NUM_USERS = 20, 30, 40
COLORS = ("black", "blue", "green", "red")


def make_logs(seed: int = 0) -> pa.Table:
    """Clicks in order of time, seconds apart: items 100 to 119 are old, 900 to 929 new, users are 1 to 40."""
    random = np.random.default_rng(seed)
    item = np.concatenate([np.repeat(np.arange(NUM_OLD) + 100, 60), np.repeat(np.arange(NUM_NEW) + 900, 15)])
    item = item[random.permutation(len(item))]
    user = random.integers(1, NUM_USERS + 1, size=len(item))
    columns = {
        "user_id": user,
        "item_id": item,
        "timestamp": 1_600_000_000 + 10 * np.arange(len(item)),
        "label": (random.random(len(item)) < np.where(user % 2 == item % 2, 0.7, 0.2)).astype(int),
        "color": [COLORS[one % 4] for one in item],
        "price": item % 7,
    }
    return pa.table(columns)


def config_for(folder: Path, **logs: Any) -> Config:
    """The config of a run of `folder`/log.csv, whose prepared data lie in the cache."""
    own = {"interactions": str(folder / "log.csv"), "label": "label"} | logs
    fields = [
        {"name": "color", "side": "item"},
        {"name": "price", "side": "item", "kind": "numeric", "buckets": 4},
    ]
    data = {"name": "logs", "old_above": 50, "warm_rows": 4, "logs": {"fields": fields} | own}
    return build(TINY | {"data": data, "pretrain": TINY["pretrain"] | {"epochs": 1}})


def write(table: pa.Table, path: Path) -> Path:
    """Writes a table as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pa_csv.write_csv(table, path)
    return path


def a_day(seed: int = 1, num_rows: int = 60) -> pa.Table:
    """Later clicks of a tenth of the users: on new items of the run, on old ones and on item 950, never seen."""
    random = np.random.default_rng(seed)
    columns = {
        "user_id": random.integers(1, NUM_USERS + 1, size=num_rows),
        "item_id": random.choice([*range(900, 905), 100, 950], size=num_rows),
        "timestamp": 1_600_100_000 + 7 * np.arange(num_rows),
        "label": random.integers(2, size=num_rows),
    }
    return pa.table(columns)
