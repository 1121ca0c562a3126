"""Where raw and prepared data lie on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mwuf_dist.config import UserError


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


@contextmanager
def beside(folder: Path, advice: str) -> Iterator[Path]:
    """A temporary folder next to `folder`, to be renamed to it once it is complete; after an error nothing is left.

    Args:
        folder: its name to be.
        advice: what the user can do where nothing can be written there.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot be written ({error}); {advice}") from None
    try:
        temporary.chmod(0o755)  # mkdtemp's folders are their owner's alone; these may serve a team
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that gets its name once it is complete; after an error nothing is left.

    Args:
        folder: its name; it must not exist or be empty.

    Raises:
        UserError: the folder holds something or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already holds something; name a new folder")
    with beside(folder, "name another folder") as temporary:
        yield temporary
        temporary.rename(folder)
