"""A picture of one item: how its score moved with its clicks, its scale and shift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mwuf_dist.evaluation.plots import _COLOURS, _INK, _SOFT, _clean, _figure, _save, plain_text


@plain_text()
def plot_item(
    title: str,
    history: Sequence[tuple[str, float]],
    scale: np.ndarray | None,
    shift: np.ndarray | None,
    nearest: Sequence[tuple[str, float]],
    path: Path,
) -> None:
    """Draws what there is of an item.

    Args:
        title: names the item.
        history: (phase, mean probability) at each moment in order; the last of each phase is the one that was scored.
        scale: [D] or None.
        shift: [D] or None.
        nearest: (name, cosine) of old items, best first.
        path: of the PNG.
    """
    wanted = [bool(history), scale is not None, True]
    figure = _figure(4.8 * sum(wanted), 3.8)
    panels = iter(np.atleast_1d(figure.subplots(1, sum(wanted))))
    if history:
        axes = next(panels)
        _clean(axes)
        axes.set_title("mean probability, same users", loc="left", fontsize=12, color=_INK)
        axes.plot([score for _, score in history], color=_COLOURS[0], linewidth=1.6, marker="o", markersize=3)
        for phase in dict.fromkeys(name for name, _ in history):
            last = max(place for place, (name, _) in enumerate(history) if name == phase)
            axes.axvline(last, color=_SOFT, linewidth=0.8, linestyle=":")
            where = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "right", "va": "top"}
            axes.annotate(phase, (last, 0.98), fontsize=9, color=_SOFT, **where)
        axes.set_xlabel("steps that trained the item", fontsize=10, color=_SOFT)
    if scale is not None and shift is not None:
        axes = next(panels)
        _clean(axes)
        axes.set_title("scale and shift", loc="left", fontsize=12, color=_INK)
        place = np.arange(len(scale))
        axes.bar(place - 0.2, scale, 0.4, color=_COLOURS[0], label="scale")
        axes.bar(place + 0.2, shift, 0.4, color=_COLOURS[1], label="shift")
        axes.set_xlabel("column of the embedding", fontsize=10, color=_SOFT)
        axes.legend(frameon=False, fontsize=10)
    axes = next(panels)
    _clean(axes)
    axes.set_title("nearest old items, cosine", loc="left", fontsize=12, color=_INK)
    names, cosines = [name for name, _ in nearest], [cosine for _, cosine in nearest]
    axes.barh(range(len(names)), cosines, color=_COLOURS[2])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    figure.supxlabel(title, fontsize=10, color=_SOFT, x=0.01, ha="left")
    _save(figure, path)
