"""The batch adapter: from entity indices to the jagged ids of their fields, ready for a TorchRec lookup."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from mwuf_kernels import BatchSide, EntityFields
from torch import nn
from torchrec import KeyedJaggedTensor

from mwuf_dist.data.shards import EntityTable, FieldColumn
from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime

# A combination of fields is worth computing once per batch where so many entities share one.
_SHARED_BY = 4


class FeatureStore:
    """The fields of every user, or of every item, in memory on the rank's device.

    Interactions hold two indices and a label; attributes stay in these side tables. Read that way the loader handles
    some ten times more rows per second than with every attribute in every row.

    Args:
        entities: the prepared side table.
        device: where ids are gathered.
        smooth: an ordinal field is the mean of a value and its two neighbours, so that rare values lean on them.
    """

    def __init__(self, entities: EntityTable, device: torch.device, smooth: bool = False) -> None:
        columns = [entities.columns[field.name] for field in entities.fields if field.kind != "vector"]
        columns = [with_neighbours(column) if smooth and column.field.ordinal else column for column in columns]
        self.fields = tuple(column.field for column in columns)
        self.num_rows = entities.num_rows
        # Not in tables: [E, size] of each vector field, standardised.
        self.vectors = {
            field.name: torch.from_numpy(entities.columns[field.name].values).to(device)
            for field in entities.fields
            if field.kind == "vector"
        }
        self.names = [field.name for field in self.fields]
        self.tables = [table_name(name) for name in self.names]
        first = np.cumsum([0, *(field.size for field in self.fields)])[:-1]
        self._first = torch.from_numpy(first).to(device)  # of each table, in the matrix of all [F]
        pools_by_mean = {spec.pooling for spec in self.specs(1)} == {"mean"}
        self.ids = _Ids.of(columns, first, entities.num_rows, pools_by_mean, device)
        self._ones: dict[int, torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes that the ids take, and the combinations once `sides` has made them."""
        held = [self.ids.ids, self.ids.lengths, self.ids.starts, *self.vectors.values()]
        profiles = self.__dict__.get("profiles")
        if profiles is not None:
            held += [profiles.of_entity, profiles.shared.ids]
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    @functools.cached_property
    def profiles(self) -> Profiles | None:
        """The combinations of fields that many entities share; None where few do."""
        return Profiles.of(self.ids, self.num_rows)

    def specs(self, dim: int) -> list[TableSpec]:
        """Returns one table per field."""
        # A categorical field has one id per bag, which any pooling leaves as it is: it takes the pooling of the others,
        # because fbgemm puts tables of one pooling into one kernel.
        others = {field.pooling for field in self.fields if field.kind == "multi_valued"} or {"sum"}
        return [
            TableSpec(name, field.size, dim, field.pooling if field.kind == "multi_valued" else min(others))
            for name, field in zip(self.tables, self.fields, strict=True)
        ]

    def lookup(self, tables: Tables, index: torch.Tensor) -> torch.Tensor:
        """Looks up field embeddings [n, F*D] of the entities `index` [n] in the tables of `specs`. A collective."""
        return tables.lookups.fields(self, index)

    def sides(self, tables: Tables, index: torch.Tensor, runtime: Runtime) -> list[BatchSide]:
        """Looks up what `lookup` gives, by columns: what many entities share may stand there once. A collective."""
        return tables.lookups.sides(self, index, runtime)

    def features(self, index: torch.Tensor) -> KeyedJaggedTensor:
        """Returns ids of every field of the entities `index` [n], with n bags per field."""
        ids, lengths = self.ids.by_field(index)
        if lengths is None:
            values = (ids.view(len(self.names), -1) - self._first[:, None]).view(-1)
            return KeyedJaggedTensor(self.tables, values, lengths=self._ones_like(values))
        totals = lengths.view(len(self.names), -1).sum(1)
        return KeyedJaggedTensor(self.tables, ids - torch.repeat_interleave(self._first, totals), lengths=lengths)

    def used_values(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns for each field's table, which of its values [size] the entities `index` have."""
        used = {}
        bags = self.features(index).to_dict() if self.names else {}
        for table, field in zip(self.tables, self.fields, strict=True):
            used[table] = torch.zeros(field.size, dtype=torch.bool)
            used[table][bags[table].values().cpu()] = True
        return used

    def values_of_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (entity [p], value [p]) of every known value of every entity, int64, once each, by entity then value.

        Values of all fields are counted through.
        """
        num_fields, value = len(self.names), self.ids.ids.cpu().numpy()
        lengths = 1 if self.ids.lengths is None else self.ids.lengths.view(-1).cpu().numpy()
        bag = np.repeat(np.arange(self.num_rows * num_fields), lengths)
        known = value > self._first.cpu().numpy()[bag % num_fields] if num_fields else np.empty(0, bool)
        pairs = np.unique(np.stack([bag[known] // max(num_fields, 1), value[known]]), axis=1)
        return pairs[0], pairs[1]

    def _ones_like(self, values: torch.Tensor) -> torch.Tensor:
        num = len(values)
        if num not in self._ones:
            if len(self._ones) > 64:  # numbers of distinct items differ from batch to batch
                self._ones.clear()
            self._ones[num] = torch.ones(num, dtype=torch.int64, device=values.device)
        return self._ones[num]


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Holds the combinations of all fields but the first, where few of them occur: of users, all but the ID.

    Attributes:
        own: the first field of each entity.
        shared: the other fields of each combination.
        of_entity: which combination each entity has [E].
        number: of combinations.
    """

    own: EntityFields
    shared: EntityFields
    of_entity: torch.Tensor
    number: int

    @staticmethod
    def of(ids: EntityFields, num_rows: int) -> Profiles | None:
        """Gives None where fields have several values each, or most entities are the only one of their combination."""
        if ids.lengths is not None or ids.num_fields < 2 or not num_rows:
            return None
        matrix = ids.ids.view(num_rows, ids.num_fields)
        combinations, place = torch.unique(matrix[:, 1:], dim=0, return_inverse=True)
        if len(combinations) * _SHARED_BY > num_rows:
            return None
        own = EntityFields(ids.ids, None, None, 1, ids.pools_by_mean, step=ids.num_fields)
        shared = EntityFields(combinations.reshape(-1), None, None, ids.num_fields - 1, ids.pools_by_mean)
        return Profiles(own, shared, place, len(combinations))


@dataclasses.dataclass(frozen=True)
class _Ids(EntityFields):
    """The ids of all fields of an entity side by side, as rows of one matrix of all tables: see `LoopLookups`."""

    @staticmethod
    def of(
        columns: list[FieldColumn], first_rows: np.ndarray, num_rows: int, pools_by_mean: bool, device: torch.device
    ) -> _Ids:
        """Makes it from the column of each field, and the first row of its table."""
        num_fields = len(columns)
        if all(column.offsets is None for column in columns):
            ids = np.empty((num_rows, num_fields), dtype=np.int64)
            for field, column in enumerate(columns):
                np.add(column.values, first_rows[field], out=ids[:, field])
            return _Ids(torch.from_numpy(ids.reshape(-1)).to(device), None, None, num_fields, pools_by_mean)
        lengths = np.ones((num_rows, num_fields), dtype=np.int64)
        for field, column in enumerate(columns):
            if column.offsets is not None:
                lengths[:, field] = np.diff(column.offsets)
        ends = lengths.reshape(-1).cumsum().reshape(lengths.shape)
        ids = np.empty(int(lengths.sum()), dtype=np.int64)
        for field, column in enumerate(columns):
            length = lengths[:, field]
            shift = ends[:, field] - np.cumsum(length)
            ids[np.repeat(shift, length) + np.arange(len(column.values))] = column.values + first_rows[field]
        starts = ends[:, 0] - lengths[:, 0]
        whole = [torch.from_numpy(array).to(device) for array in (ids, lengths, starts)]
        return _Ids(whole[0], whole[1], whole[2], num_fields, pools_by_mean)

    def by_field(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (ids [m], lengths of the bags [F * n], or None) of entities [n], field after field."""
        if self.lengths is None or self.starts is None:
            ids = self.ids.view(-1, self.num_fields).index_select(0, index)
            return ids.t().reshape(-1), None
        lengths = self.lengths.index_select(0, index)
        starts = self.starts.index_select(0, index)[:, None] + lengths.cumsum(1) - lengths
        lengths = lengths.t().reshape(-1)
        return self._ranges(starts.t().reshape(-1), lengths), lengths

    def _ranges(self, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Returns the ids from starts [b] on, lengths [b] of them each, one after another [m]."""
        place = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths)
        place += torch.arange(len(place), device=place.device)
        return self.ids.index_select(0, place)


def table_name(field: str) -> str:
    """Gives the name of a field's table.

    Its own, unless a torch module can have no child of that name (`type`, `a.b`).
    """
    taken = hasattr(nn.ModuleDict, field) or field in vars(nn.ModuleDict())
    return f"field {field}" if taken else field.replace(".", "·")


def with_neighbours(column: FieldColumn) -> FieldColumn:
    """Gives a categorical column as a multi-valued one.

    Of each value v but 0 (unknown), v - 1, v and v + 1 within range.
    """
    value = column.values
    bags = np.stack([value - 1, value, value + 1], axis=1)  # [E, 3]
    is_member = (bags >= 1) & (bags < column.field.size) & (value > 0)[:, None]
    is_member[:, 1] = True
    offsets = np.concatenate([[0], np.cumsum(is_member.sum(1))])
    field = dataclasses.replace(column.field, kind="multi_valued", pooling="mean")
    return FieldColumn(field, offsets, bags[is_member])


def without_rare_values(entities: EntityTable, num_known: int, min_known: int) -> EntityTable:
    """Gives the entities with 0 (unknown) for every value that fewer than `min_known` of the first `num_known` have."""
    columns = {}
    for name, column in entities.columns.items():
        if column.field.kind == "vector":
            columns[name] = column
            continue
        is_rare = rare_values(column, num_known, min_known)
        columns[name] = dataclasses.replace(column, values=np.where(is_rare[column.values], 0, column.values))
    return dataclasses.replace(entities, columns=columns)


def rare_values(column: FieldColumn, num_known: int, min_known: int) -> np.ndarray:
    """Says which values [size] fewer than `min_known` of the first `num_known` entities have, bool."""
    end = num_known if column.offsets is None else column.offsets[num_known]
    return np.bincount(column.values[:end], minlength=column.field.size) < min_known
