"""activation_unit against its equation in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from mwuf_kernels import activation_unit, has_library

from tests.bounds import assert_float32_close

pytestmark = pytest.mark.skipif(not has_library(), reason="no C++ compiler")


def make_inputs(rows: int, most: int, dim: int, units: int, distinct: int = 50) -> list:
    """Histories of 0 to `most` events, some shared by rows and some of no row; the last distinct event is in none."""
    generator = torch.Generator().manual_seed(rows + dim)
    shapes = (rows, dim), (distinct, dim), (units, 3 * dim), (units,), (1,), (1, units), (1,)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    lengths = torch.randint(0, most + 1, (rows + 2,), generator=generator)
    lengths[0] = 0
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    index = torch.randint(0, distinct - 1, (int(offsets[-1]),), generator=generator)
    group = torch.randint(0, rows + 2, (rows,), generator=generator)
    group[:1] = 0
    return [*tensors, index, offsets, group]


def leaves_of(inputs: list, dtype: torch.dtype) -> list:
    return [one.detach().clone().to(dtype).requires_grad_() for one in inputs[:7]]


def by_equation(item, events, weight, bias, slope, relevance, constant, index, offsets, group):
    out = []
    for row, v in zip(group.tolist(), item, strict=True):
        own = events[index[offsets[row] : offsets[row + 1]]]
        of_item = v.expand_as(own)
        hidden = F.prelu(torch.cat([own, own * of_item, of_item], dim=1) @ weight.t() + bias, slope)
        out.append(((hidden @ relevance.t() + constant) * own).sum(0))
    return torch.stack(out) if out else item


@pytest.mark.parametrize(("rows", "most", "dim", "units"), [
    (100, 20, 16, 36), (49, 3, 5, 7), (300, 1, 24, 64), (3, 9, 2, 17), (0, 4, 8, 3), (5, 0, 8, 3),
])  # fmt: skip
def test_matches_float64(rows, most, dim, units):
    found, expected = ([], [])
    inputs = make_inputs(rows, most, dim, units)
    for op, dtype, to in ((activation_unit, torch.float32, found), (by_equation, torch.float64, expected)):
        leaves = leaves_of(inputs, dtype)
        out = op(*leaves, *inputs[7:])
        d_out = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
        gradients = torch.autograd.grad(out, leaves, d_out, allow_unused=True)
        to += [out, *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True))]
    # A gradient of a weight or an event is a sum over all rows and their events; a row's is one over events and units.
    assert_float32_close(found, expected, num_terms=rows * most + most * units + 3 * dim + 1)


def test_of_a_frozen_unit_the_items_alone_have_a_gradient_and_the_same():
    inputs = make_inputs(100, 20, 16, 36)
    d_out = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    whole = leaves_of(inputs, torch.float32)
    (alone,) = torch.autograd.grad(activation_unit(inputs[0].requires_grad_(), *inputs[1:]), inputs[0], d_out)
    assert torch.equal(torch.autograd.grad(activation_unit(*whole, *inputs[7:]), whole, d_out)[0], alone)


def test_a_row_has_the_same_bits_among_others_and_alone():
    inputs = make_inputs(100, 20, 16, 36)
    whole = activation_unit(*inputs)
    for row in (0, 50, 99):
        alone = [inputs[0][row : row + 1], *inputs[1:-1], inputs[-1][row : row + 1]]
        assert torch.equal(activation_unit(*alone)[0], whole[row])


def test_a_number_that_is_none_stays_in_its_rows():
    item, events, *rest = make_inputs(100, 20, 16, 36)
    events[-1, 3] = math.nan
    index, offsets, group = rest[-3:]
    index[offsets[group[7]]] = len(events) - 1
    found = activation_unit(item, events, *rest).isnan().any(1).nonzero().flatten().tolist()
    assert found == (group == group[7]).nonzero().flatten().tolist()


def test_threads_give_the_same_bits(assert_same_bits_on_threads):
    assert_same_bits_on_threads(activation_unit, make_inputs(2000, 20, 16, 36))
