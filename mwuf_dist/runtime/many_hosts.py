"""Sums and exchanges between ranks of several hosts' CPUs, through a TCP connection between every two.

Gloo gives its messages to threads of its own, which need a core, and sends none before its receiver has said that it
waits: an exchange takes the network's delay twice, and a sum of more than a few numbers four times and more. Here a
rank sends at once, from the thread that computes, and sleeps until the others' bytes have come: a delay once, or twice
for a long sum of more than two ranks. Both ends know how long a message is, so nothing but the numbers is sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.profiler import record_function

from mwuf_dist.runtime.one_host import TOKEN_BYTES, PeerLostError, goes_whole, sockets_to_others, sum_in_order

# Seconds until the connections stand; where a firewall keeps them from it, gloo does the work. At most this part of the
# timeout, because whoever gives up first waits for the others in gloo.
_CONNECT_S, _PART = 20.0, 0.25
_LONGEST_POLL_MS = 2**31 - 1
_SIOCGIFADDR = 0x8915


class ManyHosts:
    """Connections to the other ranks.

    Args:
        rank: ours.
        sockets: to every other rank.
        timeout_s: how long a rank may send nothing.
    """

    def __init__(self, rank: int, sockets: dict[int, socket.socket], timeout_s: float) -> None:
        self._rank, self._sockets, self._timeout_s = rank, sockets, timeout_s
        self._places = {one.fileno(): other for other, one in sockets.items()}
        for one in sockets.values():
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a contiguous tensor over the ranks in place, with the same bits on each; returns it. A collective.

        Raises:
            PeerLostError: another rank has gone or says nothing.
        """
        flat = tensor.view(-1)
        if goes_whole(flat.nbytes, len(self._sockets) + 1):
            flat.copy_(self._summed(dict.fromkeys(self._sockets, flat), flat))
            return tensor
        # Each sums one piece of all, and gives it to the others.
        pieces = flat.tensor_split(len(self._sockets) + 1)
        ours = pieces[self._rank]
        ours.copy_(self._summed({other: pieces[other] for other in self._sockets}, ours))
        self._swap(dict.fromkeys(self._sockets, ours), {other: pieces[other] for other in self._sockets})
        return tensor

    def sum_parts(self, out: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        """Sums what the ranks have for us, each a tensor for every rank, into `out`. A collective."""
        out.copy_(self._summed({other: parts[other] for other in self._sockets}, parts[self._rank]).view_as(out))

    def gather(self, out: torch.Tensor, tensor: torch.Tensor) -> None:
        """Lays the contiguous tensors of all ranks end to end, into `out`. A collective."""
        parts = out.view(-1).tensor_split(len(self._sockets) + 1)
        self.exchange(parts, [tensor.view(-1)] * (len(self._sockets) + 1))

    def exchange(self, out: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> None:
        """Gives every rank its one of `parts`, and fills `out` with what the others have for us. A collective.

        Args:
            out: contiguous, of every rank; as large as what that rank has.
            parts: for every rank.

        Raises:
            PeerLostError: another rank has gone or says nothing.
        """
        self._swap({other: parts[other] for other in self._sockets}, {other: out[other] for other in self._sockets})
        out[self._rank].copy_(parts[self._rank])

    def give(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Gives every rank its one of `parts` [n]; returns what each has for us, however much. A collective."""
        out, lengths = list(parts), {other: torch.empty(1, dtype=torch.int64) for other in self._sockets}
        messages = {other: _with_length(parts[other]) for other in self._sockets}

        def rest(other: int) -> torch.Tensor:
            out[other] = parts[other].new_empty(int(lengths[other]))
            return out[other]

        self._swap(messages, lengths, rest)
        return out

    def close(self) -> None:
        """Lets the others notice, if they should still wait for us."""
        for one in self._sockets.values():
            one.close()

    def _summed(self, parts: dict[int, torch.Tensor], ours: torch.Tensor) -> torch.Tensor:
        """Sends each rank its part; sums ours and what they have for us, in the order of the ranks."""
        like = torch.empty_like(ours, memory_format=torch.contiguous_format)
        theirs = {other: torch.empty_like(like) for other in self._sockets}
        self._swap(parts, theirs)
        return sum_in_order([theirs.get(rank, ours) for rank in range(len(theirs) + 1)], like)

    @record_function("many_hosts:swap")  # what a profile shows of the time that we wait for the slowest
    def _swap(
        self,
        parts: dict[int, torch.Tensor],
        theirs: dict[int, torch.Tensor],
        rest: Callable[[int], torch.Tensor] | None = None,
    ) -> None:
        """Sends and receives at once, so that no two ranks wait for each other with full buffers.

        Args:
            parts: for the others.
            theirs: filled with what they send.
            rest: makes the tensor that is filled with what a rank sends behind that, once that is there.
        """
        sending = {other: _bytes(part) for other, part in parts.items() if part.numel()}
        receiving = _Receiving(theirs, rest)
        waits = select.poll()
        for other, one in self._sockets.items():
            self._move(other, sending, receiving)  # mostly all that is sent: there is room in the buffers
            if events := _events(other, sending, receiving):
                waits.register(one, events)
        while sending or receiving.places:
            ready = waits.poll(min(self._timeout_s * 1e3, _LONGEST_POLL_MS))
            if not ready:
                silent = min({*sending, *receiving.places})
                raise PeerLostError(f"rank {silent} has said nothing for {self._timeout_s:g} s")
            for descriptor, _ in ready:
                other = self._places[descriptor]
                before = _events(other, sending, receiving)
                self._move(other, sending, receiving)
                events = _events(other, sending, receiving)
                if not events:
                    waits.unregister(descriptor)
                elif events != before:
                    waits.modify(descriptor, events)

    def _move(self, other: int, sending: dict[int, memoryview], receiving: _Receiving) -> None:
        """Sends and receives what is possible without waiting."""
        try:
            self._send(other, sending)
            self._receive(other, receiving)
        except OSError as error:
            raise PeerLostError(f"rank {other} has gone ({error})") from error

    def _send(self, other: int, sending: dict[int, memoryview]) -> None:
        while other in sending:
            try:
                sent = self._sockets[other].send(sending[other])
            except BlockingIOError:
                return
            _advance(sending, other, sent)

    def _receive(self, other: int, receiving: _Receiving) -> None:
        while other in receiving.places:
            try:
                received = self._sockets[other].recv_into(receiving.places[other])
            except BlockingIOError:
                return
            if not received:
                raise ConnectionError("its end of the connection is closed")
            receiving.advance(other, received)


class _Receiving:
    """Says where the next bytes of each rank go.

    Args:
        theirs: filled first.
        rest: makes what is filled then.

    Attributes:
        places: of the ranks that have not sent all.
    """

    def __init__(self, theirs: dict[int, torch.Tensor], rest: Callable[[int], torch.Tensor] | None) -> None:
        self.places = {other: _bytes(part) for other, part in theirs.items() if part.numel()}
        self._rest = {} if rest is None else dict.fromkeys(theirs, rest)

    def advance(self, other: int, num_bytes: int) -> None:
        """Goes on behind so many bytes of a rank."""
        _advance(self.places, other, num_bytes)
        if other not in self.places and other in self._rest:
            rest = self._rest.pop(other)(other)
            if rest.numel():
                self.places[other] = _bytes(rest)


def _advance(rest: dict[int, memoryview], other: int, num_bytes: int) -> None:
    rest[other] = rest[other][num_bytes:]
    if not len(rest[other]):
        del rest[other]


def _events(other: int, sending: dict[int, memoryview], receiving: _Receiving) -> int:
    return (select.POLLOUT if other in sending else 0) | (select.POLLIN if other in receiving.places else 0)


def _with_length(part: torch.Tensor) -> torch.Tensor:
    """Puts the length of a part [n] before it, as bytes."""
    return torch.cat([torch.tensor([len(part)]).view(torch.uint8), part.contiguous().view(torch.uint8)])


def _bytes(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def connect(rank: int, timeout_s: float, gather: Callable[[Any], list[Any]], master: str) -> ManyHosts | None:
    """Connects the ranks of several hosts; None where one of them cannot be reached. A collective.

    Args:
        rank: ours.
        timeout_s: how long a rank may keep the others waiting.
        gather: gives every rank everybody's value, in their order.
        master: address of the main rank.
    """
    secret = secrets.token_bytes(TOKEN_BYTES)
    try:
        address = _our_address(master)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.create_server((address, 0), family=family)
    except OSError:
        listening = None
    everybody = gather((listening and listening.getsockname(), secret))
    found: dict[int, socket.socket] = {}
    if listening is not None:
        with listening, contextlib.suppress(OSError):
            # An address of IPv4 has two parts, one of IPv6 four: they cannot reach each other.
            if len({name and len(name) for name, _ in everybody}) == 1:
                found = sockets_to_others(rank, everybody, listening, min(timeout_s * _PART, _CONNECT_S))
    # All or nobody: some could be behind a firewall that others are not.
    if all(gather(len(found) == len(everybody) - 1)):
        return ManyHosts(rank, found, timeout_s)
    for one in found.values():
        one.close()
    return None


def _our_address(master: str) -> str:
    """Gives the address of this host on the network that joins the ranks.

    That of the interface that `GLOO_SOCKET_IFNAME` names, or of the one that leads to the main rank.

    Raises:
        OSError: there is none.
    """
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if named:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            found = fcntl.ioctl(one, _SIOCGIFADDR, struct.pack("256s", named.encode()[:15]))
        return socket.inet_ntoa(found[20:24])
    family, _, _, _, name = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.connect(name)  # sends nothing
        return one.getsockname()[0]
