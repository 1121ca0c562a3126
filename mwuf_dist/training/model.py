"""The model of a run: the sharded tables, the backbone on top of them, and its frozen form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mwuf_dist.backbones import Shape, build_backbone
from mwuf_dist.config import Config
from mwuf_dist.data.loader import Batch
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.features import FeatureStore
from mwuf_dist.embeddings.tables import Tables, TableSpec
from mwuf_dist.runtime import Runtime, generator_seed


class Model:
    """theta, the feature tables, phi_old and phi_new.

    `phi_old` has rows for old items, `phi_new` one row for every old and new item. Old items come first in the item
    index, so one index serves both.

    Args:
        config: sections `embedding` and `backbone`, and the seed.
        prepared: sizes and side tables.
        runtime: ranks and device.
    """

    def __init__(self, config: Config, prepared: Prepared, runtime: Runtime) -> None:
        self.runtime = runtime
        self.num_old = prepared.num_old_items
        self.num_items = prepared.num_items
        self.dim = config.embedding.dim
        self.users = FeatureStore(prepared.entity("user"), runtime.device)
        self.items = FeatureStore(prepared.entity("item"), runtime.device)
        self.shape = Shape(self.dim, len(self.items.fields), len(self.users.fields))
        self.user_tables = Tables("user", self.users.specs(self.dim), config.embedding, runtime)
        self.item_tables = Tables("item", self.items.specs(self.dim), config.embedding, runtime)
        self.old_ids = Tables("old", [TableSpec("old", self.num_old, self.dim)], config.embedding, runtime)
        self.new_ids = Tables("new", [TableSpec("new", self.num_items, self.dim)], config.embedding, runtime)
        for tables in (self.user_tables, self.item_tables, self.old_ids):
            tables.draw(config.embedding.init_std, config.seed)
        torch.manual_seed(generator_seed(config.seed, 1))  # the same dense weights on every rank
        self.backbone = build_backbone(config.backbone, self.shape).to(runtime.device)

    @property
    def pretrained_tables(self) -> tuple[Tables, ...]:
        """The tables that `pretrain` trains and everything later leaves alone."""
        return self.user_tables, self.item_tables, self.old_ids

    def logit(self, batch: Batch, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """Logits [b] of old items' rows, with gradients to every table and weight. A collective.

        Args:
            batch: the rows.
            change: what a method does to the rows' item embeddings [b, D] (`Method.pretrain_item`).
        """
        # Fields of an item are looked up once per distinct item of the batch.
        items, inverse = self.runtime.distinct(batch.item)
        item_side = torch.cat([self.old_ids.rows(items), self.item_fields(items)], dim=1)[inverse]
        context = torch.cat([item_side[:, self.dim :], self.user_fields(batch.user)], dim=1)
        item = item_side[:, : self.dim]
        return self.backbone(item if change is None else change(item), context, None if batch.is_full else batch.weight)

    def user_fields(self, users: torch.Tensor) -> torch.Tensor:
        """Field embeddings [n, Fu*D] of users [n]. A collective."""
        return self.user_tables(self.users.features(users))

    def item_fields(self, items: torch.Tensor) -> torch.Tensor:
        """Field embeddings [n, Fi*D] of items [n], without the ID. A collective."""
        return self.item_tables(self.items.features(items))

    def dense_parameters(self) -> list[nn.Parameter]:
        """Weights of the backbone."""
        return list(self.backbone.parameters())


def loss_sum(logit: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Binary cross entropy of this rank's rows over the rows of the global batch: the ranks' sum is the mean loss."""
    weight = None if batch.is_full else batch.weight
    return F.binary_cross_entropy_with_logits(logit, batch.label, weight, reduction="sum") / batch.num_rows
