"""Rows of the fields of entities, and their gradients, against float64 written entity by entity."""

import pytest
import torch
from mwuf_kernels import EntityFields, add_table_rows_, distinct_ids, native, table_rows

from tests.bounds import assert_float32_close

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
ROWS, ENTITIES, FIELDS = 30, 12, 3


def make_fields(jagged: bool, pools_by_mean: bool) -> EntityFields:
    draws = torch.Generator().manual_seed(1)
    if not jagged:
        return EntityFields(torch.randint(ROWS, (ENTITIES * FIELDS,), generator=draws), None, None, FIELDS, False)
    lengths = torch.randint(4, (ENTITIES, FIELDS), generator=draws)  # none of a field among them
    ends = lengths.sum(1).cumsum(0)
    ids = torch.randint(ROWS, (int(ends[-1]),), generator=draws)
    return EntityFields(ids, lengths, ends - lengths.sum(1), FIELDS, pools_by_mean)


def values(fields: EntityFields | None, entity: int) -> list[list[int]]:
    """Rows of each field of an entity."""
    if fields is None:
        return [[entity]]
    if fields.lengths is None or fields.starts is None:
        return [[int(i)] for i in fields.ids[entity * FIELDS : (entity + 1) * FIELDS]]
    start, parts = int(fields.starts[entity]), []
    for length in fields.lengths[entity].tolist():
        parts.append(fields.ids[start : start + length].tolist())
        start += length
    return parts


def expected_rows(table: torch.Tensor, fields: EntityFields | None, entities: torch.Tensor) -> torch.Tensor:
    mean = fields is not None and fields.pools_by_mean
    out = []
    for entity in entities.tolist():
        for rows in values(fields, entity):
            total = table[rows].sum(0) if rows else torch.zeros(table.shape[1], dtype=table.dtype)
            out.append(total / len(rows) if mean and rows else total)
    width = (1 if fields is None else FIELDS) * table.shape[1]
    return torch.stack(out).view(len(entities), width) if out else table.new_empty(0, width)


@pytest.mark.parametrize("num", [0, 1, 7, 3000])  # the last: every entity some 250 times
@pytest.mark.parametrize("dim", [16, 5])
@pytest.mark.parametrize("kind", ["rows", "single", "sum", "mean"])
def test_rows_and_gradients_match_float64(kind: str, dim: int, num: int) -> None:
    fields = None if kind == "rows" else make_fields(kind != "single", kind == "mean")
    draws = torch.Generator().manual_seed(num)
    table = torch.randn(ROWS, dim, generator=draws)
    entities = torch.randint(ROWS if fields is None else ENTITIES, (num,), generator=draws)
    exact = table.double().requires_grad_()
    expected = expected_rows(exact, fields, entities)
    found = table_rows(table, fields, entities)
    assert_float32_close(found, expected, num_terms=4)  # values of a field
    d_rows = torch.randn(found.shape, generator=draws)
    if num:
        expected.backward(d_rows.double())
    d_exact = torch.zeros_like(exact) if exact.grad is None else exact.grad
    runs = [torch.full_like(table, 2.0) for _ in range(3)]
    for gradient in runs:
        add_table_rows_(gradient, fields, entities, d_rows)
        assert torch.equal(gradient, runs[0])
    # A row of a field is met by some 250 entities of 3000, in a sum that begins at 2.
    size = max(2.0, float(d_exact.abs().max()))
    assert_float32_close(runs[0].double() - 2, d_exact, num_terms=num // 12 + 4, size=size)


@pytest.mark.parametrize(("num", "num_ids"), [(0, 5), (1, 1), (50, 7), (50, 5000), (3000, 70_000), (3000, 1 << 50)])
def test_distinct_ids_are_those_of_torch_unique(num: int, num_ids: int) -> None:
    ids = torch.randint(num_ids, (num,), generator=torch.Generator().manual_seed(num))
    ids[: num // 3] = ids[num - num // 3 :]
    expected, inverse = torch.unique(ids, return_inverse=True)
    for given in (ids, torch.stack([ids, ids + 1], dim=1)[:, 0]):  # and a column
        found = distinct_ids(given, num_ids)
        assert torch.equal(found[0], expected) and torch.equal(found[1], inverse)


@pytest.mark.parametrize(
    "ids", [torch.tensor([5, 3, 5], dtype=torch.int32), torch.tensor([[5, 3], [5, 7]]), torch.tensor([-2, 1 << 62, -2])]
)
def test_distinct_ids_takes_whatever_torch_unique_takes(ids: torch.Tensor) -> None:
    found, expected = distinct_ids(ids), torch.unique(ids, return_inverse=True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
