"""Pictures of a comparison and of a run, as PNG files.

Matplotlib's objects are used directly (a Figure with the Agg canvas), never pyplot: no global state, no display.
Colours are from the Okabe-Ito and Tol palettes, which keep apart for colour-blind readers; lines are named at their
ends rather than in a legend, so that no colour has to be matched at all.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mwuf_dist.config import PHASES
from mwuf_dist.evaluation.comparison import SCORINGS, row_label
from mwuf_dist.evaluation.tables import SCORING_NAMES, speed, stage_names
from mwuf_dist.files import write_atomically

# Matplotlib takes a second to import, which a run that is started again should not lose: it is needed at the end only.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#882255", "#999933", "#7f7f7f",
)  # fmt: skip
_MARKERS = "osD^vPX*h<>"
_BROKEN_LINES = ((0, (7, 1.2, 1, 1.2)), (0, (1, 0.8)), (0, (7, 1.2, 1, 1.2, 1, 1.2)), (0, (9, 2)), (0, (2, 2, 6, 2)))
_INK, _SOFT, _GRID = "#1a1f26", "#5c6670", "#e4e8eb"
_DPI = 160


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Draws labels as they are within it, and as a decorator: a $ in a name begins no formula."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):
        yield


@plain_text()
def plot_phases(comparison: dict[str, Any], path: Path) -> None:
    """Plots AUC over the four phases, one panel per scoring.

    A line per row; its band is one standard deviation over seeds. The Bayes ceiling is dashed where the data has one;
    the paper's figures are faint open markers where it has the row.
    """
    figure = _figure(11.5, max(4.4, 1.6 + 0.3 * len(comparison["rows"])))
    panels = figure.subplots(1, 2, sharey=True)
    styles = _row_styles(comparison["rows"])
    for scoring, axes in zip(SCORINGS, panels, strict=True):
        _clean(axes)
        axes.set_title(f"AUC, {SCORING_NAMES[scoring]}", loc="left", fontsize=12, color=_INK)
        axes.set_xticks(range(len(PHASES)), PHASES, fontsize=11)
        axes.set_xlim(-0.15, len(PHASES) - 0.85)
        axes.yaxis.set_tick_params(labelleft=True)
        for row, style in zip(comparison["rows"], styles, strict=True):
            _draw_row(axes, row, scoring, style)
        if comparison["ceiling"]:
            values = _floats(comparison["ceiling"][scoring].values())
            axes.plot(values, color=_SOFT, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
    _caption_phases(figure, comparison)
    figure.draw_without_rendering()  # lays the panels out: how far names must stand apart follows from their height
    _name_line_ends(panels, comparison)
    _save(figure, path)


def _draw_row(axes: Axes, row: dict[str, Any], scoring: str, style: dict[str, Any]) -> None:
    summaries = [row["phases"][phase][f"auc_{scoring}"] for phase in PHASES]
    means = _floats(summary["mean"] for summary in summaries)
    spreads = _floats(summary["std"] for summary in summaries)
    axes.plot(means, markersize=5.5, markeredgewidth=0, **style)
    low, high = means - spreads, means + spreads
    axes.fill_between(range(len(PHASES)), low, high, color=style["color"], alpha=0.16, linewidth=0)
    if row["published"] and scoring == "next":
        published = _floats(row["published"]["auc_next"].values())
        axes.plot(
            published, linestyle="none", marker=style["marker"], markersize=7.5, markerfacecolor="none",
            markeredgecolor=style["color"], markeredgewidth=1.1, alpha=0.5,
        )  # fmt: skip


def _row_styles(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns colour, marker and line of each row.

    One backbone: a colour per row. Several: the colour is the backbone and the marker the method, so that a method
    stands beside its own base; there the lines of methods other than MWUF are broken, as one backbone may have many.
    The base is dashed everywhere.
    """
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    kinds = list(dict.fromkeys((row["method"], row["variant"]) for row in rows))
    others = [name for name in dict.fromkeys(row["method"] for row in rows) if name not in ("base", "mwuf")]
    lines: dict[str, Any] = {"base": (0, (3, 1.5)), "mwuf": "-"}
    lines |= {name: _BROKEN_LINES[index % len(_BROKEN_LINES)] for index, name in enumerate(others)}
    styles = []
    for index, row in enumerate(rows):
        kind = kinds.index((row["method"], row["variant"]))
        colour = backbones.index(row["backbone"]) if len(backbones) > 1 else index
        is_base = row["method"] == "base"
        styles.append(
            {
                "color": _COLOURS[colour % len(_COLOURS)],
                "marker": _MARKERS[kind % len(_MARKERS)],
                "linestyle": lines[row["method"]] if is_base or len(backbones) > 1 else "-",
                "linewidth": 1.6 if is_base else 2.0,
            }
        )
    return styles


def _name_line_ends(panels: Any, comparison: dict[str, Any]) -> None:
    """Names right of each panel, at their lines' ends, pushed apart where they would overlap."""
    rows, styles = comparison["rows"], _row_styles(comparison["rows"])
    one_backbone = len({row["backbone"] for row in rows}) == 1
    for scoring, axes in zip(SCORINGS, panels, strict=True):
        names = []
        for row, style in zip(rows, styles, strict=True):
            end = row["phases"][PHASES[-1]][f"auc_{scoring}"]["mean"]
            if end is not None:
                names.append((end, _short_label(row, one_backbone), style["color"]))
        ceiling = comparison["ceiling"] and comparison["ceiling"][scoring][PHASES[-1]]
        if ceiling:
            names.append((ceiling, "Bayes ceiling", _SOFT))
        _write_names(axes, names, len(PHASES) - 1, len(PHASES))


def _write_names(axes: Axes, names: list[tuple[float, str, str]], last: float, width: float) -> None:
    """Writes (height, name, colour) right of x = `last`, in a panel that shows about `width` of x."""
    names = sorted(names, key=lambda name: name[0])
    low, high = axes.get_ylim()
    height_points = axes.get_window_extent().height * 72 / axes.figure.dpi
    gap = 13.0 * (high - low) / height_points
    heights = spread_apart([end for end, _, _ in names], gap)
    for (end, label, colour), height in zip(names, heights, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "lw": 0.7, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 0}
        axes.annotate(
            label, xy=(last + 0.008 * width, end), xytext=(last + 0.06 * width, height), color=colour, va="center",
            fontsize=10, annotation_clip=False, arrowprops=leader,
        )  # fmt: skip


def _short_label(row: dict[str, Any], one_backbone: bool) -> str:
    return row["label"].removeprefix(f"{row['backbone']} / ") if one_backbone else row["label"]


@plain_text()
def plot_clicks(comparison: dict[str, Any], path: Path) -> None:
    """Plots AUC against an item's clicks so far: a line per row, banded by one standard deviation over seeds.

    A point stands over the middle of its bucket, that of the rows after the last warm set over its beginning. Where the
    model learns of a warm set, a dotted line stands.
    """
    rows, styles = comparison["rows"], _row_styles(comparison["rows"])
    figure = _figure(11.5, max(4.6, 1.6 + 0.3 * len(rows)))
    axes = figure.subplots()
    _clean(axes)
    axes.set_title("AUC by clicks of the item, next set", loc="left", fontsize=12, color=_INK)
    axes.set_xlabel("labelled rows that the item had before the scored one", fontsize=10, color=_SOFT)
    one_backbone = len({row["backbone"] for row in rows}) == 1
    names: list[tuple[float, str, str]] = []
    last = 0.0
    for row, style in zip(rows, styles, strict=True):
        curve = [bucket for bucket in row["auc_by_clicks"] if bucket["auc"]["mean"] is not None]
        if not curve:
            continue
        places = [b["from"] if b["to"] is None else (b["from"] + b["to"] - 1) / 2 for b in curve]
        means = _floats(bucket["auc"]["mean"] for bucket in curve)
        spreads = np.nan_to_num(_floats(bucket["auc"]["std"] for bucket in curve))
        axes.plot(places, means, markersize=4.5, markeredgewidth=0, **style)
        axes.fill_between(places, means - spreads, means + spreads, color=style["color"], alpha=0.16, linewidth=0)
        names.append((means[-1], _short_label(row, one_backbone), style["color"]))
        last = max(last, places[-1])
    for end in _ends_of_warm_sets(comparison):
        axes.axvline(end - 0.5, color=_SOFT, linewidth=0.9, linestyle=":")
    last = last or 1.0  # no row has a point
    axes.set_xlim(-0.02 * last, 1.02 * last)
    _caption_phases(figure, comparison, markers=False)
    figure.draw_without_rendering()
    _write_names(axes, names, 1.02 * last, 0.8 * last)
    _save(figure, path)


def _ends_of_warm_sets(comparison: dict[str, Any]) -> list[int]:
    """Returns the click counts at which the model has learned from one more warm set: K, 2K, 3K."""
    bounds = [bucket["from"] for row in comparison["rows"] for bucket in row["auc_by_clicks"] if bucket["to"] is None]
    return [max(bounds) * part // 3 for part in (1, 2, 3)] if bounds else []


def spread_apart(heights: list[float], gap: float) -> list[float]:
    """Returns the nearest heights (least squares) in the same order that stand at least `gap` apart.

    Args:
        heights: ascending, in any unit.
        gap: least distance of neighbours.

    Returns:
        As many heights, ascending. Solved by pooling neighbours: a cluster stands around the mean of its members.
    """
    clusters: list[list[float]] = []  # members' wished heights, each less its offset within the cluster's own stack
    for index, height in enumerate(heights):
        clusters.append([height - index * gap])
        while len(clusters) > 1 and np.mean(clusters[-2]) > np.mean(clusters[-1]):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    pooled = [float(np.mean(cluster)) for cluster in clusters for _ in cluster]
    return [height + index * gap for index, height in enumerate(pooled)]


def _caption_phases(figure: Figure, comparison: dict[str, Any], markers: bool = True) -> None:
    backbones = {row["backbone"] for row in comparison["rows"]}
    notes = [f"{comparison['dataset']}, {backbones.pop()}" if len(backbones) == 1 else comparison["dataset"]]
    num_seeds = len(comparison["seeds"])
    notes.append(f"bands: ± 1 standard deviation, {num_seeds} seeds" if num_seeds > 1 else "one seed")
    if comparison["published_source"] and markers:
        notes.append(f"open markers: {comparison['published_source'].split(',')[0]} {_year(comparison)}")
    figure.supxlabel("   ·   ".join(notes), fontsize=10, color=_SOFT, x=0.01, ha="left")


def _year(comparison: dict[str, Any]) -> str:
    return comparison["published_source"].split(",")[1].split()[-1]


@plain_text()
def plot_speed(comparison: dict[str, Any], path: Path) -> None:
    """Plots samples per second: a panel per stage, a bar per row, the number at its end."""
    rows, stages = comparison["rows"], stage_names(comparison)
    figure = _figure(11.5, 1.3 + 0.34 * len(rows))
    panels = np.atleast_1d(figure.subplots(1, max(1, len(stages)), sharey=True))
    colours = [style["color"] for style in _row_styles(rows)]
    for stage, axes in zip(stages, panels, strict=False):
        summaries = [row["stages"].get(stage, {}).get("samples_per_s", {}) for row in rows]
        values = [summary.get("mean") for summary in summaries]
        axes.barh(range(len(rows)), [value or 0.0 for value in values], color=colours, height=0.62)
        for index, value in enumerate(values):
            axes.annotate(
                speed(value), (value or 0.0, index), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=10, color=_INK if value else _SOFT,
            )  # fmt: skip
        axes.set_title(stage, loc="left", fontsize=12, color=_INK)
        axes.set_xlim(0, 1.32 * max((value or 0.0 for value in values), default=1.0))
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(_SOFT)
        axes.tick_params(axis="y", length=0, colors=_INK)
    panels[0].set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=10.5)
    panels[0].invert_yaxis()
    figure.supxlabel("samples per second", fontsize=10, color=_SOFT, x=0.01, ha="left")
    _save(figure, path)


@plain_text()
def plot_run(metrics: list[dict[str, Any]], results: dict[str, Any], path: Path) -> None:
    """Plots training curves of one run: a panel of losses per trained stage, and its AUC over the phases.

    Args:
        metrics: rows of `metrics.jsonl`; of each, `stage`, `samples` (seen in the stage, or in the phase or part where
            the row names a `phase` or `part`) and every number whose name starts with `loss` are read. Rows without a
            loss are skipped.
        results: the run's `results.json`.
        path: the PNG file to write.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    curves = _loss_curves(metrics)
    figure = _figure(3.9 * (len(curves) + 1), 3.7)
    panels = np.atleast_1d(figure.subplots(1, len(curves) + 1))
    for (stage, lines), axes in zip(curves.items(), panels, strict=False):
        _clean(axes)
        axes.set_title(f"{stage}: loss", loc="left", fontsize=12, color=_INK)
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("samples", fontsize=10, color=_SOFT)
        for (name, points), colour in zip(lines.items(), _COLOURS, strict=False):
            _draw_curve(axes, np.array(points), name, colour)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=10, handlelength=1.4)
    _draw_run_auc(panels[-1], results)
    label = row_label(results["backbone"], results["method"], results.get("variant", ""))
    note = f"{results['dataset']}   ·   {label}   ·   seed {results['seed']}"
    figure.supxlabel(note, fontsize=10, color=_SOFT, x=0.01, ha="left")
    _save(figure, path)


def _loss_curves(metrics: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Returns (samples, loss) pairs by stage and name of the line."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in metrics:
        for key, value in row.items():
            if key.startswith("loss") and isinstance(value, int | float):
                loss = "" if key == "loss" else key.replace("_", " ")
                name = " ".join(part for part in (row.get("phase") or row.get("part"), loss) if part) or "loss"
                curves.setdefault(row["stage"], {}).setdefault(name, []).append((row["samples"], value))
    return curves


def _draw_curve(axes: Axes, points: np.ndarray, name: str, colour: str) -> None:
    """Draws a loss over samples, [n, 2]; a long one faint, with its running mean over a fiftieth of it on top."""
    window = len(points) // 50
    if window < 2:
        axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.6, label=name)
        return
    sums = np.cumsum(np.vstack((np.zeros(2), points)), axis=0)
    running = (sums[window:] - sums[:-window]) / window
    axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=0.6, alpha=0.25)
    axes.plot(running[:, 0], running[:, 1], color=colour, linewidth=1.8, label=name)


def _draw_run_auc(axes: Axes, results: dict[str, Any]) -> None:
    _clean(axes)
    axes.set_title("AUC over the phases", loc="left", fontsize=12, color=_INK)
    axes.set_xticks(range(len(PHASES)), PHASES)
    for scoring, colour, marker in zip(SCORINGS, _COLOURS, _MARKERS, strict=False):
        values = _floats(results["phases"].get(phase, {}).get(f"auc_{scoring}") for phase in PHASES)
        axes.plot(values, color=colour, marker=marker, linewidth=1.8, markersize=5, label=SCORING_NAMES[scoring])
    axes.legend(frameon=False, fontsize=10, loc="best")


def _figure(width_inches: float, height_inches: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width_inches, height_inches), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _floats(values: Any) -> np.ndarray:
    """Numbers with None as NaN, which matplotlib leaves out."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _clean(axes: Axes) -> None:
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.tick_params(colors=_INK, length=0, labelsize=10)


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI, facecolor="white")
    write_atomically(path, picture.getvalue())
