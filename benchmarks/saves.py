"""How long training stands still for a save: written at once, or copied and written in the background.

    python -m benchmarks.saves --mb 50 500

One rank, a table of so many MB. "stands still" is the call of `Checkpointer.save`, "is written" the time until the
checkpoint can be gone on from. Where the two ways meet is what `checkpoint.background_from_mb` should be about.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import Figure, Record, Row, command_line, table
from mwuf_dist.config import CheckpointConfig, EmbeddingConfig, build
from mwuf_dist.embeddings.sharding import TableSpec
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training.checkpoint.files import Cursor, Meta
from mwuf_dist.training.checkpoint.save import Checkpointer
from mwuf_dist.training.results import versions

_DIM = 64


def seconds_of_saves(runtime: Runtime, mb: float, background: bool, times: int) -> tuple[list[float], list[float]]:
    """Seconds that training stands still, and until the checkpoint is there, of each save."""
    tables = Tables("t", [TableSpec("a", round(mb * 1e6 / 4 / _DIM), _DIM)], EmbeddingConfig(), runtime)
    stands_still, is_written = [], []
    with tempfile.TemporaryDirectory() as folder:
        config = CheckpointConfig(background_from_mb=0 if background else 1e9)
        checkpointer = Checkpointer(Path(folder), config, runtime)
        for step in range(times):
            clock = time.perf_counter()
            checkpointer.save(Meta(Cursor("pretrain", 0, 0, step), "", 1, versions()), tables.state())
            stands_still.append(time.perf_counter() - clock)
            checkpointer.wait()
            is_written.append(time.perf_counter() - clock)
    return stands_still, is_written


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, nargs="+", default=[50, 500])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options = parser.parse_args()
    rows = []
    with start(build({"runtime": {"device": "cpu"}})) as runtime:
        for mb in options.mb:
            still, written = seconds_of_saves(runtime, mb, True, options.times)
            at_once, _ = seconds_of_saves(runtime, mb, False, options.times)
            ours, alternative = Figure.of("in the background", still), Figure.of("at once", at_once)
            more = {"written_after_s": statistics.median(written)}
            rows.append(Row("stands still", "s", False, ours, alternative, config={"mb": mb}, more=more))
    command = command_line("saves", sys.argv[1:])
    record = Record("Saves in the background (ours), and at once (the alternative)", command, {}, rows, threads=1)
    print(table([record]))
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
