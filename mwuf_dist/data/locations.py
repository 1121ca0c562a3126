"""Where raw and prepared data lie on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mwuf_dist.config import UserError
from mwuf_dist.files import appearing
from mwuf_dist.locks import locked


def cache_dir() -> Path:
    """Returns `$MWUF_CACHE_DIR`, or `~/.cache/mwuf-dist`."""
    named = os.environ.get("MWUF_CACHE_DIR")
    return expanded(named, "MWUF_CACHE_DIR") if named else expanded("~/.cache/mwuf-dist", "HOME")


def data_dir() -> Path | None:
    """Returns `$MWUF_DATA_DIR`, the folder of the user's raw data; None where it is not set."""
    named = os.environ.get("MWUF_DATA_DIR")
    return expanded(named, "MWUF_DATA_DIR") if named else None


def expanded(path: str, named_by: str) -> Path:
    """Returns the path with the user's folder for a `~`.

    Args:
        path: as it was given.
        named_by: the key, option or variable that holds it, for the message.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nosuchuser
        raise UserError(f"{named_by} = {path!r}: {error}: name a folder") from None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to write into that gets its name once it is complete; after an error nothing is left.

    Args:
        folder: its name; it must not exist or be empty.

    Raises:
        UserError: the folder holds something or cannot be written.
    """
    with locked(folder, "a command that makes it"):
        if folder.exists() and (not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir())):
            raise UserError(f"{folder}: already holds something; name a new folder")
        with appearing(folder, "name another folder") as beside:
            yield beside
