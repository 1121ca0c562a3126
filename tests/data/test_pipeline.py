"""`prepare` piece by piece: the same bytes however the rows are cut, in memory that does not grow with them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwuf_dist.config import DataConfig
from mwuf_dist.data import schema, shards
from mwuf_dist.data.prepare import sorted_runs
from mwuf_dist.data.prepare.pipeline import write_prepared
from mwuf_dist.data.schema import Entities, RawDataset, RawPieces
from mwuf_dist.data.sources import synthetic
from mwuf_dist.data.split import SplitRule
from tests.data.raw_files import files_of

NUM_USERS = 40


def raw_rows(num_rows: int, num_items: int = 60, seed: int = 0) -> RawDataset:
    """Random rows with many ties in time; items have from a few rows to many."""
    random = np.random.default_rng(seed)
    columns = {
        "user": random.integers(NUM_USERS, size=num_rows, dtype=np.int32),
        "item": (num_items * random.random(num_rows) ** 3).astype(np.int32),
        "label": random.integers(2, size=num_rows, dtype=np.int8),
        "time": random.integers(num_rows // 8, size=num_rows),
    }
    users, items = (pa.table({"raw_id": np.arange(num)}) for num in (NUM_USERS, num_items))
    return RawDataset(pa.table(columns), users, items, ())


@pytest.mark.parametrize("piece_rows", [7, 100, 1999])
@pytest.mark.parametrize("plays", [False, True])
def test_every_byte_is_the_same_however_the_rows_are_cut(
    piece_rows: int, plays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MIN_ROW_GROUP_ROWS", 50)
    monkeypatch.setattr(shards, "MAX_FILE_ROWS", 300)
    rule, dataset = SplitRule(60, 10, old_items_as_new=plays), raw_rows(2000)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        write_prepared(dataset.in_pieces(name), rule, tmp_path / name, {})
        monkeypatch.setattr(schema, "PIECE_ROWS", piece_rows)
    whole, cut = (files_of(tmp_path / name) for name in ("whole", "cut"))
    assert len([path for path in whole if path.startswith("pretrain/")]) > 2
    assert cut.keys() == whole.keys()
    assert [path for path in whole if cut[path] != whole[path]] == []


@pytest.mark.parametrize("spread", [1, 10**6, 10**15])
def test_ids_may_be_any_integers(spread: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same data set under the IDs 0, 1, ... and under scattered and negative ones, of which the ends occur."""
    dataset = raw_rows(2000, num_items=20)
    ids = {name: np.unique(dataset.interactions[name].to_numpy()) for name in ("user", "item")}
    scattered = {name: (known.astype(np.int64) - 3) * spread for name, known in ids.items()}

    def read(_: int) -> Any:
        columns = {name: dataset.interactions[name].to_numpy() for name in dataset.interactions.column_names}
        yield columns | {name: (columns[name].astype(np.int64) - 3) * spread for name in ids}

    def entities(user_ids: np.ndarray, item_ids: np.ndarray, item_rows: np.ndarray) -> Entities:
        assert user_ids.tolist() == scattered["user"].tolist() and item_ids.tolist() == scattered["item"].tolist()
        assert item_rows.tolist() == np.bincount(dataset.interactions["item"].to_numpy())[ids["item"]].tolist()
        return dataset.entities

    assert all(
        len(known) == table.num_rows for known, table in zip(ids.values(), (dataset.users, dataset.items), strict=True)
    )
    for name, raw in {"rows": dataset.in_pieces("rows"), "ids": RawPieces((0,), read, entities)}.items():
        (tmp_path / name).mkdir()
        write_prepared(raw, SplitRule(60, 10), tmp_path / name, {})
        monkeypatch.setattr(schema, "PIECE_ROWS", 300)
    assert files_of(tmp_path / "ids") == files_of(tmp_path / "rows")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "PIECE_ROWS", 4000)
    monkeypatch.setattr(shards, "MAX_FILE_ROWS", 4000)
    peaks = {}
    for num_rows in (20_000, 100_000):
        raw, folder = raw_rows(num_rows).in_pieces("rows"), tmp_path / str(num_rows)
        folder.mkdir()
        tracemalloc.start()
        write_prepared(raw, SplitRule(num_rows // 40, num_rows // 200), folder, {})
        peaks[num_rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # Half of what 80,000 more rows weigh in the narrowest form in which a step has them: 13 bytes a row, and
    # 8 of its time.
    assert peaks[100_000] - peaks[20_000] < 80_000 * 21 / 2


def test_the_generated_data_set_does_not_depend_on_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(name="synthetic")
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 100)

    def rows(piece_rows: int) -> list[np.ndarray]:
        monkeypatch.setattr(schema, "PIECE_ROWS", piece_rows)
        few = DataConfig(name="synthetic", synthetic=type(config.synthetic)(num_rows=1050, num_users=50, num_items=9))
        raw = synthetic.pieces(few)
        blocks = [block for piece in raw.pieces for block in raw.read(piece)]
        return [np.concatenate([block[name] for block in blocks]) for name in blocks[0]]

    assert all((a == b).all() for a, b in zip(rows(170), rows(10_000), strict=True))


@given(st.lists(st.lists(st.integers(-3, 3), max_size=12), min_size=1, max_size=4), st.data())
def test_a_cut_leaves_the_first_rows_of_all_runs_before_it(times: list[list[int]], data: st.DataObject) -> None:
    num_rows = sum(map(len, times))
    rows = iter(data.draw(st.permutations(range(num_rows))))
    runs = [sorted((time, next(rows)) for time in run) for run in times]
    columns = [
        {"time": np.array([t for t, _ in run], np.int64), "row": np.array([r for _, r in run], np.int64)}
        for run in runs
    ]
    rank = data.draw(st.integers(0, num_rows))
    before = [one for run, place in zip(runs, sorted_runs.cut(columns, rank), strict=True) for one in run[:place]]
    assert sorted(before) == sorted(one for run in runs for one in run)[:rank]
