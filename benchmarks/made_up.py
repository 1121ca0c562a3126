"""A prepared folder of made-up rows whose split is chosen, not made by the rule; of histories it has none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mwuf_dist.data import shards
from mwuf_dist.data.schema import INTERACTION_TYPES, RawDataset
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import Roles


def write_prepared(dataset: RawDataset, num_old_items: int, splits: dict[str, np.ndarray], folder: Path) -> Prepared:
    """Writes the folder.

    Args:
        dataset: its items are old and new ones alone, old ones first.
        num_old_items: how many of them are old.
        splits: name -> rows, in their order.
        folder: exists and is empty.
    """
    columns = {name: dataset.interactions[name].to_numpy() for name in dataset.interactions.column_names}
    columns["row"] = np.arange(dataset.interactions.num_rows)
    about = {}
    for name, rows in splits.items():
        group_rows = shards.row_group_rows(len(rows))
        file_rows = shards.MAX_FILE_ROWS // group_rows * group_rows
        (folder / name).mkdir()
        files = []
        for part, start in enumerate(range(0, len(rows), file_rows)):
            chunk = {key: column[rows[start : start + file_rows]] for key, column in columns.items()}
            files.append(shards.write_file(folder, f"{name}/part-{part:05d}.parquet", chunk, group_rows, folder))
        positives = int(columns["label"][rows].sum(dtype=np.int64))
        about[name] = {"rows": len(rows), "positives": positives, "row_group_rows": group_rows, "files": files}
    items = np.arange(dataset.items.num_rows)
    roles = Roles(items, num_old_items, items, np.zeros(len(items) - num_old_items, np.int64))
    types = {name: str(kind) for name, kind in INTERACTION_TYPES.items() if name in columns} | {"row": "int64"}
    shards.write_rest(folder, {"histories": {}}, dataset.entities, roles, types, about)
    return Prepared(folder, json.loads((folder / shards.MANIFEST).read_text()))
