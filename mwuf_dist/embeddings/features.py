"""The batch adapter: from entity indices to the jagged ids of their fields, ready for a TorchRec lookup."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from mwuf_dist.data.shards import EntityTable, FieldColumn
from mwuf_dist.embeddings.placement import TableSpec
from mwuf_dist.embeddings.tables import Tables


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
        columns = [entities.columns[field.name] for field in entities.fields]
        columns = [with_neighbours(column) if smooth and column.field.ordinal else column for column in columns]
        self.fields = tuple(column.field for column in columns)
        self.num_rows = entities.num_rows
        self.names = [field.name for field in self.fields]
        self.tables = [table_name(name) for name in self.names]
        self._single = all(field.kind == "categorical" for field in self.fields)
        self._values: list[torch.Tensor] = []
        self._offsets: list[torch.Tensor | None] = []
        for column in columns:
            self._values.append(torch.from_numpy(column.values.astype(np.int64)).to(device))
            self._offsets.append(None if column.offsets is None else torch.from_numpy(column.offsets.copy()).to(device))
        self._matrix = torch.stack(self._values) if self._single and self._values else None
        self._ones: dict[int, torch.Tensor] = {}
        self._direct: _DirectIds | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that the ids take."""
        held = [*self._values, *self._offsets, self._matrix]
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def specs(self, dim: int) -> list[TableSpec]:
        """One table per field."""
        # A categorical field has one id per bag, which any pooling leaves as it is: it takes the pooling of the others,
        # because fbgemm puts tables of one pooling into one kernel.
        others = {field.pooling for field in self.fields if field.kind == "multi_valued"} or {"sum"}
        return [
            TableSpec(name, field.size, dim, field.pooling if field.kind == "multi_valued" else min(others))
            for name, field in zip(self.tables, self.fields, strict=True)
        ]

    def lookup(self, tables: Tables, index: torch.Tensor) -> torch.Tensor:
        """Field embeddings [n, F*D] of the entities `index` [n] from the tables of `specs`. A collective."""
        if tables.direct is None or not tables.direct.is_one_matrix or not self.names:
            return tables(self.features(index))
        if self._direct is None:
            self._direct = _DirectIds.of(self._values, self._offsets, tables.direct.first_rows())
        ids, lengths = self._direct.of_entities(index)
        rows = tables.direct.matrix_rows(ids) if lengths is None else tables.direct.bags(ids, lengths)
        return rows.view(len(index), -1)

    def features(self, index: torch.Tensor) -> KeyedJaggedTensor:
        """Ids of every field of the entities `index` [n], with n bags per field."""
        if self._matrix is not None:
            values = self._matrix[:, index].reshape(-1)
            return KeyedJaggedTensor(self.tables, values, lengths=self._ones_like(values))
        columns = [self._gather(column, index) for column in range(len(self.names))]
        return KeyedJaggedTensor(
            self.tables,
            torch.cat([values for values, _ in columns]),
            lengths=torch.cat([lengths for _, lengths in columns]),
        )

    def used_values(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """For each field's table, which of its values [size] the entities `index` have."""
        used = {}
        for column, (table, field) in enumerate(zip(self.tables, self.fields, strict=True)):
            used[table] = torch.zeros(field.size, dtype=torch.bool)
            used[table][self._gather(column, index)[0].cpu()] = True
        return used

    def values_of_all(self) -> tuple[np.ndarray, np.ndarray]:
        """(entity [p], value [p]) of every known value of every entity, int64, once each, by entity then value.

        Values of all fields are counted through.
        """
        entities, values, first = [], [], 0
        for field, offsets, column in zip(self.fields, self._offsets, self._values, strict=True):
            lengths = np.ones(self.num_rows, np.int64) if offsets is None else np.diff(offsets.cpu().numpy())
            value = column.cpu().numpy()
            known = value > 0
            entities.append(np.repeat(np.arange(self.num_rows), lengths)[known])
            values.append(value[known] + first)
            first += field.size
        empty = np.empty(0, np.int64)
        pairs = np.unique(np.stack([np.concatenate([empty, *entities]), np.concatenate([empty, *values])]), axis=1)
        return pairs[0], pairs[1]

    def _gather(self, column: int, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        offsets, values = self._offsets[column], self._values[column]
        if offsets is None:
            out = values[index]
            return out, self._ones_like(out)
        start = offsets[index]
        lengths = offsets[index + 1] - start
        # Position of each value: the bag's start plus its place in the bag.
        first = torch.cumsum(lengths, 0) - lengths
        place = torch.arange(int(lengths.sum()), device=values.device)
        return values[torch.repeat_interleave(start - first, lengths) + place], lengths

    def _ones_like(self, values: torch.Tensor) -> torch.Tensor:
        num = len(values)
        if num not in self._ones:
            if len(self._ones) > 64:  # numbers of distinct items differ from batch to batch
                self._ones.clear()
            self._ones[num] = torch.ones(num, dtype=torch.int64, device=values.device)
        return self._ones[num]


@dataclasses.dataclass(frozen=True)
class _DirectIds:
    """The ids of all fields of an entity side by side, as rows of one matrix of all tables: see `DirectTables`.

    Attributes:
        ids: of entity after entity, and field after field [v].
        lengths: of the bag of each field of each entity [E, F]; None where all are 1.
        starts: where each entity's ids begin [E].
    """

    ids: torch.Tensor
    lengths: torch.Tensor | None
    starts: torch.Tensor
    num_fields: int

    @staticmethod
    def of(values: list[torch.Tensor], offsets: list[torch.Tensor | None], first_rows: list[int]) -> _DirectIds:
        """From the values of each field, and the first row of its table."""
        ids = [value + first for value, first in zip(values, first_rows, strict=True)]
        if all(offset is None for offset in offsets):
            flat = torch.stack(ids, dim=1).view(-1)
            return _DirectIds(flat, None, torch.arange(0, len(flat), len(ids)), len(ids))
        bags = [torch.ones_like(v) if o is None else o.diff() for v, o in zip(values, offsets, strict=True)]
        lengths = torch.stack(bags, dim=1)  # [E, F]
        ends = lengths.view(-1).cumsum(0).view_as(lengths)
        flat = torch.empty(int(lengths.sum()), dtype=torch.int64, device=lengths.device)
        for field, (value, length) in enumerate(zip(ids, bags, strict=True)):
            first = (ends[:, field] - length) - (length.cumsum(0) - length)
            flat[torch.repeat_interleave(first, length) + torch.arange(len(value), device=flat.device)] = value
        return _DirectIds(flat, lengths, ends[:, -1] - lengths.sum(1), len(ids))

    def of_entities(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(ids [m], lengths of the bags [n * F], or None) of entities [n], in their order."""
        if self.lengths is None:
            return self.ids.view(-1, self.num_fields).index_select(0, index).view(-1), None
        lengths = self.lengths.index_select(0, index)
        totals = lengths.sum(1)
        shift = self.starts.index_select(0, index) - (totals.cumsum(0) - totals)
        place = torch.repeat_interleave(shift, totals)
        place += torch.arange(len(place), device=place.device)
        return self.ids.index_select(0, place), lengths.view(-1)


def table_name(field: str) -> str:
    """The name of a field's table: its own, unless a torch module can have no child of that name (`type`, `a.b`)."""
    taken = hasattr(nn.ModuleDict, field) or field in vars(nn.ModuleDict())
    return f"field {field}" if taken else field.replace(".", "·")


def with_neighbours(column: FieldColumn) -> FieldColumn:
    """A categorical column as a multi-valued one: of each value v but 0 (unknown), v - 1, v and v + 1 within range."""
    value = column.values
    bags = np.stack([value - 1, value, value + 1], axis=1)  # [E, 3]
    is_member = (bags >= 1) & (bags < column.field.size) & (value > 0)[:, None]
    is_member[:, 1] = True
    offsets = np.concatenate([[0], np.cumsum(is_member.sum(1))])
    field = dataclasses.replace(column.field, kind="multi_valued", pooling="mean")
    return FieldColumn(field, offsets, bags[is_member])


def without_rare_values(entities: EntityTable, num_known: int, min_known: int) -> EntityTable:
    """The entities with 0 (unknown) for every value that fewer than `min_known` of the first `num_known` have."""
    columns = {}
    for name, column in entities.columns.items():
        offsets = np.arange(entities.num_rows + 1) if column.offsets is None else column.offsets
        known = column.values[: offsets[num_known]]
        counts = np.bincount(known, minlength=column.field.size)
        columns[name] = dataclasses.replace(
            column, values=np.where(counts[column.values] < min_known, 0, column.values)
        )
    return dataclasses.replace(entities, columns=columns)
