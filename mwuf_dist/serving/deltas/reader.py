"""Reads the deltas that `mwuf warm` writes, and keeps a table of items up to date with them.

This file needs NumPy and PyArrow and nothing else: copy it into a server.

    table = ItemTable.of_export("export")            # of `mwuf export RUN`, in Parquet
    for path in sorted(glob("deltas/*.delta")):
        table.apply(read_delta(path))                # in order; anything else is refused
    version, found, columns = table.rows([17, 99])   # all of one version

A delta is one file: the 8 bytes of `MAGIC`; the length of the header, 4 bytes, little-endian; the header, JSON; its
parts one after another, each an Arrow IPC stream; the CRC-32 of all bytes before, 4 bytes, little-endian. The header:

    schema    1
    chain     which run the chain of deltas began with
    number    1, 2, 3, ... in the chain
    before    hash of the state that the delta was made from, 32 hex digits
    after     hash of the state that it leads to
    parts     name -> [offset behind the header, length in bytes]

A server reads two parts: `changed`, the items to put in (`item_id` and the columns of an export), and `retired`, the
`item_id` of those to take out. Where a job has made rows of users (`mwuf warm --users`) there is a third,
`changed_users`, the users to put in (`user_id` and the columns of an export); `UserTable` takes it. The others
(`items`, `rows`, `log`, `users`, `user_log`) bring a copy of the state itself up to date.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAGIC = b"MWUFDLT1"
SCHEMA = 1
_HEAD = struct.Struct("<8sI")
_CRC = struct.Struct("<I")


class DeltaError(ValueError):
    """Says why a delta cannot be read, or not be applied here; nothing has been changed."""


@dataclass(frozen=True)
class Delta:
    """Holds a delta.

    Attributes:
        name: of its file, for messages.
        header: see the head of this file.
        parts: the parts that were asked for.
    """

    name: str
    header: dict[str, Any]
    parts: dict[str, pa.Table]


def read_delta(path: Path | str, names: tuple[str, ...] | None = ("changed", "retired", "changed_users")) -> Delta:
    """Reads a delta; of its parts those with these names, or all.

    Raises:
        DeltaError: it is damaged, cut short, or none.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DeltaError(f"{path}: cannot be read ({error.strerror})") from None
    if content[: len(MAGIC)] != MAGIC:
        raise DeltaError(f"{path}: is no delta of `mwuf warm`")
    body = memoryview(content)[: -_CRC.size]
    is_whole = len(content) > _HEAD.size + _CRC.size
    if not is_whole or zlib.crc32(body) != _CRC.unpack_from(content, len(content) - _CRC.size)[0]:
        raise DeltaError(f"{path}: is damaged or cut short (its checksum differs): fetch it again")
    length = _HEAD.unpack_from(content)[1]
    header = json.loads(bytes(body[_HEAD.size : _HEAD.size + length]))
    if header["schema"] != SCHEMA:
        raise DeltaError(f"{path}: is of schema {header['schema']!r}; this reader reads {SCHEMA}")
    parts = {}
    for name, (offset, size) in header["parts"].items():
        if names is None or name in names:
            start = _HEAD.size + length + offset
            parts[name] = pa.ipc.open_stream(pa.py_buffer(body[start : start + size])).read_all()
    return Delta(path.name, header, parts)


def why_not_next(header: dict[str, Any], chain: str, number: int, state: str) -> str:
    """Says why a delta is not the next one of a state; empty where it is.

    Args:
        header: of the delta.
        chain: of the state.
        number: of the last delta in it; 0 for none.
        state: its hash.
    """
    if header["chain"] != chain:
        return f"belongs to another chain ({header['chain']}), and here is one of {chain}: it was made from another run"
    if header["number"] <= number:
        return f"is number {header['number']}, and here number {number} is in already: it comes twice or out of order"
    if header["number"] > number + 1:
        return f"is number {header['number']}, and here number {number} was the last: {number + 1} is missing"
    if header["before"] != state:
        return (
            f"was made from the state {header['before']}, and here is {state}: the number is right but the chain has "
            "forked, so that two jobs went on from one run"
        )
    return ""


def changed_items(delta: Delta, old_items: bool) -> pa.Table:
    """Returns the items that a delta puts in; without `old_items` those that are new ones."""
    changed = delta.parts["changed"]
    if not old_items and "phase" in changed.column_names:
        changed = changed.filter(pa.array(values_of(changed["phase"]) != "old"))
    return changed


class ItemTable:
    """Items of an export in memory, which deltas change in time that grows with the delta and not with the table.

    One thread may apply deltas while others read: what one call of `rows` returns is of one version.

    Args:
        item_ids: raw IDs [n].
        columns: name -> values, [n] or [n, width].
        chain, number, state: what the rows are, see `why_not_next`.
        old_items: whether old items are among them; else those that a delta has moved are left out.
    """

    _entity = "item"

    def __init__(
        self,
        item_ids: list[Any],
        columns: dict[str, np.ndarray],
        chain: str,
        number: int,
        state: str,
        old_items: bool = True,
    ) -> None:
        self._old_items = old_items
        self.chain, self.number, self.state = chain, number, state
        self._place = {item_id: place for place, item_id in enumerate(item_ids)}
        self._columns, self._free, self._end = dict(columns), [], len(item_ids)
        self._lock = threading.Lock()

    @classmethod
    def of_export(cls, folder: Path | str) -> ItemTable:
        """Reads an export in Parquet.

        Raises:
            DeltaError: it does not say which state it was made from, lacks the file, or is in another format.
        """
        folder = Path(folder)
        about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        path = folder / f"{cls._entity}s.parquet"
        if not path.exists():
            raise DeltaError(f"{folder}: is in {about['format']}, and has no {path.name}: export it so, in Parquet")
        version, name_of_id = version_of(about, folder), f"{cls._entity}_id"
        table = pq.read_table(path)
        columns = {name: values_of(table[name]) for name in table.column_names if name != name_of_id}
        return cls(table[name_of_id].to_pylist(), columns, *version, old_items=about["old_items"])

    def __len__(self) -> int:
        return len(self._place)

    def apply(self, delta: Delta) -> None:
        """Puts in the changed items and takes out the retired ones.

        Raises:
            DeltaError: it is not the next delta of this table.
        """
        why = why_not_next(delta.header, self.chain, self.number, self.state)
        item_ids, columns, retired = self._changes(delta)
        missing = set(self._columns) - set(columns) if columns else set()
        if not why and missing:
            why = f"lacks the columns {sorted(missing)} of the export"
        if why:
            raise DeltaError(f"{delta.name}: {why}")
        with self._lock:
            for item_id in retired:
                place = self._place.pop(item_id, None)
                if place is not None:
                    self._free.append(place)
            if columns:
                places = self._places(item_ids)
                for name, values in self._columns.items():
                    values[places] = columns[name]
            self.number, self.state = delta.header["number"], delta.header["after"]

    def _changes(self, delta: Delta) -> tuple[list[Any], dict[str, np.ndarray], list[Any]]:
        """Returns (IDs to put in, their columns, IDs to take out)."""
        changed = changed_items(delta, self._old_items)
        columns = {name: values_of(changed[name]) for name in changed.column_names if name != "item_id"}
        return changed["item_id"].to_pylist(), columns, delta.parts["retired"]["item_id"].to_pylist()

    def rows(self, item_ids: list[Any]) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        """Returns (number of the last delta, which items [n] are there, their columns; zeros where they are not)."""
        with self._lock:
            places = np.array([self._place.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
            columns = {name: values[places] for name, values in self._columns.items()} if len(self._place) else {}
            number = self.number
        found = places >= 0
        for values in columns.values():
            values[~found] = 0
        return number, found, columns

    def items(self) -> tuple[list[Any], dict[str, np.ndarray]]:
        """Returns (raw IDs [n], their columns), in the order of the export, later ones behind."""
        places = np.fromiter(self._place.values(), dtype=np.int64, count=len(self._place))
        return list(self._place), {name: values[places] for name, values in self._columns.items()}

    def _places(self, item_ids: list[Any]) -> np.ndarray:
        """Returns places of items, which are found for those that have none."""
        places = np.empty(len(item_ids), dtype=np.int64)
        for row, item_id in enumerate(item_ids):
            place = self._place.get(item_id)
            if place is None:
                place = self._free.pop() if self._free else self._new_place()
                self._place[item_id] = place
            places[row] = place
        room = max(len(values) for values in self._columns.values())
        if self._end > room:  # by half as much again, so that growing costs little on the whole
            more = max(self._end, room + room // 2) - room
            self._columns = {
                name: np.concatenate([values, np.zeros((more, *values.shape[1:]), values.dtype)])
                for name, values in self._columns.items()
            }
        return places

    def _new_place(self) -> int:
        self._end += 1
        return self._end - 1


class UserTable(ItemTable):
    """Users of an export with contexts in memory, which deltas change likewise; arguments as of `ItemTable`.

    A user who is not there is a stranger: `unknown_user` of `export.json` is the context.
    """

    _entity = "user"

    def _changes(self, delta: Delta) -> tuple[list[Any], dict[str, np.ndarray], list[Any]]:
        changed = delta.parts.get("changed_users")
        if changed is None:
            return [], {}, []
        columns = {name: values_of(changed[name]) for name in changed.column_names if name != "user_id"}
        return changed["user_id"].to_pylist(), columns, []


def version_of(about: dict[str, Any], where: Path | str) -> tuple[str, int, str]:
    """Returns (chain, number of the last delta, hash of the state) of the content of an `export.json`.

    Raises:
        DeltaError: it does not say.
    """
    version = about.get("state")
    if version is None:
        raise DeltaError(f"{where}: does not say which state it was made from: export the run again")
    return version["chain"], version["number"], version["hash"]


def values_of(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column as an array of its own, [n] or [n, width]; text as text."""
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        kind = column.type.value_type.to_pandas_dtype()
        return np.concatenate([np.empty(0, kind), *flat]).reshape(-1, width)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = column.to_numpy()
    return values.astype("<U8") if values.dtype == object else values.copy()  # names of phases are short
