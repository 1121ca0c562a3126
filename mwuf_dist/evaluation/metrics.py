"""Metrics of click predictions: exact AUC, log loss, calibration, RelaImpr, and AUC by the number of clicks of an item.

Scores are logits in float64 throughout: a float32 sigmoid saturates, and saturated scores are ties that were none.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mwuf_dist.config import UserError

# Scores from which on several threads sort them: starting the threads takes as long as sorting a few thousand.
_SORTED_BY_THREADS = 1 << 16


def auc(scores: ArrayLike, labels: ArrayLike, threads: int = 1) -> float:
    """Returns the area under the ROC curve, exact: a tied pair of a positive and a negative counts one half.

    The same number as the Mann-Whitney statistic with average ranks. Each class is sorted by itself, and pairs are
    counted in int64, so the only rounding is that of the last division, whatever the number of threads.

    Args:
        scores: real numbers, higher means more likely positive, [n]. Logits, or anything in the same order.
        labels: 0 or 1, [n].
        threads: that sort and count.

    Returns:
        A number in [0, 1]; NaN when one of the two classes is absent.

    Raises:
        UserError: a score is NaN, which means that the training diverged.
    """
    scores, labels = _checked(scores, labels)
    num_positives = int(labels.sum())
    num_negatives = len(labels) - num_positives
    if num_positives == 0 or num_negatives == 0:
        return float("nan")
    positives = np.sort(scores[labels == 1])

    def twice_won(negatives: NDArray[np.float64]) -> int:
        ordered = np.sort(negatives)
        # Of each positive: the negatives below it, and those below or equal, so that a tie counts once in two.
        return sum(int(np.searchsorted(ordered, positives, side).sum()) for side in ("left", "right"))

    pieces = np.array_split(scores[labels == 0], threads if len(scores) >= _SORTED_BY_THREADS else 1)
    if len(pieces) == 1:
        twice_pairs_won = twice_won(pieces[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            twice_pairs_won = sum(pool.map(twice_won, pieces))
    return twice_pairs_won / (2 * num_positives * num_negatives)


def log_loss(logits: ArrayLike, labels: ArrayLike) -> float:
    """Returns the mean binary cross-entropy in nats, from logits: exact where a probability would round to 0 or 1.

    Args:
        logits: log odds of a click, [n].
        labels: 0 or 1, [n].

    Returns:
        A number >= 0; NaN for no rows.

    Raises:
        UserError: a logit is NaN, which means that the training diverged.
    """
    logits, labels = _checked(logits, labels)
    if len(labels) == 0:
        return float("nan")
    # -log sigmoid(z) for a click and -log sigmoid(-z) for none, as log(1 + exp(-z)) and log(1 + exp(z)).
    return float(np.logaddexp(0.0, np.where(labels == 1, -logits, logits)).mean())


def calibration(logits: ArrayLike, labels: ArrayLike) -> float:
    """Gives mean predicted probability over the observed fraction of clicks.

    1 is calibrated, above 1 promises too much.

    Args:
        logits: log odds of a click, [n].
        labels: 0 or 1, [n].

    Returns:
        A number >= 0; NaN when no row is a click.

    Raises:
        UserError: a logit is NaN, which means that the training diverged.
    """
    logits, labels = _checked(logits, labels)
    if not labels.any():
        return float("nan")
    from scipy.special import expit  # not earlier: imports are what a restart costs

    return float(expit(logits).mean() / labels.mean())


def rela_impr(auc: float, auc_base: float) -> float:
    """Returns relative improvement of an AUC over that of a base model in percent, of the part above a coin toss.

    `((auc - .5) / (auc_base - .5) - 1) * 100` (Zhu et al., SIGIR 2021).

    Returns:
        Percent; NaN when the base is no better than a coin toss, where the formula changes its sign.
    """
    if not auc_base > 0.5:
        return float("nan")
    return ((auc - 0.5) / (auc_base - 0.5) - 1.0) * 100.0


def auc_by_clicks(
    logits: ArrayLike, labels: ArrayLike, num_clicks: ArrayLike, edges: Sequence[int]
) -> list[dict[str, Any]]:
    """Returns AUC of the rows whose item had a given number of clicks (labelled rows) when the row was scored.

    Args:
        logits: scores, [n].
        labels: 0 or 1, [n].
        num_clicks: rows of the item that were known before this one, [n].
        edges: ascending lower bounds of the buckets; each bucket ends below the next bound, the last has no end.
            Rows below the first bound are left out.

    Returns:
        One dict per bucket: `from`, `to` (exclusive, None for the last), `rows`, `positives`, `auc` (NaN when a class
        is absent).
    """
    assert len(edges) > 0 and all(low < high for low, high in pairwise(edges)), edges
    logits, labels = _checked(logits, labels)
    num_clicks = np.asarray(num_clicks)
    assert num_clicks.shape == labels.shape, (num_clicks.shape, labels.shape)
    buckets = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = num_clicks >= low
        if high is not None:
            inside &= num_clicks < high
        bucket_labels = labels[inside]
        buckets.append(
            {
                "from": low,
                "to": high,
                "rows": len(bucket_labels),
                "positives": int(bucket_labels.sum()),
                "auc": auc(logits[inside], bucket_labels),
            }
        )
    return buckets


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores as float64 and labels as int64, both [n]; a NaN score is the user's diverged training, said as such."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    assert scores.ndim == 1 and scores.shape == labels.shape, (scores.shape, labels.shape)
    assert ((labels == 0) | (labels == 1)).all(), "labels are 0 or 1"
    num_nan = int(np.isnan(scores).sum())
    if num_nan:  # a sort would rank NaN above all numbers and hide the fault behind a plausible AUC
        raise UserError(
            f"{num_nan:,} of {len(scores):,} scores are not a number: the training diverged. "
            "Lower the learning rate of the stage before this evaluation, or look at its loss in metrics.jsonl."
        )
    return scores, labels.astype(np.int64)
