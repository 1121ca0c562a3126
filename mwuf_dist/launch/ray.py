"""`--launcher ray`: the ranks are actors of a Ray cluster: one that exists, or one of this machine.

Ray places the ranks, watches them, and starts them again from the last checkpoint when one is lost: as many as there is
room for then, and more at the next checkpoint when there is room again. What a rank does is the function that a plain
run and `torchrun` call too; it finds its rank in the same environment variables. The output folder and the prepared
shards must lie where every node can read them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from mwuf_dist.config import Config, DataConfig, UserError, build, to_dict
from mwuf_dist.data.batches.lanes import LanesMove, start_coordinator
from mwuf_dist.data.prepare.prepare import is_prepared, prepare
from mwuf_dist.data.prepare.workers import OnRay
from mwuf_dist.data.shards import Prepared
from mwuf_dist.launch.cluster import cluster
from mwuf_dist.launch.watch import SECONDS_BETWEEN_QUESTIONS, LostRank, Watch, told_to_stop
from mwuf_dist.runtime.shutdown import RankLostError, StoppedError, asked_to_stop, held_back, sigterm_asks

# Times that lost ranks are started again without a new checkpoint in between.
MAX_RESTARTS = 3
# How long new ranks may take to start, where some were lost before: those that are there by then go on.
_START_S = 60.0
# The peers of a lost rank fail in a collective, often before Ray knows of the loss: how long Ray may take for it.
_LOSS_S = 60.0
# For room for one more rank.
_SECONDS_BETWEEN_LOOKS = 5.0
# Seconds beyond `runtime.timeout_s`, in which the peers of a rank that is stopped find that out by themselves.
_PEERS_FIRST_S = 15.0
# Ray's names of what an actor asks for and of what a node has.
_KEYS = {"num_cpus": "CPU", "num_gpus": "GPU"}


@ray.remote
class _Rank:
    """One rank in a process of its own."""

    def address(self) -> tuple[str, int]:
        """Gives this node's address and a free port on it, for the ranks to meet at."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def train(self, config: dict[str, Any], folder: str, environment: dict[str, str]) -> dict[str, Any]:
        """Trains; the result, or what is wrong with the user's input under `error`, or where it stopped, as asked."""
        os.environ.update(environment)
        try:
            # Before what takes long to import: who imports on a busy machine lives.
            with sigterm_asks(), told_to_stop(environment["MWUF_LANE_COORDINATOR"], int(environment["RANK"])):
                # Not earlier: importing torch reads some of these variables.
                from mwuf_dist.embeddings.torchrec_import import import_torchrec

                import_torchrec()
                from mwuf_dist.launch import local

                return local.train(build(config), Path(folder))
        except UserError as error:
            return {"error": str(error)}
        except StoppedError as stop:
            return {"stopped": str(stop)}
        except LanesMove:
            return {}


def prepare_data(config: DataConfig, num_workers: int, address: str = "", progress: bool = False) -> Prepared:
    """Prepares a data set on a Ray cluster, or opens the folder that an earlier call has left.

    Args:
        config: section `data`.
        num_workers: pieces of work that are done at once, each on a CPU.
        address: see `train`.
        progress: show a progress bar.

    Raises:
        UserError: the cluster cannot be reached or is too small, or the raw data is wrong.
        StoppedError: this process was sent SIGTERM; nothing is left.
    """
    with cluster(num_workers, address), sigterm_asks():
        _need_cpus(num_workers)
        pool = OnRay(num_workers)
        prepared = prepare(config, progress, pool)
        print(
            f"{num_workers} workers: {pool.cpu_s:.1f} s of processor time, at most {pool.peak_bytes / 1e6:.0f} MB each"
        )
        return prepared


def train(config: Config, folder: Path, num_workers: int, address: str = "") -> dict[str, Any]:
    """Runs or resumes a run on a Ray cluster.

    Args:
        config: of the run.
        folder: of the run, on a file system that all nodes share.
        num_workers: ranks; each takes a CPU, or a GPU where the cluster has enough of them and the config allows it.
            Fewer go on where nodes are lost.
        address: of a cluster; empty: the one that `RAY_ADDRESS` names, or a cluster of this machine for this run.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: the cluster cannot be reached or is too small, the user's input is wrong, or ranks were lost too
            often.
        StoppedError: this process was sent SIGTERM; the ranks have saved.
    """
    folder = folder.resolve()
    # In this order: Ray sets a handler of its own.
    with cluster(num_workers, address, config.runtime.timeout_s), sigterm_asks():
        need = _need(config, num_workers)
        if not is_prepared(config.data):
            prepare(config.data, os.isatty(2), OnRay(num_workers))
        restarts, saved, num_ranks, timeout_s = 0, _latest(folder), num_workers, config.runtime.timeout_s + _START_S
        while restarts <= MAX_RESTARTS:
            coordinator_name = f"mwuf-lanes-{uuid.uuid4().hex}"
            coordinator = start_coordinator(coordinator_name)
            ranks: list[Any] = []
            try:
                ranks = _start_ranks(num_ranks, need, timeout_s)
                # Each time twice as long, as in `WatchedTasks`: what is slow, and no more than that, gets to its end.
                silent_s = (config.runtime.timeout_s + _PEERS_FIRST_S) * 2**restarts
                results = _train(ranks, config, folder, (coordinator_name, coordinator), num_workers, need, silent_s)
                if results:
                    return results
                print(f"{len(ranks)} ranks have left after a checkpoint: more can go on from there")
            except LostRank as error:
                restarts = restarts + 1 if _latest(folder) == saved else 1
                print(f"a rank was lost ({error}): the others end, and restart {restarts} goes on from the last save")
            finally:
                for actor in (*ranks, coordinator):
                    ray.kill(actor)
            saved, timeout_s = _latest(folder), _START_S
            num_ranks = min(num_workers, max(1, _room(need)))
    raise UserError(
        f"ranks were lost {restarts} times without a checkpoint in between: see the log of the cluster; the same "
        "command goes on"
    )


def _latest(folder: Path) -> str:
    """Returns the name of the last checkpoint, or nothing."""
    pointer = folder / "checkpoints" / "LATEST"
    return pointer.read_text() if pointer.exists() else ""


def _start_ranks(num_ranks: int, need: dict[str, int], timeout_s: float | None) -> list[Any]:
    """Returns actors that answer: all of them or, when the time is up, those that do by then."""
    ranks: list[Any] = [_Rank.options(**need).remote() for _ in range(num_ranks)]
    answers = [rank.address.remote() for rank in ranks]
    ready, _ = ray.wait(answers, num_returns=num_ranks, timeout=timeout_s)
    for rank, answer in zip(ranks, answers, strict=True):
        if answer not in ready:
            ray.kill(rank)
    if not ready:
        raise LostRank("none could be started")
    return [rank for rank, answer in zip(ranks, answers, strict=True) if answer in ready]


def _train(
    ranks: list[Any],
    config: Config,
    folder: Path,
    named_coordinator: tuple[str, Any],
    num_workers: int,
    need: dict[str, int],
    silent_s: float,
) -> dict[str, Any]:
    """Returns what rank 0 answers: the results, or nothing when the ranks have left after a checkpoint."""
    coordinator_name, coordinator = named_coordinator
    timeout_s = config.runtime.timeout_s
    try:
        address, port = ray.get(ranks[0].address.remote(), timeout=timeout_s)
    except (RayActorError, GetTimeoutError) as error:
        raise LostRank(f"rank 0: {type(error).__name__}") from None
    pending = [
        rank.train.remote(
            to_dict(config),
            str(folder),
            {
                "RANK": str(number),
                "LOCAL_RANK": "0",  # Ray shows each actor only its own GPU
                "WORLD_SIZE": str(len(ranks)),
                "LOCAL_WORLD_SIZE": "1",
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "MWUF_LANE_COORDINATOR": coordinator_name,
            },
        )
        for number, rank in enumerate(ranks)
    ]
    with held_back():  # a request to stop is the ranks' to heed, who have something to save
        watch = Watch(coordinator, len(ranks), silent_s)
        results = _answers(pending, coordinator, watch, need if len(ranks) < num_workers else None)
    for result in results:
        if "error" in result:
            raise UserError(result["error"])
        if "stopped" in result:
            raise StoppedError(result["stopped"])
    return results[0]


def _answers(pending: list[Any], coordinator: Any, watch: Watch, wanted: dict[str, int] | None) -> list[dict[str, Any]]:
    """Collects the ranks' answers; a mistake of the user's that one has found alone: the others may wait for it.

    Args:
        pending: the answers to come, by rank.
        coordinator: is told to stop the ranks, and to move them where there is room for one more.
        watch: over them.
        wanted: what one more rank takes; None where there are enough.
    """
    results: dict[Any, dict[str, Any]] = {}
    waiting = list(pending)
    looked = time.monotonic()
    # In the order of their ending, because the peers of a rank that is lost wait for it in a collective.
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=SECONDS_BETWEEN_QUESTIONS)
        for rank in done:
            results[rank] = _answer(rank, pending, waiting)
            if "error" in results[rank]:
                return [results[rank]]
        watch.look([pending.index(rank) for rank in waiting])
        if asked_to_stop():
            coordinator.stop.remote()
        elif wanted is not None and time.monotonic() - looked > _SECONDS_BETWEEN_LOOKS:
            looked = time.monotonic()
            if _has_free(wanted):
                coordinator.move.remote()
    return [results[rank] for rank in pending]


def _answer(done: Any, pending: list[Any], others: list[Any]) -> dict[str, Any]:
    """Takes the answer of a rank that has ended by itself and not because of a rank that was lost."""
    try:
        return ray.get(done)
    except RayActorError:
        raise LostRank(f"rank {pending.index(done)} has died") from None
    except RankLostError as error:  # the peers of a rank that is lost may be heard first
        raise LostRank(str(getattr(error, "cause", error)).partition("; the same command")[0]) from None
    except RayTaskError as error:
        deadline = time.monotonic() + _LOSS_S
        while others and time.monotonic() < deadline:
            ended, others = ray.wait(others, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(RayTaskError):
                for other in ended:
                    try:
                        ray.get(other)
                    except RayActorError:
                        raise LostRank(f"rank {pending.index(other)} has died") from None
        raise error


def _need(config: Config, num_workers: int) -> dict[str, int]:
    """Says what a rank takes of a node."""
    gpu = {"num_cpus": 1, "num_gpus": 1}
    if config.runtime.device != "cpu" and _room(gpu) >= num_workers:
        return gpu
    if config.runtime.device == "cuda":
        raise UserError(f"runtime.device = 'cuda': {num_workers} ranks need a GPU each, the cluster has {_room(gpu)}")
    return _need_cpus(num_workers)


def _need_cpus(num_workers: int) -> dict[str, int]:
    cpu = {"num_cpus": 1}
    if _room(cpu) < num_workers:
        raise UserError(f"{num_workers} workers need a CPU each, the cluster has {_room(cpu)}: take fewer")
    return cpu


def _has_free(need: dict[str, int]) -> bool:
    """Says whether there seems to be room for one more rank now."""
    free = ray.available_resources()
    return all(free.get(_KEYS[key], 0) >= value for key, value in need.items())


def _room(need: dict[str, int]) -> int:
    """Says how many ranks the nodes that are there could hold."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(_KEYS[key], 0) // value) for key, value in need.items()) for node in nodes)
