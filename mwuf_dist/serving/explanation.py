"""An explanation of an item or a user: what it holds, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from mwuf_dist.data.schema import Side
from mwuf_dist.evaluation.item_plot import NEAR, OTHERS, ItemView
from mwuf_dist.serving.item_moves import Applied, Moving
from mwuf_dist.serving.served_state import SERVED
from mwuf_dist.serving.sides import NUM_OTHERS

# Scores of a phase that are printed, unless all are asked for.
_NUM_PRINTED = 12

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """The item's score at one moment: in `phase`, after `clicks` of its rows have been trained on in that phase.

    `embedding` [D] is what was scored.
    """

    phase: str
    clicks: int
    score: float
    embedding: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32), repr=False, compare=False)


@dataclass
class Explanation:
    """Holds what is known about one item, or one user.

    Attributes:
        item_id: raw ID, of the item or the user.
        phase: of the item, or "old"; of a user, whether it is of the run, and has a row of its own.
        interactions: number of its rows that the model has seen.
        positives: fraction of clicks among its rows of each finished set that has some, by the set's name.
        scale: [D], None for an old item or a method without scaling and shifting.
        shift: [D], the same.
        nearest: (raw ID, cosine) of the old items (users of the run) nearest by what the backbone reads, best first.
        history: mean probability over the same random users (items) at each moment, those of the run before those of
            the interactions that `mwuf warm` has brought; empty for an old item or a user of the run.
        moving: the neighbours at some of these moments, the last of each phase among them; None for an old item.
        applied: the deltas that changed the item or retired one of its ID.
        words: what the fields of the item and of the nearest ones hold, by raw ID, for own logs.
        replay_error: largest difference of the item's replayed row of phi_new to that of the checkpoint.
        side: item or user.
    """

    item_id: Any
    phase: str
    interactions: int
    positives: dict[str, float]
    scale: np.ndarray | None
    shift: np.ndarray | None
    nearest: list[tuple[Any, float]]
    history: list[Point] = field(default_factory=list)
    replay_error: float = 0.0
    words: dict[Any, str] = field(default_factory=dict)
    moving: Moving | None = None
    applied: list[Applied] = field(default_factory=list)
    side: Side = "item"

    def text(self, every_step: bool = False) -> str:
        """Gives for a terminal: of each phase at most a dozen scores, denser at its beginning, unless `every_step`."""
        lines = [f"{self.side} {self.item_id}: {self.phase}, {self.interactions} interactions seen"]
        lines += [f"  {words}"] if (words := self.words.get(self.item_id)) else []
        lines += [f"  clicks in {name}: {share:.0%}" for name, share in self.positives.items()]
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            if values is not None:
                numbers = " ".join(f"{value:+.3f}" for value in values)
                lines.append(f"{name} (mean {values.mean():+.4f}, norm {np.linalg.norm(values):.4f}): {numbers}")
        lines.append(f"nearest {NEAR[self.side]} by cosine of the embeddings")
        lines += [f"  {cosine:+.4f}  {one}   {self.words.get(one, '')}".rstrip() for one, cosine in self.nearest]
        if self.history:
            what = f"mean probability over the same {NUM_OTHERS} random {OTHERS[self.side]}"
            lines.append(f"{what}, after so many of its rows in a phase, every pass counted")
            for phase in dict.fromkeys(point.phase for point in self.history):
                points = [point for point in self.history if point.phase == phase]
                chosen = points if every_step else thinned(points)
                lines.append(f"  {phase:>7}  " + "  ".join(f"{point.clicks}: {point.score:.4f}" for point in chosen))
        for one in self.applied if every_step else thinned(self.applied):
            what = "retired" if one.score is None else f"{one.interactions} interactions: {one.score:.4f}"
            lines.append(f"  delta {one.number}  {what}")
        if any(point.phase != SERVED for point in self.history):
            lines.append(
                f"(the run's warm-up was done again; its row is the checkpoint's within {self.replay_error:.1e})"
            )
        return "\n".join(lines)

    def view(self) -> ItemView:
        """Returns for a picture and a page."""
        facts = {"phase": self.phase, "interactions seen": f"{self.interactions:,}"}
        facts |= {f"clicks in {name}": f"{fraction:.0%}" for name, fraction in self.positives.items()}
        facts |= {"fields": words} if (words := self.words.get(self.item_id)) else {}
        moving = self.moving or Moving([], [], np.empty((0, 0)), [])
        return ItemView(
            title=f"{self.side} {self.item_id}",
            side=self.side,
            facts=facts,
            history=[(point.phase, point.clicks, point.score) for point in self.history],
            scale=self.scale,
            shift=self.shift,
            nearest=[(str(one), cosine) for one, cosine in self.nearest],
            moments=moving.moments,
            neighbours=[str(one) for one in moving.item_ids],
            cosine=moving.cosine,
            nearest_then=[[(str(one), cosine) for one, cosine in near] for near in moving.nearest],
            deltas=[(one.number, one.interactions, one.score) for one in self.applied],
        )


def thinned(points: list[T], num: int = _NUM_PRINTED) -> list[T]:
    """Picks at most `num` points, first and last among them, at positions that grow by about the same factor."""
    if len(points) <= num:
        return points
    places = np.geomspace(1, len(points), num).round().astype(int) - 1
    return [points[place] for place in np.unique(places)]
