"""The study of exploration: regret is what its definition says, and policies meet the same worlds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import exploration
from benchmarks.exploration import BIAS, World, play, regret


def test_regret_is_the_best_probability_minus_that_of_the_item_shown_summed_over_days_by_brute_force() -> None:
    world = World.draw(seed=1, num_items=3, dim=2, num_days=4, num_users=5)
    chosen: list[list[int]] = []

    def policy(mean: torch.Tensor, deviation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        chosen.append(torch.randint(3, (5,), generator=generator).tolist())
        return torch.tensor(chosen[-1])

    found = play(world, policy, seed=2)
    total, expected = 0.0, []
    for day in range(4):
        for user in range(5):
            x = world.users[day, user].tolist()
            logits = [BIAS + sum(a * b for a, b in zip(x, row, strict=True)) for row in world.rows.tolist()]
            chances = [1 / (1 + math.exp(-logit)) for logit in logits]
            total += max(chances) - chances[chosen[day][user]]
        expected.append(total)
    assert found == pytest.approx(np.array(expected), abs=1e-12)
    assert total > 0


def test_knowing_the_truth_has_no_regret_and_every_policy_meets_the_same_world() -> None:
    world, again = World.draw(3, 4, 3, 2, 6), World.draw(3, 4, 3, 2, 6)
    assert all(torch.equal(getattr(world, name), getattr(again, name)) for name in ("rows", "users", "luck"))
    probability = world.probability(world.users[0])
    assert torch.equal(regret(probability, probability.argmax(1)), torch.zeros(6).double())
    found = exploration.curves([world])
    assert set(found) == set(exploration.POLICIES)
    assert all(values.shape == (1, 2) and (np.diff(values) >= 0).all() for values in found.values())


def test_policies_show_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, deviation = torch.tensor([[0.0, 1.0]]).expand(4_000, -1).double(), torch.ones(4_000, 2).double()
    assert exploration.greedy(mean, deviation, generator).eq(1).all()
    # Of a difference N(1, 2) the probability that it is above zero, and of a fifth of users half; four standard errors.
    for policy, share in ((exploration.thompson, 0.7602), (exploration.epsilon_greedy(0.2), 0.9)):
        shown = policy(mean, deviation, generator).double().mean()
        assert float(shown) == pytest.approx(share, abs=4 * (share * (1 - share) / 4_000) ** 0.5)
