"""Backbones and methods by name: a file of the package each, or a user's own class by its import path.

The config comes before backbones and methods, and yet the keys of a section are those of the class that its `name`
chooses. So nothing is imported here but what a name asks for, when it asks.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mwuf_dist.config.types import UserError

Kind = Literal["backbone", "method"]


@dataclass(frozen=True)
class _Room:
    """Where the classes of a kind live.

    Attributes:
        package: one file per class, named after it: `wide_deep.py` holds `WideDeep`. Other files are what they share.
        root: the class that all of the package's own descend from.
        base: `module:Class` that a user's own class must be a subclass of.
        default: the name where a config has none.
    """

    package: str
    root: str
    base: str
    default: str


ROOMS: Mapping[Kind, _Room] = {
    "backbone": _Room("mwuf_dist.backbones", "Backbone", "torch.nn:Module", "wide_deep"),
    "method": _Room("mwuf_dist.methods", "Method", "mwuf_dist.methods.interface:Method", "mwuf"),
}
_CLASS = re.compile(r"^class (\w+)\(([^)]*)\):", re.MULTILINE)


def _folder(kind: Kind) -> Path:
    spec = importlib.util.find_spec(ROOMS[kind].package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@functools.cache
def _classes(kind: Kind) -> Mapping[str, str]:
    """Maps file name to class name, of each file of a room with a class of its name that descends from the root.

    Read from the class statements: importing the files would bring torch to every command.
    """
    root = ROOMS[kind].root
    stated = {file.stem: _CLASS.findall(file.read_text(encoding="utf-8")) for file in _folder(kind).glob("*.py")}
    bases = {name: re.findall(r"\w+", of) for classes in stated.values() for name, of in classes}

    def descends(name: str) -> bool:
        return name == root or any(map(descends, bases.get(name, ())))

    return {
        file: name
        for file, classes in stated.items()
        for name, _ in classes
        if name.lower() == file.replace("_", "") and descends(name)
    }


def names(kind: Kind) -> tuple[str, ...]:
    """Gives the names of the package's own classes of a kind, sorted.

    Files with a class of their name, none imported.
    """
    return tuple(sorted(_classes(kind)))


def find_class(kind: Kind, name: str) -> type[Any]:
    """Returns the class that `backbone.name` or `method.name` chooses.

    Args:
        kind: the section.
        name: one of `names(kind)`, or `package.module:Class` of a user's own.

    Raises:
        UserError: there is no such name, or what the import path names cannot be imported or is of another kind.
    """
    room = ROOMS[kind]
    if ":" in name:
        return _imported(f"{kind}.name", name, _attribute(room.base))
    if name not in names(kind):
        if name.isidentifier() and (_folder(kind) / f"{name}.py").exists():
            raise UserError(
                f"{kind}.name = {name!r}: {room.package}.{name} has no class of its own name (that of wide_deep is "
                f"WideDeep) that descends from {room.root}"
            )
        near = difflib.get_close_matches(name, names(kind), n=1, cutoff=0.0)[0]
        raise UserError(
            f"{kind}.name = {name!r}: unknown; did you mean {near!r}? There are {', '.join(names(kind))}, "
            "and your own as 'package.module:Class'"
        )
    return _attribute(f"{room.package}.{name}:{_classes(kind)[name]}")


def config_class(kind: Kind, name: str) -> type[Any]:
    """Returns the dataclass of the section that holds the keys of this class: its `Config`.

    A module of a user's own without one has the keys of a backbone with an MLP.

    Raises:
        UserError: see `find_class`; or `Config` is no section.
    """
    from mwuf_dist.config.schema import BackboneConfig, MethodConfig, MlpConfig  # which builds configs by this function

    found = getattr(find_class(kind, name), "Config", MlpConfig if kind == "backbone" else MethodConfig)
    base = BackboneConfig if kind == "backbone" else MethodConfig
    if not (isinstance(found, type) and issubclass(found, base) and hasattr(found, "__pydantic_config__")):
        raise UserError(
            f"{kind}.name = {name!r}: its Config must be a subclass of mwuf_dist.config.{base.__name__} under "
            "@mwuf_dist.config.section: see examples/own_method.py"
        )
    return found


def who_has(kind: Kind, key: str) -> list[str]:
    """Returns the package's own classes of a kind that have a key, for messages."""
    return [name for name in names(kind) if key in {field.name for field in fields(config_class(kind, name))}]


def backbone_config(name: str = ROOMS["backbone"].default, **keys: Any) -> Any:
    """Returns the section `backbone` of the backbone of this name, with these keys."""
    return config_class("backbone", name)(name=name, **keys)


def method_config(name: str = ROOMS["method"].default, **keys: Any) -> Any:
    """Returns the section `method` of the method of this name, with these keys."""
    return config_class("method", name)(name=name, **keys)


def _attribute(path: str) -> type[Any]:
    module_name, _, name = path.partition(":")
    return getattr(importlib.import_module(module_name), name)


def own_module(key: str, path: str) -> Any:
    """Imports the module of a user's own `package.module:name`; names its file on the terminal before it runs.

    Args:
        key: of the config or command line, for messages.
        path: what stands there.

    Raises:
        UserError: it cannot be imported.
    """
    module_name = path.partition(":")[0]
    here = str(Path.cwd())
    if here not in sys.path:
        # An installed command would not see the modules of the folder that it is called in. Behind all others, so that
        # a file there never stands in for a library.
        sys.path.append(here)
    try:
        if module_name not in sys.modules and os.environ.get("RANK", "0") == "0":
            found = importlib.util.find_spec(module_name)
            print(f"{key} = {path!r}: runs code of {found.origin if found else module_name}", file=sys.stderr)
        return importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{key} = {path!r}: cannot import {module_name} ({error}): run from the folder that holds it, or install it"
        ) from None


def _imported(key: str, path: str, kind: type) -> type[Any]:
    module, class_name = own_module(key, path), path.partition(":")[2]
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        what = "nothing" if found is None else repr(found)
        raise UserError(
            f"{key} = {path!r}: {class_name} of {module.__file__} is {what}, it must be a subclass of "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    return found
