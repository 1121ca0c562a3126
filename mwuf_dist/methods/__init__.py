"""How new items get an embedding, one file each."""

from __future__ import annotations

import dataclasses

from mwuf_dist.backbones import Backbone
from mwuf_dist.config import MethodConfig
from mwuf_dist.config.registry import find_class, method_config, names
from mwuf_dist.methods.interface import Episodes, Method, PretrainedItems, check_backbone, check_initialisation
from mwuf_dist.methods.lines import Lines

METHODS: dict[str, type[Method]] = {name: find_class("method", name) for name in names("method")}


def build_method(config: MethodConfig, dim: int, item_context: int, backbone: Backbone | None = None) -> Method:
    """Builds the method that the config names: one of `METHODS`, or a user's own by its import path.

    Args:
        config: section `method`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side.
        backbone: what it is to work on; None does not ask whether it can.

    Raises:
        UserError: there is none of that name, it does not go with the backbone, or it cannot start its rows as the
            config says.
    """
    method = find_class("method", config.name)(config, dim, item_context)
    check_initialisation(method)
    if backbone is not None:
        check_backbone(method, backbone)
    return method


def pretraining_of(config: MethodConfig) -> MethodConfig:
    """Gives the part of section `method` that decides stage `pretrain`.

    Equal for methods that can share a pretraining.
    """
    found = find_class("method", config.name)
    keys = found.pretrain_keys
    if keys is None and found.pretrain_item is not Method.pretrain_item:
        # What it does there may depend on any of its keys: sharing needs its author's word.
        keys = tuple(field.name for field in dataclasses.fields(config) if field.name != "variant")
    if not keys:
        return method_config("base")
    return method_config(config.name, **{key: getattr(config, key) for key in keys if key != "name"})


__all__ = ["METHODS", "Episodes", "Lines", "Method", "PretrainedItems", "build_method", "pretraining_of"]
