"""Rows of tables for the entities of a batch, and their gradients back: the CPU's way through `table_rows.cpp`.

torch gathers ids, then rows, and adds up gradients with an index, each a pass of its own over memory; here an entity's
ids are read and its rows copied, or added to, at once.
"""

from dataclasses import dataclass

import torch

from mwuf_kernels.native import call, has_library

# Possible ids for each that is given: with more, looking at all of them takes longer than sorting those that are there.
_FEW = 16


@dataclass(frozen=True)
class EntityFields:
    """Which rows of one matrix of tables [N, D] the fields of each entity have.

    Attributes:
        ids: rows, of entity after entity and field after field [v] int64.
        lengths: how many each field of each entity has [E, F] int64; None where all are 1.
        starts: where each entity's begin [E] int64; None with `lengths`.
        num_fields: F.
        pools_by_mean: whether a field of several rows is their mean, not their sum.
        step: without `starts`, entity e's begin at e * step; None is F.
    """

    ids: torch.Tensor
    lengths: torch.Tensor | None
    starts: torch.Tensor | None
    num_fields: int
    pools_by_mean: bool
    step: int | None = None

    def alone(self, entities: torch.Tensor) -> tuple["EntityFields", torch.Tensor]:
        """Returns the fields of some entities [n] alone, and which they are among these."""
        places = torch.arange(len(entities))
        if self.lengths is None or self.starts is None:
            step = self.num_fields if self.step is None else self.step
            which = (entities * step)[:, None] + torch.arange(self.num_fields)
            ids = self.ids.index_select(0, which.view(-1))
            return EntityFields(ids, None, None, self.num_fields, self.pools_by_mean), places
        lengths = self.lengths.index_select(0, entities)
        numbers = lengths.sum(1)
        starts = numbers.cumsum(0) - numbers
        which = torch.repeat_interleave(self.starts.index_select(0, entities) - starts, numbers)
        ids = self.ids.index_select(0, which.add_(torch.arange(len(which))))
        return EntityFields(ids, lengths, starts, self.num_fields, self.pools_by_mean), places


def table_rows(table: torch.Tensor, fields: EntityFields | None, entities: torch.Tensor) -> torch.Tensor:
    """Returns fields side by side [n, F*D] of entities [n] int64, from a table [N, D] float32; without gradients.

    Without `fields` an entity is a row of the table.
    """
    if fields is None:
        return table.index_select(0, entities)
    out = table.new_empty(len(entities), fields.num_fields * table.shape[1])
    _call("mwuf_table_rows", table, fields, entities, out)
    return out


def add_table_rows_(
    gradient: torch.Tensor, fields: EntityFields | None, entities: torch.Tensor, d_rows: torch.Tensor
) -> None:
    """Adds the gradient of `table_rows` [n, F*D] to that of the table [N, D], entity after entity."""
    assert d_rows.shape == (len(entities), (1 if fields is None else fields.num_fields) * gradient.shape[1])
    _call("mwuf_add_table_rows", gradient, fields, entities, d_rows)


def distinct_ids(ids: torch.Tensor, num_ids: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds (distinct values [u] in order, position of each of `ids` [n] among them [n]).

    As `torch.unique`; of int64 ids on a CPU without its comparisons: by a look at all that there may be, or a sort by
    digits.

    Args:
        ids: in [0, num_ids), n * num_ids at most 2^63.
        num_ids: how many there may be; None is any, negative ones too.
    """
    is_plain = ids.dtype == torch.int64 and ids.dim() == 1 and ids.device.type == "cpu"
    if num_ids is None or not is_plain or not has_library():
        return torch.unique(ids, return_inverse=True)
    ids = ids.contiguous()
    num, count = len(ids), torch.empty(1, dtype=torch.int64)
    values, inverse = torch.empty(num, dtype=torch.int64), torch.empty_like(ids)
    if num_ids <= _FEW * num:
        call("mwuf_distinct", num, num_ids, ids, torch.empty(num_ids, dtype=torch.int32), values, inverse, count)
    else:
        sorted_, other = torch.empty(2, num, dtype=torch.int64)
        call("mwuf_distinct_of_many", num, ids, sorted_, other, values, inverse, count)
    return values[: int(count)], inverse


def _call(
    name: str, table: torch.Tensor, fields: EntityFields | None, entities: torch.Tensor, rows: torch.Tensor
) -> None:
    assert table.dtype == rows.dtype == torch.float32 and entities.dtype == torch.int64
    which = (None, None, None) if fields is None else (fields.ids, fields.lengths, fields.starts)
    num_fields, pools_by_mean = (1, False) if fields is None else (fields.num_fields, fields.pools_by_mean)
    step = num_fields if fields is None or fields.step is None else fields.step
    sizes = (len(entities), table.shape[1], num_fields, step, int(pools_by_mean))
    call(name, *sizes, table, *which, entities, rows)
