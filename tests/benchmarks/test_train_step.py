"""The two programs that benchmarks/train_step times compute the same thing, step after step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import train_step
from benchmarks.contest import Contestants, products_alone
from benchmarks.record import interleaved
from benchmarks.roofline import Roof
from mwuf_dist.runtime import start
from mwuf_dist.training.run import Run, _prepare
from tests.bounds import PART_OF_A_STEP, near
from tests.tiny import tiny

STEPS = 50
LEARNING_RATE = 1e-3  # of every stage
SAME = {"rtol": 0, "atol": PART_OF_A_STEP * LEARNING_RATE}


@pytest.fixture
def contestants(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Contestants]:
    """Both programs with equal weights, before the first step."""
    name = getattr(request, "param", "deepfm")
    config = tiny(
        backbone={"name": name} | ({"field_dropout": 0.0} if name == "encoder" else {"batch_norm": False}),
        pretrain={"learning_rate": LEARNING_RATE, "batch_size": 128},
        meta_train={"learning_rate_cold": LEARNING_RATE, "learning_rate_warm": LEARNING_RATE},
        warm_up={"learning_rate": LEARNING_RATE},
    )
    with start(config) as runtime:
        job = Run(config, tmp_path, runtime, _prepare(config, runtime))
        yield Contestants(job)
        job.session.recorder.close()


def assert_equal_losses(plain: Callable[[], Any], ours: Callable[[], Any], steps: int) -> None:
    for step in range(steps):
        expected, found = float(plain()), float(ours())
        assert found == near(expected, num_terms=100), (
            step
        )  # fields and hidden units; the mean over rows has none larger


@pytest.mark.parametrize(
    ("contestants", "steps"),
    # Few steps where rounding grows: powers of small embeddings, recurrence.
    [("deepfm", STEPS), ("wide_deep", 10), ("pnn", 10), ("afn", 10), ("din", 10), ("gru4rec", 10), ("encoder", 10)],
    indirect=["contestants"],
)
def test_steps_of_every_stage_give_the_plain_programs_losses_and_weights(contestants: Contestants, steps: int) -> None:
    both, model = contestants, contestants.model
    first = model.old_ids.shards("old")[0].weight.clone()
    assert_equal_losses(*both.pretrain(), steps)
    old = model.old_ids.shards("old")[0].weight
    assert (old - first).abs().max() > 1e-4 * steps  # it did train
    torch.testing.assert_close(
        both.plain.model.phi_old.weight[: len(old)], old, rtol=0, atol=PART_OF_A_STEP * LEARNING_RATE
    )
    for side, tables in ((both.plain.model.users, model.user_tables), (both.plain.model.items, model.item_tables)):
        for table, name in zip(side.tables, tables.specs, strict=True):
            torch.testing.assert_close(
                table.weight, tables.shards(name)[0].weight, rtol=0, atol=PART_OF_A_STEP * LEARNING_RATE
            )

    assert_equal_losses(*both.meta_train(), steps)
    new = model.new_ids.shards("new")[0].weight
    torch.testing.assert_close(both.plain.phi_new.weight, new, **SAME)
    for theirs, ours in zip(both.plain.meta.parameters(), both.job.method.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours, **SAME)

    assert_equal_losses(*both.warm_up(), steps)
    torch.testing.assert_close(both.plain.phi_new.weight, new, **SAME)

    # Scoring: of the same rows, with warm embeddings that are folded in beforehand or made for the batch.
    theirs, ours = both.evaluate()
    # The weights on a score's way (fields and hidden units, twice) differ by up to SAME each, with either sign.
    torch.testing.assert_close(theirs(), ours(), rtol=0, atol=(2 * 100) ** 0.5 * PART_OF_A_STEP * LEARNING_RATE)


def test_every_contestant_is_timed_and_the_limit_has_a_figure_for_every_stage(contestants: Contestants) -> None:
    limits = products_alone(contestants.model, contestants.config, 64)
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    seconds = interleaved(steps, num_steps=2, rounds=2, clock=time.perf_counter)
    assert calls == ["a", "a", "b", "b"] * 2 and all(
        min(values) > 0 and len(values) == 2 for values in seconds.values()
    )
    for step in limits.values():
        step()
    assert set(limits) == {"pretrain", "meta_train", "warm_up", "evaluate"}


def test_a_sample_costs_its_products_thrice_in_pretrain_and_its_rows_and_adam_in_bytes(
    contestants: Contestants,
) -> None:
    theirs, _ = contestants.pretrain()
    cost = train_step._cost(contestants, "pretrain", theirs)
    model = contestants.plain.model
    matrices = sum(weight.numel() for weight in model.head.parameters() if weight.dim() == 2)
    assert cost.flops == 3 * 2 * matrices  # forward, gradients of inputs and of weights
    everything = sum(weight.numel() for weight in model.parameters())
    fields = contestants.model.shape.num_fields  # the item's ID among them; a multi-valued one has a few rows
    assert 0 < cost.num_bytes - 40 * everything / contestants.batch_size < 3 * 4 * model.dim * 4 * fields
    more = train_step._of_roofline(cost, Roof(1e9, 1e12), 2e6, 1e6)
    assert more["ours_of_roofline"] == pytest.approx(2e6 * cost.flops / 1e9, abs=1e-3)
    assert more["alternative_of_roofline"] == pytest.approx(1e6 * cost.flops / 1e9, abs=1e-3)
