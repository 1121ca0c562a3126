"""A cluster of this machine, in a process of its own: its token, where it listens, what a stop of its GCS does."""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import descendants, title_of
from mwuf_dist.launch import cluster as module
from mwuf_dist.launch.cluster import cluster, ray
from tests.waiting import LONGEST_S

SILENT_S = 2.0
# Before the stop: on a busy machine an answer may take longer than that.
PATIENT_S = 60.0


def listening(processes: set[int]) -> dict[str, str]:
    """Where some processes listen, IP and port in hexadecimal digits: whose that is."""
    owner = {}
    for process in processes:
        for name in Path(f"/proc/{process}/fd").iterdir():
            try:
                owner[os.readlink(name)] = title_of(process)
            except OSError:
                continue
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            values = line.split()
            if values[3] == "0A" and (whose := owner.get(f"socket:[{values[9]}]")):
                found[values[1]] = whose
    return found


def main() -> None:
    """Prints what was found, then stops the GCS and waits: the guard ends this process."""
    guards: list[Any] = []
    make = module._Guard
    module._Guard = lambda silent_s: guards.append(make(silent_s)) or guards[0]
    with cluster(1, silent_s=PATIENT_S, quiet=True):
        ray.get(ray.remote(lambda: None).remote())  # a worker, too
        processes = descendants({os.getpid()})
        raylet: Any = importlib.import_module("ray._raylet")
        token = raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN
        print(json.dumps({"token": token, "listening": listening(processes)}), flush=True)
        guards[0]._silent_s = SILENT_S
        os.kill(next(one for one in processes if "/gcs_server " in title_of(one)), signal.SIGSTOP)
        time.sleep(LONGEST_S)


if __name__ == "__main__":
    main()
