"""How fast are the stages on one and on several ranks, by the clock, beside plain PyTorch with DistributedDataParallel?

    python -m benchmarks.ranks configs/movielens-1m.toml [--ranks 1 2] [--batch-sizes 2048 8192 32768]
        [--stages pretrain ...] [--section.key VALUE ...]

A batch size is that of the global batch, which the ranks share. Both programs run on the same ranks, and take turns
with each other and with those on other numbers of ranks: while one works, all others sleep, so that ratios of one
batch size are of the same minutes. Tables are where `embedding.sharding` puts them (`auto`: small ones are replicated);
`--embedding.sharding row_wise` has all of them sharded. The plain program is what one would write today: each rank has
all weights, DistributedDataParallel sums the gradients, and each rank takes the moments of its own rows in BatchNorm.
A turn ends when the last rank has ended. `evaluate` scores the whole test set, which its row has for a batch, each rank
a part of it, and gathers the scores on the main rank: once, whatever batch sizes there are. One thread per rank: leave
as many cores idle as there are ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import select
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import plain_torch
from benchmarks.contest import Feed, Ours, Plain, Step, full_batches, plain_model
from benchmarks.record import Figure, Record, Row, command_line, read, table
from benchmarks.train_step import benchmark_config, start_command
from mwuf_dist.cli.options import PrepareOptions, parse
from mwuf_dist.config import Config, UserError
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training.run import Run, _prepare
from mwuf_dist.training.stages.warm_up import WarmUp

STAGES = ("pretrain", "meta_train", "warm_up", "evaluate")
_SCORE_ROWS = 1 << 15  # scored at once by the plain program, as ours does
_WARM_STEPS = 3
_ALTERNATIVE = "plain DDP"


class _Logits(nn.Module):
    """The plain program's forward as one module, which is what DistributedDataParallel wraps."""

    def __init__(self, model: plain_torch.PlainModel, ids: nn.Embedding) -> None:
        super().__init__()
        self.model, self.ids = model, ids

    def forward(self, batch: plain_torch.Batch) -> torch.Tensor:
        return self.model.logits(batch, self.ids.weight)


class PlainRanks(Plain):
    """The plain program's stages on several ranks; on one it is `Plain` itself."""

    def pretrain(self) -> Step:
        """A step of `pretrain` through DistributedDataParallel."""
        if dist.get_world_size() == 1:
            return super().pretrain()
        optimizer = plain_torch.adam(self.model, self._config.pretrain.learning_rate)
        return self._step(self.model, self.model.phi_old, optimizer)

    def warm_up(self) -> Step:
        """A step of `warm_up` likewise: nothing but phi_new has a gradient."""
        if dist.get_world_size() == 1:
            return super().warm_up()
        optimizer = plain_torch.adam(self.phi_new, self._config.warm_up.learning_rate)
        return self._step(self.model, self.phi_new, optimizer)

    def meta_train(self) -> Step:
        """A step of `meta_train`: each of its two losses has gradients of its own, which are summed in one go each."""
        step, num_ranks = super().meta_train(), dist.get_world_size()
        if num_ranks == 1:
            return step
        for module in (self.phi_new, self.meta):
            _sum_after_backward(module, num_ranks)
        return step

    def evaluate(self, prepared: Prepared, runtime: Runtime) -> Step:
        """Scoring of the test set, by the ranks together."""
        items = plain_torch.warm_embeddings(self.model, self.phi_new, self.meta, self.user_mean)
        num_rows = prepared.num_rows("test")
        ends = [rank * num_rows // runtime.world_size for rank in range(runtime.world_size + 1)]
        sizes = [end - begin for begin, end in itertools.pairwise(ends)]
        columns = prepared.read_rows("test", ends[runtime.rank], ends[runtime.rank + 1], ("user", "item"))
        user, item = (torch.from_numpy(columns[name]).long() for name in ("user", "item"))

        def step() -> torch.Tensor:
            batches = zip(user.split(_SCORE_ROWS), item.split(_SCORE_ROWS), strict=True)
            found = [plain_torch.score(self.model, items, plain_torch.Batch(*one, one[0])) for one in batches]
            logits = torch.cat(found)
            if runtime.world_size == 1:
                return logits
            parts = [logits.new_empty(max(sizes)) for _ in sizes] if runtime.is_main else None
            dist.gather(F.pad(logits, (0, max(sizes) - len(logits))), parts)
            return logits if parts is None else torch.cat([one[:n] for one, n in zip(parts, sizes, strict=True)])

        return step

    def _step(self, model: plain_torch.PlainModel, ids: nn.Embedding, optimizer: torch.optim.Optimizer) -> Step:
        wrapped = DistributedDataParallel(_Logits(model, ids), broadcast_buffers=False)

        def step() -> torch.Tensor:
            batch = self._next()
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(wrapped(batch), batch.label)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step


def _sum_after_backward(module: nn.Module, num_ranks: int) -> None:
    """Makes the gradients of a module's parameters those of all ranks, in one flat exchange once all are there."""
    parameters = list(module.parameters())
    waiting: set[nn.Parameter] = set()

    def arrived(parameter: torch.Tensor) -> None:
        waiting.add(parameter)  # type: ignore[arg-type]
        if len(waiting) < len(parameters):
            return
        waiting.clear()
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= num_ranks
        for gradient, summed in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(arrived)


class Baton:
    """What a program has while it works, and gives to the next: one launch after the other, in a ring.

    Args:
        path: the pipe of this launch, `NUMBER` in a folder of all, beside `alive`, which whoever started them has open;
            None where nobody takes turns.
    """

    def __init__(self, path: Path | None) -> None:
        self._files: tuple[Any, Any] | None = None
        self._is_held, self._waits = False, select.poll()
        if path is not None:
            following = path.with_name(str(int(path.name) + 1))
            first = path.with_name("0")
            # Open to read and write: neither end has to wait for the other, and a byte that nobody reads yet stays.
            self._files = path.open("r+b", buffering=0), (following if following.exists() else first).open("r+b", 0)
            self._waits.register(self._files[0], select.POLLIN)
            self._alive = os.open(path.with_name("alive"), os.O_RDONLY | os.O_NONBLOCK)
            self._waits.register(self._alive, 0)  # that it has been closed is told anyway

    def take(self) -> None:
        """Gives it on, if it is ours, and waits for it.

        Raises:
            UserError: whoever started the programs has ended.
        """
        self.give()
        if self._files is not None:
            if any(place == self._alive for place, _ in self._waits.poll()):
                raise UserError("the benchmark that started this program has ended")
            self._files[0].read(1)
            self._is_held = True

    def give(self) -> None:
        """Gives it on, if it is ours."""
        if self._is_held and self._files is not None:
            self._files[1].write(b".")
        self._is_held = False


def measure(
    config: Config, batch_size: int, num_steps: int, rounds: int, baton: Path | None, stages: Sequence[str] = STAGES
) -> list[Row]:
    """One row per stage, on the ranks that the launcher has started."""
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        folder = str(runtime.broadcast(folder))
        job = Run(config, Path(folder), runtime, _prepare(config, runtime))
        if job.prepared.num_rows("pretrain") < batch_size:
            raise UserError(f"a batch has {batch_size} rows and {config.data.name} fewer to train on: take another")
        batches = full_batches(Loader(job.prepared, ["pretrain"], batch_size, config.seed, runtime))
        ours = Ours(job, lambda: next(batches))
        alone = Runtime(0, 1, runtime.device, False)
        own = Loader(job.prepared, ["pretrain"], batch_size // runtime.world_size, config.seed + runtime.rank, alone)
        feed = Feed(own, job.model.num_old + 1, job.model.backbone.history_length)
        torch.manual_seed(config.seed)  # the same weights on every rank
        theirs = PlainRanks(config, plain_model(config, alone, job.prepared), job.model.num_items, feed.plain)
        rows, turn = [], Baton(baton if runtime.is_main else None)
        for name in STAGES:
            num_rows = batch_size
            if name == "evaluate":
                num_rows = job.prepared.num_rows("test")
                steps = {_ALTERNATIVE: theirs.evaluate(job.prepared, runtime), "ours": _scoring(job, ours)}
            else:
                steps = {_ALTERNATIVE: getattr(theirs, name)(), "ours": getattr(ours, name)()}
            if name not in stages:
                continue
            seconds = take_turns(steps, num_steps, rounds, runtime, lambda _: turn.take())
            plain, mine = (Figure.of(key, [num_rows / value for value in values]) for key, values in seconds.items())
            about = {"ranks": runtime.world_size, "batch_size": num_rows}
            rows.append(Row(name, "samples/s", True, mine, plain, config=about))
        turn.give()
        job.session.recorder.close()
        runtime.barrier()
    return rows


def _scoring(job: Run, ours: Ours) -> Step:
    stage = WarmUp(job.config, job.model, ours.frozen, job.method)
    stage.finish_phase(job.prepared, 0)
    return lambda: stage.score(job.prepared, "test")


def take_turns(
    steps: dict[str, Callable[[], object]],
    num_steps: int,
    rounds: int,
    runtime: Runtime,
    begins: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds by the clock of a step of each program, over the ranks' slowest, in every round but the first.

    Args:
        steps: of each program, by its name.
        num_steps: of a turn.
        rounds: turns of each program that count.
        runtime: the ranks.
        begins: called before a turn, with its name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            num = num_steps if round_ else _WARM_STEPS
            begins(name)
            runtime.barrier()
            begin = time.perf_counter()
            for _ in range(num):
                step()
            found = runtime.max(int((time.perf_counter() - begin) / num * 1e9)) / 1e9
            if round_:
                seconds[name].append(found)
    return seconds


def as_shipped(arguments: list[str], batch_size: int) -> Config:
    """The config that benchmarks compare, but with BatchNorm and dropout as its file has them."""
    shipped = parse("prepare", arguments, PrepareOptions).config
    return replace(benchmark_config(arguments, batch_size), backbone=shipped.backbone)


def main() -> None:
    """Starts the ranks of each size, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.toml")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2048, 8192, 32768], help="of the global batch")
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=STAGES)
    parser.add_argument("--steps", type=int, default=10, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)  # one of the ranks: where its rows go
    parser.add_argument("--baton", type=Path, help=argparse.SUPPRESS)
    options, keys = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    config = as_shipped([options.config, *keys], options.batch_sizes[0])
    about = {"data": config.data.name, "backbone": config.backbone.name}
    question = f"Stages on several ranks by the clock, {config.data.name}, {config.backbone.name}"
    if options.rank:
        rows = measure(config, options.batch_sizes[0], options.steps, options.rounds, options.baton, options.stages)
        if os.environ.get("RANK", "0") == "0":
            Record(question, "", about, rows, 1).write(options.rank)
        return
    rows = []
    for batch_size in options.batch_sizes:
        is_last = batch_size == options.batch_sizes[-1]
        stages = [name for name in options.stages if is_last or name != "evaluate"]
        rows += _launch(batch_size, [options.config, *keys, "--stages", *stages], options) if stages else []
    record = Record(question, command_line("ranks", sys.argv[1:]), about, rows, threads=1)
    print(table([record]))
    if options.output:
        record.write(options.output)


def _launch(batch_size: int, arguments: list[str], options: argparse.Namespace) -> list[Row]:
    """Starts the programs on every number of ranks, which take turns; returns their rows."""
    times = ["--steps", str(options.steps), "--rounds", str(options.rounds), "--batch-sizes", str(batch_size)]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, launches = Path(name), []
        batons = [folder / str(number) for number in range(len(options.ranks))]
        for pipe in (folder / "alive", *batons):
            os.mkfifo(pipe)
        stack.enter_context((folder / "alive").open("r+b", buffering=0))
        first = stack.enter_context(batons[0].open("r+b", buffering=0))
        for ranks, baton in zip(options.ranks, batons, strict=True):
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
            one = [sys.executable, "-W", "ignore", *launcher, "-m", "benchmarks.ranks", *arguments, *times]
            command = [*one, "--baton", str(baton), "--rank", str(baton.with_suffix(".json"))]
            launch = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
            launches.append(launch)
            stack.callback(launch.terminate)
        first.write(b".")
        _wait(launches)
        return [row for baton in batons for row in read(baton.with_suffix(".json")).rows]


def _wait(launches: list[subprocess.Popen[bytes]]) -> None:
    """Waits for all; where one fails, the others would wait for its turn for ever."""
    waiting = list(launches)
    while waiting:
        with contextlib.suppress(subprocess.TimeoutExpired):
            waiting[0].wait(timeout=1)
        for launch in launches:
            if launch.poll():
                raise subprocess.CalledProcessError(launch.returncode, launch.args)
        waiting = [launch for launch in waiting if launch.poll() is None]


if __name__ == "__main__":
    start_command("ranks", main)
