"""`mwuf synthesize NAME`: its options and what it prints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge, Lt

from mwuf_dist.cli.options import read_options

_EXAMPLES = """\
Writes made-up raw files in the layout of a public data set (cikm2019, taobao-ad) or of the generated one (synthetic),
with a cold-start problem that methods can learn, of any size and in little memory. A mark in the folder prevents that
a report takes it for the real data.

examples:
  mwuf synthesize taobao-ad --rows 26_500_000 --output data/taobao-ad
  MWUF_DATA_DIR=data mwuf prepare configs/taobao-ad.toml
  mwuf synthesize cikm2019 --rows 1_000_000 --output data/cikm2019 --seed 1"""


@dataclass
class _Options:
    name: Annotated[
        Literal["cikm2019", "synthetic", "taobao-ad"], tyro.conf.Positional
    ]  # Data set whose layout is used.
    rows: Annotated[int, Ge(1), Lt(1 << 32)]  # Interactions; users and items grow with them as in the public data set.
    output: Path  # Folder of the files; must not exist or be empty.
    seed: Annotated[int, Ge(0), Lt(1 << 63)] = 0  # Seed of the data.


def run_command(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    options = read_options(_Options, arguments, "mwuf synthesize", _EXAMPLES)
    from mwuf_dist.data.synthesize.synthesize import synthesize

    synthesize(options.name, options.rows, options.output, options.seed, progress=os.isatty(2))
    for path in sorted(options.output.rglob("*")):
        if path.is_file():
            print(f"{path}  {path.stat().st_size:,} bytes")
    return 0
