"""How long does a click take from its file to its delta, and what do ten million births and deaths cost a server?

    python -m benchmarks.follow                  # 1,000 clicks/s for a minute over a million items, one thread
    python -m benchmarks.follow --table 10000000 # births and deaths in a server's table, survivors compared

A small run on synthetic data is trained and a state of so many new items is made (neither is timed). Then a process
writes a file of a second's clicks each second, and `mwuf warm --follow` takes them. Timed is, for each file, from its
name's appearance to that of the delta that has it; a snapshot is among it where it falls in. CPU s is the follower's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.record import Figure, Record, Row, command_line, table
from benchmarks.warm import settings
from mwuf_dist.config import Config
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.launch import local
from mwuf_dist.runtime import start
from mwuf_dist.serving.deltas.files import delta_files
from mwuf_dist.serving.deltas.reader import Delta, ItemTable, read_delta
from mwuf_dist.serving.warm.job import warm

_FIRST_ID = 10**7


def make_state(config: Config, run: Path, num_items: int, output: Path) -> None:
    """A job that lists the items, so that the state has them all."""
    prepared = prepare(config.data)
    fields = {one.name: np.zeros(num_items, np.int64) for one in prepared.fields if one.side == "item"}
    with start(config) as runtime:
        listed = output.with_suffix(".items.parquet")
        pq.write_table(pa.table({"item_id": _FIRST_ID + np.arange(num_items)} | fields), listed)
        warm(run, None, output, runtime, items=listed)


def play(config: Config, folder: Path, num_items: int, clicks_per_s: int, seconds: int) -> dict[str, float]:
    """Writes a file each second; when each had its name [file name -> Unix time]."""
    random, users = np.random.default_rng(0), prepare(config.data).entity("user").raw_ids
    weights = np.arange(1, num_items + 1) ** -0.5
    chances = np.cumsum(weights / weights.sum())
    named, begin = {}, time.time()
    for second in range(seconds):
        item = _FIRST_ID + np.searchsorted(chances, random.random(clicks_per_s))
        columns = {"user_id": random.choice(users, clicks_per_s), "item_id": item}
        columns |= {"label": random.integers(2, size=clicks_per_s)}
        columns |= {"timestamp": 2 * 10**9 + second * clicks_per_s + np.arange(clicks_per_s)}
        path = folder / f".{second:06d}.parquet"
        pq.write_table(pa.table(columns), path)
        time.sleep(max(0.0, begin + second - time.time()))
        os.rename(path, folder / path.name[1:])
        named[path.name[1:]] = time.time()
    return named


def follow(config: Config, folder: Path, options: argparse.Namespace) -> Row:
    """One run of the follower."""
    make_state(config, folder / "run", options.items, folder / "state")
    clicks, output = folder / "clicks", folder / "live"
    clicks.mkdir()
    first = {"user_id": [1], "item_id": [_FIRST_ID], "label": [1], "timestamp": [2 * 10**9 - 1]}
    pq.write_table(pa.table(first), clicks / "first.parquet")
    command = [sys.executable, "-m", "mwuf_dist", "warm", str(folder / "state"), "--follow", str(clicks)]
    with subprocess.Popen([*command, "--output", str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        named = play(config, clicks, options.items, options.clicks_per_s, options.seconds)
        for line in process.stdout:
            if delta_of(output, f"{options.seconds - 1:06d}.parquet"):
                print(line.strip())
                break
        process.terminate()
        process.wait()
    waited, deltas = [], delta_files([output])
    for path in deltas:
        at, names = path.stat().st_mtime, read_delta(path, ()).header["position"]
        waited += [at - named[name] for name in names if name in named]
    assert len(waited) == options.seconds
    more = {
        "deltas": len(deltas),
        "files": len(waited),
        "p95_s": float(np.quantile(waited, 0.95)),
        "most_s": max(waited),
    }
    return Row("a click's file to its delta", "s", False, Figure.of("ours", waited), limit=None, more=more)


def delta_of(output: Path, name: str) -> bool:
    """Whether the last delta has taken a file."""
    return name in read_delta(delta_files([output])[-1], ()).header["position"]


def births_and_deaths(num: int, dim: int = 16, steps: int = 20) -> Row:
    """So many births and deaths in a server's table; the survivors are compared to the bit."""
    random, per_step = np.random.default_rng(0), num // steps // 2
    items = ItemTable([], {"embedding": np.zeros((0, dim), np.float32)}, "c", 0, "0")
    seeds, seconds, first_alive, next_id = {}, [], 0, 0
    for step in range(1, steps + 1):
        ids = np.arange(next_id, next_id + 2 * per_step if step == 1 else next_id + per_step)
        rows = random.random((len(ids), dim), np.float32)
        dead = np.arange(first_alive, first_alive + (0 if step == 1 else per_step))
        seeds[step] = ids[0], rows
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), dim)
        parts = {"changed": pa.table({"item_id": ids, "embedding": vectors}), "retired": pa.table({"item_id": dead})}
        header = {"chain": "c", "number": step, "before": str(step - 1), "after": str(step)}
        clock = time.perf_counter()
        items.apply(Delta(str(step), header, parts))
        seconds.append(time.perf_counter() - clock)
        next_id, first_alive = next_id + len(ids), first_alive + len(dead)
    found, columns = items.items()
    place = np.empty(next_id, np.int64)
    place[:] = -1
    place[np.array(found)] = np.arange(len(found))
    survivors = 0
    for begin, rows in seeds.values():
        alive = np.arange(begin, begin + len(rows)) >= first_alive
        np.testing.assert_array_equal(columns["embedding"][place[begin : begin + len(rows)][alive]], rows[alive])
        survivors += int(alive.sum())
    assert survivors == len(found) and (place[:first_alive] == -1).all()
    events = next_id + first_alive
    more = {"births_and_deaths": events, "survivors": survivors, "seconds": sum(seconds)}
    return Row(
        "births and deaths in a server's table", "1/s", True, Figure.of("ours", [events / sum(seconds)]), more=more
    )


def main() -> None:
    """Prints a line for each, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--clicks-per-s", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--table", type=int, default=0, help="births and deaths instead")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options = parser.parse_args()
    if options.table:
        row = births_and_deaths(options.table)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            config = settings(folder / "prepared")
            local.train(config, folder / "run")
            row = follow(config, folder, options)
    config_of = {"items": options.items, "clicks_per_s": options.clicks_per_s} if not options.table else {}
    record = Record("Following", command_line("follow", sys.argv[1:]), config_of, [row], threads=1)
    print(table([record]))
    print(row.more)
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
