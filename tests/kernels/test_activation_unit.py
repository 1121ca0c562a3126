"""activation_unit against its equation in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from mwuf_kernels import activation_unit, has_library

from tests.bounds import assert_float32_close

pytestmark = pytest.mark.skipif(not has_library(), reason="no C++ compiler")


def make_inputs(rows: int, length: int, dim: int, units: int) -> list:
    generator = torch.Generator().manual_seed(rows + dim)
    shapes = (rows, dim), (rows, length, dim), (units, 3 * dim), (units,), (1,), (1, units), (1,)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[1][:, : length // 3] = 0  # padding
    return tensors


def by_equation(item, events, weight, bias, slope, relevance, constant):
    v = item[:, None].expand_as(events)
    hidden = F.prelu(torch.cat([events, events * v, v], dim=2) @ weight.t() + bias, slope)
    return ((hidden @ relevance.t() + constant) * events).sum(1)


@pytest.mark.parametrize(("rows", "length", "dim", "units"), [
    (100, 20, 16, 36), (49, 3, 5, 7), (300, 1, 24, 64), (3, 9, 2, 17), (0, 4, 8, 3), (5, 0, 8, 3),
])  # fmt: skip
def test_matches_float64(rows, length, dim, units):
    found, expected = ([], [])
    for op, dtype, to in ((activation_unit, torch.float32, found), (by_equation, torch.float64, expected)):
        inputs = [one.to(dtype).requires_grad_() for one in make_inputs(rows, length, dim, units)]
        out = op(*inputs)
        d_out = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))
        to += [out, *torch.autograd.grad(out, inputs, d_out.to(dtype))]
    # A gradient of a weight is a sum over all rows and their events; a row's is one over events and units.
    assert_float32_close(found, expected, num_terms=rows * length + length * units + 3 * dim)


def test_of_a_frozen_unit_the_items_alone_have_a_gradient_and_the_same():
    inputs = make_inputs(100, 20, 16, 36)
    d_out = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    (alone,) = torch.autograd.grad(activation_unit(inputs[0].requires_grad_(), *inputs[1:]), inputs[0], d_out)
    whole = [one.detach().clone().requires_grad_() for one in inputs]
    assert torch.equal(torch.autograd.grad(activation_unit(*whole), whole, d_out)[0], alone)


def test_a_row_has_the_same_bits_among_others_and_alone():
    item, events, *weights = make_inputs(100, 20, 16, 36)
    whole = activation_unit(item, events, *weights)
    assert torch.equal(torch.cat([activation_unit(item[i : i + 1], events[i : i + 1], *weights) for i in (0, 50, 99)]),
                       whole[[0, 50, 99]])  # fmt: skip


def test_a_number_that_is_none_stays_in_its_row():
    item, events, *weights = make_inputs(100, 20, 16, 36)
    events[7, 19, 3] = math.nan
    assert activation_unit(item, events, *weights).isnan().any(1).nonzero().flatten().tolist() == [7]


def test_threads_give_the_same_bits(assert_same_bits_on_threads):
    assert_same_bits_on_threads(activation_unit, make_inputs(2000, 20, 16, 36))
