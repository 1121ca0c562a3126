"""Where raw and prepared data lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$MWUF_CACHE_DIR`, or `~/.cache/mwuf-dist`."""
    named = os.environ.get("MWUF_CACHE_DIR")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "mwuf-dist"


def data_dir() -> Path | None:
    """`$MWUF_DATA_DIR`, the folder of the user's raw data; None where it is not set."""
    named = os.environ.get("MWUF_DATA_DIR")
    return Path(named).expanduser() if named else None


def prepared_root(prepared_dir: str) -> Path:
    """The folder that holds one folder per prepared data set.

    Args:
        prepared_dir: the config key `data.prepared_dir`; empty means the cache.
    """
    return Path(prepared_dir).expanduser() if prepared_dir else cache_dir() / "prepared"
