"""Ranks as processes of their own that can be killed, forked from one that has imported everything: a start is cheap.

They run `mwuf run` as `torchrun` would start it: the store in which they meet lies with the launcher, here the test.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mwuf_dist.config import build, merge, to_toml
from tests.tiny import TINY
from tests.waiting import LONGEST_S

_FORKS = multiprocessing.get_context("forkserver")
# What a rank imports, be it as late as for its plots: of two ranks that train for a second, that was half of the time.
_LATE = ["matplotlib.backends.backend_agg", "matplotlib.figure", "pandas", "pyarrow.dataset", "torch.utils.tensorboard"]
_FORKS.set_forkserver_preload(["mwuf_dist.cli", "mwuf_dist.launch.local", "mwuf_dist.evaluation.report", *_LATE])
TIMEOUT_S = LONGEST_S
HANGS = "it hangs"  # what a rank says that does

PRETRAIN_STEP = "mwuf_dist.training.stages.pretrain:Pretrain.step"
META_TRAIN_STEP = "mwuf_dist.training.stages.meta_train:MetaTrain.step"
WARM_UP_STEP = "mwuf_dist.training.stages.warm_up:WarmUp.step"
SCORE = "mwuf_dist.training.stages.warm_up:WarmUp.score"
RESULTS = "mwuf_dist.training.run:write_json"
WRITE_SPLIT = "mwuf_dist.data.shards:write_file"
READ_BACK = "mwuf_dist.training.checkpoint.save:record"  # in a save: the tensors are written, meta.json is not
POINT = "mwuf_dist.training.checkpoint.save:write_atomically"  # in a save: all but LATEST
SAVE = "mwuf_dist.training.checkpoint.save:dcp.save"

# A save is due all the time, so that a kill loses little. Hidden layers and steps are small: see test_ranks.py.
VALUES: dict[str, Any] = merge(
    TINY,
    {
        "backbone": {"hidden": [8], "dropout": 0.2},
        "pretrain": {"epochs": 2, "batch_size": 1024, "learning_rate": 5e-3},
        "meta_train": {"batch_size": 1024},
        "warm_up": {"batch_size": 512},
        "checkpoint": {"every_s": 1e-9},
        "runtime": {"timeout_s": 60},
    },
)


@dataclass(frozen=True)
class Fault:
    """What happens to a rank (None: to every one) when a function is called for the `call`-th time, from 0 on."""

    at: str
    call: int = 0
    rank: int | None = None
    what: str = "kill"


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fill_the_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _hang() -> None:
    print(HANGS, flush=True)
    time.sleep(TIMEOUT_S)


def _fail() -> None:
    raise ValueError("the moon is in the wrong house")


FAULTS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": _hang,
    "wait": lambda: time.sleep(4),
    "fill the disk": _fill_the_disk,
    "fail": _fail,
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def _arm(fault: Fault) -> None:
    module, _, path = fault.at.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    calls = 0

    def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.call + 1:
            FAULTS[fault.what]()
        return function(*args, **kwargs)

    setattr(owner, name, armed)


def _process(function: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str], log: str) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environment)
    function(*arguments)


def _rank(arguments: list[str], faults: Sequence[Fault]) -> None:
    from mwuf_dist import cli
    from mwuf_dist.training.checkpoint import save as checkpoints

    checkpoints._STEPS_BETWEEN_LOOKS, checkpoints._SECONDS_BETWEEN_LOOKS = 3, 1e9  # however long a step takes
    for fault in faults:
        if fault.rank is None or str(fault.rank) == os.environ.get("RANK", "0"):
            _arm(fault)
    cli.main(arguments)


@dataclass
class Launch:
    """Ranks that run."""

    processes: list[Any]
    logs: list[Path]
    store: dist.Store | None

    def wait(self, peers_too: bool = True) -> list[int]:
        """Exit codes; with `peers_too` the others are killed where one was, as a launcher does."""
        deadline = time.monotonic() + TIMEOUT_S
        while any(process.is_alive() for process in self.processes):
            assert time.monotonic() < deadline, self.said()
            if peers_too and any(process.exitcode == -signal.SIGKILL for process in self.processes):
                self.kill()
            time.sleep(0.02)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def said(self, rank: int | None = None) -> str:
        return "\n".join(log.read_text() for log in (self.logs if rank is None else [self.logs[rank]]) if log.exists())


@contextlib.contextmanager
def launched(
    folder: Path,
    ranks: int = 1,
    faults: Sequence[Fault] = (),
    values: dict[str, Any] = VALUES,
    cache: Path | None = None,
) -> Iterator[Launch]:
    """Starts `mwuf run` into `folder` on some ranks."""
    config = folder.with_suffix(".toml")
    config.write_text(to_toml(build(values)))
    arguments = ["run", str(config), "--output", str(folder)]
    with forked(_rank, (arguments, tuple(faults)), folder, ranks, cache) as launch:
        yield launch


@contextlib.contextmanager
def forked(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    log: Path,
    ranks: int,
    cache: Path | None = None,
    port: int | None = None,
) -> Iterator[Launch]:
    """Calls a function in each of some ranks, as `torchrun` would start them; they write to `log` and their number.

    The store in which they meet lies here, or with rank 0 where a port for it is given.
    """
    ours = Path(os.environ["MWUF_CACHE_DIR"])
    if cache is not None and not (cache / "native").exists():  # what is compiled already
        cache.mkdir(exist_ok=True)
        (ours / "native").mkdir(parents=True, exist_ok=True)
        (cache / "native").symlink_to((ours / "native").resolve())
    shared = {"MWUF_CACHE_DIR": str(cache or ours), "OMP_NUM_THREADS": "1"}
    store = None
    if ranks > 1:
        if port is None:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port if store else port)}
        shared |= {"TORCHELASTIC_USE_AGENT_STORE": str(store is not None)}
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    launch = Launch([], [log.with_suffix(f".{rank}.log") for rank in range(ranks)], store)
    for rank, path in enumerate(launch.logs):
        path.unlink(missing_ok=True)
        environment = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
        process = _FORKS.Process(target=_process, args=(function, arguments, environment, str(path)), daemon=True)
        process.start()
        launch.processes.append(process)
    try:
        yield launch
    finally:
        launch.kill()


def ends(folder: Path, ranks: int = 1, faults: Sequence[Fault] = (), **options: Any) -> list[int]:
    """Runs into `folder` until the end, or a fault; the exit codes."""
    with launched(folder, ranks, faults, **options) as launch:
        return launch.wait()


def finished(folder: Path, ranks: int = 1, **options: Any) -> str:
    """Runs to the end; what the ranks said."""
    with launched(folder, ranks, **options) as launch:
        assert launch.wait() == [0] * ranks, launch.said()
        return launch.said()
