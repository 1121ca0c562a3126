import numpy as np
import pytest
from scipy import stats

from mwuf_dist.evaluation.significance import is_significant_gain, paired_t_test, summarize


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
