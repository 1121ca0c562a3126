"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest
import torch

from mwuf_dist.config import Config
from mwuf_dist.runtime import start

_NUM_BYTES, _NUM_TENSORS, _STEPS = 8 << 20, 4, 10
_PAGES = _NUM_BYTES * _NUM_TENSORS // resource.getpagesize()  # of a step


def _step() -> None:
    kept = [torch.zeros(_NUM_BYTES, dtype=torch.uint8) for _ in range(_NUM_TENSORS)]
    del kept


def _page_faults() -> int:
    """Of ten steps, after one."""
    _step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(_STEPS):
        _step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _faults_of_a_process() -> int:
    command = [sys.executable, "-m", "tests.runtime.test_allocator"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_pages_of_temporaries_are_not_asked_for_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _faults_of_a_process() <= 2 * _PAGES  # the heap may grow once more, where a step has left holes
    # Who sets it otherwise gets that: here every page anew in every step.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert _faults_of_a_process() > _STEPS // 2 * _PAGES


if __name__ == "__main__":
    with start(Config()):
        print(_page_faults())
