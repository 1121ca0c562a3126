"""bulk_warm against a float64 reference, and against the two ops it stands for."""

import sys

import pytest
import torch
from mwuf_kernels import bulk_warm, bulk_warm_reference, meta_networks, warm_embedding
from mwuf_kernels._triton import INTERPRETED
from mwuf_kernels.bulk_warm import bulk_warm_op

from tests.bounds import assert_float32_close


def make_inputs(num_items, inputs, hidden, dim, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(num_items + dim)
    tensors = [torch.randn((num_items, width), generator=generator) for width in (dim, *inputs)]
    for num_inputs, num_hidden in zip(inputs, hidden, strict=True):
        for shape, spread in (
            ((num_hidden, num_inputs), num_inputs**-0.5),
            ((num_hidden,), 0.1),
            ((dim, num_hidden), num_hidden**-0.5),
            ((dim,), 0.1),
        ):
            tensors.append(spread * torch.randn(shape, generator=generator))
    return [tensor.to(dtype).to(device) for tensor in tensors]


def call(op, residual):
    return lambda table, x_h, x_g, *weights: op(table, x_h, x_g, weights[:4], weights[4:], residual=residual)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_items", "inputs", "hidden", "dim"),
    [(100, (48, 16), (64, 64), 16), (33, (70, 9), (20, 7), 33), (40, (5, 64), (16, 130), 130), (0, (8, 4), (4, 4), 5)],
)
def test_matches_float64(assert_matches, device, num_items, inputs, hidden, dim, dtype, residual):
    tensors = make_inputs(num_items, inputs, hidden, dim, dtype, device)
    assert_matches(call(bulk_warm, residual), call(bulk_warm_reference, residual), tensors)


def test_the_registered_op_matches_too(assert_matches, device):
    tensors = make_inputs(50, (20, 16), (24, 24), 16, device=device)
    assert_matches(lambda *inputs: bulk_warm_op(*inputs, True), call(bulk_warm_reference, True), tensors)


def test_is_what_warm_embedding_gives_for_every_item_whatever_the_chunks(device, monkeypatch):
    monkeypatch.setattr(sys.modules["mwuf_kernels.bulk_warm"], "_CHUNK_BYTES", 1)  # 64 rows, the least
    table, x_h, x_g, *weights = make_inputs(300, (20, 16), (24, 24), 16, device=device)
    h, g = tuple(weights[:4]), tuple(weights[4:])
    _, warm = warm_embedding(table, torch.arange(300, device=device), *meta_networks(x_h, x_g, h, g, residual=True))
    assert_float32_close(bulk_warm(table, x_h, x_g, h, g, residual=True), warm, num_terms=20 + 24 + 1)


def test_three_runs_give_the_same_bits(assert_same_bits, device):
    assert_same_bits(call(bulk_warm, False), make_inputs(100, (48, 16), (64, 64), 16, device=device))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="one program of many for the others: hours under the interpreter")
def test_writes_rows_past_2_to_the_31_elements(device):
    num_items, dim = 2**15 + 1, 2**16
    # Never written but for the last row; the result takes 4 GiB.
    table = torch.empty((num_items, dim), dtype=torch.bfloat16, device=device)
    table[-1] = 3.0
    inputs = torch.zeros((num_items, 1), dtype=torch.bfloat16, device=device)
    first = torch.zeros((1, 1), dtype=torch.bfloat16, device=device), inputs[0]
    last = torch.zeros((dim, 1), dtype=torch.bfloat16, device=device)
    bias = torch.arange(dim, device=device).remainder(5).bfloat16()
    warm = bulk_warm(table, inputs, inputs, (*first, last, bias), (*first, last, 2 * bias), residual=True)
    assert torch.equal(warm[-1], 3 * (1 + bias) + 2 * bias)


def test_gradcheck_in_float64(device):
    inputs = [t.requires_grad_() for t in make_inputs(6, (4, 3), (5, 4), 3, torch.float64, device)]
    assert torch.autograd.gradcheck(call(bulk_warm, True), inputs)


def test_opcheck(device):
    inputs = [t.requires_grad_() for t in make_inputs(6, (4, 3), (5, 4), 3, device=device)]
    torch.library.opcheck(bulk_warm_op, (*inputs, False))


def test_compiles_in_one_graph(device):
    inputs = make_inputs(20, (8, 4), (6, 5), 3, device=device)
    compiled = torch.compile(call(bulk_warm, True), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), call(bulk_warm, True)(*inputs))
