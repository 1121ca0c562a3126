"""`mwuf warm --old-items` of other methods, and of a log of positives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.launch import local
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.serving.finished_run import load_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.job import WarmReport, warm
from mwuf_dist.training.item_rule.rule import frozen_double
from tests.serving.own_logs import config_for, make_logs, write
from tests.tiny import tiny


def job(folder: Path, table: pa.Table, output: Path, runtime: Runtime) -> WarmReport:
    pq.write_table(table, output.with_suffix(".parquet"))
    return warm(folder, output.with_suffix(".parquet"), output, runtime, old_items=True)


def test_a_fit_is_to_all_rows_of_an_old_item_those_of_pretraining_too(tmp_path: Path) -> None:
    config = tiny(backbone={"name": "fm"}, method={"name": "map"}, pretrain={"epochs": 1})
    local.train(config, tmp_path / "run")
    with start(config) as runtime:
        run = load_run(tmp_path / "run", runtime)
        row = {"user_id": run.user_ids[:1], "item_id": run.item_ids[:1], "label": [1], "timestamp": [10**9]}
        job(tmp_path / "run", pa.table(row), tmp_path / "run2", runtime)
        moved = load_run(tmp_path / "run2", runtime).embeddings([0])[0].double()
        part = run.prepared.columns("pretrain", ("user", "item", "label"))
        own = part["item"] == 0
        users = torch.from_numpy(np.append(part["user"][own], 0)).long()
        label = torch.from_numpy(np.append(part["label"][own], 1)).double()
        context = run.context(users, torch.zeros_like(users)).double()
        backbone, prior = frozen_double(run.model.backbone), torch.zeros(run.model.dim).double()
        row_at = moved.clone().requires_grad_()
        logit = backbone(row_at.expand(len(users), -1), context)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, label, reduction="sum")
        (slope,) = torch.autograd.grad(loss, row_at)
        # At the fitted row the clicks and the prior pull alike.
        torch.testing.assert_close(slope, -run.method.precision.double() @ (moved - prior), rtol=1e-3, atol=1e-3)


def test_a_method_that_passes_rows_through_an_autoencoder_refuses(tmp_path: Path) -> None:
    config = tiny(method={"name": "cvar", "regenerate": True}, pretrain={"epochs": 1})
    local.train(config, tmp_path / "run")
    with start(config) as runtime:
        run = load_run(tmp_path / "run", runtime)
        row = {"user_id": run.user_ids[:1], "item_id": run.item_ids[:1], "label": [1], "timestamp": [10**9]}
        with pytest.raises(UserError, match="--old-items does not go with method.name = 'cvar'"):
            job(tmp_path / "run", pa.table(row), tmp_path / "run2", runtime)
        assert not (tmp_path / "run2").exists()


def test_positives_of_old_items_meet_users_of_old_items(tmp_path: Path) -> None:
    logs = make_logs()
    users = np.where(logs["item_id"].to_numpy() < 900, logs["user_id"].to_numpy(), 100 + logs["user_id"].to_numpy())
    positives = logs.set_column(0, "user_id", pa.array(users)).drop_columns(["label"])
    write(positives, tmp_path / "log.csv")
    local.train(config_for(tmp_path, label="", negatives_per_positive=2), tmp_path / "run")
    rows = {"user_id": [1, 2, 101], "item_id": [100, 101, 900], "timestamp": [1_600_100_000] * 3}
    write(pa.table(rows), tmp_path / "day.csv")
    with start(read_run(tmp_path / "run")[0]) as runtime:
        report = warm(tmp_path / "run", tmp_path / "day.csv", tmp_path / "run2", runtime, old_items=True)
        assert (report.num_drawn, report.change.num_new, report.change.num_of_old_items) == (6, 3, 2)
        run = load_run(tmp_path / "run2", runtime)
        assert run.state is not None
        log = run.state.log
        drawn = np.array(run.user_ids.to_pylist())[log["user"][log["label"] == 0]]
        of_old = log["item"][log["label"] == 0] < run.num_old_items
        assert (drawn[of_old] < 100).all() and (drawn[~of_old] > 100).all() and of_old.sum() == 4
