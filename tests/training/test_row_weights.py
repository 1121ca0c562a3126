"""What a row weighs multiplies its loss, in every stage and every implementation; fields of rows reach the logit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mwuf_dist.data.batches.loader import Batch, beside
from mwuf_dist.methods.content_prior import fit_content_prior
from mwuf_dist.training.frozen_model import CompiledFrozen, Frozen
from mwuf_dist.training.implementations import frozen_model
from mwuf_dist.training.item_rule.rule import WarmRule, module_slope, warm_rows
from mwuf_dist.training.model import loss_sum
from tests.bounds import assert_float32_close
from tests.methods.test_map import ITEMS, fitted_by, lines_of, method, problem
from tests.serving.test_warm_rule import data, make
from tests.training.test_frozen import NUM_TERMS, job  # noqa: F401  (a fixture)
from tests.training.test_frozen import Run as Job


def batch_of(num: int, weights: torch.Tensor | None, is_full: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(3)
    user, item = (torch.randint(0, 20, (num,), generator=generator) for _ in range(2))
    label = torch.randint(0, 2, (num,), generator=generator).float()
    there = torch.ones(num) if is_full else (torch.arange(num) < num - 3).float()
    return Batch(user, item, label, there, int(there.sum()), is_full, 0, 0, row_weight=weights)


@pytest.mark.parametrize("is_full", [True, False])
def test_the_loss_is_the_sum_of_weighted_cross_entropies_over_the_rows(is_full: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor([1.0, 2, 5])[torch.randint(0, 3, (40,), generator=generator)]
    batch = batch_of(40, weights, is_full)
    batch = dataclasses.replace(batch, label=batch.label.double())
    logit = torch.randn(40, generator=generator, dtype=torch.float64)
    expected = 0.0
    for row in range(batch.num_rows):
        y, p = float(batch.label[row]), 1 / (1 + np.exp(-float(logit[row])))
        expected -= float(weights[row]) * (y * np.log(p) + (1 - y) * np.log(1 - p)) / batch.num_rows
    assert float(loss_sum(logit, batch)) == pytest.approx(expected, rel=1e-12)
    per_item = torch.full((40,), 3.0, dtype=torch.float64)  # pretrain.item_weight beside it
    assert float(loss_sum(logit, batch, per_item)) == pytest.approx(3 * expected, rel=1e-12)


def test_the_compiled_loop_weighs_rows_as_autograd_does(job: Job) -> None:  # noqa: F811
    frozen = frozen_model(job.model, job.config.embedding)
    if not isinstance(frozen, CompiledFrozen):
        pytest.skip("no compiled loops here")
    batch = batch_of(64, torch.rand(64, generator=torch.Generator().manual_seed(1)) * 5)
    ids = frozen.fetches().fetched(batch)
    rows = torch.randn(len(ids.items), job.model.dim, generator=torch.Generator().manual_seed(2))
    pair = (torch.rand_like(rows) + 0.5, torch.randn_like(rows) * 0.1)
    plain = Frozen.losses_and_gradients
    for scale_and_shift in (None, pair):
        found = frozen.losses_and_gradients(batch, rows, ids, scale_and_shift)
        expected = plain(frozen, batch, rows, ids, scale_and_shift)
        assert_float32_close(found[0], expected[0], num_terms=NUM_TERMS + 64)
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert_float32_close(ours, theirs, num_terms=NUM_TERMS + 64)
    unweighted = frozen.losses_and_gradients(dataclasses.replace(batch, row_weight=None), rows, ids)
    assert not torch.allclose(unweighted[0], found[0][:1], rtol=1e-2)


def test_a_click_of_weight_three_is_three_clicks_to_a_fitted_row_and_to_its_prior() -> None:
    once = problem(4)
    times = torch.randint(1, 4, (len(once["item"]),), generator=torch.Generator().manual_seed(0))
    often = {name: values.repeat_interleave(times, 0) if name != "start" else values for name, values in once.items()}
    weighed = once | {"weight": times.double()}
    weighted = fitted_by(method(), weighed)
    torch.testing.assert_close(weighted, fitted_by(method(), often), rtol=0, atol=1e-10)
    assert not torch.allclose(weighted, fitted_by(method(), once), atol=1e-2)
    spread = method().covariance(weighted, lines_of(weighed))
    torch.testing.assert_close(spread, method().covariance(weighted, lines_of(often)), rtol=1e-10, atol=1e-12)
    features = torch.randn(ITEMS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = fit_content_prior(features, lines_of(weighed), weighed["label"], precision=1.5)
    expected = fit_content_prior(features, lines_of(often), often["label"], precision=1.5)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-9, atol=1e-12)


def test_the_rule_of_the_daily_job_weighs_clicks_as_torchs_adam_would() -> None:
    rule, module = WarmRule(block_rows=3, epochs=2, learning_rate=0.05), make()
    counts = np.array([4, 0, 3, 11])
    start, context, label = data(counts)
    weights = np.random.default_rng(0).uniform(0.2, 5, size=int(counts.sum())).astype(np.float32)
    none = np.zeros(len(counts), dtype=np.int64)
    found = warm_rows(rule, module_slope(module), start, none, counts, lambda p: context[p], label, weights=weights)
    ends = np.cumsum(counts)
    for item, (first, last) in enumerate(zip(ends - counts, ends, strict=True)):
        v = start[item]
        for begin, end, size in ((0, 3, 1), (3, 6, 1), (6, 9, 1), (9, 18, 3)):
            places = np.arange(first + begin, min(first + end, last))
            if not len(places):
                continue
            row = torch.nn.Parameter(v.double())
            adam = torch.optim.Adam([row], lr=rule.learning_rate)
            for _ in range(rule.epochs):
                for part in np.split(places, range(size, len(places), size)):
                    logit, target = module(row.expand(len(part), -1), context[part]), torch.from_numpy(label[part])
                    adam.zero_grad()
                    F.binary_cross_entropy_with_logits(
                        logit, target.double(), torch.from_numpy(weights[part]).double()
                    ).backward()
                    adam.step()
            v = row.detach().float()
        assert_float32_close(found.rows[item], v, num_terms=8, size=float(v.abs().max()))
    plain = warm_rows(rule, module_slope(module), start, none, counts, lambda p: context[p], label)
    ones = np.ones_like(weights)
    same = warm_rows(rule, module_slope(module), start, none, counts, lambda p: context[p], label, weights=ones)
    assert torch.equal(plain.rows, same.rows) and not torch.allclose(plain.rows[3], found.rows[3], atol=1e-3)


def test_a_batch_has_the_values_of_its_rows_in_the_order_of_the_columns() -> None:
    columns = {"row:a": torch.tensor([1, 2]), "row:b": torch.tensor([3, 4]), "weight": torch.tensor([0.5, 1])}
    made = beside(columns)
    assert made["row_values"].tolist() == [[1, 3], [2, 4]] and made["row_weight"].tolist() == [0.5, 1]
    assert not beside({})
