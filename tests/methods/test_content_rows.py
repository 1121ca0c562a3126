"""Methods whose first row is made of content: their losses are their formulas, item by item."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mwuf_dist.config.registry import method_config
from mwuf_dist.methods.align import Align
from mwuf_dist.methods.content_delta import ContentDelta
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from tests.methods.test_metaemb import CONTEXT, DIM, EPISODES, ITEMS, Rows
from tests.tiny import tiny

RATE = 0.7


def loss_of(rows: Rows, half: int, item: int, value: torch.Tensor) -> float:
    values = torch.zeros(EPISODES, DIM).double()
    values[item] = value
    return float(rows.loss(half, values)[item])


def test_content_delta_takes_a_bounded_step_from_its_content_row() -> None:
    """Against the formula with a slope by central differences; the bound is met by some items and not by others."""
    rows, at_bound = Rows(), set()
    torch.manual_seed(1)
    config = method_config(name="content_delta", delta_bound=0.6, delta_learning_rate=RATE, delta_cold_weight=0.3)
    method = ContentDelta(config, DIM, CONTEXT).double()
    found = method.episode_loss(rows.episodes())
    weight, bias = method.content.weight.detach(), method.content.bias.detach()
    for item in range(EPISODES):
        content = weight @ rows.context[item] + bias
        moves = [1e-5 * one for one in torch.eye(DIM).double()]
        rise = [loss_of(rows, 0, item, content + e) - loss_of(rows, 0, item, content - e) for e in moves]
        slope = torch.tensor(rise).double() / 2e-5
        delta = -RATE * slope
        most = 0.6 * content.norm()
        at_bound.add(bool(delta.norm() > most))
        delta = delta * min(1.0, float(most / delta.norm()))
        expected = 0.3 * loss_of(rows, 0, item, content) + 0.7 * loss_of(rows, 1, item, content + delta)
        assert found[item].item() == pytest.approx(expected, abs=1e-6)
    assert at_bound == {True, False}
    found.sum().backward()
    assert method.content.weight.grad is not None and method.content.weight.grad.abs().max() > 0


def test_a_warm_row_is_taken_back_to_the_bound_in_its_direction_and_a_near_one_stays() -> None:
    method = ContentDelta(method_config(name="content_delta", delta_bound=0.5), DIM, CONTEXT).double()
    context = torch.randn(2, CONTEXT, generator=torch.Generator().manual_seed(0)).double()
    content = method.initial_rows(ITEMS[:2], context)
    direction = torch.tensor([[0.6, 0.8]]).double() * content.norm(dim=1, keepdim=True)
    far = method.regenerated_rows(content + 3 * direction, context)
    assert torch.allclose(far, content + 0.5 * direction)
    near = content + 0.4 * direction
    assert torch.allclose(method.regenerated_rows(near, context), near)


@pytest.mark.parametrize("name", ["align", "content_delta", "csdm", "semantic_id"])
def test_a_whole_run_ranks_new_items_without_clicks_and_better_with_them(name: str, tmp_path: Path) -> None:
    with start(config := tiny(method={"name": name})) as runtime:
        phases = run_module.run(config, tmp_path / name, runtime)["phases"]
    assert phases["cold"]["auc_test"] > 0.6
    assert phases["warm-c"]["auc_test"] > phases["cold"]["auc_test"] + 0.02


def test_align_is_the_loss_of_clicks_plus_the_distance_to_the_old_row() -> None:
    rows = Rows()
    torch.manual_seed(2)
    method = Align(method_config(name="align", align_weight=0.7, align_hidden=5), DIM, CONTEXT).double()
    old = torch.randn(EPISODES, DIM).double()
    items: Any = SimpleNamespace(old_rows=lambda items: old[items])
    method.attach(items)
    found = method.episode_loss(rows.episodes())
    (w1, b1), (w2, b2) = ((method.proxy[k].weight.detach(), method.proxy[k].bias.detach()) for k in (0, 2))
    for item in range(EPISODES):
        proxy = w2 @ (w1 @ rows.context[item] + b1).clamp(min=0) + b2
        clicks = (loss_of(rows, 0, item, proxy) + loss_of(rows, 1, item, proxy)) / 2
        expected = clicks + 0.7 * float(((proxy - old[item]) ** 2).sum())
        assert found[item].item() == pytest.approx(expected, abs=1e-9)
