"""What it costs to start a run that was killed: seconds from the start of its processes to the first new step.

    python -m benchmarks.restart --ranks 1 2

A run is killed after its first checkpoint in `pretrain` and started again, a few times over. "clock" counts from the
start of the first process to the end of the first step of the slowest rank, "cpu" is what that rank computed in it:
the figure to compare on a machine that does other things too. "imports" is the cpu part before the run looks at its
folder. Medians.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing else is imported here: this module is also the program whose start is timed.

_SAID = "first step: "
# Small, so that what is timed is the start; a save is due after every step.
_VALUES: dict[str, Any] = {
    "data": {"name": "synthetic", "synthetic": {"num_rows": 100_000, "num_users": 2_000, "num_items": 1_000}},
    "embedding": {"dim": 8},
    "pretrain": {"epochs": 1000, "batch_size": 1024},
    "checkpoint": {"every_s": 1e-9},
    "runtime": {"device": "cpu", "progress": "off", "timeout_s": 60},
}


@dataclass
class Attempt:
    """Ranks of one start of the run."""

    processes: list[subprocess.Popen[bytes]]
    log: Path
    started: float

    def said(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        """Fails where a rank has ended."""
        if any(process.poll() is not None for process in self.processes):
            self.kill()
            raise SystemExit(self.said()[-4000:])

    def kill(self) -> None:
        """SIGKILL to all."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def places(ranks: int) -> list[dict[str, str]]:
    """The environment of each rank."""
    if ranks == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def start(config: Path, folder: Path, ranks: int, module: str = "mwuf_dist") -> Attempt:
    """Starts `mwuf run`, on several ranks in the way of `torchrun`, but with processes whose ids we know."""
    command = [sys.executable, "-W", "ignore", "-m", module, "run", str(config), "--output", str(folder)]
    log = folder.with_suffix(".log")
    started = time.monotonic()
    processes = []
    with log.open("wb") as stream:
        for place in places(ranks):
            processes.append(subprocess.Popen(command, env=os.environ | place, stdout=stream, stderr=stream))
    return Attempt(processes, log, started)


def killed_in_pretrain(config: Path, folder: Path, ranks: int) -> None:
    """Leaves a run that was killed after its first checkpoint."""
    attempt = start(config, folder, ranks)
    while not list((folder / "checkpoints").glob("pretrain-*")):
        time.sleep(0.05)
        attempt.check()
    attempt.kill()


def restart(config: Path, folder: Path, ranks: int) -> dict[str, float]:
    """Seconds until the first new step of a run that was killed in `pretrain`: `clock_s`, `cpu_s`, `imports_cpu_s`."""
    attempt = start(config, folder, ranks, "benchmarks.restart")
    while attempt.said().count(_SAID) < ranks:
        time.sleep(0.02)
        attempt.check()
    attempt.kill()
    found = [json.loads(text) for text in re.findall(_SAID + r"(\{.*?\})", attempt.said())]
    slowest = max(found, key=lambda entry: entry["ended"])
    return {"clock_s": slowest["ended"] - attempt.started} | {key: slowest[key] for key in ("cpu_s", "imports_cpu_s")}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _rank(arguments: list[str]) -> None:
    """`mwuf` that says when its first step is done, and waits to be killed."""
    from mwuf_dist import cli
    from mwuf_dist.embeddings.torchrec_import import import_torchrec

    import_torchrec()
    from mwuf_dist.training.stages.pretrain import Pretrain

    imports_cpu_s, step = _cpu_s(), Pretrain.step

    def timed(*args: Any) -> Any:
        step(*args)
        record = {"ended": time.monotonic(), "cpu_s": _cpu_s(), "imports_cpu_s": imports_cpu_s}
        os.write(1, (_SAID + json.dumps(record) + "\n").encode())  # at once: ranks share the file
        signal.pause()

    setattr(Pretrain, "step", timed)  # noqa: B010
    cli.main(arguments)


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["run"]:
        _rank(sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    from mwuf_dist.config import build, merge, to_toml

    print("ranks   clock s   cpu s   of it imports")
    for ranks in options.ranks:
        scratch = Path(tempfile.mkdtemp(prefix="mwuf-restart-"))
        try:
            config = scratch / "restart.toml"
            config.write_text(to_toml(build(merge(_VALUES, {"data": {"prepared_dir": str(scratch / "prepared")}}))))
            killed_in_pretrain(config, scratch / "run", ranks)
            found = [restart(config, scratch / "run", ranks) for _ in range(options.times)]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        clock_s, cpu_s, imports_cpu_s = (statistics.median(one[key] for one in found) for key in found[0])
        print(f"{ranks:>5}{clock_s:>10.1f}{cpu_s:>8.1f}{imports_cpu_s:>16.1f}", flush=True)


if __name__ == "__main__":
    main()
