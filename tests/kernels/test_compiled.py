"""Every Triton kernel compiles for GPUs that are not here, without spills and with wide accesses.

A type, a width and an architecture each occur once; all of their combinations are in the record of
`python -m benchmarks.compiled_kernels`. Compiled is not run.
"""

import json

import pytest
import torch
from mwuf_kernels._triton import INTERPRETED

from benchmarks import compiled_kernels
from benchmarks.record import RESULTS, ROOT
from tools.kernel_tables import compiled_kernels_table

# Of a kernel that moves rows; the others read weights of layers too, element by element, from the cache.
MOVES_ROWS = {"warm_embedding", "segment_sums", "partial_sums"}
ALL = {*MOVES_ROWS, "meta_networks", "hidden_gradients", "bulk_warm"}


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize(
    ("dim", "dtype", "architecture"),
    [
        (16, torch.float32, "sm_80"),
        (64, torch.bfloat16, "sm_90"),
        (128, torch.float32, "sm_100"),
        (64, torch.float32, "gfx942"),
    ],
)
def test_kernels_compile_for_gpus_without_spills_and_move_16_bytes_at_once(
    dim: int, dtype: torch.dtype, architecture: str
) -> None:
    pytest.importorskip("triton", reason="triton is not installed: its kernels are not compiled here")
    launches = {launch.name: launch for launch in compiled_kernels.launches(dim, dtype)}
    assert set(launches) == ALL
    for name, launch in launches.items():
        found = compiled_kernels.compile_for(launch, architecture)
        assert found.spilled_bytes == 0, name
        assert found.programs * launch.num_warps >= 8, f"{name}: {found}: two warps for each scheduler"
        assert max(found.access_bytes) == 16, name
        if name in MOVES_ROWS and architecture != "gfx942":  # there Triton stores sums word by word
            narrow = sum(count for width, count in found.access_bytes.items() if width < 8)
            assert found.access_bytes[16] > narrow, f"{name}: {found.access_bytes}"


def test_the_table_is_that_of_the_record_and_nothing_spills() -> None:
    table = compiled_kernels_table("compiled-kernels.json")
    assert table in (ROOT / "kernels" / "README.md").read_text(encoding="utf-8")
    for row in json.loads((RESULTS / "compiled-kernels.json").read_text(encoding="utf-8"))["rows"]:
        assert not any(row["more"][card]["spilled_bytes"] for card in compiled_kernels.ARCHITECTURES), row
