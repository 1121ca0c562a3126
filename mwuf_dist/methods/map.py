"""MAP: the row of a new item is the most probable one given its clicks, with the content-based score as the prior."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from mwuf_dist.config import Positive, section
from mwuf_dist.methods.dropoutnet import DropoutNet, DropoutNetConfig

_MOST_STEPS = 50
_MOST_HALVINGS = 20
# An item is done when no coordinate of its gradient is larger.
_SMALLEST_SLOPE = 1e-8
# Clicks whose part of the curvature is made at once (a matrix D x D each).
_CURVATURE_ROWS = 1 << 13


@section
class MapConfig(DropoutNetConfig):
    """Keys of `map`."""

    prior_precision: Positive = 1.5  # Of the prior on an item's row; larger keeps it closer to its first row.


class Map(DropoutNet):
    """Maximum a posteriori rows, for a backbone whose logit is linear in the item embedding (encoder, fm).

    With everything but the row v of a new item frozen, the logit of user u is f_u + v . x_u. The row that the clicks
    y_u so far make most probable, under the prior v ~ N(v_0, 1 / precision), is

        argmin_v  sum_u BCE(f_u + v . x_u, y_u) + precision / 2 |v - v_0|^2

    a convex problem of its own for every item, solved by Newton's method for many items at once. There is no learning
    rate, no number of steps and no order of rows to choose, and a row depends on its item's clicks alone. It always
    takes the clicks of all finished phases. v_0 is zero: the ID is a residual that `pretrain` has learned to do without
    (`method.item_dropout`, as in DropoutNet).

    Deviation from the maximum a posteriori of a whole model: no intercept common to the new items is fitted beside the
    rows, so a level that all of them share is learned by each row on its own.
    """

    Config = MapConfig
    config: MapConfig
    pretrain_keys: ClassVar[tuple[str, ...] | None] = ("name", "item_dropout")
    fits_items = True

    def __init__(self, config: MapConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.precision = config.prior_precision

    @torch.no_grad()
    def fit(
        self, start: torch.Tensor, item: torch.Tensor, label: torch.Tensor, offset: torch.Tensor, slope: torch.Tensor
    ) -> torch.Tensor:
        """See `Method.fit`."""
        prior, offset, slope, label = (values.double() for values in (start, offset, slope, label))
        rows, open_items = prior.clone(), torch.ones(len(prior), dtype=torch.bool, device=prior.device)
        for _ in range(_MOST_STEPS):
            probability = torch.sigmoid(offset + (rows[item] * slope).sum(1))
            gradient = self.precision * (rows - prior)
            gradient.index_add_(0, item, slope * (probability - label)[:, None])
            open_items = gradient.abs().amax(1) > _SMALLEST_SLOPE
            if not open_items.any():
                break
            curvature = torch.diag_embed(torch.full_like(prior, self.precision))  # [m, D, D]
            weighted = slope * (probability * (1 - probability))[:, None]
            for first in range(0, len(item), _CURVATURE_ROWS):
                part = slice(first, first + _CURVATURE_ROWS)
                curvature.index_add_(0, item[part], weighted[part, :, None] * slope[part, None])
            step = torch.linalg.solve(curvature, gradient) * open_items[:, None]
            rows = self._descend(rows, step, prior, item, label, offset, slope)
        return rows.to(start.dtype)

    def _descend(
        self,
        rows: torch.Tensor,
        step: torch.Tensor,
        prior: torch.Tensor,
        item: torch.Tensor,
        label: torch.Tensor,
        offset: torch.Tensor,
        slope: torch.Tensor,
    ) -> torch.Tensor:
        """Rows moved by `step`, by half of it where that would be uphill, and so on."""

        def loss(rows: torch.Tensor) -> torch.Tensor:
            logit = offset + (rows[item] * slope).sum(1)
            total = self.precision / 2 * (rows - prior).square().sum(1)
            return total.index_add(0, item, F.binary_cross_entropy_with_logits(logit, label, reduction="none"))

        before = loss(rows)
        for _ in range(_MOST_HALVINGS):
            moved = rows - step
            uphill = loss(moved) > before + 1e-12 * before.abs()
            if not uphill.any():
                return moved
            step = torch.where(uphill[:, None], step / 2, step)
        return torch.where(uphill[:, None], rows, moved)
