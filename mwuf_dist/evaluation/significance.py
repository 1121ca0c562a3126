"""Are two methods different, or is it the seed? Summaries over seeds and the paired t-test over common seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypedDict

import numpy as np
from scipy.special import stdtr

LEVEL = 0.05  # below this p-value a difference is marked


class Summary(TypedDict):
    """Values over seeds; None where a number does not exist."""

    mean: float | None
    std: float | None
    num_seeds: int


def summarize(values: Iterable[float | None]) -> Summary:
    """Mean and sample standard deviation (ddof 1) over seeds.

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
    """Two-sided paired t-test over the seeds that both have: a seed fixes the draws that both methods share.

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
    """Whether a difference is upwards and its p-value below `LEVEL`."""
    return difference is not None and p_value is not None and difference > 0 and p_value < LEVEL
