"""The other ranks: waiting for one that is busy, and finding out which one is gone.

Both go through the store that the ranks met at, because a process group is of no use once a collective has failed. The
store lies with the launcher under `torchrun`, elsewhere with rank 0.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from mwuf_dist.runtime.shutdown import RankLostError

# Seconds between two signs of life of a rank that the others wait for.
_SIGN_EVERY_S = 0.25
# Seconds that the ranks have to notice a failure after the first of them: they wait in the same collective.
_ROLL_CALL_S = 3.0
# Seconds between two looks into the store at most.
_LONGEST_PAUSE_S = 0.1


class Peers:
    """The ranks of one process group.

    Args:
        store: of this group alone.
        rank: ours.
        world_size: number of ranks.
        timeout_s: a rank that gives no sign for so long is lost.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout_s: float) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self.timeout_s = timeout_s
        self._num_waits = 0

    def beside(self) -> Peers:
        """Makes peers of the same ranks for another thread: its waits are counted apart."""
        return Peers(dist.PrefixStore("beside", self._store), self._rank, self._world_size, self.timeout_s)

    @contextlib.contextmanager
    def waiting_for_us(self) -> Iterator[None]:
        """Around what the main rank does while the others are in `wait_for_main`, however long it takes."""
        self._num_waits += 1
        number, ended = self._num_waits, threading.Event()

        def give_signs() -> None:
            count = 0
            with contextlib.suppress(RuntimeError):  # the store is gone: so is the run
                while not ended.wait(_SIGN_EVERY_S):
                    count += 1
                    self._store.set(f"sign-{number}", str(count))

        thread = threading.Thread(target=give_signs, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._store.set(f"done-{number}", "")

    def wait_for_main(self) -> None:
        """Waits until the main rank leaves `waiting_for_us`.

        Raises:
            RankLostError: it has given no sign for `timeout_s`.
        """
        self._num_waits += 1
        done, sign = f"done-{self._num_waits}", f"sign-{self._num_waits}"
        last_sign, last_change, pause_s = b"", time.monotonic(), 0.001
        while not self._store.check([done]):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            found = self._store.get(sign) if self._store.check([sign]) else b""
            if found != last_sign:
                last_sign, last_change = found, time.monotonic()
            elif time.monotonic() - last_change > self.timeout_s:
                raise RankLostError(f"rank 0 has given no sign for {self.timeout_s:g} s: it has died or hangs")

    def note_failure(self, reason: str) -> None:
        """Leaves a note of why this rank ends, for `roll_call` on the others."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"failed-{self._rank}", reason)

    def roll_call(self) -> str:
        """After a collective has failed: which rank is the reason.

        Every rank that is alive notices the failure, and answers. Who has left a note, or does not answer, is it.
        """
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        deadline = time.monotonic() + _ROLL_CALL_S
        try:
            self._store.set(f"here-{self._rank}", "")
            while True:
                notes = [
                    f"rank {rank} has ended: {self._store.get(f'failed-{rank}').decode()}"
                    for rank in others
                    if self._store.check([f"failed-{rank}"])
                ]
                silent = [rank for rank in others if not self._store.check([f"here-{rank}"])]
                if notes or not silent or time.monotonic() > deadline:
                    break
                time.sleep(_LONGEST_PAUSE_S)
        except RuntimeError:
            return "rank 0 is gone, and with it the store through which the ranks meet"
        if notes:
            return "; ".join(notes)
        if silent:
            return f"rank {', '.join(map(str, silent))} does not answer: it has died or hangs"
        return "a rank was later than runtime.timeout_s, or a connection has failed (every rank answers now)"
