"""warm_embedding against a float64 reference, and what only this op promises."""

import pytest
import torch
from mwuf_kernels import warm_embedding, warm_embedding_backward, warm_embedding_reference
from mwuf_kernels.warm_embedding import warm_embedding_op

from tests.bounds import assert_float32_close


def make_inputs(num_places, num_unique, dim, dtype=torch.float32, device="cpu", index_type=torch.int64):
    generator = torch.Generator().manual_seed(num_places + dim)
    rows, scale, shift = (torch.randn((num_unique, dim), generator=generator).to(dtype).to(device) for _ in range(3))
    inverse = torch.randint(max(num_unique, 1), (num_places,), generator=generator, dtype=index_type).to(device)
    return [rows, inverse, scale, shift]


def reference(rows, inverse, scale, shift):
    """Written with plain indexing and one product per place."""
    cold = rows[inverse.long()]
    return cold, cold.detach() * scale[inverse.long()] + shift[inverse.long()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_places", "num_unique", "dim"),
    [(257, 40, 16), (3000, 2, 16), (300, 25, 33), (30, 14, 130), (5, 30, 3), (0, 0, 16), (0, 5, 16)],
)
def test_matches_float64(assert_matches, device, num_places, num_unique, dim, dtype):
    assert_matches(warm_embedding, reference, make_inputs(num_places, num_unique, dim, dtype, device))


@pytest.mark.parametrize("call", [warm_embedding_op, warm_embedding_reference])
def test_the_registered_op_and_the_reference_match_too(assert_matches, device, call):
    assert_matches(call, reference, make_inputs(257, 40, 16, device=device))


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_takes_the_places_of_both_integer_types(assert_matches, device, index_type):
    assert_matches(warm_embedding, reference, make_inputs(300, 40, 17, device=device, index_type=index_type))


def test_three_runs_give_the_same_bits(assert_same_bits, device):
    assert_same_bits(warm_embedding, make_inputs(900, 10, 24, device=device))


def test_the_warm_loss_never_reaches_the_rows(device):
    rows, inverse, scale, shift = make_inputs(50, 7, 8, device=device)
    assert not any(out.requires_grad for out in warm_embedding(rows, inverse, scale, shift))
    rows.requires_grad_()
    cold, warm = warm_embedding(rows, inverse, scale, shift)
    assert cold.requires_grad and not warm.requires_grad
    scale.requires_grad_()
    cold, warm = warm_embedding(rows, inverse, scale, shift)
    assert torch.autograd.grad(warm.sum(), rows, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(cold.sum(), scale, allow_unused=True)[0] is None


def test_the_backward_by_hand_is_the_one_of_autograd(device):
    rows, inverse, scale, shift = (
        value.requires_grad_() if value.is_floating_point() else value for value in make_inputs(50, 7, 8, device=device)
    )
    gradients = torch.randn((50, 8), device=device), torch.randn((50, 8), device=device)
    expected = torch.autograd.grad(warm_embedding(rows, inverse, scale, shift), (rows, scale, shift), gradients)
    found = warm_embedding_backward(*gradients, rows.detach(), inverse)
    for a, b in zip(found, expected, strict=True):
        assert a is not None and torch.equal(a, b)


def test_gradcheck_in_float64(device):
    rows, inverse, scale, shift = make_inputs(11, 4, 3, torch.float64, device)
    for tensor in (scale, shift):
        tensor.requires_grad_()
    # A finite difference would see rows through warm as well, which is what the detach hides: only cold is checked.
    assert torch.autograd.gradcheck(lambda a, b: warm_embedding(rows, inverse, a, b)[1], (scale, shift))
    assert torch.autograd.gradcheck(
        lambda a: warm_embedding(a, inverse, scale.detach(), shift.detach())[0], rows.requires_grad_()
    )


def test_opcheck(device):
    rows, inverse, scale, shift = make_inputs(11, 4, 3, device=device)
    inputs = [tensor.requires_grad_() for tensor in (rows, scale, shift)]
    torch.library.opcheck(warm_embedding_op, (inputs[0], inverse, *inputs[1:]))


def test_compiles_in_one_graph(device):
    inputs = make_inputs(50, 7, 8, device=device)
    compiled = torch.compile(warm_embedding, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*inputs), warm_embedding(*inputs), strict=True):
        assert torch.equal(a, b)


def test_places_that_are_the_unique_items_need_no_inverse(device):
    torch.manual_seed(0)
    rows, scale, shift = (torch.randn(7, 5, device=device, requires_grad=True) for _ in range(3))
    d_cold, d_warm = torch.randn(2, 7, 5, device=device)
    outcomes = []
    for inverse in (None, torch.arange(7, device=device)):
        cold, warm = warm_embedding(rows, inverse, scale, shift)
        gradients = torch.autograd.grad([cold, warm], [rows, scale, shift], [d_cold, d_warm])
        with torch.no_grad():
            by_hand = warm_embedding_backward(d_cold, d_warm, rows, inverse)
        outcomes.append([cold, warm, *gradients, *by_hand])
    for found, expected in zip(*outcomes, strict=True):
        assert_float32_close(found, expected, num_terms=2)  # a product and a sum
