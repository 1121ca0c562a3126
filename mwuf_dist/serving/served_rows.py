"""Rows of phi_new that jobs have moved, as columns: one row per item, in the order of the items' indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Rows of phi_new that are not the run's any more.

    Attributes:
        item: their indices, ascending [T], int64.
        served: [T, D] float32.
        at_boundary: where the last complete block has ended [T, D] float32.
        boundary: number of the item's interactions up to there [T], int64.
    """

    item: np.ndarray
    served: np.ndarray
    at_boundary: np.ndarray
    boundary: np.ndarray

    @staticmethod
    def none(dim: int) -> Rows:
        """Gives no rows, of a width."""
        nothing = np.empty((0, dim), np.float32)
        return Rows(np.empty(0, np.int64), nothing, nothing, np.empty(0, np.int64))

    @staticmethod
    def together(parts: Sequence[Rows]) -> Rows:
        """Returns several one after another."""
        return Rows(*(np.concatenate(columns) for columns in zip(*(vars(one).values() for one in parts), strict=True)))

    def taken(self, places: np.ndarray) -> Rows:
        """Returns some of the rows, by position or mask."""
        return Rows(self.item[places], self.served[places], self.at_boundary[places], self.boundary[places])

    def of(self, items: np.ndarray) -> Rows:
        """Returns those of some items [n], ascending; an item may have none."""
        place = np.searchsorted(self.item, items)
        return self.taken(place[np.append(self.item, -1)[place] == items])

    def with_made(self, made: Rows) -> Rows:
        """Puts rows in, in the place of those that are there of the same items; these may be in any order."""
        kept = self.taken(np.isin(self.item, made.item, invert=True))
        both = Rows.together([kept, made])
        return both.taken(np.argsort(both.item))
