"""MAP: each item's row is the minimum of its own convex problem."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwuf_dist.backbones import Shape, build_backbone
from mwuf_dist.config import UserError
from mwuf_dist.config.registry import backbone_config, method_config
from mwuf_dist.methods import build_method
from mwuf_dist.methods.lines import Lines
from mwuf_dist.methods.map import Map
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.item_fit import ItemFit
from mwuf_dist.training.stages.meta_train import initialise_new_ids
from tests.bounds import assert_float32_close
from tests.tiny import tiny

ITEMS, ROWS, DIM = 5, 120, 3


def problem(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "start": torch.randn(ITEMS, DIM, generator=generator).double(),
        "item": torch.randint(0, ITEMS - 1, (ROWS,), generator=generator),  # the last item has no clicks
        "label": torch.randint(0, 2, (ROWS,), generator=generator).double(),
        "offset": scale * torch.randn(ROWS, generator=generator).double(),
        "slope": scale * torch.randn(ROWS, DIM, generator=generator).double(),
    }


def fitted_by(method: Map, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    return method.fit(rows["start"], lines_of(rows), rows["label"])


def lines_of(rows: dict[str, torch.Tensor]) -> Lines:
    return Lines(rows["item"], rows["offset"], rows["slope"], rows.get("weight"))


def method(precision: float = 1.5) -> Map:
    return Map(method_config(name="map", prior_precision=precision), DIM, 4)


def brute_force(rows: dict[str, torch.Tensor], item: int, precision: float) -> np.ndarray:
    """The same minimum by a quasi-Newton method that knows the loss alone."""
    of_item = (rows["item"] == item).numpy()
    prior, offset, slope, label = (rows[name].numpy() for name in ("start", "offset", "slope", "label"))

    def loss(v: np.ndarray) -> float:
        logit = offset[of_item] + slope[of_item] @ v
        bce = np.logaddexp(0, logit) - label[of_item] * logit
        return float(bce.sum() + precision / 2 * ((v - prior[item]) ** 2).sum())

    return scipy.optimize.minimize(loss, prior[item], method="BFGS", options={"gtol": 1e-9}).x


@pytest.mark.parametrize("precision", [0.2, 1.5, 30.0])
def test_rows_are_the_minimum_that_a_quasi_newton_method_finds(precision: float) -> None:
    rows = problem(0)
    fitted = fitted_by(method(precision), rows)
    for item in range(ITEMS):
        assert fitted[item].numpy() == pytest.approx(brute_force(rows, item, precision), abs=2e-5)


def test_an_item_without_clicks_stays_at_its_first_row() -> None:
    rows = problem(1)
    assert torch.equal(fitted_by(method(), rows)[-1], rows["start"][-1])


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_the_gradient_is_zero_at_the_rows_even_where_a_newton_step_overshoots(seed: int, scale: float) -> None:
    rows, precision = problem(seed, scale), 0.01
    fitted = fitted_by(method(precision), rows)
    residual = torch.sigmoid(rows["offset"] + (fitted[rows["item"]] * rows["slope"]).sum(1)) - rows["label"]
    gradient = precision * (fitted - rows["start"])
    gradient.index_add_(0, rows["item"], rows["slope"] * residual[:, None])
    assert gradient.abs().max() < 1e-6


def test_rows_do_not_depend_on_the_order_of_clicks_or_on_other_items() -> None:
    rows = problem(2)
    whole = fitted_by(method(), rows)
    shuffled = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    moved = {name: value[shuffled] if name != "start" else value for name, value in rows.items()}
    assert torch.allclose(fitted_by(method(), moved), whole, atol=1e-12)
    one = rows["item"] == 2
    alone = {name: value[one] if name != "start" else value[2:3] for name, value in rows.items()} | {
        "item": torch.zeros(int(one.sum()), dtype=torch.int64)
    }
    assert torch.allclose(fitted_by(method(), alone)[0], whole[2], atol=1e-12)


def test_a_backbone_whose_logit_is_not_linear_is_refused_before_any_training() -> None:
    shape = Shape(dim=DIM, num_item_fields=1, num_user_fields=1)
    build_method(method_config(name="map"), DIM, 4, build_backbone(backbone_config(name="fm"), shape))
    with pytest.raises(UserError, match="'encoder' or 'fm'"):
        build_method(method_config(name="map"), DIM, 4, build_backbone(backbone_config(name="deepfm"), shape))


@pytest.mark.parametrize("backbone", ["fm", "encoder"])
def test_lines_are_the_logits_that_the_rows_had_at_their_time(backbone: str, tmp_path) -> None:
    config = tiny(
        backbone={"name": backbone} | ({"hidden": [16], "recent": [2, 5]} if backbone == "encoder" else {}),
        method={"name": "map"},
        pretrain={"epochs": 1, "batch_size": 4096},
    )
    with start(config) as runtime:
        prepared = run_module._prepare(config, runtime)
        job = Run(config, tmp_path / "run", runtime, prepared)
        job.pretrain(None)
        job.meta_train()
        assert job._frozen is not None
        initialise_new_ids(config, job.model, job.method, from_row=job.model.num_old)
        fit = ItemFit(job.model, job._frozen, job.method)
        lines, label = fit._read(prepared, "warm_b")
        columns = prepared.columns("warm_b", ("user", "item", "label"))
        order = np.argsort(columns["user"], kind="stable")
        user, item = (torch.from_numpy(columns[name][order]).long() for name in ("user", "item"))
        rows = torch.randn(job.model.num_items, job.model.dim)
        histories = job.model.histories(prepared, 0)
        history = None
        if histories is not None:
            before = torch.from_numpy(histories.before("warm_b", 0, len(order))[order]).long()
            history = histories.of(user, before, in_pretrain=False)
            assert (history.earlier < history.lengths[history.group]).any(), "else it would not matter when a row was"
        part = job._frozen.part(user, item, history)
        expected = job._frozen.logit(rows[item], part)
        found = lines.logits(rows[job.model.num_old :])
        assert torch.equal(label, torch.from_numpy(columns["label"][order]).float())
        assert_float32_close(found, expected, num_terms=2 * 100)  # fields, history and hidden units, by two ways
        job.session.recorder.close()
