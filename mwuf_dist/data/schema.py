"""What every data source hands over: interactions, one table of users, one of items, and the fields they carry."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError

Side = Literal["user", "item"]
SIDES: tuple[Side, Side] = ("user", "item")
Kind = Literal["categorical", "multi_valued", "vector"]

RAW_ID = "raw_id"
WEIGHT = "weight"  # of an interaction: what it weighs in the losses
SET = "set"  # of an interaction, where its source says it: index into SPLITS, or NO_SPLIT
USER_ID = "user_id"

INTERACTION_TYPES: dict[str, pa.DataType] = {
    "user": pa.int32(),
    "item": pa.int32(),
    "label": pa.int8(),
    "time": pa.int64(),
    "bayes_logit": pa.float32(),
}
OPTIONAL_COLUMNS = ("bayes_logit",)
_OF_ROW = "row:"  # Before the name of a field of the interactions themselves.

PIECE_ROWS = 1 << 22  # Rows of a piece of work: 4M of about 30 bytes, and a few copies of them.


@dataclass(frozen=True)
class Field:
    """One feature of a user, an item or (`row`) an interaction.

    Attributes:
        name: column of the entity table that holds it; of a row see `row_column`.
        kind: `categorical` is one index per entity, `multi_valued` a list of at least one; `vector` is no index but
            `size` numbers, null for an item that has none.
        side: whose feature it is.
        size: number of embedding rows. Row 0 stands for unknown or missing in every field. Of a vector: its numbers.
        pooling: how the rows of a multi-valued field become one vector.
        ordinal: consecutive values from 1 on are neighbours (years, ages, price bands).
    """

    name: str
    kind: Kind
    side: Literal["user", "item", "row"]
    size: int
    pooling: Literal["mean", "sum"] = "mean"
    ordinal: bool = False

    @property
    def arrow_type(self) -> pa.DataType:
        """Type of the field's column in its entity table."""
        kinds = {"categorical": pa.int32(), "multi_valued": pa.list_(pa.int32())}
        return kinds.get(self.kind) or pa.list_(pa.float32(), self.size)


@dataclass(frozen=True)
class Entities:
    """The users and items of a data set.

    Attributes:
        users: column `raw_id` and one column per user field, a row per user. The user ID itself is the field `user_id`.
        items: the same for items. An item's ID is not a field: the method's own tables hold it.
        fields: the features, users' before items', then the rows'.
    """

    users: pa.Table
    items: pa.Table
    fields: tuple[Field, ...]

    def check(self) -> None:
        """Asserts that the tables hold what the fields declare."""
        for field in self.fields:
            if field.side == "row":
                continue
            column = (self.users if field.side == "user" else self.items)[field.name].combine_chunks()
            assert column.type == field.arrow_type, f"field {field.name}: {column.type}, not {field.arrow_type}"
            if field.kind == "vector":
                continue
            if field.kind == "multi_valued":
                lengths = np.diff(column.offsets.to_numpy())
                assert (lengths >= 1).all(), f"field {field.name}: an empty list; use [0] for unknown"
                column = column.flatten()
            assert not column.null_count, f"field {field.name}: a missing value; use 0 for unknown"
            values = column.to_numpy()
            in_range = ((values >= 0) & (values < field.size)).all()
            assert in_range, f"field {field.name}: a value outside 0 to {field.size - 1}"


@dataclass(frozen=True)
class RawPieces:
    """A data set of any size, read piece by piece.

    Attributes:
        pieces: whose rows, one piece after another, are the rows of the raw file.
        read: the rows of a piece, some at a time: `user` and `item` (IDs, integers), `label`, `time` and, where the
            true probabilities are known, `bayes_logit`, arrays [R]; where there are such, `WEIGHT` and fields of
            the rows (`row_column`). Any process may call it.
        entities: users and items, ascending by ID, from the distinct user IDs of the interactions, the distinct item
            IDs and the number of rows of each; under the stream protocol also from who makes the vocabularies and
            buckets (`stream_rule.Seen`).
        ids_are_rows: the entities are known before, and an ID is a row of their table.
        is_in_memory: `read` holds the rows, which should not travel to another process.
        negatives_per_positive: rows of label 0 that are drawn for each positive and stand before it, of the same user
            and time: they are nobody's events, and N and K do not count them; the rows have a column `SET` too. 0: rows
            of label 0 are as they come.
        form: how own logs write IDs and times (`gate.DataForm.to_dict`), kept for later files; None for other data.
        notes: what of the raw data was not used, a sentence each; the manifest keeps them.
        fewest: field -> entities that a value must have to be in its vocabulary, where more than one.
        vocabularies: field of own logs -> what its indices from 1 on stand for: words, or upper edges of buckets.
    """

    pieces: tuple[Any, ...]
    read: Callable[[Any], Iterator[dict[str, np.ndarray]]]
    entities: Callable[..., Entities]
    ids_are_rows: bool = False
    is_in_memory: bool = False
    negatives_per_positive: int = 0
    form: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    fewest: Mapping[str, int] = dataclasses.field(default_factory=dict)
    vocabularies: Mapping[str, pa.Array] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class RawDataset:
    """A whole data set in memory, in the order of its raw file.

    Attributes:
        interactions: `user` int32 (row of users), `item` int32 (row of items), `label` int8 (0 or 1), `time` int64 and,
            where the true probabilities are known, `bayes_logit` float32. Row r is the r-th line of the raw file.
        users, items, fields: see `Entities`.
        negatives_per_positive, form, notes, fewest, vocabularies: see `RawPieces`.
    """

    interactions: pa.Table
    users: pa.Table
    items: pa.Table
    fields: tuple[Field, ...]
    negatives_per_positive: int = 0
    form: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    fewest: Mapping[str, int] = dataclasses.field(default_factory=dict)
    vocabularies: Mapping[str, pa.Array] = dataclasses.field(default_factory=dict)

    @property
    def entities(self) -> Entities:
        """Users and items."""
        return Entities(self.users, self.items, self.fields)

    def check(self, name: str) -> None:
        """Checks types, ranges and labels.

        Raises:
            UserError: a label is neither 0 nor 1, an ID has no row in its table, a value is missing; it names the row.
        """
        for column, kind in INTERACTION_TYPES.items():
            if column in OPTIONAL_COLUMNS and column not in self.interactions.column_names:
                continue
            assert self.interactions.schema.field(column).type == kind, f"{name}: {column} must be {kind}"
            values = self.interactions[column]
            if values.null_count:
                _refuse(name, column, values, values.is_null(), "is missing; remove the row or fill the value in")
        label = self.interactions["label"]
        bad = np.isin(label.to_numpy(), (0, 1), invert=True)
        _refuse(name, "label", label, bad, "is neither 0 nor 1; map the labels of the raw data to 0 and 1")
        for column, table in (("user", self.users), ("item", self.items)):
            ids = self.interactions[column]
            bad = (ids.to_numpy() < 0) | (ids.to_numpy() >= table.num_rows)
            _refuse(name, column, ids, bad, f"is out of range: there are {table.num_rows} {column}s")

    def in_pieces(self, name: str) -> RawPieces:
        """Returns the checked rows, piece by piece.

        Args:
            name: of the data set, for errors.

        Raises:
            UserError: see `check`.
        """
        self.check(name)
        starts = range(0, self.interactions.num_rows, PIECE_ROWS)
        read = functools.partial(_slice, self.interactions)
        return RawPieces(
            tuple(starts),
            read,
            lambda *_: self.entities,
            ids_are_rows=True,
            is_in_memory=True,
            negatives_per_positive=self.negatives_per_positive,
            form=self.form,
            notes=self.notes,
            fewest=self.fewest,
            vocabularies=self.vocabularies,
        )


def row_column(field: str) -> str:
    """Names the column of the interactions that holds a field of theirs: an index, int32."""
    return f"{_OF_ROW}{field}"


def row_types(names: Iterable[str]) -> dict[str, pa.DataType]:
    """Types the columns that are fields of the rows, or their weight, among these, in the order of their names."""
    return {
        name: pa.float32() if name == WEIGHT else pa.int32()
        for name in sorted(names)
        if name == WEIGHT or name.startswith(_OF_ROW)
    }


def _slice(interactions: pa.Table, start: int) -> Iterator[dict[str, np.ndarray]]:
    part = interactions.slice(start, PIECE_ROWS)
    yield {name: part[name].to_numpy() for name in part.column_names}


def _refuse(name: str, column: str, values: pa.ChunkedArray, bad: np.ndarray | pa.ChunkedArray, what: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        value = values[int(rows[0])].as_py()
        raise UserError(f"data set `{name}`: {column} {value!r} of row {rows[0]} (counted from 0) {what}")


def list_column(lengths: np.ndarray, values: np.ndarray) -> pa.ListArray:
    """Returns a multi-valued column from the number of values of each entity [E] and all values one after another."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.int32, copy=False)))
