"""Which files of a path are a log, how each is written, and which are passed over.

Names say little (`part-00001`, `b.parquet.gzip`, `LOG.CSV.GZ`): a file's first bytes decide between Parquet and text,
and what it is compressed with. Whatever is not read is listed with a reason, so that nobody loses half a log unawares.
"""

# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc  # pyright knows none of its functions, which it makes at import

from mwuf_dist.config import UserError
from mwuf_dist.data.locations import data_dir
from mwuf_dist.data.readers import arrow_types
from mwuf_dist.data.remote import local_path

KINDS_READ = "Parquet or CSV (.csv, .tsv or .txt; also compressed as .gz, .bz2, .zst, .lz4)"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

_DATE = r"(19|20)\d\d-?(0[1-9]|1[0-2])-?[0-3]\d"
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_OTHER_MAGIC = {
    b"PK\x03\x04": "a ZIP archive or an Excel file: unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save it as CSV",
    b"ARROW1": "an Arrow (Feather) file: write it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow stream: write it as Parquet",
    b"\x93NUMPY": "a NumPy file: write it as Parquet",
    b"FEA1": "a Feather file: write it as Parquet",
    b"ORC": "an ORC file: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"SQLite format 3": "an SQLite database: export its table as CSV",
    b"\x89HDF": "an HDF5 file: write it as Parquet",
    b"%PDF": "a PDF document",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"\xfd7zXZ": "compressed with xz: compress it with gzip or zstd",
    b"\x80\x04": "a pickle: write it as Parquet",
}
_COMPRESSED = (".gz", ".gzip", ".bz2", ".zst", ".zstd", ".lz4")
_DOCUMENTS = re.compile(
    r"^(read[-_ ]?me|licen[cs]e|change(log|s)|notice|copying|citation)\b|\.(md|rst|html?|pdf)$", re.I
)
_LEFT_BY_PROGRAMS = re.compile(
    r"^[._]|^(thumbs\.db|desktop\.ini)$|~$|\.(crc|md5|sha1|sha256|swp|te?mp|bak|old|orig|part|partial|filepart|crdownload"
    r"|download|in-?progress|incomplete|pending|writing|uploading|copying|lock)$",
    re.I,
)
_NOT_TEXT_TABLES = {
    ".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".xml": "XML", ".py": "a program", ".sql": "SQL",
    ".ipynb": "a notebook", ".toml": "a config", ".yaml": "a config", ".yml": "a config", ".ini": "a config",
}  # fmt: skip

_HEAD_BYTES = 512
_FILES_NAMED = 20  # of those that are not read


@dataclass(frozen=True)
class Format:
    """How a file is written.

    Attributes:
        kind: `parquet`, `text` (lines with delimiters), `empty` (no byte) or `other`.
        compression: of text, as pyarrow names it; empty for none.
        why_not: of `other`, what it is and what to do.
    """

    kind: Literal["parquet", "text", "empty", "other"]
    compression: str = ""
    why_not: str = ""


@dataclass(frozen=True)
class Found:
    """Describes what lies at a path.

    Attributes:
        files: the files to read, in the order of their names (numbers in them by value: log_2 before log_10).
        passed_over: (file, why) of the others.
    """

    files: tuple[Path, ...]
    passed_over: tuple[tuple[Path, str], ...] = ()

    def notes(self) -> list[str]:
        """Returns a sentence for each file that is not read; of very many the first ones and how many."""
        said = [f"{path} is not read: {why}" for path, why in self.passed_over[:_FILES_NAMED]]
        more = len(self.passed_over) - len(said)
        return [*said, f"{more:,} more files are not read"] if more > 0 else said


def find(named: str, key: str) -> Found:
    """Looks at a path of the config: a file, or a folder with all below it; relative ones also in `$MWUF_DATA_DIR`.

    A URI (s3://bucket/logs) is copied first; see `mwuf_dist/data/remote.py`.

    Args:
        named: the path.
        key: the config key or option, for errors.

    Raises:
        UserError: there is nothing there, nothing of a kind that is read, a link that leads nowhere, or a table of
            Delta, Hudi or Iceberg, whose folder also holds rows that are deleted.
    """
    path = located(named, key)
    if path.is_file():
        form = format_of(path)
        if form.kind == "other":
            raise UserError(f"{key} = {named!r}: {form.why_not}; what is read is {KINDS_READ}")
        return Found((path,))
    files, passed_over = [], []
    there = [*_below(path)]
    why_not = {one: _why_not(one) for one in there}
    read = [one for one in there if why_not[one] is None]
    own = {os.path.realpath(one): one for one in reversed(read)}  # of links to one file the first counts,
    own |= {os.path.realpath(one): one for one in read if not one.is_symlink()}  # and before them the file itself
    for one in there:
        if (why := why_not[one]) is not None:
            passed_over.append((one, why))
        elif (same := own[os.path.realpath(one)]) != one:
            passed_over.append((one, f"the same file as {same.relative_to(path)}"))
        else:
            files.append(one)
    if not files:
        but = f" (there are: {', '.join(f'{one.name}, {why}' for one, why in passed_over[:5])})" if passed_over else ""
        raise UserError(f"{key} = {named!r}: the folder has no file that is read{but}; what is read is {KINDS_READ}")
    return Found(tuple(files), tuple(passed_over))


def without_tables(files: Sequence[Path], *named: str) -> tuple[Path, ...]:
    """Leaves the files of side tables out, which may lie in the folder of the interactions.

    Args:
        files: of `find`.
        named: paths of side tables, empty or gone ones too.

    Returns:
        The others; all, where these are none.
    """
    beside: set[Path] = set()
    for one in filter(None, named):
        with contextlib.suppress(UserError):
            beside |= {path.resolve() for path in find(one, "side table").files}
    return tuple(path for path in files if path.resolve() not in beside) or tuple(files)


def find_files(named: str, key: str) -> tuple[Path, ...]:
    """Returns the files of `find` alone."""
    return find(named, key).files


def located(named: str, key: str) -> Path:
    """Returns the path itself, or where it lies below `$MWUF_DATA_DIR`; of a URI, its copy on this machine.

    Raises:
        UserError: there is nothing.
    """
    path = local_path(named, key)
    below = data_dir()
    if not path.exists() and below is not None and (below / path).exists():
        path = below / path
    if not path.exists():
        tried = f"{path}" + (f" or {below / path}" if below is not None and not path.is_absolute() else "")
        what = "a link that leads nowhere" if path.is_symlink() else f"there is no {tried}"
        raise UserError(f"{key} = {named!r}: {what}; name a file or a folder of files")
    return path


def natural(path: Path) -> list[list[tuple[int, int, str]]]:
    """Returns sort key of a path: by its parts, digits in them by value."""
    return [
        [
            (0, int(part), "") if part.isdecimal() and part.isascii() else (1, 0, part)
            for part in re.split(r"(\d+)", name)
        ]
        for name in path.parts
    ]


def partitions(path: Path, root: Path | None = None) -> dict[str, str | None]:
    """Returns columns that stand in the names of folders (`day=2020-09-01/`), as Hive and Spark write them.

    Args:
        path: a file.
        root: folder above which names do not count; None: all count.
    """
    inside = path.relative_to(root) if root is not None and path.is_relative_to(root) else path
    pairs = (part.split("=", 1) for part in inside.parts[:-1] if re.match(r"^[A-Za-z_][\w.-]*=", part))
    return {name: None if value == NO_VALUE else unquote(value) for name, value in pairs}


@functools.lru_cache(maxsize=65_536)
def _sniffed(path: Path, size: int, mtime_ns: int) -> Format:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    form = _form_of(head)
    if not form.compression:
        return form
    try:
        with pa.CompressedInputStream(pa.OSFile(str(path)), form.compression) as file:
            inside = _form_of(file.read(_HEAD_BYTES))
    except (OSError, pa.ArrowException):
        return form  # which the reader tells better
    if inside.compression:
        return Format("other", why_not="compressed twice: unpack it")
    if inside.kind == "parquet":
        return Format("other", why_not=f"Parquet within {form.compression}: unpack it")
    return form if inside.kind == "text" else inside


def _form_of(head: bytes) -> Format:
    """Says how what begins so is written."""
    if not head:
        return Format("empty")
    if head.startswith(b"PAR1"):
        return Format("parquet")
    if head.startswith(b"PARE"):
        return Format("other", why_not="an encrypted Parquet file: decrypt it")
    if head[257:262] == b"ustar":
        return Format("other", why_not="a tar archive: unpack it")
    for magic, what in _OTHER_MAGIC.items():
        if head.startswith(magic):
            return Format("other", why_not=what)
    for magic, compression in _MAGIC.items():
        if head.startswith(magic):
            return Format("text", compression)
    if re.match(rb"\s*[\[{]+\s*\"[^\"]*\"\s*:", head):
        return Format("other", why_not="JSON, which is not read: write it as CSV or Parquet")
    return Format("text")


def format_of(path: Path) -> Format:
    """Says how a file is written, by its first bytes; by its name where it says Parquet and the bytes do not.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        state = path.stat()
        form = _sniffed(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    says_parquet = re.search(r"\.(parquet|parq|pq)(\.(gzip|gz|snappy|zstd|zst))?$", path.name, re.IGNORECASE)
    return Format("parquet") if says_parquet and form.kind == "text" and not form.compression else form


def is_parquet(path: Path) -> bool:
    """Says whether a file is read as Parquet (else as lines of text)."""
    return format_of(path).kind == "parquet"


def _below(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder, linked folders too, by name.

    A folder is read under its own name, which may hold columns, and under a link's only where it is not there itself;
    of two links into one tree by that to the folder above.
    """
    found, seen, tops = [], set(), [folder]
    while tops:
        top = min(tops, key=lambda one: len(Path(os.path.realpath(one)).parts))
        tops.remove(top)
        for root, folders, names in os.walk(top):
            at = Path(root)
            if (real := os.path.realpath(at)) in seen:
                folders.clear()
                continue
            seen.add(real)
            _refuse_table_formats(at, folders)
            folders[:] = sorted(name for name in folders if not name.startswith((".", "_")) or "=" in name)
            tops += [at / name for name in folders if (at / name).is_symlink()]  # once all that is here is read
            folders[:] = [name for name in folders if not (at / name).is_symlink()]
            found += [at / name for name in names]
    yield from sorted(found, key=natural)


def _refuse_table_formats(folder: Path, folders: Sequence[str]) -> None:
    kind = "Delta" if "_delta_log" in folders else "Hudi" if ".hoodie" in folders else ""
    if "metadata" in folders and any((folder / "metadata").glob("*.metadata.json")):
        kind = "Iceberg"
    if kind:
        raise UserError(
            f"{folder}: a {kind} table, whose folder also holds rows that were deleted or replaced; write its current "
            "state as plain Parquet and name that folder"
        )


def _why_not(path: Path) -> str | None:
    """Says why a file of a folder is not read, None where it is."""
    if not path.exists():
        if path.name.startswith("."):
            return "a link that leads nowhere"
        raise UserError(f"{path}: a link that leads nowhere; mend or remove it")
    if _LEFT_BY_PROGRAMS.search(path.name):
        return "left by a program"
    if not path.is_file():
        return "not a file"
    if _DOCUMENTS.search(path.name):
        return "a document"
    bare = path.name.lower()
    for ending in _COMPRESSED:
        bare = bare.removesuffix(ending)
    if (what := _NOT_TEXT_TABLES.get(Path(bare).suffix)) is not None:
        return f"{what}, which is not read: write it as CSV or Parquet"
    form = format_of(path)
    if form.kind == "empty":
        return "empty"
    return form.why_not if form.kind == "other" else None


def unlike_folder(path: Path, name: str, value: str | None, column: pa.ChunkedArray) -> list[str]:
    """Says that a file's own column holds another value than the name of its folder, in at most one sentence."""
    if pa.types.is_nested(column.type) or value is None:
        return []
    there = arrow_types.text_of(pc.unique(arrow_types.plain(column)).drop_null()).slice(0, 1_000).to_pylist()
    other = next((one for one in there if not _is_same(value, one)), None)
    return [] if other is None else [
        f"{path}: column {name!r} holds {other!r}, and its folder is {name}={value}: what stands in the file counts"
    ]  # fmt: skip


def _is_same(folder: str, there: str) -> bool:
    """Says whether a value means what the name of its folder says: 1 is 01 and true, 2020-09-01 is of 202009."""
    one, other = folder.strip().casefold(), there.strip().casefold()
    if one == other or {one, other} in ({"1", "true"}, {"0", "false"}):
        return True
    with contextlib.suppress(ValueError):
        return float(one) == float(other)
    digits = re.sub(r"\D", "", one)
    return len(digits) >= 4 and bool(re.match(_DATE, other)) and re.sub(r"\D", "", other).startswith(digits)
