"""MeLU does what its paper says: a start trained through local steps, in second and in first order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.function import once_differentiable

from mwuf_dist.config import UserError
from mwuf_dist.config.registry import method_config
from mwuf_dist.methods import Episodes, build_method
from mwuf_dist.methods.melu import MeLU
from tests.methods.test_metaemb import CONTEXT, DIM, EPISODES, ITEMS, Rows, normal

RATE = 0.7


def melu(**keys: Any) -> MeLU:
    """With weights away from their starting point."""
    torch.manual_seed(1)
    method = MeLU(method_config(name="melu", inner_learning_rate=RATE, **keys), DIM, CONTEXT).double()
    torch.nn.init.normal_(method.shared, std=0.5)
    return method


def slopes(rows: Rows, half: int, v: torch.Tensor) -> torch.Tensor:
    """Gradient of each item's own loss in its embedding [E, D], by central differences."""
    out = torch.zeros_like(v)
    for column in range(DIM):
        step = torch.zeros_like(v)
        step[:, column] = 1e-5
        out[:, column] = (rows.loss(half, v + step) - rows.loss(half, v - step)) / 2e-5
    return out


def after_local_steps(rows: Rows, shared: torch.Tensor, steps: int) -> torch.Tensor:
    """v after the local steps [E, D]; no autograd anywhere."""
    v = shared.expand(EPISODES, -1)
    for _ in range(steps):
        v = v - RATE * slopes(rows, 0, v)
    return v


def gradient(method: MeLU, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses [E], gradient of their sum in the shared start [D])."""
    loss = method.episode_loss(rows.episodes())
    loss.sum().backward()
    assert method.shared.grad is not None
    return loss.detach(), method.shared.grad


@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_gradient_through_the_local_steps_equals_finite_differences(steps: int) -> None:
    rows, method = Rows(), melu(local_steps=steps)
    loss, found = gradient(method, rows)
    shared = method.shared.detach()

    def literal(shared: torch.Tensor) -> torch.Tensor:
        return rows.loss(1, after_local_steps(rows, shared, steps))

    torch.testing.assert_close(loss, literal(shared), rtol=0, atol=1e-8)
    for column in range(DIM):
        step = torch.zeros_like(shared)
        step[column] = 1e-4
        slope = (literal(shared + step) - literal(shared - step)).sum() / 2e-4
        assert found[column].item() == pytest.approx(slope.item(), abs=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_gradient_is_the_query_slope_where_the_local_steps_end(steps: int) -> None:
    rows, method = Rows(), melu(local_steps=steps, first_order=True)
    loss, found = gradient(method, rows)
    v = after_local_steps(rows, method.shared.detach(), steps)
    torch.testing.assert_close(loss, rows.loss(1, v), rtol=0, atol=1e-8)
    torch.testing.assert_close(found, slopes(rows, 1, v).sum(0), rtol=0, atol=1e-7)


def test_the_orders_differ_by_the_term_with_the_second_derivatives() -> None:
    rows = Rows()
    _, second = gradient(melu(), rows)
    method = melu(first_order=True)
    _, first = gradient(method, rows)
    start = method.initial_rows(ITEMS, rows.context).detach()
    slope = slopes(rows, 1, start - RATE * slopes(rows, 0, start))
    term = torch.zeros(DIM).double()
    for item in range(EPISODES):
        column = torch.autograd.functional.hessian(lambda v: rows.loss(0, v).sum(), start)[item, :, item]  # type: ignore
        term += RATE * column @ slope[item]
    assert term.abs().max() > 1e-3
    torch.testing.assert_close(second, first - term, rtol=0, atol=1e-7)


def test_meta_training_sets_out_from_the_common_initialisation() -> None:
    method = MeLU(method_config(name="melu"), DIM, CONTEXT).double()
    mean = torch.randn(DIM).double()
    items: Any = type("Items", (), {"mean_old_row": staticmethod(lambda: mean)})
    method.attach(items)
    rows = method.initial_rows(ITEMS, torch.randn(EPISODES, CONTEXT).double())
    assert torch.equal(rows, mean.expand(EPISODES, -1))


class Once(torch.autograd.Function):
    """x^2, with a gradient that cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


def test_second_order_with_a_backbone_that_has_no_second_derivative_is_the_users_error() -> None:
    def loss(v: torch.Tensor) -> torch.Tensor:
        out = Once.apply(v)
        assert isinstance(out, torch.Tensor)
        return out.sum(1)

    episodes = Episodes(ITEMS, torch.randn(EPISODES, CONTEXT).double(), loss, loss, normal)
    with pytest.raises(UserError, match=r"or take method\.first_order = true"):
        melu().episode_loss(episodes)
    melu(first_order=True).episode_loss(episodes).sum().backward()


@pytest.mark.parametrize("name", ["cvar", "gme", "melu"])
def test_a_method_that_makes_its_own_first_rows_takes_no_other(name: str) -> None:
    with pytest.raises(UserError, match=f"method '{name}' is an initialisation itself: leave the key out"):
        build_method(method_config(name=name, initialisation="mean"), DIM, CONTEXT)
