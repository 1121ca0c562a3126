"""Processes of this host: who descends from whom, and what they do."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def processes() -> dict[int, tuple[int, str]]:
    """(parent, time of start) of every process that lives and is no zombie."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = path.read_text().rpartition(")")[2].split()
            if values[0] not in "ZX":
                found[int(path.parent.name)] = int(values[1]), values[19]
    return found


def descendants(roots: set[int]) -> set[int]:
    """Those of some processes that live, and all that descend from them."""
    living = processes()
    found = roots & living.keys()
    while more := {child for child, (parent, _) in living.items() if parent in found} - found:
        found |= more
    return found


def title_of(process: int) -> str:
    """The command line of a process, which Ray's set to what they do; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def to_log(log: str) -> None:
    """Makes what this process prints go to a file."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
