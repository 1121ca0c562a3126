"""Stops a process of a run with SIGSTOP, which nobody is told of, and looks whether the others end, or go on, in time.

    python -m benchmarks.chaos --stops 50

A scenario is a way to start a run, a process of it and a moment; moments are drawn from a seed. The ways: `torchrun`
(the agent that it starts, which forks its ranks here, so that a start is cheap), `ranks` (started by hand: rank 0 holds
the store), `ray`, `prepare` and `compare` (on Ray). What has to come within `timeout_s` and a constant (`LIMITS_S`):

* torchrun, ranks: all that was not stopped has ended. `absent` is a rank that never comes.
* ray: the launcher has missed a stopped rank or the actor that leases the lanes, starts again and ends well. Where
  Ray's GCS or raylet is stopped, it says so and ends, unless it has ended well by then. Ranks whose launcher is stopped
  train on, and it ends well when it goes on.
* prepare, compare: a stopped worker is missed, and the command ends well.

Only processes that descend from this one are ever stopped, and each scenario ends all of its own.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import descendants, processes, title_of, to_log
from benchmarks.record import Figure, Record, Row
from benchmarks.restart import places
from benchmarks.stop_scenarios import (
    LIMITS_S,
    PATIENCE_S,
    RAY_TIMEOUT_S,
    SHARES,
    TIMEOUT_S,
    VALUES,
    Scenario,
    scenarios,
)
from mwuf_dist.config import build, merge, to_toml

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["mwuf_dist.cli", "mwuf_dist.launch.local", "mwuf_dist.evaluation.report", "torch.distributed.run"]
)
_TITLES = {"rank": "ray::_Rank.train", "lanes": "ray::LaneCoordinator", "worker": "ray::"}
# A command whose moment has not come is started again (Ray, on a busy machine).
_MAX_STARTS = 3


@dataclass
class Outcome:
    """What came of a scenario: `wrong` is empty where all is as it has to be."""

    scenario: Scenario
    seconds: float
    limit_s: float
    said: str
    wrong: str


@dataclass
class _Started:
    """Processes of one command."""

    processes: list[Any]
    log: Path
    known: dict[int, str] = field(default_factory=dict)  # process -> when it started: a number is given again

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def family(self) -> set[int]:
        """Ids of the processes and of all that they have started and that lives."""
        living = processes()
        roots = {process.pid for process in self.processes}
        roots |= {process for process, began in self.known.items() if living.get(process, (0, ""))[1] == began}
        found = descendants(roots)
        self.known |= {process: living[process][1] for process in found if process in living}
        return found

    def codes(self) -> list[int | None]:
        return [one.poll() if isinstance(one, subprocess.Popen) else one.exitcode for one in self.processes]


def _mwuf(arguments: list[str], environment: dict[str, str], log: str) -> None:
    to_log(log)
    os.environ.update(environment)
    from mwuf_dist import cli

    cli.main(arguments)


def _main(arguments: list[str]) -> None:
    from mwuf_dist import cli

    cli.main(arguments)


def _agent(arguments: list[str], log: str) -> None:
    """What `torchrun --standalone --nproc-per-node=2` does, but that its ranks are forked."""
    to_log(log)
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        1, 1, 2, run_id="stops", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", start_method="fork"
    )
    config.max_restarts = 0
    elastic_launch(config, _main)(arguments)


def _start(scenario: Scenario, config: Path, folder: Path) -> _Started:
    log = folder.with_suffix(".log")
    log.unlink(missing_ok=True)
    arguments = ["run", str(config), "--output", str(folder)]
    if scenario.way == "torchrun":
        forked = [_FORKS.Process(target=_agent, args=(arguments, str(log)))]
    elif scenario.way == "ranks":
        comes = [scenario.who != "absent" or rank != scenario.rank for rank in range(2)]
        there = [place for place, is_it in zip(places(2), comes, strict=True) if is_it]
        forked = [_FORKS.Process(target=_mwuf, args=(arguments, place, str(log))) for place in there]
    else:
        ways = {
            "ray": [*arguments, "--launcher", "ray", "--num-workers", "2"],
            "prepare": ["prepare", str(config), "--launcher", "ray", "--num-workers", "2"],
            "compare": ["compare", str(config), "--output", str(folder), "--parallel", "2"],
        }
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with log.open("wb") as stream:
            command = [sys.executable, "-W", "ignore", "-m", "mwuf_dist", *ways[scenario.way]]
            return _Started([subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)], log)
    for process in forked:
        process.start()
    return _Started(forked, log)


def _wait(started: _Started, condition: Callable[[], Any], seconds: float) -> Any:
    """What the condition says in the end; nothing where the time is up before that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        started.family()
        time.sleep(0.2)
    return None


def _has_come(scenario: Scenario, started: _Started, folder: Path) -> bool:
    """Whether the moment of the scenario has come."""
    if scenario.way == "prepare":
        return any(
            title_of(process).startswith("ray::") and "IDLE" not in title_of(process) for process in started.family()
        )
    if scenario.way == "compare":
        return bool(list(folder.glob("*/checkpoints/LATEST")) + list(folder.glob("*/*/checkpoints/LATEST")))
    pointer = folder / "checkpoints" / "LATEST"
    return scenario.when == "start" or (pointer.exists() and pointer.read_text().split("-")[0] == scenario.when)


def _target(scenario: Scenario, started: _Started) -> int | None:
    """The process to stop, of those that the scenario started; none where nobody comes."""
    if scenario.who == "absent":
        return None
    if scenario.who == "launcher":
        return started.processes[0].pid
    if scenario.way == "ranks":
        return started.processes[scenario.rank].pid
    if scenario.way == "torchrun":
        agent = started.processes[0].pid
        children = sorted(child for child, (parent, _) in processes().items() if parent == agent)
        return children[scenario.rank] if len(children) > scenario.rank else None
    wanted = {"gcs": "/gcs_server ", "raylet": "/raylet/raylet "}
    titles = {process: title_of(process) for process in sorted(started.family())}
    if scenario.who in wanted:
        return next((process for process, title in titles.items() if wanted[scenario.who] in title), None)
    title, others = _TITLES[scenario.who], ("IDLE", "Agent", "Signs") if scenario.who == "worker" else ()
    found = [
        process
        for process, one in titles.items()
        if one.startswith(title) and not any(other in one for other in others)
    ]
    return found[min(scenario.rank, len(found) - 1)] if found else None


def _is_noticed(scenario: Scenario, started: _Started, stopped: int | None) -> bool:
    """Whether what has to come within the limit has come."""
    said, codes = started.said(), started.codes()
    if scenario.way in ("prepare", "compare"):
        return "it is killed, and its work begun again" in said or None not in codes
    if scenario.way == "ray":
        return "a rank was lost" in said or None not in codes
    if scenario.who == "launcher":
        return not started.family() - {stopped}
    return all(
        code is not None or process.pid == stopped for process, code in zip(started.processes, codes, strict=True)
    )


def _wrong(scenario: Scenario, started: _Started, stopped: int | None) -> str:
    """What is not as it has to be, after all that was to be noticed was."""
    said = started.said()
    if "Traceback" in said and scenario.way != "torchrun":  # whose own agent ends with one
        return "a traceback"
    if scenario.way == "ranks":
        living = [
            code for process, code in zip(started.processes, started.codes(), strict=True) if process.pid != stopped
        ]
        return "" if living == [1] * len(living) and "stops, because" in said else f"exit codes {living}"
    if scenario.way == "torchrun":
        if scenario.who == "rank" and "stops, because" not in said:
            return "nobody is named"
        return "" if scenario.who == "launcher" or started.codes() == [1] else f"exit codes {started.codes()}"
    # A run that has ended before its raylet or GCS is missed is a run that has ended well.
    expected = 1 if scenario.who in ("gcs", "raylet") and started.codes() != [0] else 0
    if not _wait(started, lambda: None not in started.codes(), PATIENCE_S):
        return f"has not ended {PATIENCE_S:.0f} s later"
    if started.codes() != [expected]:
        return f"exit codes {started.codes()} instead of [{expected}]"
    return "" if expected == 0 or "Ray is stopped or hangs" in said else "Ray is not named"


def play(scenario: Scenario, scratch: Path) -> Outcome:
    """Plays a scenario in a folder of its own; ends all of its processes."""
    scratch.mkdir(parents=True)
    config, folder = scratch / "stops.toml", scratch / "run"
    timeout_s = RAY_TIMEOUT_S if scenario.way in ("ray", "compare") else TIMEOUT_S
    values = merge(VALUES, {"data": {"prepared_dir": str(scratch / "prepared")}, "runtime": {"timeout_s": timeout_s}})
    study = '\n[study]\nseeds = 2\n[[study.runs]]\nmethod.name = "base"\n' if scenario.way == "compare" else ""
    text = to_toml(build(values))
    config.write_text((text.replace("seed = 0\n", "", 1) if study else text) + study)
    limit_s = LIMITS_S[scenario.way, scenario.who] + (timeout_s if scenario.way != "prepare" else 0)  # it has none
    started = _start(scenario, config, folder)
    try:
        return _played(scenario, started, folder, limit_s)
    finally:
        for process in started.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _played(scenario: Scenario, started: _Started, folder: Path, limit_s: float) -> Outcome:
    def outcome(seconds: float, wrong: str) -> Outcome:
        told = [
            line
            for line in started.said().splitlines()
            if "stops, because" in line or "lost" in line or "mwuf:" in line
        ]
        return Outcome(scenario, round(seconds, 1), limit_s, (told or [""])[0][:200], wrong)

    if not _wait(started, lambda: _has_come(scenario, started, folder), PATIENCE_S):
        return outcome(0.0, f"{scenario.when} has not come: {started.said()[-1000:]}")
    time.sleep(scenario.delay_s)
    stopped = _wait(started, lambda: scenario.who == "absent" or _target(scenario, started), PATIENCE_S)
    if not stopped:
        return outcome(0.0, f"no process to stop: {started.said()[-1000:]}")
    stopped, began = _target(scenario, started), time.monotonic()
    if stopped is not None:
        os.kill(stopped, signal.SIGSTOP)
    if scenario.way == "ray" and scenario.who == "launcher":
        time.sleep(TIMEOUT_S)
        os.kill(started.processes[0].pid, signal.SIGCONT)
        began = time.monotonic()
        wrong = _wrong(scenario, started, stopped)  # until it has ended
        return outcome(time.monotonic() - began, wrong)
    noticed = _wait(started, lambda: _is_noticed(scenario, started, stopped), limit_s + 30)
    seconds = time.monotonic() - began
    if not noticed or seconds > limit_s:
        return outcome(seconds, f"late: {started.said()[-1000:]}")
    wrong = _wrong(scenario, started, stopped)
    left = _wait(started, lambda: not started.family() - {stopped}, 15)
    return outcome(seconds, wrong or ("" if left else f"left: {[title_of(one)[:80] for one in started.family()]}"))


def stops(num: int, seed: int, ways: Sequence[str], parallel: int, output: Path) -> list[Outcome]:
    """Plays the scenarios; the outcomes of an earlier call that was ended stand beside the output, and are taken.

    Args:
        num: of scenarios.
        seed: of their moments.
        ways: of starting a run: of the scenarios, those that have one of these; none for all.
        parallel: so many at once: they wait more than they compute.
        output: of the record.
    """
    kept = output.with_suffix(".part.jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    found = {one["number"]: Outcome(**one["outcome"] | {"scenario": Scenario(**one["scenario"])}) for one in lines}
    writing = threading.Lock()

    def one(number: int, scenario: Scenario) -> None:
        for _ in range(_MAX_STARTS):
            scratch = Path(tempfile.mkdtemp(prefix="mwuf-stops-"))
            try:
                found[number] = play(scenario, scratch / "here")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            if found[number].seconds:
                break
        values = asdict(found[number])
        line = json.dumps({"number": number, "scenario": values.pop("scenario"), "outcome": values | {"scenario": {}}})
        with writing, kept.open("a") as file:
            file.write(line + "\n")
        print(f"{len(found)}/{num} {line}", flush=True)

    chosen = [(number, one) for number, one in enumerate(scenarios(num, seed)) if not ways or one.way in ways]
    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(lambda pair: one(*pair), [pair for pair in chosen if pair[0] not in found]))
    return [found[number] for number, _ in chosen]


def record(found: list[Outcome], command: str) -> Record:
    """One row for each kind of scenario: seconds until what has to come has come, and how many were in bound."""
    rows = []
    for way, who in SHARES:
        ours = [one for one in found if (one.scenario.way, one.scenario.who) == (way, who)]
        if ours:
            more = {
                "limit_s": ours[0].limit_s,
                "in_bound": sum(not one.wrong for one in ours),
                "scenarios": [asdict(one) for one in ours],
            }
            figure = Figure.of("ours", [one.seconds for one in ours])
            rows.append(Row(f"{way}, {who} stopped", "s", False, figure, config={"way": way, "who": who}, more=more))
    return Record("A process that is stopped", command, VALUES, rows, threads=1)
