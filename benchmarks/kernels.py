"""How fast are the fused kernels, and how near to the limit? `python -m benchmarks.kernels` says.

Each op of `mwuf_kernels` against its eager reference and `torch.compile` of it, with the share of the measured copy
bandwidth that it reaches. Every result is compared with float64 before it is timed. Needs torch, and Triton for a GPU;
on a CPU it times the CPU paths and shows the GPU's figures as not measured. Writes one JSON.
"""

import argparse
import itertools
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# Where the package is not installed, as on a machine with torch and Triton only.
sys.path += [str(ROOT), str(ROOT / "kernels")]

import mwuf_kernels as mk  # noqa: E402

from benchmarks.record import Figure, Record, Row, cpu, processor_clock  # noqa: E402

TOLERANCES = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2)}
SMALL_BATCH = 4096  # launches decide up to here, so CUDA graphs are timed too


@dataclass
class Problem:
    """One op at one size.

    Attributes:
        inputs: floating tensors, the arguments of both functions; those that require gradients are differentiated.
        ours: the op.
        eager: the same in plain torch.
        num_bytes: least traffic of (forward, backward): every distinct cell read and every output written once.
    """

    inputs: list[torch.Tensor]
    ours: Callable
    eager: Callable
    num_bytes: tuple[int, int]


def warm_embedding(config: dict, device: str) -> Problem:
    """A batch of uniform draws from a table, of which the op gets the unique rows."""
    dim, dtype = config["dim"], getattr(torch, config["dtype"])
    drawn = torch.randint(config["rows"], (config["batch"],), device=device)
    unique, inverse = drawn.unique(return_inverse=True)
    rows = torch.randn((config["rows"], dim), dtype=dtype, device=device)[unique]
    scale, shift = (torch.randn((len(unique), dim), dtype=dtype, device=device, requires_grad=True) for _ in range(2))

    def ours(rows: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> Any:
        return mk.warm_embedding(rows, inverse, scale, shift)

    def eager(rows: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> Any:
        return mk.warm_embedding_reference(rows, inverse, scale, shift)

    cells_u, cells_b = len(unique) * dim * rows.element_size(), len(inverse) * dim * rows.element_size()
    ids = 8 * len(inverse)
    # Backward, with frozen rows: d warm and the rows are read, d scale and d shift written.
    return Problem([rows, scale, shift], ours, eager, (3 * cells_u + 2 * cells_b + ids, cells_b + 3 * cells_u + ids))


def _networks(config: dict, device: str) -> list[torch.Tensor]:
    dim, hidden, dtype = config["dim"], config["hidden"], getattr(torch, config["dtype"])
    shapes = [s for c in config["inputs"] for s in ((hidden, c), (hidden,), (dim, hidden), (dim,))]
    weights = [torch.randn(shape, device=device) / shape[-1] ** 0.5 for shape in shapes]
    return [weight.to(dtype).requires_grad_() for weight in weights]


def meta_networks(config: dict, device: str) -> Problem:
    """Both networks on the unique items of a batch; the inputs are frozen, as in meta_train."""
    dtype, num_items = getattr(torch, config["dtype"]), config["items"]
    inputs = [torch.randn((num_items, width), device=device, dtype=dtype) for width in config["inputs"]]
    weights = _networks(config, device)

    def call(op: Callable) -> Callable:
        return lambda x_h, x_g, *w: op(x_h, x_g, w[:4], w[4:], residual=True)

    moved = num_items * (sum(config["inputs"]) + 2 * config["dim"]) * inputs[0].element_size()
    return Problem([*inputs, *weights], call(mk.meta_networks), call(mk.meta_networks_reference), (moved, moved))


def bulk_warm(config: dict, device: str) -> Problem:
    """Every item of a table."""
    dtype, num_items = getattr(torch, config["dtype"]), config["items"]
    widths = [config["dim"], *config["inputs"]]
    inputs = [torch.randn((num_items, width), device=device, dtype=dtype) for width in widths]
    weights = [weight.detach() for weight in _networks(config, device)]

    def call(op: Callable) -> Callable:
        return lambda table, x_h, x_g, *w: op(table, x_h, x_g, w[:4], w[4:], residual=True)

    moved = num_items * (sum(widths) + config["dim"]) * inputs[0].element_size()
    return Problem([*inputs, *weights], call(mk.bulk_warm), call(mk.bulk_warm_reference), (moved, 0))


def user_mean(config: dict, device: str) -> Problem:
    """Means of `users` users for each item, drawn from a user table."""
    dtype, num_items, each, dim = getattr(torch, config["dtype"]), config["items"], config["users"], config["dim"]
    rows = torch.randn((config["rows"], dim), device=device, dtype=dtype)
    users = torch.randint(config["rows"], (num_items * each,), device=device)
    offsets = torch.arange(0, num_items * each + 1, each, device=device)
    cells = min(config["rows"], len(users)) + num_items
    return Problem(
        [rows],
        lambda rows: mk.user_mean(rows, users, offsets),
        lambda rows: mk.user_mean_reference(rows, users, offsets),
        (cells * dim * rows.element_size() + 8 * len(users), 0),
    )


OPS = {op.__name__: op for op in (warm_embedding, meta_networks, user_mean, bulk_warm)}


def cases_of(device: str, l2_bytes: int) -> list[tuple[str, dict]]:
    """(op, config) of everything that is timed on a device; tables on a GPU take four times its L2 cache or more."""
    f32, both = "float32", {"inputs": (48, 16), "hidden": 64, "dtype": "float32"}
    if device == "cpu":
        sizes = [(2048, 1400, 16), (8192, 1400, 16), (65536, 40000, 64)]
        return [
            *(("warm_embedding", {"batch": b, "rows": n, "dim": d, "dtype": f32}) for b, n, d in sizes),
            *(("meta_networks", {"items": u, "dim": d, **both}) for u, d in ((900, 16), (20000, 64))),
            *(
                ("user_mean", {"items": i, "users": k, "rows": 6040, "dim": 16, "dtype": f32})
                for i, k in ((972, 20), (1420, 600))
            ),
            *(("bulk_warm", {"items": 200_000, "dim": d, **both}) for d in (16, 64)),
        ]
    found = []
    for dim, dtype in ((16, f32), (64, f32), (128, f32), (64, "bfloat16")):
        row_bytes = dim * (4 if dtype == f32 else 2)
        rows = max(4 * l2_bytes // row_bytes + 1, 1_000_000)
        found += [
            ("warm_embedding", {"batch": batch, "rows": rows, "dim": dim, "dtype": dtype})
            for batch in (SMALL_BATCH, 65536, 262_144, 1_048_576)
        ]
    found += [("meta_networks", {"items": u, "dim": d, **both}) for u in (4096, 65536) for d in (16, 64)]
    found += [("user_mean", {"items": 100_000, "users": 60, "rows": 4_000_000, "dim": 64, "dtype": f32})]
    return [*found, *(("bulk_warm", {"items": 4_000_000, "dim": d, **both}) for d in (16, 64))]


def in_turn(cases: list[tuple[str, dict]]) -> list[tuple[str, dict]]:
    """The first case of each op, then the second of each, ...: where time runs out, no op goes without a figure."""
    by_op = [[case for case in cases if case[0] == op] for op in dict.fromkeys(op for op, _ in cases)]
    return [case for row in itertools.zip_longest(*by_op) for case in row if case is not None]


def _outputs(op: Callable, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    made = op(*inputs)
    return [made] if isinstance(made, torch.Tensor) else list(made)


def _gradients(op: Callable, inputs: list[torch.Tensor]) -> Callable | None:
    """A function that runs the backward again and again; None where nothing requires a gradient."""
    leaves = [value for value in inputs if value.requires_grad]
    if not leaves:
        return None
    outputs, seeds = [], []
    for place, out in enumerate(_outputs(op, inputs)):
        generator = torch.Generator(out.device).manual_seed(place)
        if out.requires_grad:
            outputs.append(out)
            seeds.append(torch.randn(out.shape, generator=generator, device=out.device).bfloat16().to(out.dtype))
    return lambda: torch.autograd.grad(outputs, leaves, seeds, retain_graph=True)


def check(problem: Problem) -> None:
    """Compares with the reference in float64; raises ArithmeticError beyond the tolerance."""
    wide = [value.detach().double().requires_grad_(value.requires_grad) for value in problem.inputs]
    ours, wanted = _gradients(problem.ours, problem.inputs), _gradients(problem.eager, wide)
    found = [(_outputs(problem.ours, problem.inputs), _outputs(problem.eager, wide))]
    if ours is not None and wanted is not None:
        found.append((list(ours()), list(wanted())))
    for (values, references), tolerance in zip(found, TOLERANCES[problem.inputs[0].dtype], strict=False):
        for value, reference in zip(values, references, strict=True):
            error = ((value.double() - reference).abs().max() / reference.abs().max()).item()
            if not error <= tolerance:
                raise ArithmeticError(f"error {error:.2e} of the largest value, at most {tolerance:.0e} is allowed")


def time_all(functions: dict[str, Callable], device: str, seconds: float = 0.6) -> dict[str, list[float]]:
    """Microseconds a call in each of several interleaved runs (A B A B)."""
    for function in functions.values():
        for _ in range(2):
            function()
    first = _time_once(next(iter(functions.values())), device, 1)
    calls = max(1, int(500 / max(first, 1e-3))) if device == "cuda" else 1  # half a millisecond between events
    runs = min(200, max(9, int(seconds * 1e6 / (len(functions) * first * calls))))
    taken = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            taken[name].append(_time_once(function, device, calls))
    return taken


def _time_once(function: Callable, device: str, calls: int) -> float:
    if device == "cpu":
        clock, _ = processor_clock(torch.get_num_threads())
        start = clock()
        for _ in range(calls):
            function()
        return (clock() - start) / calls * 1e6
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(calls):
        function()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / calls * 1e3


def _graph_of(function: Callable) -> Callable:
    graph = torch.cuda.CUDAGraph()
    with warnings.catch_warnings(), torch.cuda.graph(graph):
        warnings.simplefilter("ignore")  # an empty graph is one of those that are timed
        function()
    return graph.replay


def measure(op: str, config: dict, device: str, copy_bytes_per_s: float, place: str | None = None) -> list[Row]:
    """The rows of one case: forward, backward where it has one, and forward as a CUDA graph where it is small.

    `place` is where the tensors lie if not on the device: a test goes a GPU's way with tensors of the CPU.
    """
    torch.manual_seed(0)
    problem = OPS[op](config, place or device)
    check(problem)
    compiled = torch.compile(problem.eager, dynamic=False) if device == "cuda" else None
    ways = {"ours": problem.ours, "eager": problem.eager, **({"compile": compiled} if compiled else {})}
    with torch.no_grad():
        forward = {name: (lambda way=way: way(*problem.inputs)) for name, way in ways.items()}
        rows = [_row(op, "forward", config, problem.num_bytes[0], time_all(forward, device), copy_bytes_per_s, device)]
        if device == "cuda" and config.get("batch", config.get("items")) == SMALL_BATCH:
            graphs = {name: _graph_of(call) for name, call in {**forward, "empty": lambda: None}.items()}
            timed = time_all(graphs, device)
            rows.append(_row(op, "forward, CUDA graph", config, problem.num_bytes[0], timed, copy_bytes_per_s, device))
    backward = {name: _gradients(way, problem.inputs) for name, way in ways.items()}
    calls = {name: call for name, call in backward.items() if call is not None}
    if calls:
        timed = time_all(calls, device)
        rows.append(_row(op, "backward", config, problem.num_bytes[1], timed, copy_bytes_per_s, device))
    torch.compiler.reset()
    return rows


def _row(op: str, part: str, config: dict, num_bytes: int, timed: dict, copy_bytes_per_s: float, device: str) -> Row:
    """The alternative is the best that does not use our op; the limit is a copy of the least traffic.

    A small op under a CUDA graph is limited by the replay of an empty graph instead.
    """
    config = {"device": device, **config}
    if not timed:
        return Row(f"{op}, {part}, {device}", "us", False, None, config=config)
    figures = {name: Figure.of(name, taken) for name, taken in timed.items()}
    limit = figures.pop("empty", None) or Figure.of("copy", [num_bytes / copy_bytes_per_s * 1e6])
    ours = figures.pop("ours")
    others = {name: figure.p50 for name, figure in figures.items()}
    more = {"bytes": num_bytes, "share_of_copy": num_bytes / (ours.p50 * 1e-6) / copy_bytes_per_s, "others_us": others}
    best = min(figures.values(), key=lambda figure: figure.p50)
    return Row(f"{op}, {part}, {device}", "us", False, ours, best, limit, config, more=more)


def copy_bandwidth(device: str, l2_bytes: int) -> float:
    """Bytes read and written a second by a plain copy of a buffer far above the caches."""
    source = torch.ones(max(8 * l2_bytes, 1 << 28) // 4, device=device)
    target = torch.empty_like(source)
    taken = time_all({"copy": lambda: target.copy_(source)}, device, seconds=1.0)["copy"]
    return 2 * source.numel() * 4 / (median(taken) * 1e-6)


def show(row: Row) -> str:
    """One line of the table."""
    shown = {name: value for name, value in row.config.items() if value != "float32" and name != "device"}
    start = f"{row.name:<42}{' '.join(f'{name} {value}' for name, value in shown.items()):<66}"
    if row.ours is None:
        return start + "not measured"
    ratios = [
        f"{name} {taken:10.1f} us ({taken / row.ours.p50:5.2f}x)" for name, taken in row.more["others_us"].items()
    ]
    share = f"{100 * row.more['share_of_copy']:5.1f} % of copy"
    return f"{start}ours {row.ours.p50:10.1f} us  {'  '.join(ratios)}  {share}"


def main(arguments: list[str] | None = None) -> int:
    """Runs everything that fits into the time, prints the table, writes the JSON. 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "kernels.json")
    parser.add_argument("--seconds", type=float, default=240.0, help="what is not reached by then is not measured")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    properties = torch.cuda.get_device_properties(0) if device == "cuda" else None
    l2_bytes = properties.L2_cache_size if properties else 50 << 20
    began, copy_bytes_per_s = time.monotonic(), copy_bandwidth(device, l2_bytes)
    name = properties.name if properties else cpu()["name"]
    print(f"{device} {name}, torch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"copy {copy_bytes_per_s / 1e9:.1f} GB/s")
    rows, wrong = [], []
    cases = [(device, *case) for case in in_turn(cases_of(device, l2_bytes))]
    if device == "cpu":
        cases += [("cuda", *case) for case in cases_of("cuda", l2_bytes)]
    for place, op, config in cases:
        made = [_row(op, "all", config, 0, {}, copy_bytes_per_s, place)]
        if place == device and time.monotonic() - began < options.seconds:
            try:
                made = measure(op, config, device, copy_bytes_per_s)
            except Exception as error:  # one that does not compile or fit must not cost the others their figures
                wrong.append(f"{op} {config}: {type(error).__name__}: {error}")
        rows += made
        print("\n".join(map(show, made)), flush=True)
    about = {"kind": "cuda", "name": name, "l2_bytes": l2_bytes} if properties else cpu()
    settings = {"copy_bytes_per_s": copy_bytes_per_s, "wrong": wrong}
    threads = torch.get_num_threads()
    Record("Fused kernels", "python -m benchmarks.kernels", settings, rows, threads, about).write(options.output)
    print("\n".join([*(f"WRONG {line}" for line in wrong), f"wrote {options.output}"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
