"""Records of benchmarks as tables of a page, by `docs_pages.py`; one function for each kind of record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mwuf_dist.config import PHASES

ROOT = Path(__file__).resolve().parent.parent


def prepare_table(names: str) -> str:
    """Records of `benchmarks.prepare`: rows, time and memory of each command."""
    rows = []
    for name in names.split():
        for row in read_record(name)["rows"]:
            one = row["more"]
            kept = sum(one["split"][split] for split in ("pretrain", "warm_a", "warm_b", "warm_c", "test"))
            parts = (one["synthesize"], one["prepare"])
            cells = [(f"{p['wall_s']:.0f}", f"{p['cpu_s']:.0f}", f"{p['peak_bytes'] / 1e6:,.0f}") for p in parts]
            rows.append((row["name"], f"{row['config']['rows']:,}", f"{kept:,}", *cells[0], *cells[1]))
    measures = [f"{part}: {what}" for part in ("synthesize", "prepare") for what in ("wall s", "CPU s", "peak MB")]
    return rows_table(("", "rows", "rows kept", *measures), rows)


def init_table(name: str) -> str:
    """A record of `benchmarks.init_logs`: time and memory of the whole command."""
    rows = []
    for row in read_record(name)["rows"]:
        one, load = row["more"]["init"], row["more"]["load_average"]
        cells = (f"{one['cpu_s']:.1f}", f"{one['wall_s']:.0f}", f"{one['peak_bytes'] / 1e6:,.0f}", f"{load:.1f}")
        rows.append((row["name"], f"{row['config']['rows']:,}", *cells))
    return rows_table(("", "rows", "CPU s", "wall s", "peak MB", "programs that ran beside it"), rows)


def prepare_growth_table(name: str) -> str:
    """A record of `benchmarks.prepare --workers`: processor time per million rows, and memory, by size."""
    rows = []
    for row in read_record(name)["rows"]:
        one, num_rows = row["more"]["prepare"], row["config"]["rows"]
        cpu_s = one["cpu_s"] + one["workers_cpu_s"]
        memory = (f"{one[key] / 1e6:,.0f}" for key in ("worker_peak_bytes", "peak_bytes"))
        rows.append(
            (f"{num_rows:,}", f"{one['wall_s']:.0f}", f"{cpu_s:.1f}", f"{1e6 * cpu_s / num_rows:.2f}",
             f"{1e6 * one['workers_cpu_s'] / num_rows:.2f}", *memory)
        )  # fmt: skip
    heads = ("rows", "wall s", "CPU s", "per million rows", "workers alone", "peak MB of a worker", "of the launcher")
    return rows_table(heads, rows)


def plan_table(name: str) -> str:
    """A record of `benchmarks.plan`: estimates beside what was measured."""
    rows = []
    for row in read_record(name)["rows"]:
        estimated, measured = row["ours"]["p50"], row["alternative"]["p50"]
        cells = (f"{estimated:.1f} {row['unit']}", f"{measured:.1f} {row['unit']}", f"{measured / estimated:.2f}")
        rows.append((f"{row['name']}, {row['config']['ranks']} rank(s)", *cells))
    return rows_table(("", "estimated", "measured", "measured / estimated"), rows)


def speed_table(names: str) -> str:
    """Two records of `benchmarks.train_step`, in float32 and in bfloat16, as docs/performance.md shows them.

    Rates, ratios, and the AUCs of the same runs; bfloat16 in columns of its own.
    """
    rows = []
    full, half = (read_record(name) for name in names.split())
    assert half["config"] == full["config"] | {"dtype": "bfloat16"}
    for row, other in zip(full["rows"], half["rows"], strict=True):
        ours, plain = row["ours"]["p50"], row["alternative"]["p50"]
        aucs, other_aucs = (
            " / ".join(f"{one['aucs'][phase]:.4f}".lstrip("0") for phase in PHASES) for one in (row, other)
        )
        if row["higher_is_better"]:
            figures = [f"{one / 1e3:,.0f}" for one in (plain, ours, row["limit"]["p50"])]
            share = f"{ours / row['limit']['p50']:.0%}"
            cells = (*figures[:2], f"{ours / plain:.1f}", figures[2], share, aucs, f"{other['ours']['p50'] / 1e3:,.0f}")
        else:
            times = (f"{plain:.1f} s", f"{ours:.1f} s", f"{plain / ours:.1f}")
            cells = (*times, "", "", aucs, f"{other['ours']['p50']:.1f} s")
        rows.append((row["name"], *cells, other_aucs))
    heads = (
        "thousand samples/s",
        "eager or compiled PyTorch",
        "mwuf-dist",
        "ratio",
        "matrix products alone",
        "of them",
    )
    return rows_table((*heads, "AUC " + " / ".join(PHASES), "in bfloat16", "AUC in bfloat16"), rows)


def backbone_speed_table(names: str) -> str:
    """Records of `benchmarks.train_step` of several backbones: rates of both programs and their ratio by stage."""
    rows = []
    for name in names.split():
        record = read_record(name)
        for row in record["rows"]:
            if not row["higher_is_better"] or row["alternative"] is None:
                continue
            ours, plain, more = row["ours"]["p50"], row["alternative"]["p50"], row["more"]
            cost = ("", "", "")
            if "flops_per_sample" in more:
                cost = (f"{more['flops_per_sample'] / 1e3:,.0f}", f"{more['bytes_per_sample'] / 1e3:.1f}",
                        f"{more['ours_of_roofline']:.0%}")  # fmt: skip
            rows.append(
                (record["config"]["backbone"], row["name"], f"{plain / 1e3:,.0f}", f"{ours / 1e3:,.0f}",
                 f"{ours / plain:.2f}", f"{ours / row['limit']['p50']:.0%}", *cost,
                 " / ".join(f"{row['aucs'][phase]:.4f}".lstrip("0") for phase in PHASES if row["aucs"]))
            )  # fmt: skip
    heads = ("backbone", "thousand samples/CPU s", "better of eager and compiled", "mwuf-dist", "ratio")
    heads += ("of the MLP alone", "kFLOP a sample", "kB a sample", "of the roofline")
    return rows_table((*heads, "AUC " + " / ".join(PHASES)), rows)


def threads_table(name: str) -> str:
    """A record of `benchmarks.threads`: rates on one and on most threads, and the estimate for more cores."""
    rows = []
    for row in read_record(name)["rows"]:
        one, most, more = row["alternative"]["p50"], row["ours"]["p50"], row["more"]
        if "serial_s" not in more:  # what the machine allows, in operations or bytes
            rows.append((row["name"], "–", "–", f"{most / one:.2f}", "–", "–", "–"))
            continue
        estimated = more["estimated_samples_per_s_by_cores"]
        serial = more["serial_s"] / (more["serial_s"] + more["shared_s"])
        cells = (f"{one / 1e3:,.0f}", f"{most / 1e3:,.0f}", f"{most / one:.2f}", f"{serial:.0%}")
        rows.append((row["name"], *cells, *(f"{estimated[cores] / 1e3:,.0f}" for cores in ("4", "8"))))
    heads = (
        "thousand samples/s",
        "1 thread",
        "2 threads",
        "ratio",
        "serial part",
        "4 cores, estimated",
        "8 cores, estimated",
    )
    return rows_table(heads, rows)


def growth_table(name: str) -> str:
    """A record of `benchmarks.growth`: rates and memory by size."""
    rows = []
    for row in read_record(name)["rows"]:
        sizes, more = row["config"], row["more"]
        above = f"{(more['peak_bytes'] - more['table_bytes']) / 1e6:,.0f}"
        cells = (f"{sizes['rows_per_table']:,}", f"{sizes['training_rows']:,}", f"{row['ours']['p50'] / 1e3:,.0f}")
        rows.append((row["name"], *cells, f"{more['table_bytes'] / 1e6:,.0f}", above))
    heads = ("", "rows in each ID table", "training rows", "thousand samples/CPU s", "tables MB", "peak MB above them")
    slopes = [
        (of, f"{one['from']:,}", f"{one['to']:,}", f"{one['times_as_long']:.2f}", f"{one['slope']:.3f}")
        for of, one in read_record(name)["config"]["growth"].items()
    ]
    slope_heads = ("", "from", "to", "times as long", "slope over all sizes")
    return f"{rows_table(heads, rows)}\n\n{rows_table(slope_heads, slopes)}"


def ranks_table(name: str) -> str:
    """A record of `benchmarks.ranks`: rates of both programs by stage, batch size and number of ranks."""
    rows, of_one = [], {}
    for row in read_record(name)["rows"]:
        ours, plain = row["ours"]["p50"], row["alternative"]["p50"]
        ranks, batch_size = row["config"]["ranks"], row["config"]["batch_size"]
        if ranks == 1:
            of_one[row["name"], batch_size] = ours
        one = of_one.get((row["name"], batch_size))
        gain = f"{ours / one:.2f}" if one else "–"
        cells = (f"{plain / 1e3:,.0f}", f"{ours / 1e3:,.0f}", f"{ours / plain:.2f}", gain)
        rows.append((row["name"], f"{batch_size:,}", str(ranks), *cells))
    heads = ("", "global batch", "ranks", "plain DDP, thousand samples/s", "mwuf-dist", "ratio", "to its one rank")
    return rows_table(heads, rows)


def large_tables_table(name: str) -> str:
    """A record of `benchmarks.large_tables`: rates of one rank with whole tables, and of several with parts of them."""
    rows = []
    for row in read_record(name)["rows"]:
        one, ours = row["alternative"]["p50"], row["ours"]["p50"]
        cells = (f"{one / 1e3:,.0f}", f"{ours / 1e3:,.0f}", f"{ours / one:.2f}")
        rows.append((row["name"], f"{row['config']['batch_size']:,}", str(row["config"]["ranks"]), *cells))
    heads = ("", "global batch", "ranks", "one rank, thousand samples/s", "all ranks", "ratio")
    return rows_table(heads, rows)


def network_table(name: str) -> str:
    """A record of `benchmarks.network`: estimated and measured steps by stage and link, and those by gloo."""
    rows = []
    for row in read_record(name)["rows"]:
        link, more, estimated, measured = row["config"], row["more"], row["ours"]["p50"], row["alternative"]["p50"]
        rate = link["gbit_per_s"] if link["gbit_per_s"] == "free" else f"{link['gbit_per_s']:g} Gbit/s"
        sent = (f"{more['exchanges']}", f"{more['bytes_sent'] / 1e6:.2f}")
        times = (f"{estimated:.1f}", f"{measured:.1f}", f"{measured / estimated:.2f}", f"{more['gloo_ms']:.1f}")
        found = f"{more['link_bits_per_s'] / 1e9:.1f} Gbit/s, {1e3 * more['link_delay_s']:.2g} ms"
        rows.append((row["name"], rate, f"{link['delay_ms']:g}", found, *sent, *times))
    heads = (
        "",
        "link",
        "delay ms",
        "measured",
        "exchanges",
        "MB sent",
        "estimated ms",
        "measured ms",
        "ratio",
        "by gloo ms",
    )
    return rows_table(heads, rows)


def loader_table(names: str) -> str:
    """Records of `benchmarks.loader` on one thread and on two: rates, and their share of a bare scan's."""
    one, two = map(read_record, names.split())
    rows = []
    for row, by_two in zip(one["rows"], two["rows"], strict=True):
        ours, limit, others = row["ours"]["p50"], row["limit"]["p50"], by_two["ours"]["p50"]
        cells = (f"{ours / 1e6:.0f}", f"{limit / 1e6:.0f}", f"{ours / limit:.0%}", f"{others / 1e6:.0f}")
        rows.append((row["name"], *cells))
    return rows_table(("", "million rows/CPU s", "bare scan", "of it", "million rows/s, 2 threads"), rows)


def criteo_table(name: str) -> str:
    """A record of `benchmarks.criteo`: rates, what a sample costs, and the part of the roofline that is reached."""
    rows = []
    for row in read_record(name)["rows"]:
        more, ours, other, roof = row["more"], *(row[key]["p50"] for key in ("ours", "alternative", "limit"))
        cost = (f"{more['flops_per_sample'] / 1e6:.1f}", f"{more['bytes_per_sample'] / 1e3:.0f}")
        machine = (f"{more['gflops_per_s']:.0f}", f"{more['copy_gb_per_s']:.1f}")
        rates = (f"{other:,.0f}", f"{ours:,.0f}", f"{ours / other:.2f}", f"{other / roof:.0%}", f"{ours / roof:.0%}")
        rows.append((f"{row['config']['ranks']}", *rates, *cost, *machine))
    heads = ("ranks", "TorchRec samples/s", "mwuf-dist", "ratio", "TorchRec of roofline", "mwuf-dist of it")
    costs = ("million operations a sample", "thousand bytes", "billion operations/s a core", "GB/s copied a core")
    return rows_table((*heads, *costs), rows)


def export_table(name: str) -> str:
    """A record of `benchmarks.export`: items a second by the clock and by processor time, and memory."""
    rows = []
    for row in read_record(name)["rows"]:
        more = row["more"]
        rates = (f"{rate / 1e6:.2f}" for rate in (more["items_per_s"], row["ours"]["p50"]))
        sizes = (more["file_bytes"], more["before_bytes"], more["peak_bytes"] - more["before_bytes"])
        rows.append((row["name"], *rates, *(f"{size / 1e6:,.0f}" for size in sizes)))
    heads = ("format", "million items/s", "million items/CPU s", "file MB", "MB before the first item", "peak MB above")
    return rows_table(heads, rows)


def warm_table(name: str) -> str:
    """A record of `benchmarks.warm`: seconds of a daily job."""
    rows = []
    for row in read_record(name)["rows"]:
        more = row["more"]
        seconds = (f"{more[key]:.1f}" for key in ("seconds", "cpu_s", "rule_s"))
        rows.append((f"{more['clicks']:,}", f"{more['items']:,}", *seconds, f"{row['ours']['p50']:,.0f}"))
    return rows_table(("clicks", "items", "s", "CPU s", "the rule, s", "clicks/CPU s"), rows)


def saves_table(name: str) -> str:
    """A record of `benchmarks.saves`: how long training stands still, and when the checkpoint is there."""
    rows = []
    for row in read_record(name)["rows"]:
        cells = (row["alternative"]["p50"], row["ours"]["p50"], row["more"]["written_after_s"])
        rows.append((f"{row['config']['mb']:,.0f} MB", *(f"{seconds:.2f}" for seconds in cells)))
    heads = ("state", "at once: stands still, s", "in the background: stands still, s", "is written after, s")
    return rows_table(heads, rows)


def processors_table(name: str) -> str:
    """A record of `make test-processors`: what each part plays, and what came of it."""
    rows = []
    for part in read_record(name)["parts"].values():
        outcome = f"skipped: {part['skipped']}" if part["skipped"] else re.sub(r", \d+ warnings?", "", part["tests"])
        rows.append((f"`{part['part']}`", f"`{part['plays']}`", part["loops"], outcome, f"{part['seconds']:.0f}"))
    return rows_table(("`PROCESSORS`", "plays", "the loops' own checks", "tests", "s"), rows)


def power_cuts_table(name: str) -> str:
    """A record of `benchmarks.power_cuts`: of the states of each command, how many were tried, and found wrong."""
    rows = [
        (f"`{row['name']}`", *(f"{number:,}" for number in (row["more"]["states"], row["more"]["tried"])),
         str(len(row["more"]["wrong"])))
        for row in read_record(name)["rows"]
    ]  # fmt: skip
    return rows_table(("command", "states of the disk", "tried", "wrong"), rows)


def stops_table(name: str) -> str:
    """A record of `benchmarks.chaos --stops`: what was stopped, how often, and how long the others took."""
    rows = []
    for row in read_record(name)["rows"]:
        found = row["more"]["scenarios"]
        longest = max(one["seconds"] for one in found)
        cells = (f"{row['more']['in_bound']} of {len(found)}", f"{row['ours']['p50']:.0f}", f"{longest:.0f}")
        rows.append((f"`{row['config']['way']}`", row["config"]["who"], *cells, f"{row['more']['limit_s']:.0f}"))
    heads = ("started by", "stopped", "in bound", "median, s", "longest, s", "bound, s")
    return rows_table(heads, rows)


def new_users_table(names: str) -> str:
    """Records of `benchmarks.new_users`: AUC and log loss by the number of a user's clicks."""
    rows, heads = [], [""]
    for name in names.split():
        record = read_record(name)
        heads = ["", *(f"{row['more']['clicks']} clicks" for row in record["rows"])]
        model = f"{record['config']['backbone']['name']} / {record['config']['method']['name']}"
        rows.append((f"{model}, AUC", *(f"{row['ours']['p50']:.4f}" for row in record["rows"])))
        rows.append((f"{model}, log loss", *(f"{row['more']['logloss']:.4f}" for row in record["rows"])))
    return rows_table(tuple(heads), rows)


def last_bits_table(names: str) -> str:
    """Records of `benchmarks.last_bits`: AUCs of several ranks and of one moved bit, against one rank's."""
    rows, heads = [], [""]
    for name in names.split():
        record = read_record(name)
        *ranks, moved = record["rows"]
        heads = ["", *(row["name"] for row in ranks), "one rank, a last bit moved: median and largest of so many tries"]
        tries = f"{moved['ours']['p50']:.1e}, {moved['more']['largest']:.1e} ({moved['ours']['runs']})"
        cells = [f"{row['more']['largest']:.1e}" for row in ranks]
        rows.append((f"`{record['config']['config']}`", *cells, tries))
    return rows_table(tuple(heads), rows)


_DAYS = (10, 30, 60, 120)


def exploration_table(name: str) -> str:
    """A record of `benchmarks.exploration`: clicks that each policy has lost by some days."""
    record = read_record(name)
    first = record["rows"][0]
    rows = [("Thompson sampling", "", *_by_day(first["more"]["curve_ours_mean"]), _spread(first["ours"]))]
    for row in record["rows"]:
        more = row["more"]
        gap = f"{more['less_regret_mean']:+,.0f} ± {more['less_regret_standard_error']:,.0f}"
        rows.append((row["config"]["policy"], gap, *_by_day(more["curve_mean"]), _spread(row["alternative"])))
    heads = ("policy", "lost more than Thompson sampling in the end, ± standard error")
    heads = (*heads, *(f"day {day}" for day in _DAYS), "in the end, 10 to 90 % of worlds")
    return rows_table(heads, rows)


def _by_day(curve: list[float]) -> list[str]:
    return [f"{curve[day - 1]:,.0f}" for day in _DAYS]


def _spread(figure: dict[str, float]) -> str:
    return f"{figure['p10']:,.0f} to {figure['p90']:,.0f}"


def read_record(name: str) -> dict[str, Any]:
    """A record of `benchmarks/results/`; see `benchmarks/record.py:Record`."""
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def rows_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown: its heads, and a line for each row."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
