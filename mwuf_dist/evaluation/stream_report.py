"""The report of the stream protocol: `comparison.json`, `report.html` with its picture, and the table of a terminal."""

from __future__ import annotations

import html as html_lib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mwuf_dist.escape import printable
from mwuf_dist.evaluation.comparison import row_label
from mwuf_dist.evaluation.configs import distinct
from mwuf_dist.evaluation.html import image, page, table_section
from mwuf_dist.evaluation.plots import _COLOURS, _clean, _figure, _save, plain_text
from mwuf_dist.evaluation.significance import (
    FEWEST_SEEDS,
    LEVEL,
    bootstrap_difference,
    holm,
    placements,
    summarize,
)
from mwuf_dist.evaluation.stream_metrics import FEW_CLICKS, METRICS, RANKING
from mwuf_dist.evaluation.tables import Column, Table, number
from mwuf_dist.files import make_folder, write_atomically, write_json

NAMES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "log loss",
    "calibration": "calibration",
    "ndcg_at_10": "NDCG@10",
    "recall_at_10": "Recall@10",
}
FIRST = f"first {FEW_CLICKS} clicks"  # of an item
NOTE = (
    f"{FIRST.capitalize()}: rows of items that had fewer by then. "
    "Each day's rows of new items are scored before anything is learned from them. GAUC: AUC within users, by rows. "
    "Calibration: mean prediction over the fraction of positives. NDCG and Recall: what a user liked that day, ranked "
    "among all items that have had a row by then; ties count against it."
)
_VERSUS = ("versus", "versus_first_clicks")
_UNKNOWN = {"rows": 0, "positives": 0} | dict.fromkeys(METRICS)  # of a run that did not measure it
_WHERE = {"by_age": "age in days", "by_clicks": "clicks learned from"}


def build_stream_comparison(
    results: Sequence[dict[str, Any]],
    audits: Sequence[dict[str, Any]] = (),
    about: Mapping[str, str] | None = None,
    failures: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Summarises runs of the stream protocol; what `comparison.json` holds.

    Args:
        results: `results.json` of finished runs, in the order in which the rows shall stand.
        audits: of rows (`row`, `passed`, ...).
        about: `title`, `regime`, `note` and `command` of the study.
        failures: by cell, why it has no result.

    Returns:
        `rows`, one per (backbone, method, variant): `seeds`, `stream` (mean, standard deviation and number of seeds of
        each metric), `first_clicks` (the same of the rows of items with few clicks), `by_age` and `by_clicks` (the same
        in buckets), `seconds` of the stages, `versus` and `versus_first_clicks` (see `add_intervals`).
    """
    runs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in results:
        runs.setdefault((one["backbone"], one["method"], one.get("variant", "")), []).append(one)
    first = results[0]
    comparison = {
        "schema": 1,
        "protocol": "stream",
        "about": {key: value for key, value in (about or {}).items() if value},
        "dataset": first["dataset"],
        "split": first["split"],
        "seeds": sorted({one["seed"] for one in results}),
        "rows": [_row(key, of_row) for key, of_row in runs.items()],
        "audits": list(audits),
        "failures": dict(failures or {}),
        "versions": distinct(one.get("versions", {}) for one in results),
    }
    conclude(comparison)
    return comparison


def _row(key: tuple[str, str, str], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [run["stream"] for run in runs]
    # An older run counted drawn rows as clicks.
    counted = [one for one in found if "first_clicks" in one]
    stages = dict.fromkeys(stage for run in runs for stage in run["stages"])
    seconds = {
        stage: summarize([run["stages"].get(stage, {}).get("seconds") for run in runs])["mean"] for stage in stages
    }
    return {
        "label": row_label(*key),
        **dict(zip(("backbone", "method", "variant"), key, strict=True)),
        "seeds": [run["seed"] for run in runs],
        "stream": {name: summarize([one[name] for one in found]) for name in (*METRICS, *RANKING)},
        "first_clicks": _bucket_of_seeds([one["first_clicks"] for one in counted] or [_UNKNOWN]),
        **{name: found[0][name] for name in ("rows", "positives", "num_days", "num_lists")},
        **{name: _buckets([one[name] for one in (counted or found)]) for name in _WHERE},
        "seconds": seconds,
        **dict.fromkeys(_VERSUS),
    }


def _buckets(curves: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Summarises the same buckets of several seeds: of one data set and split they have the same rows."""
    ends = ("from", "to")
    return [
        {name: of_seeds[0][name] for name in ends} | _bucket_of_seeds(of_seeds)
        for of_seeds in zip(*curves, strict=True)
    ]


def _bucket_of_seeds(of_seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sizes = {name: of_seeds[0][name] for name in ("rows", "positives")}
    return sizes | {name: summarize([one[name] for one in of_seeds]) for name in METRICS}


def add_intervals(
    comparison: dict[str, Any],
    scores: Mapping[str, Mapping[int, Path]],
    labels: np.ndarray,
    items: np.ndarray,
    clicks: np.ndarray,
) -> None:
    """Tests each row's AUC against the best base by a bootstrap over items and seeds, where both rows' scores are here.

    Once over all rows (`versus`), once over those of items with few clicks (`versus_first_clicks`).

    Args:
        comparison: of `build_stream_comparison`.
        scores: files of logits by row and seed.
        labels: of the rows of the stream [n].
        items: of the rows [n].
        clicks: of its item before each row [n].
    """
    other = _reference(comparison) or ""
    for row in comparison["rows"]:
        common = sorted(scores.get(row["label"], {}).keys() & scores.get(other, {}).keys())
        if row["label"] == other or not common:
            continue
        ours, theirs = ([np.load(scores[name][seed]) for seed in common] for name in (row["label"], other))
        for name, rows in zip(_VERSUS, (np.arange(len(labels)), np.flatnonzero(clicks < FEW_CLICKS)), strict=True):
            if len(np.unique(labels[rows])) < 2:
                continue
            placed, against = ([placements(one[rows], labels[rows]) for one in of_row] for of_row in (ours, theirs))
            found = bootstrap_difference(placed, against, labels[rows], items[rows])
            row[name] = {"row": other, "num_seeds": len(common), **found}
    tests = [row[name] for name in _VERSUS for row in comparison["rows"] if row[name]]
    for versus, corrected in zip(tests, holm([one["p_value"] for one in tests]), strict=True):
        versus["p_holm"] = corrected
    conclude(comparison)


def _is_retrained(row: dict[str, Any]) -> bool:
    return row["variant"].startswith("retrained")


def _reference(comparison: dict[str, Any]) -> str | None:
    """Returns the base with the highest mean AUC that learns as the methods do."""
    bases = [row for row in comparison["rows"] if row["method"] == "base" and not _is_retrained(row)]
    known = [row for row in bases if row["stream"]["auc"]["mean"] is not None]
    return max(known, key=lambda row: row["stream"]["auc"]["mean"])["label"] if known else None


def conclude(comparison: dict[str, Any]) -> None:
    """Puts what the table comes to in words: gains over the best base, the distance to the upper mark, the costs."""
    sentences = []
    for row in comparison["rows"]:
        told = [
            f"{_gain(row[name])} {where}"
            for name, where in zip(_VERSUS, ("over all rows", f"over an item's {FIRST}"), strict=True)
            if row[name]
        ]
        if told:
            sentences.append(f"{row['label']} against {_reference(comparison)}: {', '.join(told)}.")
    costs = [f"{row['label']} {sum(filter(None, row['seconds'].values())):.1f} s" for row in comparison["rows"]]
    few = min(len(row["seeds"]) for row in comparison["rows"])
    if few < FEWEST_SEEDS:
        sentences.append(f"Under {FEWEST_SEEDS} seeds no difference is called sure.")
    comparison["claims"] = {"sentences": [*sentences, f"Seconds of a run, all days: {', '.join(costs)}."]}
    comparison["warnings"] = [
        f"{row['label']}: AUC below .5" for row in comparison["rows"] if (row["stream"]["auc"]["mean"] or 1) < 0.5
    ] + (["fewer than 50 positives to score"] if comparison["rows"][0]["positives"] < 50 else [])


def _gain(versus: dict[str, Any]) -> str:
    sure = versus["p_holm"] < LEVEL and versus["num_seeds"] >= FEWEST_SEEDS
    what = "AUC" if sure else "no sure difference in AUC:"
    return f"{what} {versus['difference']:+.4f} [{versus['low']:+.4f}, {versus['high']:+.4f}]"


def sentences(comparison: dict[str, Any]) -> list[str]:
    """Tells in words what the tables do not."""
    about, first = comparison["about"], comparison["rows"][0]
    passed = [one["row"] for one in comparison["audits"] if one["passed"]]
    failed = [one["row"] for one in comparison["audits"] if not one["passed"]]
    audited = f"Leak audit: {', '.join(passed)} unchanged to the bit by another future." if passed else ""
    found = [
        about.get("note", ""),
        f"{first['rows']:,} rows of new items on {first['num_days']} days, {first['positives']:,} of them positive; "
        f"{first['num_lists']:,} ranked lists.",
        audited,
        f"Leak audit FAILED: another future changed scores of {', '.join(failed)}." if failed else "",
        *(f"WARNING. {one}." for one in comparison["warnings"]),
        " ".join(comparison["claims"]["sentences"]),
        *(f"FAILED, missing above: {cell}: {reason}." for cell, reason in comparison["failures"].items()),
        f"Made by: {about['command']}" if "command" in about else "",
    ]
    return [one for one in found if one]


def tables(comparison: dict[str, Any]) -> list[Table]:
    """Returns the headline, and AUC and GAUC by age and by clicks."""
    columns = (*(Column(NAMES[name]) for name in (*METRICS, *RANKING)), Column(f"AUC, {FIRST}"), Column("seconds"))
    rows = tuple(
        (
            row["label"],
            (
                *(number(row["stream"][name]["mean"]) for name in (*METRICS, *RANKING)),
                number(row["first_clicks"]["auc"]["mean"]),
                number(sum(filter(None, row["seconds"].values())), ".1f"),
            ),
        )
        for row in comparison["rows"]
    )
    made = [Table("Day by day", columns, rows, NOTE)]
    for name, where in _WHERE.items():
        heads = [_bucket(one) for one in comparison["rows"][0][name]]
        for metric in METRICS:
            of_rows = tuple(
                (row["label"], tuple(number(one[metric]["mean"]) for one in row[name])) for row in comparison["rows"]
            )
            sizes = ", ".join(f"{_bucket(one)}: {one['rows']:,}" for one in comparison["rows"][0][name])
            made.append(
                Table(f"{NAMES[metric]} by {where}", tuple(map(Column, heads)), of_rows, f"Number of rows: {sizes}.")
            )
    return made


def _bucket(one: dict[str, Any]) -> str:
    low, high = one["from"], one["to"]
    return f"{low}+" if high is None else f"{low}" if high == low + 1 else f"{low}-{high - 1}"


@plain_text()
def plot_stream(comparison: dict[str, Any], path: Path) -> None:
    """Plots AUC against clicks and against age, a line per row."""
    figure = _figure(11.5, 4.6)
    for axes, (name, where) in zip(figure.subplots(1, 2, sharey=True), _WHERE.items(), strict=True):
        _clean(axes)
        axes.set_title(f"AUC by {where}", loc="left", fontsize=12)
        heads = [_bucket(one) for one in comparison["rows"][0][name]]
        for index, row in enumerate(comparison["rows"]):
            means = [np.nan if one["auc"]["mean"] is None else one["auc"]["mean"] for one in row[name]]
            style: dict[str, Any] = {"linestyle": "--"} if row["method"] == "base" else {}
            style |= {"color": _COLOURS[index % len(_COLOURS)], "marker": "o", "markersize": 4}
            axes.plot(means, label=row["label"], **style)
        axes.set_xticks(range(len(heads)), heads, fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=9)
    _save(figure, path)


def write_stream_comparison(comparison: dict[str, Any], folder: Path) -> None:
    """Writes `comparison.json`, `report.html` and `stream.png`; each appears whole or not at all."""
    make_folder(folder)
    write_json(folder / "comparison.json", comparison)
    picture = ""
    try:
        plot_stream(comparison, folder / "stream.png")
        picture = f"<figure>{image(folder / 'stream.png')}</figure>"
    except Exception as error:  # whatever a font, a label or a backend of matplotlib brings
        print(f"{folder / 'stream.png'}: not drawn ({type(error).__name__}: {error})", file=sys.stderr)
    told = "".join(f"<p>{html_lib.escape(one)}</p>" for one in sentences(comparison))
    heading = f"{comparison['dataset']}: {comparison['about'].get('title') or 'stream protocol'}"
    first, *rest = map(table_section, tables(comparison))
    body = f"<h1>{html_lib.escape(heading)}</h1>{told}{first}{picture}{''.join(rest)}"
    write_atomically(folder / "report.html", page(heading, body))


def print_stream_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Prints the headline and what is told in words."""
    from rich.markup import escape as rich_escape
    from rich.table import Table as RichTable

    console = console or Console(width=None if sys.stdout.isatty() else 120)
    made = tables(comparison)[0]
    shown = RichTable("", *(column.name for column in made.columns), box=None, title=f"{comparison['dataset']}: stream")
    for label, cells in made.rows:
        shown.add_row(rich_escape(printable(label)), *(cell.text for cell in cells))
    console.print(shown)
    for sentence in (*sentences(comparison), NOTE):
        console.print(rich_escape(printable(sentence)), highlight=False)
