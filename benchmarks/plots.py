"""Draws the records of benchmarks: ratios to the alternative, and growth.

python -m benchmarks.plots benchmarks/results --output runs/plots
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.record import Record, Row, is_record, read

_OURS, _LIMIT, _GREY = "#1f77b4", "#d62728", "#888888"


def plot_ratios(records: list[Record], path: Path) -> bool:
    """A bar for each row that has an alternative: how many times as good ours is. False where there is none."""
    rows = [(f"{row.name} ({_short(record)})", row) for record in records for row in record.rows if _has_ratio(row)]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(8, 1 + 0.25 * len(rows)), layout="constrained")
    ratios = [row.ratio(row.alternative) or 0.0 for _, row in rows]
    axes.barh([label for label, _ in rows], ratios, color=_OURS)
    axes.axvline(1.0, color=_GREY, linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("times as good as the alternative")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _short(record: Record) -> str:
    return record.config.get("backbone") or record.question.partition(",")[0]


def _has_ratio(row: Row) -> bool:
    return row.ours is not None and row.alternative is not None


def plot_growth(record: Record, path: Path) -> None:
    """Time of a step, and memory above the tables, over the rows of a table and over the training rows."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in dict.fromkeys(row.name for row in record.rows):
        rows = [row for row in record.rows if row.name == name and row.ours is not None]
        key = "training_rows" if name == "rows grow" else "rows_per_table"
        sizes = [row.config[key] for row in rows]
        times = [
            [record.config["batch_size"] / getattr(row.ours, q) * 1e3 for row in rows] for q in ("p50", "p90", "p10")
        ]
        slope = record.config["growth"].get(name, {}).get("slope")
        (line,) = axes[0].plot(sizes, times[0], marker="o", label=f"{name}, slope {slope}")
        axes[0].fill_between(sizes, times[1], times[2], color=line.get_color(), alpha=0.2)
        above = [(row.more["peak_bytes"] - row.more["table_bytes"]) / 1e9 for row in rows]
        axes[1].plot(sizes, above, marker="o", label=name, color=line.get_color())
    axes[0].set_ylabel("ms of processor time a step")
    axes[1].set_ylabel("GB of peak memory above the tables")
    for one in axes:
        one.set_xscale("log")
        one.set_xlabel("rows (of each ID table, or to train on)")
        one.set_ylim(bottom=min(0.0, one.get_ylim()[0]))
        one.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw(paths: list[Path], folder: Path) -> list[Path]:
    """Draws all records among the JSON files; the plots made."""
    records = [read(path) for path in paths if is_record(json.loads(path.read_text(encoding="utf-8")))]
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    if plot_ratios(records, folder / "ratios.png"):
        made.append(folder / "ratios.png")
    for record in records:
        if "growth" in record.config:
            plot_growth(record, folder / "growth.png")
            made.append(folder / "growth.png")
    return made


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+", help="JSON files, or folders of them")
    parser.add_argument("--output", type=Path, default=Path("runs/plots"), help="folder of the plots")
    options = parser.parse_args()
    paths = [one for path in options.records for one in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    for path in draw(paths, options.output):
        print(path)


if __name__ == "__main__":
    main()
