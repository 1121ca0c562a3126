"""history_gru against torch.nn.GRU in float64, a history at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from mwuf_kernels import has_library, history_gru

pytestmark = pytest.mark.skipif(not has_library(), reason="no C++ compiler")


def make_inputs(distinct: int, lengths: list[int], dim: int, size: float = 1.0) -> list:
    generator = torch.Generator().manual_seed(distinct + dim)
    index = torch.randint(distinct, (sum(lengths),), generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    shapes = (distinct, 3 * dim), (3 * dim, dim), (3 * dim,)
    gates, weight, bias = (size * torch.randn(shape, generator=generator) for shape in shapes)
    return [gates, weight / math.sqrt(dim), bias, index, offsets]


def by_torch(gates, weight, bias, index, offsets):
    """The gates' parts as the input, which an input weight of the identity leaves as they are."""
    dim = weight.shape[1]
    eye, zeros = torch.eye(3 * dim, dtype=gates.dtype), torch.zeros(3 * dim, dtype=gates.dtype)
    states = []
    for g in range(len(offsets) - 1):
        state = 0 * (gates.sum() + weight.sum() + bias.sum()) + gates.new_zeros(1, dim)
        for item in index[offsets[g] : offsets[g + 1]].tolist():
            state = torch.gru_cell(gates[item : item + 1], state, eye, weight, zeros, bias)
        states.append(state)
    return torch.cat(states)


LENGTHS = [3, 0, 20, 1, 7, 20]


@pytest.mark.parametrize("dim", [1, 5, 16, 24])
@pytest.mark.parametrize("lengths", [LENGTHS, 30 * LENGTHS, [0, 0], [4]])
def test_matches_float64(assert_matches, dim, lengths):
    assert_matches(history_gru, by_torch, make_inputs(9, lengths, dim))


def test_gates_that_are_far_from_zero_are_shut_or_open(assert_matches):
    assert_matches(history_gru, by_torch, make_inputs(9, LENGTHS, 16, size=30.0))


def test_it_is_the_gru_of_torch():
    gru = torch.nn.GRU(6, 16, batch_first=True)
    generator = torch.Generator().manual_seed(0)
    items, index = torch.randn(9, 6, generator=generator), torch.randint(9, (20,), generator=generator)
    gates = F.linear(items, gru.weight_ih_l0, gru.bias_ih_l0)
    found = history_gru(gates, gru.weight_hh_l0, gru.bias_hh_l0, index, torch.tensor([0, 20]))
    assert torch.allclose(found, gru(items[index][None])[0][:, -1], atol=1e-6)


def test_a_history_has_the_same_bits_among_others_and_alone():
    gates, weight, bias, index, offsets = make_inputs(9, 30 * LENGTHS, 16)
    whole = history_gru(gates, weight, bias, index, offsets)
    for g in range(6):
        events = index[offsets[g] : offsets[g + 1]]
        assert torch.equal(history_gru(gates, weight, bias, events, torch.tensor([0, len(events)]))[0], whole[g])


def test_a_number_that_is_none_stays_in_its_history():
    gates, weight, bias, index, offsets = make_inputs(9, LENGTHS, 16)
    gates[index[0]] = math.nan
    of_nan = [bool((index[offsets[g] : offsets[g + 1]] == index[0]).any()) for g in range(6)]
    assert history_gru(gates, weight, bias, index, offsets).isnan().all(1).tolist() == of_nan and not all(of_nan)


def test_threads_give_the_same_bits(assert_same_bits_on_threads):
    assert_same_bits_on_threads(history_gru, make_inputs(300, 300 * LENGTHS, 16))
