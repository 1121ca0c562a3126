"""The graph of GME against brute force over all pairs of items."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from mwuf_dist.data.schema import Field
from mwuf_dist.data.shards import EntityTable, FieldColumn
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.methods import neighbours as module
from mwuf_dist.methods.neighbours import neighbours

NUM, OLD = 60, 40


def store(seed: int = 0) -> tuple[FeatureStore, list[set[Any]]]:
    """(items with one categorical and one multi-valued field, the known values of each item)."""
    draw = np.random.default_rng(seed)
    year = draw.integers(0, 6, NUM).astype(np.int32)
    lengths = draw.integers(1, 5, NUM)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = draw.integers(0, 9, offsets[-1]).astype(np.int32)  # 0 is unknown; some stand twice in an item
    columns = {}
    for name, kind, size, where, values in (
        ("year", "categorical", 6, None, year),
        ("title", "multi_valued", 9, offsets, tokens),
    ):
        which: Literal["categorical", "multi_valued"] = kind  # type: ignore[assignment]
        columns[name] = FieldColumn(Field(name, which, "item", size), where, values)
    known = [{("title", int(token)) for token in tokens[offsets[i] : offsets[i + 1]] if token} for i in range(NUM)]
    known = [values | ({("year", int(one))} if one else set()) for values, one in zip(known, year, strict=True)]
    return FeatureStore(EntityTable(NUM, np.arange(NUM), columns), torch.device("cpu")), known


@pytest.mark.parametrize("num", [3, 50])
def test_neighbours_are_the_old_items_with_most_values_in_common(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ITEMS", 7)
    items, known = store()
    found = neighbours(items, OLD, num)
    assert found.shape == (NUM, num)
    holders: dict[Any, int] = {}
    for values in known[:OLD]:
        for value in values:
            holders[value] = holders.get(value, 0) + 1
    for item in range(NUM):
        shared = {j: known[item] & known[j] for j in range(OLD) if j != item and known[item] & known[j]}
        rarity = {j: sum(1 / (1 + holders[value]) for value in values) for j, values in shared.items()}
        ranked = sorted(shared, key=lambda j: (-len(shared[j]), -round(rarity[j], 9), j))[:num]
        assert found[item].tolist() == ranked + [-1] * (num - len(ranked)), item


def test_of_a_common_value_some_holders_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST_POSTING", 2)
    items, known = store()
    found = neighbours(items, OLD, 50)
    assert (found >= 0).sum(1).max() <= 2 * max(map(len, known))
    for item in range(NUM):
        near = found[item][found[item] >= 0].tolist()
        assert item not in near and len(set(near)) == len(near)
        assert all(known[item] & known[j] for j in near)
