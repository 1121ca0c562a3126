"""Reports of a comparison: Markdown, LaTeX, the console, and the folder that holds them all."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape as rich_escape
from rich.table import Table as RichTable

from mwuf_dist import escape
from mwuf_dist.config import PHASES
from mwuf_dist.evaluation.comparison import SCORINGS, build_comparison
from mwuf_dist.evaluation.html import html
from mwuf_dist.evaluation.plots import plot_clicks, plot_phases, plot_speed
from mwuf_dist.evaluation.tables import (
    MISSING,
    SCORING_NAMES,
    Cell,
    Table,
    auc_table,
    budget_table,
    clicks_table,
    group_spans,
    metric_cell,
    metric_tables,
    number,
    published_table,
    sentences,
    speed_table,
    title,
)
from mwuf_dist.files import make_folder, write_atomically, write_json

__all__ = ["build_comparison", "html", "latex", "markdown", "print_comparison", "write_comparison"]


def write_comparison(comparison: dict[str, Any], folder: Path, items: Sequence[str] = ()) -> dict[str, Any]:
    """Writes the whole report of some runs; each file appears whole or not at all.

    Args:
        comparison: of `build_comparison`.
        folder: receives `comparison.json`, `.md`, `.tex`, `report.html` and the plots `phases.png`, `clicks.png` (where
            AUC by clicks is known) and `speed.png`; made if absent.
        items: sections of `report.html` about single items.

    Returns:
        The comparison.
    """
    make_folder(folder)
    write_json(folder / "comparison.json", comparison)
    write_atomically(folder / "comparison.md", markdown(comparison))
    write_atomically(folder / "comparison.tex", latex(comparison))
    # What is measured comes first: a picture that cannot be drawn takes nothing of it away.
    drawn = [("phases.png", plot_phases), ("clicks.png", plot_clicks), ("speed.png", plot_speed)]
    if clicks_table(comparison) is None:
        del drawn[1]
    plots = [folder / name for name, plot in drawn if _is_drawn(plot, comparison, folder / name)]
    write_atomically(folder / "report.html", html(comparison, plots, items))
    return comparison


def _is_drawn(plot: Callable[[dict[str, Any], Path], Any], comparison: dict[str, Any], path: Path) -> bool:
    try:
        plot(comparison, path)
    except Exception as error:  # whatever a font, a label or a backend of matplotlib brings
        print(f"{path}: not drawn ({type(error).__name__}: {error})", file=sys.stderr)
        return False
    return True


def _text_tables(comparison: dict[str, Any]) -> list[Table]:
    """Returns all tables; the AUC of each scoring by itself, as both would not fit a line."""
    tables = [auc_table(comparison, (scoring,)) for scoring in SCORINGS] + metric_tables(comparison)
    optional = [published_table(comparison), clicks_table(comparison)]
    return [*tables, *filter(None, optional), speed_table(comparison), budget_table(comparison)]


def markdown(comparison: dict[str, Any]) -> str:
    """Returns the tables as Markdown."""
    parts = [f"# {escape.markdown(title(comparison))}", *map(escape.markdown, sentences(comparison))]
    for table in _text_tables(comparison):
        parts.append(f"## {_title(table)}\n\n{_markdown_table(table)}")
    return "\n\n".join(parts) + "\n"


def _title(table: Table) -> str:
    """Returns a table of one group of metrics is named by it."""
    return table.columns[0].group if table.title == "AUC" else table.title


def _markdown_table(table: Table) -> str:
    groups = {column.group for column in table.columns}
    heads = [
        column.name if len(groups) == 1 or column.group.startswith("AUC") else f"{column.name}<br>{column.group}"
        for column in table.columns
    ]
    lines = [["", *heads], ["---", *(["---:"] * len(heads))]]
    lines += [[escape.markdown(label), *map(_markdown_cell, cells)] for label, cells in table.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{body}\n\n{escape.markdown(table.note)}"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return text + (f" ± {cell.spread}" if cell.spread else "") + escape.markdown(cell.mark)


def latex(comparison: dict[str, Any]) -> str:
    """Returns the tables as LaTeX `table*` environments; needs the package booktabs."""
    head = f"% {escape.latex(title(comparison))}. Needs \\usepackage{{booktabs}}."
    head += "".join(f"\n% {escape.latex(sentence)}" for sentence in sentences(comparison))
    return "\n\n".join([head, *map(_latex_table, _text_tables(comparison))]) + "\n"


def _latex_table(table: Table) -> str:
    spans = group_spans(table)
    groups, rules, at = [], [], 2
    for name, width in spans:
        groups.append(f"\\multicolumn{{{width}}}{{c}}{{{escape.latex(name)}}}")
        rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    rows = [" & ".join([escape.latex(label), *map(_latex_cell, cells)]) + r" \\" for label, cells in table.rows]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            f"\\caption{{{escape.latex(f'{_title(table)}. {table.note}')}}}",
            f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(["", *groups]) + r" \\",
            " ".join(rules),
            " & ".join(["", *(escape.latex(column.name) for column in table.columns)]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    text = escape.latex(re.sub("^-", "−", cell.text))
    if cell.best:
        text = f"\\textbf{{{text}}}"
    spread = f"{{\\tiny$\\pm${cell.spread}}}" if cell.spread else ""
    return text + spread + (f"\\textsuperscript{{{escape.latex(cell.mark)}}}" if cell.mark else "")


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Prints one table per scoring (AUC, below it RelaImpr and log loss) and one of speed.

    Args:
        comparison: of `build_comparison`.
        console: where to; by default standard output, 100 columns wide when that is no terminal.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=100)
    for scoring in SCORINGS:
        console.print(_console_table(comparison, scoring))
    console.print(_console_speed_table(comparison))
    for sentence in sentences(comparison):
        console.print(_shown(sentence), highlight=False)


def _shown(text: str) -> str:
    """Returns the text that is neither markup of the console nor steers a terminal."""
    return rich_escape(escape.printable(text))


def _console_table(comparison: dict[str, Any], scoring: str) -> RichTable:
    table = auc_table(comparison, (scoring,))
    rich_table = RichTable(
        title=_shown(f"{comparison['dataset']}: AUC, {SCORING_NAMES[scoring]}"),
        caption=_shown(f"Below each AUC: RelaImpr, log loss. {table.note}"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    rich_table.add_column("")
    for phase in PHASES:
        rich_table.add_column(phase, justify="right", no_wrap=True)
    by_label = {row["label"]: row for row in comparison["rows"]}
    for label, cells in table.rows:
        row = by_label.get(label)
        shown = [_console_cell(cell, row, phase, scoring) for cell, phase in zip(cells, PHASES, strict=False)]
        rich_table.add_row(_shown(label), *shown)
    return rich_table


def _console_cell(cell: Cell, row: dict[str, Any] | None, phase: str, scoring: str) -> str:
    text = f"[bold]{cell.text}[/]" if cell.best else cell.text
    text += (f" ±{cell.spread}" if cell.spread else "") + (cell.mark or " ")
    if row is None:  # the ceiling
        return text
    rela = metric_cell(row, phase, scoring, "rela_impr").text
    loss = metric_cell(row, phase, scoring, "logloss").text
    return f"{text}\n[dim]{rela + ('%' if rela != MISSING else '')}  {loss}[/] "


def _console_speed_table(comparison: dict[str, Any]) -> RichTable:
    table = speed_table(comparison)
    rich_table = RichTable(
        title="Samples per second, by stage",
        caption=_shown(table.note),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    columns = [(index, column.name) for index, column in enumerate(table.columns) if column.group == "samples/s"]
    rich_table.add_column("")
    for _, name in columns:
        rich_table.add_column(name, justify="right", no_wrap=True)
    rich_table.add_column("seconds", justify="right", no_wrap=True)
    for row, (label, cells) in zip(comparison["rows"], table.rows, strict=True):
        seconds = [numbers["seconds"]["mean"] for numbers in row["stages"].values()]
        total = sum(value for value in seconds if value is not None)
        rich_table.add_row(_shown(label), *(cells[index].text for index, _ in columns), number(total, ".1f").text)
    return rich_table
