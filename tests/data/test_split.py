"""The split rule against plain Python, on small random data."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.split import SPLITS, SplitRule, order_by
from tests.data.splits import Split, split_rows

N, K = 9, 2


@st.composite
def interactions(draw: st.DrawFn, num_old: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of a few items, at least `num_old` of them old, with many equal times, in random order."""
    counts = draw(st.lists(st.integers(N + 1, 16), min_size=num_old, max_size=num_old))
    counts += draw(st.lists(st.integers(0, 16), min_size=not num_old, max_size=8 - num_old))
    item = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    seed = draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    generator.shuffle(item)
    # Seconds, seconds before 1970, and units so fine that a time and a place do not fit into one number.
    start, unit = draw(st.sampled_from([(0, 1), (-10, 1), (-(1 << 62), 1 << 58)]))
    time = start + unit * generator.integers(0, draw(st.integers(1, 30)), len(item))
    return item, time, len(counts)


def reference(item: np.ndarray, time: np.ndarray, num_items: int) -> tuple[list[int], list[int], dict[str, list[int]]]:
    """Old items, new items and the rows of each split, row by row in plain Python."""
    rows_of = defaultdict(list)
    for row in sorted(range(len(item)), key=lambda row: (time[row], row)):
        rows_of[int(item[row])].append(row)
    old = [j for j in range(num_items) if len(rows_of[j]) > N]
    new = [j for j in range(num_items) if 3 * K <= len(rows_of[j]) <= N]
    splits = {
        "pretrain": [row for j in old for row in rows_of[j]],
        "warm_a": [row for j in new for row in rows_of[j][:K]],
        "warm_b": [row for j in new for row in rows_of[j][K : 2 * K]],
        "warm_c": [row for j in new for row in rows_of[j][2 * K : 3 * K]],
        "test": [row for j in new for row in rows_of[j][3 * K :]],
    }
    return old, new, {name: sorted(rows, key=lambda row: (time[row], row)) for name, rows in splits.items()}


@given(interactions())
def test_split_equals_plain_python(data: tuple[np.ndarray, np.ndarray, int]) -> None:
    old, new, rows = reference(*data)
    if not (old and new and rows["test"]):
        with pytest.raises(UserError, match="no item is|`test` is empty"):
            split_rows(*data, SplitRule(N, K))
        return
    split = split_rows(*data, SplitRule(N, K))
    assert split.item_order.tolist() == old + new
    assert (split.num_old_items, split.num_new_items) == (len(old), len(new))
    assert {name: split.rows[name].tolist() for name in SPLITS} == rows


@given(interactions(num_old=3), st.integers(0, 5))
def test_old_items_that_play_new_are_split_like_new_ones(data: tuple[np.ndarray, np.ndarray, int], seed: int) -> None:
    item, time, num_items = data
    really_old = reference(item, time, num_items)[0]
    split = split_rows(*data, SplitRule(N, K, old_items_as_new=True, old_items_as_new_seed=seed))
    played = split.item_order[split.num_old_items :]
    assert sorted(split.item_order.tolist()) == really_old, "an item that is not old is left out"
    assert len(played) == round(len(really_old) / 5)

    # Cut by hand to the first N rows by (time, place), the played items obey the very same rule.
    kept, seen = [], defaultdict(int)
    for row in sorted(range(len(item)), key=lambda row: (time[row], row)):
        j = int(item[row])
        if j in really_old and (j not in played or seen[j] < N):
            kept.append(row)
        seen[j] += 1
    kept.sort()
    again = reference(item[kept], time[kept], num_items)
    assert again[1] == played.tolist()
    for name in SPLITS:
        assert split.rows[name].tolist() == [kept[row] for row in again[2][name]]


def random_split(seed: int = 0) -> tuple[np.ndarray, np.ndarray, Split]:
    generator = np.random.default_rng(seed)
    item = generator.zipf(1.3, 20_000).clip(max=300) - 1
    time = generator.integers(0, 2_000, len(item))
    return item, time, split_rows(item, time, 300, SplitRule(60, 10))


def test_no_row_is_in_two_splits() -> None:
    _, _, split = random_split()
    rows = np.concatenate(list(split.rows.values()))
    assert len(np.unique(rows)) == len(rows)


def test_rows_of_an_item_come_in_time_order_through_the_splits() -> None:
    item, time, split = random_split()
    names = SPLITS[1:]
    for j in split.item_order[split.num_old_items :]:
        last = (-1, -1)
        for name in names:
            rows = split.rows[name][item[split.rows[name]] == j]
            places = [(int(time[row]), int(row)) for row in rows]
            assert places == sorted(places)
            assert name == "test" or len(places) == 10
            if places:
                assert places[0] > last, f"{name} has a row earlier than the set before it"
                last = places[-1]


def test_each_split_ascends_by_time_and_place() -> None:
    _, time, split = random_split()
    for rows in split.rows.values():
        assert (np.lexsort((rows, time[rows])) == np.arange(len(rows))).all()


def test_which_fifth_plays_new_is_the_seeds_choice_alone() -> None:
    item, time, _ = random_split()

    def played(seed: int) -> list[int]:
        split = split_rows(item, time, 300, SplitRule(60, 10, True, seed))
        return split.item_order[split.num_old_items :].tolist()

    assert played(1) == played(1)
    assert played(1) != played(2)


def test_no_new_item_is_an_error_with_the_counts_and_the_keys_to_change() -> None:
    item = np.repeat([0, 1, 2], [10, 12, 5])
    with pytest.raises(UserError, match=r"is new: of 3 items, 2 .*old_above = 9.*1 fewer.*Raise data.old_above"):
        split_rows(item, np.arange(len(item)), 3, SplitRule(N, K))


def test_no_old_item_is_an_error() -> None:
    item = np.repeat([0, 1], [8, 7])
    with pytest.raises(UserError, match="no item is old.*the most rows of an item are 8. Lower data.old_above"):
        split_rows(item, np.arange(len(item)), 2, SplitRule(N, K))


def test_no_rows_at_all_are_an_error() -> None:
    with pytest.raises(UserError, match="no item is old"):
        split_rows(np.array([], dtype=np.int32), np.array([], dtype=np.int64), 0, SplitRule(N, K))


def test_too_few_old_items_to_play_new_are_an_error() -> None:
    item = np.repeat([0, 1, 2], [10, 12, 7])
    with pytest.raises(UserError, match="no item is new"):
        split_rows(item, np.arange(len(item)), 3, SplitRule(N, K, old_items_as_new=True))


def test_empty_test_set_is_an_error() -> None:
    item = np.repeat([0, 1], [10, 6])
    with pytest.raises(UserError, match="`test` is empty: lower data.warm_rows"):
        split_rows(item, np.arange(len(item)), 2, SplitRule(N, K))


def test_thresholds_that_leave_no_room_for_new_items_are_an_error() -> None:
    with pytest.raises(UserError, match=r"data.old_above = 5 is below 3 \* data.warm_rows = 6"):
        split_rows(np.zeros(3, dtype=np.int32), np.arange(3), 1, SplitRule(5, 2))


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(-2, 2)), max_size=20),
    st.sampled_from([1, 1 << 20, 1 << 40, 1 << 61]),
)
def test_rows_are_ordered_by_their_keys_and_then_by_place(rows: list[tuple[int, int, int]], unit: int) -> None:
    keys = np.array(rows, dtype=np.int64).reshape(len(rows), 3).T * unit
    expected = sorted(range(len(rows)), key=lambda row: (*rows[row], row))
    assert order_by(*keys).tolist() == expected


def by_launch(item: np.ndarray, time: np.ndarray, num_items: int, since: int) -> tuple[list[int], list[int]]:
    """Old and new items by their first rows, in plain Python."""
    times = [sorted(time[item == j].tolist()) for j in range(num_items)]
    old = [j for j in range(num_items) if times[j] and times[j][0] < since]
    new = [j for j in range(num_items) if len(times[j]) >= 3 * K and times[j][0] >= since]
    return old, new


@given(interactions(), st.integers(-5, 25))
def test_items_first_seen_since_the_launch_date_are_the_new_ones(
    data: tuple[np.ndarray, np.ndarray, int], since: int
) -> None:
    item, time, num_items = data
    old, new = by_launch(item, time, num_items, since)
    rule = SplitRule(1, K, new_since=since)  # N decides nothing
    if not (old and new) or max(np.bincount(item)[new]) == 3 * K:
        with pytest.raises(UserError, match="no item is|`test` is empty"):
            split_rows(*data, rule)
        return
    split = split_rows(*data, rule)
    assert (split.item_order.tolist(), split.num_old_items) == (old + new, len(old))
    for name, (start, stop) in {"warm_a": (0, K), "warm_b": (K, 2 * K), "warm_c": (2 * K, 3 * K)}.items():
        ours = [sorted(np.flatnonzero(item == j), key=lambda row: (time[row], row))[start:stop] for j in new]
        assert sorted(split.rows[name].tolist()) == sorted(int(row) for rows in ours for row in rows)
    num = {name: len(rows) for name, rows in split.rows.items()}
    assert num["pretrain"] == sum(int((item == j).sum()) for j in old)
    assert sum(num.values()) == sum(int((item == j).sum()) for j in old + new), "no row is cut off"


def test_items_of_before_the_launch_date_play_new_and_later_ones_are_left_out() -> None:
    item = np.repeat(np.arange(14), 7)
    time = np.tile(np.arange(7), 14) + np.where(item >= 12, 100, 0)
    split = split_rows(item, time, 14, SplitRule(N, K, True, 0, new_since=50))
    assert sorted(split.item_order.tolist()) == list(range(12)) and split.num_new_items == 2


def test_no_item_since_the_launch_date_is_an_error_with_the_counts() -> None:
    item = np.repeat([0, 1, 2], [10, 12, 5])
    time = np.where(item == 2, 100, 0)
    with pytest.raises(UserError, match=r"is new: of 3 items, 2 have a row before data.new_since.* are 5. An earlier"):
        split_rows(item, time, 3, SplitRule(N, K, new_since=50))
    with pytest.raises(UserError, match="no item is old.*A later data.new_since is needed"):
        split_rows(item, time, 3, SplitRule(N, K, new_since=0))


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2020-09-01", 1_598_918_400),
        ("2020-09-01T02:00:00+02:00", 1_598_918_400),
        ("2020-09-01 00:00:00.5", 1_598_918_400.5),
        ("1598918400", 1_598_918_400),
        ("-5", -5),
    ],
)
def test_a_launch_date_is_a_date_or_seconds(written: str, seconds: float) -> None:
    data = DataConfig(name="logs", new_since=written, logs=LogsConfig(interactions="x"))
    assert SplitRule.of(data).new_since == round(seconds * 1e6)


@pytest.mark.parametrize("written", ["yesterday", "2020-13-01", "nan", "inf", "1e300"])
def test_a_launch_date_that_is_none_is_an_error(written: str) -> None:
    with pytest.raises(UserError, match="data.new_since = .* is n"):
        SplitRule.of(DataConfig(new_since=written))
    with pytest.raises(UserError, match="this log has none"):
        SplitRule.of(DataConfig(name="logs", new_since="2020-01-01", logs=LogsConfig(time="")))
    with pytest.raises(UserError, match="under 'stream'"):
        SplitRule.of(DataConfig(protocol="stream", new_since="2020-01-01"))
