"""The report as one page that needs nothing else: style and pictures are inside, nothing is fetched, no script runs."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mwuf_dist.evaluation.tables import (
    Cell,
    Table,
    auc_table,
    budget_table,
    clicks_table,
    group_spans,
    hardware,
    metric_tables,
    published_table,
    sentences,
    speed_table,
    title,
)

_STYLE = """
:root { --ink: #1a1f26; --soft: #5c6670; --line: #d9dee3; --tint: #f5f7f9; --accent: #0b5c9e; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 44px 0 10px; }
p { margin: 0 0 10px; }
.lead, .note { color: var(--soft); }
.note { font-size: 13px; max-width: 110ch; margin-top: 8px; }
.facts { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 20px 0 0; padding: 0; }
.facts div { display: flex; flex-direction: column-reverse; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-size: 18px; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; vertical-align: baseline; }
th { font-weight: 600; } thead th { color: var(--soft); font-size: 13px; }
thead tr:last-child th { border-bottom: 1px solid var(--ink); }
thead .group { text-align: center; color: var(--ink); }
thead .group span { display: block; border-bottom: 1px solid var(--line); padding-bottom: 3px; }
tbody th, thead th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; } tbody tr { border-bottom: 1px solid var(--line); }
tbody tr:hover { background: var(--tint); }
td.first, th.first { padding-left: 22px; }
td.best { font-weight: 700; color: var(--accent); }
.spread { display: block; color: var(--soft); font-size: 11.5px; font-weight: 400; line-height: 1.2; }
.mark { position: absolute; color: var(--accent); font-weight: 700; padding-left: 1px; }
tr.ceiling > * { color: var(--soft); font-style: italic; font-weight: 400; }
.failed { color: #b00020; font-weight: 600; }
figure { margin: 18px 0 0; } figure img { max-width: 100%; height: auto; display: block; }
details { margin-top: 14px; border-top: 1px solid var(--line); padding-top: 10px; }
summary { cursor: pointer; font-weight: 600; } details table { margin-top: 10px; }
td.text { text-align: left; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px; }
"""


def html(comparison: dict[str, Any], plots: Sequence[Path], items: Sequence[str] = ()) -> str:
    """Returns the report as a self-contained page.

    Args:
        comparison: of `build_comparison`.
        plots: PNG files, embedded in this order below the headline table.
        items: sections of `item_page.item_section`, behind the tables.

    Returns:
        The page's text.
    """
    optional = [published_table(comparison), clicks_table(comparison)]
    tables = [*metric_tables(comparison), *filter(None, optional), speed_table(comparison), budget_table(comparison)]
    heading = title(comparison)
    parts = [
        _header(comparison, heading),
        table_section(auc_table(comparison)),
        *(f"<figure>{image(path)}</figure>" for path in plots),
        *map(table_section, tables),
        *items,
        "<h2>Configuration</h2>",
        _differences(comparison),
        _details("Keys that all rows share", _pairs(comparison["config"])) if comparison["config"] else "",
        _details("Runs: where, and seconds per stage", _cells_table(comparison)),
        "<h2>Versions</h2>",
        _pairs({name: ", ".join(map(str, values)) for name, values in comparison["versions"].items()}),
    ]
    return page(heading, "\n".join(part for part in parts if part))


def page(heading: str, body: str) -> str:
    """Returns a whole page around what stands in it."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)}</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _header(comparison: dict[str, Any], heading: str) -> str:
    split = comparison["split"]
    rows_of = ("pretrain", "warm_a", "warm_b", "warm_c", "test")
    facts = {name.replace("_", " "): f"{split[name]:,}" for name in ("old_items", "new_items") if name in split}
    facts |= {f"rows in {name}": f"{split[name]:,}" for name in rows_of if name in split}
    facts["seeds"] = str(len(comparison["seeds"]))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    positives = ", ".join(f"{name} {share:.3f}" for name, share in split.get("positives", {}).items())
    share = f'<p class="note">Share of positives: {escape(positives)}.</p>' if positives else ""
    lead = f"{len(comparison['rows'])} rows, one per backbone / method (variant), on {hardware(comparison)}."
    told = "".join(
        f"<p{_classes(failed=one.startswith(('FAILED', 'WARNING')) or 'FAILED' in one)}>{escape(one)}</p>"
        for one in sentences(comparison)
    )
    return f'<h1>{escape(heading)}</h1><p class="lead">{escape(lead)}</p>{told}<dl class="facts">{items}</dl>{share}'


def table_section(table: Table) -> str:
    """Returns a table with its title and note."""
    return f'<h2>{escape(table.title)}</h2>{_table(table)}<p class="note">{escape(table.note)}</p>'


def _table(table: Table) -> str:
    spans = group_spans(table)
    groups = "".join(f'<th class="group" colspan="{width}"><span>{escape(name)}</span></th>' for name, width in spans)
    first = [index == 0 or column.group != table.columns[index - 1].group for index, column in enumerate(table.columns)]
    names = "".join(
        f"<th{_classes(first=is_first)}>{escape(column.name)}</th>"
        for column, is_first in zip(table.columns, first, strict=True)
    )
    rows = "".join(
        f"<tr{_classes(ceiling=label == 'Bayes ceiling')}><th>{escape(label)}</th>"
        + "".join(_cell(cell, is_first) for cell, is_first in zip(cells, first, strict=True))
        + "</tr>"
        for label, cells in table.rows
    )
    head = f"<thead><tr><th></th>{groups}</tr><tr><th></th>{names}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'


def _cell(cell: Cell, first: bool) -> str:
    mark = f'<span class="mark">{escape(cell.mark)}</span>' if cell.mark else ""
    spread = f'<span class="spread">± {escape(cell.spread)}</span>' if cell.spread else ""
    return f"<td{_classes(first=first, best=cell.best)}>{escape(cell.text)}{mark}{spread}</td>"


def _classes(**on: bool) -> str:
    names = " ".join(name for name, is_on in on.items() if is_on)
    return f' class="{names}"' if names else ""


def image(path: Path) -> str:
    """Returns a picture, inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th>{escape(key)}</th><td class="text">{_value(value)}</td></tr>' for key, value in values.items()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _value(value: Any) -> str:
    return escape(value if isinstance(value, str) and value else json.dumps(value))


def _differences(comparison: dict[str, Any]) -> str:
    """Says in what the rows' configurations differ: a line per row, a column per key."""
    in_label = ("backbone.name", "method.name", "method.variant")
    keys = dict.fromkeys(key for row in comparison["rows"] for key in row["config"] if key not in in_label)
    if not keys:
        return ""
    head = "".join(f"<th>{escape(key)}</th>" for key in keys)
    rows = "".join(
        f"<tr><th>{escape(row['label'])}</th>"
        + "".join(f'<td class="text">{_value(row["config"].get(key))}</td>' for key in keys)
        + "</tr>"
        for row in comparison["rows"]
    )
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div><p class="note">Keys in which the rows differ, besides their names.</p>'


def _cells_table(comparison: dict[str, Any]) -> str:
    """Returns one line per run: the seconds of its stages, and the hash of its configuration."""
    cells = [(row["label"], cell) for row in comparison["rows"] for cell in row["cells"]]
    stages = list(dict.fromkeys(stage for _, cell in cells for stage in cell["seconds"]))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("seed", "device", "ranks", *stages, "in all", "config"))
    rows = ""
    for label, cell in cells:
        seconds = [cell["seconds"].get(stage) for stage in stages]
        shown = [cell["seed"], cell["device"], cell["world_size"]]
        total = sum(value for value in seconds if value is not None)
        shown += ["" if value is None else f"{value:.2f}" for value in seconds] + [f"{total:.1f}", cell["config_hash"]]
        rows += f"<tr><th>{escape(label)}</th>" + "".join(f"<td>{escape(str(one))}</td>" for one in shown) + "</tr>"
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
