"""What a method may look at of the pretrained items."""

from __future__ import annotations

import numpy as np
import torch

from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import PretrainedItems
from mwuf_dist.training.model import Model


def pretrained_items(model: Model, prepared: Prepared) -> PretrainedItems:
    """The item side of a pretrained model, for `Method.attach`."""

    def num_pretrain_rows() -> torch.Tensor:
        item = prepared.columns("pretrain", ("item",))["item"]
        return torch.from_numpy(np.bincount(item, minlength=model.num_old)).float().to(model.runtime.device)

    without_gradients = torch.no_grad()
    return PretrainedItems(
        num_old=model.num_old,
        runtime=model.runtime,
        features=model.items,
        old_rows=without_gradients(model.old_ids.rows),
        context=without_gradients(model.item_fields),
        mean_old_row=model.mean_old_row,
        num_pretrain_rows=num_pretrain_rows,
    )
