"""The manifest of a prepared folder: what is in it, and whether it is all there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.files import DamagedError, read_json

LAYOUT_VERSION = 5  # Raise it when the files change; every prepared folder is then made anew.
_ALSO_READABLE = (3, 4)  # 3 has no times of events, which only `backbone.recent_gap_s` needs; 4 no vocabularies
MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Gives the manifest of a folder whose files are all there and complete.

    None where anything is missing or truncated.
    """
    try:
        return check_manifest(folder)
    except (FileNotFoundError, NotADirectoryError, DamagedError):
        return None


def check_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder whose files are all there and complete.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is damaged or of another layout, or a file is missing or truncated.
    """
    manifest = read_json(folder / MANIFEST)
    try:
        if manifest["layout"] not in (*_ALSO_READABLE, LAYOUT_VERSION):
            raise DamagedError(f"{MANIFEST} is of layout {manifest['layout']!r}, this version reads {LAYOUT_VERSION}")
        sizes = {path: entry["bytes"] for path, entry in (manifest["entities"] | manifest["histories"]).items()}
        counts = [manifest[name] for name in ("num_users", "num_old_items", "num_new_items")]
        for split in manifest["splits"].values():
            sizes |= {file["path"]: file["bytes"] for file in split["files"]}
            counts += [split["rows"], split["row_group_rows"] - 1, *(file["rows"] for file in split["files"])]
            groups = [sum(file["row_groups"]) for file in split["files"]]
            if split["rows"] != sum(groups) or groups != [file["rows"] for file in split["files"]]:
                raise DamagedError(f"{MANIFEST} contradicts itself")
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise DamagedError(f"{MANIFEST} contradicts itself")
        for path, size in sizes.items():
            found = (folder / path).stat().st_size if (folder / path).exists() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise DamagedError(f"{path} {state}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({type(error).__name__}: {error})") from None
    return manifest


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Explains an error of reading a file of a prepared folder.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read ({error}): the disk may be failing; delete its folder to have it prepared anew"
        ) from error
