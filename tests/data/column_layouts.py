"""Reads `column_layouts.txt`, and makes rows of a layout: 25 users, 40 items, 400 rows, as the kinds of columns say."""

from __future__ import annotations

import csv
import datetime
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_ROWS, NUM_USERS, NUM_ITEMS = 400, 25, 40
_FIRST = 1_600_000_000
_STEP_S = 9_000  # so that 400 rows are 40 days


@dataclass(frozen=True)
class Column:
    """A column: its name, how its values are made, and what it is."""

    name: str
    kind: str
    role: str


@dataclass(frozen=True)
class Layout:
    """A layout; `asked` is the option that the answer has to name, or empty."""

    name: str
    asked: str
    columns: tuple[Column, ...]

    def named(self, role: str) -> str:
        """The column of a role, empty where there is none."""
        return next((one.name for one in self.columns if one.role.split("=")[0] == role), "")


def layouts() -> list[Layout]:
    """All layouts of the collection."""
    text = Path(__file__).with_name("column_layouts.txt").read_text(encoding="utf-8")
    found = []
    for block in text.split("\n## ")[1:]:
        head, columns = block.strip().split("\n")
        name, _, asked = head.partition(" -> asked ")
        found.append(Layout(name, asked, tuple(_column(one) for one in columns.split(" | "))))
    return found


def _column(text: str) -> Column:
    # A format of dates holds colons too.
    name, kind, role = re.fullmatch(r"(.*?):(<.*>\??|[^:]*)(?::(.*))?", text.strip()).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return Column(name, kind, role or "")


def write_rows(layout: Layout, path: Path) -> None:
    """Writes rows of a layout as CSV."""
    random = np.random.default_rng(3)
    user, item = random.integers(NUM_USERS, size=NUM_ROWS), random.integers(NUM_ITEMS, size=NUM_ROWS)
    made = [_values(one.kind, user, item, random) for one in layout.columns]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([one.name for one in layout.columns])
        writer.writerows(zip(*made, strict=True))


def _values(kind: str, user: np.ndarray, item: np.ndarray, random: np.random.Generator) -> list[str]:
    rows = range(NUM_ROWS)
    if kind.endswith("?"):
        values = _values(kind[:-1], user, item, random)
        return [value if random.random() < 0.3 else "" for value in values]
    if kind[0] == "<":
        return [_moment(row).strftime(kind[1:-1]) for row in rows]
    if (kind[0] == "w" and kind[1:2] not in ("u", "i")) or (kind[0] == "w" and "/" in kind):
        words = kind[1:].split("/")
        return [words[one] for one in random.integers(len(words), size=NUM_ROWS)]
    fixed = {
        "u": [str(3 * one + 1) for one in user], "uh": [f"{7919 * int(one) + 999983:08x}x" for one in user],
        "ua": [f"A{one:02d}SUAM1J3GNN" for one in user], "i": [str(1000 + 7 * one) for one in item],
        "ih": [f"{104729 * int(one) + 999983:09x}y" for one in item], "ib": [f"B{one:03d}00J4P" for one in item],
        "s": [str(_FIRST + _STEP_S * row) for row in rows],
        "ms": [str((_FIRST + _STEP_S * row) * 1000 + row) for row in rows],
        "us": [str((_FIRST + _STEP_S * row) * 10**6 + row) for row in rows],
        "iso": [f"{_moment(row):%Y-%m-%d %H:%M:%S}" for row in rows],
        "isoz": [f"{_moment(row):%Y-%m-%dT%H:%M:%SZ}" for row in rows],
        "isoutc": [f"{_moment(row):%Y-%m-%d %H:%M:%S} UTC" for row in rows],
        "date": [f"{_moment(row):%Y-%m-%d}" for row in rows], "day": [str(1 + row // 10) for row in rows],
        "stars": [str(1 + one) for one in random.integers(5, size=NUM_ROWS)],
        "half": [str((1 + one) / 2) for one in random.integers(10, size=NUM_ROWS)],
        "r10": [str(1 + one) for one in random.integers(10, size=NUM_ROWS)],
        "r0": [str(one) for one in random.integers(6, size=NUM_ROWS)],
        "01": [str(int(one)) for one in random.random(NUM_ROWS) < 0.2],
        "10": [str(int(one)) for one in random.random(NUM_ROWS) < 0.8],
        "tf": [str(bool(one)) for one in random.random(NUM_ROWS) < 0.3],
        "yn": [("no", "yes")[int(one)] for one in random.random(NUM_ROWS) < 0.3],
        "f": [f"{one:.4f}" for one in random.random(NUM_ROWS) * 20 - 10],
        "text": [f"text {row} of {random.integers(10**9)}" for row in rows],
        "uniq": [str(10**6 + 17 * row) for row in rows], "uniqh": [f"{row * 7 + 10**9:010x}z" for row in rows],
        "hex": [f"{one:08x}" for one in random.integers(10**9, 10**9 + 30, size=NUM_ROWS)],
        "sess": [str(5000 + int(one) + 100 * (row // 50)) for row, one in enumerate(user)],
    }  # fmt: skip
    if kind in fixed:
        return fixed[kind]
    number = int(re.sub(r"\D", "", kind))
    of_row = {"wu": user % number, "wi": item % number, "cu": user % number, "ci": item % number}
    letters = kind.rstrip("0123456789")
    if letters == "n":
        return [str(one) for one in random.integers(1, number + 1, size=NUM_ROWS)]
    values = of_row[letters]
    return [f"value {chr(97 + one % 26)}{one}" if letters[0] == "w" else str(11 + 3 * one) for one in values]


def _moment(row: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(_FIRST + _STEP_S * row, datetime.UTC)
