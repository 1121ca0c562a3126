"""The compiled loop over the rows of a frozen head, against the head in float64."""

import itertools
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mwuf_kernels import FrozenRows, PairWeights, PartRows, PowerWeights, native
from torch import nn

from tests.bounds import assert_float32_close

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
# (D, hidden widths): register widths, none of one, one layer, no layer.
SHAPES = [(16, (64, 64)), (12, (50, 30, 7)), (5, (20,)), (8, ()), (1, (1,)), (16, (1, 8)), (4, (8, 1, 5))]
ITEM_FIELDS, USER_FIELDS = 3, 2  # of the parts of a head with products of pairs


class Case:
    """A head with random weights, and rows for it; its parts may hold the sum of fields, fields, or neither."""

    def __init__(self, dim: int, hidden: tuple[int, ...], kept: str, num_rows: int, dtype: torch.dtype):
        torch.manual_seed(dim + num_rows)
        widths = [dim, *hidden, 1]
        self.linears = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)] if hidden else []
        self.linear, self.dim, self.interactions = torch.randn(dim), dim, kept == "sum"
        self.hidden = hidden[0] if hidden else 0
        num_fields = ITEM_FIELDS + USER_FIELDS
        self.constant = self.hidden + {"sum": dim, "fields": num_fields * dim, "nothing": 0}[kept]
        self.pairs = None
        if kept == "fields":
            of_item, crossed = (
                torch.randn(num_fields - 1, self.hidden),
                torch.randn(ITEM_FIELDS, USER_FIELDS, self.hidden),
            )
            self.pairs = PairWeights(of_item / dim, crossed / dim)
        self.parts = torch.randn(40, self.constant + 3).to(dtype)
        self.first, self.second = torch.randint(40, (2, num_rows))
        self.items, self.index = torch.randn(2, 9, dim).to(dtype), torch.randint(9, (num_rows,))
        self.labels, self.weights = (torch.rand(num_rows) < 0.4).to(dtype), torch.rand(num_rows).to(dtype)
        self.dtype = dtype

    def rows(self, only: slice = slice(None)) -> PartRows:
        return PartRows(self.parts, self.first[only], self.second[only])

    def compiled(self) -> FrozenRows:
        pairs = [(linear.weight.detach(), linear.bias.detach()) for linear in self.linears[1:]]
        item_weight = self.linears[0].weight.detach().t() if self.linears else None
        return FrozenRows(item_weight, pairs, self.linear, self.interactions, self.pairs)

    def reference(self, items: torch.Tensor | None) -> torch.Tensor:
        """Logits [..., B], as the formula has them."""
        part = self.parts[self.first] + self.parts[self.second]
        logit = part[:, self.constant]
        item = torch.zeros(self.dim, dtype=self.dtype) if items is None else items[:, self.index]
        slope = self.linear.to(self.dtype).expand(len(part), -1)
        if self.interactions:
            total = part[:, self.hidden : self.constant]
            logit, slope = logit + total.square().sum(1) / 2, slope + total
        logit = logit + (slope * item).sum(-1)
        if not self.linears:
            return logit
        weights = [(linear.weight.to(self.dtype), linear.bias.to(self.dtype)) for linear in self.linears]
        sums = part[:, : self.hidden] + item @ weights[0][0].t()
        if self.pairs is not None:
            fields = part[:, self.hidden : self.constant].unflatten(1, (-1, self.dim))
            of_item, crossed = (weight.to(self.dtype) for weight in vars(self.pairs).values())
            of_items, of_users = fields[:, :ITEM_FIELDS], fields[:, ITEM_FIELDS:]
            sums = sums + torch.einsum("bik,bjk,ijh->bh", of_items, of_users, crossed)
            with_item = torch.einsum("bjk,pbk->pbj", fields[:, 1:], item.expand(2, len(part), -1))
            sums = sums + (with_item if items is not None else with_item[0]) @ of_item
        x = F.relu(sums)
        for weight, bias in weights[1:-1]:
            x = F.relu(F.linear(x, weight, bias))
        return logit + x @ weights[-1][0][0]


@needs_compiler
@pytest.mark.parametrize("num_rows", [1, 47, 48, 500])
@pytest.mark.parametrize("kept", ["sum", "fields", "nothing"])
@pytest.mark.parametrize(("dim", "hidden"), SHAPES)
@pytest.mark.parametrize("weighted", [True, False])
def test_losses_gradients_and_logits_match_float64(dim, hidden, kept, num_rows, weighted):
    if kept == "fields" and not hidden:
        return  # products of pairs are inputs of a layer
    exact, ours = (Case(dim, hidden, kept, num_rows, dtype) for dtype in (torch.float64, torch.float32))
    exact.parts, exact.items = ours.parts.double(), ours.items.double().requires_grad_()
    weights = ours.weights if weighted else None
    logits = exact.reference(exact.items)
    labels = ours.labels.double().expand_as(logits)
    expected = F.binary_cross_entropy_with_logits(
        logits, labels, None if weights is None else weights.double(), reduction="none"
    ).sum(1)
    (0.1 * expected.sum()).backward()
    gradient = torch.zeros_like(ours.items)
    head = ours.compiled()
    loss = head.loss_and_gradient(ours.rows(), ours.items, ours.index, ours.labels, weights, 0.1, gradient)
    num_terms, size = dim + sum(hidden), float(logits.detach().abs().max())
    if kept == "fields":  # each product of a pair, and a row of the first layer for it
        num_terms += dim + ITEM_FIELDS * USER_FIELDS + ITEM_FIELDS + USER_FIELDS
    # A loss is off by no more than its logit; rows are added up in float64.
    assert_float32_close(loss, 0.1 * expected, num_terms=num_terms, size=0.1 * num_rows * size)
    assert exact.items.grad is not None
    assert_float32_close(gradient, exact.items.grad, num_terms=2 * num_terms + num_rows // 9)
    assert_float32_close(head.logits(ours.rows()), exact.reference(None), num_terms=num_terms, size=size)


@needs_compiler
@pytest.mark.parametrize(("num_rows", "dim", "neurons", "hidden"), [
    (1, 16, 32, (64, 64)), (47, 5, 7, (20,)), (48, 3, 16, (30, 9)), (500, 24, 20, (16,)), (60, 1, 1, (1, 3)),
])  # fmt: skip
def test_losses_gradients_and_logits_over_powers_match_float64(num_rows, dim, neurons, hidden):
    generator = torch.Generator().manual_seed(num_rows)

    def draws(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    fields, smallest = 5, 0.05
    widths = [dim * neurons, *hidden, 1]
    layers = [(draws(b, a) / a**0.5, draws(b)) for a, b in itertools.pairwise(widths)]
    powers = PowerWeights(0.2 * draws(neurons, fields), 0.1 * draws(neurons), layers[0][1], smallest)
    parts, items = draws(40, fields * dim + 2), draws(2, 9, dim)
    parts[:, :dim] = 0  # a place for the item
    items[0, :2, 0] = torch.tensor([0.0, -smallest / 2])  # without a slope
    first, second = torch.randint(40, (2, num_rows), generator=generator)
    index = torch.randint(9, (num_rows,), generator=generator)
    labels, weights = (draws(num_rows) > 0).float(), draws(num_rows).abs()

    rows, whole = PartRows(parts, first, second), (parts[first] + parts[second]).double()

    def logits_of(items: torch.Tensor, index: torch.Tensor) -> torch.Tensor:  # [..., B]
        logs = items.abs().clamp(min=smallest).log()[..., index, None, :]
        others = whole[:, dim : fields * dim].unflatten(1, (-1, dim)).expand(*logs.shape[:-2], -1, -1)
        x = (torch.cat([logs, others], -2).mT @ powers.weight.t().double() + powers.bias.double()).exp().flatten(-2)
        for weight, bias in layers[:-1]:
            x = F.relu(F.linear(x, weight.double(), bias.double()))
        return whole[:, fields * dim] + x @ layers[-1][0][0].double()

    exact = items.double().requires_grad_()
    logits = logits_of(exact, index)
    target = labels.double().expand_as(logits)
    expected = F.binary_cross_entropy_with_logits(logits, target, weights.double(), reduction="none").sum(1)
    (slope,) = torch.autograd.grad(0.1 * expected.sum(), exact)
    head = FrozenRows(layers[0][0].t(), layers[1:], torch.zeros(dim), False, powers=powers)
    gradient = torch.zeros_like(items)
    loss = head.loss_and_gradient(rows, items, index, labels, weights, 0.1, gradient)
    num_terms, size = fields + sum(widths), float(logits.detach().abs().max())
    assert_float32_close(loss, 0.1 * expected, num_terms=num_terms, size=0.1 * num_rows * size)
    assert_float32_close(gradient, slope, num_terms=2 * num_terms + num_rows // 9)
    served = parts.clone()  # with an item in its place, which the other part has zeros for
    served[:, :dim] = items[1, 3].abs().clamp(min=smallest).log()
    found = head.logits(PartRows(torch.cat([parts, served]), first, second + 40))
    wanted = logits_of(items[1].double(), torch.full_like(index, 3))
    assert_float32_close(found, wanted, num_terms=num_terms, size=float(wanted.abs().max()))


@needs_compiler
def test_the_gradient_is_added_to_what_is_there_and_has_the_same_bits_on_every_run():
    case = Case(16, (64, 64), "sum", 700, torch.float32)
    runs = []
    for start in (0.0, 0.0, 0.0, 1.0):
        gradient = torch.full_like(case.items, start)
        case.compiled().loss_and_gradient(case.rows(), case.items, case.index, case.labels, None, 1.0, gradient)
        runs.append(gradient)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2]) and runs[0].abs().max() > 0.1
    assert_float32_close(runs[3] - 1, runs[0], num_terms=700 // 9 + 1)


@needs_compiler
@pytest.mark.parametrize("kept", ["sum", "fields"])
def test_a_logit_has_the_same_bits_wherever_its_row_stands(kept):
    case = Case(16, (64, 64), kept, 200, torch.float32)
    head = case.compiled()
    whole = head.logits(case.rows())
    for start, end in ((0, 1), (3, 50), (49, 200), (200, 200)):
        assert torch.equal(head.logits(case.rows(slice(start, end))), whole[start:end])


@needs_compiler
def test_parts_that_are_summed_already_give_the_same_bits():
    case = Case(12, (20, 20), "sum", 100, torch.float32)
    head = case.compiled()
    summed = PartRows(case.parts[case.first] + case.parts[case.second])
    assert torch.equal(head.logits(summed), head.logits(case.rows()))


@needs_compiler
def test_what_is_no_number_comes_through_every_layer():
    """A ReLU that made a zero of it would hide that training has diverged."""
    case = Case(16, (64, 64), "sum", 100, torch.float32)
    case.parts[:, 0] = float("nan")  # a unit of the first layer
    gradient = torch.zeros_like(case.items)
    head = case.compiled()
    assert head.logits(case.rows()).isnan().all()
    loss = head.loss_and_gradient(case.rows(), case.items, case.index, case.labels, None, 1.0, gradient)
    assert loss.isnan().all() and gradient[:, case.index].isnan().all()


def _library(tmp_path: Path, **changes: str) -> tuple[bool, str]:
    """Whether there is a library with these environment variables, and what is said about it."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for name, value in ({"MWUF_CACHE_DIR": str(tmp_path), "MWUF_NATIVE": ""} | changes).items():
            patch.setenv(name, value)
        # Compiled in a tenth of the time: what it computes is not asked for.
        patch.setattr(native, "FLAGS", tuple(flag.replace("-O3", "-O0") for flag in native.FLAGS))
        found = native.library.__wrapped__() is not None
    return found, "\n".join(str(one.message) for one in said)


@needs_compiler
def test_the_library_is_compiled_once_and_found_again(tmp_path):
    assert _library(tmp_path) == (True, "")
    (made,) = (tmp_path / "native").glob("*.so")
    before = made.stat().st_mtime_ns
    assert _library(tmp_path) == (True, "")
    assert [path.stat().st_mtime_ns for path in (tmp_path / "native").glob("*.so")] == [before]


def test_without_a_compiler_or_by_choice_there_is_none_and_no_word_about_it(tmp_path):
    assert _library(tmp_path, PATH="/nowhere") == (False, "")
    assert _library(tmp_path, MWUF_NATIVE="0") == (False, "")
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_the_processor_to_compile_for_is_what_the_environment_names(tmp_path):
    found, said = _library(tmp_path, MWUF_NATIVE_ARCH="no-such-processor")
    assert not found and "no-such-processor" in said


def test_a_compiler_that_fails_is_named_with_what_it_said(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho its own words >&2\nexit 1\n")
    compiler.chmod(0o755)
    found, said = _library(tmp_path / "cache", CXX=str(compiler))
    assert not found and str(compiler) in said and "its own words" in said
