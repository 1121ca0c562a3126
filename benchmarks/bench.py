"""How fast is everything, beside what one would use instead and beside the limit? `make bench` prints it.

    python -m benchmarks.bench                   # what this machine can, in under ten minutes; records in runs/bench/
    python -m benchmarks.bench --only train-step loader

Runs the other benchmarks one after another, each in a process of its own and at a size that fits into the time, and
prints one table of their records. What failed, was not reached in time, or needs a GPU that is not here is shown as not
measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.record import ROOT, Record, Row, read, table

_OTHER_BACKBONES = ("pnn", "afn", "din", "gru4rec")


def jobs(config: str) -> dict[str, list[str]]:
    """Name of each job -> the benchmark and its arguments: the most telling first, the slowest last."""
    found = {"train-step": ["train_step", config, "--rounds", "5"]}
    found |= {"loader": ["loader", "--rows", "4_000_000", "--rounds", "3"]}
    found |= {"kernels": ["kernels", "--seconds", "45"]}
    found |= {"growth": ["growth", "--tables", "10_000", "1_000_000", "--rows", "--turns", "6"]}
    found |= {"export": ["export", "--items", "1_000_000", "--formats", "npy"]}
    found |= {"warm": ["warm", "--clicks", "100_000"]}
    found |= {"prepare": ["prepare", "taobao-ad", "--rows", "1_000_000"]}
    sizes = [] if torch.cuda.is_available() else ["--batch-sizes", "8192", "32768"]
    found |= {"batch-sizes": ["batch_sizes", config, *sizes]}
    found |= {"ranks": ["ranks", config, "--steps", "3", "--rounds", "3"]}
    # A whole run of ours for the AUCs; the plain program's would take as long again.
    short = ["train_step", config, "--steps", "6", "--rounds", "3", "--ours-alone"]
    found |= {f"train-step-{name}": [*short, "--backbone.name", name] for name in _OTHER_BACKBONES}
    return found | {"train-step-bfloat16": [*short, "--backbone.precision", "bfloat16"]}


def run(name: str, arguments: list[str], folder: Path, left_s: float) -> Record:
    """Runs one benchmark and reads its record; one of a row that was not measured where it does not come to its end."""
    output, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{arguments[0]}", *arguments[1:]]
    reason = "no time left"
    if left_s > 0:
        try:
            with log.open("w", encoding="utf-8") as stream:
                done = subprocess.run(
                    [*command, "--output", str(output)],
                    cwd=ROOT, stdout=stream, stderr=stream, timeout=left_s, check=False,
                )  # fmt: skip
            if done.returncode == 0:
                return read(output)
            reason = f"it ended with {done.returncode}, see {log}"
        except subprocess.TimeoutExpired:
            reason = f"out of time, see {log}"
    row = Row(f"{name}: {reason}", "", True, None)
    return Record(f"benchmarks.{arguments[0]}", " ".join(["python", *command[3:]]), {}, [row], threads=1)


def default_config() -> str:
    """MovieLens-1M where it lies ready, else the generated data set."""
    raw = Path(os.environ.get("MWUF_DATA_DIR", ".")) / "ml-1m" / "ratings.dat"
    return "configs/movielens-1m.toml" if raw.is_file() else "configs/demo.toml"


def main() -> int:
    """Runs the jobs, prints the table. 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=default_config(), help="of the training stages")
    parser.add_argument("--only", nargs="+", help="names of jobs")
    parser.add_argument("--seconds", type=float, default=570.0, help="what is not reached by then is not measured")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="of the records")
    options = parser.parse_args()
    chosen = {name: job for name, job in jobs(options.config).items() if not options.only or name in options.only}
    if options.only and len(chosen) < len(set(options.only)):
        parser.error(f"the jobs are {', '.join(jobs(options.config))}")
    options.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    records = []
    for name, job in chosen.items():
        print(f"{time.monotonic() - began:4.0f} s  {name}", flush=True)
        records.append(run(name, job, options.folder, options.seconds - (time.monotonic() - began)))
    text = table(records)
    (options.folder / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nrecords: {options.folder}; plots: python -m benchmarks.plots {options.folder}")
    # A row without a unit stands for a benchmark that did not come to its end.
    return int(any(row.unit == "" for record in records for row in record.rows))


if __name__ == "__main__":
    sys.exit(main())
