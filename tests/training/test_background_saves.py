"""Saves beside training: what is written is what was when the save was asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mwuf_dist.config import CheckpointConfig, EmbeddingConfig, UserError
from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.runtime.shutdown import StoppedError
from mwuf_dist.training.checkpoint import save as checkpoints
from mwuf_dist.training.checkpoint.files import Cursor, Meta, load_tensors
from mwuf_dist.training.checkpoint.save import Checkpointer, SavePolicy
from mwuf_dist.training.results import versions
from tests.tiny import tiny

ALWAYS = CheckpointConfig(background_from_mb=0)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits for it."""
    event, save = threading.Event(), checkpoints.dcp.save

    def late(*args: Any, **kwargs: Any) -> Any:
        assert event.wait(30)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoints.dcp, "save", late)
    return event


def meta(step: int) -> Meta:
    return Meta(Cursor("pretrain", 0, 0, step), "config", 1, versions())


def tables(runtime: Runtime, seed: int) -> Tables:
    found = Tables("t", [TableSpec("a", 50, 8), TableSpec("b", 20, 8)], EmbeddingConfig(), runtime)
    found.draw(0.1, seed)
    return found


def test_training_goes_on_while_what_was_is_written(release: threading.Event, tmp_path: Path) -> None:
    with start(tiny()) as runtime:
        trained, expected, read = tables(runtime, 1), tables(runtime, 1), tables(runtime, 2)
        dense = torch.ones(3)
        checkpointer, now = Checkpointer(tmp_path, ALWAYS, runtime), meta(5)
        checkpointer.save(now, trained.state() | {"dense": dense})
        assert not (tmp_path / "LATEST").exists()
        trained.draw(0.1, 3)
        dense.zero_()
        now.cursor = Cursor("pretrain", 0, 0, 6)
        release.set()
        checkpointer.wait()
        assert (tmp_path / "LATEST").read_text() == "pretrain-0-0-00000005"
        found = checkpointer.latest("config")
        assert found is not None and found[1].cursor.step == 5 and not found[2]
        load_tensors(found[0], read.state() | {"dense": dense})
        assert bool((dense == 1).all())
        for name in ("a", "b"):
            assert torch.equal(read.shards(name)[0].weight, expected.shards(name)[0].weight)


def test_one_save_at_a_time_and_leaving_waits_for_it(release: threading.Event, tmp_path: Path) -> None:
    def save_twice_and_leave(checkpointer: Checkpointer) -> None:
        with checkpointer:
            checkpointer.save(meta(1), {"dense": torch.ones(3)})
            threading.Timer(0.3, release.set).start()
            checkpointer.save(meta(2), {"dense": torch.ones(3)})
            assert (tmp_path / "pretrain-0-0-00000001").is_dir(), "the one before is whole first"
            raise StoppedError

    with start(tiny()) as runtime:
        with pytest.raises(StoppedError):
            save_twice_and_leave(Checkpointer(tmp_path, ALWAYS, runtime))
        assert (tmp_path / "LATEST").read_text() == "pretrain-0-0-00000002"


def test_a_disk_that_is_full_meanwhile_is_told_at_the_next_save(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with start(tiny()) as runtime:
        values = {"dense": torch.ones(3)}
        checkpointer = Checkpointer(tmp_path, ALWAYS, runtime)
        checkpointer.save(meta(1), values)
        checkpointer.wait()
        monkeypatch.setattr(checkpoints, "record", full)
        checkpointer.save(meta(2), values)
        with pytest.raises(UserError, match=r"No space left.*goes on from pretrain-0-0-00000001, which is whole"):
            checkpointer.save(meta(3), values)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["pretrain-0-0-00000001"]


def test_only_large_states_are_copied() -> None:
    policy = SavePolicy(CheckpointConfig(), Runtime(0, 4, torch.device("cpu"), False))
    assert not policy.in_background(4 * 499e6) and policy.in_background(4 * 500e6)
