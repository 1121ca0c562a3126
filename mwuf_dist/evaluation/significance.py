"""Are two methods different, or is it the seed, or which items there were?

Summaries over seeds, the paired t-test over common seeds, the bootstrap over items and seeds (or folds of the items),
and Holm's correction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
from scipy.special import stdtr

LEVEL = 0.05  # below this p-value a difference is marked
FEWEST_SEEDS = 3  # of a difference that is marked: two give its spread one degree of freedom
_DRAWS = 1000
_MOST_ITEMS = 2000  # Of more, the sum over drawn items is as good as normal.


class Summary(TypedDict):
    """Values over seeds; None where a number does not exist."""

    mean: float | None
    std: float | None
    num_seeds: int


def summarize(values: Iterable[float | None]) -> Summary:
    """Returns the mean and sample standard deviation (ddof 1) over seeds.

    Values that are None or not finite do not exist (an AUC of one class, a stage that the method has not) and do not
    count into `num_seeds`. `mean` is None without values, `std` with fewer than two.
    """
    present = [value for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": float(np.mean(present)) if present else None,
        "std": float(np.std(present, ddof=1)) if len(present) > 1 else None,
        "num_seeds": len(present),
    }


def paired_t_test(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[float | None, float | None]:
    """Returns two-sided paired t-test over the seeds that both have: a seed fixes the draws that both methods share.

    Args:
        values: seed -> value of the one method.
        others: seed -> value of the other.

    Returns:
        (mean difference `values - others`, p-value). Both None without a common seed. The p-value is 1 when the two
        are equal on every seed, and None where the test is undefined: one common seed, or a difference that is the
        same on every seed (no spread to judge it by, as when the seed changed nothing).
    """
    common = sorted(values.keys() & others.keys())
    if not common:
        return None, None
    differences = np.array([values[seed] - others[seed] for seed in common])
    mean = float(differences.mean())
    if len(common) < 2:
        return mean, None
    if not differences.any():
        return mean, 1.0
    # Equal differences rarely cancel to the last bit; their rounding error must not pass for a spread.
    if differences.std() <= 1e-12 * np.abs(differences).max():
        return mean, None
    t = mean / (differences.std(ddof=1) / math.sqrt(len(common)))
    return mean, float(2.0 * stdtr(len(common) - 1, -abs(t)))  # scipy.stats has it too, but takes a second to import


def is_significant_gain(difference: float | None, p_value: float | None) -> bool:
    """Says whether a difference is upwards and its p-value below `LEVEL`."""
    return difference is not None and p_value is not None and difference > 0 and p_value < LEVEL


def placements(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns for each positive the fraction of negatives below it, for each negative that of positives above it [n].

    Ties count one half. The mean over either class is the AUC.
    """
    found = np.empty(len(scores))
    for own in (0, 1):
        others = np.sort(scores[labels != own])
        below = np.searchsorted(others, scores[labels == own], side="left")
        up_to = np.searchsorted(others, scores[labels == own], side="right")
        fraction = (below + up_to) / (2 * max(1, len(others)))
        found[labels == own] = fraction if own else 1 - fraction
    return found


class Difference(TypedDict):
    """A difference of AUCs, its 95 % interval and the two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], labels: np.ndarray, items: np.ndarray
) -> Difference:
    """Returns AUC of one method minus that of another, by a bootstrap over items and over seeds at once.

    Rows of an item stand or fall together: other items could have been new. An AUC is taken by its influence function
    (DeLong et al. 1988, summed by item), so a draw costs a sum over items and no sort.

    Args:
        ours: placements [n] of each common seed.
        theirs: those of the other method, in the same order.
        labels: [n].
        items: of each row [n].
    """
    index = np.unique(items, return_inverse=True)[1]
    num_items = int(index.max()) + 1
    parts = [
        difference_by_item(mine, other, labels, index, num_items) for mine, other in zip(ours, theirs, strict=True)
    ]
    of_seed, influence = np.array([part[0] for part in parts]), np.stack([part[1] for part in parts])  # [S], [S, I]
    generator = np.random.default_rng(5)
    if num_items <= _MOST_ITEMS:
        drawn = generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=_DRAWS) - 1.0
        moved = drawn @ influence.T  # [draws, S]
    else:
        covariance = influence @ influence.T
        moved = generator.multivariate_normal(np.zeros(len(parts)), covariance, size=_DRAWS, method="eigh")
    return _interval(of_seed, moved, generator)


def bootstrap_folds(differences: Sequence[float], influences: Sequence[np.ndarray]) -> Difference:
    """Does as `bootstrap_difference`, where each fold has items of its own, which are drawn for it alone.

    What folds differ by is partly their items again, so the interval is rather too wide than too narrow.

    Args:
        differences: of each fold.
        influences: what each item of a fold adds to its difference; they sum to zero.
    """
    generator = np.random.default_rng(5)
    moved = []
    for influence in influences:
        num_items = len(influence)
        if num_items <= _MOST_ITEMS:
            drawn = generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=_DRAWS) - 1.0
            moved.append(drawn @ influence)
        else:
            moved.append(generator.normal(scale=np.linalg.norm(influence), size=_DRAWS))
    together = np.tile(np.mean(moved, axis=0)[:, None], (1, len(differences)))
    return _interval(np.array(differences), together, generator)


def difference_by_item(
    ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, index: np.ndarray, num_items: int
) -> tuple[float, np.ndarray]:
    """Returns AUC of one method minus that of another, and what each item adds to it [num_items] (they sum to zero).

    Args:
        ours: placements [n].
        theirs: those of the other method.
        labels: [n], of both classes.
        index: item of each row [n].
        num_items: number of items, those without a row too.
    """
    positives, gap = labels == 1, ours - theirs
    difference = float(gap[positives].mean())
    size = np.where(positives, positives.sum(), (~positives).sum())
    return difference, np.bincount(index, (gap - difference) / size, minlength=num_items)


def _interval(of_seed: np.ndarray, moved: np.ndarray, generator: np.random.Generator) -> Difference:
    """Gives the interval of the mean of differences [S]; draws of items move it [draws, S], and draws of seeds too."""
    difference = float(of_seed.mean())
    num_seeds = len(of_seed)
    weights = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=_DRAWS) / num_seeds
    # A resample of S seeds has (S - 1) / S of their variance.
    widened = (of_seed - difference) * math.sqrt(num_seeds / max(1, num_seeds - 1))
    draws = difference + (weights * (moved + widened)).sum(1)
    low, high = np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2))
    spread = float(draws.std())
    if spread == 0:
        return {"difference": difference, "low": difference, "high": difference, "p_value": float(difference == 0)}
    p_value = math.erfc(abs(difference) / spread / math.sqrt(2))
    return {"difference": difference, "low": float(low), "high": float(high), "p_value": p_value}


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's step-down correction: p-values of a family of tests, as if each had been made alone."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
