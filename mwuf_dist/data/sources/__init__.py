"""Where raw data comes from: one module per data set.

Each offers `fingerprint(config)`, a JSON-able account of what makes the data (so that prepared shards are rebuilt when
it changes), and `pieces(config)`, the data set piece by piece.
"""

from __future__ import annotations

import difflib
from typing import Any, Protocol

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data.schema import RawPieces
from mwuf_dist.data.sources import cikm2019, logs, movielens, synthetic, taobao_ad


class Source(Protocol):
    """Defines what a module of this folder offers."""

    def fingerprint(self, config: DataConfig) -> dict[str, Any]:
        """Says what the data is made of: version of the reader, checksums of raw files, options."""
        ...

    def pieces(self, config: DataConfig) -> RawPieces:
        """The data set, in raw file order."""
        ...


SOURCES: dict[str, Source] = {
    "cikm2019": cikm2019,
    "logs": logs,
    "movielens-1m": movielens,
    "synthetic": synthetic,
    "taobao-ad": taobao_ad,
}


def find(name: str) -> Source:
    """The source of a data set.

    Raises:
        UserError: there is none of this name.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.0)[0]
        raise UserError(f"data.name = {name!r} is no data set; did you mean {near!r}? Known: {', '.join(SOURCES)}")
    return SOURCES[name]
