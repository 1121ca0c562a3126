"""A finished run of every method scores, and warms up again, as it did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mwuf_dist.launch import local
from mwuf_dist.methods import METHODS
from mwuf_dist.serving.explain import explain
from mwuf_dist.serving.export.chunks import item_chunks
from mwuf_dist.serving.finished_run import open_run
from tests.bounds import assert_auc_of_rounded
from tests.serving.test_export import ROUNDING
from tests.tiny import tiny


@pytest.mark.parametrize("method", METHODS)
def test_an_opened_run_has_the_embeddings_that_were_scored_and_can_be_replayed(method: str, tmp_path: Path) -> None:
    config = tiny(
        method={"name": method},
        backbone={"name": "fm" if METHODS[method].fits_items else "deepfm"},
        pretrain={"epochs": 1, "batch_size": 1024},
        meta_train={"batch_size": 2048},
        warm_up={"batch_size": 512},
    )
    local.train(config, tmp_path / "run")
    with open_run(tmp_path / "run") as run:
        test = run.prepared.columns("test", ("user", "item", "label"))
        users, items = (torch.from_numpy(test[name]).long() for name in ("user", "item"))
        scores = run.scores(users, items).double().numpy()
        assert_auc_of_rounded(run.results["phases"]["warm-c"]["auc_test"], scores, test["label"], ROUNDING)
        (chunk,) = item_chunks(run, np.arange(run.model.num_old, run.num_items))
        assert chunk.columns["embedding"].shape == (len(run.new_item_ids), config.embedding.dim)
        assert explain(run, run.new_item_ids[0]).replay_error < ROUNDING
