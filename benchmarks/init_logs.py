"""How long, and in how much memory, does `mwuf init` take for a log in many CSV files?

    python -m benchmarks.init_logs                  # 385 files of an hour each, 3.0 million clicks, 12 columns
    python -m benchmarks.init_logs --files 10

Makes up the files in the layout of a public log of news (clicks of Globo.com, Kaggle 2018: users, sessions, articles,
and eight columns of a click), and measures the command in a process of its own: seconds by the clock, seconds of
processor time (which other programs on the machine slow down less), and peak resident memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from benchmarks.prepare import measure
from benchmarks.record import Figure, Record, Row, command_line, table

ROWS_OF_A_FILE, FILES, USERS, ARTICLES = 7_760, 385, 320_000, 46_000
GOAL_S, GOAL_BYTES = 20, 1e9


def make_files(folder: Path, num_files: int) -> int:
    """Writes hours of clicks, one after another; returns how many clicks."""
    random = np.random.default_rng(0)
    popularity = 1 / np.arange(1, ARTICLES + 1) ** 0.9
    article_of_rank = random.permutation(ARTICLES)
    traits = random.integers([1, 1, 1, 1, 1, 1], [4, 5, 20, 11, 28, 7], size=(USERS, 6))
    columns = ("environment", "deviceGroup", "os", "country", "region", "referrer_type")
    for hour in range(num_files):
        user = random.integers(USERS, size=ROWS_OF_A_FILE)
        start = 1_506_826_800_000 + 3_600_000 * hour + np.sort(random.integers(3_600_000, size=ROWS_OF_A_FILE))
        article = article_of_rank[random.choice(ARTICLES, size=ROWS_OF_A_FILE, p=popularity / popularity.sum())]
        made = {
            "user_id": user,
            "session_id": start * 1000 + random.integers(1000, size=ROWS_OF_A_FILE),
            "session_start": start,
            "session_size": random.integers(2, 9, size=ROWS_OF_A_FILE),
            "click_article_id": article,
            "click_timestamp": start + random.integers(300_000, size=ROWS_OF_A_FILE),
        }
        made |= {f"click_{name}": traits[user, place] for place, name in enumerate(columns)}
        pa_csv.write_csv(pa.table(made), folder / f"clicks_hour_{hour:03d}.csv")
    return num_files * ROWS_OF_A_FILE


def main() -> None:
    """Measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES, help="files of an hour")
    parser.add_argument("--scratch", type=Path, help="where files may be written; by default the temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "clicks"
        folder.mkdir()
        rows = make_files(folder, arguments.files)
        done = measure(["init", str(folder), "--output", str(Path(scratch) / "logs.toml")], {})
    more = {"init": done, "load_average": round(os.getloadavg()[0], 1)}
    seconds, megabytes = (
        f"{done['wall_s']} s by the clock, {done['cpu_s']} s of processor time",
        done["peak_bytes"] / 1e6,
    )
    print(f"{arguments.files} files, {rows:,} rows: {seconds}, {megabytes:,.0f} MB")
    print(f"goal for {FILES} files: {GOAL_S} s, {GOAL_BYTES / 1e6:,.0f} MB; load of the machine {more['load_average']}")
    rate = Figure.of("ours", [rows / done["cpu_s"]])
    row = Row(f"init, {arguments.files} files", "rows/CPU s", True, rate, config={"rows": rows}, more=more)
    record = Record(
        "mwuf init, of made-up files", command_line("init_logs", sys.argv[1:]), {}, [row], os.cpu_count() or 1
    )
    print(table([record]))
    if arguments.output:
        record.write(arguments.output)


if __name__ == "__main__":
    main()
