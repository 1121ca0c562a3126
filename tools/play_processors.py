"""Runs the numeric tests as other processors would: lesser vector units, loops built for them, none at all, and ARM.

`make test-processors` runs every part; `PROCESSORS='v3 aarch64'` some. A part that this machine cannot play says what
it lacks and is skipped; nothing is installed. One part takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU = ROOT / "kernels" / "mwuf_kernels" / "cpu"
CHECKS = ROOT / "tests" / "kernels" / "native_checks.cpp"
# Tests that compare two computations, as those of one rank and of several do; not those of runs that are stopped, which
# compare one with itself.
NUMERIC = [f"tests/{name}" for name in ("kernels", "backbones", "methods", "embeddings")] + [
    f"tests/training/test_{name}.py"
    for name in ("algorithm1", "frozen", "pairs", "precision", "ranks", "sequential", "user_means")
]
LEFT_OUT = "not ray and not gpu and not slow"
INTERPRETER = "tests/kernels/test_interpreter.py"  # NumPy does all the work there
# The instructions that gcc assumes of an -march, as Linux names them.
NEEDED = {
    "x86-64-v2": {"cx16", "popcnt", "ssse3", "sse4_1", "sse4_2"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


@dataclass(frozen=True)
class Part:
    """A processor to play: the -march of the loops, and what torch, oneDNN and MKL may use."""

    name: str
    arch: str = "native"
    torch: str = ""
    onednn: str = ""
    mkl: str = ""
    has_loops: bool = True

    def environment(self) -> dict[str, str]:
        """The variables that play it."""
        values = {
            "MWUF_NATIVE_ARCH": self.arch,
            "ATEN_CPU_CAPABILITY": self.torch,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
            "MWUF_NATIVE": "" if self.has_loops else "0",
        }
        return {name: value for name, value in values.items() if value}


PARTS = [
    Part("v2", "x86-64-v2", "default", "SSE41", "SSE4_2"),
    Part("v3", "x86-64-v3", "avx2", "AVX2", "AVX2"),
    Part("v4", "x86-64-v4", "avx512", "AVX512_CORE", "AVX512"),
    Part("native"),
    Part("no-compiler", has_loops=False),
]


@dataclass
class Outcome:
    """What became of a part, as the record has it."""

    part: str
    plays: str
    loops: str = ""
    tests: str = ""
    seconds: float = 0.0
    skipped: str = ""
    failed: bool = False


def main() -> int:
    """Runs the parts that are named; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*(part.name for part in PARTS), "aarch64"]
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(names)}; all by default")
    parser.add_argument("--record", type=Path, help="a JSON file that gets the outcomes, beside those of other parts")
    parser.add_argument("--workers", default="2", help="processes of pytest")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(names)
    if unknown:
        parser.error(f"no part is called {', '.join(sorted(unknown))}: take some of {', '.join(names)}")
    outcomes = []
    for name in arguments.parts or names:
        part = next((part for part in PARTS if part.name == name), None)
        outcomes.append(played(part, arguments.workers) if part else on_aarch64())
        print(line(outcomes[-1]), flush=True)
        if arguments.record:
            add_to_record(arguments.record, outcomes[-1], names)
    return int(any(outcome.failed for outcome in outcomes))


def line(outcome: Outcome) -> str:
    """Says what became of a part."""
    if outcome.skipped:
        return f"{outcome.part:12s} skipped: {outcome.skipped}"
    word = "FAILED" if outcome.failed else "passed"
    told = "; ".join(filter(None, (outcome.loops, outcome.tests)))
    return f"{outcome.part:12s} {word} in {outcome.seconds:.0f} s ({outcome.plays}): {told}"


def played(part: Part, workers: str) -> Outcome:
    """Runs the loops' own checks and the numeric tests as that processor."""
    outcome = Outcome(part.name, " ".join(f"{name}={value}" for name, value in part.environment().items()))
    if platform.machine() != "x86_64" and part.arch != "native":
        outcome.skipped = f"this is no x86-64 processor, but {platform.machine()}"
        return outcome
    missing = {name for arch, needed in NEEDED.items() if arch <= part.arch for name in needed} - flags()
    if part.arch != "native" and missing:
        outcome.skipped = f"this processor lacks {', '.join(sorted(missing))}"
        return outcome
    begin = time.monotonic()
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if part.has_loops and compiler is None:
        outcome.skipped = "no C++ compiler: install g++"
        return outcome
    if part.has_loops and compiler is not None:
        outcome.loops, outcome.failed = checks([compiler, f"-march={part.arch}"], [])
    command = [sys.executable, "-m", "pytest", "-q", "-m", LEFT_OUT, f"--ignore={INTERPRETER}", *NUMERIC]
    command += ["-n", workers, "--dist", "loadgroup"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | part.environment()
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    said = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed).*?) in [\d.]+s", done.stdout, re.MULTILINE)
    outcome.tests = said[-1] if said else "pytest has ended without a summary"
    if done.returncode:
        print(done.stdout[-6000:])
    outcome.failed |= done.returncode != 0
    outcome.seconds = round(time.monotonic() - begin, 1)
    return outcome


def on_aarch64() -> Outcome:
    """Builds the loops for ARM and runs their own checks under an emulator."""
    outcome = Outcome("aarch64", "-march=armv8-a, qemu-user")
    compiler = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    packages = [
        name for name, found in (("g++-aarch64-linux-gnu", compiler), ("qemu-user-static", emulator)) if not found
    ]
    if compiler is None or emulator is None:
        outcome.skipped = f"missing Debian packages {' '.join(packages)}: make test-packages"
        return outcome
    begin = time.monotonic()
    outcome.loops, outcome.failed = checks([compiler, "-static"], [emulator])
    outcome.seconds = round(time.monotonic() - begin, 1)
    return outcome


def checks(compiler: list[str], emulator: list[str]) -> tuple[str, bool]:
    """Builds and runs native_checks.cpp with the flags of the library; what it said, and whether it failed."""
    sys.path.insert(0, str(ROOT / "kernels"))
    from mwuf_kernels.native import FLAGS

    flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "checks"
        subprocess.run([*compiler, *flags, "-w", f"-I{CPU}", str(CHECKS), "-o", str(program)], check=True)
        done = subprocess.run([*emulator, str(program)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout)
    lines = done.stdout.splitlines()
    return (lines[-1] if lines else f"ended with {done.returncode}"), done.returncode != 0


def flags() -> set[str]:
    """The instructions that this processor knows."""
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return set(found.group(1).split()) if found else set()


def add_to_record(path: Path, outcome: Outcome, names: list[str]) -> None:
    """Puts an outcome in the place of the part's last one."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record["processor"] = processor()
    parts = record.setdefault("parts", {}) | {outcome.part: asdict(outcome)}
    record["parts"] = {name: parts[name] for name in names if name in parts}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """Its name, as Linux has it."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
