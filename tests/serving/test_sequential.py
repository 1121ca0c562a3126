"""Runs of backbones that look at histories: exported and explained like any other, with the histories as of now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mwuf_dist.launch import local
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, open_run
from tests.serving.replay import replayed
from tests.serving.test_export import ROUNDING, read_back, served_scores
from tests.tiny import tiny


@pytest.fixture(scope="module", params=["gru4rec", "din"])
def sequential_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[FinishedRun]:
    config = tiny(
        backbone={"name": request.param, "history_length": 5},
        pretrain={"epochs": 1, "batch_size": 1024},
        meta_train={"batch_size": 1024},
        warm_up={"epochs": 1},
    )
    folder = tmp_path_factory.mktemp("sequential") / "run"
    local.train(config, folder)
    with open_run(folder) as run:
        yield run


def pairs(run: FinishedRun) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    num = 300
    return torch.randint(run.prepared.num_users, (num,)), torch.randint(run.num_items, (num,))


def test_exported_model_and_embeddings_score_as_the_run_does(sequential_run: FinishedRun, tmp_path: Path) -> None:
    run = sequential_run
    folder = export(run, "npy", tmp_path / "export", old_items=True)
    users, items = pairs(run)
    model = torch.export.load(folder / "model.pt2").module()
    vectors = torch.from_numpy(read_back(folder)["embedding"])
    with torch.no_grad():
        found = model(vectors[items], run.context(users, items))
    torch.testing.assert_close(found, run.scores(users, items), rtol=0, atol=ROUNDING)
    short = run.scores(users.to(torch.int32), items.to(torch.int32))  # as the shards have them
    assert torch.equal(short, run.scores(users, items))
    width = json.loads((folder / "export.json").read_text())["history_width"]
    assert run.context(users, items).shape[1] == (run.model.shape.num_fields - 1) * run.model.dim + width


def test_a_server_needs_nothing_but_the_export(sequential_run: FinishedRun, tmp_path: Path) -> None:
    run = sequential_run
    folder = export(run, "parquet", tmp_path / "export", old_items=True, context=True)
    users, items = pairs(run)
    ids = [run.user_ids[user].as_py() for user in users.tolist()], [run.item_ids[one].as_py() for one in items.tolist()]
    np.testing.assert_allclose(served_scores(folder, *ids, tmp_path), run.scores(users, items), rtol=0, atol=ROUNDING)
    # Whoever the run does not know has no history.
    unknown = json.loads((folder / "export.json").read_text())["unknown_user"]
    assert not np.any(unknown[-run.model.backbone.history_width :])


def test_a_score_depends_on_the_history_of_its_own_user(sequential_run: FinishedRun) -> None:
    """Score by score, in any company: rows of a batch that share a history do not mix with the others."""
    run = sequential_run
    users, items = pairs(run)
    together = run.scores(users, items)
    alone = torch.cat([run.scores(users[i : i + 1], items[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(alone, together[:20], rtol=0, atol=ROUNDING)
    histories = run.model.histories(run.prepared, 3)
    assert histories is not None
    history = histories.whole(users)
    fields = torch.zeros(len(users), (run.model.shape.num_fields - 1) * run.model.dim)
    assert run.model.encoded_history(history, fields).std(0).max() > 1e-3


def test_an_explanation_replays_the_warm_up_with_its_histories(sequential_run: FinishedRun) -> None:
    run = sequential_run
    found = replayed(run)
    assert {item_id for item_id, _ in found.nearest} <= set(run.old_item_ids)
