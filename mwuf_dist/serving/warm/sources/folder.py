"""Files of a folder, as they appear."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mwuf_dist.config import UserError
from mwuf_dist.serving.warm.sources.interface import Position, Taken

_BATCH_BYTES = 1 << 24  # Of files that are taken at once; a larger file is a batch of its own.
_NOT_YET = re.compile(r"^[._]|\.(tmp|part|partial|crdownload|swp)$|~$")


class FolderSource:
    """Files of a folder, each whole from the moment that it has its name: written elsewhere and renamed into place.

    The position has size and time of each file that is in the folder and has been taken. Of one that is there no more
    it is forgotten with the next batch; should the file come back, its interactions are known, and change nothing.

    Args:
        folder: whose files are taken, not those in folders in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no folder to follow is here: make it, or name another with --follow")
        self._folder = folder

    def take(self, position: Position) -> Taken | None:
        """See `Source.take`."""
        found, there = [], set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _NOT_YET.search(entry.name) or not entry.is_file():
                    continue
                there.add(entry.name)
                about = entry.stat()
                key = [about.st_size, about.st_mtime_ns]
                if position.get(entry.name) != key:
                    found.append((about.st_mtime_ns, entry.name, key))
        batch, size = {}, 0
        for _, name, key in sorted(found):
            if batch and size + key[0] > _BATCH_BYTES:
                break
            batch[name], size = key, size + key[0]
        if not batch:
            return None
        gone = {name: None for name in position if "/" not in name and name not in there}
        return Taken(tuple(self._folder / name for name in batch), batch | gone)
