"""user_mean against float64 references."""

import pytest
import torch
from mwuf_kernels import user_mean, user_mean_reference
from mwuf_kernels.user_mean import user_mean_op


def make_inputs(num_users, lengths, dim, dtype=torch.float32, device="cpu", index_type=torch.int64):
    generator = torch.Generator().manual_seed(num_users + dim)
    rows = torch.randn((num_users, dim), generator=generator).to(dtype).to(device)
    users = torch.randint(max(num_users, 1), (sum(lengths),), generator=generator).to(device, index_type)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(device, index_type)
    return [rows, users, offsets, torch.randn(dim, generator=generator).to(dtype).to(device)]


def one_by_one(rows, users, offsets, default):
    """The mean of each item's rows, one item at a time."""
    parts = rows[users.long()].split(offsets.diff().tolist())
    means = [part.mean(0) if len(part) else default for part in parts]
    nothing = 0 * (rows.sum() + default.sum())  # ties both to the result where no item uses them
    return (torch.stack(means) if means else rows.new_empty((0, rows.shape[1]))) + nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("num_users", "lengths", "dim"),
    [
        (50, [20, 0, 60, 1, 3], 16),
        (9, [400, 2, 0, 129], 33),
        (2, [2000, 0, 700], 16),
        (7, [3, 4, 5], 130),
        (5, [0, 0], 4),
        (5, [], 4),
    ],
)
def test_matches_float64(assert_matches, device, num_users, lengths, dim, index_type, dtype):
    assert_matches(user_mean, one_by_one, make_inputs(num_users, lengths, dim, dtype, device, index_type))


@pytest.mark.parametrize("call", [user_mean_op, user_mean_reference])
def test_the_registered_op_and_the_reference_match_too(assert_matches, device, call):
    assert_matches(call, one_by_one, make_inputs(50, [20, 0, 60, 1, 3], 16, device=device))


def test_an_item_without_users_is_zero_unless_a_default_is_given(device):
    rows, users, offsets, default = make_inputs(5, [0, 2], 4, device=device)
    assert (user_mean(rows, users, offsets)[0] == 0).all()
    assert torch.equal(user_mean(rows, users, offsets, default)[0], default)


def test_three_runs_give_the_same_bits(assert_same_bits, device):
    assert_same_bits(user_mean, make_inputs(12, [300, 3, 0, 200], 24, device=device))


def test_reads_rows_past_2_to_the_31_elements(device):
    num_rows = 2**31 // 16 + 1000
    # Never written but for two rows, so a CPU maps 4 GiB and touches some pages of it.
    rows = torch.empty((num_rows, 16), dtype=torch.bfloat16, device=device)
    users = torch.tensor([num_rows - 1, num_rows - 7, num_rows - 1], device=device)
    rows[users[:2]] = torch.tensor([[3.0], [5.0]], dtype=torch.bfloat16, device=device)
    means = user_mean(rows, users, torch.tensor([0, 2, 3], device=device))
    assert means[:, 0].tolist() == [4, 3]


def test_gradcheck_in_float64(device):
    rows, users, offsets, default = make_inputs(6, [3, 0, 5], 3, torch.float64, device)
    assert torch.autograd.gradcheck(user_mean, (rows.requires_grad_(), users, offsets, default.requires_grad_()))


def test_opcheck(device):
    rows, users, offsets, default = make_inputs(6, [3, 0, 5], 3, device=device)
    torch.library.opcheck(user_mean_op, (rows.requires_grad_(), users, offsets, default.requires_grad_()))


def test_compiles_in_one_graph(device):
    inputs = make_inputs(6, [3, 0, 5], 3, device=device)
    compiled = torch.compile(user_mean, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), user_mean(*inputs))
