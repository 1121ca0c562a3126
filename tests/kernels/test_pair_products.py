"""pair_products against its equation in float64."""

from collections.abc import Callable

import pytest
import torch
from mwuf_kernels import has_library, pair_products

from tests.bounds import assert_float32_close

pytestmark = pytest.mark.skipif(not has_library(), reason="no C++ compiler")


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_equation(fields: torch.Tensor) -> torch.Tensor:
    first, second = torch.triu_indices(fields.shape[1], fields.shape[1], offset=1)
    return (fields[:, first] * fields[:, second]).sum(2)


@pytest.mark.parametrize("shape", [(100, 27, 128), (49, 5, 7), (3, 14, 20), (7, 2, 1), (7, 1, 16), (0, 4, 8)])
def test_matches_float64(shape: tuple[int, int, int]) -> None:
    found, expected = [], []
    for op, dtype, to in ((pair_products, torch.float32, found), (by_equation, torch.float64, expected)):
        fields = draws(*shape).to(dtype).requires_grad_()
        out = op(fields)
        d_out = draws(*out.shape).to(dtype)
        to += [out, *torch.autograd.grad(out, fields, d_out)]
    for one, wanted, size in zip(found, expected, (10 * shape[2], 100), strict=True):
        assert_float32_close(one, wanted, num_terms=shape[1] + shape[2], size=size)


def test_fields_may_lie_apart_in_memory_and_no_gradient_be_asked_for() -> None:
    fields = draws(60, 9, 16).transpose(0, 1).requires_grad_()
    with torch.no_grad():
        products = pair_products(fields)
    assert torch.equal(products, pair_products(fields)) and torch.equal(products, pair_products(fields.contiguous()))


def test_the_bits_do_not_depend_on_the_number_of_threads(assert_same_bits_on_threads: Callable) -> None:
    assert_same_bits_on_threads(pair_products, [draws(2000, 14, 40)])
