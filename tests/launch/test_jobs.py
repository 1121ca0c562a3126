"""`ray job submit`: the run is a job of a cluster that exists, with token authentication."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.config import to_toml
from mwuf_dist.launch import local
from tests.launch.test_cluster import SMALL, TOKEN, check_equal
from tests.tiny import tiny

HAS_JOBS = all(importlib.util.find_spec(name) for name in ("aiohttp_cors", "opencensus"))
pytestmark = [
    pytest.mark.ray,
    pytest.mark.dist,
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_JOBS, reason="needs Ray's job server: pip install 'ray[default]'"),
]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# Ray's servers that listen at a fixed port unless they are told another.
PORTS = ("port", "ray-client-server-port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port")


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def head() -> Iterator[str]:
    """The address of the job server of a cluster of this machine."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    # Not pytest's folder: the path of a socket in it would be too long.
    scratch = tempfile.mkdtemp(prefix="mwuf-ray-")
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    options += ["--num-cpus=3", "--object-store-memory=104857600", f"--temp-dir={scratch}"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | TOKEN
    log = Path(scratch) / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *options], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        wait_for_server(address, process, log)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for_server(address: str, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it wants a token
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def submit(address: str, arguments: list[str], **changed: str) -> subprocess.CompletedProcess[str]:
    command = [*RAY, "job", "submit", "--address", address, "--", sys.executable, "-m", "mwuf_dist", *arguments]
    environment = os.environ | TOKEN | changed
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.timeout(900)
def test_a_submitted_job_gives_the_result_of_one_process_and_needs_the_token(head: str, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(to_toml(tiny(**SMALL)))
    arguments = ["run", str(config), "--output", str(tmp_path / "job"), "--launcher", "ray", "--num-workers", "2"]
    refused = submit(head, arguments, RAY_AUTH_TOKEN="f" * 32)
    assert refused.returncode != 0 and not (tmp_path / "job").exists()
    done = submit(head, arguments)
    deadline = time.monotonic() + 280
    while "No available agent" in done.stderr and not (tmp_path / "job").exists() and time.monotonic() < deadline:
        done = submit(head, arguments)  # what starts jobs on a node comes up after what takes them
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout + done.stderr
    found = json.loads((tmp_path / "job" / "results.json").read_text())
    assert found["world_size"] == 2
    check_equal(found, local.train(tiny(**SMALL), tmp_path / "alone"), 1e-4)
    wrong = submit(head, [*arguments, "--no-such-key", "1"])
    assert wrong.returncode != 0, "the exit code of a job is that of the run"
