"""Sums and exchanges between ranks of one host, through memory that they share.

Gloo gives its messages to threads of its own, which need a core. Where every core computes, a message waits for its
turn on one, which is milliseconds: of two ranks on two cores that compute for 3 ms between two sums, a sum of 129
numbers took 4,986 microseconds through gloo and 318 here (medians; without work between them 369 and 97).

Every rank has a slot that all can read, and between every two is a socket, through which a rank says that its slot is
written. Who waits looks for that for a moment, and gives its core away between two looks; then it sleeps in a read of
the socket. A rank that has slept computes slower for a while: with the looks, steps of 2,048 and 8,192 rows of
`pretrain` take .79 and .90 times as long on two idle cores, .94 and .96 times beside a program that has one of them.
A rank that dies closes its sockets, which the others notice at once.
"""

from __future__ import annotations

import hmac
import mmap
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import record_function

# Bytes of a slot in the beginning: it grows with what is written into it.
_SLOT_BYTES = 1 << 20
# Bytes from which more than two ranks sum a part each, and read the parts of the others.
_LONG_BYTES = 1 << 16
# Bytes from which a sum takes longer in messages that go to each rank anyway than by itself.
_LONG_BESIDE_ROWS_BYTES = 1 << 18
TOKEN_BYTES = 32
_MEMORIES = 3  # of a rank: two slots, and its counter
# How long a rank looks for the others before it sleeps. From 50 microseconds to 2 milliseconds make little difference.
_LOOK_S = 200e-6
# What a rank says to another: where in its slot that one finds its bytes, and how many they are.
_MESSAGE = struct.Struct("<qq")


class PeerLostError(RuntimeError):
    """Another rank of the host has closed its sockets, or has said nothing for the timeout."""


class _Slot:
    """Memory that its rank writes and the others read; it takes no pages before they are written."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def first(self, num_bytes: int, like: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Views so many bytes from `start` on as numbers of another tensor's type, in one dimension."""
        end = start + num_bytes
        if end > len(self._bytes):
            size = max(_SLOT_BYTES, 1 << (end - 1).bit_length())
            if os.fstat(self._descriptor).st_size < size:
                os.ftruncate(self._descriptor, size)
            self._bytes = torch.frombuffer(mmap.mmap(self._descriptor, size), dtype=torch.uint8)
        return self._bytes[start:end].view(like.dtype)

    def close(self) -> None:
        os.close(self._descriptor)


class OneHost:
    """Slots of all ranks, and sockets to the others.

    Args:
        rank: ours.
        slots: two slots of every rank, in their order: a rank may write one while others still read its last.
        counters: memory of every rank, where the number of its meetings stands.
        sockets: to every other rank.
    """

    def __init__(
        self, rank: int, slots: list[list[_Slot]], counters: list[int], sockets: dict[int, socket.socket]
    ) -> None:
        self._rank = rank
        self._slots = slots
        self._sockets = sockets
        self._turn = 0
        self._counters = [_counter(descriptor) for descriptor in counters]
        self._meetings = 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a contiguous tensor over the ranks in place, with the same bits on each; returns it. A collective.

        Raises:
            PeerLostError: another rank has gone or says nothing.
        """
        parts = self._written(tensor.view(-1))
        if goes_whole(tensor.nbytes, len(parts)):
            sum_in_order(parts, tensor.view(-1))
            return tensor
        # Each sums one piece of all, in place of its own rows of it, which nobody else reads.
        pieces = [part.tensor_split(len(parts)) for part in parts]
        ours = [piece[self._rank] for piece in pieces]
        ours[self._rank].copy_(sum_in_order(ours, torch.empty_like(ours[0])))
        self._meet()
        torch.cat([pieces[rank][rank] for rank in range(len(parts))], out=tensor.view(-1))
        return tensor

    def sum_parts(self, out: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        """Sums what the ranks have for us, each a tensor for every rank, into `out`. A collective."""
        start = sum(part.numel() for part in parts[: self._rank])
        written = self._written(torch.cat([part.reshape(-1) for part in parts]))
        sum_in_order([part[start : start + out.numel()] for part in written], out.view(-1))

    def gather(self, out: torch.Tensor, tensor: torch.Tensor) -> None:
        """Lays the contiguous tensors of all ranks end to end, into `out`. A collective."""
        torch.cat(self._written(tensor.view(-1)), out=out.view(-1))

    def exchange(self, out: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> None:
        """Gives every rank its one of `parts`, and fills `out` with what the others have for us. A collective.

        Args:
            out: contiguous, of every rank; as large as what that rank has.
            parts: for every rank.

        Raises:
            PeerLostError: another rank has gone or says nothing.
        """
        for other, found in self._swapped(parts).items():
            out[other].view(-1).copy_(found)
        out[self._rank].copy_(parts[self._rank])

    def give(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Gives every rank its one of `parts` [n]; returns what each has for us, however much. A collective."""
        theirs = self._swapped(parts)
        return [part if rank == self._rank else theirs[rank].clone() for rank, part in enumerate(parts)]

    def close(self) -> None:
        """Lets the others notice, if they should still wait for us."""
        for one in self._sockets.values():
            one.close()
        for slot in (slot for slots in self._slots for slot in slots):
            slot.close()

    def _swapped(self, parts: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
        """Writes a part for every rank into our slot; views what the others have written for us."""
        slots, places, start = self._next_slots(), {}, 0
        for other in self._sockets:
            part = parts[other]
            num_bytes = part.numel() * part.element_size()
            slots[self._rank].first(num_bytes, part, start).copy_(part.reshape(-1))
            places[other] = start, num_bytes
            start += -(-num_bytes // 16) * 16  # where any type of number may begin
        found = self._meet(places).items()
        return {other: slots[other].first(num_bytes, parts[other], begin) for other, (begin, num_bytes) in found}

    def _written(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Writes a tensor into our slot; views what every rank has written, equally long."""
        slots, num_bytes = self._next_slots(), flat.numel() * flat.element_size()
        slots[self._rank].first(num_bytes, flat).copy_(flat)
        theirs = self._meet(dict.fromkeys(self._sockets, (0, num_bytes)))
        assert all(size == num_bytes for _, size in theirs.values()), (
            "ranks have come to different places of the program"
        )
        return [slot.first(num_bytes, flat) for slot in slots]

    def _next_slots(self) -> list[_Slot]:
        # Who has met the others once more has read what they wrote before: that slot is free again.
        self._turn = 1 - self._turn
        return [slots[self._turn] for slots in self._slots]

    @record_function("one_host:meet")  # what a profile shows of the time that we wait for the slowest
    def _meet(self, places: dict[int, tuple[int, int]] | None = None) -> dict[int, tuple[int, int]]:
        """Says that our slot is written, and where for whom; waits until those of the others are, and returns where."""
        found = {}
        try:
            for other, one in self._sockets.items():
                one.sendall(_MESSAGE.pack(*(places[other] if places else (0, 0))))
            self._look()
            for other, one in self._sockets.items():
                message = _read(one, _MESSAGE.size)
                if len(message) < _MESSAGE.size:
                    raise PeerLostError(f"rank {other} has gone")
                found[other] = _MESSAGE.unpack(message)
        except OSError as error:
            raise PeerLostError(f"a rank of this host does not answer ({error})") from error
        return found

    def _look(self) -> None:
        """Lets the others see that our messages lie in their sockets; looks for theirs, and returns soon anyway."""
        self._meetings += 1
        self._counters[self._rank][0] = self._meetings
        end = time.perf_counter() + _LOOK_S
        while any(one[0] < self._meetings for one in self._counters) and time.perf_counter() < end:
            os.sched_yield()


def _counter(descriptor: int) -> memoryview:
    """Views a number that the ranks share, 64 bits, zero at first."""
    if os.fstat(descriptor).st_size < 8:
        os.ftruncate(descriptor, 8)
    memory = memoryview(mmap.mmap(descriptor, 8)).cast("q")
    os.close(descriptor)
    return memory


def goes_with_rows(num_bytes: float, world_size: int) -> bool:
    """Says whether what is summed goes in messages that ranks send each other anyway.

    Of two ranks on one host, 64 KB take .87 times as long so, and 1 MB 1.5 times.
    """
    return goes_whole(num_bytes, world_size) and num_bytes < _LONG_BESIDE_ROWS_BYTES


def goes_whole(num_bytes: float, world_size: int) -> bool:
    """Says whether each rank gets all that is summed; else each sums a piece, and gives it to the others."""
    return world_size == 2 or num_bytes < _LONG_BYTES


def sum_in_order(parts: list[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """Sums tensors of the ranks in their order, for the same bits everywhere, into `out`, which is none of them."""
    torch.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        out += part
    return out


def connect(rank: int, world_size: int, timeout_s: float, gather: Callable[[Any], list[Any]]) -> OneHost | None:
    """Connects the ranks of one host; None where they are on several, or on no Linux. A collective.

    Sockets have names without a file, which vanish with their processes. Such a name can be reached by every user of
    the host: a rank proves that it is one by a secret that the ranks have exchanged.

    Args:
        rank: ours.
        world_size: number of ranks, at least 2.
        timeout_s: how long a rank may keep the others waiting.
        gather: gives every rank everybody's value, in their order.
    """
    listening = _listen(world_size) if hasattr(os, "memfd_create") else None
    secret = secrets.token_bytes(TOKEN_BYTES)
    everybody = gather((_host(), listening and listening.getsockname(), secret))
    if listening is None or any(host != _host() or not name for host, name, _ in everybody):
        return None
    memories = [os.memfd_create("mwuf-slot") for _ in range(_MEMORIES)]
    with listening:
        try:
            found = sockets_to_others(rank, everybody, listening, timeout_s)
            for one in found.values():
                socket.send_fds(one, [b"."], memories)
            others = {other: _descriptors(one) for other, one in found.items()}
        except OSError as error:
            raise PeerLostError(f"a rank of this host does not answer ({error})") from error
    of_rank = [memories if other == rank else others[other] for other in range(world_size)]
    slots = [[_Slot(one) for one in descriptors[:2]] for descriptors in of_rank]
    return OneHost(rank, slots, [descriptors[2] for descriptors in of_rank], found)


def _host() -> tuple[str, int, int]:
    """Names what ranks of one host have in common: the kernel's start, the network's name space, and the user."""
    start = Path("/proc/sys/kernel/random/boot_id")
    network = Path("/proc/self/ns/net")
    if not (start.exists() and network.exists()):
        return secrets.token_hex(), 0, 0
    return start.read_text().strip(), network.stat().st_ino, os.getuid()


def _listen(backlog: int) -> socket.socket | None:
    """Returns a socket under an abstract name of its own; None where the system has none."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind("\0mwuf-" + secrets.token_hex(16))
        listening.listen(backlog)
    except OSError:
        listening.close()
        return None
    return listening


def sockets_to_others(
    rank: int, everybody: list[Any], listening: socket.socket, timeout_s: float
) -> dict[int, socket.socket]:
    """Connects to every other rank: to lower ones we go, higher ones come to us.

    Each end proves that it is a rank by a secret of the other's.

    Args:
        rank: ours.
        everybody: of every rank a tuple that ends with the address at which it listens and its secret.
        listening: at ours.
        timeout_s: until all stand.

    Raises:
        OSError: another does not answer.
    """
    found: dict[int, socket.socket] = {}
    secret, end = everybody[rank][-1], time.monotonic() + timeout_s

    def rest() -> float:
        return max(0.01, end - time.monotonic())

    for other in range(rank):
        *_, address, theirs = everybody[other]
        one = found[other] = socket.socket(listening.family, socket.SOCK_STREAM)
        one.settimeout(rest())
        one.connect(address)
        one.sendall(theirs + secret)
        if not hmac.compare_digest(_read(one, TOKEN_BYTES), secret):
            raise ConnectionError(f"what listens at the address of rank {other} is not it")
    while len(found) < len(everybody) - 1:
        listening.settimeout(rest())
        one, _ = listening.accept()
        one.settimeout(rest())
        known, theirs = _read(one, TOKEN_BYTES), _read(one, TOKEN_BYTES)
        others = [other for other, (*_, value) in enumerate(everybody) if hmac.compare_digest(value, theirs)]
        if not hmac.compare_digest(known, secret) or not others:
            one.close()  # not a rank
            continue
        one.sendall(theirs)
        found[others[0]] = one
    return found


def _read(one: socket.socket, num_bytes: int) -> bytes:
    found = b""
    while len(found) < num_bytes and (more := one.recv(num_bytes - len(found))):
        found += more
    return found


def _descriptors(one: socket.socket) -> list[int]:
    _, descriptors, _, _ = socket.recv_fds(one, 1, _MEMORIES)
    if len(descriptors) < _MEMORIES:
        raise ConnectionError("it has gone")
    return descriptors
