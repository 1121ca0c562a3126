"""What a method is, and the method `base`: none."""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.config import MethodConfig


class Method(nn.Module):
    """How the rows of phi_new start, and what becomes of a row before the backbone sees it.

    Args:
        config: section `method`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side, Fi*D.
    """

    initialisation = "random"  # Of phi_new, unless the config names another.
    meta_trained = False  # Whether stage `meta_train` has anything to train.

    def __init__(self, config: MethodConfig, dim: int, item_context: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        if config.initialisation != "default":
            self.initialisation = config.initialisation

    def scale_and_shift(
        self, item_context: torch.Tensor, user_mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(scale [U, D], shift [U, D]) of items with fields [U, Fi*D] and mean users [U, D]; None: left as they are."""
        return None

    def warm_rows(self, rows: torch.Tensor, item_context: torch.Tensor, user_mean: torch.Tensor) -> torch.Tensor:
        """Warm embeddings [U, D] of rows [U, D] of phi_new, for millions of items at once, without gradients."""
        scale_and_shift = self.scale_and_shift(item_context, user_mean)
        if scale_and_shift is None:
            return rows
        return torch.addcmul(scale_and_shift[1], rows, scale_and_shift[0])


class Base(Method):
    """No method: a new item's row starts as a fresh draw and is updated like any other (the paper's baselines)."""
