"""What every benchmark writes: one schema, so that one table, one plot script and the README can read all of them.

Standard library only, because `benchmarks.kernels` runs where nothing but torch and Triton is installed.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 2
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PHASES = ("cold", "warm-a", "warm-b", "warm-c")
_PACKAGES = ("torch", "triton", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "pyarrow", "ray")


@dataclass(frozen=True)
class Figure:
    """What one contestant reached, as quantiles over `runs` runs."""

    name: str
    p10: float
    p50: float
    p90: float
    runs: int

    @classmethod
    def of(cls, name: str, values: Sequence[float]) -> Figure:
        """Quantiles of measured values; of a single one, all three are it."""
        if len(values) == 1:
            return cls(name, values[0], values[0], values[0], 1)
        p10, p50, p90 = statistics.quantiles(values, n=10, method="inclusive")[::4]
        return cls(name, p10, p50, p90, len(values))


@dataclass(frozen=True)
class Row:
    """One measured thing.

    Attributes:
        name: what was measured.
        unit: of the figures.
        higher_is_better: whether more of it is better.
        ours: what this project reached; None where it could not be measured.
        alternative: what one would use instead.
        limit: what nothing can beat on this device.
        config: what sets the row apart from others of its record.
        aucs: AUC of the fixed test by phase that the run with these very settings reached; empty without training.
        more: further figures, with their units in their names.
    """

    name: str
    unit: str
    higher_is_better: bool
    ours: Figure | None
    alternative: Figure | None = None
    limit: Figure | None = None
    config: dict[str, Any] = field(default_factory=dict)
    aucs: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def ratio(self, to: Figure | None) -> float | None:
        """How many times as good as another figure; None where either is missing."""
        if self.ours is None or to is None:
            return None
        return self.ours.p50 / to.p50 if self.higher_is_better else to.p50 / self.ours.p50


@dataclass(frozen=True)
class Record:
    """What one benchmark found on one device at one commit."""

    question: str
    command: str
    config: dict[str, Any]
    rows: list[Row]
    threads: int
    device: dict[str, Any] = field(default_factory=lambda: cpu())
    commit: str | None = field(default_factory=lambda: commit())
    versions: dict[str, str] = field(default_factory=lambda: versions())
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        beside.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        beside.replace(path)


def is_record(content: Any) -> bool:
    """Whether the content of a JSON file is one of these."""
    return isinstance(content, dict) and content.get("schema") == SCHEMA and "question" in content


def read(path: Path) -> Record:
    """Reads what `Record.write` wrote.

    Raises:
        ValueError: it is something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not is_record(content):
        raise ValueError(f"{path} is no record of a benchmark (schema {SCHEMA}): measure again")
    rows = [
        Row(**row | {key: row[key] and Figure(**row[key]) for key in ("ours", "alternative", "limit")})
        for row in content["rows"]
    ]
    return Record(**content | {"rows": rows})


def cpu() -> dict[str, Any]:
    """This machine's processor, and how busy it is: a figure of a busy machine compares within its record only."""
    return {
        "kind": "cpu",
        "name": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "vectors": _vectors((_cpuinfo("flags") or _cpuinfo("Features")).split()),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty where it says nothing."""
    listed = Path("/proc/cpuinfo")
    for line in listed.read_text(encoding="utf-8").splitlines() if listed.exists() else ():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def _vectors(flags: Sequence[str]) -> str:
    """The widest vectors among a processor's flags, and whether it multiplies in bfloat16; empty: unknown."""
    widest = next((name for name in ("avx512f", "avx2", "avx", "sse2", "asimd") if name in flags), "")
    return f"{widest} avx512_bf16" if "avx512_bf16" in flags else widest


def commit() -> str | None:
    """The checkout's commit, with `-dirty` behind it where files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of Python and of what is installed of the libraries that decide about speed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor_clock(threads: int) -> tuple[Callable[[], float], str]:
    """A clock for work on so many threads, and its unit.

    With one thread it counts processor time, which is the time by the clock of a machine that does nothing else, and
    stays near it on one that does. With more threads only the clock tells how long it took.
    """
    return (time.process_time, "CPU s") if threads == 1 else (time.perf_counter, "s")


def command_line(benchmark: str, arguments: Sequence[str]) -> str:
    """The command that makes a record again: everything it was called with, but where the record went."""
    kept = list(arguments)
    if "--output" in kept:
        place = kept.index("--output")
        del kept[place : place + 2]
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *kept])


def interleaved(
    steps: dict[str, Callable[[], Any]], num_steps: int, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds per step of each contestant in each round, taking turns (A B A B)."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = clock()
            for _ in range(num_steps):
                step()
            seconds[name].append((clock() - begin) / num_steps)
    return seconds


def table(records: Sequence[Record]) -> str:
    """All rows as one table for a terminal; several rows that were not measured stand in one line."""
    heads = ("", "ours", "alternative", "limit", "unit", "x alt.", "of limit", "AUC " + " / ".join(PHASES))
    lines: list[tuple[str, ...]] = [heads]
    for record in records:
        lines.append((record.question,))
        missing: dict[str, int] = {}
        for row in record.rows:
            if row.ours is None:
                missing[row.name] = missing.get(row.name, 0) + 1
                continue
            lines.append(_cells(row))
        lines += [
            (f"  {name}" + (f" ({count} sizes)" if count > 1 else ""), "not measured")
            for name, count in missing.items()
        ]
    widths = [max(len(line[i]) for line in lines if len(line) > 1 and i < len(line)) for i in range(len(heads))]
    return "\n".join(
        line[0]
        if len(line) == 1
        else "  ".join(f"{cell:{'<' if i in (0, 4) else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    settings = ", ".join(f"{key} {value}" for key, value in row.config.items())
    ratio, share = row.ratio(row.alternative), row.ratio(row.limit)
    return (
        f"  {row.name}" + (f" ({settings})" if settings else ""),
        number(row.ours),
        number(row.alternative),
        number(row.limit),
        row.unit,
        "" if ratio is None else f"{ratio:.2f}",
        "" if share is None else f"{share:.0%}",
        " ".join(f"{row.aucs[phase]:.4f}" for phase in PHASES if phase in row.aucs),
    )


def number(figure: Figure | None) -> str:
    """A median with three figures that count, and thousands as such."""
    if figure is None:
        return ""
    return f"{figure.p50:,.0f}" if figure.p50 >= 100 else f"{figure.p50:.3g}"
