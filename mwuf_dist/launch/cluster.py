"""The Ray cluster of a command: one that exists, or one of this machine that ends with it; and a guard over it.

Ray waits without end for a part of itself that is stopped: for its GCS, which knows the cluster, and for the raylet of
this machine. The guard asks them all the time, and ends the process where it gets no answer.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import services
from ray.exceptions import AuthenticationError

from mwuf_dist.config import UserError
from mwuf_dist.runtime.waits import NoAnswerError, within

_FIRST_WITH_TOKENS = (2, 60)
_SECONDS_BETWEEN_QUESTIONS = 2.0
# Where no run says how long another process may give no sign.
SILENT_S = 60.0
# For the parts of Ray to end when they are asked to; where its GCS hangs they do not, and are killed.
_END_S = 15.0
# For the parts of Ray to find each other; Ray's own half a minute is short on a busy machine.
_START_S = "120"
_LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def cluster(num_cpus: int, address: str = "", silent_s: float = SILENT_S, quiet: bool = False) -> Iterator[None]:
    """Joins the cluster at `address` or RAY_ADDRESS, or makes one of this machine; leaves what it has joined or made.

    Args:
        num_cpus: that a cluster of this machine must offer.
        address: of a running cluster.
        silent_s: where Ray gives no answer for so long, this process says so and ends with exit code 1.
        quiet: show neither what its processes print nor what Ray says of itself.

    Raises:
        UserError: no cluster can be reached at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _check_version()
    level = logging.ERROR if quiet else logging.INFO
    logging.getLogger("ray").setLevel(level)
    told: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": level}
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address:
        _join(address, told)
    else:
        _make(max(num_cpus, os.cpu_count() or 1), told)
    guard = _Guard(silent_s)
    try:
        yield
    finally:
        guard.end()
        _leave()


def _check_version() -> None:
    if tuple(int(part) for part in ray.__version__.split(".")[:2]) < _FIRST_WITH_TOKENS:
        raise UserError(f"Ray {ray.__version__} starts clusters without token authentication: install 2.60 or later")


def _join(address: str, told: dict[str, Any]) -> None:
    try:
        ray.init(address, **told)
    except (ConnectionError, AuthenticationError, ValueError) as error:
        raise UserError(
            f"no Ray cluster can be reached at {address} ({str(error).splitlines()[0]}): check the address; a "
            "cluster with token authentication needs its token here too (RAY_AUTH_MODE=token and ~/.ray/auth_token)"
        ) from None


def _make(num_cpus: int, told: dict[str, Any]) -> None:
    """Makes a cluster of this machine alone, which nothing outside it can reach.

    It has a token, as Ray has it since 2.60: it reads RAY_AUTH_MODE when it is imported, and setting that here would
    come too late.
    """
    os.environ.setdefault("RAY_raylet_start_wait_time_s", _START_S)
    try:
        with _loopback_stays():
            ray.init("local", num_cpus=num_cpus, include_dashboard=False, _node_ip_address=_LOOPBACK, **told)
    except Exception as error:  # a plain one
        if "timed out during startup" not in str(error):
            raise
        raise UserError("Ray did not start in time: this machine is busy; run the same command again") from None
    if ray.util.get_node_ip_address() != _LOOPBACK:
        print("Ray listens on all addresses of this machine; a token guards it", file=sys.stderr)


@contextlib.contextmanager
def _loopback_stays() -> Iterator[None]:
    """Makes Ray take the loopback address of a node, and listens there alone.

    By itself it takes it for a mistake, replaces it by one that other machines reach, and listens on all.
    """
    name, resolve = "resolve_ip_for_localhost", getattr(services, "resolve_ip_for_localhost", None)
    if resolve is None:  # another version of Ray
        yield
        return
    setattr(services, name, lambda host: host)
    try:
        yield
    finally:
        setattr(services, name, resolve)


def _leave() -> None:
    try:
        within(_END_S, ray.shutdown)
    except NoAnswerError:
        _kill_what_we_started()


def _kill_what_we_started() -> None:
    node = ray._private.worker._global_node  # pyright: ignore[reportAttributeAccessIssue]
    psutil: Any = importlib.import_module("psutil")  # Ray brings it along
    for process in itertools.chain(*node.all_processes.values()) if node is not None else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            part = psutil.Process(process.process.pid)
            for one in (*part.children(recursive=True), part):  # the raylet's agents look for it every few seconds only
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


class _Guard:
    """Asks the GCS all the time, and from it whether the raylet of this machine lives.

    Args:
        silent_s: how long an answer may take.
    """

    def __init__(self, silent_s: float) -> None:
        self._silent_s = silent_s
        self._node = ray.get_runtime_context().get_node_id()
        self._ended = threading.Event()
        threading.Thread(target=self._ask, daemon=True).start()

    def end(self) -> None:
        """Asks no more."""
        self._ended.set()

    def _ask(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_QUESTIONS):
            try:
                nodes = within(self._silent_s, ray.nodes)
            except NoAnswerError:
                self._give_up(f"its GCS gives no answer for {self._silent_s:g} s")
            except Exception:  # it is being left
                continue
            else:
                if not any(node["NodeID"] == self._node and node["Alive"] for node in nodes):
                    self._give_up("the raylet of this machine gives no sign of life")

    def _give_up(self, what: str) -> None:
        if self._ended.is_set():
            return
        _kill_what_we_started()
        # The main thread may wait in Ray's native code, where nothing reaches it.
        print(f"mwuf: Ray is stopped or hangs: {what}; the same command goes on", file=sys.stderr, flush=True)
        os._exit(1)
