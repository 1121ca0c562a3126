"""One Ray cluster of this machine for all tests that need nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def start_ray() -> Iterator[Callable[[], Any]]:
    """Starts the cluster where it does not run (a test of its own cluster has ended it); returns `ray`."""
    import ray

    def start() -> Any:
        if not ray.is_initialized():
            ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
        return ray

    yield start
    ray.shutdown()


@pytest.fixture
def cluster(start_ray: Callable[[], Any]) -> Any:
    """`ray`, with two CPUs of this machine."""
    return start_ray()
