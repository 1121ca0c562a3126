"""CSDM: the forward way is its formula, the reverse way undoes it, and the loss is clicks plus the noise's error."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mwuf_dist.config.registry import method_config
from mwuf_dist.methods.csdm import Csdm
from tests.methods.test_content_rows import loss_of
from tests.methods.test_metaemb import CONTEXT, DIM, EPISODES, ITEMS, Rows, normal

STEPS, LAST = 6, 0.3
CONFIG = method_config(
    name="csdm", diffusion_steps=STEPS, diffusion_jumps=3, diffusion_beta=LAST, diffusion_hidden=5, diffusion_weight=0.7
)


def coefficients() -> tuple[list[float], list[float]]:
    """(a_t, c_t) for t = 0, ..., T, by the formulas one step after another."""
    betas = [LAST / 200 + (LAST - LAST / 200) * r / (STEPS - 1) for r in range(STEPS)]
    kept = [1.0]
    for beta in betas:
        kept.append(kept[-1] * (1 - beta))
    added = [sum(math.sqrt(kept[t] * betas[r] / kept[r + 1]) for r in range(t)) for t in range(STEPS + 1)]
    return kept, [one / added[-1] for one in added]


def method() -> Csdm:
    torch.manual_seed(3)
    found = Csdm(CONFIG, DIM, CONTEXT).double()
    found.scale.fill_(0.2)
    return found


def test_the_forward_way_is_its_formula_and_ends_with_all_of_the_side_information() -> None:
    made, (kept, added) = method(), coefficients()
    rows, side, noise = torch.randn(3, 4, DIM, generator=torch.Generator().manual_seed(0)).double()
    for step in range(STEPS + 1):
        expected = math.sqrt(kept[step]) * rows + added[step] * side + math.sqrt(1 - kept[step]) * 0.2 * noise
        assert torch.allclose(made.forward_at(rows, side, noise, step), expected, atol=1e-6)
    mixed = made.forward_at(rows, side, noise, torch.tensor([0, 1, 3, STEPS]))
    for place, step in enumerate((0, 1, 3, STEPS)):
        assert torch.equal(mixed[place], made.forward_at(rows, side, noise, step)[place])
    assert added[0] == 0 and added[-1] == 1


def test_with_the_true_noise_the_reverse_way_gives_the_row_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = method()
    rows, side, noise = torch.randn(3, 4, DIM, generator=torch.Generator().manual_seed(1)).double()
    monkeypatch.setattr(made, "told", lambda x, step: noise)
    end = made.forward_at(rows, side, noise, STEPS)
    assert torch.allclose(made.reverse(end, side), rows, atol=1e-12)


def test_the_loss_is_that_of_clicks_at_the_reverse_ways_end_plus_the_error_of_the_noise() -> None:
    rows, made, (kept, added) = Rows(), method(), coefficients()
    old = torch.randn(EPISODES, DIM, generator=torch.Generator().manual_seed(2)).double()
    items: Any = SimpleNamespace(num_old=EPISODES, old_rows=lambda items: old[items])
    made.attach(items)
    found = made.episode_loss(rows.episodes())
    draws = normal(DIM + 1)
    for item in range(EPISODES):
        side = (made.side.weight @ rows.context[item] + made.side.bias).detach()
        x = side
        for step, following in ((6, 4), (4, 2), (2, 0)):
            noise = made.told(x[None], torch.tensor([step]))[0].detach()
            row = (x - added[step] * side - math.sqrt(1 - kept[step]) * 0.2 * noise) / math.sqrt(kept[step])
            x = math.sqrt(kept[following]) * row + added[following] * side
            x = x + math.sqrt(1 - kept[following]) * 0.2 * noise
        clicks = (loss_of(rows, 0, item, x) + loss_of(rows, 1, item, x)) / 2
        uniform = 0.5 * (1 + math.erf(float(draws[item, 0]) / math.sqrt(2)))
        step, noise = 1 + int(uniform * STEPS), draws[item, 1:]
        seen = math.sqrt(kept[step]) * old[item] + added[step] * side + math.sqrt(1 - kept[step]) * 0.2 * noise
        error = ((made.told(seen[None], torch.tensor([step]))[0].detach() - noise) ** 2).mean()
        assert found[item].item() == pytest.approx(clicks + 0.7 * float(error), abs=1e-5)
    found.sum().backward()
    for layer in (made.side, made.noise[0], made.noise[2]):
        assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0


def test_noise_is_as_loud_as_the_rows_of_old_items_say_from_the_first_episode_on() -> None:
    torch.manual_seed(4)
    made, rows = Csdm(CONFIG, DIM, CONTEXT).double(), Rows()
    old = 3 * torch.randn(EPISODES, DIM).double()
    items: Any = SimpleNamespace(num_old=EPISODES, old_rows=lambda items: old[items])
    made.attach(items)
    made.episode_loss(rows.episodes())
    assert float(made.scale) == pytest.approx(0.1 * float(old.std()), rel=1e-6)
    first = made.initial_rows(ITEMS, rows.context)
    assert torch.equal(first, made.reverse(made.side(rows.context), made.side(rows.context)))
