"""What does each fast path gain, and how many lines does it cost?

    python -m benchmarks.fast_paths configs/movielens-1m.toml [--threads 2] [--section.key VALUE ...]

Steps of each stage take turns in one process: with every fast path, with a plain one in place of each in turn, and with
all plain ones. "ours" is the rate with every fast path, the alternative that without the row's; all start a stage with
the same weights, and their losses of the first steps are compared before anything is timed. One thread is timed by
processor time, several by the clock. What only another backbone uses is timed with that, in rounds of its own.

A path's lines are those of code, without comments and blank ones, of the files and definitions that nothing but it
needs. The row "shared" counts what all loops are built on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import Ours, Step, full_batches
from benchmarks.record import ROOT, Figure, Record, Row, command_line, interleaved, processor_clock, table
from benchmarks.train_step import STAGES, benchmark_config, loss_tolerance, start_command
from mwuf_dist.backbones.afn import Afn
from mwuf_dist.backbones.layers import PairProducts
from mwuf_dist.config import BackboneConfig, Config
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.lookups import KernelLookups, LoopLookups
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.runtime import Runtime, start
from mwuf_dist.training import implementations
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.run import Run, _prepare
from tools.count_lines import lines_of, lines_of_code

_WARM_STEPS = 5
_KERNELS, _CPU = "kernels/mwuf_kernels", "kernels/mwuf_kernels/cpu"
Place = tuple[str, int]  # a file and a line of it
# Of a class or module: its attribute, and what stands there instead.
Switch = tuple[Any, str, Any]


@dataclass(frozen=True)
class FastPath:
    """One fast path.

    Attributes:
        name: what a run would name it by.
        code: files, or FILE:DEFINITION, that it alone needs, without what another path names of them.
        plain: what takes its place.
        backbone: that it is timed with, if not with the config's.
    """

    name: str
    code: tuple[str, ...]
    plain: tuple[Switch, ...]
    backbone: str | None = None


def _never(module: str, question: str = "has_library") -> tuple[Switch]:
    # By name: the package's attribute of a module's name may be a function.
    return ((importlib.import_module(module), question, lambda *_: False),)


PATHS = (
    FastPath(
        "LoopLookups",
        (
            *(f"mwuf_dist/embeddings/lookups.py:{name}" for name in ("LoopLookups", "_EntityRows")),
            f"{_KERNELS}/table_rows.py",
            f"{_CPU}/table_rows.cpp",
        ),
        ((Tables, "_chosen_lookups", Tables._kernel_lookups),),
    ),
    FastPath(
        "FeatureStore.sides",
        (
            "mwuf_dist/embeddings/lookups.py:LoopLookups.sides",
            *(f"mwuf_dist/embeddings/features.py:{name}" for name in ("Profiles", "FeatureStore.profiles")),
        ),
        ((LoopLookups, "sides", KernelLookups.sides),),
    ),
    FastPath(
        "TrainedHead",
        (
            "mwuf_dist/backbones/compiled_head.py",
            "mwuf_dist/backbones/linear.py:LinearFirstLayer.trained_head",
            "mwuf_dist/backbones/pnn.py:Pnn.trained_head",
            "mwuf_dist/training/implementations.py:CompiledTrained",
            f"{_KERNELS}/trained_rows.py",
            *(f"{_CPU}/{name}" for name in ("trained_rows.cpp", "trained_pass.h")),
        ),
        ((implementations, "CompiledTrained", lambda model, _: implementations.AutogradTrained(model, None)),),
    ),
    FastPath(
        "CompiledFrozen",
        (
            "mwuf_dist/training/frozen_model.py:CompiledFrozen",
            *(f"mwuf_dist/backbones/frozen_head.py:{name}.compiled" for name in ("FoldedHead", "FoldedPairs")),
            f"{_KERNELS}/frozen_rows.py",
            *(f"{_CPU}/{name}" for name in ("frozen_rows.cpp", "frozen_pass.h")),
        ),
        ((implementations, "CompiledFrozen", Frozen),),
    ),
    FastPath(
        "meta_networks",
        (f"{_KERNELS}/networks.py", f"{_KERNELS}/meta_networks.py:_gradients_compiled", f"{_CPU}/networks.cpp"),
        _never("mwuf_kernels.meta_networks"),
    ),
    FastPath(
        "distinct_ids",
        (f"{_KERNELS}/table_rows.py:distinct_ids", f"{_CPU}/table_rows.cpp:mwuf_distinct"),
        _never("mwuf_kernels.table_rows"),
    ),
    FastPath(
        "dropout_noise_",
        (
            "mwuf_dist/runtime/draws.py:_Step.state",
            f"{_KERNELS}/dropout_noise.py",
            f"{_CPU}/dropout_noise.cpp",
        ),
        _never("mwuf_dist.runtime.draws"),
    ),
    FastPath(
        "history_attention",
        (
            *(
                f"{_KERNELS}/history_attention.py:{name}"
                for name in ("_Attention", "_forward", "_setup_context", "_backward", "_call", "_eager")
            ),
            f"{_CPU}/history_attention.cpp",
        ),
        _never("mwuf_kernels.history_attention", "has_loop"),
        backbone="encoder",
    ),
    FastPath(
        "history_gru",
        (f"{_KERNELS}/history_gru.py", f"{_CPU}/history_gru.cpp"),
        _never("mwuf_dist.backbones.gru4rec", "has_loop"),
        backbone="gru4rec",
    ),
    FastPath(
        "log_neurons",
        (
            *(f"mwuf_dist/backbones/afn.py:{name}" for name in ("FoldedPowers", "Afn.fold")),
            f"{_KERNELS}/log_neurons.py",
            *(f"{_CPU}/{name}" for name in ("log_neurons.cpp", "frozen_powers.h", "powers.h")),
        ),
        (*_never("mwuf_dist.backbones.afn", "has_loop"), (Afn, "fold", lambda _: None)),
        backbone="afn",
    ),
    FastPath(
        "mlp_logit",
        tuple(f"mwuf_dist/backbones/compiled_head.py:{name}" for name in ("mlp_logit", "_FrozenFunction")),
        _never("mwuf_dist.backbones.compiled_head", "has_loop"),
        backbone="dcn",
    ),
    FastPath(
        "pair_products",
        (f"{_KERNELS}/pair_products.py", f"{_CPU}/pair_products.cpp"),
        ((PairProducts, "forward", PairProducts.by_torch),),
        backbone="dlrm",
    ),
    FastPath(
        "activation_unit",
        (f"{_KERNELS}/activation_unit.py", f"{_CPU}/activation_unit.cpp"),
        _never("mwuf_dist.backbones.din", "has_loop"),
        backbone="din",
    ),
)
SHARED = (
    *(f"{_KERNELS}/{name}.py" for name in ("native", "batch_norm")),
    *(
        f"{_CPU}/{name}"
        for name in ("rows.h", "pairs.h", "batch_norm.h", "partial_sums.h", "segments.h", "pool.h", "pool.cpp")
    ),
)


def lines(code: Sequence[str]) -> dict[str, int]:
    """Counts lines of code by language, of files and definitions, without what other paths name of them."""
    inner = {
        other
        for path in PATHS
        for other in path.code
        if other not in code and any(other.startswith((f"{one}:", f"{one}.")) for one in code)
    }
    counts = {"python": 0, "cpp": 0}
    for file, _ in set[Place]().union(*map(places, code)).difference(*map(places, inner)):
        counts["python" if file.endswith(".py") else "cpp"] += 1
    return counts


@functools.cache
def places(one: str) -> frozenset[Place]:
    """Lists the lines of code of a file or FILE:DEFINITION."""
    file, _, name = one.partition(":")
    of_it = lines_of(ROOT / file, name) if name else lines_of_code(ROOT / file)
    return frozenset((file, line) for line in of_it)


@contextlib.contextmanager
def switched(switches: Sequence[Switch]) -> Iterator[None]:
    """Puts plain paths in place meanwhile; in a step of .2 ms it takes 2 microseconds."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    for owner, name, plain in switches:
        setattr(owner, name, plain)
    try:
        yield
    finally:
        for owner, name, fast in before:
            setattr(owner, name, fast)


class _Program:
    """Our stages with some plain paths, on a model of its own."""

    def __init__(
        self, config: Config, folder: Path, runtime: Runtime, prepared: Prepared, switches: Sequence[Switch]
    ) -> None:
        self._switches = switches
        with switched(switches):
            self.job = Run(config, folder, runtime, prepared)
            histories = self.job.model.histories(prepared, 0)
            size = config.pretrain.batch_size
            batches = full_batches(Loader(prepared, ["pretrain"], size, config.seed, runtime, histories=histories))
            self._ours = Ours(self.job, lambda: next(batches))

    @torch.no_grad()
    def take(self, other: _Program) -> None:
        """Takes the weights of another program, from which rounding has led its own away."""
        for mine, theirs in zip(self._weights(), other._weights(), strict=True):
            mine.copy_(theirs)

    def _weights(self) -> list[torch.Tensor]:
        model = self.job.model
        tables = [flat.weights for one in (*model.pretrained_tables, model.new_ids) for flat in one.flat_parameters()]
        return [*tables, *model.backbone.state_dict().values(), *self.job.method.parameters()]

    def stage(self, name: str) -> Step:
        """A step of a stage."""
        with switched(self._switches):
            step = getattr(self._ours, name)()

        def with_plain_paths() -> Any:
            with switched(self._switches):
                return step()

        return with_plain_paths


def measure(config: Config, paths: Sequence[FastPath], num_steps: int, rounds: int) -> list[Row]:
    """A row for each path and stage, and where there are several paths one for all of them together."""
    plain = {path.name: path.plain for path in paths}
    if len(plain) > 1:
        plain["all"] = tuple(switch for path in paths for switch in path.plain)
    rows = []
    clock, unit = processor_clock(config.runtime.threads)
    shuffled = random.Random(0)
    with _programs(config, {"fast": ()} | plain) as programs:
        for stage in STAGES:
            for program in programs.values():
                program.take(programs["fast"])
            steps = {name: program.stage(stage) for name, program in programs.items()}
            _compare(steps, stage, config.backbone)
            seconds: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):  # In any order: behind a slow one, whose memory fills the caches, all are slower.
                order = shuffled.sample([*steps], len(steps))
                for name, values in interleaved({name: steps[name] for name in order}, num_steps, 1, clock).items():
                    seconds[name] += values
            size = config.pretrain.batch_size
            rates = {name: Figure.of(name, [size / value for value in values]) for name, values in seconds.items()}
            what = {"stage": stage, "backbone": config.backbone.name}
            rows += [Row(name, f"samples/{unit}", True, rates["fast"], rates[name], config=what) for name in plain]
    return rows


@contextlib.contextmanager
def _programs(config: Config, switches: Mapping[str, Sequence[Switch]]) -> Iterator[dict[str, _Program]]:
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        prepared = _prepare(config, runtime)
        programs = {
            name: _Program(config, Path(folder) / name, runtime, prepared, plain) for name, plain in switches.items()
        }
        yield programs
        for program in programs.values():
            program.job.session.recorder.close()


def _compare(steps: dict[str, Step], stage: str, backbone: BackboneConfig) -> None:
    for number in range(_WARM_STEPS):
        found = {name: step() for name, step in steps.items()}
        if stage == "evaluate":
            continue
        for name, loss in found.items():
            expected = float(found["fast"])
            tolerance = loss_tolerance(backbone, number)
            assert abs(float(loss) - expected) <= tolerance * expected, f"{name}, {stage}: {loss} and {expected}"


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows path by path with the lines of each in `more`, and the row of what the paths share."""
    timed = {row.name for row in rows}
    code = {path.name: path.code for path in PATHS}
    code["all"] = tuple(one for path in PATHS if path.name in timed and not path.backbone for one in path.code)
    found = [
        dataclasses.replace(row, more={"lines": lines(code[name])}) for name in code for row in rows if row.name == name
    ]
    shared = lines(SHARED)
    total = Figure.of("lines", [float(sum(shared.values()))])
    return [*found, Row("shared", "lines", False, total, more={"lines": shared})]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.toml")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=45, help="turns of each path; the median counts")
    parser.add_argument("--paths", nargs="+", default=[path.name for path in PATHS], help="only some of them")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options, keys = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    rows: list[Row] = []
    for backbone in dict.fromkeys(path.backbone for path in PATHS if path.name in options.paths):
        named = ["--backbone.name", backbone] if backbone else []
        arguments = [options.config, *keys, *named, "--runtime.threads", str(options.threads)]
        config = benchmark_config(arguments, options.batch_size, draws=True)
        paths = [path for path in PATHS if path.name in options.paths and path.backbone == backbone]
        # A step of a backbone with histories takes some ten times as long.
        rows += measure(config, paths, max(1, options.steps // (10 if backbone else 1)), options.rounds)
    config = benchmark_config([options.config, *keys], options.batch_size)
    record = Record(
        f"Fast paths, {config.data.name}, batch {options.batch_size}",
        command_line("fast_paths", sys.argv[1:]),
        {"data": config.data.name, "backbone": config.backbone.name, "batch_size": options.batch_size},
        in_order(rows),
        options.threads,
    )
    print(table([record]))
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    start_command("fast_paths", main)
