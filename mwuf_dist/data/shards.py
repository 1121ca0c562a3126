"""The prepared folder: Parquet shards of each split, entity tables, and a manifest that describes them.

    manifest.json                          written last
    users.parquet, items.parquet           a row per user; per item in the new order, old items first
    pretrain/part-00000.parquet, ...       and warm_a, warm_b, warm_c, test
    histories/                             see histories.py

Rows of a split are ascending by (time, position in the raw file). Its row groups all have the same number of rows,
but for the last one, and never cross files: row r is in group r // row_group_rows.
"""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.config import Events
from mwuf_dist.data import manifest as manifests
from mwuf_dist.data import vectors
from mwuf_dist.data.manifest import MANIFEST
from mwuf_dist.data.schema import RAW_ID, Entities, Field, Side, row_column, row_types
from mwuf_dist.data.split import Roles
from mwuf_dist.files import crc32_of, write_json

ENTITY_FILES: dict[Side, str] = {"user": "users.parquet", "item": "items.parquet"}
VOCABULARY_FILE = "vocabulary.parquet"  # of own logs, see vocabulary.py

MAX_FILE_ROWS = 1 << 22
ROW_GROUPS_WANTED = 512  # 8 for each of 64 lanes, so that lanes are even and their order can be shuffled by group.
MIN_ROW_GROUP_ROWS, MAX_ROW_GROUP_ROWS = 1024, 65_536

# Measured on 10M rows, one thread, million rows/s written; read (user, item, label); bytes a row: these 13; 185; 12.6,
# plain 8; 142; 32, lz4 9; 106; 19.1, zstd 6; 76; 11.2.
_ENCODING = {
    "compression": "none",
    "use_dictionary": ["label"],
    "column_encoding": {"time": "DELTA_BINARY_PACKED", "row": "DELTA_BINARY_PACKED"},
    "write_statistics": False,
    "write_page_checksum": True,
}


@dataclass(frozen=True)
class FieldColumn:
    """Values of one field for all entities of its side.

    Attributes:
        field: which field.
        offsets: for a multi-valued field, entity j has values[offsets[j] : offsets[j + 1]], int64 [E + 1]; else None.
        values: embedding row indices, int32 [E] or, multi-valued, [offsets[-1]]; a vector's numbers, float32 [E, size].
    """

    field: Field
    offsets: np.ndarray | None
    values: np.ndarray


@dataclass(frozen=True)
class EntityTable:
    """The users, or the items in their new order (old items first).

    Attributes:
        num_rows: number E of entities.
        raw_ids: their IDs in the raw data [E].
        columns: field name -> values.
    """

    num_rows: int
    raw_ids: np.ndarray
    columns: dict[str, FieldColumn]

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields, in the order of the data set."""
        return tuple(column.field for column in self.columns.values())


def row_group_rows(num_rows: int) -> int:
    """Returns rows of each row group of a split of `num_rows` rows."""
    return min(max(-(-num_rows // ROW_GROUPS_WANTED), MIN_ROW_GROUP_ROWS), MAX_ROW_GROUP_ROWS)


def write_file(
    folder: Path, name: str, columns: dict[str, np.ndarray], group_rows: int, scratch: Path
) -> dict[str, Any]:
    """Writes a file of a split and moves it to its place; its entry in the manifest.

    Args:
        folder: the prepared folder.
        name: of the file in it.
        columns: its rows.
        group_rows: rows of each row group.
        scratch: a folder of the same file system, where what a killed worker leaves does no harm.
    """
    path, beside = folder / name, scratch / uuid.uuid4().hex
    pq.write_table(pa.table(columns), beside, row_group_size=group_rows, **_ENCODING)
    beside.rename(path)
    num_rows = len(columns["row"])
    groups = [min(group_rows, num_rows - low) for low in range(0, num_rows, group_rows)]
    size, footer = path.stat().st_size, _footer_crc32(path)
    return {"path": name, "rows": num_rows, "bytes": size, "footer_crc32": footer, "row_groups": groups}


def write_rest(
    folder: Path,
    facts: dict[str, Any],
    entities: Entities,
    roles: Roles,
    columns: dict[str, str],
    splits: dict[str, Any],
) -> None:
    """Writes the entity tables and then the manifest.

    Args:
        folder: the prepared folder, with all other files.
        facts: first entries of the manifest.
        entities: the users, and the items in their raw order.
        roles: which items are old and new.
        columns: Arrow type of each column of a split.
        splits: name -> what the manifest says of it.
    """
    pq.write_table(entities.users, folder / ENTITY_FILES["user"])
    items = entities.items.take(pa.array(roles.item_order))
    items, scales = vectors.standardise(items, entities.fields, roles.num_old_items)
    pq.write_table(items, folder / ENTITY_FILES["item"])
    manifest = {
        "layout": manifests.LAYOUT_VERSION,
        **facts,
        "fields": [asdict(field) for field in entities.fields],
        **({"vectors": scales} if scales else {}),
        "columns": columns,
        "num_users": entities.users.num_rows,
        "num_old_items": roles.num_old_items,
        "num_new_items": roles.num_new_items,
        "entities": {path.name: entry(path) for path in sorted(folder.glob("*.parquet"))},
        "splits": splits,
    }
    write_json(folder / MANIFEST, manifest)


class Prepared:
    """A prepared data set on disk.

    Attributes:
        path: its folder.
        manifest: the parsed manifest.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self._file_starts = {
            name: np.cumsum([0] + [file["rows"] for file in split["files"]])
            for name, split in manifest["splits"].items()
        }
        self._footers: dict[Path, pq.FileMetaData] = {}
        self._verified: set[tuple[Path, int, str] | Path] = set()

    @functools.cached_property
    def checksum(self) -> str:
        """Twelve hex digits of what the data are: their source, the rule, the fields and the rows of each split.

        How the files are laid out decides nothing: the same data prepared again have the same checksum.
        """
        made_of, splits = self.manifest["made_of"], self.manifest["splits"]
        names = ("fields", "columns", "num_users", "num_old_items", "num_new_items", "positive_share")
        what = {name: self.manifest[name] for name in names} | {"source": made_of["source"], "rule": made_of["rule"]}
        what["splits"] = {name: (split["rows"], split["positives"]) for name, split in splits.items()}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields, users' first."""
        return tuple(Field(**field) for field in self.manifest["fields"])

    @property
    def row_fields(self) -> tuple[Field, ...]:
        """Fields of the interactions themselves, in the order of `row_columns`."""
        return tuple(sorted((field for field in self.fields if field.side == "row"), key=lambda field: field.name))

    @property
    def row_columns(self) -> tuple[str, ...]:
        """Columns of the splits that hold fields of the rows, and their weight where they have one."""
        return tuple(row_types(self.manifest["columns"]))

    @property
    def num_users(self) -> int:
        """Rows of the user table."""
        return self.manifest["num_users"]

    @property
    def num_old_items(self) -> int:
        """Items 0 to num_old_items - 1 are old."""
        return self.manifest["num_old_items"]

    @property
    def num_new_items(self) -> int:
        """The items after the old ones are new."""
        return self.manifest["num_new_items"]

    @property
    def num_items(self) -> int:
        """Old and new items; dropped ones are not in the folder."""
        return self.num_old_items + self.num_new_items

    @property
    def negatives_per_positive(self) -> int:
        """Rows of label 0 drawn for each positive, which are nobody's events and which N and K do not count."""
        return self.manifest.get("negatives_per_positive", 0)

    @property
    def notes(self) -> list[str]:
        """Says what of the raw data was not used, or is missing, a sentence each."""
        return [*self.manifest.get("notes", []), *vectors.notes(self.manifest.get("vectors", {}), self.num_items)]

    @property
    def ticks_per_s(self) -> int:
        """Units of time in a second: own logs are in microseconds."""
        return 1_000_000 if self.manifest.get("made_of", {}).get("source", {}).get("source") == "logs" else 1

    def rows_of(self, counted: int) -> int:
        """Returns rows that so many rows as N and K count them come to, with the negatives drawn for them."""
        return counted * (1 + self.negatives_per_positive)

    def is_counted(self, label: np.ndarray) -> np.ndarray:
        """Says which rows of these labels [R] N and K count: all, or those that are not drawn."""
        return label == 1 if self.negatives_per_positive else np.ones(len(label), dtype=bool)

    def is_event(self, label: np.ndarray, events: Events) -> np.ndarray:
        """Says which rows of these labels [R] histories and U(v) hold (`data.events`)."""
        return label == 1 if events == "positives" else self.is_counted(label)

    @property
    def num_stored_items(self) -> int:
        """The items of the folder, which a subclass may have more of; what its histories call the unknown item."""
        return self.manifest["num_old_items"] + self.manifest["num_new_items"]

    @property
    def num_stored_users(self) -> int:
        """The users of the folder, which a subclass may have more of."""
        return self.manifest["num_users"]

    def num_rows(self, split: str) -> int:
        """Returns rows of a split."""
        return self.manifest["splits"][split]["rows"]

    def row_group_rows(self, split: str) -> int:
        """Returns rows of each row group of a split but the last."""
        return self.manifest["splits"][split]["row_group_rows"]

    def num_row_groups(self, split: str) -> int:
        """Returns row groups of a split."""
        return -(-self.num_rows(split) // self.row_group_rows(split))

    def entity(self, side: Side) -> EntityTable:
        """Returns fields and raw IDs of all users or items."""
        path = self.whole(ENTITY_FILES[side])
        with manifests.explained(path):
            table = pq.read_table(path, memory_map=True).combine_chunks()
            expected = self.manifest["num_users"] if side == "user" else self.num_stored_items
            if table.num_rows != expected:
                raise ValueError(f"{table.num_rows} rows instead of {expected}")
            columns = {}
            for field in self.fields:
                if field.side != side:
                    continue
                column = table[field.name].chunk(0)
                if field.kind == "vector":
                    columns[field.name] = FieldColumn(field, None, vectors.matrix(column))
                    continue
                if field.kind == "categorical":
                    columns[field.name] = FieldColumn(field, None, column.to_numpy())
                else:
                    offsets = column.offsets.to_numpy().astype(np.int64)
                    # flatten() starts at the column's first value, so the offsets must too.
                    columns[field.name] = FieldColumn(field, offsets - offsets[0], column.flatten().to_numpy())
                _check_range(field.name, columns[field.name].values, field.size)
        return EntityTable(table.num_rows, table[RAW_ID].to_numpy(zero_copy_only=False), columns)

    def raw_ids(self, side: Side) -> pa.Array:
        """Returns IDs in the raw data of all users or items [E], int64 or string, in the order of their index."""
        path = self.whole(ENTITY_FILES[side])
        with manifests.explained(path):
            column = pq.read_table(path, columns=[RAW_ID], memory_map=True)[RAW_ID]
        return pa.concat_arrays(column.chunks)

    def columns(self, split: str, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns whole columns of a split, each an array [rows] of its own.

        Args:
            split: one of `SPLITS`.
            names: of `user` int32, `item` int32 (new index), `label` int8, `time` int64, `row` int64 (position in the
                raw file) and, where known, `bayes_logit` float32; `row_columns`: `weight` float32, fields int32.
        """
        return self.read_rows(split, 0, self.num_rows(split), names)

    def read_rows(self, split: str, start: int, stop: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Reads rows `start` to `stop` of a split: only the row groups and columns needed. Safe from any thread.

        Returns:
            Column name -> array [stop - start], as in `columns`.
        """
        assert 0 <= start <= stop <= self.num_rows(split), f"rows {start} to {stop} of {split}"
        dtypes = self.manifest["columns"]
        out = {name: np.empty(stop - start, dtype=np.dtype(_numpy_name(dtypes[name]))) for name in names}
        group_rows = self.row_group_rows(split)
        file_starts = self._file_starts[split]
        row = start
        while row < stop:
            part = int(np.searchsorted(file_starts, row, side="right")) - 1
            file_start = int(file_starts[part])
            end = min(stop, int(file_starts[part + 1]))
            first = (row - file_start) // group_rows
            groups = range(first, -(-(end - file_start) // group_rows))
            table = self._read(split, part, groups, list(names))
            skipped = row - file_start - first * group_rows
            for name in names:
                out[name][row - start : end - start] = table[name].slice(skipped, end - row).to_numpy()
            row = end
        return out

    def in_parts(self, split: str, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Yields columns of a split as `read_rows` gives them, some million rows at a time."""
        num_rows = self.num_rows(split)
        for first in range(0, num_rows, MAX_FILE_ROWS):
            yield self.read_rows(split, first, min(first + MAX_FILE_ROWS, num_rows), names)

    def whole(self, name: str) -> Path:
        """Returns the path of a file of the folder whose CRC-32 stands in the manifest; the first call compares it."""
        path = self.path / name
        if path not in self._verified:
            with manifests.explained(path):
                if crc32_of(path) != (self.manifest["entities"] | self.manifest["histories"])[name]["crc32"]:
                    raise ValueError("its CRC-32 is not that in the manifest")
            self._verified.add(path)
        return path

    def _stops(self, split: str) -> dict[str, int]:
        """Finds what the IDs of a split's rows are smaller than."""
        items = self.manifest["num_old_items"] if split == "pretrain" else self.num_stored_items
        of_rows = {row_column(field.name): field.size for field in self.row_fields}
        return {"user": self.manifest["num_users"], "item": items, **of_rows}

    def _read(self, split: str, part: int, groups: range, names: list[str]) -> pa.Table:
        file_entry = self.manifest["splits"][split]["files"][part]
        path = self.path / file_entry["path"]
        # Comparing the checksums of pages costs time, so each is compared once in the life of the process.
        fresh = {(path, group, name) for group in groups for name in names} - self._verified
        with manifests.explained(path):
            # A reader of its own per call: one reader is not safe in two threads. The footer is parsed only once.
            if path not in self._footers:
                if _footer_crc32(path) != file_entry["footer_crc32"]:
                    raise ValueError("the CRC-32 of its footer is not that in the manifest")
                self._footers[path] = pq.read_metadata(path, memory_map=True)
            options: Any = {"memory_map": True, "page_checksum_verification": bool(fresh)}
            with pq.ParquetFile(path, metadata=self._footers[path], **options) as file:
                table = file.read_row_groups(groups, columns=names, use_threads=False)
            for name, stop in self._stops(split).items() if fresh else ():
                if name in names:
                    for chunk in table[name].chunks:
                        _check_range(name, chunk.to_numpy(), stop)
        self._verified |= fresh
        return table


def _check_range(name: str, values: np.ndarray, stop: int) -> None:
    """Refuses other ones: compiled loops take these for rows of tables and do not look again."""
    if len(values) and not (values.min() >= 0 and values.max() < stop):
        raise ValueError(f"column {name} has values outside 0 to {stop - 1}")


def entry(path: Path) -> dict[str, int]:
    """Makes the entry of the manifest for a file that is read whole."""
    return {"bytes": path.stat().st_size, "crc32": crc32_of(path)}


def _footer_crc32(path: Path) -> int:
    """Returns the CRC-32 of what has no checksum in Parquet: names, types, positions. A length and 4 letters end it."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, size - length))
        return zlib.crc32(file.read())


def _numpy_name(arrow_name: str) -> str:
    return {"float": "float32"}.get(arrow_name, arrow_name)
