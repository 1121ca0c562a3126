"""How long, and in how much memory, does `mwuf prepare` take for the public data sets at full size?

    python -m benchmarks.prepare                                # both: 26.5 and 62 million rows, 4 GB of scratch
    python -m benchmarks.prepare taobao-ad --rows 1_000_000
    python -m benchmarks.prepare cikm2019 --rows 1_000_000 10_000_000 100_000_000 --workers 2     # does it grow?

Synthesizes the raw files, prepares them by the data set's own config, and measures each command in a process of its
own: seconds by the clock, seconds of processor time (which other programs on the machine slow down less), and peak
resident memory. With `--workers` the pieces of work are done by so many workers of a Ray cluster of this machine, whose
processor time and whose peak memory, of the one with most, are measured too. What was written is removed again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import Figure, Record, Row, command_line, table

ROOT = Path(__file__).parent.parent
# Data set -> rows; goals of `prepare` on two cores.
FULL_ROWS = {"taobao-ad": 26_500_000, "cikm2019": 62_000_000}
# What `mwuf prepare --launcher ray` says of its workers.
WORKERS = re.compile(r"(\d+) workers: ([\d.]+) s of processor time, at most (\d+) MB each")
GOALS = {"taobao-ad": (180, 6e9), "cikm2019": (360, 8e9)}


def measure(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Runs `mwuf ARGUMENTS` in a process of its own.

    Returns:
        `wall_s`, `cpu_s` (all threads) and `peak_bytes` (resident), and where it has workers `workers`, their
        `workers_cpu_s` and `worker_peak_bytes`.
    """
    command = [sys.executable, "-m", "mwuf_dist", *arguments]
    clock = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        workers = WORKERS.search(said.read())
    wall_s = time.perf_counter() - clock
    if status:
        raise SystemExit(f"mwuf {' '.join(arguments)}: ended with {os.waitstatus_to_exitcode(status)}")
    found = {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    if workers:
        num_bytes = int(float(workers[3]) * 1e6)
        found |= {"workers": int(workers[1]), "workers_cpu_s": float(workers[2]), "worker_peak_bytes": num_bytes}
    return found


def measure_data_set(name: str, num_rows: int, scratch: Path, options: list[str], kept: Path | None = None) -> Row:
    """Synthesizes and prepares one data set.

    Args:
        name: the data set.
        num_rows: its interactions.
        scratch: an empty folder.
        options: further options of `mwuf prepare`.
        kept: where the raw files stay, and are taken from when they are there.
    """
    raw, prepared = (kept / f"{num_rows}" if kept else scratch / "raw") / name, scratch / "prepared"
    made = {}
    if not raw.exists():
        made = {"synthesize": measure(["synthesize", name, "--rows", str(num_rows), "--output", str(raw)], {})}
    config = str(ROOT / "configs" / f"{name}.toml")
    command = ["prepare", config, "--data.prepared-dir", str(prepared), *options]
    done = measure(command, {"MWUF_DATA_DIR": str(raw.parent)})
    (manifest,) = (json.loads(path.read_text()) for path in prepared.glob("*/manifest.json"))
    more = {
        "raw_bytes": sum(path.stat().st_size for path in raw.iterdir()),
        "split": {
            "old_items": manifest["num_old_items"],
            "new_items": manifest["num_new_items"],
            **{split: entry["rows"] for split, entry in manifest["splits"].items()},
        },
        **made,
        "prepare": done,
        "load_average": round(os.getloadavg()[0], 1),
    }
    rate = Figure.of("ours", [num_rows / (done["cpu_s"] + done.get("workers_cpu_s", 0))])
    return Row(manifest["name"], "rows/CPU s", True, rate, config={"rows": num_rows}, more=more)


def _print(name: str, row: Row) -> None:
    for command in ("synthesize", "prepare"):
        one = row.more.get(command)
        if one is None:
            continue
        cpu_s = one["cpu_s"] + one.get("workers_cpu_s", 0)
        peak_bytes = max(one["peak_bytes"], one.get("worker_peak_bytes", 0))
        figures = (
            f"{one['wall_s']:>9.1f} {cpu_s:>8.1f} {peak_bytes / 1e6:>9,.0f} {1e6 * cpu_s / row.config['rows']:>9.2f}"
        )
        print(f"{name:<12} {row.config['rows']:>11,}   {command:<10} {figures}", flush=True)
    seconds, num_bytes = GOALS[name]
    print(f"  goal of prepare at {FULL_ROWS[name]:,} rows: {seconds} s, {num_bytes / 1e6:,.0f} MB", flush=True)
    print(f"  split: {row.more['split']}; load of the machine at the end: {row.more['load_average']}", flush=True)


def main() -> None:
    """Measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="data sets; none: all")
    parser.add_argument("--rows", type=int, nargs="+", help="interactions, instead of the full number")
    parser.add_argument("--workers", type=int, help="workers of a Ray cluster of this machine")
    parser.add_argument("--raw", type=Path, help="where raw files stay, and are taken from when they are there")
    parser.add_argument("--scratch", type=Path, help="where files may be written; by default the temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    arguments, options = parser.parse_known_args()  # What it does not know goes to `mwuf prepare`.
    names = arguments.names or list(FULL_ROWS)
    unknown = set(names) - set(FULL_ROWS)
    if unknown:
        parser.error(f"no data set {', '.join(unknown)}: there are {', '.join(FULL_ROWS)}")
    if arguments.workers:
        options += ["--launcher", "ray", "--num-workers", str(arguments.workers)]
    print("data set           rows   command      wall s    CPU s   peak MB   CPU s per million rows")
    rows = []
    for name, num_rows in ((one, num) for one in names for num in arguments.rows or [FULL_ROWS[one]]):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            rows.append(measure_data_set(name, num_rows, Path(scratch), options, arguments.raw))
        _print(name, rows[-1])
    command = command_line("prepare", sys.argv[1:])
    record = Record("mwuf prepare, of made-up raw files", command, {}, rows, threads=os.cpu_count() or 1)
    print(table([record]))
    if arguments.output:
        record.write(arguments.output)


if __name__ == "__main__":
    main()
