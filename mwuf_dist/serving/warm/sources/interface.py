"""The interface of a source of interactions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Position = dict[str, Any]


@dataclass(frozen=True)
class Taken:
    """Holds files that are taken together.

    Attributes:
        files: in the order in which they were found; they need to be there until the next batch is taken.
        position: what the delta says of them, and in the end gives back to the source: a key with None is forgotten.
        divide: (a file that cannot be read as a whole) -> the same in parts, so that what is good of it is taken;
            nothing where it has no parts.
    """

    files: tuple[Path, ...]
    position: Position
    divide: Callable[[Path], tuple[Path, ...]] = lambda _: ()


class Source(Protocol):
    """Gives interactions as they come. What it has given stands in the deltas, key by key, and nowhere else."""

    def take(self, position: Position) -> Taken | None:
        """Takes what there is behind a position; None for nothing now."""
        ...
