"""The days of the stream protocol: each day's rows of new items are scored first, and then learned from.

A method learns by the rule of the daily job (`training/item_rule/rule.py`): a new item's row is a function of its own
rows so far in (time, place) order, and of the model as pretraining has left it. U(v) holds the users of earlier days.
With `data.stream.retrain_every_days` nothing is learned so: before every n-th day the whole model is trained from
scratch on all rows up to it, and an item that has none of them stands at the mean row.

The days are short beside what comes before them: a run that is stopped within them begins them again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.data.id_keys import id_keys, mixed
from mwuf_dist.evaluation.stream_metrics import RANKING, ranking, stream_metrics
from mwuf_dist.training.results import write_scores
from mwuf_dist.training.stages.stream_learners import Learner, Log, Retrained, Warmed

if TYPE_CHECKING:
    from mwuf_dist.data.shards import Prepared
    from mwuf_dist.training.run import Run

_SCORED_ROWS = 1 << 15  # at once


@dataclass(frozen=True)
class StreamScores:
    """Holds what the days have come to.

    Attributes:
        logits: of the rows of `test` in stored order [n].
        ranks: NDCG@10 and Recall@10 of each ranked list [q, 2].
    """

    logits: np.ndarray
    ranks: np.ndarray


def stream(job: Run) -> dict[str, Any]:
    """Plays the days; the metrics of `stream_metrics` and the ranking's, with `num_days` and `num_lists`.

    Args:
        job: pretrained and meta-trained.

    Raises:
        UserError: there is no row to score, or the method is none that the rule covers.
    """
    prepared, settings = job.prepared, job.config.data.stream
    log = prepared.columns("test", ("user", "item", "label", "time"))
    if not len(log["label"]):
        raise UserError("no new item has a row from day 0 on: change data.stream.pretrain_days or num_days")
    days = days_of(prepared, log)
    learner = Retrained(job) if settings.retrain_every_days else Warmed(job, log)
    found = play(job, learner, log, days)
    age, clicks = ages_and_clicks(prepared, log)
    metrics = stream_metrics(found.logits, log["label"], log["user"], age, clicks, settings.max_age_days)
    means = found.ranks.mean(0).tolist() if len(found.ranks) else [None] * len(RANKING)
    ranks = dict(zip(RANKING, means, strict=True)) | {"num_lists": len(found.ranks)}
    if job.runtime.is_main:
        write_scores(job.folder, "stream", {"test": found.logits})
        job.session.recorder.say(f"stream   AUC {metrics['auc'] or 0:.4f}   NDCG@10 {ranks[RANKING[0]] or 0:.4f}")
    return metrics | ranks | {"num_days": len(np.unique(days))}


def play(job: Run, learner: Learner, log: Log, days: np.ndarray) -> StreamScores:
    """Returns day by day: scores, ranks, and then learns."""
    logits = np.full(len(days), np.nan)
    ranks: list[tuple[float, float]] = []
    for day in np.unique(days).tolist():
        rows = np.flatnonzero(days == day)
        learner.begin(day)
        clock = time.perf_counter()
        logits[rows] = _in_pieces(learner, rows, log["user"][rows], log["item"][rows])
        ranks += _ranks(job, learner, log, rows, day)
        clock = _count(job, "evaluate", len(rows), clock)
        learner.learn(rows)
        _count(job, "warm_up", len(rows), clock)
    return StreamScores(logits, np.array(ranks).reshape(-1, len(RANKING)))


def ages_and_clicks(prepared: Prepared, log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Returns (whole days since its item's first row, clicks of its item on earlier days) of each row [n].

    A click is a row of the log, liked or not; where the log holds positives only, the drawn rows are none.

    Args:
        prepared: of the stream protocol.
        log: `item`, `label` and `time` of the rows of `test`, in stored order [n].
    """
    item, days = log["item"], days_of(prepared, log)
    _, first, inverse = np.unique(item, return_index=True, return_inverse=True)
    age = (log["time"] - log["time"][first][inverse]) // prepared.manifest["day"]
    is_click = log["label"] == 1 if prepared.negatives_per_positive else np.ones(len(item), dtype=bool)
    order = np.lexsort((days, inverse))
    before = np.cumsum(is_click[order]) - is_click[order]  # of earlier items too, and of the same day
    starts = (np.cumsum(np.bincount(inverse)) - np.bincount(inverse))[inverse[order]]
    is_first = np.ones(len(item), dtype=bool)  # of an item and day
    is_first[1:] = (inverse[order][1:] != inverse[order][:-1]) | (days[order][1:] != days[order][:-1])
    begun = np.maximum.accumulate(np.where(is_first, np.arange(len(item)), 0))
    clicks = np.empty(len(item), dtype=np.int64)
    clicks[order] = before[begun] - before[starts]
    return age, clicks


def days_of(prepared: Prepared, log: Log) -> np.ndarray:
    """Returns the day of each row [n], counted from day 0."""
    return (log["time"] - prepared.manifest["day_0"]) // prepared.manifest["day"]


def _count(job: Run, stage: str, samples: int, clock: float) -> float:
    now = time.perf_counter()
    job.session.count(stage, samples, now - clock)
    return now


def _in_pieces(learner: Learner, rows: np.ndarray, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    pieces = [slice(first, first + _SCORED_ROWS) for first in range(0, len(rows), _SCORED_ROWS)]
    return np.concatenate([learner.logits(rows[one], users[one], items[one]) for one in pieces])


def _ranks(job: Run, learner: Learner, log: Log, rows: np.ndarray, day: int) -> list[tuple[float, float]]:
    """Ranks what some users liked that day among all items that have had a row by its end."""
    prepared, most = job.prepared, job.config.data.stream.ranked_users
    liked = rows[log["label"][rows] == 1]
    users, first = np.unique(log["user"][liked], return_index=True)
    if not most or not len(users):
        return []
    keys = mixed(id_keys(prepared.raw_ids("user").take(pa.array(users))) + np.uint64(day))
    chosen = np.sort(np.argsort(keys, kind="stable")[:most])
    born = np.unique(log["item"][: rows[-1] + 1])
    alive = np.concatenate([np.arange(prepared.num_old_items), born])
    found = []
    for user, row in zip(users[chosen].tolist(), liked[first[chosen]].tolist(), strict=True):
        wanted = np.unique(log["item"][liked[log["user"][liked] == user]])
        moment, whose = np.full(len(alive), row), np.full(len(alive), user)
        scores = _in_pieces(learner, moment, whose, alive)
        found.append(ranking(scores, np.searchsorted(alive, wanted)))
    return found
