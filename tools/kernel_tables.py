"""Records of the kernels' and loops' benchmarks as tables of a page, as in `docs_tables.py`."""

from __future__ import annotations

from typing import Any

from docs_tables import read_record, rows_table


def fast_paths_table(name: str) -> str:
    """A record of `benchmarks.fast_paths`: lines of each path, and how many times as fast each stage is with it."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in read_record(name)["rows"]:
        counts = row["more"]["lines"]
        named = row["name"] if row["name"] in ("all", "shared") else f"`{row['name']}`"
        key = named, row["config"].get("backbone", "")
        of_path = cells.setdefault(key, [str(counts["python"]), str(counts["cpp"])])
        if row["alternative"]:
            of_path.append(f"{row['ours']['p50'] / row['alternative']['p50']:.2f}")
    heads = ("", "backbone", "lines of Python", "lines of C++", "pretrain", "meta_train", "warm_up", "evaluate")
    rows = [(*key, *of_path) for key, of_path in cells.items()]
    return rows_table(heads, [(*row, *["–"] * (len(heads) - len(row))) for row in rows])


def gpu_kernels_table(name: str) -> str:
    """A record of `benchmarks.kernels` on a GPU: larger sizes of each op, beside the best alternative and a copy."""
    rows = []
    for row in read_record(name)["rows"]:
        sizes = row["config"]
        if row["ours"] is None or max(sizes.get("batch", 0), sizes.get("items", 0)) < 65_536:
            continue
        ours, other = row["ours"]["p50"], row["alternative"]["p50"]
        shown = ", ".join(f"{key} {sizes[key]:,}" for key in ("batch", "items", "dim") if key in sizes)
        shown += ", bfloat16" if sizes["dtype"] == "bfloat16" else ""
        share = f"{row['more']['share_of_copy']:.0%}"
        name = row["name"].removesuffix(", cuda")
        rows.append((f"{name}: {shown}", f"{ours:,.0f}", f"{other:,.0f}", f"{other / ours:.2f}", share))
    return rows_table(("", "us", "eager or compiled us", "ratio", "of copy"), rows)


def compiled_kernels_table(name: str) -> str:
    """A record of `benchmarks.compiled_kernels`: what a kernel needs on each card, over all widths and types."""
    kernels: dict[str, list[dict[str, Any]]] = {}
    for row in read_record(name)["rows"]:
        kernels.setdefault(row["name"], []).append(row)
    cards = [key for key in read_record(name)["rows"][0]["more"] if key != "num_warps"]
    rows = []
    for kernel, launches in kernels.items():
        cells = []
        for card in cards:
            found = [launch["more"][card] for launch in launches]
            registers = [one["registers"] for one in found]
            warps = min(launch["more"]["num_warps"] * launch["more"][card]["programs"] for launch in launches)
            spilled = max(one["spilled_bytes"] for one in found)
            spills = f", spills {spilled} B" if spilled else ""
            cells.append(f"{min(registers)} to {max(registers)}, {warps}{spills}")
        shared = max(launch["more"][card]["shared_bytes"] for launch in launches for card in cards)
        ratios = [launch["ours"]["p50"] / launch["limit"]["p50"] for launch in launches]
        rows.append((f"`{kernel}`", *cells, f"{shared / 1024:.2g}", f"{min(ratios):.2f} to {max(ratios):.2f}"))
    return rows_table(("kernel", *cards, "shared kB", "bytes asked for / distinct"), rows)
