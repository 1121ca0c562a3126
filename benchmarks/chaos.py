"""Kills a run again and again, at random, and compares what is left with the run that nothing happened to.

    python -m benchmarks.chaos --kills 50 --ranks 2
    python -m benchmarks.chaos --stops 50              # SIGSTOP instead: see benchmarks/stops.py

Ranks are forked from a process that has imported everything, so that kills find them at work and not at their imports.
Time between two kills is drawn from an exponential distribution whose mean is three times the measured restart of such
ranks (from the fork until the run goes on). A kill is SIGKILL, of one rank (its peers are
then killed, as a launcher does) or, one time in three, of all of them at once. What is compared:

* difference: of every number of the phases in results.json and of every tensor of the last checkpoint, and whether
  metrics.jsonl is the same to the byte. At the same number of ranks it has to be 0.
* rows trained twice, and rows lost: per stage, what the finished run has counted, minus what the undisturbed one has.
  The counts travel in the checkpoints with the tensors, so a row counts where its step is in the tensors. What a rank
  computed after its last checkpoint died with it, and is not in the result: that is the time lost, not a row.
* time lost per kill: mean seconds from the last save before the kill (or from the start of the processes, where they
  had not saved yet) to the kill, plus the restart of processes that import what they need, as a user's do, until their
  first new step (`benchmarks.restart`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from benchmarks import stops
from benchmarks.record import Figure, Record, Row, command_line
from benchmarks.restart import killed_in_pretrain, places, restart
from mwuf_dist.config import build, merge, to_toml

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["mwuf_dist.cli", "mwuf_dist.launch.local", "mwuf_dist.evaluation.report"])

# Long enough for kills to find it in every stage: more rows and epochs than a test's, small embeddings.
VALUES: dict[str, Any] = {
    "data": {"name": "synthetic", "synthetic": {"num_rows": 100_000, "num_users": 2_000, "num_items": 1_000}},
    "backbone": {"name": "deepfm", "hidden": [16, 8]},
    "embedding": {"dim": 8},
    "pretrain": {"epochs": 30, "batch_size": 1024},
    "meta_train": {"epochs": 20, "batch_size": 1024},
    "warm_up": {"batch_size": 256, "epochs": 20},
    "checkpoint": {"every_s": 0.5},
    "runtime": {"device": "cpu", "progress": "off", "timeout_s": 60},
}


@dataclass
class Attempt:
    """Ranks of one start of the run."""

    processes: list[Any]
    log: Path
    started: float = field(default_factory=time.monotonic)

    def ended(self) -> bool:
        """Whether a rank has ended, of itself or not."""
        return any(process.exitcode is not None for process in self.processes)

    def kill(self, first: int) -> None:
        """SIGKILL to one rank, then to what is left."""
        for process in self.processes[first:] + self.processes[:first]:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self) -> None:
        """Until all have ended; fails where one has failed."""
        for process in self.processes:
            process.join()
        codes = [process.exitcode for process in self.processes]
        if any(codes):
            raise SystemExit(f"exit codes {codes}:\n{self.log.read_text(errors='replace')[-4000:]}")


def _rank(arguments: list[str], environment: dict[str, str], log: str) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environment)
    from mwuf_dist import cli

    cli.main(arguments)


def start(config: Path, folder: Path, ranks: int) -> Attempt:
    """Starts `mwuf run`, on several ranks in the way of `torchrun`, but with processes whose ids we know."""
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    arguments = ["run", str(config), "--output", str(folder)]
    attempt = Attempt([_FORKS.Process(target=_rank, args=(arguments, place, str(log))) for place in places(ranks)], log)
    for process in attempt.processes:
        process.start()
    return attempt


def forked_restart_s(config: Path, folder: Path, ranks: int) -> float:
    """Seconds from the fork until a run goes on that was killed in `pretrain`."""
    attempt = start(config, folder, ranks)
    while "goes on from" not in (attempt.log.read_text() if attempt.log.exists() else ""):
        time.sleep(0.02)
        if attempt.ended():
            attempt.wait()
    seconds = time.monotonic() - attempt.started
    attempt.kill(0)
    return seconds


def stage_of(folder: Path) -> str:
    """The stage that the last checkpoint goes on with."""
    pointer = folder / "checkpoints" / "LATEST"
    return pointer.read_text().split("-")[0] if pointer.exists() else "pretrain"


def _seconds_since_save(folder: Path) -> float:
    pointer = folder / "checkpoints" / "LATEST"
    return time.time() - pointer.stat().st_mtime if pointer.exists() else float("inf")


def with_kills(config: Path, folder: Path, ranks: int, kills: int, mean_s: float, seed: int) -> tuple[float, list[str]]:
    """Runs to the end under at most so many kills; (seconds between the last saves and the kills, stage of each)."""
    draw = random.Random(seed)
    stages: list[str] = []
    seconds = 0.0
    while True:
        attempt = start(config, folder, ranks)
        wait_s = draw.expovariate(1 / mean_s) if len(stages) < kills else float("inf")
        while not attempt.ended() and time.monotonic() - attempt.started < wait_s:
            time.sleep(0.02)
        if attempt.ended():
            attempt.wait()
            return seconds, stages
        attempt.kill(draw.randrange(ranks))
        seconds += min(time.monotonic() - attempt.started, _seconds_since_save(folder))
        stages.append(stage_of(folder))
        print(f"{kills - len(stages)} kills left: one after {wait_s:.1f} s, in {stages[-1]}", flush=True)


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], bytes]:
    """(results, tensors, metrics.jsonl) of a finished run."""
    checkpoint = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text()
    dcp_to_torch_save(checkpoint, folder / "whole.pt")
    tensors = torch.load(folder / "whole.pt")
    return json.loads((folder / "results.json").read_text()), tensors, (folder / "metrics.jsonl").read_bytes()


def _numbers(values: Any, name: str = "") -> dict[str, float]:
    """The numbers in nested dicts and lists, by where they stand."""
    if isinstance(values, dict | list):
        entries = values.items() if isinstance(values, dict) else enumerate(values)
        return {key: number for place, value in entries for key, number in _numbers(value, f"{name}.{place}").items()}
    return {name: float(values)} if isinstance(values, int | float) else {}


def difference(folder: Path, undisturbed: Path) -> dict[str, Any]:
    """What sets the two runs apart."""
    results, tensors, metrics = outcome(folder)
    expected, expected_tensors, expected_metrics = outcome(undisturbed)
    surplus = {
        stage: entry["samples"] - expected["stages"][stage]["samples"]
        for stage, entry in results["stages"].items()
        if stage in ("pretrain", "meta_train", "warm_up", "evaluate")
    }
    found, numbers = _numbers(results["phases"]), _numbers(expected["phases"])
    assert found.keys() == numbers.keys()
    return {
        "rows_trained": {stage: results["stages"][stage]["samples"] for stage in surplus},
        "rows_lost": sum(max(0, -rows) for rows in surplus.values()),
        "rows_trained_twice": sum(max(0, rows) for rows in surplus.values()),
        "largest_difference_of_a_metric": max(abs(found[name] - numbers[name]) for name in numbers),
        "largest_difference_of_a_tensor": max(
            float((tensors[name].double() - value.double()).abs().max()) for name, value in expected_tensors.items()
        ),
        "metrics_jsonl_is_the_same": metrics == expected_metrics,
    }


def chaos(scratch: Path, kills: int, ranks: int, seed: int) -> dict[str, Any]:
    """Runs until all kills are spent, in as many runs as that takes, each compared with the undisturbed one."""
    config = scratch / "chaos.toml"
    config.write_text(to_toml(build(merge(VALUES, {"data": {"prepared_dir": str(scratch / "prepared")}}))))
    attempt = start(config, scratch / "undisturbed", ranks)
    attempt.wait()
    undisturbed_s = time.monotonic() - attempt.started
    killed_in_pretrain(config, scratch / "restart", ranks)
    restart_s = restart(config, scratch / "restart", ranks)["clock_s"]
    forked_s = forked_restart_s(config, scratch / "restart", ranks)
    print(f"undisturbed {undisturbed_s:.1f} s, restart {restart_s:.1f} s, forked {forked_s:.1f} s", flush=True)
    stages: list[str] = []
    runs: list[dict[str, Any]] = []
    seconds = 0.0
    while len(stages) < kills:
        folder = scratch / f"run-{len(runs)}"
        took_s, killed_in = with_kills(config, folder, ranks, kills - len(stages), 3 * forked_s, seed + len(runs))
        runs.append(difference(folder, scratch / "undisturbed"))
        seconds += took_s
        stages += killed_in
    return {
        "ranks": ranks,
        "kills_survived": len(stages),
        "kills_by_stage": {stage: stages.count(stage) for stage in dict.fromkeys(stages)},
        "runs": len(runs),
        "restart_s": round(restart_s, 2),
        "restart_of_forked_ranks_s": round(forked_s, 2),
        "undisturbed_s": round(undisturbed_s, 2),
        "time_lost_per_kill_s": round(seconds / max(1, len(stages)) + restart_s, 2),
        "rows_trained": sum(sum(run["rows_trained"].values()) for run in runs),
        "rows_lost": sum(run["rows_lost"] for run in runs),
        "rows_trained_twice": sum(run["rows_trained_twice"] for run in runs),
        "largest_difference_of_a_metric": max(run["largest_difference_of_a_metric"] for run in runs),
        "largest_difference_of_a_tensor": max(run["largest_difference_of_a_tensor"] for run in runs),
        "metrics_jsonl_is_the_same": all(run["metrics_jsonl_is_the_same"] for run in runs),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stops", type=int, default=0, help="so many processes are stopped instead")
    parser.add_argument("--ways", nargs="*", default=[], help="of these stops those that start a run so")
    parser.add_argument("--parallel", type=int, default=1, help="so many of them at once")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/chaos.json"))
    options = parser.parse_args()
    command = command_line("chaos", sys.argv[1:])
    if options.stops:
        outcomes = stops.stops(options.stops, options.seed, options.ways, options.parallel, options.output)
        stops.record(outcomes, command).write(options.output)
        in_bound = sum(not one.wrong for one in outcomes)
        print(f"{in_bound} of {len(outcomes)} in bound")
        sys.exit(0 if in_bound == len(outcomes) else 1)
    scratch = Path(tempfile.mkdtemp(prefix="mwuf-chaos-"))
    try:
        found = chaos(scratch, options.kills, options.ranks, options.seed)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    lost = Figure.of("ours", [found["time_lost_per_kill_s"]])
    row = Row("time lost per kill", "s", False, lost, config={"ranks": options.ranks}, more=found)
    Record("A run killed at random", command, VALUES, [row], threads=1).write(options.output)
    print(json.dumps(found, indent=1))
    same = found["rows_lost"] == found["rows_trained_twice"] == found["largest_difference_of_a_tensor"] == 0
    sys.exit(0 if same and found["kills_survived"] == options.kills else 1)


if __name__ == "__main__":
    main()
