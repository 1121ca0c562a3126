"""mwuf_kernels and its benchmark need torch alone: not the package, not TorchRec, and Triton only where it is there."""

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError, as if it were not installed
import torch, mwuf_kernels, benchmarks.kernels
from mwuf_kernels._triton import HAS_TRITON
assert not HAS_TRITON
taken = set(sys.modules) & {"mwuf_dist", "torchrec", "fbgemm_gpu", "ray", "pyarrow"}
assert not taken, taken
rows = torch.ones(2, 3, requires_grad=True)
cold, warm = mwuf_kernels.warm_embedding(rows, torch.tensor([1, 1]), rows.detach(), rows.detach())
(cold.sum() + warm.sum()).backward()
assert rows.grad.tolist() == [[0.0] * 3, [2.0] * 3]
"""


def test_imports_and_works_without_triton_or_the_package():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
