"""Positives only: what is drawn for them, in which set it is, and that nothing but user and item tells the label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist.config import DataConfig, build
from mwuf_dist.data.batches.histories import Histories
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.readers.negatives import add_negatives
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.split import SPLITS, SplitRule
from mwuf_dist.embeddings.user_means import ItemUsers
from mwuf_dist.evaluation.metrics import auc

RULE = SplitRule(old_above=60, warm_rows=5)
NUM_USERS, NUM_ITEMS, PER_POSITIVE = 400, 70, 3


def positives(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item and time: 20 old items, 50 new ones that live for a while, users who are active by sittings."""
    random = np.random.default_rng(seed)
    counts = np.concatenate([np.full(20, 90), np.full(50, 30)])
    item = np.repeat(np.arange(NUM_ITEMS), counts)
    birth = np.concatenate([np.zeros(20), random.uniform(0, 700, 50)])
    time = np.concatenate([random.integers(birth[i], 1000 if i < 20 else birth[i] + 300, counts[i]) for i in range(70)])
    taste = random.random((NUM_USERS, NUM_ITEMS)) ** 4
    activity = 1 / np.arange(1, NUM_USERS + 1) ** 0.5
    user = np.array([random.choice(NUM_USERS, p=(w := taste[:, i] * activity) / w.sum()) for i in item])
    order = random.permutation(len(item))
    return user[order].astype(np.int32), item[order].astype(np.int32), time[order].astype(np.int64)


def test_a_negative_is_of_the_same_user_and_time_and_of_an_item_that_existed_and_is_never_liked() -> None:
    user, item, time = positives()
    row, drawn, label, _ = add_negatives(user, item, time, NUM_ITEMS, RULE, PER_POSITIVE, 0)
    assert (np.diff(row) >= 0).all() and label[np.flatnonzero(np.diff(row, append=row[-1] + 1))].all()  # behind them
    np.testing.assert_array_equal(drawn[label == 1], item)
    liked = set(zip(user.tolist(), item.tolist(), strict=True))
    first = np.array([time[item == one].min() for one in range(NUM_ITEMS)])
    of, what = row[label == 0], drawn[label == 0]
    assert len(of) > 0.97 * PER_POSITIVE * len(user)
    assert not liked & set(zip(user[of].tolist(), what.tolist(), strict=True))
    assert (first[what] <= time[of]).all()
    assert len(np.unique(of * NUM_ITEMS + what)) == len(of)  # an item once for a positive
    np.testing.assert_array_equal(item[of] < 20, what < 20)  # old ones for old ones
    other = add_negatives(user, item, time, NUM_ITEMS, RULE, PER_POSITIVE, 1)[1]
    again = add_negatives(user, item, time, NUM_ITEMS, RULE, PER_POSITIVE, 0)[1]
    assert np.array_equal(again, drawn) and not np.array_equal(other, drawn)


def test_where_a_user_likes_nearly_everything_rows_are_left_out_and_none_is_wrong() -> None:
    item = np.concatenate([np.tile(np.arange(10), 9), np.repeat(np.arange(10), 1)]).astype(np.int32)
    user = np.concatenate([np.zeros(90), np.arange(1, 11)]).astype(np.int32)
    item, user = np.concatenate([item, [10] * 8]).astype(np.int32), np.concatenate([user, [11] * 8]).astype(np.int32)
    row, drawn, label, _ = add_negatives(user, item, np.zeros(len(item), np.int64), 11, SplitRule(8, 2), 3, 0)
    assert not (drawn[(label == 0) & (user[row] == 0)] < 11).any()  # user 0 likes all old items, and has no other row
    assert (label == 0).sum() > 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("positives")
    user, item, time = positives()
    pq.write_table(pa.table({"user_id": user, "item_id": item, "timestamp": time}), folder / "log.parquet")
    logs = {"interactions": str(folder / "log.parquet"), "negatives_per_positive": PER_POSITIVE}
    data = {"name": "logs", "old_above": RULE.old_above, "warm_rows": RULE.warm_rows, "logs": logs}
    return prepare(build({"data": data | {"prepared_dir": str(folder / "prepared")}}).data)


def test_n_and_k_count_positives(prepared: Prepared) -> None:
    assert (prepared.num_old_items, prepared.num_new_items) == (20, 50)
    for split in SPLITS[1:4]:
        columns = prepared.columns(split, ("item", "label"))
        own = np.bincount(columns["item"][columns["label"] == 1], minlength=70)[20:]
        assert (own == RULE.warm_rows).all()
    assert prepared.rows_of(5) == 20 and prepared.negatives_per_positive == PER_POSITIVE


def test_in_every_set_users_and_items_have_the_same_fraction_of_positives(prepared: Prepared) -> None:
    for split in SPLITS:
        columns = prepared.columns(split, ("user", "item", "label", "time"))
        label = columns["label"]
        for side in ("user", "item"):
            own = np.bincount(columns[side][label == 1])
            assert abs(auc(own[columns[side]], label) - 0.5) < 0.03, (split, side)
        # The first rows of all find no item that existed then.
        assert abs(auc(columns["time"], label) - 0.5) < 0.06, split
        # A set's negatives are of positives of the same set.
        pairs = [
            set(zip(*(columns[name][label == one].tolist() for name in ("user", "time")), strict=True))
            for one in (0, 1)
        ]
        assert pairs[0] <= pairs[1]


def test_a_drawn_negative_is_nobodys_event_and_sees_what_its_positive_sees(prepared: Prepared) -> None:
    events = Histories(prepared, 3, 0, torch.device("cpu"), events="all")
    whole = events.whole(torch.arange(prepared.num_users))
    assert whole.labels.all()
    user = positives()[0]
    assert len(whole.items) <= len(user)
    for split in SPLITS:
        columns = prepared.columns(split, ("user", "time", "label"))
        before = events.before(split, 0, len(columns["user"]))
        moment = columns["user"].astype(np.int64) * 10**6 + columns["time"] // 10**6
        single = np.bincount(moment[columns["label"] == 1], minlength=moment.max() + 1) == 1
        found = {int(m): int(b) for m, b, one in zip(moment, before, columns["label"], strict=True) if one}
        assert all(found[int(m)] == b for m, b in zip(moment, before, strict=True) if single[m])


@pytest.mark.parametrize("events", ["positives", "all"])
def test_users_of_drawn_negatives_are_in_no_mean_of_users(prepared: Prepared, events: str) -> None:
    users, offsets = ItemUsers(prepared, ["warm_a"], events=events).of(torch.arange(70))  # pyright: ignore
    assert offsets.diff().tolist() == [0] * 20 + [RULE.warm_rows] * 50
    columns = prepared.columns("warm_a", ("user", "item", "label"))
    liked = columns["label"] == 1
    pairs = sorted(zip(columns["item"][liked].tolist(), columns["user"][liked].tolist(), strict=True))
    assert sorted(zip(np.repeat(np.arange(20, 70), 5).tolist(), users.tolist(), strict=True)) == pairs


def test_the_rule_of_the_draw_is_part_of_what_prepared_data_is_made_of(tmp_path: Path) -> None:
    from mwuf_dist.config.logs import LogsConfig
    from mwuf_dist.data.sources import logs

    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp,label\na,b,1,1\n")
    labelled = DataConfig(name="logs", logs=LogsConfig(interactions=str(path), label="label"))
    drawn = DataConfig(name="logs", logs=LogsConfig(interactions=str(path), negatives_per_positive=2))
    assert "negatives_rule" not in logs.fingerprint(labelled) and logs.fingerprint(drawn)["negatives_rule"] == 2


def test_a_launch_date_splits_a_log_of_positives_and_its_negatives_alike(tmp_path: Path) -> None:
    user, item, time = positives()
    first = np.array([time[item == one].min() for one in range(NUM_ITEMS)])
    launch = 1_600_000_000
    pq.write_table(
        pa.table({"user_id": user, "item_id": item, "timestamp": launch - 200 + time}), tmp_path / "log.parquet"
    )
    logs = {"interactions": str(tmp_path / "log.parquet"), "negatives_per_positive": PER_POSITIVE}
    data = {"name": "logs", "new_since": "2020-09-13T12:26:40Z", "warm_rows": 5, "logs": logs}
    found = prepare(build({"data": data | {"prepared_dir": str(tmp_path / "prepared")}}).data)
    new = np.flatnonzero(first >= 200)
    assert found.raw_ids("item").to_pylist()[found.num_old_items :] == new.tolist()
    assert found.num_old_items == NUM_ITEMS - len(new)
    for split in SPLITS[1:4]:
        columns = found.columns(split, ("item", "label"))
        of_positives = columns["item"][columns["label"] == 1]
        assert (np.bincount(of_positives, minlength=found.num_items)[found.num_old_items :] == 5).all()
        assert (columns["item"] >= found.num_old_items).all()
