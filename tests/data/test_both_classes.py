"""Sets with one class: found before training, with the N and K that would do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.config.schema import StreamConfig
from mwuf_dist.data.both_classes import LabelledRows, has_both, one_class_notes
from mwuf_dist.data.init_config.propose import propose
from mwuf_dist.data.init_config.write_config import write_config
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.split import SPLITS, SplitRule, item_roles, splits_of_new_rows
from tests.serving.own_logs import config_for, make_logs, write


def random_rows(seed: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    item = np.repeat(np.arange(30), random.integers(2, 60, 30))
    random.shuffle(item)
    time = random.integers(0, 400, len(item))
    return item, time, (random.random(len(item)) < share).astype(np.int8)


def classes_by_the_split(
    item: np.ndarray, time: np.ndarray, label: np.ndarray, rule: SplitRule
) -> dict[str, tuple[int, int]]:
    """Rows and positives of each set, of the split itself."""
    roles = item_roles(np.bincount(item), rule)
    index = roles.new_index[item]
    split = np.full(len(item), -1)
    split[(index >= 0) & (index < roles.num_old_items)] = 0
    of_new = index >= roles.num_old_items
    split[of_new] = splits_of_new_rows(index[of_new], time[of_new], rule)
    return {name: (int((split == k).sum()), int(label[split == k].sum())) for k, name in enumerate(SPLITS)}


@pytest.mark.parametrize(("old_above", "warm_rows"), [(40, 3), (30, 8), (20, 1)])
def test_classes_of_sets_are_those_of_the_split(old_above: int, warm_rows: int) -> None:
    item, time, label = random_rows(1, 0.2)
    found = LabelledRows.of(item, time, label).classes(old_above, warm_rows)
    assert found == classes_by_the_split(item, time, label, SplitRule(old_above, warm_rows))


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_that_would_do_do_and_none_nearer_with_the_same_n_does(seed: int) -> None:
    item, time, label = random_rows(seed, 0.02)
    rows = LabelledRows.of(item, time, label)
    better = rows.better(40, 3)
    if better is None:
        pytest.skip("too few positives by this seed")
    assert has_both(classes_by_the_split(item, time, label, SplitRule(*better)))
    if better[0] == 40:
        between = range(min(3, better[1]) + 1, max(3, better[1]))
        assert not any(has_both(rows.classes(40, warm_rows)) for warm_rows in between)


def logs_without_a_click_in_warm_b() -> pa.Table:
    """Those of `make_logs`, where no new item's fifth to eighth row is a click."""
    table = make_logs()
    item = table["item_id"].to_numpy()
    place = np.zeros(len(item), dtype=int)
    for one in range(900, 930):
        place[item == one] = np.arange((item == one).sum())
    label = np.where((item >= 900) & (place >= 4) & (place < 8), 0, table["label"].to_numpy())
    return table.set_column(table.column_names.index("label"), "label", pa.array(label))


def test_prepared_data_with_a_set_of_one_class_say_which_and_what_would_do(tmp_path: Path) -> None:
    write(logs_without_a_click_in_warm_b(), tmp_path / "log.csv")
    config = config_for(tmp_path)
    said, advice = one_class_notes(prepare(config.data), SplitRule.of(config.data))
    assert "warm_b has no positive among 120 rows" in said and "warm_b 0 of 120" in said
    assert advice == "With data.warm_rows = 3 each set has both classes."


def test_by_days_only_the_sets_that_are_learnt_from_and_scored_have_to_hold_both_classes(tmp_path: Path) -> None:
    write(logs_without_a_click_in_warm_b(), tmp_path / "log.csv")
    days = StreamConfig(pretrain_days=1, day_s=1000)
    data = dataclasses.replace(config_for(tmp_path).data, protocol="stream", stream=days)
    prepared, rule = prepare(data), SplitRule.of(data)
    assert one_class_notes(prepared, rule) == []
    prepared.manifest["splits"]["test"]["positives"] = 0
    (said,) = one_class_notes(prepared, rule)
    assert "test has no positive" in said and "warm_a" not in said


def test_init_chooses_numbers_that_give_each_set_both_classes(tmp_path: Path) -> None:
    write(logs_without_a_click_in_warm_b(), tmp_path / "log.csv")
    text = write_config(propose(str(tmp_path / "log.csv")))
    old_above, warm_rows = (int(text.split(f"\n{key} = ")[1].split()[0]) for key in ("old_above", "warm_rows"))
    table = pa_csv.read_csv(tmp_path / "log.csv")
    item = np.unique(table["item_id"].to_numpy(), return_inverse=True)[1]
    time, label = (table[name].to_numpy() for name in ("timestamp", "label"))
    assert has_both(classes_by_the_split(item, time, label, SplitRule(old_above, warm_rows)))


def test_a_log_of_positives_of_one_user_is_refused_by_init_and_by_prepare(tmp_path: Path) -> None:
    table = make_logs().drop_columns(["user_id", "label", "color", "price"])
    write(table.append_column("user_id", pa.array(np.ones(len(table), dtype=int))), tmp_path / "log.csv")
    with pytest.raises(UserError, match="no row of label 0 could be drawn"):
        write_config(propose(str(tmp_path / "log.csv")))
    data = config_for(tmp_path, label="", negatives_per_positive=2).data
    data = dataclasses.replace(data, logs=dataclasses.replace(data.logs, fields=()))
    with pytest.raises(UserError, match="no row of label 0 could be drawn"):
        prepare(data)
