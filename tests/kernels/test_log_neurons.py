"""log_neurons against its equations in float64."""

import math

import pytest
import torch
from mwuf_kernels import LogNeurons, TrainedNorm, has_library, log_neurons

from tests.bounds import assert_float32_close

pytestmark = pytest.mark.skipif(not has_library(), reason="no C++ compiler")

SMALLEST, MOMENTUM, EPS = 0.01, 0.1, 1e-5
SHAPES = [(300, 8, 16, 32), (145, 5, 5, 7), (13, 2, 3, 1), (60, 24, 20, 40), (2, 3, 8, 17)]


def make_inputs(rows: int, fields: int, dim: int, neurons: int) -> list[torch.Tensor]:
    """Item, context, weight, bias, and weight and bias of both norms."""
    generator = torch.Generator().manual_seed(rows + dim)
    of_norms = [(fields,)] * 2 + [(neurons,)] * 2
    shapes = [(rows, dim), (rows, (fields - 1) * dim), (neurons, fields), (neurons,), *of_norms]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[2] *= 0.3
    inputs[0][:1, :2] = torch.tensor([0.0, -SMALLEST / 2])  # their logarithms have no slope
    return inputs


def moments(*widths: int) -> list[torch.Tensor]:
    return [start(width) for width in widths for start in (torch.zeros, torch.ones)]


def by_loop(inputs, running, row_weight=None, sum_over_ranks=None):
    item, context, weight, bias, *of_norms = inputs
    of_logs = TrainedNorm(of_norms[0], of_norms[1], running[0], running[1], MOMENTUM, EPS)
    of_powers = TrainedNorm(of_norms[2], of_norms[3], running[2], running[3], MOMENTUM, EPS)
    how = LogNeurons(of_logs, of_powers, SMALLEST, sum_over_ranks)
    return log_neurons(item, context, weight, bias, how, row_weight)


def by_equation(inputs, running, row_weight=None):
    item, context, weight, bias, log_gamma, log_beta, gamma, beta = inputs
    dim = item.shape[1]
    counts = torch.ones(len(item)) if row_weight is None else row_weight
    counts = counts.to(item.dtype).repeat_interleave(dim)[:, None]

    def norm(x, gamma, beta, mean, var):
        num = counts.sum()
        of_batch = (x * counts).sum(0) / num
        squares = ((x - of_batch).square() * counts).sum(0)
        with torch.no_grad():
            mean.lerp_(of_batch, MOMENTUM)
            var.lerp_(squares / (num - 1), MOMENTUM)
        return (x - of_batch) * torch.rsqrt(squares / num + EPS) * gamma + beta

    fields = torch.cat([item, context], dim=1).unflatten(1, (-1, dim)).mT.flatten(0, 1)  # [B*D, F]
    sums = norm(fields.abs().clamp(min=SMALLEST).log(), log_gamma, log_beta, *running[:2]) @ weight.t() + bias
    return norm(sums.exp(), gamma, beta, *running[2:]).view(len(item), -1)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(shape, is_padded):
    rows, fields, dim, neurons = shape
    row_weight = (torch.arange(rows) % 5 > 0).float() if is_padded else None
    if is_padded and rows < 5:
        return
    found, expected, sizes = [], [], []
    for op, dtype, to in ((by_loop, torch.float32, found), (by_equation, torch.float64, expected)):
        inputs = [one.to(dtype).requires_grad_() for one in make_inputs(*shape)]
        running = [one.to(dtype) for one in moments(fields, neurons)]
        out = op(inputs, running, row_weight)
        d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        if row_weight is not None:  # padding has an output that nobody reads
            out, d_out = (one * row_weight[:, None].to(dtype) for one in (out, d_out))
        gradients = torch.autograd.grad(out, inputs, d_out)
        to += [out, *running, *gradients]
        sizes = [float(one.detach().abs().max()) for one in to]
    # The second norm takes away what is the same in every row, so the gradients of the offsets before it are zero: what
    # is left of sums as large as those of the weights beside them.
    *_, of_weight, of_bias, of_gamma, of_beta, _, _ = range(len(sizes))
    assert expected[of_bias].abs().max() < 1e-3 * sizes[of_weight] > expected[of_beta].abs().max()
    sizes[of_bias] = sizes[of_beta] = sizes[of_weight] + sizes[of_gamma]
    for one, wanted, size in zip(found, expected, sizes, strict=True):
        assert_float32_close(one, wanted, num_terms=fields + neurons + 2 * rows * dim, size=size)


def test_an_empty_batch_moves_no_moment_to_what_is_no_number():
    """A rank may have no row of a batch; the others' sums reach it."""
    inputs = [one.requires_grad_() for one in make_inputs(0, 3, 4, 5)]
    running = moments(3, 5)

    def of_two_rows(sums: torch.Tensor) -> None:  # what another rank has: mean .5, squares of 1
        width = len(sums) // 2
        sums[:width], sums[width:-1], sums[-1] = 4.0, 8.0, 8.0

    out = by_loop(inputs, running, sum_over_ranks=of_two_rows)
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert out.shape == (0, 20) and all(one.isfinite().all() for one in (*running, *gradients[2:]))
    assert torch.equal(running[0], torch.full((3,), 0.05))


def test_two_ranks_have_the_moments_and_gradients_of_one():
    """Each half of a batch sums up with the other's, whose sums are known from a first run."""
    whole = make_inputs(40, 3, 4, 6)
    halves = [[whole[0][part], whole[1][part], *whole[2:]] for part in (slice(0, 13), slice(13, 40))]
    sent: list[list[torch.Tensor]] = [[], []]

    def outcome(inputs, exchange, d_out):
        running = moments(3, 6)
        inputs = [one.clone().requires_grad_() for one in inputs]
        out = by_loop(inputs, running, sum_over_ranks=exchange)
        return out, running, torch.autograd.grad(out, inputs, d_out)

    d_out = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    pieces = d_out[:13], d_out[13:]
    expected = outcome(whole, None, d_out)
    # What a rank sends depends on what it has got before: one more exchange is right in each round.
    for known in range(4):
        for rank in (0, 1):
            mine: list[torch.Tensor] = []

            def exchange(sums: torch.Tensor, rank: int = rank, mine: list = mine, known: int = known) -> None:
                mine.append(sums.clone())
                if len(mine) <= known:
                    sums += sent[1 - rank][len(mine) - 1]

            outcome(halves[rank], exchange, pieces[rank])
            sent[rank] = mine
    assert [len(one) for one in sent] == [4, 4]
    found = []
    for rank in (0, 1):
        others = iter(sent[1 - rank])
        found.append(outcome(halves[rank], lambda sums, others=others: sums.add_(next(others)), pieces[rank]))
    terms = {"num_terms": 2 * 40 * 4 + 30}
    assert_float32_close(torch.cat([one[0] for one in found]), expected[0], **terms)
    for one in found:
        assert_float32_close(one[1], expected[1], **terms)
    for place in (0, 1):
        assert_float32_close(torch.cat([one[2][place] for one in found]), expected[2][place], **terms)
    both = found[0][2][2] + found[1][2][2]
    assert_float32_close(both, expected[2][2], **terms)


def test_what_is_no_number_comes_through_everything():
    """BatchNorm carries it to all rows of its field, and a field to all neurons."""
    inputs = make_inputs(30, 3, 4, 6)
    inputs[1][7, 2] = math.nan
    assert by_loop(inputs, moments(3, 6)).isnan().all()


def test_threads_give_the_same_bits(assert_same_bits_on_threads):
    def op(*inputs):
        return by_loop(inputs, moments(8, 32))

    assert_same_bits_on_threads(op, make_inputs(2000, 8, 16, 32))
