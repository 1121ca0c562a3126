"""The file of a delta, and the folder of them; `reader.py` has the format and reads it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.files import write_atomically
from mwuf_dist.serving.deltas.reader import MAGIC, SCHEMA, Delta, DeltaError, read_delta, why_not_next

# In the folder of a run or of a job's output.
FOLDER = "deltas"
SUFFIX = ".delta"


def name_of(number: int) -> str:
    """Returns the file's name: names sort as numbers do."""
    return f"{number:012d}{SUFFIX}"


def write_delta(folder: Path, header: dict[str, object], parts: dict[str, pa.Table]) -> Path:
    """Writes a delta, whole and on the disk or not at all.

    Args:
        folder: of deltas, which exists.
        header: without `schema` and `parts`.
        parts: its tables.
    """
    sections, places, offset = [], {}, 0
    for name, table in parts.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        section = sink.getvalue()
        places[name] = [offset, section.size]
        sections.append(section)
        offset += section.size
    text = json.dumps({"schema": SCHEMA, **header, "parts": places}, allow_nan=False).encode()
    text += b" " * (-(len(MAGIC) + 4 + len(text)) % 8)  # so that the parts begin at a multiple of 8
    content = b"".join([MAGIC, struct.pack("<I", len(text)), text, *sections])
    path = folder / name_of(int(str(header["number"])))
    write_atomically(path, content + struct.pack("<I", zlib.crc32(content)))
    return path


def delta_files(named: Sequence[Path]) -> list[Path]:
    """Gives the files of deltas that are named, and those in folders that are named (`deltas` in the folder of a run).

    Raises:
        UserError: nothing is there.
    """
    found = []
    for path in named:
        if path.is_dir():
            inside = path / FOLDER if (path / FOLDER).is_dir() else path
            there = sorted(inside.glob(f"*{SUFFIX}"))
            if not there:
                raise UserError(f"{path}: no deltas (*{SUFFIX}) are here: name those of a job of `mwuf warm`")
            found += there
        else:
            found.append(path)
    return found


def read_chain(
    paths: Sequence[Path], chain: str, number: int, state: str, names: tuple[str, ...] | None = None
) -> list[Delta]:
    """Reads deltas that follow one another.

    Args:
        paths: in their order.
        chain: of what they are to be applied to, see `why_not_next`.
        number: likewise.
        state: likewise.
        names: of the parts that are wanted; None: all.

    Raises:
        UserError: one is damaged, or not the next one.
    """
    found = []
    for path in paths:
        try:
            delta = read_delta(path, names)
        except DeltaError as error:
            raise UserError(str(error)) from None
        why = why_not_next(delta.header, chain, number, state)
        if why:
            raise UserError(f"{path}: {why}: nothing has been applied")
        number, state = delta.header["number"], delta.header["after"]
        found.append(delta)
    return found
