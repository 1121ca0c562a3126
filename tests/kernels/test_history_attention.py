"""history_attention against softmax row by row in float64, in the compiled loop and in torch."""

import math

import pytest
import torch
from mwuf_kernels import has_library, history_attention, without_library

from tests.bounds import assert_float32_close

needs_loop = pytest.mark.skipif(not has_library(), reason="no C++ compiler")


def make_inputs(rows: int, distinct: int, lengths: list[int], width: int, heads: int, size: float = 1.0) -> list:
    generator = torch.Generator().manual_seed(rows + width)
    query, key, value = (size * torch.randn(n, width, generator=generator) for n in (rows, distinct, distinct))
    event = torch.randint(distinct, (sum(lengths),), generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    group = torch.randint(len(lengths), (rows,), generator=generator)
    return [query, key, value, event, offsets, group, heads]


def row_by_row(query, key, value, event, offsets, group, heads):
    """What the docstring says, a row and a head at a time."""
    out = []
    for row, of in enumerate(group.tolist()):
        events = event[offsets[of] : offsets[of + 1]]
        for q, k, v in zip(query[row].chunk(heads), key.chunk(heads, 1), value.chunk(heads, 1), strict=True):
            weight = torch.softmax(k[events] @ q / math.sqrt(len(q)), 0)
            out.append(weight @ v[events])
    nothing = 0 * (query.sum() + key.sum() + value.sum())
    return (torch.cat(out).view(len(group), -1) if out else torch.zeros_like(query)) + nothing


CASES = [
    (100, 300, [70, 0, 3, 40, 1, 16, 17, 300], 64, 4),
    (30, 5, [200, 0, 64], 64, 2),  # every event many times
    (90, 40, [9, 100], 64, 4),  # many rows of a history
    (90, 40, [9, 33], 6, 3),
    (20, 40, [9, 33], 15, 3),
    (7, 40, [9, 33], 24, 1),
    (5, 3, [0, 0], 8, 2),
    (0, 3, [4], 8, 2),
]


@pytest.mark.parametrize("case", CASES)
@needs_loop
def test_matches_float64(assert_matches, case):
    assert_matches(history_attention, row_by_row, make_inputs(*case))


@pytest.mark.parametrize("case", CASES[:-1])  # of no rows it gives no gradient
def test_torch_without_the_loop_matches_too(assert_matches, case):
    with without_library():
        assert_matches(history_attention, row_by_row, make_inputs(*case))


def test_cutting_histories_into_pieces_changes_nothing(monkeypatch):
    inputs = [one.double() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in
              make_inputs(*CASES[0])]  # fmt: skip
    whole = history_attention(*inputs)
    monkeypatch.setitem(history_attention.__globals__, "_CELLS", 1)
    assert torch.allclose(history_attention(*inputs), whole, atol=1e-12)


def test_scores_of_any_size_give_weights_that_add_up_to_one(assert_matches):
    """e^score of what is here is no number of float32."""
    inputs = make_inputs(20, 40, [9, 33], 16, 1, size=10.0)
    inputs[2] = torch.ones_like(inputs[2])
    assert_float32_close(history_attention(*inputs), torch.ones(20, 16), num_terms=33)
    assert row_by_row(*inputs).isfinite().all() and (inputs[0] @ inputs[1].T).max() > 400


def test_rows_of_a_history_that_ask_alike_find_the_same_to_the_bit():
    """Else ties between items that are alike fall by luck."""
    query, key, value, event, offsets, _, heads = make_inputs(*CASES[0])
    for rows in (2, 20, 90):
        found = history_attention(query[:1].expand(rows, -1), key, value, event, offsets, torch.full((rows,), 3), heads)
        assert (found == found[0]).all()


@needs_loop
def test_a_score_that_is_no_number_is_seen_in_what_its_rows_find():
    inputs = make_inputs(*CASES[0])
    inputs[1][inputs[3][0]] = math.nan
    of_nan = torch.tensor([bool((inputs[3][0] == inputs[3][inputs[4][g] : inputs[4][g + 1]]).any()) for g in inputs[5]])
    assert torch.equal(history_attention(*inputs).isnan().any(1), of_nan) and of_nan.any() and not of_nan.all()


def test_threads_give_the_same_bits(assert_same_bits_on_threads):
    assert_same_bits_on_threads(history_attention, make_inputs(2000, 300, [100, 0, 30, 40], 64, 4))
