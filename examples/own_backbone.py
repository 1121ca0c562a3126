"""A backbone of your own: any `torch.nn.Module` that maps (item embedding, fields) to a logit.

Nothing in the package changes; run it from the folder above this one:

    mwuf run configs/demo.toml --backbone.name examples.own_backbone:TwoTower --output runs/own-backbone
"""

from __future__ import annotations

import torch
from torch import nn

from mwuf_dist.backbones import Shape
from mwuf_dist.config import MlpConfig


class TwoTower(nn.Module):
    """The inner product of an item vector and a user vector, each a small network over its side's embeddings.

    Args:
        config: section `backbone`: the keys of a backbone with an MLP. For keys of your own give the class a `Config`,
            as `examples/own_method.py` does.
        shape: width of an embedding, and how many item and user fields there are.
    """

    def __init__(self, config: MlpConfig, shape: Shape) -> None:
        super().__init__()
        width = config.hidden[0]
        self.item_width = shape.num_item_fields * shape.dim
        self.item_tower = nn.Sequential(nn.Linear(shape.dim + self.item_width, width), nn.ReLU(), nn.Linear(width, 32))
        self.user_tower = nn.Sequential(
            nn.Linear(shape.num_user_fields * shape.dim, width), nn.ReLU(), nn.Linear(width, 32)
        )

    def forward(self, item: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Logits [B].

        A third argument `row_weight` (None, or [B] with 0 on padding) is passed to a forward that has it.

        Args:
            item: item ID embedding [B, D]: of an old item, of a new one, or warmed up; the module need not know.
            context: the other fields' embeddings side by side [B, F*D]: item fields, then user fields.
        """
        item_side = torch.cat([item, context[:, : self.item_width]], dim=1)
        return (self.item_tower(item_side) * self.user_tower(context[:, self.item_width :])).sum(1)
