"""BatchNorm is PyTorch's on the rows that are not padding, and the frozen layers are eval mode."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from mwuf_kernels import has_library, sums_bytes, without_library
from torch import nn

from mwuf_dist.backbones.compiled_head import mlp_logit
from mwuf_dist.backbones.layers import MLP, GlobalBatchNorm, PairProducts, linear
from mwuf_dist.config import Config
from mwuf_dist.runtime import draws, start
from tests.bounds import assert_float32_close

ROWS, WIDTH, STEPS = 13, 5, 6


@pytest.fixture(autouse=True)
def _process_group() -> Iterator[None]:
    with start(Config()):
        torch.manual_seed(0)
        yield


def pair() -> tuple[GlobalBatchNorm, nn.BatchNorm1d]:
    ours, theirs = GlobalBatchNorm(WIDTH).double(), nn.BatchNorm1d(WIDTH).double()
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.normal_())
        theirs.bias.copy_(ours.bias.normal_())
    return ours, theirs


def assert_same(ours: GlobalBatchNorm, theirs: nn.BatchNorm1d) -> None:
    for name in ("weight", "bias"):
        gradients = [getattr(module, name).grad for module in (ours, theirs)]
        torch.testing.assert_close(gradients[0], gradients[1])
    assert theirs.running_mean is not None and theirs.running_var is not None
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("padding", [None, 0, 4], ids=["no weights", "all weights 1", "4 rows of padding"])
def test_batch_norm_is_that_of_pytorch_over_the_rows_that_are_not_padding(padding: int | None) -> None:
    """Values, gradients and running moments over several steps; padding may hold anything."""
    ours, theirs = pair()
    weight = None if padding is None else torch.ones(ROWS + padding, dtype=torch.float64)
    if weight is not None:
        weight[ROWS:] = 0
    for step in range(STEPS):
        x = torch.randn(ROWS, WIDTH, dtype=torch.float64) * (step + 1) + step
        target = torch.randn(ROWS, WIDTH, dtype=torch.float64)
        mine, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        padded = F.pad(mine, (0, 0, 0, padding or 0), value=1e3)
        found = ours(padded, weight)[:ROWS]
        expected = theirs(reference)
        torch.testing.assert_close(found, expected)
        (found * target).sum().backward()
        (expected * target).sum().backward()
        torch.testing.assert_close(mine.grad, reference.grad)
        assert_same(ours, theirs)
    ours.eval(), theirs.eval()
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(ours(x, None), theirs(x))
    scale, offset = ours.affine()
    torch.testing.assert_close(x * scale + offset, theirs(x))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("hidden", [(7,), (7, 4), (7, 4, 3)])
def test_frozen_layers_are_the_mlp_in_eval_mode(batch_norm: bool, hidden: tuple[int, ...]) -> None:
    mlp = MLP(WIDTH, hidden, batch_norm, dropout=0.3).double()
    for _ in range(STEPS):  # moments of their own
        mlp(torch.randn(ROWS, WIDTH, dtype=torch.float64) * 2 + 1)
    mlp.eval()
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    out = x
    *layers, last = mlp.frozen_layers()
    for weight, bias in layers:
        out = F.relu(F.linear(out, weight, bias))
    torch.testing.assert_close(F.linear(out, *last).squeeze(-1), mlp(x))
    assert len(layers) == len(hidden)


def test_products_of_pairs_and_their_gradients_of_both_orders_are_those_of_a_sum() -> None:
    torch.manual_seed(0)
    fields, weight = torch.randn(6, 5, 3, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    products = PairProducts(5)

    def by_pairs(fields: torch.Tensor) -> torch.Tensor:
        return torch.stack([(fields[:, i] * fields[:, j]).sum(1) for i in range(5) for j in range(i + 1, 5)], dim=1)

    with torch.no_grad():
        torch.testing.assert_close(products(fields), by_pairs(fields))
    found = []
    for function in (products, by_pairs):
        x = fields.clone().requires_grad_()
        out = function(x)
        (first,) = torch.autograd.grad((out.square() * weight).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        found.append((out.detach(), first.detach(), second))
    torch.testing.assert_close(found[0], found[1])
    with torch.autocast("cpu", torch.bfloat16):
        x = fields.float().requires_grad_()
        out = products(x)
        out.backward(weight.bfloat16())
    assert out.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32


def test_a_frozen_batch_norm_has_the_values_and_gradients_of_torchs() -> None:
    torch.manual_seed(0)
    norm, x, weight = GlobalBatchNorm(4).eval().double(), torch.randn(9, 4).double(), torch.randn(9, 4).double()
    for value in (norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var):
        value.uniform_(0.5, 2.0)
    found = []
    for is_frozen in (True, False):
        norm.requires_grad_(not is_frozen)
        rows = x.clone().requires_grad_()
        out = norm(rows)
        out.backward(weight)
        assert ("NativeBatchNorm" in type(out.grad_fn).__name__) != is_frozen
        found.append((out.detach(), rows.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.skipif(not has_library(), reason="no C++ compiler")
@pytest.mark.parametrize("mode", ["training", "frozen"])
@pytest.mark.parametrize(("batch_norm", "dropout"), [(True, 0.3), (False, 0.0)])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("hidden", [(20, 7), (900, 600)], ids=["in the loop", "wide"])
def test_an_mlp_is_the_one_of_operators_in_float64(
    mode: str, batch_norm: bool, dropout: float, is_padded: bool, hidden: tuple[int, int]
) -> None:
    rows, widths = 150, (16, 3, 40)
    mlp = MLP(sum(widths), hidden, batch_norm, dropout)
    for norm in mlp.norms or ():
        assert isinstance(norm, GlobalBatchNorm)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    whole = torch.randn(rows, sum(widths))
    weight = (torch.arange(rows) % 5 > 0).float() if is_padded else None
    d_logit = torch.randn(rows) * (1 if weight is None else weight)
    state, found = mlp.state_dict(), []
    for dtype in (torch.float32, torch.float64):
        one = MLP(sum(widths), hidden, batch_norm, dropout).to(dtype)
        one.load_state_dict(state)
        one.train(mode == "training").requires_grad_(mode == "training")
        pieces = [piece.detach().requires_grad_() for piece in whole.to(dtype).split(widths, dim=1)]
        draws.begin(3, first_row=rows)
        row_weight = None if weight is None else weight.to(dtype)
        logit = mlp_logit(one, pieces, row_weight)
        is_plain = dtype == torch.float64 or hidden[0] > 20
        assert (type(logit.grad_fn).__name__ == "SqueezeBackward1") == is_plain
        leaves = [*pieces, *(parameter for parameter in one.parameters() if parameter.requires_grad)]
        gradients = torch.autograd.grad(logit, leaves, d_logit.to(dtype))
        logit = logit if row_weight is None else logit * row_weight
        found.append([logit, *gradients, *(value for name, value in one.named_buffers() if "running" in name)])
    # There and back, and sums over the batch.
    assert_float32_close(found[0], found[1], num_terms=2 * (sum(widths) + sum(hidden)) + rows)


def test_an_mlp_whose_gradients_would_take_much_memory_is_one_of_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sums_bytes(145, 10) == 2 * 40 and sums_bytes(10**6, 10) == 128 * 40
    mlp, x = MLP(WIDTH, (4,), False, 0.0), torch.randn(ROWS, WIDTH)
    monkeypatch.setattr("mwuf_dist.backbones.compiled_head._MOST_SUMS_BYTES", sums_bytes(ROWS, 29) - 1)  # 5 * 4 + 9
    with without_library():
        expected = mlp_logit(mlp, [x])
    assert type(mlp_logit(mlp, [x]).grad_fn) is type(expected.grad_fn)


def test_an_mlp_that_is_scored_with_gradients_to_its_weights_is_one_of_operators() -> None:
    """In eval mode the loop has its norms folded into the weights, where no gradient finds them."""
    mlp = MLP(WIDTH, (4,), True, 0.0).eval()
    x = torch.randn(ROWS, WIDTH)
    logit = mlp_logit(mlp, [x])
    with without_library():
        assert_float32_close(mlp_logit(mlp, [x]), logit, num_terms=WIDTH + 4)
    assert all(one is not None for one in torch.autograd.grad(logit.sum(), list(mlp.parameters())))


@pytest.mark.skipif(not (has_library() and torch.backends.mkldnn.is_available()), reason="no C++ compiler or no oneDNN")
@pytest.mark.parametrize("rows", [0, 300])
@pytest.mark.parametrize("asked", list(itertools.product([True, False], repeat=3)))
def test_a_layer_by_onednn_is_the_one_of_float64_and_has_the_same_bits_on_any_number_of_threads(
    rows: int, asked: tuple[bool, bool, bool]
) -> None:
    """Of whatever a gradient is asked for, and where the gradient of each number is the same number in memory."""
    layer, x = nn.Linear(700, 260), torch.randn(2, rows, 700)[1].requires_grad_(asked[0])
    layer.weight.requires_grad_(asked[1])
    layer.bias.requires_grad_(asked[2])
    leaves = [one for one, is_asked in zip((x, layer.weight, layer.bias), asked, strict=True) if is_asked]
    found = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        out = linear(x, layer)
        assert out.grad_fn is None or "OneDnn" in type(out.grad_fn).__name__
        found.append([out.detach(), *(torch.autograd.grad(out.sum(), leaves) if leaves else ())])
    torch.set_num_threads(1)
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    expected = [exact.detach(), *(torch.autograd.grad(exact.sum(), leaves) if leaves else ())]
    for one, wanted in zip(found[0], expected, strict=True):
        assert_float32_close(one, wanted, num_terms=700 + 260 + rows)


@pytest.mark.skipif(not has_library(), reason="no C++ compiler")
def test_a_wide_mlp_hides_no_nan() -> None:
    x = torch.randn(ROWS, WIDTH)
    x[3, 2] = torch.nan
    logit = mlp_logit(MLP(WIDTH, (700, 800), False, 0.0), [x])
    assert torch.equal(logit.isnan(), torch.arange(ROWS) == 3)
