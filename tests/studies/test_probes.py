"""Probes find each leak that is planted, and nothing in drawn negatives; what needs no training is what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import build
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import SPLITS
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.studies.probes import PROBES, probe, without_sitting
from mwuf_dist.studies.trivial import trivial_rows

NUM_USERS, NUM_ITEMS, NUM_OLD = 600, 105, 60


def clicks(seed: int = 0) -> dict[str, np.ndarray]:
    """Labelled rows of which nothing tells the label: 60 old items, 45 new ones."""
    random = np.random.default_rng(seed)
    item = random.permutation(np.repeat(np.arange(NUM_ITEMS), np.concatenate([np.full(NUM_OLD, 150), np.full(45, 60)])))
    activity = 1 / np.arange(1, NUM_USERS + 1) ** 0.3
    user = random.choice(NUM_USERS, size=len(item), p=activity / activity.sum())
    label = (random.random(len(item)) < 0.4).astype(np.int8)
    return {"user_id": user, "item_id": item, "timestamp": np.arange(len(item)) * 600, "label": label}


def written(columns: dict[str, np.ndarray], folder: Path, **logs: Any) -> Prepared:
    pq.write_table(pa.table(columns), folder / "log.parquet")
    options = {"interactions": str(folder / "log.parquet"), **logs}
    data = {"name": "logs", "old_above": 100, "warm_rows": 10, "logs": options}
    return prepare(build({"data": data | {"prepared_dir": str(folder / "prepared")}}).data)


def noise(prepared: Prepared, split: str) -> float:
    """Four standard errors of an AUC of rows that nothing tells apart, and the rows that found no negative."""
    label = prepared.columns(split, ("label",))["label"]
    return 0.02 + 4 * float(np.sqrt((1 / label.sum() + 1 / (label == 0).sum()) / 12))


def by_time(columns: dict[str, np.ndarray]) -> np.ndarray:
    return columns["timestamp"] % 60_000 < 30_000


def by_user(columns: dict[str, np.ndarray]) -> np.ndarray:
    counts = np.bincount(columns["user_id"])
    return counts[columns["user_id"]] > np.median(counts[columns["user_id"]])


def by_item(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Of popular items: those with many rows in `test`."""
    return columns["item_id"] % 2 == 0


def by_history(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Whoever had a row a moment ago: a row of label 0 drawn at the time of another user's positive has none."""
    order = np.lexsort([columns["timestamp"], columns["user_id"]])
    gap = np.diff(columns["timestamp"][order], prepend=-(10**9))
    gap[1:][np.diff(columns["user_id"][order]) != 0] = 10**9
    out = np.empty(len(order), dtype=bool)
    out[order] = gap < np.median(gap)
    return out


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (by_time, "time"),
        (by_user, "user activity"),
        (by_item, "item popularity"),
        (by_history, "history without the item"),
    ],
)
def test_a_planted_leak_is_found_by_its_probe(
    tmp_path: Path, plant: Callable[[dict[str, np.ndarray]], np.ndarray], found: str
) -> None:
    columns = clicks()
    if plant is by_item:  # every second new item is twice as popular
        new = np.flatnonzero((columns["item_id"] >= NUM_OLD) & (columns["item_id"] % 2 == 1))
        kept = np.setdiff1d(np.arange(len(columns["label"])), new[::2][: len(new) // 4])
        columns = {name: values[kept] for name, values in columns.items()}
    if plant is by_time:
        columns["timestamp"] = np.sort(columns["timestamp"])
        told = columns["timestamp"] > np.median(columns["timestamp"])
    else:
        told = plant(columns)
    random = np.random.default_rng(1)
    columns["label"] = np.where(random.random(len(told)) < 0.85, told, ~told).astype(np.int8)
    aucs = probe(written(columns, tmp_path, label="label"), "all")
    assert max(value for value in aucs[found].values() if value is not None) > 0.6, aucs


def test_nothing_is_found_where_nothing_tells(tmp_path: Path) -> None:
    prepared = written(clicks(), tmp_path, label="label")
    aucs = probe(prepared, "all")
    assert set(aucs) == set(PROBES)
    for name in PROBES:
        for split in SPLITS:
            value = aucs[name][split]
            assert value is not None and abs(value - 0.5) < noise(prepared, split), (name, split, value)


def test_nothing_is_found_in_drawn_negatives(tmp_path: Path) -> None:
    columns = clicks()
    kept = np.unique(columns["user_id"] * NUM_ITEMS + columns["item_id"], return_index=True)[1]
    columns = {name: values[np.sort(kept)] for name, values in columns.items() if name != "label"}
    prepared = written(columns, tmp_path, negatives_per_positive=3)
    for name, sets in probe(prepared, "positives").items():
        for split, value in sets.items():
            assert value is not None and abs(value - 0.5) < noise(prepared, split), (name, split, value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return written(clicks(), tmp_path_factory.mktemp("clicks"), label="label")


def test_what_needs_no_training_is_what_it_says(prepared: Prepared) -> None:
    popularity, means, constant = trivial_rows(prepared)
    assert [row["label"] for row in (popularity, means, constant)] == [
        "item popularity so far",
        "user mean + item mean",
        "constant",
    ]
    sets = {split: prepared.columns(split, ("user", "item", "label", "time")) for split in SPLITS}
    seen = {name: np.concatenate([sets[s][name] for s in ("pretrain", "warm_a")]) for name in sets["test"]}
    rate = seen["label"].mean()
    scores = np.full(len(sets["test"]["label"]), -rate)
    for side in ("user", "item"):
        own = [seen["label"][seen[side] == one] for one in sets["test"][side]]
        scores += [(of.sum() + 5 * rate) / (len(of) + 5) for of in own]
    expected = auc(scores, sets["test"]["label"])
    assert means["phases"]["warm-a"]["auc_test"] == pytest.approx(expected, abs=1e-4)
    assert constant["phases"]["cold"]["auc_next"] == 0.5
    share = sets["test"]["label"].mean()
    entropy = -(share * np.log(rate) + (1 - share) * np.log(1 - rate))
    assert constant["phases"]["warm-a"]["logloss_test"] == pytest.approx(entropy, abs=1e-9)
    all_new = {name: np.concatenate([sets[s][name] for s in SPLITS[1:]]) for name in sets["test"]}
    test = sets["test"]
    so_far = [
        int(((all_new["item"] == item) & (all_new["time"] < time) & (all_new["label"] == 1)).sum())
        for item, time in zip(test["item"], test["time"], strict=True)
    ]
    assert popularity["phases"]["cold"]["auc_test"] == pytest.approx(auc(np.array(so_far), test["label"]), abs=1e-12)
    assert popularity["phases"]["cold"]["logloss_test"] is None


def test_rows_without_an_earlier_sitting_are_counted_by_the_gap(prepared: Prepared) -> None:
    found = without_sitting(prepared, 3600)
    columns = {split: prepared.columns(split, ("user", "time")) for split in SPLITS}
    events = {name: np.concatenate([columns[s][name] for s in SPLITS[:4]]) for name in ("user", "time")}
    for split in ("warm_a", "test"):
        first = np.array([events["time"][events["user"] == u].min(initial=2**62) for u in columns[split]["user"]])
        expected = (first >= columns[split]["time"] - 3600 * 10**6).mean()
        assert found[split] == pytest.approx(expected, abs=1e-4), split
