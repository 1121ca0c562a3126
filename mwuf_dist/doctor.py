"""`mwuf doctor`: prints the environment, names what is wrong with it and says how to mend it.

Libraries are imported in processes of their own, because one that cannot be loaded may end the process that tries.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mwuf_dist.data.locations import cache_dir, data_dir
from mwuf_dist.runtime.threads import default_threads, usable_cores
from mwuf_dist.runtime.versions import (
    FBGEMM_DISTRIBUTIONS,
    REINSTALL,
    check_versions,
    installed,
    untested,
    version_problem,
)

__all__ = ["Check", "check_versions", "diagnose", "main"]

# Says how far it came: after torch what torch sees, then a line for each library that has loaded. Importing fbgemm_gpu
# loads its library; the operator shows that it has what torchrec calls.
_STACK_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"cuda": torch.version.cuda, "devices": names}), flush=True)
import fbgemm_gpu
torch.ops.fbgemm.asynchronous_complete_cumsum(torch.ones(2, dtype=torch.int64))
print("fbgemm", flush=True)
import torchrec
print("torchrec", flush=True)
"""
_MIN_MEMORY_GIB = 4
_MIN_DISK_GIB = 2


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        value: what was found.
        status: "ok"; "note" for what may surprise; "wrong" for what must be mended.
        remedy: what to do about it; empty where nothing is to be done.
    """

    name: str
    value: str
    status: Literal["ok", "note", "wrong"] = "ok"
    remedy: str = ""


def diagnose() -> list[Check]:
    """Looks at everything that a run depends on; takes some seconds, most of them importing torchrec."""
    looks: list[Callable[[], list[Check]]] = [
        lambda: [_python(), _platform(), _cores(), _threads(), _memory()],
        lambda: [_versions(), *_stack()],
        lambda: [_triton(), _loops()],
        lambda: [_ray()],
        lambda: [_data_dir(), _cache_dir()],
    ]
    with ThreadPoolExecutor(len(looks)) as pool:  # they wait for processes of their own
        return [check for checks in pool.map(lambda look: look(), looks) for check in checks]


def main() -> int:
    """Prints the report.

    Returns:
        Exit code: 0 when nothing is wrong, 1 otherwise.
    """
    checks = diagnose()
    width = max(len(check.name) for check in checks)
    mark = {"ok": " ", "note": "!", "wrong": "X"}
    for check in checks:
        print(f"{mark[check.status]} {check.name:<{width}}  {check.value}")
        if check.remedy:
            print(f"  {'':<{width}}  -> {check.remedy}")
    wrong = [check.name for check in checks if check.status == "wrong"]
    print(f"\n{len(wrong)} wrong: {', '.join(wrong)}" if wrong else "\nNothing is wrong.")
    return 1 if wrong else 0


def _python() -> Check:
    value = f"{platform.python_version()} ({sys.executable})"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", value)
    return Check("python", value, "wrong", "use Python 3.11, 3.12 or 3.13: `make clean-venv setup PYTHON=python3.12`")


def _platform() -> Check:
    value = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64"):
        return Check("platform", value)
    return Check("platform", value, "wrong", "fbgemm has builds for Linux on x86-64 and ARM64 only: use a container")


def _cores() -> Check:
    return Check("cores", f"{usable_cores()} usable")


def _threads() -> Check:
    setting = os.environ.get("OMP_NUM_THREADS")
    if setting is None:
        return Check("threads", f"a run of one rank takes {default_threads(1)}")
    if not setting.isdecimal() or int(setting) == 0:
        return Check("threads", f"OMP_NUM_THREADS={setting}", "wrong", "set it to a positive number, or unset it")
    if int(setting) > usable_cores():
        remedy = "more threads of torch's than cores make single steps many times slower: lower it, or unset it"
        return Check("threads", f"OMP_NUM_THREADS={setting}", "wrong", remedy)
    return Check("threads", f"OMP_NUM_THREADS={setting}")


def _memory() -> Check:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of the container, where there is one
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        total_bytes = min(total_bytes, int(text))
    total_gib = total_bytes / 2**30
    if total_gib < _MIN_MEMORY_GIB:
        return Check("memory", f"{total_gib:.1f} GiB", "note", f"MovieLens-1M wants {_MIN_MEMORY_GIB} GiB or more")
    return Check("memory", f"{total_gib:.1f} GiB")


# Whether there is a library, and why not, as a warning says it.
_LOOPS_PROBE = """
import warnings
from mwuf_kernels import native
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(native.library() is not None)
for one in said:
    print(one.message)
"""


def _probe(code: str) -> tuple[list[str], str]:
    """Runs code in a fresh interpreter: the lines it printed, and the last line of its error (empty: it succeeded)."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    errors = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
    return done.stdout.splitlines(), errors[-1] if done.returncode else ""


def _driver_gpus() -> list[str]:
    """Returns GPUs that the NVIDIA driver lists, whether or not torch can use them."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if line.startswith("GPU")] if listed.returncode == 0 else []


def _stack() -> list[Check]:
    """Tries torch, its devices, fbgemm and torchrec, each needing the one before."""
    printed, error = _probe(_STACK_PROBE)
    checks = []
    if printed:
        found = json.loads(printed[0])
        build = f"CUDA {found['cuda']} build" if found["cuda"] else "CPU build"
        checks = [Check("torch", f"{installed('torch')}, {build}"), _devices(found["cuda"], found["devices"])]
    names = ["torch", "fbgemm", "torchrec"]
    checks += [Check(name, "loads") for name in names[1 : len(printed)]]
    if error:
        failed, *untried = names[len(printed) :]
        checks.append(Check(failed, f"does not load: {error}", "wrong", version_problem() or REINSTALL))
        checks += [Check(name, f"not tried, as {failed} does not load", "note") for name in untried]
    return checks


def _devices(torch_cuda: str | None, usable: list[str]) -> Check:
    """Compares what the driver lists with what torch can use."""
    listed = _driver_gpus()
    if usable:
        if installed("fbgemm-gpu-cpu") is not None:
            remedy = "fbgemm-gpu-cpu has no GPU code: `make clean-venv setup MWUF_EXTRA=cuda`"
            return Check("devices", ", ".join(usable), "wrong", remedy)
        return Check("devices", ", ".join(usable))
    if listed and torch_cuda is None:
        remedy = "torch is the CPU build: `make clean-venv setup MWUF_EXTRA=cuda` takes the CUDA one"
        return Check("devices", f"CPU; the driver lists {len(listed)} GPU(s)", "wrong", remedy)
    if listed:
        remedy = f"torch for CUDA {torch_cuda} cannot use them: a newer driver, or a build for an older CUDA, is needed"
        return Check("devices", f"CPU; the driver lists {len(listed)} GPU(s)", "wrong", remedy)
    if torch_cuda is not None:
        return Check("devices", "CPU", "note", "the CUDA build on a machine without a GPU works, and is large")
    return Check("devices", "CPU")


def _versions() -> Check:
    names = ("torch", "torchrec", *FBGEMM_DISTRIBUTIONS)
    value = ", ".join(f"{name} {version}" for name in names if (version := installed(name)) is not None)
    problem = version_problem()
    if problem is not None:
        return Check("versions", value or "none installed", "wrong", problem)
    remedy = untested()
    return Check("versions", f"{value} go together", "note" if remedy else "ok", remedy or "")


def _triton() -> Check:
    version = installed("triton")
    if version is None:
        return Check("triton", "not installed: not needed on a CPU")
    return Check("triton", version)


def _loops() -> Check:
    """Says whether the loops of `mwuf_kernels` are compiled for this machine; they are now, if they can be."""
    printed, error = _probe(_LOOPS_PROBE)
    if printed[:1] == ["True"]:
        return Check("loops", "compiled for this CPU")
    why = error or " ".join(printed[1:])
    if why:
        return Check("loops", f"not compiled: {why}", "note", "training on a CPU takes about twice as long")
    remedy = "training on a CPU takes about twice as long: install g++ or clang++"
    return Check("loops", "not compiled: no C++ compiler, or MWUF_NATIVE=0", "note", remedy)


def _ray() -> Check:
    _, error = _probe("import ray")
    if error:
        return Check("ray", f"does not load: {error}", "wrong", REINSTALL)
    return Check("ray", f"{installed('ray')}, loads")


def _data_dir() -> Check:
    folder = data_dir()
    if folder is None:
        return Check("data", "MWUF_DATA_DIR is not set: public data sets are downloaded to the cache")
    if not folder.is_dir():
        return Check(
            "data", f"MWUF_DATA_DIR={folder} is no folder", "wrong", "create it, or set it to where raw data lie"
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return Check("data", f"{folder} ({', '.join(names) or 'empty'})")


def _cache_dir() -> Check:
    folder = cache_dir()
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check("cache", f"{folder} cannot be written", "wrong", "set MWUF_CACHE_DIR to a folder that can be")
    free_gib = shutil.disk_usage(existing).free / 2**30
    if free_gib < _MIN_DISK_GIB:
        remedy = f"prepared data need some space: free {_MIN_DISK_GIB} GiB, or set MWUF_CACHE_DIR to another disk"
        return Check("cache", f"{folder}, {free_gib:.1f} GiB free", "note", remedy)
    return Check("cache", f"{folder}, {free_gib:.0f} GiB free")


if __name__ == "__main__":
    sys.exit(main())
