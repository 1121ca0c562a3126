"""What a disk may hold after a power cut: the order of writes of a command, recorded and cut off at every place.

As ALICE and CrashMonkey do, at the calls of the system: what was never synced may be there or not. Of each moment three
kinds of state are made: all that was written (what a killed process leaves); every name that was given, with what was
synced of each file, nothing as a rule; and only names whose folder was synced, with what was synced of their files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | None]  # path -> content; None: a folder
_CALLS = ("fsync", "replace", "rename", "unlink", "link", "mkdir", "rmdir")


@dataclass
class Recording:
    """States of a folder, each once, in the order in which they came about."""

    folder: Path
    states: list[tuple[str, Tree]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _content: dict[tuple[int, int, int], bytes] = field(default_factory=dict)
    _synced: dict[int, bytes] = field(default_factory=dict)  # inode -> content
    # inode of a folder -> what it lists: inodes, and whether they are folders
    _listed: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._listed[self.folder.stat().st_ino] = self._entries(self.folder)
        for path, inode, content in self._now():
            if content is None:
                self._listed[inode] = self._entries(path)
            else:
                self._synced[inode] = content

    def synced(self, descriptor: int) -> None:
        """A file or folder was synced."""
        about = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.folder):
            return
        if path.is_dir():
            self._listed[about.st_ino] = self._entries(path)
        else:
            self._synced[about.st_ino] = path.read_bytes()

    def moment(self, name: str) -> None:
        """Keeps the states in which the power may be cut now."""
        now = self._now()
        written = {self._name(path): content for path, _, content in now}
        named = {self._name(path): self._synced.get(inode, b"") if content is not None else None
                 for path, inode, content in now}  # fmt: skip
        durable: Tree = {}
        folders = [("", os.stat(self.folder).st_ino)]
        while folders:
            prefix, inode = folders.pop()
            for entry, (child, is_folder) in self._listed.get(inode, {}).items():
                durable[prefix + entry] = None if is_folder else self._synced.get(child, b"")
                if is_folder:
                    folders.append((f"{prefix}{entry}/", child))
        for kind, state in (("written", written), ("named", named), ("durable", durable)):
            digest = hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()
            if digest not in self._known:
                self._known.add(digest)
                self.states.append((f"{len(self.states)}: {kind} at {name}", state))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _entries(self, folder: Path) -> dict[str, tuple[int, bool]]:
        return {path.name: (path.lstat().st_ino, path.is_dir()) for path in folder.iterdir()}

    def _now(self) -> list[tuple[Path, int, bytes | None]]:
        found = []
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                about = path.stat()
                if path.is_dir():
                    found.append((path, about.st_ino, None))
                    continue
                key = about.st_ino, about.st_mtime_ns, about.st_size
                if key not in self._content:
                    self._content[key] = path.read_bytes()
                found.append((path, about.st_ino, self._content[key]))
        return found


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[Recording]:
    """Records what happens in a folder."""
    recording = Recording(folder.resolve())
    busy = False

    def watched(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy:
                return function(*args, **kwargs)
            busy = True
            try:
                recording.moment(f"{name} {args[0] if not isinstance(args[0], int) else ''}")
                result = function(*args, **kwargs)
                if name == "fsync":
                    recording.synced(args[0])
                recording.moment(f"after {name}")
                return result
            finally:
                busy = False

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield recording


def restore(state: Tree, folder: Path) -> None:
    """Makes a folder hold a state."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in sorted(state.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)
