import numpy as np
import pytest
from scipy import stats

from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.evaluation.significance import (
    bootstrap_folds,
    difference_by_item,
    is_significant_gain,
    paired_t_test,
    placements,
    summarize,
)


def test_summary_is_mean_and_sample_standard_deviation():
    values = [0.70, 0.72, 0.71]
    assert summarize(values) == {
        "mean": pytest.approx(0.71),
        "std": pytest.approx(np.sqrt(((np.array(values) - 0.71) ** 2).sum() / 2)),
        "num_seeds": 3,
    }


def test_summary_leaves_out_what_does_not_exist():
    assert summarize([None, float("nan"), 0.5]) == {"mean": 0.5, "std": None, "num_seeds": 1}
    assert summarize([]) == {"mean": None, "std": None, "num_seeds": 0}


def test_t_test_pairs_by_seed_and_uses_common_seeds_only():
    ours = {0: 0.71, 1: 0.73, 2: 0.70, 7: 0.1}
    theirs = {2: 0.69, 1: 0.715, 0: 0.705, 9: 0.9}
    difference, p_value = paired_t_test(ours, theirs)
    reference = stats.ttest_rel([0.71, 0.73, 0.70], [0.705, 0.715, 0.69])
    assert difference == pytest.approx(0.01)
    assert p_value == pytest.approx(reference.pvalue, rel=1e-9)


def test_t_test_sees_a_small_gain_under_a_large_spread_between_seeds():
    rng = np.random.default_rng(0)
    level = rng.normal(0.7, 0.05, 8)
    base = dict(enumerate(level))
    ours = {seed: value + 0.005 + rng.normal(0, 0.001) for seed, value in base.items()}
    _, p_value = paired_t_test(ours, base)
    assert p_value is not None and p_value < 0.001
    assert stats.ttest_ind(list(ours.values()), list(base.values())).pvalue > 0.5


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({0: 0.7}, {1: 0.7}, (None, None)),
        ({0: 0.75}, {0: 0.5}, (0.25, None)),
        ({0: 0.7, 1: 0.8}, {0: 0.7, 1: 0.8}, (0.0, 1.0)),
        ({0: 0.3, 1: 0.8, 2: 0.9}, {0: 0.2, 1: 0.7, 2: 0.8}, (pytest.approx(0.1), None)),
    ],
    ids=["no common seed", "one seed", "equal", "same difference everywhere"],
)
def test_t_test_claims_nothing_where_it_is_undefined(ours, theirs, expected):
    assert paired_t_test(ours, theirs) == expected


def test_only_a_gain_is_marked():
    assert is_significant_gain(0.01, 0.049)
    assert not is_significant_gain(-0.01, 0.001)
    assert not is_significant_gain(0.01, 0.05)
    assert not is_significant_gain(0.01, None)


def test_what_each_item_adds_to_a_difference_is_what_moves_it_when_the_item_counts_more() -> None:
    """Against AUCs of rows of which one item's are repeated: the influence is the derivative by its weight."""
    random = np.random.default_rng(0)
    items, labels = random.integers(8, size=400), random.integers(2, size=400)
    ours, theirs = random.normal(size=(2, 400)) + labels
    difference, influence = difference_by_item(
        placements(ours, labels), placements(theirs, labels), labels, items, num_items=9
    )
    assert difference == pytest.approx(auc(ours, labels) - auc(theirs, labels))
    assert influence[8] == 0 and influence.sum() == pytest.approx(0, abs=1e-12)
    for item in range(8):
        copies = 200
        rows = np.concatenate([np.repeat(np.arange(400), copies), np.flatnonzero(items == item)])
        moved = auc(ours[rows], labels[rows]) - auc(theirs[rows], labels[rows])
        assert (moved - difference) * copies == pytest.approx(influence[item], rel=0.05, abs=2e-4)


def test_the_interval_over_folds_is_that_of_a_mean_of_independent_folds() -> None:
    random = np.random.default_rng(1)
    influences = [random.normal(size=num) for num in (300, 50, 4_000)]
    influences = [one - one.mean() for one in influences]
    found = bootstrap_folds([0.1, 0.1, 0.1], influences)
    spread = np.sqrt(sum(float(one @ one) for one in influences)) / 3
    assert found["difference"] == pytest.approx(0.1)
    # A quantile of 1,000 draws: a standard error of 6 % of the deviation.
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    apart = bootstrap_folds([0.0, 0.1, 0.2], [np.zeros(9)] * 3)
    assert apart["low"] < 0.03 and apart["high"] > 0.17, "folds that differ widen it"
