"""Clicks lost while new items are learned: Thompson sampling from the posterior of `map`, epsilon-greedy, and the mean.

    python -m benchmarks.exploration --plot runs/exploration.png

A made-up world whose truth is known: the row of each of so many new items is drawn from the prior that `map` assumes, a
user is a vector with a constant in front, and a click has the probability sigmoid(bias + row . user). Each day so many
users come, and a policy shows each of them one item; at night `map` fits all rows to all clicks so far, as `mwuf warm`
does. Regret is the sum, over users, of the probability of the best item minus that of the one that was shown: clicks
lost for not knowing the truth. Worlds and users are the same for every policy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import Figure, Record, Row, command_line, table
from mwuf_dist.config.registry import method_config
from mwuf_dist.methods.lines import Lines
from mwuf_dist.methods.map import Map

PRECISION = 1.5  # of the prior: the default of `map`
BIAS = -2.0  # an item of zero row is clicked by one user in eight
# (mean score, its standard deviation, random numbers) [users, items] -> which item each user is shown [users].
Policy = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class World:
    """Holds the truth.

    Attributes:
        rows: of the items [I, D].
        users: of each day [days, users, D].
        luck: uniform draws that decide clicks [days, users].
    """

    rows: torch.Tensor
    users: torch.Tensor
    luck: torch.Tensor

    @classmethod
    def draw(cls, seed: int, num_items: int, dim: int, num_days: int, num_users: int) -> World:
        """Draws a world, by the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(num_items, dim, generator=generator).double() / PRECISION**0.5
        users = torch.randn(num_days, num_users, dim, generator=generator).double() / (dim - 1) ** 0.5
        users[:, :, 0] = 1.0
        return cls(rows, users, torch.rand(num_days, num_users, generator=generator).double())

    def probability(self, users: torch.Tensor) -> torch.Tensor:
        """Computes the probability of a click of users [n, D] on every item [n, I]."""
        return torch.sigmoid(BIAS + users @ self.rows.T)


def greedy(mean: torch.Tensor, deviation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shows what is best by the mean."""
    # Nothing tells items apart on the first day: by chance, and not the first of them to all.
    return (mean + 1e-9 * torch.rand(mean.shape, generator=generator)).argmax(1)


def epsilon_greedy(epsilon: float) -> Policy:
    """Makes a policy that shows any item to a fraction of the users, and what is best by the mean to the others."""

    def policy(mean: torch.Tensor, deviation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        best = greedy(mean, deviation, generator)
        anything = torch.randint(mean.shape[1], best.shape, generator=generator)
        return torch.where(torch.rand(best.shape, generator=generator) < epsilon, anything, best)

    return policy


def thompson(mean: torch.Tensor, deviation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shows what is best by a draw from the posterior."""
    return (mean + deviation * torch.randn(mean.shape, generator=generator).double()).argmax(1)


POLICIES: dict[str, Policy] = {
    "thompson": thompson,
    "mean": greedy,
    "epsilon .05": epsilon_greedy(0.05),
    "epsilon .1": epsilon_greedy(0.1),
    "epsilon .2": epsilon_greedy(0.2),
}


def regret(probability: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Computes what each user lost [n]: the best of the probabilities [n, I] minus that of the item shown [n]."""
    return probability.max(1).values - probability.gather(1, shown[:, None]).squeeze(1)


def play(world: World, policy: Policy, seed: int) -> np.ndarray:
    """Plays all days; returns the regret until the end of each [days]."""
    num_items, dim = world.rows.shape
    method = Map(method_config(name="map", prior_precision=PRECISION), dim, 1)
    generator = torch.Generator().manual_seed(seed)
    start = torch.zeros(num_items, dim).double()
    rows, covariance = start, torch.eye(dim).double().expand(num_items, -1, -1) / PRECISION
    items: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    lost = []
    for day, users in enumerate(world.users):
        deviation = torch.einsum("nd,ide,ne->ni", users, covariance, users).clamp(min=0).sqrt()
        shown = policy(users @ rows.T, deviation, generator)
        probability = world.probability(users)
        lost.append(float(regret(probability, shown).sum()))
        items.append(shown)
        labels.append((world.luck[day] < probability.gather(1, shown[:, None]).squeeze(1)).double())
        item, label = torch.cat(items), torch.cat(labels)
        slope = world.users[: day + 1].flatten(0, 1)
        lines = Lines(item, torch.full_like(label, BIAS), slope)
        rows = method.fit(start, lines, label)
        covariance = method.covariance(rows, lines)
    return np.cumsum(lost)


def curves(worlds: Sequence[World]) -> dict[str, np.ndarray]:
    """Regret of each policy in each world by the day [worlds, days]."""
    return {
        name: np.stack([play(world, policy, seed) for seed, world in enumerate(worlds)])
        for name, policy in POLICIES.items()
    }


def rows_of(found: dict[str, np.ndarray]) -> list[Row]:
    """The record's rows: Thompson sampling beside each other policy, with its curve."""
    ours = found["thompson"]
    rows = []
    for name, theirs in found.items():
        if name == "thompson":
            continue
        gap = theirs[:, -1] - ours[:, -1]
        more = {
            "less_regret_mean": float(gap.mean()),
            "less_regret_standard_error": float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else None,
            "curve_ours_mean": [round(value, 1) for value in ours.mean(0).tolist()],
            "curve_mean": [round(value, 1) for value in theirs.mean(0).tolist()],
        }
        figures = Figure.of("thompson", ours[:, -1].tolist()), Figure.of(name, theirs[:, -1].tolist())
        rows.append(Row("regret", "clicks lost", False, *figures, config={"policy": name}, more=more))
    return rows


def plot(found: dict[str, np.ndarray], path: Path) -> None:
    """Draws the curves: means over worlds, and from the 10 to the 90 % quantile of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, values in found.items():
        days = np.arange(1, values.shape[1] + 1)
        (line,) = axes.plot(days, values.mean(0), label=name)
        low, high = np.quantile(values, (0.1, 0.9), axis=0)
        axes.fill_between(days, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xlabel("day")
    axes.set_ylabel("regret: clicks lost so far")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--days", type=int, default=120)
    parser.add_argument("--users", type=int, default=200, help="users a day")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--plot", type=Path, help="picture of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = options.items, options.dim, options.days, options.users
    found = curves([World.draw(seed, *sizes) for seed in range(options.worlds)])
    config = {"worlds": options.worlds, "items": options.items, "dim": options.dim}
    config |= {"days": options.days, "users_a_day": options.users, "prior_precision": PRECISION, "bias": BIAS}
    question = "Clicks lost while new items are learned: Thompson sampling (ours), and other policies (the alternative)"
    record = Record(question, command_line("exploration", sys.argv[1:]), config, rows_of(found), threads=1)
    print(table([record]))
    if options.output:
        record.write(options.output)
    if options.plot:
        plot(found, options.plot)
        print(options.plot)


if __name__ == "__main__":
    main()
