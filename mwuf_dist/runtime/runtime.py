"""Rank, device, seeds, determinism: the only module that reads the launch environment.

`start` gives every process a `Runtime`, with a process group even for a single process without a launcher, so that
there is one code path. A launcher (plain command, `torchrun`, Ray) only sets the environment that is read here.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import gc
import itertools
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mwuf_dist.config import Config, RuntimeConfig, UserError
from mwuf_dist.runtime.allocator import keep_freed_memory
from mwuf_dist.runtime.collectives import directly, gather_on_main, sum_over_ranks_
from mwuf_dist.runtime.heartbeat import COME_S, Peers
from mwuf_dist.runtime.loops import agreed, loops_of_all, share_out
from mwuf_dist.runtime.one_host import PeerLostError
from mwuf_dist.runtime.shutdown import RankLostError
from mwuf_dist.runtime.threads import default_threads
from mwuf_dist.runtime.uncaught import same_excepthook, tell_user_errors
from mwuf_dist.runtime.waits import NoAnswerError, within

# Seconds beyond `runtime.timeout_s` for calls that keep to that themselves, unless the store hangs behind them.
MARGIN_S = 5.0


@dataclass(frozen=True)
class Runtime:
    """This process among its peers, and the few collectives that the package needs outside TorchRec.

    `lane_coordinator` names the Ray actor that leases lanes to the ranks; empty where there is none. `threads` is how
    many this rank may use. `is_compiled` says whether its CPU computes in compiled loops; what has none, in torch.
    """

    rank: int
    world_size: int
    device: torch.device
    show_progress: bool
    ranks_per_host: int = 1
    peers: Peers | None = None  # None for a rank that is alone
    lane_coordinator: str = ""
    group: dist.ProcessGroup | None = None  # of `broadcast`, `gather` and `on_main`; None: that of all collectives
    group_of_tables: dist.ProcessGroup | None = None  # of sharded tables; None: that of all collectives
    threads: int = 1
    is_compiled: bool = False
    timeout_s: float = 600.0  # how long another process may give no sign

    def beside(self) -> Runtime:
        """Gives the same ranks a way of their own to talk, for a thread beside training. A collective."""
        if self.peers is None:
            return replace(self, device=torch.device("cpu"), group=dist.new_group(backend="gloo"))
        timeout = datetime.timedelta(seconds=self.timeout_s)
        group = self.peers.ask(lambda _: dist.new_group(backend="gloo", timeout=timeout), self.timeout_s + MARGIN_S)
        return replace(self, device=torch.device("cpu"), group=group, peers=self.peers.beside())

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums over the ranks in place; returns the tensor."""
        return sum_over_ranks_(tensor) if self.world_size > 1 else tensor

    def max(self, value: int) -> int:
        """Returns the largest of the ranks' values."""
        return self.maxima([value])[0]

    def maxima(self, values: Sequence[int]) -> list[int]:
        """Returns the largest of the ranks' values, position by position, in one exchange."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def pad(self, ids: torch.Tensor, stand_in: int = 0) -> torch.Tensor:
        """Gives `ids` [n, ...] with rows of stand-ins behind, as long as the longest of the ranks'.

        A lookup takes equally many on each.
        """
        others = (0, 0) * (ids.dim() - 1)  # torch names the last dimension first
        return torch.nn.functional.pad(ids, (*others, 0, self.max(len(ids)) - len(ids)), value=stand_in)

    def distinct(
        self, ids: torch.Tensor, num_ids: int | None = None, pads: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives (distinct values [u], position of each of `ids` [n] among them [n]).

        `num_ids` is more than any of them.

        With `pads`, for tables whose lookups are collectives, the values are padded with zeros to n on several ranks,
        which is the same everywhere: unlike `pad`, this needs no exchange, so it is for the steps of training. A row
        looked up for padding gets a gradient of zero.
        """
        from mwuf_kernels import distinct_ids  # late: `prepare` has no use for it

        values, inverse = distinct_ids(ids, num_ids)
        if pads and self.world_size > 1:
            values = torch.nn.functional.pad(values, (0, len(ids) - len(values)))
        return values, inverse

    def sum_gradients(
        self, parameters: Sequence[torch.Tensor], summed: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        """Sums gradients over the ranks in one exchange; each becomes a view of one flat tensor.

        The loss is already divided by the weight of the global batch, so the sum is the gradient of the global mean.

        Args:
            parameters: whose gradients are alike on all ranks afterwards.
            summed: gives the sum of a tensor [n] float32 over the ranks, and does something else beside it, so that it
                is called for no gradients, too; None: `sum_over_ranks_`, where there is something to sum.
        """
        ready = [parameter for parameter in parameters if parameter.grad is not None]
        if summed is None:
            if self.world_size == 1 or not ready:
                return
            summed = sum_over_ranks_
        gradients = [parameter.grad.reshape(-1) for parameter in ready if parameter.grad is not None]
        flat = summed(torch.cat(gradients) if gradients else torch.empty(0))
        for parameter, gradient in zip(ready, flat.split([p.numel() for p in ready]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def gather_rows(self, array: np.ndarray) -> np.ndarray | None:
        """Concatenates the ranks' rows, in rank order, on the main rank; None on the others."""
        if self.world_size == 1:
            return array
        parts = gather_on_main(array)
        return np.concatenate(parts) if self.is_main else None

    def broadcast(self, value: object) -> object:
        """Returns the main rank's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.group)
        return box[0]

    def gather(self, value: object) -> list[Any]:
        """Returns every rank's value, on every rank."""
        values: list[object] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def on_main(self, action: Callable[[], object]) -> None:
        """Does something on the main rank while the others wait, longer than a collective may take if need be.

        Raises:
            UserError: `action` raised it; every rank does, so that none waits for one that has gone.
            RankLostError: the main rank has given no sign of life for `runtime.timeout_s`.
        """
        problem = None
        if not self.is_main:
            assert self.peers is not None
            self.peers.wait_for_main()
        else:
            with self.peers.waiting_for_us() if self.peers is not None else contextlib.nullcontext():
                try:
                    action()
                except UserError as error:
                    problem = str(error)
        problem = self.broadcast(problem)
        if problem is not None:
            raise UserError(problem)

    def seed(self, seed: int) -> None:
        """Seeds the generator of this rank's device; `torch.manual_seed` visits every kind of device, for 0.17 ms."""
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world_size > 1:
            dist.barrier()


def generator_seed(*parts: int) -> int:
    """Mixes numbers into one 63-bit seed, so that (seed, table, block) and the like never collide by addition."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)


@functools.cache
def _leave_alone_what_stands() -> None:
    """Lets Python's collector never again look through what has been imported: torch and TorchRec, .3 s each time.

    Once: what a later run of this process leaves in cycles of references has to be found.
    """
    gc.freeze()


@contextlib.contextmanager
def start(config: Config) -> Iterator[Runtime]:
    """Joins the process group that the environment describes, or makes one of a single process.

    Args:
        config: `runtime` and `seed` are read.

    Raises:
        UserError: a GPU was asked for where there is none, or the environment of the launcher is not complete.
    """
    _leave_alone_what_stands()
    keep_freed_memory()
    settings = config.runtime
    rank, world_size, local_rank, ranks_per_host = _ranks()
    device = _device(settings, local_rank)
    threads = settings.threads or default_threads(ranks_per_host)
    is_compiled = share_out(threads, device)
    torch.manual_seed(generator_seed(config.seed, 0))
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What `use_deterministic_algorithms` sets too, which imports torch's compiler for it: four seconds of a restart.
    torch.set_deterministic_debug_mode("error" if settings.deterministic else "default")
    # It costs a fill per allocation, and nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=settings.timeout_s)
    coordinator = os.environ.get("MWUF_LANE_COORDINATOR", "")
    show = rank == 0 and (settings.progress == "on" or (settings.progress == "auto" and os.isatty(2)))
    store, peers = _store(rank, world_size, settings.timeout_s)
    with _naming_the_lost_rank(rank, peers):
        if peers is None:
            with same_excepthook():
                dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
            tell_user_errors()
        else:
            peers.meet()
            join = functools.partial(
                dist.init_process_group, backend, store=store, rank=rank, world_size=world_size, timeout=timeout
            )
            peers.ask(lambda _: join(), settings.timeout_s + MARGIN_S)
        try:
            found = Runtime(rank, world_size, device, show, ranks_per_host, peers, coordinator, threads=threads)
            is_compiled = agreed(found, is_compiled)
            torch.set_num_threads(1 if is_compiled else threads)
            found = replace(found, is_compiled=is_compiled, timeout_s=settings.timeout_s)
            with loops_of_all(device, is_compiled), _directly(found) as group:
                yield replace(found, group_of_tables=group)
        finally:
            dist.destroy_process_group()


def _directly(runtime: Runtime) -> contextlib.AbstractContextManager[dist.ProcessGroup | None]:
    """Lets ranks talk without gloo, unless they compute on GPUs or there is but one."""
    if runtime.world_size == 1 or runtime.device.type != "cpu":
        return contextlib.nullcontext()
    return directly(runtime.rank, runtime.world_size, runtime.timeout_s, os.environ["MASTER_ADDR"])


@contextlib.contextmanager
def _naming_the_lost_rank(rank: int, peers: Peers | None) -> Iterator[None]:
    """Says which rank has gone, instead of which socket, where a collective fails; tells the others why we go."""
    try:
        yield
    except BaseException as error:
        if peers is None:
            raise
        if not _is_of_a_collective(error):
            peers.note_failure(f"{type(error).__name__}: {error}")
            raise
        raise RankLostError(
            f"rank {rank} stops, because {peers.roll_call()}; the same command goes on from the last checkpoint"
        ) from error


def _is_of_a_collective(error: BaseException) -> bool:
    # Gloo's errors are plain RuntimeErrors, which begin with the file of its source.
    of_gloo = isinstance(error, RuntimeError) and "/gloo/" in str(error)
    return of_gloo or isinstance(error, (dist.DistError, PeerLostError))


def _store(rank: int, world_size: int, timeout_s: float) -> tuple[dist.Store, Peers | None]:
    """Says where the launcher's ranks find each other, with a corner of its own for every process group.

    A comparison makes one group after the other. Without corners, a rank that is ahead reads the address that a peer
    had in the group before, and waits for an answer until the timeout.
    """
    if world_size == 1:
        # No launcher: a store in this process, so that no port is opened.
        return dist.HashStore(), None
    names = ("MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"RANK and WORLD_SIZE are set but {', '.join(missing)} is not: launch with torchrun")
    is_launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holder = "torchrun" if is_launchers else "rank 0"
    address, port, seconds = os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0), timeout_s + COME_S
    try:
        found, corners = within(
            seconds + MARGIN_S, lambda: _meeting_point(address, port, rank == 0 and not is_launchers, seconds)
        )
    except (NoAnswerError, dist.DistError) as error:
        raise RankLostError(
            f"rank {rank} stops, because {holder} does not answer at {address}:{port} within {seconds:g} s "
            f"(runtime.timeout_s and {COME_S:g} s): it has not come, is stopped or hangs ({str(error).splitlines()[0]})"
        ) from None
    store = dist.PrefixStore(f"group-{next(corners)}", found)
    return store, Peers(dist.PrefixStore("peers", store), rank, world_size, timeout_s, holder)


@functools.cache
def _meeting_point(address: str, port: int, is_ours: bool, timeout_s: float) -> tuple[dist.Store, Iterator[int]]:
    timeout = datetime.timedelta(seconds=timeout_s)
    listening = _listening(address, port) if is_ours else None
    store = dist.TCPStore(address, port, None, is_ours, timeout, wait_for_workers=False, master_listen_fd=listening)
    return store, itertools.count()


def _listening(address: str, port: int) -> int | None:
    """Gives a socket that listens at an address alone.

    None where it is not one of this host: torch listens on all then.
    """
    try:
        family, _, _, _, name = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(name[:2], family=family) as server:
            return server.detach()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise UserError(
            f"MASTER_ADDR={address}, MASTER_PORT={port}: cannot be listened at ({error.strerror})"
        ) from None


def _ranks() -> tuple[int, int, int, int]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    present = [name for name in names if name in os.environ]
    if not present:
        return 0, 1, 0, 1
    if len(present) < len(names):
        missing = ", ".join(sorted(set(names) - set(present)))
        raise UserError(f"{present[0]} is set but {missing} is not: launch with torchrun, or unset them all")
    rank, world_size, local_rank = (_number(name, 0) for name in names)
    return rank, world_size, local_rank, max(1, _number("LOCAL_WORLD_SIZE", world_size))


def _number(name: str, default: int) -> int:
    """Returns a number from the environment."""
    text = os.environ.get(name, "").split(",")[0].strip()  # OMP_NUM_THREADS may name one for each level
    if not text:
        return default
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"{name} = {os.environ[name][:50]!r}: is no number; unset it, or launch with torchrun")
    return int(text)


def _device(settings: RuntimeConfig, local_rank: int) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        raise UserError(
            "runtime.device = 'cuda', but torch sees no GPU: `mwuf doctor` says why, 'cpu' runs without one"
        )
    if settings.device == "cpu" or not has_gpu:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU of its own: start at most {torch.cuda.device_count()} ranks"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
