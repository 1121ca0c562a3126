"""Small logs as files, and what is read from them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from mwuf_dist.config import DataConfig
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data.init_config.propose import Asked, Proposal, propose
from mwuf_dist.data.schema import RawDataset
from mwuf_dist.data.sources import logs

NUM = 60  # rows of `log`
CLICKS = "user_id,item_id,timestamp,clicked\nu1,a,30,1\nu2,b,10,0\nu1,b,20,1\nu3,a,5,0\n"


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = text.encode(encoding)
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def read(path: Path, **options: Any) -> RawDataset:
    """The data set of a log whose label is the column `clicked`, unless the options say otherwise."""
    if not options.keys() & {"label", "label_from", "negatives_per_positive"}:
        options["label"] = "clicked"
    config = DataConfig(name="logs", logs=LogsConfig(interactions=str(path), **options))
    dataset = logs.load(config)
    dataset.check("logs")
    return dataset


def rows(dataset: RawDataset) -> list[tuple[Any, ...]]:
    """(user ID, item ID, time in seconds, label) of each row."""
    columns = {name: dataset.interactions[name].to_pylist() for name in ("user", "item", "time", "label")}
    columns["time"] = [time // 10**6 if time % 10**6 == 0 else time / 10**6 for time in columns["time"]]
    user_ids, item_ids = dataset.users["raw_id"].to_pylist(), dataset.items["raw_id"].to_pylist()
    return [
        (user_ids[user], item_ids[item], time, label) for user, item, time, label in zip(*columns.values(), strict=True)
    ]


def of_field(dataset: RawDataset, side: str, name: str) -> dict[Any, Any]:
    table = dataset.users if side == "user" else dataset.items
    return dict(zip(table["raw_id"].to_pylist(), table[name].to_pylist(), strict=True))


def item_field(name: str, **options: Any) -> tuple[LogsField, ...]:
    return (LogsField(name=name, side="item", **options),)


def log(**columns: list[Any]) -> dict[str, list[Any]]:
    """A log of 60 rows, 10 users and 12 items, with a label that changes from row to row."""
    made: dict[str, list[Any]] = {
        "user_id": [index % 10 for index in range(NUM)],
        "item_id": [900 + index * 7 % 12 for index in range(NUM)],
        "timestamp": [1_600_000_000 + index for index in range(NUM)],
        "label": [int(index % 3 == 0) for index in range(NUM)],
    }
    return made | columns


def csv_of(columns: dict[str, list[Any]], sep: str = ",") -> str:
    lines = [sep.join(columns), *(sep.join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    return "\n".join(lines) + "\n"


def proposed(folder: Path, text: str, name: str = "log.csv", **asked: Any) -> Proposal:
    return propose(str(write(folder, name, text)), asked=Asked(**asked))


def without(*names: str, **more: list[Any]) -> dict[str, list[Any]]:
    """Returns the columns of `log` but some, and others."""
    return {name: values for name, values in log().items() if name not in names} | more
