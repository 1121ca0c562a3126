"""Files that a later command believes: whole or not at all, on the disk before they have their name, with a checksum.

A file is written beside its place, synced and renamed, then its folder is synced: after a power cut there is the old
file or the new one. A folder that appears as a whole is made the same way. JSON files, and each line of a JSON-lines
file, carry the CRC-32 of their values as `checksum`; those of versions that wrote none are taken as they are. A
checksum finds damage, not malice.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mwuf_dist.config import UserError

CHECKSUM = "checksum"
_CHUNK_BYTES = 1 << 22  # Of a file, read at once.
_TEXT_CHECKSUM = re.compile(r"^# checksum of the lines above: ([0-9a-f]{8})\n\Z", re.MULTILINE)
# What a write that was killed has left.
_LEFT = re.compile(r"\..+\.(\d+\.tmp|partial|was)")


class DamagedError(Exception):
    """Says that a file is not what was written, or was written by something else; the message says what is wrong."""


def sync(path: Path) -> None:
    """Makes sure that a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # a file system that has no such thing for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Syncs a folder with all that is in it."""
    for path, _, names in os.walk(folder):
        for name in names:
            sync(Path(path, name))
        sync(Path(path))


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, where they are missing, so that they last."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes `content` (text as UTF-8) to `path`; a reader sees the old file or the new one, never a part.

    A link is followed: what it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def checksum(values: Any) -> str:
    """Returns eight hex digits of the CRC-32 of what JSON keeps of some values, in whatever layout."""
    plain = json.loads(json.dumps(values))
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True, separators=(',', ':')).encode()):08x}"


def with_checksum(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with their checksum as the last of them."""
    return values | {CHECKSUM: checksum(values)}


def write_json(path: Path, values: dict[str, Any], indent: int | None = 1) -> None:
    """Writes values with their checksum; see `write_atomically`."""
    write_atomically(path, json.dumps(with_checksum(values), indent=indent, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the values of a JSON file, without their checksum.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it cannot be read, or is not what was written.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from None
    except DamagedError as error:
        raise DamagedError(f"{path.name} {error}") from None


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Parses the content of a JSON file, or a line.

    Raises:
        DamagedError: see `read_json`; the message goes on after the name of the file.
    """
    if not text.strip():
        raise DamagedError("is empty")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"cannot be read ({str(error)[:200]})") from None
    if not isinstance(values, dict):
        raise DamagedError("is no table of keys")
    expected = values.pop(CHECKSUM, None)
    if expected is not None and expected != checksum(values):
        raise DamagedError("is not what was written (its checksum differs)")
    return values


def assert_tables(values: dict[str, Any], *keys: str) -> None:
    """Raises DamagedError where a key that is a table in what we write is none."""
    wrong = [key for key in keys if not isinstance(values.get(key), dict)]
    if wrong:
        raise DamagedError(f"is not ours: {wrong[0]} is no table of keys")


def whole_lines(path: Path) -> tuple[list[str], int]:
    """Returns the lines of a JSON-lines file that are whole, and the number of those that are not."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    num_damaged = int(bool(lines.pop()))  # the end of the last line is missing
    whole = []
    for line in lines:
        try:
            parse_json(line)
            whole.append(line.decode())
        except (DamagedError, UnicodeDecodeError):
            num_damaged += 1
    return whole, num_damaged


def with_text_checksum(text: str) -> str:
    """Adds to text whose comments begin with # a last line that tells whether it is what was written."""
    return f"{text}# checksum of the lines above: {zlib.crc32(text.encode()):08x}\n"


def is_as_written(text: str) -> bool:
    """Says whether text of `with_text_checksum` is unchanged.

    Where no checksum stands in it, whether it is not empty.
    """
    found = _TEXT_CHECKSUM.search(text)
    if found is None:
        return bool(text.strip()) and "# checksum" not in text
    return f"{zlib.crc32(text[: found.start()].encode()):08x}" == found[1]


def crc32_of(path: Path) -> int:
    """Returns CRC-32 of a file, about a second per GB."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def remove_left_overs(*folders: Path) -> None:
    """Removes what killed writes have left directly in folders; only for who holds the lock of what is there."""
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if _LEFT.fullmatch(path.name):
                remove(path)


def remove(path: Path) -> None:
    """Removes a file, link or folder; what is not there, or cannot be removed, stays as it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def appearing(folder: Path, advice: str) -> Iterator[Path]:
    """Yields a folder beside `folder` that is synced and takes its place in one step; after an error nothing is left.

    Only for who holds the lock of `folder`: what an earlier, killed one has left goes first.

    Args:
        folder: its name to be; what stands there is replaced. A link is followed.
        advice: what the user can do where nothing can be written there.

    Raises:
        UserError: nothing can be written there.
    """
    folder = Path(os.path.realpath(folder))
    beside, was = _names_beside(folder)
    try:
        make_folder(folder.parent)
        put_in_order(folder)
        beside.mkdir()
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot be written ({error.strerror or error}); {advice}") from None
    try:
        yield beside
        sync_tree(beside)
        _take_place(beside, folder, was)
        sync(folder.parent)
    finally:
        remove(beside)
        if folder.exists():
            remove(was)


def put_in_order(folder: Path) -> None:
    """Removes what a killed `appearing` has left beside a folder, and puts back what it had taken away.

    Only for who holds the lock of `folder`.

    Raises:
        OSError: it cannot be put back.
    """
    beside, was = _names_beside(folder)
    if was.exists() and not folder.exists():  # killed between two renames
        os.rename(was, folder)
    for left in (beside, was):
        remove(left)


def _names_beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.was")


def _take_place(beside: Path, folder: Path, was: Path) -> None:
    if not folder.exists():
        os.rename(beside, folder)
    elif not _exchange(beside, folder):  # `beside` is the one before now, and is removed
        os.rename(folder, was)
        try:
            os.rename(beside, folder)
        except OSError:
            os.rename(was, folder)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where this system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
