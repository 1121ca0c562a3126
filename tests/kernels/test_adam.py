"""Adam of whole parameters is that of torch's optimizer, and that of single rows is it at each row's own step."""

from __future__ import annotations

import pytest
import torch
from mwuf_kernels import AdamSettings, adam_step_, adam_step_by_row_
from mwuf_kernels import adam as adam_module


def test_adam_is_that_of_torchs_optimizer_whatever_the_strides_of_a_gradient() -> None:
    draws = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=draws) for shape in ((31, 33), (5,), (1, 700))]
    expected = [parameter.clone().requires_grad_() for parameter in parameters]
    adam = torch.optim.AdamW(expected, lr=0.01, weight_decay=0.1)
    moments = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    for step in (1.0, 2.0, 3.0):
        # Transposed in memory, where there are two dimensions.
        gradients = [torch.randn(p.shape[::-1], generator=draws).T for p in parameters]
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient.contiguous()
        adam.step()
        adam_step_(parameters, gradients, moments, torch.tensor(step), AdamSettings(0.01, 0.1))
    # Both round parameters of up to 4 to 24 bits, in each step once.
    torch.testing.assert_close(parameters, [p.detach() for p in expected], rtol=1e-6, atol=1e-7)


def test_threads_share_large_parameters_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam_module, "_SHARED_FROM", 100)
    shapes, found = ((99,), (1001, 3), (64,), (1, 130)), []
    for number in (1, 2, 3, 8):
        monkeypatch.setattr(adam_module, "num_threads", lambda number=number: number)
        draws = torch.Generator().manual_seed(0)
        parameters = [torch.randn(shape, generator=draws).requires_grad_() for shape in shapes]
        moments = [torch.zeros(shape) for shape in shapes], [torch.zeros(shape) for shape in shapes]
        for step in (1.0, 2.0):
            gradients = [torch.randn(shape, generator=draws) for shape in shapes]
            adam_step_(parameters, gradients, moments, torch.tensor(step), AdamSettings(0.01, 0.1))
        found.append([*(p.detach() for p in parameters), *moments[0], *moments[1]])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_a_row_at_a_step_of_its_own_moves_as_adam_moves_it_at_that_step() -> None:
    gradients = [torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    rows, first, second = (torch.zeros(3, 4, dtype=torch.float64) for _ in range(3))
    taken = torch.zeros(3, dtype=torch.int64)
    for step, gradient in enumerate(gradients):
        live = slice(0, 3 if step < 2 else 2)  # the last row takes two steps
        taken[live] += 1
        moments = (first[live], second[live])
        adam_step_by_row_(rows[live], gradient[live], moments, taken[live], AdamSettings(0.1))
    for row in range(3):
        expected = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([expected], lr=0.1)
        for gradient in gradients[: int(taken[row])]:
            expected.grad = gradient[row].clone()
            adam.step()
        torch.testing.assert_close(rows[row], expected.detach(), rtol=1e-12, atol=1e-12)
