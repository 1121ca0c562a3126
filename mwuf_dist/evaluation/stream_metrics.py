"""Metrics of the stream protocol: of click predictions by age and clicks of the item, of ranks among all items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mwuf_dist.evaluation.metrics import auc, calibration, log_loss

TOP = 10
METRICS = ("auc", "gauc", "logloss", "calibration")
RANKING = (f"ndcg_at_{TOP}", f"recall_at_{TOP}")
FEW_CLICKS = 10  # Rows of items with fewer clicks before them are measured by themselves.
_CLICK_EDGES = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def stream_metrics(
    logits: np.ndarray, labels: np.ndarray, users: np.ndarray, age_days: np.ndarray, clicks: np.ndarray, max_age: int
) -> dict[str, Any]:
    """Returns `rows`, `positives`, `METRICS`, and the same for `first_clicks` and in buckets `by_age` and `by_clicks`.

    `first_clicks` are the rows of items that had fewer than FEW_CLICKS clicks by then.

    Args:
        logits: of the rows [n].
        labels: 0 or 1 [n].
        users: of the rows [n].
        age_days: whole days since the first row of its item [n].
        clicks: of its item that had been learned from [n].
        max_age: no row is older.
    """
    ages = [0, *(1 << power for power in range(max_age.bit_length()) if 1 << power < max_age)]
    few = clicks < FEW_CLICKS
    return _metrics(logits, labels, users) | {
        "first_clicks": _metrics(logits[few], labels[few], users[few]),
        "by_age": _buckets(logits, labels, users, age_days, ages, max_age),
        "by_clicks": _buckets(logits, labels, users, clicks, _CLICK_EDGES, None),
    }


def _metrics(logits: np.ndarray, labels: np.ndarray, users: np.ndarray) -> dict[str, Any]:
    found = auc(logits, labels), gauc(logits, labels, users), log_loss(logits, labels), calibration(logits, labels)
    values = {name: None if math.isnan(value) else value for name, value in zip(METRICS, found, strict=True)}
    return {"rows": len(labels), "positives": int(labels.sum())} | values


def _buckets(
    logits: np.ndarray,
    labels: np.ndarray,
    users: np.ndarray,
    values: np.ndarray,
    edges: Sequence[int],
    last: int | None,
) -> list[dict[str, Any]]:
    """Gives the metrics of the rows whose value is from an edge on and below the next.

    Buckets without a row are left out.
    """
    found = []
    for low, high in zip(edges, [*edges[1:], last], strict=True):
        inside = (values >= low) & (values < (math.inf if high is None else high))
        if inside.any():
            found.append({"from": low, "to": high} | _metrics(logits[inside], labels[inside], users[inside]))
    return found


def gauc(logits: np.ndarray, labels: np.ndarray, users: np.ndarray) -> float:
    """Returns the mean of the users' own AUCs, each weighing as many as its rows; users of one class only are left out.

    NaN where there is no other user.
    """
    order = np.argsort(users, kind="stable")
    _, starts = np.unique(users[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(order) else []
    found = [(auc(logits[rows], labels[rows]), len(rows)) for rows in parts]
    found = [(value, weight) for value, weight in found if not math.isnan(value)]
    return sum(value * weight for value, weight in found) / sum(weight for _, weight in found) if found else math.nan


def ranking(scores: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """Returns (NDCG@10, Recall@10) of one list: of `scores` [C] those at the places `wanted` [w] are the right ones.

    An item that ties with others stands behind them, so that scores that say nothing earn nothing.
    """
    mine = scores[wanted]
    behind = len(scores) - np.searchsorted(np.sort(scores), mine, side="left")  # those not below, itself among them
    # Of right ones that tie with each other the k-th stands k places further up.
    order = np.argsort(mine, kind="stable")
    _, first = np.unique(mine[order], return_index=True)
    rank = behind.astype(np.float64)
    place = np.arange(len(mine)) - np.repeat(first, np.diff(np.append(first, len(mine))))
    rank[order] -= place
    top = rank[rank <= TOP]
    best = (1 / np.log2(1 + np.arange(1, min(TOP, len(wanted)) + 1))).sum()
    return float((1 / np.log2(1 + top)).sum() / best), len(top) / len(wanted)
