"""meta_networks against a float64 reference."""

import sys

import pytest
import torch
from mwuf_kernels import meta_networks, meta_networks_reference
from mwuf_kernels._triton import use_triton
from mwuf_kernels.meta_networks import meta_networks_op


def make_inputs(num_items, inputs, hidden, dim, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(num_items + dim)
    tensors = [torch.randn((num_items, width), generator=generator) for width in inputs]
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
    return lambda x_h, x_g, *weights: op(x_h, x_g, weights[:4], weights[4:], residual=residual)


def by_hand(x_h, x_g, h, g, residual):
    """Written with matrix products alone."""
    scale, shift = (((x @ n[0].T + n[1]) * (x @ n[0].T + n[1] > 0)) @ n[2].T + n[3] for x, n in ((x_h, h), (x_g, g)))
    return (scale + 1.0 if residual else scale), shift


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", [meta_networks, meta_networks_reference])
@pytest.mark.parametrize(
    ("num_items", "inputs", "hidden", "dim"),
    [(100, (48, 16), (64, 64), 16), (33, (70, 9), (20, 7), 33), (40, (5, 64), (16, 130), 130), (0, (8, 4), (4, 4), 5)],
)
def test_matches_float64(assert_matches, device, op, num_items, inputs, hidden, dim, dtype, residual):
    tensors = make_inputs(num_items, inputs, hidden, dim, dtype, device)
    assert_matches(call(op, residual), call(by_hand, residual), tensors)


def test_the_registered_op_matches_too(assert_matches, device):
    def op(*tensors):
        return meta_networks_op(*tensors, True)[:2]

    assert_matches(op, call(by_hand, True), make_inputs(50, (20, 16), (24, 24), 16, device=device))


def test_three_runs_give_the_same_bits(assert_same_bits, device):
    assert_same_bits(call(meta_networks, False), make_inputs(100, (48, 16), (64, 64), 16, device=device))


def test_an_output_without_gradient_costs_its_network_nothing(device):
    x_h, x_g, *weights = make_inputs(20, (8, 4), (6, 5), 3, device=device)
    h, g = ([tensor.requires_grad_() for tensor in part] for part in (weights[:4], weights[4:]))
    scale, _ = meta_networks(x_h, x_g, tuple(h), tuple(g))
    gradients = torch.autograd.grad(scale.sum(), [*h, *g], allow_unused=True)
    assert [gradient is None for gradient in gradients] == [False] * 4 + [True] * 4


def test_the_kernel_is_one_launch_for_both_networks_and_keeps_no_hidden_layer(device, monkeypatch):
    module = sys.modules["mwuf_kernels.meta_networks"]
    kernel, launches = module._meta_networks_kernel, []

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    monkeypatch.setattr(module, "_meta_networks_kernel", Counted())
    inputs = [tensor.requires_grad_() for tensor in make_inputs(20, (8, 4), (6, 5), 3, device=device)]
    scale, _ = call(meta_networks, True)(*inputs)
    kept = {tuple(tensor.shape) for tensor in scale.grad_fn.saved_tensors} & {(20, 6), (20, 5)}
    # The CPU's own path keeps both layers: a third product costs it more.
    assert (len(launches), len(kept)) == ((1, 0) if use_triton(inputs[0]) else (0, 2))


def test_gradcheck_in_float64(device):
    inputs = [t.requires_grad_() for t in make_inputs(6, (4, 3), (5, 4), 3, torch.float64, device)]
    assert torch.autograd.gradcheck(call(meta_networks, True), inputs)


def test_opcheck(device):
    inputs = [t.requires_grad_() for t in make_inputs(6, (4, 3), (5, 4), 3, device=device)]
    torch.library.opcheck(meta_networks_op, (*inputs, False))


def test_compiles_in_one_graph(device):
    inputs = make_inputs(20, (8, 4), (6, 5), 3, device=device)
    compiled = torch.compile(call(meta_networks, True), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*inputs), call(meta_networks, True)(*inputs), strict=True):
        assert torch.equal(a, b)
