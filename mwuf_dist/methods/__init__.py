"""How new items get an embedding, one file each."""

from __future__ import annotations

import difflib

from mwuf_dist.config import MethodConfig, UserError
from mwuf_dist.methods.base import Base, Method
from mwuf_dist.methods.mwuf import Mwuf

METHODS: dict[str, type[Method]] = {"base": Base, "mwuf": Mwuf}


def build_method(config: MethodConfig, dim: int, item_context: int) -> Method:
    """The method that the config names.

    Args:
        config: section `method`.
        dim: width D of an embedding.
        item_context: width of an item's own field embeddings side by side.

    Raises:
        UserError: there is none of that name.
    """
    if config.name not in METHODS:
        near = difflib.get_close_matches(config.name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"method.name = {config.name!r}: unknown; did you mean {near!r}? There are {', '.join(METHODS)}"
        )
    return METHODS[config.name](config, dim, item_context)


__all__ = ["METHODS", "Method", "build_method"]
