"""How fast are the three training stages and evaluation, against a plain PyTorch program and the matrix products alone?

    python -m benchmarks.train_step configs/movielens-1m.toml [--section.key VALUE ...]
    python -m benchmarks.train_step configs/movielens-1m.toml --backbone.precision bfloat16

With bfloat16 the plain program is under autocast, and the limit multiplies in it too.

Everything is timed in one process, interleaved (plain, compiled, ours, limit, plain, ...), and medians are shown. The
plain program runs eagerly and with `torch.compile` around its whole forward, lookups included: a stage's alternative is
the better of the two, and `more` of its row in the record has both.
Both programs do the same work on the same rows: equal model, weights, optimizer and batches, and their losses of the
first steps are compared before anything is timed. The limit is the rate at which the backbone's matrix products alone
would run, forward and backward as far as the stage needs them. `more` also has what a sample costs at least, in
floating-point operations and bytes as the plain program needs them, and which share both programs reach of the rate
that this machine's products and copies allow (`benchmarks/roofline.py`): ours can be above it, where it does less.
Then both programs do a whole run, from prepared shards
to the last score, one epoch of each stage: its seconds, and the AUCs that it reached with these very settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import roofline
from benchmarks.contest import Contestants
from benchmarks.record import Figure, Record, Row, command_line, interleaved, processor_clock, table
from benchmarks.whole_run import compare_whole_runs
from mwuf_dist.cli.options import PrepareOptions, parse
from mwuf_dist.config import BackboneConfig, Config, UserError
from mwuf_dist.runtime import start
from mwuf_dist.training.run import Run, _prepare

STAGES = ("pretrain", "meta_train", "warm_up", "evaluate")
# Losses of the two programs over the first steps agree to this, relative to the loss.
_LOSS_TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-3}
# Of AFN after the first step: torch's BatchNorm of logarithms is off by 1e-5 of what it gives, 1 / |e| makes 3e-2 of
# the gradient of that (float64; ours 1e-6), and where it turns the sign, Adam's first steps go the other way.
_LOSS_TOLERANCE_AFN = 4e-3
_WARM_STEPS = 5


def measure(job: Run, num_steps: int, rounds: int) -> list[Row]:
    """One row per stage."""
    contestants = Contestants(job)
    clock, unit = processor_clock(torch.get_num_threads())
    rows = []
    for stage in STAGES:
        theirs, ours = getattr(contestants, stage)()
        if stage != "evaluate":
            for step in range(_WARM_STEPS):
                expected, found = float(theirs()), float(ours())
                tolerance = loss_tolerance(job.config.backbone, step)
                assert abs(found - expected) <= tolerance * expected, f"{stage}: losses {found} and {expected}"
        steps = {
            "plain PyTorch": theirs,
            "torch.compile": contestants.compiled(stage),
            "ours": ours,
            "products alone": contestants.limit[stage],
        }
        interleaved(steps, 3, 1, clock)  # warm
        seconds = interleaved(steps, num_steps, rounds, clock)
        eager, compiled, mine, limit = (
            Figure.of(name, [contestants.batch_size / value for value in values]) for name, values in seconds.items()
        )
        better = max(eager, compiled, key=lambda figure: figure.p50)
        more = {"eager_samples_per_s": eager.p50, "compiled_samples_per_s": compiled.p50}
        cost = _cost(contestants, stage, theirs)
        ours()  # both have done as many steps
        more |= _of_roofline(cost, roofline.measure(clock), mine.p50, better.p50)
        rows.append(Row(stage, f"samples/{unit}", True, mine, better, limit, more=more))
    return rows


def loss_tolerance(backbone: BackboneConfig, step: int) -> float:
    """Says how far the losses of two programs may be apart in a step, relative to the loss."""
    tolerance = _LOSS_TOLERANCE[backbone.precision]
    return max(tolerance, _LOSS_TOLERANCE_AFN) if step and backbone.name == "afn" else tolerance


def _cost(contestants: Contestants, stage: str, theirs: Callable[[], object]) -> roofline.Cost:
    """Counts what a sample of a stage needs at least: the plain program's products, and bytes of what it looks up.

    Args:
        contestants: both programs, in this stage.
        stage: its name.
        theirs: the plain program's step.
    """
    model, batch_size = contestants.plain.model, contestants.batch_size
    head = sum(weight.numel() for weight in model.head.parameters())
    trained = {
        "pretrain": lambda: sum(weight.numel() for weight in model.parameters()),
        "meta_train": lambda: sum(
            weight.numel() for one in (contestants.plain.phi_new, contestants.plain.meta) for weight in one.parameters()
        ),
        "warm_up": lambda: contestants.plain.phi_new.weight.numel(),
        "evaluate": lambda: 0,
    }[stage]()
    rows = 1 + sum(side.num_values_of_a_row() for side in (model.users, model.items))
    rows += contestants.model.backbone.history_length if model.uses_history else 0
    frozen = 0 if stage == "pretrain" else head
    numbers = rows * model.dim
    num_bytes = roofline.fewest_bytes(trained, frozen, batch_size, numbers, has_gradient=stage == "pretrain")
    return roofline.Cost(roofline.flops_of(theirs) / batch_size, num_bytes)


def _of_roofline(cost: roofline.Cost, roof: roofline.Roof, ours: float, alternative: float) -> dict[str, float]:
    """Gives a sample's cost, what the machine can do, and which share of that the two programs reach."""
    limit = roof.samples_per_s(cost)
    return {
        "flops_per_sample": round(cost.flops),
        "bytes_per_sample": round(cost.num_bytes),
        "gflops_per_s": round(roof.flops_per_s / 1e9, 1),
        "copy_gb_per_s": round(roof.bytes_per_s / 1e9, 1),
        "ours_of_roofline": round(ours / limit, 3),
        "alternative_of_roofline": round(alternative / limit, 3),
    }


def benchmark_config(arguments: list[str], batch_size: int, on_cpu: bool = True, draws: bool = False) -> Config:
    """The config with what both programs have in common: residual MWUF, no BatchNorm, one epoch, dropout by choice."""
    config = parse("prepare", arguments, PrepareOptions).config
    return dataclasses.replace(
        config,
        pretrain=dataclasses.replace(config.pretrain, batch_size=batch_size, weight_decay=0.0, epochs=1),
        meta_train=dataclasses.replace(config.meta_train, epochs=1, batch_size=batch_size),
        warm_up=dataclasses.replace(config.warm_up, epochs=1),
        method=dataclasses.replace(config.method, name="mwuf", residual=True),
        backbone=_without(config.backbone, draws),
        checkpoint=dataclasses.replace(config.checkpoint, every_s=0.0),
        runtime=dataclasses.replace(config.runtime, progress="off", device="cpu" if on_cpu else config.runtime.device),
    )


def _without(backbone: BackboneConfig, draws: bool) -> BackboneConfig:
    without = {"batch_norm": False} | ({} if draws else {"dropout": 0.0, "field_dropout": 0.0})
    return dataclasses.replace(backbone, **{key: value for key, value in without.items() if hasattr(backbone, key)})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.toml")
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant; the median counts")
    parser.add_argument("--whole-runs", type=int, default=1, help="whole runs of each program; 0: none, and no AUC")
    parser.add_argument("--ours-alone", action="store_true", help="no whole run of the plain program")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options, keys = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    config = benchmark_config([options.config, *keys], options.batch_size)
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        prepared = _prepare(config, runtime)
        job = Run(config, Path(folder) / "steps", runtime, prepared)
        rows = measure(job, options.steps, options.rounds)
        job.session.recorder.close()
        if options.whole_runs:
            whole = compare_whole_runs(
                config, Path(folder), runtime, prepared, options.whole_runs, alone=options.ours_alone
            )
            rows = [*(dataclasses.replace(row, aucs=whole.aucs) for row in rows), whole]
    what = (config.data.name, config.backbone.name, f"batch {options.batch_size}", config.backbone.precision)
    record = Record(
        f"Training stages, {', '.join(what)}",
        command_line("train_step", sys.argv[1:]),
        {
            "data": config.data.name,
            "backbone": config.backbone.name,
            "hidden": list(getattr(config.backbone, "hidden", ())),
            "dim": config.embedding.dim,
            "batch_size": options.batch_size,
            "dtype": config.backbone.precision,
        },
        rows,
        torch.get_num_threads(),
    )
    print(table([record]))
    if options.output:
        record.write(options.output)


def start_command(benchmark: str, main: Callable[[], None]) -> None:
    """Runs a benchmark's command; what is the user's error ends it with a message and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{benchmark}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    start_command("train_step", main)
