"""The deep models f_theta, one file each."""

from __future__ import annotations

import difflib

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.deepfm import DeepFM
from mwuf_dist.backbones.fm import Fm
from mwuf_dist.backbones.wide_deep import WideDeep
from mwuf_dist.config import BackboneConfig, UserError

BACKBONES: dict[str, type[Backbone]] = {"deepfm": DeepFM, "fm": Fm, "wide_deep": WideDeep}


def build_backbone(config: BackboneConfig, shape: Shape) -> Backbone:
    """The backbone that the config names.

    Raises:
        UserError: there is none of that name.
    """
    if config.name not in BACKBONES:
        near = difflib.get_close_matches(config.name, BACKBONES, n=1, cutoff=0.0)[0]
        raise UserError(
            f"backbone.name = {config.name!r}: unknown; did you mean {near!r}? There are {', '.join(BACKBONES)}"
        )
    return BACKBONES[config.name](config, shape)


__all__ = ["BACKBONES", "Backbone", "Shape", "build_backbone"]
