"""How new items get an embedding, one file each."""

from __future__ import annotations

import dataclasses

from mwuf_dist.config import MethodConfig, UserError
from mwuf_dist.methods.base import Base, Episodes, Method, check_initialisation
from mwuf_dist.methods.dropoutnet import DropoutNet
from mwuf_dist.methods.map import Map
from mwuf_dist.methods.metaemb import MetaEmb
from mwuf_dist.methods.mwuf import Mwuf
from mwuf_dist.registry import find_class

METHODS: dict[str, type[Method]] = {
    "base": Base,
    "dropoutnet": DropoutNet,
    "map": Map,
    "metaemb": MetaEmb,
    "mwuf": Mwuf,
}


def build_method(
    config: MethodConfig, dim: int, item_context: int, trains_zero_item: bool = True, linear_in_item: bool = True
) -> Method:
    """The method that the config names: one of `METHODS`, or a user's own by its import path.

    Args:
        config: section `method`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side.
        trains_zero_item: whether the backbone can train an item embedding of zeros.
        linear_in_item: whether the backbone's logit is linear in the item embedding.

    Raises:
        UserError: there is none of that name, it does not go with the backbone, or it cannot start its rows as the
            config says.
    """
    method = find_class("method.name", config.name, METHODS, Method)(config, dim, item_context)
    check_initialisation(method, trains_zero_item)
    if method.fits_items and not linear_in_item:
        raise UserError(
            f"method.name = {config.name!r} fits rows to a logit that is linear in the item embedding: it goes with "
            "backbone.name = 'encoder' or 'fm'"
        )
    return method


def pretraining_of(config: MethodConfig) -> MethodConfig:
    """The part of section `method` that decides stage `pretrain`; equal for methods that can share a pretraining."""
    keys = find_class("method.name", config.name, METHODS, Method).pretrain_keys
    return dataclasses.replace(MethodConfig(), **{key: getattr(config, key) for key in keys})


__all__ = ["METHODS", "Episodes", "Method", "build_method", "pretraining_of"]
