"""`--launcher ray`: the ranks are actors of a Ray cluster, the one that `RAY_ADDRESS` names or one of this machine.

Ray places the ranks, watches them, and starts them again from the last checkpoint when one is lost. What a rank does is
the function that a plain run and `torchrun` call too; it finds its place in the same environment variables. The output
folder and the prepared shards must lie where every node can read them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from mwuf_dist.config import Config, UserError, build, to_dict
from mwuf_dist.exits import RankLostError

# Times that lost ranks are started again; each time goes on from the last checkpoint.
MAX_RESTARTS = 3


@ray.remote
class _Rank:
    """One rank in a process of its own."""

    def address(self) -> tuple[str, int]:
        """This node's address and a free port on it, for the ranks to meet at."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def train(self, config: dict[str, Any], folder: str, environment: dict[str, str]) -> dict[str, Any]:
        """Trains; the result or, under `error`, what is wrong with the user's input."""
        os.environ.update(environment)
        # Not earlier: importing torch reads some of these variables.
        from mwuf_dist.launch import local

        try:
            return local.train(build(config), Path(folder))
        except UserError as error:
            return {"error": str(error)}


def train(config: Config, folder: Path, num_workers: int) -> dict[str, Any]:
    """Runs or resumes a run on a Ray cluster.

    Args:
        config: of the run.
        folder: of the run, on a file system that all nodes share.
        num_workers: ranks; each takes a CPU, or a GPU where the cluster has enough of them and the config allows it.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: the cluster is too small, the user's input is wrong, or ranks were lost too often.
    """
    with _cluster(num_workers):
        resources = _resources(config, num_workers)
        for attempt in range(MAX_RESTARTS + 1):
            ranks: list[Any] = [_Rank.options(**resources).remote() for _ in range(num_workers)]
            try:
                return _train(ranks, config, folder)
            except (RayActorError, RankLostError) as error:  # the peers of a rank that is lost may be heard first
                print(
                    f"a rank was lost ({type(error).__name__}); attempt {attempt + 1} goes on from the last checkpoint"
                )
            finally:
                for rank in ranks:
                    ray.kill(rank)
    raise UserError(f"ranks were lost {MAX_RESTARTS + 1} times: see the log of the cluster; the same command goes on")


def _train(ranks: list[Any], config: Config, folder: Path) -> dict[str, Any]:
    address, port = ray.get(ranks[0].address.remote())
    pending = [
        rank.train.remote(
            to_dict(config),
            str(folder.resolve()),
            {
                "RANK": str(number),
                "LOCAL_RANK": "0",  # Ray shows each actor only its own GPU
                "WORLD_SIZE": str(len(ranks)),
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
            },
        )
        for number, rank in enumerate(ranks)
    ]
    # In the order of their ending, because the peers of a rank that is lost wait for it in a collective.
    results = {}
    waiting = list(pending)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        result = ray.get(done[0])
        if "error" in result:
            raise UserError(result["error"])
        results[done[0]] = result
    return results[pending[0]]


@contextlib.contextmanager
def _cluster(num_workers: int) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started = not ray.is_initialized()
    if started and "RAY_ADDRESS" in os.environ:
        ray.init()
    elif started:
        # A cluster of this machine alone, on the loopback address.
        cpus = max(num_workers, os.cpu_count() or 1)
        ray.init(num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1")
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _resources(config: Config, num_workers: int) -> dict[str, Any]:
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0), total.get("GPU", 0)
    if config.runtime.device != "cpu" and gpus >= num_workers:
        return {"num_cpus": 1, "num_gpus": 1}
    if config.runtime.device == "cuda":
        raise UserError(f"runtime.device = 'cuda': {num_workers} ranks need a GPU each, the cluster has {gpus:g}")
    if cpus < num_workers:
        raise UserError(f"{num_workers} ranks need a CPU each, the cluster has {cpus:g}: take fewer --num-workers")
    return {"num_cpus": 1}
