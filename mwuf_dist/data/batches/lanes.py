"""Who reads which lanes: leases that move between ranks at checkpoints and failures.

A *generation* is a set of ranks that train together, from one start of the process group to its end. Within one, every
rank keeps its lanes. They move when the next generation starts from a checkpoint, with as many ranks as there are then:
after a failure, or because the launcher asked for it (`LaneCoordinator.move`).

Each generation has a `LaneCoordinator`: without Ray every rank has it in its own process, with Ray it is an actor, by
whose absence a rank that was given up for lost but lives on learns that others have gone on. It may be lost and started
again at any time, because it knows nothing that matters: the position in the data is in the cursor of the checkpoint,
who is who a rank says when it asks, and the launcher repeats what it wants.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from mwuf_dist.config import UserError
from mwuf_dist.runtime import Runtime
from mwuf_dist.runtime.shutdown import RankLostError
from mwuf_dist.runtime.waits import NoAnswerError, within


class StaleLease(RuntimeError):
    """This rank belongs to a generation that has been replaced: other ranks read its lanes now."""


class LanesMove(Exception):
    """The lanes are to go to another set of ranks, and the checkpoint to go on from is written."""


class LaneCoordinator:
    """Leases lanes to the ranks of one generation, and passes on what the launcher asks of them."""

    def __init__(self) -> None:
        self._is_moving = self._is_stopping = False
        self._signs: dict[int, float] = {}  # a rank's last sign of life

    def lease(self, rank: int, world_size: int, num_lanes: int) -> range:
        """Returns the lanes of a rank: neighbours, as even as can be, each lane at exactly one rank."""
        return range(rank * num_lanes // world_size, (rank + 1) * num_lanes // world_size)

    def renew(self) -> bool:
        """Says, before a checkpoint is written, whether to go on after it, or to leave the lanes to others."""
        return not self._is_moving

    def move(self) -> None:
        """Asks the ranks to leave after their next checkpoint."""
        self._is_moving = True

    def stop(self) -> None:
        """Asks the ranks to save and leave now."""
        self._is_stopping = True

    def is_stopping(self, rank: int) -> bool:
        """Says whether the ranks were asked to save and leave.

        A rank asks all the time, and is known to live by that.
        """
        self._signs[rank] = time.monotonic()
        return self._is_stopping

    def silence(self) -> dict[int, float]:
        """Seconds since each rank has asked something, of those that ever have."""
        now = time.monotonic()
        return {rank: now - last for rank, last in self._signs.items()}


class Leases:
    """A rank's side of the coordinator.

    Args:
        runtime: who asks, and the name of the Ray actor to ask; without a name the coordinator is in this process.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._local = None if runtime.lane_coordinator else LaneCoordinator()

    def lanes(self, num_lanes: int) -> range:
        """Returns our lanes of an epoch that has `num_lanes`.

        Raises:
            StaleLease: another generation has them.
        """
        return self._ask("lease", self._runtime.rank, self._runtime.world_size, num_lanes)

    def renew(self) -> bool:
        """Renews the leases before a checkpoint; whether to go on after it. A collective.

        Raises:
            StaleLease: another generation has the lanes, and the checkpoints are its to write.
        """
        answer = None
        if self._runtime.is_main:
            with contextlib.suppress(StaleLease):
                answer = self._ask("renew")
        answer = self._runtime.broadcast(answer)
        if answer is None:
            raise StaleLease("other ranks have gone on with this run: no checkpoint is written")
        return bool(answer)

    def _ask(self, question: str, *values: int) -> Any:
        if self._local is not None:
            return getattr(self._local, question)(*values)
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        rank, name, timeout_s = self._runtime.rank, self._runtime.lane_coordinator, self._runtime.timeout_s
        try:
            # Finding the actor may hang as well as asking it.
            return within(timeout_s, lambda: ray.get(getattr(ray.get_actor(name), question).remote(*values)))
        except (NoAnswerError, GetTimeoutError):
            raise RankLostError(
                f"rank {rank} stops, because the Ray actor that leases the lanes gives no answer for {timeout_s:g} s: "
                "it is stopped or hangs; the same command goes on from the last checkpoint"
            ) from None
        except (RayActorError, ValueError) as error:  # ValueError: no actor of this name
            raise StaleLease(f"rank {rank} has been replaced: {error}") from None


def start_coordinator(name: str) -> Any:
    """Returns a `LaneCoordinator` as a Ray actor that ranks find by its name; it lives as long as the handle returned.

    Ray starts it again when it is lost and repeats the question; it needs to be told nothing.
    """
    import ray

    # It answers a question per epoch and checkpoint: no CPU is set aside for it.
    options: Any = {"name": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(LaneCoordinator).options(**options).remote()


def check_lanes(num_lanes: int, batch_size: int, world_size: int, key: str = "batch_size") -> None:
    """Checks that there is a lane for every rank.

    Args:
        num_lanes: of a batch of this size.
        batch_size: rows of a global batch.
        world_size: number of ranks.
        key: of the config, for the message.

    Raises:
        UserError: there is not.
    """
    if num_lanes < world_size:
        raise UserError(
            f"{key} = {batch_size}: the number of lanes of such a batch is {num_lanes}, which leaves some of the "
            f"{world_size} ranks without rows: take a multiple of {world_size}, or fewer ranks"
        )
