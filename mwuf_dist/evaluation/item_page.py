"""The view of an item warming up as HTML: a page of its own, or a section of a report. No script, nothing fetched."""

from __future__ import annotations

from html import escape
from pathlib import Path

from mwuf_dist.evaluation.html import image, page, table_section
from mwuf_dist.evaluation.item_plot import NEAR, OTHERS, ItemView
from mwuf_dist.evaluation.tables import Cell, Column, Table

_MOST_DELTAS = 200  # That a page lists: the first, and the last ones.


def item_page(view: ItemView, picture: Path) -> str:
    """Returns the view as a self-contained page; `picture` is of `plot_item`."""
    return page(view.title, f"<h1>{escape(view.title)}</h1>{item_section(view, picture, heading='')}")


def item_section(view: ItemView, picture: Path, heading: str | None = None) -> str:
    """Returns the view as a part of a page.

    Args:
        view: of an item.
        picture: PNG file of `plot_item`.
        heading: over it; None: its title.
    """
    heading = view.title if heading is None else heading
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in view.facts.items())
    parts = [
        f"<h2>{escape(heading)}</h2>" if heading else "",
        f'<dl class="facts">{facts}</dl>' if facts else "",
        f"<figure>{image(picture)}</figure>",
        *map(table_section, filter(None, (_score_table(view), _neighbour_table(view), _delta_table(view)))),
    ]
    return "\n".join(part for part in parts if part)


def _score_table(view: ItemView) -> Table | None:
    """Returns the first and the last score of each phase."""
    rows = []
    for phase in dict.fromkeys(name for name, *_ in view.history):
        points = [(clicks, score) for name, clicks, score in view.history if name == phase]
        cells = (Cell(f"{points[-1][0]:,}"), Cell(f"{points[0][1]:.4f}"), Cell(f"{points[-1][1]:.4f}"))
        rows.append((phase, cells))
    columns = (Column("clicks"), Column("first score"), Column("last score"))
    note = f"Mean probability over the same random {OTHERS[view.side]}. "
    note += f"Clicks: rows of the {view.side} in the phase, every pass counted."
    return Table("Score against clicks", columns, tuple(rows), note) if rows else None


def _neighbour_table(view: ItemView) -> Table | None:
    """Returns the nearest old items at the end of each phase."""
    last = {view.history[moment][0]: near for moment, near in zip(view.moments, view.nearest_then, strict=True)}
    width = max(map(len, last.values()), default=0)
    if not width:
        return None
    rows = []
    for phase, near in last.items():
        cells = [Cell(f"{name} ({cosine:+.3f})") for name, cosine in near]
        rows.append((phase, (*cells, *[Cell("")] * (width - len(near)))))
    columns = tuple(Column(str(number + 1)) for number in range(width))
    return Table(
        f"Nearest {NEAR[view.side]} at the end of each phase",
        columns,
        tuple(rows),
        "In brackets the cosine of the embeddings.",
    )


def _delta_table(view: ItemView) -> Table | None:
    """Returns the deltas that changed the item."""
    if not view.deltas:
        return None
    shown = list(view.deltas)
    if len(shown) > _MOST_DELTAS:
        shown = [shown[0], *shown[1 - _MOST_DELTAS :]]
    rows = [
        (f"delta {number}", (Cell(f"{clicks:,}"), Cell("retired" if score is None else f"{score:.4f}")))
        for number, clicks, score in shown
    ]
    note = f"{len(view.deltas):,} deltas changed the {view.side}{' or retired one of its ID' * (view.side == 'item')}"
    note += f"; shown are the first and the last {_MOST_DELTAS - 1}." if len(shown) < len(view.deltas) else "."
    return Table("Deltas", (Column("interactions after it"), Column("score after it")), tuple(rows), note)
