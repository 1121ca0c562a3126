"""The tables of a comparison, once, without a format: Markdown, LaTeX, HTML and the console all draw these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mwuf_dist.config import PHASES
from mwuf_dist.evaluation.comparison import SCORINGS, STAGES
from mwuf_dist.evaluation.significance import FEWEST_SEEDS, LEVEL
from mwuf_dist.evaluation.warnings import FEWEST_POSITIVES, best_trivial

SCORING_NAMES = {"next": "next set", "test": "fixed test"}
SCORING_MEANINGS = {
    "next": "cold on warm_a, warm-a on warm_b, warm-b on warm_c, warm-c on test",
    "test": "every phase on test",
}
MISSING = "–"
MARKS_NOTE = (
    "* better than the best row of any other method, † better only than the base of its own backbone (bootstrap over "
    "items and seeds where the scores are at hand, else paired t-test over common seeds; "
    f"p < {LEVEL} after Holm's correction over the tests of the table, at least {FEWEST_SEEDS} seeds and "
    f"{FEWEST_POSITIVES} rows of each class), ‡ no better than the best row that needs no training."
)
_POPULARITY_NOTE = (
    "Item popularity so far counts positives up to the time of each scored row, so also those of sets that methods "
    "have not learnt from."
)


@dataclass(frozen=True)
class Cell:
    """One number: its text, the standard deviation's text, a significance mark, and whether it is the column's best."""

    text: str
    spread: str = ""
    mark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column; neighbours of the same group share a heading."""

    name: str
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Rows are (label, one cell per column)."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""


def group_spans(table: Table) -> list[tuple[str, int]]:
    """Returns the headings over the columns: (name, number of columns)."""
    spans: list[tuple[str, int]] = []
    for column in table.columns:
        if spans and spans[-1][0] == column.group:
            spans[-1] = (column.group, spans[-1][1] + 1)
        else:
            spans.append((column.group, 1))
    return spans


def auc_table(comparison: dict[str, Any], scorings: tuple[str, ...] = SCORINGS) -> Table:
    """Gives the headline: AUC in the four phases, with samples/s of the same runs beside it, and the Bayes ceiling."""
    stages = stage_names(comparison)
    columns = [Column(phase, f"AUC, {SCORING_NAMES[scoring]}") for scoring in scorings for phase in PHASES]
    columns += [Column(stage, "samples/s") for stage in stages]
    blank = (Cell(""),) * len(stages)
    rows = [(label, cells + blank) for label, cells in _trivial_rows(comparison, "auc", scorings)]
    rows += [
        (label, cells + tuple(_speed_cell(row, stage) for stage in stages))
        for row, (label, cells) in zip(comparison["rows"], _metric_rows(comparison, "auc", scorings), strict=True)
    ]
    ceiling = comparison["ceiling"]
    if ceiling:
        known = tuple(number(ceiling[scoring][phase]) for scoring in scorings for phase in PHASES)
        rows.append(("Bayes ceiling", known + (Cell(""),) * len(stages)))
    meaning = "; ".join(f"{SCORING_NAMES[scoring]}: {SCORING_MEANINGS[scoring]}" for scoring in scorings)
    marked = any(cell.mark for _, cells in rows for cell in cells)
    notes = [seeds_note(comparison), f"{meaning.capitalize()}."]
    notes += [_POPULARITY_NOTE] if comparison.get("trivial") else []
    notes += [MARKS_NOTE] if marked else []
    return Table("AUC", tuple(columns), tuple(rows), " ".join(notes))


def metric_tables(comparison: dict[str, Any]) -> list[Table]:
    """Returns RelaImpr, log loss and calibration, both scorings beside each other."""
    bases = sorted({row["rela_impr_base"] for row in comparison["rows"] if row["rela_impr_base"]})
    against = f"Percent, against {' or '.join(bases)}" if bases else "No base in this comparison"
    return [
        _metric_table(comparison, "rela_impr", "RelaImpr (%)", f"{against}, from the mean AUCs."),
        _metric_table(comparison, "logloss", "Log loss", "In nats; lower is better."),
        _metric_table(comparison, "calibration", "Calibration", "Mean prediction over mean label; 1 is calibrated."),
    ]


def published_table(comparison: dict[str, Any]) -> Table | None:
    """Returns ours beside the paper's, or None when the paper has none of these rows."""
    if comparison["published_source"] is None:
        return None
    columns = tuple(Column(phase, group) for group in ("ours", "paper", "ours − paper") for phase in PHASES)
    rows = []
    for row in comparison["rows"]:
        paper = row["published"]
        if paper:
            ours = (number(row["phases"][phase]["auc_next"]["mean"]) for phase in PHASES)
            theirs = (number(paper["auc_next"][phase]) for phase in PHASES)
            differences = (number(paper["difference"][phase], "+z.4f") for phase in PHASES)
            rows.append((row["label"], (*ours, *theirs, *differences)))
    note = f"AUC, next set. {comparison['published_source']}."
    return Table("Against the published figures", columns, tuple(rows), note)


def clicks_table(comparison: dict[str, Any]) -> Table | None:
    """Returns AUC by the number of clicks that an item has had, or None when no run has measured it."""
    buckets = dict.fromkeys((one["from"], one["to"]) for row in comparison["rows"] for one in row["auc_by_clicks"])
    if not buckets:
        return None
    names = [f"{low}–{high - 1}" if high is not None else f"{low} on" for low, high in buckets]
    rows = []
    for row in comparison["rows"]:
        by_bucket = {(one["from"], one["to"]): one["auc"] for one in row["auc_by_clicks"]}
        rows.append((row["label"], tuple(_summary_cell(by_bucket.get(bucket), ".4f") for bucket in buckets)))
    columns = tuple(Column(name, "clicks that the item had before the row") for name in names)
    note = (
        "AUC of the rows before which their item had so many labelled rows, next set: the model has learned from the "
        "finished warm sets among them."
    )
    return Table("AUC by clicks of the item", columns, tuple(rows), note)


def budget_table(comparison: dict[str, Any]) -> Table:
    """Gives samples that each stage was trained on, and how far a warm-up step goes: more of either is an advantage."""
    stages = [stage for stage in STAGES[1:4] if any(stage in row["stages"] for row in comparison["rows"])]
    rows = []
    for row in comparison["rows"]:
        samples = tuple(_count_cell(row["stages"].get(stage, {}).get("samples")) for stage in stages)
        step = row.get("warm_up_step", {"mean": None})["mean"]
        of_scale = _summary_cell(row.get("mean_abs_scale"), ".2f"), number(step, ".3g")
        rows.append((row["label"], (*samples, *of_scale)))
    note = (
        "Samples seen in training, mean over seeds; a row counts once in every epoch. A warm-up step moves what is "
        "scored of a new item by the learning rate times |scale|: rows with as many steps have an equal budget only "
        "where that is equal too, or where each has its own best rate."
    )
    columns = [
        *(Column(stage, "samples") for stage in stages),
        Column("mean size of scale", ""),
        Column("warm-up step", ""),
    ]
    return Table("Budget", tuple(columns), tuple(rows), note)


def title(comparison: dict[str, Any]) -> str:
    """Returns data set, title and regime of the study."""
    about = comparison["about"]
    parts = [comparison["dataset"], about.get("title") or "cold-start comparison"]
    return ": ".join(parts) + (f" ({about['regime']} regime)" if "regime" in about else "")


def sentences(comparison: dict[str, Any]) -> list[str]:
    """Tells in words: the study's note, the leak audit, histories, what failed, the command."""
    about, failures = comparison["about"], comparison["failures"]
    failed = [f"{cell}: {reason}" for cell, reason in failures.items()]
    histories = [f"{row['label']}: {row['history']}" for row in comparison["rows"] if row["history"]]
    found = [
        about.get("note", ""),
        audit_sentence(comparison["audit"]) if about else "",
        f"Users' histories: {'; '.join(histories)}." if histories else "",
        _sittings_sentence(comparison),
        _probes_sentence(comparison),
        *(f"WARNING. {warning}" for warning in comparison.get("warnings", ())),
        " ".join(comparison.get("claims", {}).get("sentences", ())),
        f"FAILED, missing above: {'; '.join(failed)}." if failed else "",
        f"Made by: {about['command']}" if "command" in about else "",
    ]
    return [sentence for sentence in found if sentence]


def _sittings_sentence(comparison: dict[str, Any]) -> str:
    sittings = comparison.get("sittings")
    if not sittings:
        return ""
    where = ", ".join(f"{share:.1%} of {split}" for split, share in sittings["rows"].items())
    return f"Recent events are over {sittings['gap_s']:g} s old. Rows of users with no such event: {where}."


def _probes_sentence(comparison: dict[str, Any]) -> str:
    """Returns the probes in a line: the range of each over the sets."""
    told = []
    for name, sets in comparison.get("probes", {}).items():
        aucs = [auc for auc in sets.values() if auc is not None]
        told += [f"{name} {min(aucs):.3f} to {max(aucs):.3f}"] if aucs else []
    return f"Probes, AUC of models that see nothing but: {', '.join(told)}." if told else ""


def audit_sentence(audit: dict[str, Any]) -> str:
    """Returns the leak audit in a line."""
    if audit["passed"] is None:
        return "Leak audit: not made."
    without = f" Not audited: {', '.join(audit['missing'])}." if audit["missing"] else ""
    if audit["passed"]:
        return (
            f"Leak audit: passed, {audit['num_scores']:,} scores of {len(audit['rows'])} rows unchanged to the bit by "
            f"a shuffle that changes {audit['num_labels']:,} labels of sets that are still to be scored.{without}"
        )
    failed = []
    for one in audit["rows"]:
        changed = [f"{num:,} scores of {where}" for where, num in one["changed"].items()]
        if not one["passed"]:
            failed.append(f"{one['row']}: {', '.join(changed) or 'the shuffle changed no label'}")
    return f"Leak audit: FAILED, a shuffle of labels still to be scored changed {'; '.join(failed)}.{without}"


def speed_table(comparison: dict[str, Any]) -> Table:
    """Returns samples per second and seconds of every stage, mean over seeds."""
    stages = stage_names(comparison)
    timed = [stage for stage in STAGES if any(stage in row["stages"] for row in comparison["rows"])]
    columns = [Column(stage, "samples/s") for stage in stages] + [Column(stage, "seconds") for stage in timed]
    rows = []
    for row in comparison["rows"]:
        speeds = tuple(_speed_cell(row, stage) for stage in stages)
        seconds = tuple(number(row["stages"].get(stage, {}).get("seconds", {}).get("mean"), ".2f") for stage in timed)
        rows.append((row["label"], speeds + seconds))
    return Table("Speed", tuple(columns), tuple(rows), f"Mean over seeds, on {hardware(comparison)}.")


def stage_names(comparison: dict[str, Any]) -> list[str]:
    """Returns the stages for which some row knows samples/s, in the order in which they run."""
    names: dict[str, None] = {}
    for row in comparison["rows"]:
        names |= {stage: None for stage, numbers in row["stages"].items() if numbers["samples_per_s"]["num_seeds"]}
    return [stage for stage in STAGES if stage in names]


def hardware(comparison: dict[str, Any]) -> str:
    """Returns the devices and rank counts that the runs had, as words."""
    cells = [cell for row in comparison["rows"] for cell in row["cells"]]
    kinds = dict.fromkeys((cell["world_size"] or 1, cell["device"] or "unknown device") for cell in cells)
    return " and ".join(f"{device} ({ranks} rank{'s' if ranks > 1 else ''})" for ranks, device in kinds)


def seeds_note(comparison: dict[str, Any]) -> str:
    """Says how many seeds stand behind the numbers."""
    seeds = comparison["seeds"]
    if len(seeds) == 1:
        return f"One run, seed {seeds[0]}."
    short = [f"{row['label']} {len(row['seeds'])}" for row in comparison["rows"] if row["seeds"] != seeds]
    listed = f"{seeds[0]}–{seeds[-1]}" if seeds == list(range(seeds[0], seeds[-1] + 1)) else ", ".join(map(str, seeds))
    missing = f" (fewer: {', '.join(short)})" if short else ""
    return f"Mean ± standard deviation over {len(seeds)} seeds, {listed}{missing}."


def number(value: float | None, form: str = ".4f") -> Cell:
    """Returns a cell of one number, or of the sign for none."""
    return Cell(MISSING if value is None else format(value, form))


def speed(samples_per_s: float | None) -> str:
    """Returns 182 k, 1.24 M: three digits are what a timing is worth."""
    if samples_per_s is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if samples_per_s >= 0.9995 * size:
            scaled = samples_per_s / size
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f} {unit}"
    return f"{samples_per_s:.0f}"


def _summary_cell(summary: dict[str, Any] | None, form: str) -> Cell:
    if summary is None or summary["mean"] is None:
        return Cell(MISSING)
    return Cell(format(summary["mean"], form), "" if summary["std"] is None else format(summary["std"], form))


def _count_cell(summary: dict[str, Any] | None) -> Cell:
    return number(None if summary is None else summary["mean"], ",.0f")


def _speed_cell(row: dict[str, Any], stage: str) -> Cell:
    return Cell(speed(row["stages"].get(stage, {}).get("samples_per_s", {}).get("mean")))


def _metric_table(comparison: dict[str, Any], metric: str, title: str, note: str) -> Table:
    columns = tuple(Column(phase, SCORING_NAMES[scoring]) for scoring in SCORINGS for phase in PHASES)
    trivial = _trivial_rows(comparison, metric, SCORINGS) if metric == "logloss" else []
    return Table(title, columns, (*trivial, *_metric_rows(comparison, metric, SCORINGS)), note)


def _trivial_rows(
    comparison: dict[str, Any], metric: str, scorings: tuple[str, ...]
) -> list[tuple[str, tuple[Cell, ...]]]:
    """Puts first what needs no training."""
    return [
        (row["label"], tuple(number(row["phases"][phase].get(f"{metric}_{s}")) for s in scorings for phase in PHASES))
        for row in comparison.get("trivial", ())
    ]


_FORMATS = {"auc": ".4f", "logloss": ".4f", "calibration": ".3f", "rela_impr": "+z.1f"}  # z: no negative zero
_SPREAD_FORMATS = _FORMATS | {"rela_impr": ".1f"}
_BEST = {"auc": max, "rela_impr": max, "logloss": min}


def _metric_rows(
    comparison: dict[str, Any], metric: str, scorings: tuple[str, ...]
) -> list[tuple[str, tuple[Cell, ...]]]:
    """Gives one row of cells per row of the comparison.

    A column's best is found on what is printed, so that ties show.
    """
    columns = []
    for scoring in scorings:
        for phase in PHASES:
            cells = [metric_cell(row, phase, scoring, metric) for row in comparison["rows"]]
            numbers = [float(cell.text) for cell in cells if cell.text != MISSING]
            best = _BEST[metric](numbers) if metric in _BEST and len(numbers) > 1 else None
            trivial = best_trivial(comparison, phase, scoring) if metric == "auc" else None
            for index, cell in enumerate(cells):
                mean = comparison["rows"][index]["phases"][phase][f"{metric}_{scoring}"]["mean"]
                is_beaten = trivial is not None and mean is not None and mean <= trivial[0]
                is_best = cell.text != MISSING and float(cell.text) == best
                cells[index] = replace(cell, best=is_best, mark="‡" if is_beaten else cell.mark)
            columns.append(cells)
    return [(row["label"], tuple(column[index] for column in columns)) for index, row in enumerate(comparison["rows"])]


def metric_cell(row: dict[str, Any], phase: str, scoring: str, metric: str) -> Cell:
    """Returns the cell of one metric; the significance mark belongs to the AUC."""
    numbers = row["phases"][phase]
    summary = numbers[f"{metric}_{scoring}"]
    if summary["mean"] is None:
        return Cell(MISSING)
    spread = "" if summary["std"] is None else format(summary["std"], _SPREAD_FORMATS[metric])
    mark = ""
    if metric == "auc":
        if _is_gain(numbers[f"versus_best_{scoring}"]):
            mark = "*"
        elif _is_gain(numbers[f"versus_base_{scoring}"]):
            mark = "†"
    return Cell(format(summary["mean"], _FORMATS[metric]), spread, mark)


def _is_gain(versus: dict[str, Any] | None) -> bool:
    return versus is not None and versus["is_gain"]
