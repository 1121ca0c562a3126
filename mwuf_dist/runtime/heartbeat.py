"""The other ranks: meeting them, waiting for one that is busy, and finding out which one is gone.

All of it goes through the store that the ranks met at, because a process group is of no use once a collective has
failed. The store lies with the launcher under `torchrun`, elsewhere with rank 0. Whoever holds it may be stopped, and
then a question to it would never return: each is asked within a time (`Store`).
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch.distributed as dist

from mwuf_dist.runtime.shutdown import RankLostError
from mwuf_dist.runtime.waits import NoAnswerError, within

T = TypeVar("T")

# Seconds between two signs of life of a rank that the others wait for.
_SIGN_EVERY_S = 0.25
# Seconds that the ranks have to notice a failure after the first of them: they wait in the same collective.
_ROLL_CALL_S = 3.0
# Seconds beyond the timeout that a rank may come later than another: it imports, and may have to compile first.
COME_S = 60.0
# Seconds between two looks into the store at most.
_LONGEST_PAUSE_S = 0.1


class Peers:
    """The ranks of one process group.

    Args:
        store: of this group alone.
        rank: ours.
        world_size: number of ranks.
        timeout_s: a rank that gives no sign for so long is lost.
        holder: who holds the store.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout_s: float, holder: str = "rank 0") -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self.timeout_s = timeout_s
        self._holder = holder
        self._is_silent = False  # the store, which is not asked again then
        self._num_waits = 0

    def beside(self) -> Peers:
        """Makes peers of the same ranks for another thread: its waits are counted apart."""
        store = dist.PrefixStore("beside", self._store)
        return Peers(store, self._rank, self._world_size, self.timeout_s, self._holder)

    def ask(self, question: Callable[[dist.Store], T], seconds: float | None = None) -> T:
        """Asks the store something.

        Raises:
            RankLostError: it has given no answer for `seconds`, or `timeout_s`.
        """
        try:
            if not self._is_silent:
                return within(self.timeout_s if seconds is None else seconds, lambda: question(self._store))
        except NoAnswerError:
            self._is_silent = True
        raise RankLostError(
            f"rank {self._rank} stops, because {self._holder}, which holds the store through which the ranks meet, "
            "gives no answer: it is stopped or hangs; the same command goes on from the last checkpoint"
        )

    def meet(self) -> None:
        """Waits until every rank has come.

        Raises:
            RankLostError: some have not come within `timeout_s` and a minute; it says which.
        """
        seconds = self.timeout_s + COME_S
        names = {rank: f"come-{rank}" for rank in range(self._world_size)}
        self.ask(lambda store: store.set(names[self._rank], ""))
        try:
            everybody = list(names.values())
            self.ask(lambda store: store.wait(everybody, datetime.timedelta(seconds=seconds)), seconds + _ROLL_CALL_S)
        except dist.DistError:
            absent = self.ask(lambda store: [rank for rank, name in names.items() if not store.check([name])])
            raise RankLostError(
                f"rank {self._rank} stops, because rank {', '.join(map(str, absent))} has not come within "
                f"{seconds:g} s (runtime.timeout_s and {COME_S:g} s): start all {self._world_size}"
            ) from None

    @contextlib.contextmanager
    def waiting_for_us(self) -> Iterator[None]:
        """Surrounds what the main rank does while the others are in `wait_for_main`, however long it takes."""
        self._num_waits += 1
        number, ended = self._num_waits, threading.Event()

        def give_signs() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone: so is the run
                while not ended.wait(_SIGN_EVERY_S):
                    self.ask(lambda store: store.add(f"sign-{number}", 1))

        thread = threading.Thread(target=give_signs, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.ask(lambda store: store.set(f"done-{number}", ""))

    def wait_for_main(self) -> None:
        """Waits until the main rank leaves `waiting_for_us`.

        Raises:
            RankLostError: it has given no sign for `timeout_s`.
        """
        self._num_waits += 1
        done, sign = f"done-{self._num_waits}", f"sign-{self._num_waits}"
        last_sign, last_change, pause_s = b"", time.monotonic(), 0.001
        while not self.ask(lambda store: store.check([done])):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            found = self.ask(lambda store: store.get(sign) if store.check([sign]) else b"")
            if found != last_sign:
                last_sign, last_change = found, time.monotonic()
            elif time.monotonic() - last_change > self.timeout_s:
                raise RankLostError(f"rank 0 has given no sign for {self.timeout_s:g} s: it has died or hangs")

    def note_failure(self, reason: str) -> None:
        """Leaves a note of why this rank ends, for `roll_call` on the others."""
        with contextlib.suppress(RuntimeError):
            self.ask(lambda store: store.set(f"failed-{self._rank}", reason), _ROLL_CALL_S)

    def roll_call(self) -> str:
        """Says after a collective has failed which rank is the reason.

        Every rank that is alive notices the failure, and answers. Who has left a note, or does not answer, is it.
        """
        others = [rank for rank in range(self._world_size) if rank != self._rank]
        deadline = time.monotonic() + _ROLL_CALL_S

        def look(store: dist.Store) -> tuple[list[str], list[int]]:
            notes = [
                f"rank {rank} has ended: {store.get(f'failed-{rank}').decode()}"
                for rank in others
                if store.check([f"failed-{rank}"])
            ]
            return notes, [rank for rank in others if not store.check([f"here-{rank}"])]

        try:
            self.ask(lambda store: store.set(f"here-{self._rank}", ""), _ROLL_CALL_S)
            while True:
                notes, silent = self.ask(look, _ROLL_CALL_S)
                if notes or not silent or time.monotonic() > deadline:
                    break
                time.sleep(_LONGEST_PAUSE_S)
        except RankLostError:
            return f"{self._holder}, which holds the store through which the ranks meet, does not answer: it hangs"
        except RuntimeError:
            return f"{self._holder} is gone, and with it the store through which the ranks meet"
        if notes:
            return "; ".join(notes)
        if silent:
            return f"rank {', '.join(map(str, silent))} does not answer: it has died or hangs"
        return "a rank was later than runtime.timeout_s, or a connection has failed (every rank answers now)"
