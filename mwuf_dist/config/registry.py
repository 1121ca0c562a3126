"""Backbones and methods by name: those of the package, and a user's own by import path."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

from mwuf_dist.config import UserError


def find_class(key: str, name: str, known: Mapping[str, type], kind: type) -> type:
    """The class that a config key names.

    Args:
        key: of the config, for messages: `backbone.name`.
        name: its value: a name of `known`, or `package.module:Class` of a user's own.
        known: the package's own.
        kind: what a user's class must be a subclass of.

    Raises:
        UserError: there is no such name, or what the import path names cannot be imported or is of another kind.
    """
    if ":" in name:
        return _imported(key, name, kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise UserError(
            f"{key} = {name!r}: unknown; did you mean {near!r}? There are {', '.join(sorted(known))}, "
            "and your own as 'package.module:Class'"
        )
    return known[name]


def _imported(key: str, path: str, kind: type) -> type:
    module_name, _, class_name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        # As `python -m` does: an installed command would not see the modules of the folder that it is called in.
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{key} = {path!r}: cannot import {module_name} ({error}): run from the folder that holds it, or install it"
        ) from None
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        what = "nothing" if found is None else repr(found)
        raise UserError(
            f"{key} = {path!r}: {class_name} of {module.__file__} is {what}, it must be a subclass of "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    return found
