"""The serving rule is a function of an item's own interactions, whatever its company and however they came."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mwuf_dist.backbones import Shape, build_backbone
from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.config.registry import backbone_config
from mwuf_dist.training.item_rule.rule import WarmRule, frozen_double, module_slope, warm_rows
from tests.bounds import assert_float32_close

DIM, CONTEXT = 4, 12


def make(name: str = "deepfm") -> Any:
    torch.manual_seed(1)
    return frozen_double(build_backbone(backbone_config(name=name, hidden=(8,)), Shape(DIM, 1, 2)))


def data(counts: np.ndarray, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """(first rows, contexts, labels) of items with so many interactions."""
    generator = torch.Generator().manual_seed(seed)
    total = int(counts.sum())
    start = torch.randn(len(counts), DIM, generator=generator)
    context = torch.randn(total, CONTEXT, generator=generator, dtype=torch.float64)
    return start, context, torch.randint(2, (total,), generator=generator).numpy()


def by_hand(rule: WarmRule, module: torch.nn.Module, v: torch.Tensor, context: torch.Tensor, label: np.ndarray):
    """One item with torch's own Adam, block by block."""
    blocks, seen = [], 0
    ends = [rule.block_rows, 2 * rule.block_rows, 3 * rule.block_rows]
    ends += [3 * rule.block_rows * 2**power for power in range(1, 12)]
    sizes = [1, 1, 1, *(3 * 2**power for power in range(11))]
    for end, size in zip(ends, sizes, strict=True):
        if seen < len(label):
            blocks.append((0 if rule.carry_over else seen, min(end, len(label)), size))
        seen = end
    for begin, end, size in blocks:
        row = torch.nn.Parameter(v.double())
        adam = torch.optim.Adam([row], lr=rule.learning_rate)
        for _ in range(rule.epochs):
            for first in range(begin, end, size):
                rows = slice(first, min(first + size, end))
                logit = module(row.expand(rows.stop - first, -1), context[rows])
                target = torch.from_numpy(label[rows].astype(np.float64))
                adam.zero_grad()
                torch.nn.functional.binary_cross_entropy_with_logits(logit, target).backward()
                adam.step()
        v = row.detach().float()
    return v


@pytest.mark.parametrize("carry_over", [False, True])
def test_items_side_by_side_move_as_each_would_alone_under_torchs_adam(carry_over: bool) -> None:
    rule = WarmRule(block_rows=3, epochs=2, learning_rate=0.05, carry_over=carry_over)
    counts, module = np.array([2, 0, 41, 9, 10, 1]), make()
    start, context, label = data(counts)
    found = warm_rows(rule, module_slope(module), start, np.zeros(6, np.int64), counts, lambda p: context[p], label)
    ends = np.cumsum(counts)
    for item, (first, last) in enumerate(zip(ends - counts, ends, strict=True)):
        expected = by_hand(rule, module, start[item], context[first:last], label[first:last])
        # Both in float64 but for the row at the end of each of the blocks.
        assert_float32_close(found.rows[item], expected, num_terms=8, size=float(expected.abs().max()))
    assert found.boundary.tolist() == [0, 0, 36, 9, 9, 0]
    torch.testing.assert_close(found.rows[1], start[1], rtol=0, atol=0)


def test_blocks_double_after_the_three_phases_and_keep_their_number_of_steps() -> None:
    rule = WarmRule(20, 1, 0.1)
    ends = [rule.block_end(block) for block in range(-1, 7)]
    assert ends == [0, 20, 40, 60, 120, 240, 480, 960]
    steps = [(end - begin) / rule.minibatch(block) for block, (begin, end) in enumerate(pairwise(ends))]
    assert steps == [20.0] * 7


@pytest.mark.parametrize("name", ["deepfm", "pnn", "afn"])
def test_a_folded_heads_gradient_is_that_of_its_backbone(name: str) -> None:
    module = make(name)
    head = module.fold()
    assert isinstance(head, FoldedHead)
    v, context, label = data(np.full(30, 1))
    part = head.user_part(context[:, DIM:]) + head.item_part(context[:, :DIM])
    target, weight = torch.from_numpy(label).double(), torch.linspace(0.5, 1, 30, dtype=torch.float64)
    expected = module_slope(module)(v.double(), context, target, weight)
    torch.testing.assert_close(head.gradient(v.double(), part, target, weight), expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=25)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    seen=st.lists(st.integers(0, 30), min_size=9, max_size=9),
    carry_over=st.booleans(),
    name=st.sampled_from(["deepfm", "pnn", "afn"]),
)
def test_going_on_gives_the_bits_of_beginning_anew(
    counts: list[int], seen: list[int], carry_over: bool, name: str
) -> None:
    rule = WarmRule(2, 2, 0.05, carry_over)
    head = make(name).fold()
    assert isinstance(head, FoldedHead)
    whole = np.array(counts)
    start, context, label = data(whole)
    part = head.user_part(context[:, DIM:]) + head.item_part(context[:, :DIM])
    none = np.zeros(len(whole), dtype=np.int64)
    anew = warm_rows(rule, head.gradient, start, none, whole, lambda p: part[p], label)
    early = np.minimum(whole, seen[: len(whole)])
    place = np.concatenate([np.arange(a, a + n) for a, n in zip(np.cumsum(whole) - whole, early, strict=True)])
    place = place.astype(np.int64)
    first = warm_rows(rule, head.gradient, start, none, early, lambda p: part[place[p]], label[place])
    then = warm_rows(rule, head.gradient, first.at_boundary, first.boundary, whole, lambda p: part[p], label)
    moved = whole > first.boundary
    assert torch.equal(then.rows[moved], anew.rows[moved])
    assert torch.equal(then.at_boundary, anew.at_boundary)
    assert (then.boundary == anew.boundary).all()


def test_the_company_of_an_item_does_not_change_its_bits() -> None:
    rule, module = WarmRule(3, 3, 0.05), make("dcn_v2")
    counts = np.full(40, 25)
    start, context, label = data(counts)
    none = np.zeros(40, dtype=np.int64)
    together = warm_rows(rule, module_slope(module), start, none, counts, lambda p: context[p], label).rows
    for item in (0, 17, 39):
        rows = slice(item * 25, item * 25 + 25)
        alone = warm_rows(
            rule, module_slope(module), start[item : item + 1], none[:1], counts[:1], lambda p, r=rows: context[r][p],
            label[rows],
        )  # fmt: skip
        assert torch.equal(alone.rows[0], together[item])
