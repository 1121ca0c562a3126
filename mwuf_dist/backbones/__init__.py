"""The deep models f_theta, one file each."""

from __future__ import annotations

from torch import nn

from mwuf_dist.backbones.adapter import as_backbone
from mwuf_dist.backbones.afn import Afn
from mwuf_dist.backbones.base import Backbone, BatchSide, EmbeddedHistory, Shape
from mwuf_dist.backbones.dcn import Dcn
from mwuf_dist.backbones.dcn_v2 import DcnV2
from mwuf_dist.backbones.deepfm import DeepFM
from mwuf_dist.backbones.din import Din
from mwuf_dist.backbones.encoder import Encoder
from mwuf_dist.backbones.fm import Fm
from mwuf_dist.backbones.frozen_head import FoldedHead
from mwuf_dist.backbones.gru4rec import Gru4Rec
from mwuf_dist.backbones.pnn import Pnn
from mwuf_dist.backbones.wide_deep import WideDeep
from mwuf_dist.config import BackboneConfig
from mwuf_dist.config.registry import find_class

BACKBONES: dict[str, type[Backbone]] = {
    "afn": Afn,
    "dcn": Dcn,
    "dcn_v2": DcnV2,
    "deepfm": DeepFM,
    "din": Din,
    "encoder": Encoder,
    "fm": Fm,
    "gru4rec": Gru4Rec,
    "pnn": Pnn,
    "wide_deep": WideDeep,
}


def build_backbone(config: BackboneConfig, shape: Shape) -> Backbone:
    """The backbone that the config names: one of `BACKBONES`, or a user's own module by its import path.

    Raises:
        UserError: there is none of that name.
    """
    return as_backbone(find_class("backbone.name", config.name, BACKBONES, nn.Module), config, shape)


__all__ = ["BACKBONES", "Backbone", "BatchSide", "EmbeddedHistory", "FoldedHead", "Shape", "build_backbone"]
