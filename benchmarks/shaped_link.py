"""Two hosts on one machine, joined by a link of a chosen bandwidth and delay: network namespaces and a user-space wire.

Each host is a network and process namespace of its own with one TUN device, whose file descriptor `Wire` holds: what a
host sends, `Wire` reads, keeps for as long as the link would take, and writes to the other. That needs neither netem
nor any other queueing discipline of the kernel, but root. Nothing has a name outside of its namespace, so nothing is
left behind when a host, or this process, is killed: processes of a namespace die with its first, which dies with us.

The wire loses nothing and has no limit to its queue; both ways are independent, as on a full-duplex cable. Hosts hand
over up to 64 KiB at once with the note how to cut them into packets of 1,500 bytes, as they do to a network card: so
their TCP does what it does on Ethernet, and Python keeps up with some Gbit/s.

The link can be changed while the hosts run: `choose`, on one of them.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DEVICE = "link0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
# What is read at once: a header that tells the other end how to cut and check it, and up to 64 KiB for the cable.
_MOST_BYTES = (1 << 16) + 10
_TUN = Path("/dev/net/tun")
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0001, 0x1000, 0x4000
_TUNSETOFFLOAD, _TUN_F_CSUM, _TUN_F_TSO4 = 0x400454D0, 1, 2
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
# What runs in a namespace.
_HOST = "import sys; from benchmarks import shaped_link as link; "
_HOST += "sys.exit(link.be_host(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))"
_TOOLS = ("unshare", "ip")
_CONTROL = "MWUF_LINK_CONTROL"  # names the pipe through which a host chooses


@dataclass(frozen=True)
class Link:
    """What joins the hosts.

    Attributes:
        bits_per_s: each way.
        delay_s: from one host to the other, beside the time that the bits take.
    """

    bits_per_s: float
    delay_s: float


class Way:
    """Packets on their way from one host to the other.

    Attributes:
        link: how long they take.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._free_s = 0.0  # when the sender's end of the cable is free again
        self._packets: collections.deque[tuple[float, bytes]] = collections.deque()

    def put(self, packet: bytes, now_s: float) -> None:
        """Takes what a host sends: its bits go out one after the other, and arrive a delay later."""
        self._free_s = max(now_s, self._free_s) + 8 * len(packet) / self.link.bits_per_s
        last_s = self._packets[-1][0] if self._packets else 0.0  # nothing overtakes, should the link have changed
        self._packets.append((max(last_s, self._free_s + self.link.delay_s), packet))

    def arrived(self, now_s: float) -> Iterator[bytes]:
        """Hands over what has arrived by now, in order."""
        while self._packets and self._packets[0][0] <= now_s:
            yield self._packets.popleft()[1]

    @property
    def next_s(self) -> float | None:
        """When the next packet arrives; None with none on the way."""
        return self._packets[0][0] if self._packets else None


def missing() -> str | None:
    """What this machine lacks for two such hosts, for a person to read; None if nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root: run this as root, or in a container that has CAP_SYS_ADMIN"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{' and '.join(absent)}: not found; Debian has them in util-linux and iproute2"
    if not _TUN.exists():
        return f"{_TUN} is missing: the kernel has no TUN devices, or the container is not given them"
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


def choose(place: int) -> None:
    """Changes the link that joins the hosts to another of those that they were started with, at once."""
    with Path(os.environ[_CONTROL]).open("wb") as control:
        control.write(bytes([place]))


def run_hosts(commands: list[list[str]], links: list[Link], environment: dict[str, str]) -> None:
    """Runs a command on each of two hosts, to their ends; the first link joins them until one calls `choose`.

    Raises:
        subprocess.CalledProcessError: a command failed; the other host is ended.
    """
    hosts, taps = [], []
    with contextlib.ExitStack() as stack:
        control = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "control"
        os.mkfifo(control)
        changes = os.open(control, os.O_RDWR)  # never at its end
        stack.callback(os.close, changes)
        environment = environment | {_CONTROL: str(control)}
        for place, command in enumerate(commands):
            ours, theirs = socket.socketpair()
            inside = [sys.executable, "-c", _HOST, str(place), str(theirs.fileno()), *command]
            hosts.append(
                subprocess.Popen(
                    ["unshare", "--net", "--pid", "--fork", "--kill-child", *inside],
                    pass_fds=[theirs.fileno()],
                    env=environment,
                    preexec_fn=_die_with_parent,
                )
            )
            stack.callback(_end, hosts[-1])
            theirs.close()
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            if not descriptors:
                raise subprocess.CalledProcessError(hosts[-1].wait(), inside)
            taps.append(stack.enter_context(os.fdopen(descriptors[0], "r+b", buffering=0)))
            stack.enter_context(ours)
        _carry([tap.fileno() for tap in taps], links, changes, hosts)


def _carry(taps: list[int], links: list[Link], changes: int, hosts: list[subprocess.Popen[bytes]]) -> None:
    """Moves packets until both hosts have ended."""
    ways = [Way(links[0]), Way(links[0])]
    _be_prompt()
    ends = [os.pidfd_open(host.pid) for host in hosts]
    try:
        while ends:
            now_s = time.monotonic()
            for place, way in enumerate(ways):
                for packet in way.arrived(now_s):
                    with contextlib.suppress(OSError):  # the host has gone
                        os.write(taps[1 - place], packet)
            due = [way.next_s for way in ways if way.next_s is not None]
            rest_s = max(0.0, min(due) - time.monotonic()) if due else None
            ready = select.select([*taps, *ends, changes], [], [], rest_s)[0]
            if changes in ready:
                link = links[os.read(changes, 1 << 10)[-1]]
                for way in ways:
                    way.link = link
            for place, tap in enumerate(taps):
                if tap in ready:
                    ways[place].put(os.read(tap, _MOST_BYTES), time.monotonic())
            for end in [end for end in ends if end in ready]:
                os.close(end)
                ends.remove(end)
                for host in hosts:
                    if host.poll():
                        raise subprocess.CalledProcessError(host.returncode, host.args)
    finally:
        for end in ends:
            os.close(end)
        _be_prompt(False)


def _be_prompt(on: bool = True) -> None:
    """Lets packets arrive when they should: no slack of timers, and before whatever computes."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1 if on else 0, 0, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR if on else os.SCHED_OTHER, os.sched_param(1 if on else 0))


def _die_with_parent() -> None:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end(host: subprocess.Popen[bytes]) -> None:
    if host.poll() is None:
        host.kill()  # `unshare --kill-child` takes everything in the namespace with it
    host.wait()


def be_host(place: int, channel: int, command: list[str]) -> int:
    """Inside of a namespace, makes its end of the link, then runs the command."""
    tap = os.open(_TUN, os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    settings = (
        ("link", "set", "lo", "up"),
        ("addr", "add", ADDRESSES[place], "peer", ADDRESSES[1 - place], "dev", DEVICE),
        ("link", "set", DEVICE, "up"),
    )
    for one in settings:
        subprocess.run(["ip", *one], check=True)
    with socket.socket(fileno=channel) as channel_:
        socket.send_fds(channel_, [b"."], [tap])
    os.close(tap)
    return subprocess.run(command, check=False).returncode
