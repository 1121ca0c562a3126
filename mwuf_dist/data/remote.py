"""Paths that are URIs of a file system that PyArrow has: s3://, gs://, hdfs://, abfs:// and file://.

What is read is copied into the cache first, file by file, and is known there by size and time of change, so a second
command copies what has changed. What is written is made in a folder of this machine and then copied; the last file of
all is `_complete.json`, with the size and the checksum of each other one, and it is the first that is removed when the
folder is written anew. A folder that we have written is believed only where it says all that is there.

An error is tried again, twice; after that it is a `UserError`, and what had been there before is what is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs

from mwuf_dist.config import UserError
from mwuf_dist.data.locations import cache_dir, expanded
from mwuf_dist.files import DamagedError, crc32_of, read_json, remove, write_json
from mwuf_dist.locks import locked

T = TypeVar("T")
Listing = dict[str, list[int]]

COMPLETE = "_complete.json"
_FILE = "file://"
_LISTING = "listing.json"
# A path has lost one of the two slashes.
_URI = re.compile(r"^(s3|gs|gcs|hdfs|viewfs|abfs|abfss|file):/+")
_WAITS_S = (0.5, 2.0)  # Before a second and a third try.
_MOST_LISTINGS = 3
_CHUNK_BYTES = 1 << 22
_NOT_AGAIN = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


def is_uri(named: str | Path) -> bool:
    """Says whether this names something by URI."""
    return _URI.match(str(named)) is not None


def is_remote(named: str | Path) -> bool:
    """Says whether this names something by URI that is no file of this machine."""
    return is_uri(named) and not uri_of(named).startswith(_FILE)


def uri_of(named: str | Path) -> str:
    """Returns the URI in full: a `Path` has lost a slash of it."""
    text = str(named)
    found = _URI.match(text)
    assert found is not None, f"{text} is no URI"
    rest = text[found.end() :].rstrip("/")
    return f"file:///{rest}" if found[1] == "file" else f"{found[1]}://{rest}"


def shown(named: str | Path) -> str:
    """Returns a URI for messages: without what its query or its user part may hold of keys."""
    if not is_uri(named):
        return str(named)
    scheme, _, rest = uri_of(named).partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def below(uri: str | Path, name: str) -> str:
    """Returns the URI of something in a folder; a query stays at the end."""
    base, mark, query = uri_of(uri).partition("?")
    return f"{base}/{name}{mark}{query}"


def local_path(named: str | Path, key: str, whole: bool = False) -> Path:
    """Returns the path that was named, or, of a URI, the copy in the cache, brought up to date.

    Args:
        named: path or URI of a file or a folder; of a folder all that is below it is copied.
        key: the config key or option, for errors.
        whole: only a folder that `published` has written, with all that it says.

    Raises:
        UserError: nothing is there, it cannot be read, or it is not whole.
    """
    if not is_remote(named):
        return Path(uri_of(named)[len(_FILE) :]) if is_uri(named) else Path(named).expanduser()
    uri = uri_of(named)
    place = copy_place(uri)
    with locked(place, f"a copy of {shown(uri)}", _say, "set MWUF_CACHE_DIR"):
        return _Remote(uri, key).copy_to(place, whole)


def copy_place(uri: str) -> Path:
    """Says where in the cache the copy of a URI lies, in a folder of its own."""
    return cache_dir() / "remote" / hashlib.sha256(uri.encode()).hexdigest()[:24]


def prepared_root(prepared_dir: str) -> Path:
    """Returns the folder of this machine that holds one folder per prepared data set.

    Args:
        prepared_dir: the config key `data.prepared_dir`: a path, or a URI, whose folders are copied; empty: the cache.
    """
    if not prepared_dir:
        return cache_dir() / "prepared"
    if not is_uri(prepared_dir):
        return expanded(prepared_dir, "data.prepared_dir")
    uri = uri_of(prepared_dir)
    return Path(uri[len(_FILE) :]) if uri.startswith(_FILE) else copy_place(uri)


def is_complete(named: str | Path, key: str) -> bool:
    """Says whether a folder that `published` has written is there, to its last file."""
    if not is_remote(named):
        return local_path(named, key).is_dir()
    return COMPLETE in _Remote(uri_of(named), key).files()[1]


@contextlib.contextmanager
def published(named: Path | str, key: str) -> Iterator[Path]:
    """Yields a folder to make: the one that is named, or, for a URI, one that is copied there at the end.

    Args:
        named: path or URI. Two commands must not write one URI at a time.
        key: the option, for errors.

    Raises:
        UserError: it cannot be copied. What is there is then not believed, and the same command is run again.
    """
    if not is_remote(named):
        yield local_path(named, key)
        return
    uri = uri_of(named)
    with tempfile.TemporaryDirectory(prefix="mwuf-upload-") as scratch:
        folder = Path(scratch) / (Path(uri.partition("?")[0]).name or "folder")
        yield folder
        publish(folder, uri, key)


def publish(folder: Path, named: str | Path, key: str) -> None:
    """Copies a folder to a URI; see `published`."""
    _Remote(uri_of(named), key).publish(folder)


class _Remote:
    """A file or folder that a URI names.

    Raises:
        UserError: PyArrow cannot reach such a thing.
    """

    def __init__(self, uri: str, key: str) -> None:
        self.uri, self.key, self.shown = uri, key, shown(uri)
        self.system, self.path = self._tried(lambda: fs.FileSystem.from_uri(uri), "be reached")

    def _tried(self, call: Callable[[], T], what: str) -> T:
        for wait in (*_WAITS_S, None):
            try:
                return call()
            except _NOT_AGAIN as error:
                raise UserError(f"{self.key} = {self.shown!r}: cannot {what} ({_short(error)})") from None
            except (ArrowInvalid, ArrowNotImplementedError, ImportError) as error:
                raise UserError(f"{self.key} = {self.shown!r}: is no URI that can be used ({_short(error)})") from None
            except OSError as error:
                if wait is None:
                    raise UserError(
                        f"{self.key} = {self.shown!r}: cannot {what} ({_short(error)}); nothing of it has been used: "
                        "run the same command again"
                    ) from None
                time.sleep(wait)
        raise AssertionError

    def files(self) -> tuple[bool, Listing]:
        """Gives (whether it is a file, path below the folder -> [size, time of change] of each file).

        Nothing: no files.
        """

        def listed() -> tuple[bool, Listing]:
            here = self.system.get_file_info(self.path)
            if here.type == fs.FileType.NotFound:
                return False, {}
            if here.type == fs.FileType.File:
                return True, {Path(self.path).name: [here.size, here.mtime_ns or 0]}
            found = self.system.get_file_info(fs.FileSelector(self.path, recursive=True))
            start = len(self.path.rstrip("/")) + 1
            return False, {one.path[start:]: [one.size, one.mtime_ns or 0] for one in found if one.is_file}

        return self._tried(listed, "be listed")

    def copy_to(self, place: Path, whole: bool) -> Path:
        """Brings a copy up to date; returns where in it the file or the folder is."""
        name = Path(self.path).name
        for _ in range(_MOST_LISTINGS):
            is_file, there = self.files()
            if not there:
                raise UserError(f"{self.key} = {self.shown!r}: there is nothing; name a file or a folder of files")
            folder = place if is_file else place / name
            self._update(place, folder, is_file, there)
            if self.files() == (is_file, there):
                break
        else:
            raise UserError(f"{self.key} = {self.shown!r}: changes while it is read: run this when it is written")
        if whole or COMPLETE in there:
            self._check_whole(folder, place)
        return folder / name if is_file else folder

    def _update(self, place: Path, folder: Path, is_file: bool, there: Listing) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        known = _known(place)
        for one, now in there.items():
            if known.get(one) != now or not (folder / one).exists():
                known.pop(one, None)
                write_json(place / _LISTING, {"files": known})
                self._fetch(self.path if is_file else f"{self.path}/{one}", folder / one, now[0])
                known[one] = now
        for gone in set(known) - set(there):
            remove(folder / gone)
            del known[gone]
        write_json(place / _LISTING, {"uri": self.shown, "files": known})

    def _check_whole(self, folder: Path, place: Path) -> None:
        try:
            said = read_json(folder / COMPLETE)["files"]
            wrong = [
                name
                for name, (size, crc) in said.items()
                if not (folder / name).is_file()
                or (folder / name).stat().st_size != size
                or crc32_of(folder / name) != crc
            ]
        except (FileNotFoundError, DamagedError, KeyError):
            wrong = [COMPLETE]
        if wrong:
            remove(place / _LISTING)  # all of it is fetched again
            raise UserError(
                f"{self.key} = {self.shown!r}: is not whole ({wrong[0]} is not as it was written): the command that "
                "writes it was stopped, or is at work: run that again, then this"
            )

    def _fetch(self, path: str, target: Path, size: int) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.part")

        def fetched() -> None:
            with self.system.open_input_stream(path) as source, beside.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)
            if beside.stat().st_size != size:
                raise OSError(f"{beside.stat().st_size:,} of {size:,} bytes came")

        try:
            self._tried(fetched, f"be read ({target.name})")
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    def publish(self, folder: Path) -> None:
        """Copies a folder there: its files, then what says that they are all."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        names = [name for name in names if name != COMPLETE]
        marker = f"{self.path}/{COMPLETE}"
        before = self.files()[1]
        if before and COMPLETE not in before:
            strange = sorted(set(before) - set(names))
            if strange:
                raise UserError(
                    f"{self.key} = {self.shown!r}: holds {strange[0]}, which is not ours, and nothing that says the "
                    "folder is: name another one"
                )
        if COMPLETE in before:
            self._tried(lambda: self.system.delete_file(marker), "be written")
        said = {}
        for name in names:
            self._put(f"{self.path}/{name}", folder / name)
            said[name] = [(folder / name).stat().st_size, crc32_of(folder / name)]
        with tempfile.TemporaryDirectory() as scratch:
            write_json(Path(scratch) / COMPLETE, {"files": said})
            self._put(marker, Path(scratch) / COMPLETE)
        for name in set(before) - set(names) - {COMPLETE}:
            self._tried(lambda path=f"{self.path}/{name}": self.system.delete_file(path), "be cleared")

    def _put(self, path: str, source: Path) -> None:
        def put() -> None:
            if self.system.type_name not in ("s3", "gcs"):  # those have no folders
                self.system.create_dir(path.rpartition("/")[0], recursive=True)
            with self.system.open_output_stream(path) as target, source.open("rb") as file:
                shutil.copyfileobj(file, target, _CHUNK_BYTES)
            found = self.system.get_file_info(path)
            if found.size != source.stat().st_size:
                raise OSError(f"{found.size} of {source.stat().st_size} bytes are there")

        self._tried(put, f"be written ({source.name})")


def _known(place: Path) -> dict[str, list[int]]:
    """Reads what the copy holds; nothing where that is not known."""
    try:
        return dict(read_json(place / _LISTING)["files"])
    except (FileNotFoundError, DamagedError, KeyError):
        return {}


def _short(error: BaseException) -> str:
    text = str(error).strip().partition("?")[0]  # what follows may hold keys
    return text.splitlines()[0][:300] if text else type(error).__name__


def _say(text: str) -> None:
    print(f"mwuf: {text}", file=sys.stderr, flush=True)
