"""How far apart two correct results may be, so that a test holds on every processor and fails for a reason.

Processors add in other orders: 4, 8 or 16 numbers at once, with or without a fused multiply-add, by torch, a BLAS or
the compiled loops. What they may differ by follows from what is added, not from what one machine has shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

# The same global batches on another number of ranks, by another launcher or after a restart: the promise of the docs.
# It is no bound on rounding, because Adam has none (where a gradient is about zero, its step is the sign of a
# rounding error). 1e-5 is a hundredth to a thousandth of one such step at the learning rates of the tests, so one
# batch that is wrong, left out or doubled is seen; 1e-4 of AUC is one in ten thousand pairs of rows in another order,
# under a tenth of the deviation between seeds.
SAME_TABLES = 1e-5
SAME_AUC = 1e-4
# A fraction of one Adam step: two programs that take the same steps are nearer than this times the learning rate.
PART_OF_A_STEP = 0.01


def float32_bound(num_terms: int, size: float) -> float:
    """Bounds the difference of two float32 computations of one number.

    A sum of n numbers, added in any order, is off by at most n * 2^-24 times the sum of their sizes (Higham, Accuracy
    and Stability of Numerical Algorithms, section 4.2). Errors have either sign, and so have the numbers: the sum of
    sizes is sqrt(n) times the sum, and the errors add up to sqrt(n) of them, which makes n * 2^-24 * size. Two
    computations are off by twice that. Elementary functions of vector libraries (exp, log, tanh) are good to 4 units,
    so they count as four terms.

    Args:
        num_terms: Numbers added on the longest way from inputs to result: the widths of all layers together, and for
            a gradient of weights or shared rows the rows of the batch too.
        size: The largest number on that way: of what is added, not of a result in which it may cancel.
    """
    return num_terms * float(np.finfo(np.float32).eps) * size


def assert_float32_close(found: Any, expected: Any, *, num_terms: int, size: float | None = None) -> None:
    """Asserts that tensors, arrays or numbers (or lists of such) differ by rounding to float32 alone.

    Args:
        found: What is tested.
        expected: The same by another way, in float32 or float64.
        num_terms: See `float32_bound`.
        size: See `float32_bound`; by default the largest of what is expected, where nothing larger cancels in it.
    """
    if isinstance(expected, list | tuple):
        for one, wanted in zip(found, expected, strict=True):
            assert_float32_close(one, wanted, num_terms=num_terms, size=size)
        return
    found, expected = (torch.as_tensor(value).detach().double() for value in (found, expected))
    if expected.numel() == 0:
        assert found.shape == expected.shape
        return
    bound = float32_bound(num_terms, float(expected.abs().max()) if size is None else size)
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


def near(expected: float, *, num_terms: int, size: float = 1.0) -> Any:
    """A number that equals what differs from it by float32 rounding alone: see `float32_bound`."""
    return pytest.approx(expected, rel=0, abs=float32_bound(num_terms, size))


def assert_auc_of_rounded(found: float, logits: np.ndarray, labels: np.ndarray, rounding: float) -> None:
    """Asserts that an AUC is one of logits which are no further than `rounding` from these.

    The largest such AUC has every positive that much higher and every negative that much lower; the least, the reverse.
    """
    from mwuf_dist.evaluation.metrics import auc  # here: the tests of the kernels need torch alone

    towards = rounding * (2.0 * np.asarray(labels) - 1)
    least, most = (auc(logits + sign * towards, labels) for sign in (-1, 1))
    assert least <= found <= most


def sampling_error(share: float, num: int) -> float:
    """The standard error of a fraction of `num` independent draws that each hit with this probability."""
    return float(np.sqrt(share * (1 - share) / num))
