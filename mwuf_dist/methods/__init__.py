"""How new items get an embedding, one file each."""

from __future__ import annotations

import dataclasses

from mwuf_dist.backbones import Backbone
from mwuf_dist.config import MethodConfig
from mwuf_dist.config.registry import find_class
from mwuf_dist.methods.base import Base, Episodes, Method, PretrainedItems, check_backbone, check_initialisation
from mwuf_dist.methods.cvar import Cvar
from mwuf_dist.methods.dropoutnet import DropoutNet
from mwuf_dist.methods.gme import Gme
from mwuf_dist.methods.map import Map
from mwuf_dist.methods.melu import MeLU
from mwuf_dist.methods.metaemb import MetaEmb
from mwuf_dist.methods.mwuf import Mwuf

METHODS: dict[str, type[Method]] = {
    "base": Base,
    "cvar": Cvar,
    "dropoutnet": DropoutNet,
    "gme": Gme,
    "map": Map,
    "melu": MeLU,
    "metaemb": MetaEmb,
    "mwuf": Mwuf,
}


def build_method(config: MethodConfig, dim: int, item_context: int, backbone: Backbone | None = None) -> Method:
    """The method that the config names: one of `METHODS`, or a user's own by its import path.

    Args:
        config: section `method`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side.
        backbone: what it is to work on; None does not ask whether it can.

    Raises:
        UserError: there is none of that name, it does not go with the backbone, or it cannot start its rows as the
            config says.
    """
    method = find_class("method.name", config.name, METHODS, Method)(config, dim, item_context)
    check_initialisation(method)
    if backbone is not None:
        check_backbone(method, backbone)
    return method


def pretraining_of(config: MethodConfig) -> MethodConfig:
    """The part of section `method` that decides stage `pretrain`; equal for methods that can share a pretraining."""
    keys = find_class("method.name", config.name, METHODS, Method).pretrain_keys
    return dataclasses.replace(MethodConfig(name="base"), **{key: getattr(config, key) for key in keys})


__all__ = ["METHODS", "Episodes", "Method", "PretrainedItems", "build_method", "pretraining_of"]
