"""The plain program's meta_train step is Algorithm 1 of the paper done literally, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks import plain_torch
from benchmarks.plain_backbones import LinearAndMlp
from tests.bounds import assert_float32_close

NUM_USERS, NUM_ITEMS, DIM, ROWS, STEPS, LR = 11, 7, 4, 32, 20, 1e-2
TITLE_OFFSETS = torch.tensor([0, 2, 3, 3, 6, 7, 8, 9])  # the third item has no title token


class LiteralAdam:
    """Adam as its paper writes it, on a dictionary of tensors."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = {name: value.detach().clone() for name, value in values.items()}
        self.first = {name: torch.zeros_like(value) for name, value in values.items()}
        self.second = {name: torch.zeros_like(value) for name, value in values.items()}
        self.step = 0

    def update(self, loss: Callable[[dict[str, Tensor]], Tensor]) -> None:
        """Moves the values down the gradient of `loss` with respect to them and to nothing else."""
        self.step += 1
        leaves = {name: value.clone().requires_grad_() for name, value in self.values.items()}
        gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
            self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
            first = self.first[name] / (1 - 0.9**self.step)
            second = self.second[name] / (1 - 0.999**self.step)
            self.values[name] = self.values[name] - LR * first / (second.sqrt() + 1e-8)


def make_model(backbone: str) -> plain_torch.PlainModel:
    """A float64 model with BatchNorm and dropout, that would betray a model left in train mode."""
    users = [
        plain_torch.Field("user_id", NUM_USERS + 1, torch.arange(NUM_USERS) + 1),
        plain_torch.Field("gender", 3, torch.randint(3, (NUM_USERS,))),
    ]
    items = [
        plain_torch.Field("year", 5, torch.randint(5, (NUM_ITEMS,))),
        plain_torch.Field("title", 9, torch.randint(9, (9,)), TITLE_OFFSETS),
    ]
    model = plain_torch.PlainModel(
        backbone, users, items, NUM_ITEMS, DIM, (8, 6), batch_norm=True, dropout=0.3, init_std=0.5
    )
    return plain_torch.freeze(model.double())


def literal_fields(
    side: plain_torch.SideEmbeddings, fields: list[tuple[Tensor, Tensor | None]], index: Tensor
) -> Tensor:
    """All field embeddings row by row: a lookup, or the mean of several."""
    rows = []
    for entity in index.tolist():
        parts = []
        for table, (values, offsets) in zip(side.tables, fields, strict=True):
            weight = table.get_parameter("weight")
            if offsets is None:
                parts.append(weight[values[entity]])
                continue
            bag = weight[values[offsets[entity] : offsets[entity + 1]]]
            parts.append(bag.mean(0) if len(bag) else weight.new_zeros(DIM))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("backbone", ["wide_deep", "deepfm"])
def test_meta_train_step_is_algorithm_1_done_literally(backbone: str, residual: bool) -> None:
    """Per step: L_cold(v) moves phi_new alone; then L_warm of the same v moves h and g alone."""
    torch.manual_seed(0)
    model = make_model(backbone)
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    phi_new = plain_torch.common_initialisation(model, NUM_ITEMS)
    meta = plain_torch.MetaNetworks(model.items.out_dim, DIM, 5, residual).double()
    user_mean = torch.randn(NUM_ITEMS, DIM, dtype=torch.float64)
    optimizers = plain_torch.adam(phi_new, LR), plain_torch.adam(meta, LR)
    literal_phi, literal_meta = LiteralAdam({"v": phi_new.weight}), LiteralAdam(dict(meta.named_parameters()))

    for _ in range(STEPS):
        user, item = torch.randint(NUM_USERS, (ROWS,)), torch.randint(NUM_ITEMS, (ROWS,))
        label = torch.randint(2, (ROWS,)).double()
        plain_torch.meta_train_step(model, phi_new, meta, user_mean, *optimizers, plain_torch.Batch(user, item, label))

        users, items = model.users(user), model.items(item)
        table_before = literal_phi.values["v"]

        def cross_entropy(v: Tensor) -> Tensor:
            p = torch.sigmoid(model(users, v, items))  # noqa: B023
            return -(label * p.log() + (1 - label) * (1 - p).log()).mean()  # noqa: B023

        literal_phi.update(lambda phi: cross_entropy(phi["v"][item]))  # noqa: B023
        literal_meta.update(
            lambda w: cross_entropy(functional_call(meta, w, (table_before[item], items, user_mean[item])))  # noqa: B023
        )

    torch.testing.assert_close(phi_new.weight.detach(), literal_phi.values["v"], rtol=0, atol=1e-11)
    for name, value in meta.named_parameters():
        torch.testing.assert_close(value.detach(), literal_meta.values[name], rtol=0, atol=1e-11)
    assert all(torch.equal(value, frozen[name]) for name, value in model.state_dict().items())


def test_v_warm_is_v_times_scale_plus_shift() -> None:
    """Equations of the two networks, written out with matrix products; residual MWUF starts as the identity."""
    torch.manual_seed(1)
    v, items, user_mean = torch.randn(3, DIM), torch.randn(3, 2 * DIM), torch.randn(3, DIM)
    meta = plain_torch.MetaNetworks(2 * DIM, DIM, 5)
    w = dict(meta.named_parameters())
    scale, shift = (
        (x @ w[f"{n}.0.weight"].T + w[f"{n}.0.bias"]).clamp(min=0) @ w[f"{n}.2.weight"].T + w[f"{n}.2.bias"]
        for n, x in (("h", items), ("g", user_mean))
    )
    assert_float32_close(meta(v, items, user_mean), v * scale + shift, num_terms=2 * DIM + 5 + 1)
    assert torch.equal(plain_torch.MetaNetworks(2 * DIM, DIM, 5, residual=True)(v, items, user_mean), v)


@pytest.mark.parametrize("backbone", ["wide_deep", "deepfm"])
def test_logit_is_the_sum_of_its_parts(backbone: str) -> None:
    """Linear + MLP, and for deepfm every pair of fields' inner product once; multi-valued fields are means."""
    torch.manual_seed(2)
    model = make_model(backbone)
    user, item = torch.randint(NUM_USERS, (ROWS,)), torch.randint(NUM_ITEMS, (ROWS,))
    users = literal_fields(model.users, [(model.users.get_buffer(f"values_{i}"), None) for i in range(2)], user)
    year, title = (model.items.get_buffer(f"values_{i}") for i in range(2))
    items = literal_fields(model.items, [(year, None), (title, TITLE_OFFSETS)], item)
    ids = torch.randn(NUM_ITEMS, DIM, dtype=torch.float64)
    x = torch.cat([ids[item], items, users], 1)
    head = model.head
    assert isinstance(head, LinearAndMlp)
    expected = (head.linear(x) + head.mlp(x)).squeeze(1)
    if backbone == "deepfm":
        fields = x.view(ROWS, -1, DIM)
        products = fields @ fields.mT
        expected = expected + torch.triu(products, diagonal=1).sum((1, 2))
    label = torch.zeros(ROWS, dtype=torch.float64)
    torch.testing.assert_close(plain_torch.score(model, ids, plain_torch.Batch(user, item, label)), expected)


def test_user_means_leave_items_without_rows_at_the_global_mean() -> None:
    """U(v) counts every row; an item without a finished row gets the mean user."""
    user_ids = torch.tensor([[1.0], [2.0], [6.0]])
    mean = plain_torch.mean_user_embedding(user_ids, torch.tensor([0, 2, 2]), torch.tensor([1, 1, 2]), 3)
    assert mean.tolist() == [[3.0], [3.5], [6.0]]


def test_warm_up_step_moves_only_the_rows_of_its_batch() -> None:
    """Frozen means bit-unchanged, and so are the new items' rows that the batch does not hold."""
    torch.manual_seed(3)
    model = make_model("deepfm")
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    phi_new = plain_torch.common_initialisation(model, NUM_ITEMS)
    before = phi_new.weight.detach().clone()
    item = torch.tensor([0, 2, 2, 3])
    batch = plain_torch.Batch(torch.tensor([1, 2, 3, 4]), item, torch.tensor([0.0, 1, 1, 0], dtype=torch.float64))
    plain_torch.warm_up_step(model, phi_new, plain_torch.adam(phi_new, LR), batch)
    moved = (phi_new.weight.detach() != before).any(1)
    assert moved.nonzero().squeeze(1).tolist() == [0, 2, 3]
    assert all(torch.equal(value, frozen[name]) for name, value in model.state_dict().items())


def test_pretrain_step_learns() -> None:
    """The loss falls well below that of a coin on labels a user decides."""
    torch.manual_seed(4)
    users = [plain_torch.Field("user_id", NUM_USERS + 1, torch.arange(NUM_USERS) + 1)]
    items = [plain_torch.Field("year", NUM_ITEMS, torch.arange(NUM_ITEMS))]
    model = plain_torch.PlainModel("deepfm", users, items, NUM_ITEMS, dim=DIM, hidden=(8,))
    optimizer = plain_torch.adam(model, 1e-2)
    user, item = torch.randint(NUM_USERS, (512,)), torch.randint(NUM_ITEMS, (512,))
    batch = plain_torch.Batch(user, item, (user % 2).float())
    losses = [float(plain_torch.pretrain_step(model, optimizer, batch)) for _ in range(100)]
    assert losses[0] > 0.6 and losses[-1] < 0.1
