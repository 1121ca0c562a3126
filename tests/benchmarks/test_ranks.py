"""benchmarks/ranks: every stage of both programs takes its turns, and our lookups go the way of several ranks."""

from __future__ import annotations

import pytest

from benchmarks import ranks
from mwuf_dist.config import UserError
from mwuf_dist.embeddings.tables import Tables
from tests.tiny import tiny


def test_every_stage_is_timed_through_the_sharded_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    rows_of = Tables.rows_to_train
    monkeypatch.setattr(
        Tables, "rows_to_train", lambda self, ids: (ways.append(self.implementation), rows_of(self, ids))[1]
    )
    monkeypatch.setattr(ranks, "BATCH_SIZE", 128)
    take_turns = ranks._take_turns
    monkeypatch.setattr(ranks, "_take_turns", lambda *args: (ways.clear(), take_turns(*args))[1])
    rows = ranks.measure(tiny(), num_steps=1, rounds=2)
    assert [row.name for row in rows] == ["pretrain", "meta_train", "warm_up"]
    assert all(row.ratio(row.alternative) and row.config == {"ranks": 1} for row in rows)
    assert ways and set(ways) == {"torchrec"}, "a table was read in place"


def test_data_smaller_than_a_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BATCH_SIZE", 1 << 24)
    with pytest.raises(UserError, match="take another"):
        ranks.measure(tiny(), num_steps=1, rounds=1)
