"""How far apart are the AUCs of one and of several ranks, and how far does one weight's last bit move them?

    python -m benchmarks.last_bits configs/demo.toml [--ranks 2 3] [--tries 6] [--section.key VALUE ...]

Several ranks add in another order, which changes last bits, and training amplifies what changes: a ReLU whose input is
about zero, Adam where a gradient is. So runs on several ranks stand beside runs on one, each of which starts with
another weight of the backbone's first layer moved to the next number in float32. A row holds the largest difference of
an AUC, of any phase and set, to that of one rank which starts as the seed says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.record import Figure, Record, Row, command_line
from benchmarks.train_step import start_command

_START = "import sys; from benchmarks.last_bits import run_nudged; run_nudged(int(sys.argv[1]), sys.argv[2:])"


def nudge(module: torch.nn.Module, number: int) -> None:
    """Moves one weight of the first matrix of a module to the next number in float32: every 17th, by its number."""
    weight = next(parameter for parameter in module.parameters() if parameter.ndim == 2)
    with torch.no_grad():
        flat = weight.view(-1)
        place = 17 * number % flat.numel()
        flat[place] = torch.nextafter(flat[place], torch.tensor(torch.inf))


def run_nudged(number: int, arguments: list[str]) -> None:
    """Runs `mwuf` with a backbone that starts with one weight moved; number 0 moves none."""
    from mwuf_dist.__main__ import program
    from mwuf_dist.training import model

    build = model.build_backbone

    def nudged(*arguments: object) -> torch.nn.Module:
        backbone = build(*arguments)  # type: ignore[arg-type]
        nudge(backbone, number)
        return backbone

    if number:
        model.build_backbone = nudged  # type: ignore[assignment]
    sys.argv = ["mwuf", *arguments]
    program()


def aucs(folder: Path) -> dict[str, float]:
    """The AUCs of a finished run: `cold, auc_test` and so on."""
    phases = json.loads((folder / "results.json").read_text(encoding="utf-8"))["phases"]
    keys = ("auc_next", "auc_test")
    return {f"{phase}, {key}": one[key] for phase, one in phases.items() for key in keys}


def run(config: str, folder: Path, ranks: int, number: int, overrides: list[str]) -> dict[str, float]:
    """Trains in processes of their own, one thread each.

    Args:
        config: file.
        folder: of the run.
        ranks: by `torchrun` where they are several.
        number: of the weight that is moved; see `run_nudged`.
        overrides: further options of `mwuf run`.

    Returns:
        See `aucs`.
    """
    arguments = ["run", config, "--output", str(folder), "--runtime.progress", "off", *overrides]
    command = [sys.executable, "-c", _START, str(number), *arguments]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "mwuf_dist", *arguments]
    with (folder.parent / "log").open("w+") as log:
        ended = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, check=False)
        log.seek(0)
        assert ended.returncode == 0, log.read()[-2000:]
    return aucs(folder)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--tries", type=int, default=6)
    parser.add_argument("--output", type=Path)
    options, overrides = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="mwuf-last-bits-") as scratch:
        one = run(options.config, Path(scratch) / "one", 1, 0, overrides)

        def difference(name: str, ranks: int, number: int) -> float:
            other = run(options.config, Path(scratch) / name, ranks, number, overrides)
            found = max(abs(other[key] - value) for key, value in one.items())
            print(f"{name}: {found:.1e}", flush=True)
            return found

        for ranks in options.ranks:
            found = difference(f"{ranks} ranks", ranks, 0)
            rows.append(Row(f"{ranks} ranks", "AUC", False, Figure.of("ours", [found]), more={"largest": found}))
        moved = [difference(f"weight {number}", 1, number) for number in range(1, options.tries + 1)]
        rows.append(Row("a last bit", "AUC", False, Figure.of("ours", moved), more={"largest": max(moved)}))
    if options.output:
        command = command_line("last_bits", sys.argv[1:])
        question = "Differences of AUCs to those of one rank"
        Record(question, command, {"config": options.config}, rows, threads=1).write(options.output)


if __name__ == "__main__":
    start_command("last_bits", main)
