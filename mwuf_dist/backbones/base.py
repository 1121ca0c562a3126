"""Defines what a backbone is.

A backbone maps the item's ID embedding and the other fields' embeddings to a logit. It does not know where the item
embedding comes from: that is the method's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from mwuf_dist.backbones.compiled_head import TrainedHead
from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.config import BackboneConfig, MlpConfig
from mwuf_dist.data.batches.histories import History, Scope


@dataclass(frozen=True)
class Shape:
    """Describes the fields that a backbone is built for.

    Attributes:
        dim: embedding width D.
        num_item_fields, num_user_fields: fields beside the item ID.
        user_id_field: which of the fields behind the item's is the user's ID.
        item_fields: names of the item fields.
        num_row_fields: fields of the interaction itself, between the item's and the user's.
        numeric_fields: which of the fields behind the item's ID are of numbers: quantile buckets, and vectors.
    """

    dim: int
    num_item_fields: int
    num_user_fields: int
    user_id_field: int = 0
    item_fields: tuple[str, ...] = ()
    num_row_fields: int = 0
    numeric_fields: tuple[int, ...] = ()

    @property
    def num_fields(self) -> int:
        """Fields of a row, the item ID included."""
        return 1 + self.num_item_fields + self.num_row_fields + self.num_user_fields


@dataclass(frozen=True)
class EmbeddedHistory(History):
    """A history with the embeddings of its items, each distinct item of the batch once.

    Attributes:
        index: of each event, which of the n rows below is its item's [h].
        rows: item ID embeddings [n, D]: a row of phi_old, the current row of phi_new of a new item, or the unknown
            item's row.
        fields: the items' own field embeddings side by side [n, Fi*D], zeros for the unknown item; None unless the
            backbone `uses_history_fields`.
    """

    index: torch.Tensor
    rows: torch.Tensor
    fields: torch.Tensor | None = None

    @property
    def embeddings(self) -> torch.Tensor:
        """Item ID embedding of each event [h, D]."""
        return self.rows.index_select(0, self.index)

    @property
    def ids(self) -> torch.Tensor:
        """Item of each of the n rows, int64 [n]; 0 for a row that no event has."""
        return self.items.new_zeros(len(self.rows)).index_put((self.index,), self.items)

    def padded(self, length: int) -> torch.Tensor:
        """Returns the embeddings of each history [g, length, D], oldest first, with zeros behind."""
        num, dim = len(self.offsets) - 1, self.rows.shape[1]
        shift = torch.arange(num, device=self.offsets.device) * length - self.offsets[:-1]
        place = torch.repeat_interleave(shift, self.lengths) + torch.arange(len(self.items), device=shift.device)
        dense = self.rows.new_zeros(num * length, dim)
        return dense.index_copy(0, place, self.embeddings).view(num, length, dim)


class Backbone(nn.Module):
    """Defines a backbone; any `torch.nn.Module` with this forward is one too (see `adapter.py`).

    A backbone that `uses_history` gets what its `encode` has made of a row's history as the last columns of `context`.
    The `forward` of one that `reads_events` takes one more argument, `events`: the histories in place of these columns.

    Args:
        config: section `backbone`.
        shape: the fields.
    """

    Config: ClassVar[type[BackboneConfig]] = MlpConfig  # Section `backbone` of a config that names this class.
    trains_zero_item = True  # Whether an item embedding of zeros has a gradient.
    uses_history = False  # Whether `encode` is called.
    reads_events = False  # Whether `forward` takes histories as they are, too.
    uses_history_fields = False  # Whether it reads `EmbeddedHistory.fields`.
    history_scope: Scope = "before"  # The user's last L events before the row, or all but the row.
    linear_in_item = False  # Whether the logit is, with everything else frozen, linear in the item embedding.
    linear_in_user = False  # The same of the user's ID embedding, of a user without history.
    history_width = 0  # Columns W that it makes.
    history_length = 0  # L, for `history_scope` "before".
    recent_gap_s = -1.0  # `History.earlier` counts events older than a row by more than this; -1: all before it.

    def __init__(self, config: BackboneConfig, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns logits [B].

        Args:
            item: item ID embedding [B, D].
            context: the other fields' embeddings side by side [B, F*D]: item fields, then those of the row itself,
                then user fields; behind them, for a backbone that `uses_history`, what `encode` made of the rows'
                histories [B, W].
            row_weight: [B], 0 on padding; None when there is none. Only moments over the batch need it.
        """
        raise NotImplementedError

    def encode(self, history: EmbeddedHistory, context: torch.Tensor) -> torch.Tensor:
        """Makes of the rows' histories what the logit reads of them [B, W], without seeing the item embedding.

        After `pretrain` it is computed without gradients, once per batch, whatever becomes of the item embedding.

        Args:
            history: of the rows; row i has history `group[i]`.
            context: field embeddings of the rows [B, F*D], as in `forward`.
        """
        raise NotImplementedError

    def in_precision(self, function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
        """Returns `function(*args)` with matrix products in the precision that the config names; float32 in and out.

        Training and scoring call `forward`, `encode` and the folded head through it. The weights stay float32, and so
        do their gradients; the products of the backward have the precision of those of the forward.
        """
        if self.config.precision == "float32":
            return function(*args)
        device = next(arg.device for arg in args if isinstance(arg, torch.Tensor))
        with torch.autocast(device.type, torch.bfloat16):
            return function(*args).float()

    def fold(self) -> FoldedHead | None:
        """Returns the frozen form with one precomputed part per user and per item, where the backbone has one."""
        return None

    def trained_head(self) -> TrainedHead | None:
        """Makes the compiled loop that may train the backbone on a CPU instead of `forward`, where it has one."""
        return None
