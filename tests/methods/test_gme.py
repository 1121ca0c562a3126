"""GME's three forms are their formulas, in plain loops over float64 numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mwuf_dist.config.registry import method_config
from mwuf_dist.methods.gme import Gme
from mwuf_dist.runtime import Runtime

DIM, CONTEXT, ITEMS, OLD = 3, 4, 6, 5
# Item 5 is new; item 0 has one neighbour only, item 2 none.
NEIGHBOURS = torch.tensor([[3, -1], [0, 4], [-1, -1], [0, 1], [1, 3], [2, 4]])
GAMMA = 0.6


def gme(graph: Any) -> tuple[Gme, torch.Tensor, torch.Tensor]:
    """(the method, rows of phi_old, field embeddings)."""
    torch.manual_seed(3)
    method = Gme(method_config(name="gme", graph=graph, neighbours=2, generator_scale=GAMMA), DIM, CONTEXT).double()
    for parameter in method.parameters():
        nn.init.normal_(parameter)
    rows = torch.randn(OLD, DIM).double().requires_grad_()
    context = torch.randn(ITEMS, CONTEXT).double()
    items: Any = SimpleNamespace(
        runtime=Runtime(0, 1, torch.device("cpu"), False),
        old_rows=lambda items: rows.detach()[items],
        context=lambda items: context[items],
    )
    method.attach(items)
    method.__dict__["_neighbours"] = NEIGHBOURS
    return method, rows, context


def times(weight: torch.Tensor, x: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, x, strict=True)) for row in weight.tolist()]


def generated(method: Gme, x: list[float]) -> list[float]:
    return [GAMMA * math.tanh(y) for y in times(method.generator.weight, x)]


def attended(method: Gme, own: list[float], others: list[list[float]]) -> list[float]:
    """u of the docstring."""
    hidden = [times(method.transform.weight, h) for h in (own, *others)]
    scores = [times(method.attention.weight, hidden[0] + h)[0] for h in hidden]
    powers = [math.exp(score if score > 0 else 0.2 * score) for score in scores]
    sums = [sum(p * h[i] for p, h in zip(powers, hidden, strict=True)) / sum(powers) for i in range(len(own))]
    return [y if y > 0 else math.exp(y) - 1 for y in sums]


@pytest.mark.parametrize("graph", ["ids", "generated", "attributes"])
def test_first_rows_are_the_papers_formula(graph: str) -> None:
    method, rows, context = gme(graph)
    found = method.initial_rows(torch.arange(ITEMS), context)
    for item in range(ITEMS):
        near = [index for index in NEIGHBOURS[item].tolist() if index >= 0]
        x, ids = context.tolist(), rows.tolist()
        if graph == "ids":
            expected = attended(method, generated(method, x[item]), [ids[j] for j in near])
        elif graph == "generated":
            expected = attended(method, generated(method, x[item]), [generated(method, x[j]) for j in near])
        else:
            expected = generated(method, attended(method, x[item], [x[j] for j in near]))
        assert found[item].tolist() == pytest.approx(expected, abs=1e-12), item
    found.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in method.parameters())
    assert rows.grad is None  # frozen


@pytest.mark.parametrize("graph", ["ids", "attributes"])
def test_an_item_without_neighbours_depends_on_itself_alone(graph: str) -> None:
    method, _, context = gme(graph)
    alone = method.initial_rows(torch.tensor([2]), context[2:3])
    changed = context.clone()
    changed[[0, 1, 3, 4, 5]] = 9.0
    method._items = SimpleNamespace(  # type: ignore[assignment]
        runtime=method._items.runtime,
        old_rows=lambda items: torch.full((len(items), DIM), 9.0).double(),
        context=lambda items: changed[items],
    )
    assert torch.equal(method.initial_rows(torch.tensor([2]), context[2:3]), alone)
