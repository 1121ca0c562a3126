"""`prepare` on the workers of a Ray cluster: the bytes of one process, also when workers are killed."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data import schema, shards
from mwuf_dist.data.prepare.pipeline import write_prepared
from mwuf_dist.data.prepare.workers import OnRay
from mwuf_dist.data.schema import RawDataset, RawPieces
from mwuf_dist.data.split import SplitRule
from tests.data.raw_files import files_of
from tests.tiny import tiny

pytestmark = pytest.mark.ray

NUM_ROWS, PIECE_ROWS = 6000, 1500
RULE = SplitRule(200, 20)


def rows(start: int) -> Iterator[dict[str, np.ndarray]]:
    """Some random rows, many of one time."""
    random = np.random.default_rng(start)
    yield {
        "user": random.integers(40, size=PIECE_ROWS, dtype=np.int32),
        "item": (60 * random.random(PIECE_ROWS) ** 3).astype(np.int32),
        "label": random.integers(2, size=PIECE_ROWS, dtype=np.int8),
        "time": random.integers(500, size=PIECE_ROWS),
    }


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> RawPieces:
    monkeypatch.setattr(schema, "PIECE_ROWS", PIECE_ROWS)
    monkeypatch.setattr(shards, "MAX_FILE_ROWS", 2048)
    users, items = (pa.table({"raw_id": np.arange(num)}) for num in (40, 60))
    entities = RawDataset(pa.table({}), users, items, ()).entities
    return RawPieces(tuple(range(0, NUM_ROWS, PIECE_ROWS)), rows, lambda *_: entities, ids_are_rows=True)


def prepared(raw: RawPieces, folder: Path, pool: Any = None) -> dict[str, bytes]:
    folder.mkdir()
    write_prepared(raw, RULE, folder, {}, pool)
    return files_of(folder)


def test_workers_write_every_byte_that_one_process_writes(cluster: Any, raw: RawPieces, tmp_path: Path) -> None:
    pool = OnRay(2)
    assert prepared(raw, tmp_path / "ray", pool) == prepared(raw, tmp_path / "here")
    assert 20e6 < pool.peak_bytes < 1e9 and pool.cpu_s > 0


def _killed(function: Callable[..., Any], marker: Path, *arguments: Any) -> Any:
    """Kills this worker when it has written its first file but not named it; only the first of all workers."""
    if not marker.exists():
        marker.touch()
        Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    return function(*arguments)


class Killing(OnRay):
    """Workers of which one is killed in each of some steps, by the names of their functions."""

    def __init__(self, folder: Path, steps: list[str]) -> None:
        super().__init__(2)
        self.folder, self.steps = folder, steps

    def map(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        if function.__name__ not in self.steps:
            return super().map(function, arguments)
        return super().map(functools.partial(_killed, function, self.folder / function.__name__), arguments)


@pytest.mark.parametrize(
    "steps",
    [
        ["histories", "shard"],
        pytest.param(["read_piece", "new_item_rows", "split_new_items", "rows_by_user"], marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_workers_killed_in_the_middle_of_steps_leave_the_same_files(
    steps: list[str], cluster: Any, raw: RawPieces, tmp_path: Path
) -> None:
    (tmp_path / "killed").mkdir()
    killed = prepared(raw, tmp_path / "ray", Killing(tmp_path / "killed", steps))
    assert {path.name for path in (tmp_path / "killed").iterdir()} == set(steps)
    assert killed == prepared(raw, tmp_path / "here")


def test_what_a_worker_finds_wrong_is_the_users_error(cluster: Any, raw: RawPieces, tmp_path: Path) -> None:
    def wrong(_: Any) -> Iterator[dict[str, np.ndarray]]:
        raise UserError("clicks.csv:7: label is 'x'; correct the line")
        yield {}

    with pytest.raises(UserError, match=r"^clicks.csv:7: label is 'x'; correct the line$"):
        prepared(dataclasses.replace(raw, read=wrong), tmp_path / "ray", OnRay(2))


def test_a_run_on_ray_prepares_on_its_workers(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mwuf_dist.launch import ray as launcher

    def prepare(_: Any, __: bool, pool: Any) -> None:
        assert isinstance(pool, OnRay)
        raise UserError("as expected")

    monkeypatch.setattr(launcher, "prepare", prepare)
    with pytest.raises(UserError, match="as expected"):
        launcher.train(tiny(data={"prepared_dir": str(tmp_path)}), tmp_path / "run", 2)
