"""How many threads a rank takes: the cores that this process may use, shared with the other ranks of its host.

Nothing heavy is imported, because `mwuf doctor` reads it too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Counts the cores that the process may run on, by its affinity and by the quotas of its cgroups; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *_quotas(_MINE, _CGROUPS)])))


def default_threads(ranks_per_host: int) -> int:
    """Returns threads of a rank where the config names none.

    OMP_NUM_THREADS bounds them where it is set; torchrun sets it to 1 for more than one rank, unless its user has.
    """
    threads = max(1, usable_cores() // ranks_per_host)
    bound = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(bound)) if bound.isdecimal() and int(bound) else threads


def _quotas(mine: Path, cgroups: Path) -> Iterator[float]:
    """Yields cores that each cgroup around the process allows it, where one has a limit.

    Args:
        mine: lists its cgroups: `0::/path` of version 2, `4:cpu,cpuacct:/path` of version 1.
        cgroups: where they are mounted.
    """
    try:
        lines = mine.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = [cgroups] if not controllers else [cgroups / controllers, cgroups / "cpu"]
        for mount in mounts:
            inner = mount / path.lstrip("/")
            # In a container the path may be one of the host's, and the mount the container's own cgroup.
            for folder in dict.fromkeys([inner, *inner.parents, mount]):
                if folder.is_relative_to(mount):
                    yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
            quota, period = int(words[0]), int(words[1])  # "max 100000" or -1: no limit
        except (OSError, ValueError, IndexError):
            continue
        if quota > 0 and period > 0:
            yield quota / period
