import sys
import tracemalloc
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from mwuf_dist.config import UserError
from mwuf_dist.evaluation.metrics import auc, auc_by_clicks, calibration, log_loss, rela_impr


def _auc_by_all_pairs(scores, labels):
    """The definition: the share of (positive, negative) pairs in the right order, a tie counting one half."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return float(((positive > negative) + 0.5 * (positive == negative)).mean())


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=60))
def test_auc_is_the_share_of_ordered_pairs_with_half_for_ties(rows):
    scores, labels = zip(*rows, strict=True)
    ours = auc(scores, labels)
    if len(set(labels)) < 2:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(_auc_by_all_pairs(scores, labels), abs=1e-14)


@pytest.mark.parametrize("decimals", [1, 3, 12])  # few, some and no ties
def test_auc_equals_scikit_learn(decimals):
    rng = np.random.default_rng(decimals)
    labels = rng.integers(0, 2, 5_000)
    scores = np.round(rng.normal(size=5_000) + labels, decimals)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_depends_on_the_order_of_scores_alone_and_not_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 1_000), np.round(rng.normal(size=1_000), 2)
    shuffle = rng.permutation(1_000)
    assert auc(scores, labels) == auc(np.exp(scores), labels) == auc(scores[shuffle], labels[shuffle])
    assert auc(-scores, labels) == pytest.approx(1 - auc(scores, labels), abs=1e-15)


def test_auc_tells_apart_logits_whose_float32_probabilities_are_equal():
    logits = np.array([20.0, 21.0, 22.0, 23.0])
    labels = np.array([0, 0, 1, 1])
    assert len(np.unique(expit(logits.astype(np.float32)))) == 1
    assert auc(logits, labels) == 1.0


def test_auc_accepts_infinities_and_both_zeros_as_what_they_are():
    assert auc([-np.inf, 0.0, np.inf], [0, 1, 1]) == 1.0
    assert auc([-0.0, 0.0], [0, 1]) == 0.5


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_auc_of_one_class_is_nan(labels):
    assert np.isnan(auc(np.arange(len(labels), dtype=float), labels))


def test_auc_takes_bool_int8_and_float_labels_alike():
    labels = np.array([0, 1, 1, 0, 1])
    scores = [0.1, 0.4, 0.2, 0.3, 0.5]
    assert {auc(scores, labels.astype(kind)) for kind in (bool, np.int8, np.float32)} == {auc(scores, labels)}


@pytest.mark.parametrize("metric", [auc, log_loss, calibration])
def test_a_nan_score_is_a_diverged_training_and_not_a_number(metric):
    with pytest.raises(UserError, match=r"1 of 3 scores.*diverged.*learning rate"):
        metric([0.0, np.nan, 1.0], [0, 1, 1])


def test_auc_of_a_million_rows_has_no_loop_over_rows_and_no_matrix_of_pairs():
    """Which makes it fast; a clock would tell how busy the machine is, too."""

    def lines_and_bytes(num_rows: int) -> tuple[int, float]:
        rng = np.random.default_rng(0)
        scores, labels = rng.normal(size=num_rows), rng.integers(0, 2, num_rows)
        num_lines = 0

        def count(_frame: FrameType, event: str, _: object) -> Any:
            nonlocal num_lines
            num_lines += event == "line"
            return count

        before = sys.gettrace()
        tracemalloc.start()
        sys.settrace(count)
        try:
            auc(scores, labels)
        finally:
            sys.settrace(before)
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return num_lines, peak_bytes / num_rows

    few, many = lines_and_bytes(1_000), lines_and_bytes(1_000_000)
    assert 0 < many[0] == few[0], "lines"
    assert many[1] < 100, "bytes a row: a dozen arrays of it"


def test_log_loss_equals_scikit_learn_on_probabilities():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=2_000) * 3, rng.integers(0, 2, 2_000)
    assert log_loss(logits, labels) == pytest.approx(sklearn_log_loss(labels, expit(logits)), rel=1e-12)


def test_log_loss_is_exact_where_probabilities_saturate():
    assert log_loss([1000.0, -1000.0], [0, 1]) == 1000.0
    assert log_loss([1000.0, -1000.0], [1, 0]) == 0.0
    assert log_loss([50.0], [1]) == pytest.approx(np.exp(-50.0), rel=1e-12)
    assert log_loss([np.inf], [1]) == 0.0
    assert log_loss([0.0], [1]) == pytest.approx(np.log(2))


def test_calibration_is_one_for_the_true_share_and_scales_with_the_promise():
    labels = np.array([1, 0, 0, 0])
    assert calibration(np.full(4, np.log(0.25 / 0.75)), labels) == pytest.approx(1.0)
    assert calibration(np.zeros(4), labels) == pytest.approx(2.0)
    assert np.isnan(calibration([0.0], [0]))


def test_rela_impr_is_the_papers_formula():
    assert rela_impr(0.6339, 0.5968) == pytest.approx(38.3, abs=0.05)  # MovieLens-1M, MWUF(Wide & Deep), cold
    assert rela_impr(0.5250, 0.5968) == pytest.approx(-74.2, abs=0.05)
    assert rela_impr(0.6, 0.6) == 0.0
    assert np.isnan(rela_impr(0.6, 0.5)) and np.isnan(rela_impr(0.6, 0.49)) and np.isnan(rela_impr(0.6, float("nan")))


def test_auc_by_clicks_is_the_auc_within_each_bucket():
    rng = np.random.default_rng(2)
    num_clicks = rng.integers(0, 100, 3_000)
    labels, logits = rng.integers(0, 2, 3_000), rng.normal(size=3_000)
    buckets = auc_by_clicks(logits, labels, num_clicks, [10, 20, 60])
    assert [(bucket["from"], bucket["to"]) for bucket in buckets] == [(10, 20), (20, 60), (60, None)]
    for bucket in buckets:
        inside = (num_clicks >= bucket["from"]) & (num_clicks < (bucket["to"] or 1_000))
        assert bucket["rows"] == inside.sum() and bucket["positives"] == labels[inside].sum()
        assert bucket["auc"] == pytest.approx(_auc_by_all_pairs(logits[inside], labels[inside]), abs=1e-14)
    assert sum(bucket["rows"] for bucket in buckets) == (num_clicks >= 10).sum()


def test_auc_by_clicks_keeps_an_empty_bucket():
    empty = auc_by_clicks([0.0, 1.0], [0, 1], [0, 0], [0, 5])[1]
    assert empty["rows"] == 0 and np.isnan(empty["auc"])


def test_the_auc_of_many_scores_is_the_same_number_on_any_number_of_threads():
    draws = np.random.default_rng(0)
    labels = (draws.random(200_000) < 0.3).astype(np.int64)
    scores = np.round(draws.normal(labels * 0.3, 1), 3)  # with ties
    below, equal = np.unique(scores[labels == 0], return_counts=True)
    place = np.searchsorted(below, scores[labels == 1])
    smaller = np.concatenate([[0], np.cumsum(equal)])
    tied = np.where(np.isin(scores[labels == 1], below), equal[np.minimum(place, len(below) - 1)], 0)
    expected = (smaller[place] + tied / 2).sum() / (labels.sum() * (1 - labels).sum())
    assert {auc(scores, labels, threads) for threads in (1, 2, 3, 8)} == {expected}
