"""The prior of an item's row given its content, by empirical Bayes from old items played as new.

With everything but rows frozen, item i with content x_i has a row v_i and clicks whose logits are lines in it:

    v_i ~ N(x_i B, S),    y_ij ~ Bernoulli(sigmoid(f_ij + v_i . s_ij)),    B_c ~ N(0, t S) for each row c of B

B, S and t are those that make the clicks of the old items most probable (1 / t is the strength of the ridge
regression), by expectation-maximisation with Laplace's approximation: each item's row is where its posterior is
highest, with the covariance that the curvature there says. So an item with few clicks tells little, and what noise
spreads is not taken for a spread of items.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_MOST_STEPS = 100
_SMALLEST_CHANGE = 1e-4  # of any number of the mean rows, relative to their deviation
# Lines whose part of the curvature is made at once (a matrix D x D each).
_CURVATURE_ROWS = 1 << 13


@dataclass(frozen=True)
class ContentPrior:
    """Holds what was found.

    Attributes:
        weight: B [C, D].
        covariance: S [D, D].
        ridge: 1 / t.
    """

    weight: torch.Tensor
    covariance: torch.Tensor
    ridge: float


@torch.no_grad()
def fit_content_prior(
    features: torch.Tensor,
    item: torch.Tensor,
    label: torch.Tensor,
    offset: torch.Tensor,
    slope: torch.Tensor,
    precision: float,
    weight_of: torch.Tensor | None = None,
) -> ContentPrior:
    """Fits B, S and t.

    Args:
        features: x of each item [m, C].
        item: whose click each is, from 0 to m - 1 [n].
        label: [n].
        offset: f [n].
        slope: s [n, D].
        precision: S starts as the identity by this.
        weight_of: what each click counts [n]; None: 1.
    """
    features, label, offset, slope = (values.double() for values in (features, label, offset, slope))
    num, dim = len(features), slope.shape[1]
    gram, eye = features.T @ features, torch.eye(dim, dtype=torch.float64, device=slope.device)
    covariance, ridge = eye / precision, float(features.shape[1])
    weight = features.new_zeros(features.shape[1], dim)
    rows = features.new_zeros(num, dim)
    for _ in range(_MOST_STEPS):
        prior = features @ weight
        inverse = torch.linalg.inv(covariance)
        rows, spread = _posterior(rows, prior, inverse, item, label, offset, slope, weight_of)
        resolved = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        weight = resolved @ (features.T @ rows)
        # Fewer than `num` degrees of freedom are left beside those that the regression has used.
        left = num - float((resolved * gram).sum())
        residual = rows - features @ weight
        scatter = residual.T @ residual + spread.sum(0)
        # Of few items a covariance is drawn towards a multiple of the identity, that of `dim` items.
        level = torch.trace(scatter) / (dim * max(left, 1.0))
        covariance = (scatter + dim * level * eye) / (max(left, 1.0) + dim)
        whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), weight.T, upper=False)
        strength = (float(whitened.square().sum()) + dim * float(torch.trace(resolved))) / weight.numel()
        ridge = 1 / max(strength, 1e-12)
        change = (features @ weight - prior).abs().max() / covariance.diagonal().sqrt().max()
        if float(change) < _SMALLEST_CHANGE:
            break
    return ContentPrior(weight, covariance, ridge)


def _posterior(
    rows: torch.Tensor,
    prior: torch.Tensor,
    precision: torch.Tensor,
    item: torch.Tensor,
    label: torch.Tensor,
    offset: torch.Tensor,
    slope: torch.Tensor,
    weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One Newton step of each item's row [m, D] towards its mode, and the covariances [m, D, D] by the curvature there.

    An item's steps go on from one iteration to the next: it is at its mode when the prior no longer moves.
    """
    gradient, probability = gradient_of(rows, prior, precision, item, label, offset, slope, weight)
    covariance = torch.linalg.inv(curvature(precision, len(rows), item, slope, probability, weight))
    return rows - (covariance @ gradient[:, :, None]).squeeze(2), covariance


def gradient_of(
    rows: torch.Tensor,
    prior: torch.Tensor,
    precision: torch.Tensor,
    item: torch.Tensor,
    label: torch.Tensor,
    offset: torch.Tensor,
    slope: torch.Tensor,
    weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients [m, D] of the items' losses in their rows, and the clicks' probabilities [n]; see `Map.fit`."""
    probability = torch.sigmoid(offset + (rows[item] * slope).sum(1))
    gradient = times(rows - prior, precision)
    missed = probability - label if weight is None else (probability - label) * weight
    return gradient.index_add_(0, item, slope * missed[:, None]), probability


def times(rows: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """Rows [m, D] times a symmetric matrix [D, D], each by sums of its own: a row's bits know no other row."""
    return (rows[:, None] * precision).sum(2)


def curvature(
    precision: torch.Tensor,
    num: int,
    item: torch.Tensor,
    slope: torch.Tensor,
    probability: torch.Tensor,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Second derivatives [num, D, D] of the items' losses in their rows, where clicks have these probabilities [n].

    Args:
        precision: of the prior [D, D].
        num: number of items.
        item: whose click each is [n].
        slope: [n, D].
        probability: [n].
        weight: what each click counts [n]; None: 1.
    """
    out = precision.expand(num, -1, -1).clone()
    spread = probability * (1 - probability)
    weighted = slope * (spread if weight is None else spread * weight)[:, None]
    for first in range(0, len(item), _CURVATURE_ROWS):
        part = slice(first, first + _CURVATURE_ROWS)
        out.index_add_(0, item[part], weighted[part, :, None] * slope[part, None])
    return out
