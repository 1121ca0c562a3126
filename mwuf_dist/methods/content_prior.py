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

from mwuf_dist.methods.lines import Lines

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
def fit_content_prior(features: torch.Tensor, lines: Lines, label: torch.Tensor, precision: float) -> ContentPrior:
    """Fits B, S and t.

    Args:
        features: x of each item [m, C].
        lines: the clicks, with f as the offset and s as the slope.
        label: of these [n].
        precision: S starts as the identity by this.
    """
    features, lines, label = features.double(), lines.double(), label.double()
    num, dim = len(features), lines.slope.shape[1]
    gram, eye = features.T @ features, torch.eye(dim, dtype=torch.float64, device=features.device)
    covariance, ridge = eye / precision, float(features.shape[1])
    weight = features.new_zeros(features.shape[1], dim)
    rows = features.new_zeros(num, dim)
    for _ in range(_MOST_STEPS):
        prior = features @ weight
        inverse = torch.linalg.inv(covariance)
        rows, spread = _posterior(rows, prior, inverse, lines, label)
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
    lines: Lines,
    label: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes a Newton step of each row [m, D] towards its mode; the covariances [m, D, D] are by the curvature there.

    An item's steps go on from one iteration to the next: it is at its mode when the prior no longer moves.
    """
    gradient, probability = gradient_of(rows, prior, precision, lines, label)
    covariance = torch.linalg.inv(curvature(precision, len(rows), lines, probability))
    return rows - (covariance @ gradient[:, :, None]).squeeze(2), covariance


def gradient_of(
    rows: torch.Tensor,
    prior: torch.Tensor,
    precision: torch.Tensor,
    lines: Lines,
    label: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns gradients [m, D] of the items' losses in their rows, and the clicks' probabilities [n]; see `Map.fit`."""
    probability = torch.sigmoid(lines.logits(rows))
    missed = lines.times_weight(probability - label)
    gradient = times(rows - prior, precision)
    return gradient.index_add_(0, lines.item, lines.slope * missed[:, None]), probability


def times(rows: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
    """Returns rows [m, D] times a symmetric matrix [D, D], each by sums of its own: a row's bits know no other row."""
    return (rows[:, None] * precision).sum(2)


def curvature(precision: torch.Tensor, num: int, lines: Lines, probability: torch.Tensor) -> torch.Tensor:
    """Gives second derivatives [num, D, D] of items' losses in their rows, where clicks have these probabilities [n].

    Args:
        precision: of the prior [D, D].
        num: number of items.
        lines: the clicks.
        probability: of these [n].
    """
    out = precision.expand(num, -1, -1).clone()
    weighted = lines.slope * lines.times_weight(probability * (1 - probability))[:, None]
    for first in range(0, len(weighted), _CURVATURE_ROWS):
        part = slice(first, first + _CURVATURE_ROWS)
        out.index_add_(0, lines.item[part], weighted[part, :, None] * lines.slope[part, None])
    return out
