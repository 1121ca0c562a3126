"""`mwuf explain`: one item (or user) as text, picture and page; and as sections of the report of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mwuf_dist.cli.options import parse_run_options
from mwuf_dist.config import UserError
from mwuf_dist.escape import printable

EXAMPLES = """\
Says why one item has the embedding it has: scale, shift, nearest old items, and how its score moved with its clicks.
Or the same of one user: nearest users, and how the scores of items moved with the clicks of a user who came later.

Beside the picture stands the same as a page that needs nothing else, with the neighbours of each phase and the deltas
that brought the rows.

examples:
  mwuf explain runs/ml-1 --item 3578
  mwuf explain runs/ml-1 --item 3578 --all --output item.png
  mwuf explain runs/wednesday --item 3578 --deltas runs/monday runs/tuesday
  mwuf explain runs/wednesday --user 1000209"""


@dataclass
class ExplainOptions:
    """Options of `mwuf explain`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]  # Folder of a finished run.
    item: str = ""  # ID of the item in the raw data.
    user: str = ""  # ID of a user instead: of the run, or one who came later (mwuf warm --users).
    # Picture to write, and beside it the page (.html); by default `explain-ITEM.png` (`explain-user-USER.png`) in RUN.
    output: Path | None = None
    all: tyro.conf.FlagCreatePairsOff[bool] = False  # Print every score, not at most a dozen per phase.
    deltas: tuple[Path, ...] = ()  # Folders of earlier jobs, whose deltas are shown beside those in RUN.
    prepared: Path | None = None  # Folder of the run's prepared data, if they were moved.


def command(arguments: list[str]) -> int:
    """Runs `mwuf explain`; returns the exit code."""
    options = parse_run_options("explain", arguments, ExplainOptions, EXAMPLES)
    if bool(options.item) == bool(options.user):
        raise UserError("name an item with --item ID, or a user with --user ID")
    from mwuf_dist.evaluation.item_page import item_page
    from mwuf_dist.evaluation.item_plot import plot_item
    from mwuf_dist.files import write_atomically
    from mwuf_dist.serving.explain import explain
    from mwuf_dist.serving.finished_run import open_run

    with open_run(options.run, prepared=options.prepared) as run:
        side = "user" if options.user else "item"
        found = explain(run, options.user or options.item, deltas=options.deltas, side=side)
    print(printable(found.text(options.all)))
    # An ID may hold anything, a slash too.
    name = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in str(found.item_id))
    kind = "user-" if options.user else ""
    picture = options.output or options.run / f"explain-{kind}{name[:100]}.png"
    was_there = picture.exists()
    plot_item(found.view(), picture)
    page = picture.with_suffix(".html")
    try:
        write_atomically(page, item_page(found.view(), picture))
    except OSError:
        if not was_there:  # no picture without its page
            picture.unlink()
        raise
    print(f"plot: {picture}   page: {page}")
    return 0


def check_item(raw_id: str, ids: Any, where: str) -> None:
    """Checks that an item is among the raw IDs of prepared data, before hours of training.

    Raises:
        UserError: it is not.
    """
    from mwuf_dist.serving.indices import place_of

    if place_of(raw_id, ids) < 0:
        raise UserError(f"{where}: --explain {raw_id}: the data have no such item; IDs look like {ids[0].as_py()!r}")


def sections(finished: Sequence[tuple[dict[str, Any], Path]], raw_id: str, folder: Path) -> list[str]:
    """Views of an item in the first run of each row of a comparison, for its report.

    Args:
        finished: (cell, folder of its run), see `Outcome.finished`.
        raw_id: of the item.
        folder: of the comparison; receives `item-*.png`.
    """
    from mwuf_dist.evaluation.comparison import row_label
    from mwuf_dist.evaluation.item_page import item_section
    from mwuf_dist.evaluation.item_plot import plot_item
    from mwuf_dist.serving.explain import explain
    from mwuf_dist.serving.finished_run import open_run

    first: dict[str, Path] = {}
    for cell, path in finished:
        first.setdefault(row_label(cell["backbone"], cell["method"], cell.get("variant", "")), path)
    made = []
    for label, path in first.items():
        with open_run(path) as run:
            view = explain(run, raw_id).view()
        picture = folder / f"item-{path.name}.png"
        plot_item(view, picture)
        made.append(item_section(view, picture, f"{view.title} warming up: {label}"))
    return made
