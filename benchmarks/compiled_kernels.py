"""What becomes of the Triton kernels when they are compiled for GPUs, on a machine that has none.

    python -m benchmarks.compiled_kernels --output benchmarks/results/compiled-kernels.json

Each kernel is compiled as its op launches it: the ops are called with tensors of the CPU, and what they would have
launched is written down instead. Triton and the assemblers that its wheel brings make machine code of it for sm_80,
sm_90, sm_100 (NVIDIA) and gfx942 (AMD); registers, shared memory and spills are read off that, and so is the width of
every access to memory.
Compiled is not run: how fast it is says `python -m benchmarks.kernels` on a GPU.

Bytes are counted where the kernels run, under Triton's interpreter: those that all programs of a launch ask for, beside
the distinct ones among them, which is the least that can be moved.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import mwuf_kernels as mk
import numpy as np
import torch
from mwuf_kernels._triton import HAS_TRITON

from benchmarks.record import Figure, Record, Row, command_line

DIMS = (16, 64, 128)
DTYPES = (torch.float32, torch.bfloat16)
MOST_THREADS = 2_048  # that a multiprocessor holds, of all architectures here
_MODULES = ("warm_embedding", "segments", "meta_networks", "bulk_warm")
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
_BATCH, _NUM_ROWS = 1024, 300  # of the launches; a segment of over 128 entries is among them


@dataclass(frozen=True)
class Architecture:
    """What one multiprocessor has.

    Attributes:
        backend: of Triton.
        target: its name there.
        warp: threads that go in step.
        registers: of 32 bits.
        shared_bytes: memory that programs share.
    """

    backend: str
    target: int | str
    warp: int
    registers: int
    shared_bytes: int


# CUDA C++ programming guide; AMD Instinct MI300 instruction set: four SIMDs, each 512 registers in 64 lanes.
ARCHITECTURES = {
    "sm_80": Architecture("cuda", 80, 32, 65_536, 164 << 10),
    "sm_90": Architecture("cuda", 90, 32, 65_536, 228 << 10),
    "sm_100": Architecture("cuda", 100, 32, 65_536, 228 << 10),
    "gfx942": Architecture("hip", "gfx942", 64, 131_072, 64 << 10),
}


@dataclass(frozen=True)
class Launch:
    """A launch that an op would have made.

    Attributes:
        kernel: the function.
        arguments: of it, in order, without those that are known at compile time.
        constants: those, by name.
        num_warps: of a program.
    """

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int

    @property
    def name(self) -> str:
        """The kernel's name without what they all have in theirs."""
        return self.kernel.__name__.strip("_").removesuffix("_kernel")


@dataclass(frozen=True)
class Compiled:
    """What the assembler made of a launch.

    Attributes:
        registers: of a thread.
        spilled_bytes: of local memory that a thread uses, its stack included.
        shared_bytes: of a program.
        access_bytes: how many accesses to global memory move so many bytes of a thread at once.
        programs: that a multiprocessor holds at once, by registers, shared memory and threads.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    access_bytes: dict[int, int]
    programs: int


def call_ops(dim: int, dtype: torch.dtype) -> None:
    """Calls every op that has a kernel, forward and backward, with rows of this width and type."""
    random = torch.Generator().manual_seed(0)
    inverse = torch.randint(_NUM_ROWS, (_BATCH,), generator=random)
    inverse[: _BATCH // 4] = 0  # a segment that is longer than a span
    rows, scale, shift = torch.randn(3, _NUM_ROWS, dim, generator=random).to(dtype)
    mk.warm_embedding(rows, inverse, scale, shift)
    d_cold, d_warm = torch.randn(2, _BATCH, dim, generator=random).to(dtype)
    mk.segment_sums((d_cold, d_warm), *mk.segments(inverse, _NUM_ROWS))
    networks: list[Any] = [
        tuple(
            torch.randn(shape, generator=random).to(dtype).requires_grad_()
            for shape in ((64, c), (64,), (dim, 64), (dim,))
        )
        for c in (48, 16)
    ]
    inputs = [torch.randn(_NUM_ROWS, width, generator=random).to(dtype) for width in (48, 16)]
    outputs = mk.meta_networks(inputs[0], inputs[1], networks[0], networks[1], residual=True)
    torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
    with torch.no_grad():
        mk.bulk_warm(rows, inputs[0], inputs[1], networks[0], networks[1], residual=True)


def launches(dim: int, dtype: torch.dtype) -> list[Launch]:
    """The first launch of each kernel by `call_ops`; nothing runs."""
    found: dict[str, Launch] = {}

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self._kernel = kernel

        def __getitem__(self, grid: object) -> Any:
            def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
                one = Launch(self._kernel, arguments, constants, num_warps)
                found.setdefault(one.name, one)

            return launch

    with contextlib.ExitStack() as stack:
        for name in _MODULES:
            module = importlib.import_module(f"mwuf_kernels.{name}")
            for key, value in list(vars(module).items()):
                if key.startswith("_") and key.endswith("_kernel"):
                    stack.enter_context(mock.patch.object(module, key, Recorder(value)))
            if hasattr(module, "use_triton"):
                stack.enter_context(mock.patch.object(module, "use_triton", return_value=True))
            if hasattr(module, "has_library"):
                stack.enter_context(mock.patch.object(module, "has_library", return_value=False))
        call_ops(dim, dtype)
    return list(found.values())


def compile_for(launch: Launch, name: str) -> Compiled:
    """Compiles a launch for one of `ARCHITECTURES`, as Triton would at the launch itself."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    architecture = ARCHITECTURES[name]
    signature, attributes, place = {}, {}, 0
    for position, argument in enumerate(launch.kernel.arg_names):
        if argument in launch.constants:
            signature[argument] = "constexpr"
            continue
        value = launch.arguments[place]
        place += 1
        signature[argument] = _POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        # What torch allocates is aligned; of numbers, Triton looks.
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, launch.constants, attributes)
    target = GPUTarget(architecture.backend, architecture.target, architecture.warp)
    made = triton.compile(source, target=target, options={"num_warps": launch.num_warps})
    registers, spilled_bytes, widths = (_read_nvidia if architecture.backend == "cuda" else _read_amd)(made.asm)
    shared, threads = made.metadata.shared, architecture.warp * launch.num_warps
    programs = min(
        architecture.registers // (registers * threads),
        architecture.shared_bytes // max(shared, 1024),
        MOST_THREADS // threads,
    )
    return Compiled(registers, spilled_bytes, shared, dict(collections.Counter(widths)), programs)


def _read_nvidia(code: Any) -> tuple[int, int, list[int]]:
    """Registers and bytes of local memory of a thread, and the width of every access to global memory, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(path))
        listing = _tool("nvdisasm", "-c", str(path))
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    accesses = re.findall(r"\b(?:LDG|STG|LDGSTS)((?:\.\w+)*)", listing)
    bits = [next((int(one) for one in options.split(".") if one in ("64", "128")), 32) for options in accesses]
    return used["REG"], used["STACK"] + used["LOCAL"], [width // 8 for width in bits]


def _read_amd(code: Any) -> tuple[int, int, list[int]]:
    """What `_read_nvidia` gives, of what LLVM wrote for AMD; a load of less than 4 bytes counts as 4 there, too."""
    listing = code["amdgcn"]
    used = {
        key: int(value) for key, value in re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", listing)
    }
    accesses = re.findall(r"\b(?:global|buffer|flat)_(?:load|store)_(?:\w*?x(\d)|\w+)", listing)
    widths = [4 * int(words or 1) for words in accesses]
    return int(used["vgpr_count"]), int(used["private_segment_fixed_size"]), widths


def _tool(name: str, *arguments: str) -> str:
    """Runs a program of CUDA's that Triton's wheel brings."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def _counted(asked: dict[str, list[np.ndarray]]) -> Iterator[None]:
    """Notes the address of every byte that kernels under the interpreter read and write."""
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder

    def note(kind: str, pointers: Any, mask: Any) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        first = pointers.data[mask.data.astype(bool)].astype(np.int64).reshape(-1)
        asked[kind].append((first[:, None] + np.arange(size)).reshape(-1))

    load, store = builder.create_masked_load, builder.create_masked_store

    def noted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        note("read", ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def noted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("written", ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    with mock.patch.multiple(builder, create_masked_load=noted_load, create_masked_store=noted_store):
        yield


def count_bytes(dim: int, dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """Bytes that each kernel asks for, and the distinct ones among them; needs TRITON_INTERPRET=1 from the start."""
    counts: dict[str, tuple[int, int]] = {}
    for launch in launches(dim, dtype):
        asked: dict[str, list[np.ndarray]] = {"read": [], "written": []}
        with _counted(asked):
            _run_alone(launch.name, dim, dtype)
        found = [np.concatenate(parts) for parts in asked.values() if parts]
        counts[launch.name] = sum(map(len, found)), sum(len(np.unique(one)) for one in found)
    return counts


def _run_alone(name: str, dim: int, dtype: torch.dtype) -> None:
    """Calls the ops, with every kernel but one left out."""
    with contextlib.ExitStack() as stack:
        for module_name in _MODULES:
            module = importlib.import_module(f"mwuf_kernels.{module_name}")
            for key in [key for key in vars(module) if key.startswith("_") and key.endswith("_kernel")]:
                if key != f"_{name}_kernel":
                    stack.enter_context(mock.patch.object(module, key, _Nothing()))
        call_ops(dim, dtype)


class _Nothing:
    def __getitem__(self, grid: object) -> Any:
        return lambda *arguments, **constants: None


def measure(architectures: Sequence[str], dims: Sequence[int], dtypes: Sequence[torch.dtype]) -> list[Row]:
    """A row for each kernel, width and type; in `more` what each architecture's machine code needs."""
    rows = []
    for dim in dims:
        for dtype in dtypes:
            code = "import json; from benchmarks.compiled_kernels import *; "
            code += f"print(json.dumps(count_bytes({dim}, {dtype})))"
            done = subprocess.run(
                [sys.executable, "-c", code],
                env=os.environ | {"TRITON_INTERPRET": "1"},
                stdout=subprocess.PIPE,
                check=True,
            )
            counts = json.loads(done.stdout.splitlines()[-1])
            for launch in launches(dim, dtype):
                asked, least = counts[launch.name]
                about = {"dim": dim, "dtype": str(dtype).removeprefix("torch.")}
                more: dict[str, Any] = {"num_warps": launch.num_warps}
                for architecture in architectures:
                    found = compile_for(launch, architecture)
                    more[architecture] = vars(found)
                    print(launch.name, about, architecture, found, flush=True)
                one = Figure.of("asked for", [asked])
                rows.append(
                    Row(launch.name, "bytes", False, one, limit=Figure.of("least", [least]), config=about, more=more)
                )
    return rows


def main() -> None:
    """Compiles everything, prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    options = parser.parse_args()
    if not HAS_TRITON:
        sys.exit("Triton is not installed: pip install 'mwuf-dist[triton]'")
    rows = measure(list(ARCHITECTURES), DIMS, DTYPES)
    sizes = {"batch": _BATCH, "rows": _NUM_ROWS, "architectures": list(ARCHITECTURES)}
    record = Record("Kernels compiled for GPUs", command_line("compiled_kernels", sys.argv[1:]), sizes, rows, threads=1)
    if options.output:
        record.write(options.output)


if __name__ == "__main__":
    main()
