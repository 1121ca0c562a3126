"""benchmarks/batch_sizes: every stage at every size, with the parts of a step."""

from __future__ import annotations

import pytest

from benchmarks import batch_sizes
from benchmarks.train_step import STAGES
from mwuf_dist.config import UserError
from tests.tiny import tiny


@pytest.mark.parametrize("backbone", ["deepfm", "dcn"])
def test_every_stage_is_timed_at_every_size_and_its_parts_are_named(backbone: str) -> None:
    rows = batch_sizes.measure(tiny(backbone={"name": backbone}), [128, 512], num_steps=1, rounds=2)
    assert [row.name for row in rows] == [f"{stage}, batch {size}" for size in (128, 512) for stage in STAGES]
    for row in rows:
        assert row.ours is not None and row.ours.p50 > 0 and row.alternative is None
        shares = list(row.more["parts"].values())
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.001 and len(shares) > 2


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="make no batch of 16777216"):
        batch_sizes.measure(tiny(), [1 << 24], num_steps=1, rounds=1)
