"""Semantic IDs: codes by residual k-means, rows of prefixes, and what becomes of a prefix that no old item has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.config.registry import method_config
from mwuf_dist.methods.semantic_id import SemanticId
from tests.methods.test_content_rows import loss_of
from tests.methods.test_metaemb import CONTEXT, DIM, EPISODES, ITEMS, Rows

KINDS, SORTS, EACH = 4, 4, 5  # each of four kinds of items has four sorts, of five items each
NUM = KINDS * SORTS * EACH


def nested_content() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fields [NUM, 4] of items far apart by kind, nearer by sort, alike within one; and each item's kind and sort."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(NUM) // (SORTS * EACH)
    sort = torch.arange(NUM) // EACH % SORTS
    corner = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])[kind]
    within = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])[sort]
    noise = 0.05 * torch.randn(NUM, 2, generator=generator)
    content = torch.cat([corner + within + noise, torch.full((NUM, 1), 7.0), torch.zeros(NUM, 1)], dim=1)
    return content.double(), kind, sort


def pretrained(content: torch.Tensor, rows: torch.Tensor) -> Any:
    runtime = SimpleNamespace(broadcast=lambda value: value)
    return SimpleNamespace(
        num_old=len(rows), runtime=runtime, context=lambda items: content[items], old_rows=lambda items: rows[items]
    )


def made(rows: torch.Tensor, first: int = 0, **keys: Any) -> tuple[SemanticId, torch.Tensor]:
    content, *_ = nested_content()
    config = method_config(name="semantic_id", **{"code_levels": 2, "code_size": 4} | keys)
    method = SemanticId(config, DIM, CONTEXT).double()
    method.make_codes(pretrained(content[first:], rows[first:]))
    return method, content


def test_items_share_a_prefix_where_they_share_a_kind_and_a_longer_one_where_they_share_a_sort() -> None:
    _, kind, sort = nested_content()
    method, content = made(torch.randn(NUM, DIM).double())
    prefixes = method.prefixes_of(content)
    for level, truth in enumerate([kind, kind * SORTS + sort]):
        same = prefixes[:, level, None] == prefixes[None, :, level]
        assert torch.equal(same, truth[:, None] == truth[None])
    assert torch.equal(prefixes[:, 1] // 4, prefixes[:, 0])  # the digits of one number


def test_a_code_is_the_centroid_nearest_to_what_the_codes_before_have_left() -> None:
    method, content = made(torch.randn(NUM, DIM).double())
    new = content[::7] + 0.3 * torch.randn(len(content[::7]), CONTEXT, generator=torch.Generator().manual_seed(1))
    deviation = content.std(0, correction=0)
    for item, found in zip(new, method.prefixes_of(new).tolist(), strict=True):
        left = [float((x - m) / d) if d > 0 else 0.0 for x, m, d in zip(item, content.mean(0), deviation, strict=True)]
        prefix = 0
        for level in range(2):
            centroids = method.centroids[level].tolist()
            away = [sum((a - b) ** 2 for a, b in zip(left, one, strict=True)) for one in centroids]
            code = away.index(min(away))
            left = [a - b for a, b in zip(left, centroids[code], strict=True)]
            prefix = prefix * 4 + code
            assert found[level] == prefix


def test_first_rows_are_what_the_items_of_a_prefix_have_left_drawn_to_the_shorter_prefix() -> None:
    rows = torch.randn(NUM, DIM, generator=torch.Generator().manual_seed(2)).double()
    method, content = made(rows, code_shrinkage=2.5)
    _, kind, sort = nested_content()
    for item in range(NUM):
        of_kind, of_sort = kind == kind[item], (kind == kind[item]) & (sort == sort[item])
        common = rows.mean(0)
        first = (rows[of_kind] - common).sum(0) / (SORTS * EACH + 2.5)
        second = (rows[of_sort] - common - first).sum(0) / (EACH + 2.5)
        found = method.initial_rows(torch.tensor([item]), content[item : item + 1])[0]
        assert torch.allclose(found, common + first + second, atol=1e-12)


def test_an_item_without_old_ones_of_its_prefix_has_the_row_of_the_shorter_prefix() -> None:
    rows = torch.randn(NUM, DIM, generator=torch.Generator().manual_seed(2)).double()
    method, content = made(rows, first=EACH)  # the first sort of the first kind is of new items alone
    new, others = method.prefixes_of(content[:EACH]), method.prefixes_of(content[EACH:])
    assert new[0, 0] in others[:, 0] and new[0, 1] not in others[:, 1]
    expected = method.common + method.prefixes[0][new[0, 0]]
    assert torch.equal(method.initial_rows(ITEMS[:1], content[:1])[0], expected)


def test_fewer_items_than_codes_leave_codes_that_no_item_gets() -> None:
    content = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]).double()
    rows = torch.randn(3, DIM).double()
    method = SemanticId(method_config(name="semantic_id", code_levels=2, code_size=8), DIM, CONTEXT).double()
    method.make_codes(pretrained(content, rows))
    assert len(set(method.prefixes_of(content)[:, 0].tolist())) == 3
    far = method.prefixes_of(100 * torch.randn(50, CONTEXT).double())
    used = {tuple(one) for one in method.prefixes_of(content).tolist()}
    assert {tuple(one) for one in far.tolist()} <= used


def test_the_loss_is_that_of_the_clicks_at_the_sum_of_the_prefixes_rows() -> None:
    rows = Rows()
    method = SemanticId(method_config(name="semantic_id", code_levels=2, code_size=2), DIM, CONTEXT).double()
    old = torch.randn(EPISODES, DIM).double()
    method.attach(pretrained(rows.context, old))
    found = method.episode_loss(rows.episodes())
    assert bool(method.has_codes), "the first episode makes the codes"
    with torch.no_grad():
        for table in method.prefixes:
            table.add_(torch.randn(table.shape).double())
    kept = method.centroids.clone()
    found = method.episode_loss(rows.episodes())
    assert torch.equal(kept, method.centroids), "a later one leaves them"
    for item in range(EPISODES):
        one, two = method.prefixes_of(rows.context[item : item + 1])[0].tolist()
        v = method.common.detach() + method.prefixes[0][one].detach() + method.prefixes[1][two].detach()
        expected = (loss_of(rows, 0, item, v) + loss_of(rows, 1, item, v)) / 2
        assert found[item].item() == pytest.approx(expected, abs=1e-12)
    found.sum().backward()
    assert all(table.grad is not None and table.grad.abs().max() > 0 for table in method.prefixes)


def test_more_prefixes_than_memory_holds_are_the_users_error() -> None:
    with pytest.raises(UserError, match=r"code_size = 256 and method\.code_levels = 4: 4294967296 prefixes"):
        SemanticId(method_config(name="semantic_id", code_levels=4, code_size=256), DIM, CONTEXT)
