"""What a rank imports: nothing of what TorchRec only passes by."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mwuf_dist.config import to_toml
from tests.cli.command import FEW_STEPS
from tests.tiny import tiny

PROGRAM = """
import json, sys
from mwuf_dist import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
loaded = [name for name in ("tensordict", "sympy", "torch._dynamo", "torch._inductor") if name in sys.modules]
import fbgemm_gpu.sparse_ops, torch
from tensordict import TensorDict
from torchrec import EmbeddingBagCollection
real = TensorDict({"a": torch.ones(2)}, batch_size=[2])["a"].sum() == 2
print(json.dumps([loaded, bool(real), fbgemm_gpu.sparse_ops.guard_or_true(torch.ones(1).shape[0] == 1)]))
"""


def test_a_whole_run_needs_no_compiler_and_afterwards_the_real_modules_are_there(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(to_toml(tiny(**FEW_STEPS)))
    command = [sys.executable, "-c", PROGRAM, "run", str(config), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], True, True]
