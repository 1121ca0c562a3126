"""A picture of one item warming up: its score against its clicks, its neighbours, the deltas that brought it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mwuf_dist.evaluation.plots import _COLOURS, _INK, _SOFT, _clean, _figure, _save, _write_names, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMES = 8  # Neighbours that are drawn as lines.
_IN_A_LINE = 3  # Panels side by side.

# By the side that is looked at: over whom its score is a mean, and who is compared.
OTHERS = {"item": "users", "user": "items"}
NEAR = {"item": "old items", "user": "users of the run"}


@dataclass(frozen=True)
class ItemView:
    """Holds what is shown of an item, or a user.

    Attributes:
        title: names the item.
        facts: further words, by what they are about.
        history: (phase, clicks in the phase, mean probability) at each moment in order; the last of each phase is the
            one that was scored.
        scale: [D] or None.
        shift: [D] or None.
        nearest: (name, cosine) of old items (users of the run), best first.
        moments: places in the history at which neighbours were looked for, ascending [M].
        neighbours: names [n] of the old items that were nearest at the first or the last of them.
        cosine: of these at each moment [M, n].
        nearest_then: at each moment (name, cosine) of the nearest, best first.
        deltas: (number, interactions after it, mean probability after it; None where it retired the item).
        side: item or user.
    """

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    history: Sequence[tuple[str, int, float]] = ()
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    nearest: Sequence[tuple[str, float]] = ()
    moments: Sequence[int] = ()
    neighbours: Sequence[str] = ()
    cosine: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    nearest_then: Sequence[Sequence[tuple[str, float]]] = ()
    deltas: Sequence[tuple[int, int, float | None]] = ()
    side: str = "item"


@plain_text()
def plot_item(view: ItemView, path: Path) -> None:
    """Draws what there is of an item into a PNG file, a panel for each part."""
    wanted = {
        _draw_scores: bool(view.history),
        _draw_neighbours: bool(view.moments and len(view.neighbours)),
        _draw_deltas: any(score is not None for _, _, score in view.deltas),
        _draw_scale_and_shift: view.scale is not None,
        _draw_nearest: True,
    }
    panels = [draw for draw, is_wanted in wanted.items() if is_wanted]
    columns = min(len(panels), _IN_A_LINE)
    lines = -(-len(panels) // columns)
    figure = _figure(4.8 * columns, 3.8 * lines)
    every_axes = np.atleast_1d(figure.subplots(lines, columns)).reshape(-1)
    for axes in every_axes[len(panels) :]:
        axes.set_visible(False)
    for draw, axes in zip(panels, every_axes, strict=False):
        draw(axes, view)
    figure.supxlabel(view.title, fontsize=10, color=_SOFT, x=0.01, ha="left")
    if _draw_neighbours in panels:
        figure.draw_without_rendering()  # lays the panels out, which names at line ends need
        _name_neighbours(every_axes[panels.index(_draw_neighbours)], view)
    _save(figure, path)


def _titled(axes: Axes, title: str, below: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=12, color=_INK)
    axes.set_xlabel(below, fontsize=10, color=_SOFT)


def _draw_scores(axes: Axes, view: ItemView) -> None:
    _clean(axes)
    _titled(axes, f"mean probability, same {OTHERS[view.side]}", f"steps that trained the {view.side}")
    axes.plot([score for *_, score in view.history], color=_COLOURS[0], linewidth=1.6, marker="o", markersize=3)
    _mark_phases(axes, view)


def _mark_phases(axes: Axes, view: ItemView) -> None:
    """Draws a line at the end of each phase."""
    for phase in dict.fromkeys(name for name, *_ in view.history):
        last = max(place for place, (name, *_) in enumerate(view.history) if name == phase)
        axes.axvline(last, color=_SOFT, linewidth=0.8, linestyle=":")
        where = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "top"}
        axes.annotate(phase, (last, 0.98), fontsize=9, color=_SOFT, **where)


def _draw_neighbours(axes: Axes, view: ItemView) -> None:
    _clean(axes)
    _titled(axes, f"cosine to {NEAR[view.side]}", f"steps that trained the {view.side}")
    for number in range(min(len(view.neighbours), _MOST_NAMES)):
        axes.plot(view.moments, view.cosine[:, number], color=_COLOURS[number], linewidth=1.5, marker="o", markersize=2)
    last = view.moments[-1]
    axes.set_xlim(-0.02 * last, max(1.4 * last, 1.0))  # names stand behind the lines
    _mark_phases(axes, view)


def _name_neighbours(axes: Axes, view: ItemView) -> None:
    ends: list[tuple[float, str, str]] = [
        (end, _cut(name), colour)
        for end, name, colour in zip(view.cosine[-1].tolist(), view.neighbours, _COLOURS, strict=False)
    ]
    _write_names(axes, ends[:_MOST_NAMES], view.moments[-1], view.moments[-1] or 1.0)


def _cut(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _draw_deltas(axes: Axes, view: ItemView) -> None:
    _clean(axes)
    _titled(axes, "mean probability after each delta", "interactions that the server knows of")
    known = [(number, clicks, score) for number, clicks, score in view.deltas if score is not None]
    clicks, scores = [clicks for _, clicks, _ in known], [score for *_, score in known]
    axes.plot(clicks, scores, color=_COLOURS[1], drawstyle="steps-post", linewidth=1.4, marker="o", markersize=4)
    for number, click, score in (known[0], known[-1]) if len(known) > 1 else known:
        axes.annotate(f"delta {number}", (click, score), (4, 5), textcoords="offset points", fontsize=9, color=_SOFT)
    axes.margins(0.12)


def _draw_scale_and_shift(axes: Axes, view: ItemView) -> None:
    assert view.scale is not None and view.shift is not None
    _clean(axes)
    _titled(axes, "scale and shift", "column of the embedding")
    place = np.arange(len(view.scale))
    axes.bar(place - 0.2, view.scale, 0.4, color=_COLOURS[0], label="scale")
    axes.bar(place + 0.2, view.shift, 0.4, color=_COLOURS[1], label="shift")
    axes.legend(frameon=False, fontsize=10)


def _draw_nearest(axes: Axes, view: ItemView) -> None:
    _clean(axes)
    _titled(axes, "nearest old items, cosine")
    names, cosines = [_cut(name) for name, _ in view.nearest], [cosine for _, cosine in view.nearest]
    axes.barh(range(len(names)), cosines, color=_COLOURS[2])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
