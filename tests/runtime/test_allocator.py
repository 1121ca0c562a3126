"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest
import torch

from mwuf_dist.runtime.allocator import keep_freed_memory

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


def main() -> None:
    """Says how many pages a fresh process asks for with the default and with ours."""
    default = _page_faults()
    keep_freed_memory()
    print(default, _page_faults())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_pages_of_temporaries_are_not_asked_for_in_every_step() -> None:
    command = [sys.executable, "-m", "tests.runtime.test_allocator"]
    default, ours = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    # The heap may grow once more in a later step, where the first has left holes.
    assert ours <= 2 * _PAGES < _STEPS // 2 * _PAGES < default, (default, ours, _PAGES)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_what_the_environment_says_of_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    command = [sys.executable, "-m", "tests.runtime.test_allocator"]
    default, ours = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert min(default, ours) > _PAGES * _STEPS // 2


if __name__ == "__main__":
    main()
