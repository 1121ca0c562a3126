"""MetaEmb does what its paper says: a generator trained through one gradient step on its output."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mwuf_dist.config import UserError
from mwuf_dist.config.registry import method_config
from mwuf_dist.data.batches.loader import Batch
from mwuf_dist.methods import Episodes, build_method
from mwuf_dist.methods.metaemb import MetaEmb
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.run import Run
from mwuf_dist.training.stages.episodes import EpisodeTrain
from tests.bounds import assert_float32_close, float32_bound, near
from tests.tiny import tiny

EPISODES, HALF, DIM, CONTEXT = 3, 5, 2, 4
ITEMS = torch.arange(EPISODES)
CONFIG = method_config(name="metaemb", inner_learning_rate=0.7, cold_weight=0.3, generator_scale=0.5)


def normal(width: int) -> torch.Tensor:
    """Draws that are the same at each call, as within one step."""
    return torch.randn(EPISODES, width, generator=torch.Generator().manual_seed(width)).double()


class Rows:
    """Support and query rows of three items under a small curved model: logit = tanh(v) . user + v . v / 2."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.context = torch.randn(EPISODES, CONTEXT).double()
        self.users = torch.randn(2, EPISODES, HALF, DIM).double()
        self.labels = torch.randint(0, 2, (2, EPISODES, HALF)).double()

    def loss(self, half: int, v: torch.Tensor) -> torch.Tensor:
        logit = (torch.tanh(v)[:, None] * self.users[half]).sum(-1) + 0.5 * v.square().sum(-1, keepdim=True)
        return F.binary_cross_entropy_with_logits(logit, self.labels[half], reduction="none").mean(1)

    def episodes(self) -> Episodes:
        return Episodes(ITEMS, self.context, lambda v: self.loss(0, v), lambda v: self.loss(1, v), normal)


def literal_loss(rows: Rows, weight: torch.Tensor, rate: float) -> float:
    """Algorithm 1 of the paper item by item, the inner slope by central differences: no autograd anywhere."""
    total = 0.0
    for item in range(EPISODES):
        v = CONFIG.generator_scale * torch.tanh(weight @ rows.context[item])

        def loss(half: int, value: torch.Tensor, item: int = item) -> float:
            values = torch.zeros(EPISODES, DIM).double()
            values[item] = value
            return float(rows.loss(half, values)[item])

        slope = torch.zeros(DIM).double()
        for column in range(DIM):
            step = torch.zeros(DIM).double()
            step[column] = 1e-5
            slope[column] = (loss(0, v + step) - loss(0, v - step)) / 2e-5
        total += CONFIG.cold_weight * loss(0, v) + (1 - CONFIG.cold_weight) * loss(1, v - rate * slope)
    return total


def test_loss_and_its_gradient_through_the_inner_step_equal_finite_differences() -> None:
    rows = Rows()
    method = MetaEmb(CONFIG, DIM, CONTEXT).double()
    loss = method.episode_loss(rows.episodes())
    assert loss.shape == (EPISODES,)
    loss.sum().backward()
    weight = method.generator.weight.detach()
    assert loss.sum().item() == pytest.approx(literal_loss(rows, weight, CONFIG.inner_learning_rate), abs=1e-8)
    assert method.generator.weight.grad is not None
    for i in range(DIM):
        for j in range(CONTEXT):
            step = torch.zeros_like(weight)
            step[i, j] = 1e-4
            up = literal_loss(rows, weight + step, CONFIG.inner_learning_rate)
            down = literal_loss(rows, weight - step, CONFIG.inner_learning_rate)
            assert method.generator.weight.grad[i, j].item() == pytest.approx((up - down) / 2e-4, abs=1e-5)


def test_the_gradient_has_the_second_order_term() -> None:
    rows = Rows()
    method = MetaEmb(CONFIG, DIM, CONTEXT).double()
    exact = torch.autograd.grad(method.episode_loss(rows.episodes()).sum(), method.generator.weight)[0]
    v = method.initial_rows(ITEMS, rows.context)
    slope = torch.autograd.grad(rows.loss(0, v).sum(), v)[0].detach()  # a constant: the first-order shortcut
    v = method.initial_rows(ITEMS, rows.context)
    first_order = 0.3 * rows.loss(0, v) + 0.7 * rows.loss(1, v - 0.7 * slope)
    shortcut = torch.autograd.grad(first_order.sum(), method.generator.weight)[0]
    assert (exact - shortcut).abs().max() > 1e-3


@pytest.mark.parametrize("backbone", ["deepfm", "afn"])
def test_an_item_learns_from_its_own_rows_and_padding_counts_for_nothing(tmp_path: Path, backbone: str) -> None:
    config = tiny(method={"name": "metaemb"}, backbone={"name": backbone}, pretrain={"epochs": 1})
    with start(config) as runtime:
        (tmp_path / "run").mkdir()
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        job.meta_train()
        assert job._frozen is not None
        stage = EpisodeTrain(config, job._frozen, job.method)
        half = config.data.warm_rows
        torch.manual_seed(0)
        item = torch.tensor([3, 5]).repeat_interleave(2 * half)
        user, label = torch.randint(0, 300, (4 * half,)), torch.randint(0, 2, (4 * half,)).float()

        def loss(chosen: slice, weight: torch.Tensor, num_rows: int) -> float:
            rows = (user[chosen], item[chosen], label[chosen], weight)
            return stage.loss(Batch(*rows, num_rows, False, 0, 0)).item()

        ones = torch.ones(2 * half)
        first, second = (loss(slice(a, a + 2 * half), ones, 2 * half) for a in (0, 2 * half))
        both = loss(slice(None), torch.ones(4 * half), 4 * half)
        # 80 fields, neurons and hidden units there, back for the inner step, there again; AFN's logarithms count 4.
        rounding = {"num_terms": 3 * 80 + 2 * 4, "size": first}
        assert both == near((first + second) / 2, **rounding)
        padded = loss(slice(None), torch.cat([ones, 0 * ones]), 2 * half)
        assert padded == near(first, **rounding)
        assert abs(first - second) > 100 * float32_bound(**rounding), "else a mean of others would pass too"
        job.session.recorder.close()


def test_new_items_start_where_the_generator_puts_them(tmp_path: Path) -> None:
    config = tiny(method={"name": "metaemb"}, pretrain={"epochs": 1})
    with start(config) as runtime:
        (tmp_path / "run").mkdir()
        job = Run(config, tmp_path / "run", runtime, run_module._prepare(config, runtime))
        job.pretrain(None)
        before = {name: value.clone() for name, value in job.method.state_dict().items()}
        job.meta_train()
        assert any(not torch.equal(value, before[name]) for name, value in job.method.state_dict().items())
        run_module.initialise_new_ids(config, job.model, job.method, from_row=job.model.num_old)
        items = torch.arange(job.model.num_old, job.model.num_items)
        with torch.no_grad():
            context = job.model.item_fields(items)
            expected = job.method.initial_rows(items, context)
        found = job.model.new_ids.shards("new")[0].weight[items]
        assert_float32_close(found, expected, num_terms=len(context[0]))
        assert found.std(0).min() > 0  # items with other fields start elsewhere
        job.session.recorder.close()


@pytest.mark.parametrize("first_rows", ["align", "content_delta", "metaemb", "semantic_id"])
def test_mwuf_has_the_first_rows_and_the_loss_of_the_method_that_it_starts_from(first_rows: str) -> None:
    rows, keys = Rows(), {"align_hidden": 3, "delta_bound": 0.2, "generator_scale": 0.7, "code_size": 2}
    alone = {key: value for key, value in keys.items() if key in vars(method_config(name=first_rows))}
    runtime = SimpleNamespace(broadcast=lambda value: value)
    old = torch.randn(EPISODES, DIM).double()
    items: Any = SimpleNamespace(
        num_old=EPISODES, runtime=runtime, old_rows=lambda items: old[items], context=lambda items: rows.context[items]
    )
    found = []
    for config in (
        method_config(name=first_rows, **alone),
        method_config(name="mwuf", initialisation=first_rows, scaling=False, shifting=False, **keys),
    ):
        torch.manual_seed(5)
        method = build_method(config, DIM, CONTEXT).double()
        assert method.initialisation == "own" and method.episode_trained
        method.attach(items)
        found.append((method.episode_loss(rows.episodes()), method.initial_rows(ITEMS, rows.context)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("first_rows", ["metaemb", "semantic_id"])
def test_mwuf_can_start_from_what_another_method_makes(first_rows: str, tmp_path: Path) -> None:
    config = tiny(method={"name": "mwuf", "initialisation": first_rows})
    with start(config) as runtime:
        results = run_module.run(config, tmp_path / "run", runtime)
    rows = results["split"]["pretrain"]
    assert rows < results["stages"]["meta_train"]["samples"] <= 2 * rows  # the other's episodes, then Algorithm 1
    assert results["phases"]["warm-c"]["auc_test"] > 0.65


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "metaemb", "initialisation": "mean"}, "is an initialisation itself: leave the key out"),
        ({"name": "base", "initialisation": "metaemb"}, "'base' has no generator of rows: it goes with mwuf"),
        ({"name": "map", "initialisation": "align"}, "alone it is method.name = 'align'"),
        ({"name": "semantic_id", "initialisation": "align"}, "is an initialisation itself: leave the key out"),
        ({"name": "dropoutnet", "initialisation": "metaemb"}, "'dropoutnet' has no generator of rows"),
    ],
)
def test_first_rows_that_make_no_sense_are_the_users_error(keys: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(method_config(**keys), DIM, CONTEXT)  # type: ignore[arg-type]
