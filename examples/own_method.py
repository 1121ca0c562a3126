"""A method of your own in one file: a template.

Nothing in the package changes; run it from the folder above this one:

    mwuf run configs/demo.toml --method.name examples.own_method:ContentShift --output runs/own-method

Override what your method needs, and delete the rest; `mwuf_dist.methods.Method` says when each part is called.
"""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.config import MethodConfig, Positive, section
from mwuf_dist.methods import Method


@section
class ContentShiftConfig(MethodConfig):
    """Keys of this method: `--method.max-shift 0.5` sets one, and --help shows its comment."""

    max_shift: Positive = 1.0  # No coordinate of the shift is larger.


class ContentShift(Method):
    """v_warm = v + m tanh(W [fields of the item, mean of its users]), with W trained by Algorithm 1 of MWUF.

    m is `method.max_shift`.

    Args:
        config: section `method`, with the keys of `Config`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side, Fi*D.
    """

    Config = ContentShiftConfig
    config: ContentShiftConfig

    initialisation = "mean"  # first rows of phi_new: "random", "mean", "zero", or "own" with `initial_rows` below
    meta_trained = True  # `scale_and_shift` has weights: stage meta_train trains them
    episode_trained = False  # True with an `episode_loss`, as in mwuf_dist/methods/metaemb.py

    def __init__(self, config: ContentShiftConfig, dim: int, item_context: int) -> None:
        super().__init__(config, dim, item_context)
        self.shift = nn.Linear(item_context + dim, dim)
        nn.init.zeros_(self.shift.weight)  # start at v itself
        nn.init.zeros_(self.shift.bias)

    def scale_and_shift(self, item_context: torch.Tensor, user_mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale [U, D], shift [U, D]) of U items: the backbone sees v * scale + shift.

        Args:
            item_context: the items' field embeddings [U, Fi*D], frozen.
            user_mean: mean embedding [U, D] of the users who interacted with each item in finished phases, frozen.
        """
        shift = self.config.max_shift * torch.tanh(self.shift(torch.cat([item_context, user_mean], dim=1)))
        return torch.ones_like(shift), shift
