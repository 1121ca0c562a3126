"""MAP: the row of a new item is the most probable one given its clicks, with the content-based score as the prior."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from mwuf_dist.config import Count, MethodConfig, Positive, section
from mwuf_dist.methods.content_prior import curvature, fit_content_prior, gradient_of, times
from mwuf_dist.methods.dropoutnet import DropoutNet, DropoutNetConfig
from mwuf_dist.methods.lines import Lines

_MOST_STEPS = 50
_MOST_HALVINGS = 20
# An item is done when no coordinate of its gradient is larger.
_SMALLEST_SLOPE = 1e-8


@section
class MapConfig(DropoutNetConfig):
    """Keys of `map`."""

    prior_precision: Positive = 1.5  # Precision of the prior; a larger one keeps a row closer to its first row.
    # content: mean and covariance of the prior given the item's fields, by empirical Bayes from old items.
    prior: Literal["zero", "content"] = "zero"
    prior_strength: Positive = 1.0  # With `prior = "content"`: factor on the precision that is found.
    prior_rows: Count = 60  # With `prior = "content"`: rows of each old item that are used, at most.


class Map(DropoutNet):
    """Maximum a posteriori rows, for a backbone whose logit is linear in the item embedding (encoder, fm).

    With everything but the row v of a new item frozen, the logit of user u is f_u + v . x_u. The row that the clicks
    y_u so far make most probable, under the prior v ~ N(v_0, P^-1), is

        argmin_v  sum_u BCE(f_u + v . x_u, y_u) + (v - v_0)' P (v - v_0) / 2

    (each click times its weight, where rows have weights), a convex problem of its own for every item, solved by
    Newton's method for many items at once. There is no learning rate, no number of steps and no order of rows to
    choose, and a row depends on its item's clicks alone. It always takes the clicks of all finished phases.

    * `prior = "zero"`: v_0 is zero and P is `method.prior_precision` times the identity: the ID is a residual that
      `pretrain` has learned to do without (`method.item_dropout`, as in DropoutNet).
    * `prior = "content"`: v_0 is a ridge regression of rows on the item's field embeddings, and P^-1 what rows differ
      by beside it, both by empirical Bayes from the clicks of old items (`content_prior.py`). The model has been
      trained on these items, so that this precision need not be a new item's: `method.prior_strength` multiplies it.
      On MovieLens-1M (encoder, one fold of old items played as new, fixed test, cold to warm-c) the zero prior has
      .7398/.7860/.7941/.7960, this one .7407/.7846/.7911/.7919 at 1, .7407/.7851/.7937/.7956 at 2 (the best of .5, 1,
      2 and 4): nothing is gained but, perhaps, .001 in cold.

    `covariance` is the posterior's of a row, by the curvature at it (Laplace).

    Deviation from the maximum a posteriori of a whole model: with `prior = "zero"` no intercept common to the new items
    is fitted beside the rows, so a level that all of them share is learned by each row on its own.
    """

    Config = MapConfig
    config: MapConfig
    pretrain_keys: ClassVar[tuple[str, ...] | None] = ("name", "item_dropout")
    fits_items = True
    has_posterior = True
    weight: torch.Tensor
    precision: torch.Tensor

    def __init__(self, config: MapConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.fits_prior, self.prior_rows = config.prior == "content", config.prior_rows
        precision = config.prior_precision * torch.eye(dim)
        if self.fits_prior:
            # B with the mean of the fields and its constant folded into the last row, and P.
            self.register_buffer("weight", torch.zeros(item_context + 1, dim))
            self.register_buffer("precision", precision)
        else:
            self.precision = precision

    @classmethod
    def default_initialisation(cls, config: MethodConfig) -> str:
        """See `Method.default_initialisation`."""
        assert isinstance(config, MapConfig)
        return "own" if config.prior == "content" else cls.initialisation

    @torch.no_grad()
    def fit_prior(self, item_context: torch.Tensor, lines: Lines, label: torch.Tensor) -> None:
        """See `Method.fit_prior`."""
        context = item_context.double()
        mean, deviation = context.mean(0), context.std(0, correction=0)
        # A constant column says nothing, and its deviation is rounding.
        deviation = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, torch.inf)
        features = torch.cat([(context - mean) / deviation, torch.ones_like(context[:, :1])], dim=1)
        found = fit_content_prior(features, lines, label, self.config.prior_precision)
        weight = found.weight[:-1] / deviation[:, None]
        self.weight.copy_(torch.cat([weight, found.weight[-1:] - mean @ weight]))
        self.precision.copy_(torch.linalg.inv(found.covariance) * self.config.prior_strength)

    def initial_rows(self, items: torch.Tensor, item_context: torch.Tensor) -> torch.Tensor:
        """See `Method.initial_rows`."""
        return item_context @ self.weight[:-1] + self.weight[-1]

    @torch.no_grad()
    def fit(self, start: torch.Tensor, lines: Lines, label: torch.Tensor) -> torch.Tensor:
        """See `Method.fit`."""
        prior, lines, label = start.double(), lines.double(), label.double()
        rows, precision = prior.clone(), self.precision.double().to(prior.device)
        for _ in range(_MOST_STEPS):
            gradient, probability = gradient_of(rows, prior, precision, lines, label)
            open_items = gradient.abs().amax(1) > _SMALLEST_SLOPE
            if not open_items.any():
                break
            second = curvature(precision, len(rows), lines, probability)
            step = torch.linalg.solve(second, gradient) * open_items[:, None]
            rows = self._descend(rows, step, prior, precision, lines, label)
        return rows.to(start.dtype)

    @torch.no_grad()
    def covariance(self, rows: torch.Tensor, lines: Lines) -> torch.Tensor:
        """See `Method.covariance`: the inverse of the curvature at the rows (Laplace's approximation)."""
        rows, lines = rows.double(), lines.double()
        precision = self.precision.double().to(rows.device)
        return torch.linalg.inv(curvature(precision, len(rows), lines, torch.sigmoid(lines.logits(rows))))

    def _descend(
        self,
        rows: torch.Tensor,
        step: torch.Tensor,
        prior: torch.Tensor,
        precision: torch.Tensor,
        lines: Lines,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """Returns rows moved by `step`, by half of it where that would be uphill, and so on."""

        def loss(rows: torch.Tensor) -> torch.Tensor:
            clicks = F.binary_cross_entropy_with_logits(lines.logits(rows), label, lines.weight, reduction="none")
            away = rows - prior
            total = (times(away, precision) * away).sum(1) / 2
            return total.index_add(0, lines.item, clicks)

        before = loss(rows)
        for _ in range(_MOST_HALVINGS):
            moved = rows - step
            uphill = loss(moved) > before + 1e-12 * before.abs()
            if not uphill.any():
                return moved
            step = torch.where(uphill[:, None], step / 2, step)
        return torch.where(uphill[:, None], rows, moved)
