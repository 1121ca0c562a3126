"""Prepared data that a disk has spoilt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.data.manifest import read_manifest
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.shards import Prepared
from tests.tiny import tiny

COLUMNS = ("user", "item", "label", "time", "row")


@pytest.fixture
def copy(tmp_path: Path) -> Prepared:
    shutil.copytree(prepare(tiny().data).path, tmp_path / "prepared")
    manifest = read_manifest(tmp_path / "prepared")
    assert manifest is not None
    return Prepared(tmp_path / "prepared", manifest)


def rows(prepared: Prepared) -> dict[str, np.ndarray]:
    return prepared.columns("pretrain", COLUMNS)


def entities(prepared: Prepared) -> dict[str, np.ndarray]:
    table = prepared.entity("item")
    return {"raw_ids": table.raw_ids} | {name: column.values for name, column in table.columns.items()}


def histories(prepared: Prepared) -> dict[str, np.ndarray]:
    whole = Histories(prepared, 3, 0, torch.device("cpu"), events="all").whole(torch.arange(prepared.num_users))
    return {"items": whole.items.numpy(), "labels": whole.labels.numpy()}


@pytest.mark.parametrize(
    ("name", "read"),
    [("pretrain/part-00000.parquet", rows), ("items.parquet", entities), ("histories/items.npy", histories)],
)
def test_a_flipped_bit_never_changes_what_is_read(
    name: str, read: Callable[[Prepared], dict[str, Any]], copy: Prepared
) -> None:
    expected = read(copy)
    path = copy.path / name
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    reasons: list[str] = []
    # Places all over the file, and more of them in its last part, where Parquet's footer is.
    places = [*draw.integers(0, len(whole), 60), *draw.integers(max(0, len(whole) - 3000), len(whole), 60)]
    for place in places:
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(spoilt)
        try:
            found = read(Prepared(copy.path, copy.manifest))
        except UserError as error:
            reasons.append(str(error))
            continue
        for column in expected:  # a bit that says nothing, such as one of a page's statistics
            np.testing.assert_array_equal(found[column], expected[column], err_msg=f"bit of byte {place}")
    assert len(reasons) > len(places) / 2
    assert all(reason.startswith(f"{path}: cannot be read") and "prepared anew" in reason for reason in reasons)


def test_a_shard_that_cannot_be_read_is_named(copy: Prepared) -> None:
    path = copy.path / "pretrain" / "part-00000.parquet"
    path.unlink()
    with pytest.raises(UserError, match=rf"{path}: cannot be read .*delete its folder"):
        rows(copy)
    path.mkdir()  # what even the superuser cannot read as a file
    with pytest.raises(UserError, match=rf"{path}: cannot be read"):
        rows(Prepared(copy.path, copy.manifest))
