"""The deep models f_theta, one file each."""

from __future__ import annotations

from mwuf_dist.backbones.adapter import as_backbone
from mwuf_dist.backbones.base import Backbone, EmbeddedHistory, Shape
from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.config import BackboneConfig
from mwuf_dist.config.registry import find_class, names

BACKBONES: dict[str, type[Backbone]] = {name: find_class("backbone", name) for name in names("backbone")}


def build_backbone(config: BackboneConfig, shape: Shape) -> Backbone:
    """Builds the backbone that the config names: one of `BACKBONES`, or a user's own module by its import path.

    Raises:
        UserError: there is none of that name.
    """
    return as_backbone(find_class("backbone", config.name), config, shape)


__all__ = ["BACKBONES", "Backbone", "EmbeddedHistory", "FoldedHead", "Shape", "build_backbone"]
