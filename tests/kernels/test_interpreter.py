"""Runs the kernel tests again with the Triton kernels themselves, interpreted on CPU tensors.

All but those of the references and of the ops' registration, which know nothing of kernels (and the latter's imports
take as long as all the rest); of two types of ids by two of rows, the two pairs that hold each once.
"""

import os
import subprocess
import sys
from pathlib import Path

import mwuf_kernels
import pytest
from mwuf_kernels._triton import INTERPRETED

LEFT_OUT = ("opcheck", "compiles", "reference", "registered", "index_type0-dtype1", "index_type1-dtype0")


@pytest.mark.skipif(INTERPRETED, reason="already under the interpreter")
def test_the_kernels_pass_the_same_tests_under_the_interpreter():
    # A process of its own: Triton reads the variable when the kernels are imported.
    pytest.importorskip("triton", reason="triton is not installed: its kernels are not tested here")
    ops = [file for file in Path(mwuf_kernels.__file__).parent.glob("*.py") if "_triton import" in file.read_text()]
    files = [str(Path(__file__).parent / f"test_{op.stem}.py") for op in ops if op.stem != "_triton"]
    assert len(files) > 4
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["-k", " and ".join(f"not {name}" for name in LEFT_OUT)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
