"""`mwuf warm --users` of methods and data that need a run of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from mwuf_dist.data.id_keys import id_keys
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from mwuf_dist.serving.finished_run import FinishedRun, load_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.users import with_drawn_items
from mwuf_dist.training.item_rule.rule import frozen_double
from tests.serving.own_logs import a_day, config_for, make_logs, write
from tests.serving.test_warm_users import FIRST_NEW_USER, clicks_of, job, later_rows, state_of
from tests.tiny import tiny


def of_stranger(run: FinishedRun, first: FinishedRun, items: torch.Tensor) -> torch.Tensor:
    """Logits [n] of a user never seen with items as the first run has left them."""
    strangers = torch.full_like(items, run.prepared.num_users)
    with torch.no_grad():
        return first.model.backbone(first.embeddings(items), run.context(strangers, items))


def slopes_of(backbone: str, run: FinishedRun, items: torch.Tensor) -> torch.Tensor:
    """What the logit of a user without history rises by with each number of the user's row [n, D], float64."""
    dim = run.model.dim
    if backbone == "encoder":  # v . x_u, where the ID is in all of x_u but its constant
        return torch.nn.functional.pad(run.embeddings(items)[:, : dim - 1], (0, 1)).double()
    place = run.model.users.names.index("user_id") * dim
    side = run.unknown_user_context().double().repeat(len(items), 1).requires_grad_()
    context = torch.cat([run.item_context(items).double(), side], dim=1)
    logit = frozen_double(run.model.backbone)(run.embeddings(items).double(), context)
    return torch.autograd.grad(logit.sum(), side)[0][:, place : place + dim]


@pytest.mark.parametrize("backbone", ["fm", "encoder"])
def test_a_method_that_fits_items_fits_users_where_the_gradient_of_the_posterior_is_zero(
    backbone: str, tmp_path: Path
) -> None:
    sections = {"backbone": {"name": backbone}, "method": {"name": "map"}, "pretrain": {"epochs": 1}}
    local.train(tiny(**sections), tmp_path / "run")
    with start(read_run(tmp_path / "run")[0]) as runtime:
        first = load_run(tmp_path / "run", runtime)
        logs = later_rows(first)
        job(tmp_path / "run", logs, tmp_path / "run2", runtime)
        run, user = load_run(tmp_path / "run2", runtime), FIRST_NEW_USER + 4
        own = clicks_of(logs, user, first)
        items = torch.tensor([first.index_of(one["item_id"]) for one in own])
        row = (
            run.model.user_tables.rows_of("user_id", torch.tensor([run.index_of(user, "user") + 1]))[0]
            .detach()
            .double()
        )
        slope, mean = slopes_of(backbone, first, items), first.mean_user.double()
        moved = {first.index_of(one) for one in logs["item_id"].to_pylist() if one < 10**6}
        assert {int(item) for item in items} <= moved, "rows of items have moved, and a user's row knows nothing of it"
        logit = of_stranger(run, first, items).double() + slope @ (row - mean)
        label = torch.tensor([float(one["label"]) for one in own]).double()
        gradient = slope.T.detach() @ (torch.sigmoid(logit) - label) + 1.5 * (row - mean)
        assert float(gradient.abs().max()) < 1e-4  # scores and rows are rounded to float32
        assert float((row - mean).abs().max()) > 0.01


def test_of_positives_only_items_of_the_same_class_are_drawn_that_the_user_has_no_click_on(tmp_path: Path) -> None:
    table = make_logs()
    positives = table.filter(pa.array(table["label"].to_numpy() == 1)).drop_columns(["label"])
    write(positives, tmp_path / "log.csv")
    config = config_for(tmp_path, label="", negatives_per_positive=2)
    config = replace(config, data=replace(config.data, old_above=20, warm_rows=2))
    local.train(config, tmp_path / "run")
    day = a_day().drop_columns(["label"])
    user = day["user_id"].to_numpy().copy()
    user[::2] += 1000
    day = day.set_column(0, "user_id", pa.array(user))
    with start(read_run(tmp_path / "run")[0]) as runtime:
        job(tmp_path / "run", day, tmp_path / "whole", runtime)
        job(tmp_path / "run", day.slice(30), tmp_path / "part", runtime)
        job(tmp_path / "part", day, tmp_path / "rest", runtime)
        assert state_of(tmp_path / "rest") == state_of(tmp_path / "whole")
        run = load_run(tmp_path / "whole", runtime)
        assert run.state is not None and run.state.users is not None
        kept = run.state.users
        assert set(kept.log["label"].tolist()) == {1}, "nothing drawn is kept"
        log = with_drawn_items(kept.log, id_keys(kept.ids), run.prepared, 2, 0)
        drawn = log["label"] == 0
        pairs = {(int(u), int(i)) for u, i in zip(kept.log["item"], kept.log["user"], strict=True)}
        assert 0 < drawn.sum() <= 2 * len(kept.log["item"])
        assert not pairs & {(int(u), int(i)) for u, i in zip(log["item"][drawn], log["user"][drawn], strict=True)}
        old = run.num_old_items
        num_old = int((kept.log["user"] < old).sum())
        assert int((log["user"][drawn] < old).sum()) <= 2 * num_old and int((log["user"][drawn] >= old).sum()) > 0
