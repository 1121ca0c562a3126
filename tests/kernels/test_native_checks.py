"""The loops' own checks, which need neither Python nor torch: see native_checks.cpp."""

import subprocess
from pathlib import Path

import pytest
from mwuf_kernels import native

HERE = Path(__file__).parent


def run_checks(compiler: str, tmp_path: Path, includes: Path) -> subprocess.CompletedProcess[str]:
    flags = [flag for flag in native.FLAGS if flag not in ("-shared", "-fPIC", "-O3")]
    program = tmp_path / "checks"
    # Building takes longer than running.
    command = [compiler, "-O0", "-march=native", *flags, f"-I{includes}", str(HERE / "native_checks.cpp"), "-o"]
    subprocess.run([*command, str(program)], check=True, capture_output=True, timeout=300)
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=300)


def test_every_loop_gives_what_plain_loops_in_double_give(tmp_path: Path) -> None:
    compiler = native.compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    done = run_checks(compiler, tmp_path, Path(native.__file__).parent / "cpu")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("0 of ") and int(done.stdout.split()[2]) > 300
