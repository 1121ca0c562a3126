"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import ctypes
import json
import platform
import resource
import statistics
import subprocess
import sys

import pytest
import torch

from mwuf_dist.config import Config
from mwuf_dist.runtime import start

_NUM_BYTES, _NUM_TENSORS, _STEPS = 8 << 20, 4, 11
_PAGES = _NUM_BYTES * _NUM_TENSORS // resource.getpagesize()  # of a step
_PR_SET_THP_DISABLE = 41


def _step() -> None:
    kept = [torch.zeros(_NUM_BYTES, dtype=torch.uint8) for _ in range(_NUM_TENSORS)]
    del kept


def _page_faults() -> list[int]:
    """Of each step, after one."""
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a large page is one fault
    _step()
    found = []
    for _ in range(_STEPS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        _step()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


def _faults_of_a_process() -> list[int]:
    command = [sys.executable, "-m", "tests.runtime.test_allocator"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_pages_of_temporaries_are_not_asked_for_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of most steps: where other threads have left holes in the heap, it grows in some until there is room.
    assert statistics.median(_faults_of_a_process()) < _PAGES // 8
    # Who sets it otherwise gets that: here every page anew in every step.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert min(_faults_of_a_process()) >= _PAGES


if __name__ == "__main__":
    with start(Config()):
        print(_page_faults())
