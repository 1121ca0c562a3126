"""Where raw data comes from: one module per data set.

Each has a `NAME`, which `data.name` of a config chooses it by, and offers `fingerprint(config)`, a JSON-able account of
what makes the data (so that prepared shards are rebuilt when it changes), and `pieces(config)`, the data set piece by
piece. The other modules are what they share.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any, Protocol, cast

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data.schema import RawPieces


class Source(Protocol):
    """Defines what a module of this folder offers."""

    NAME: str

    def fingerprint(self, config: DataConfig) -> dict[str, Any]:
        """Says what the data is made of: version of the reader, checksums of raw files, options."""
        ...

    def pieces(self, config: DataConfig) -> RawPieces:
        """Returns the data set, in raw file order."""
        ...


_MODULES = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
SOURCES: dict[str, Source] = {module.NAME: cast(Source, module) for module in _MODULES if hasattr(module, "NAME")}


def find(name: str) -> Source:
    """Returns the source of a data set.

    Raises:
        UserError: there is none of this name.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.0)[0]
        raise UserError(f"data.name = {name!r} is no data set; did you mean {near!r}? Known: {', '.join(SOURCES)}")
    return SOURCES[name]
