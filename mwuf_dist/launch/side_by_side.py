"""Tasks of a study side by side: each a Ray task in a worker process, on this machine or on a cluster.

A worker process stays for the next task, so what it imports is imported once. The output folder and the prepared
shards must lie where every node can read them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from mwuf_dist.config import RuntimeConfig, UserError
from mwuf_dist.data.watched_tasks import Running, WatchedTasks
from mwuf_dist.launch.cluster import cluster
from mwuf_dist.runtime.shutdown import sigterm_asks
from mwuf_dist.studies.schedule import Failure, Task, attempt

# A task whose process or node is lost is begun again this often; it goes on from its last checkpoint.
_MAX_RETRIES = 2
# Seconds beyond `runtime.timeout_s` without a sign of life after which a process is lost: ranks have found it before.
_MORE_S = 15.0


def _work(task: Task, inputs: Sequence[Any], folder: str) -> Any:
    if Path(folder).is_dir():
        os.chdir(folder)  # relative paths of a config, and modules of the user's own
    return attempt(task.action, inputs)


class SideBySide:
    """Runs tasks on the Ray cluster that this process has joined; see `mwuf_dist.studies.schedule.Runner`.

    Args:
        num_slots: how many at once.
        resources: that Ray reserves for each.
        silent_s: a process that has given no sign of life for so long is lost.
    """

    def __init__(self, num_slots: int, resources: dict[str, float], silent_s: float) -> None:
        self.num_slots = num_slots
        self._resources = resources
        self._tasks = WatchedTasks(silent_s, _MAX_RETRIES)
        self._running: dict[Running, str] = {}

    def submit(self, task: Task, inputs: Sequence[Any]) -> None:
        """See `Runner.submit`."""
        running = self._tasks.submit(_work, (task, list(inputs), os.getcwd()), name=task.name, **self._resources)
        self._running[running] = task.name

    def wait(self) -> tuple[str, Any]:
        """See `Runner.wait`."""
        ended = self._tasks.wait(list(self._running))
        name = self._running.pop(ended)
        try:
            return name, ray.get(ended.answer)
        except RayError as error:
            return name, Failure(f"its process was lost ({type(error).__name__})", str(error))

    def close(self) -> None:
        """Hears that no more tasks are to come."""
        self._tasks.close()


@contextlib.contextmanager
def side_by_side(num_slots: int, runtime: RuntimeConfig, address: str = "") -> Iterator[SideBySide]:
    """Yields a runner on the cluster at `address` or RAY_ADDRESS, or on one of this machine that ends with it.

    Args:
        num_slots: how many tasks at once; 0: as many as the cluster has room for.
        runtime: section `runtime` of the runs: each takes its `threads` CPUs, and a GPU where the cluster has some.
        address: of a running cluster.

    Raises:
        UserError: there is no cluster at the address, or no room in it for a single task.
        StoppedError: this process was sent SIGTERM; what has ended stays, and what runs has its last checkpoint.
    """
    threads = max(1, runtime.threads)
    # In this order: Ray sets a handler of its own, which prints its stack.
    with cluster(num_slots * threads, address, runtime.timeout_s, quiet=True), sigterm_asks():
        total = ray.cluster_resources()
        cpus, gpus = total.get("CPU", 0), int(total.get("GPU", 0))
        resources: dict[str, float] = {"num_cpus": threads}
        room = int(cpus // threads)
        if runtime.device != "cpu" and gpus:
            resources["num_gpus"] = 1
            room = min(room, gpus)
        if room < 1 or (runtime.device == "cuda" and not gpus):
            raise UserError(
                f"runtime.threads = {threads}, runtime.device = {runtime.device!r}: the Ray cluster has {cpus:g} CPUs "
                f"and {gpus} GPUs, so that not one run fits"
            )
        found = SideBySide(min(num_slots, room) if num_slots else room, resources, runtime.timeout_s + _MORE_S)
        try:
            yield found
        finally:
            found.close()
