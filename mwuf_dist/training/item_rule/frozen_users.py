"""A new user's row from the user's own clicks: the rule for items, with the sides exchanged.

The logit is now a function of the user's row, and the item's embedding is frozen with the rest. What the rule makes of
an item's interactions (`rule.py`) it makes of a user's: K steps a block and pass, or, for a method that `fits_items`
and a backbone whose logit is linear in the row too, the fit around the first row by the method's precision.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mwuf_dist.backbones.base import EmbeddedHistory, Shape
from mwuf_dist.methods import Method
from mwuf_dist.training.item_rule.rule import WarmRule, fitted_rows, module_slope, warm_rows

# With fewer clicks the mean user's row stays: the least number by which rows ranked later rows of unseen MovieLens-1M
# users better than the mean user's in both tenths where it was chosen, by both models (`benchmarks/new_users.py`).
FEWEST_CLICKS = 10


class LogitOfUser(torch.nn.Module):
    """The frozen model as a function of the user's row, for users who have no history.

    Args:
        backbone: in float64, frozen.
        shape: the fields.

    Attributes:
        is_linear: the logit is linear in the row.
        first: columns of a part that stand before the row.
    """

    def __init__(self, backbone: torch.nn.Module, shape: Shape) -> None:
        super().__init__()
        self._backbone, self._shape = backbone, shape
        self.is_linear = bool(getattr(backbone, "linear_in_user", False))
        self.first = (1 + shape.num_item_fields + shape.user_id_field) * shape.dim

    def forward(self, row: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Returns logits [b] of rows of users [b, D].

        Args:
            row: in the table of user IDs.
            part: item embedding and all fields [b, (1 + F)*D]; what stands for the user's ID in it is not read.
        """
        dim = self._shape.dim
        whole = torch.cat([part[:, : self.first], row, part[:, self.first + dim :]], dim=1)
        item, context = whole[:, :dim], whole[:, dim:]
        if getattr(self._backbone, "uses_history", False):
            encoded = self._backbone.encode(self._no_history(context), context)  # pyright: ignore[reportCallIssue]
            context = torch.cat([context, encoded], dim=1)
        return self._backbone(item, context)

    def _no_history(self, context: torch.Tensor) -> EmbeddedHistory:
        """Returns one history without events, which all rows have."""
        nothing = torch.empty(0, dtype=torch.int64, device=context.device)
        group = torch.zeros(len(context), dtype=torch.int64, device=context.device)
        # One row, which is no event's, so that nothing is empty.
        rows = context.new_zeros(1, self._shape.dim)
        fields = context.new_zeros(1, self._shape.num_item_fields * self._shape.dim)
        none = context.new_zeros(0)
        return EmbeddedHistory(nothing, none, group.new_zeros(2), group, group, nothing, rows, fields)


@dataclass(frozen=True)
class ClickedItems:
    """Holds what is frozen of n clicks of some users, in float64.

    Attributes:
        embeddings: of distinct items [m, D].
        fields: their fields' embeddings [m, Fi*D].
        item_of: which of them each click's is [n].
        own: field embeddings of each click itself [n, Fr*D]; None where clicks have no fields.
        persons: fields of distinct users [k, Fu*D]; what stands for an ID there is not read.
        person_of: whose each click is [n].
    """

    embeddings: torch.Tensor
    fields: torch.Tensor
    item_of: torch.Tensor
    own: torch.Tensor | None
    persons: torch.Tensor
    person_of: torch.Tensor

    def taken(self, places: np.ndarray) -> ClickedItems:
        """Takes some of the clicks."""
        index = torch.from_numpy(places).to(self.item_of.device)
        own = None if self.own is None else self.own[index]
        return replace(self, item_of=self.item_of[index], own=own, person_of=self.person_of[index])

    def parts(self, places: np.ndarray) -> torch.Tensor:
        """Returns parts [m, (1 + F)*D] of some clicks, as `LogitOfUser` reads them."""
        index = torch.from_numpy(places).to(self.item_of.device)
        item = self.item_of[index]
        own = [] if self.own is None else [self.own[index]]
        person = self.persons[self.person_of[index]]
        return torch.cat([self.embeddings[item], self.fields[item], *own, person], dim=1)


def user_rows(
    rule: WarmRule,
    method: Method,
    logit: LogitOfUser,
    start: torch.Tensor,
    clicks: ClickedItems,
    counts: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
) -> torch.Tensor:
    """Makes the rows [S, D], float32, of S users.

    Args:
        rule: the numbers.
        method: of the run, in float64.
        logit: of the frozen model.
        start: the mean user's row [D], float32.
        clicks: what is frozen of them.
        counts: clicks of each user [S], which stand one after another.
        labels: of the clicks [n].
        weights: what they count in the loss [n]; None: 1.
    """
    rows = start.expand(len(counts), -1).contiguous()
    if method.fits_items and logit.is_linear:
        return fitted_rows(method, logit, rows, counts, clicks.parts, labels, weights).rows
    nothing = np.zeros(len(counts), dtype=np.int64)
    slope = module_slope(logit)
    return warm_rows(rule, slope, rows, nothing, counts, clicks.parts, labels, weights=weights).rows
