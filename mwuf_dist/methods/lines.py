"""Clicks as lines in the rows of their items: what a method reads that fits rows instead of training them by steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Lines:
    """Holds n clicks of m items, with all but the items' rows frozen: the logit of click j is offset[j] + slope[j] . v.

    Attributes:
        item: whose click each is, from 0 to m - 1, int64 [n].
        offset: [n].
        slope: [n, D].
        weight: what each click counts in the loss [n]; None where all count 1.
    """

    item: torch.Tensor
    offset: torch.Tensor
    slope: torch.Tensor
    weight: torch.Tensor | None = None

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Computes the logits [n] with the items' rows [m, D]."""
        return self.offset + (rows[self.item] * self.slope).sum(1)

    def times_weight(self, values: torch.Tensor) -> torch.Tensor:
        """Multiplies values of the clicks [n] with what each counts."""
        return values if self.weight is None else values * self.weight

    def taken(self, clicks: torch.Tensor, first_item: int = 0) -> Lines:
        """Takes some of the clicks, by position, and counts items from `first_item` on."""
        weight = None if self.weight is None else self.weight[clicks]
        return Lines(self.item[clicks] - first_item, self.offset[clicks], self.slope[clicks], weight)

    def double(self) -> Lines:
        """Converts all but the items to float64."""
        weight = None if self.weight is None else self.weight.double()
        return Lines(self.item, self.offset.double(), self.slope.double(), weight)


def together(parts: Sequence[Lines]) -> Lines:
    """Puts clicks of the same items one behind another; all have weights, or none has."""
    weights = [part.weight for part in parts if part.weight is not None]
    item, offset, slope = (torch.cat([getattr(part, name) for part in parts]) for name in ("item", "offset", "slope"))
    return Lines(item, offset, slope, torch.cat(weights) if weights else None)
