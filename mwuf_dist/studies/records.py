"""Finished cells as records that merge: one JSON file for a whole study, small enough to be kept with the code.

What all cells share (data, versions, most of the configuration) stands once, under `shared`. Logits stand with a cell
where there are few, and else only what tells whether a later run has the same ones: they lie in the run's folder, as
`scores/PHASE-SET.npy`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Required

import numpy as np
import pydantic
from annotated_types import Ge, Le, Lt
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from mwuf_dist.config import UserError, build, merge, to_dict
from mwuf_dist.evaluation.comparison import row_label
from mwuf_dist.files import CHECKSUM, DamagedError, checksum, read_json, write_atomically

SCHEMA = 1
# Logits of a cell that a record holds; five bytes each.
_MAX_LOGITS = 5_000
_DIGITS = 7
# What may differ between two runs of one cell, or is another in every cell of a row.
_NOT_COMPARED = ("runtime.", "checkpoint.", "data.prepared_dir", "seed")

Cell = dict[str, Any]

_Unit = Annotated[float, Ge(0), Le(1)]
_NotNegative = Annotated[float, Ge(0)]
_Number = Annotated[int, Ge(0)]


class _Phase(TypedDict, total=False):
    """Types the metrics of a phase."""

    auc_next: _Unit | None
    auc_test: _Unit | None
    logloss_next: _NotNegative | None
    logloss_test: _NotNegative | None
    calibration_next: _NotNegative | None
    calibration_test: _NotNegative | None
    ceiling_next: _Unit | None
    ceiling_test: _Unit | None
    auc_by_clicks: list[dict[str, Any]]


class _Cell(TypedDict, total=False):
    """Types what a run can have measured."""

    dataset: Required[str]
    backbone: Required[str]
    method: Required[str]
    variant: str
    seed: Required[Annotated[int, Ge(0), Lt(1 << 63)]]
    phases: Required[dict[Literal["cold", "warm-a", "warm-b", "warm-c"], _Phase]]
    stages: Required[dict[str, dict[str, _NotNegative | None]]]
    config: Required[dict[str, Any]]
    split: dict[str, Any]
    versions: dict[str, str]
    scores: dict[str, dict[str, Any]]


class _Audit(TypedDict, total=False):
    """Types what an audit can have found."""

    row: Required[str]
    passed: Required[bool]
    num_scores: _Number
    num_labels: _Number
    changed: dict[str, _Number]
    config_hash: str


for _cls in (_Phase, _Cell, _Audit):
    pydantic.with_config(pydantic.ConfigDict(extra="allow", strict=True, allow_inf_nan=False))(_cls)
_CELLS, _AUDITS = pydantic.TypeAdapter(list[_Cell]), pydantic.TypeAdapter(list[_Audit])
RowKey = tuple[str, str, str, str]  # (data set, backbone, method, variant)


@dataclass
class Records:
    """Results of finished cells, and of the leak audits of their rows."""

    cells: list[Cell] = field(default_factory=list)
    audits: list[dict[str, Any]] = field(default_factory=list)

    def only(self, rows: Collection[RowKey]) -> Records:
        """Returns those of some rows."""
        labels = {row_label(*row[1:]) for row in rows}
        return Records(
            [cell for cell in self.cells if row_key(cell) in rows],
            [audit for audit in self.audits if audit["row"] in labels],
        )


def cell_key(cell: Cell) -> tuple[str, str, str, str, int]:
    """Returns (data set, backbone, method, variant, seed): what a table tells cells apart by."""
    return (*row_key(cell), cell["seed"])


def row_key(cell: Cell) -> RowKey:
    """Returns the row of a table that a cell belongs to.

    The data set is what the config names: results of made-up files in its layout have a `dataset` of their own.
    """
    return cell["config"]["data"]["name"], cell["backbone"], cell["method"], cell.get("variant", "")


def write_records(records: Records, path: Path) -> None:
    """Writes a file of records, a line per cell."""
    # What was measured; config and split must stay equal to those of other cells.
    cells = [cell | {key: _rounded(cell[key]) for key in ("phases", "stages")} for cell in records.cells]
    shared, rests = factor_out(cells)
    values = {"schema": SCHEMA, "shared": shared, "audits": records.audits}
    head = values | {CHECKSUM: checksum(values | {"cells": rests})}
    lines = [json.dumps(rest, separators=(",", ":"), allow_nan=False) for rest in rests]
    text = json.dumps(head, allow_nan=False)[:-1] + ', "cells": [\n' + ",\n".join(lines) + "\n]}\n"
    write_atomically(path, text)


def read_records(path: Path) -> Records:
    """Returns records of a file, or of the output folder of `mwuf compare`, finished or not.

    Raises:
        UserError: there are none.
    """
    try:
        if path.is_dir() and (path / "runs").is_dir():
            runs = [cell_of_run(one.parent) for one in sorted(path.glob("runs/*/results.json"))]
            return _checked(Records(runs, read_audits(path)))
        values = read_json(path / "records.json" if path.is_dir() else path)
        if values["schema"] != SCHEMA:
            raise UserError(f"{path}: records of schema {values['schema']!r}, but this version reads {SCHEMA}")
        return _checked(Records([merge(values["shared"], rest) for rest in values["cells"]], values["audits"]))
    except UserError:
        raise
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: no record has `{where}` = {str(first['input'])[:80]!r}: {first['msg']}") from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, DamagedError) as error:
        raise UserError(
            f"{path}: no records there ({error}); name the output folder of a `mwuf compare`, or its records.json"
        ) from None


def _checked(records: Records) -> Records:
    _CELLS.validate_python(records.cells)
    _AUDITS.validate_python(records.audits)
    return records


def read_audits(folder: Path) -> list[dict[str, Any]]:
    """Gives the leak audits of a comparison's folder.

    A damaged one is said and counts for nothing: it is made again.
    """
    audits = []
    for path in sorted(folder.glob("audits/*.json")):
        try:
            audits += _AUDITS.validate_python([read_json(path)])
        except (DamagedError, OSError, pydantic.ValidationError) as error:
            print(f"{path}: not taken ({str(error).splitlines()[0]})", file=sys.stderr)
    return audits


def cell_of_run(folder: Path) -> Cell:
    """Returns the record of a finished run: its results and its scores."""
    return with_scores(read_json(folder / "results.json"), folder)


def with_scores(results: dict[str, Any], folder: Path) -> Cell:
    """Returns the record of a run with these results in this folder."""
    kept = {name: value for name, value in results.items() if name != "prepared_path"}  # of one machine
    return kept | {"scores": _scores(folder / "scores")}


def merged(ours: Records, others: Iterable[tuple[str, Records]]) -> Records:
    """Returns our records with those of others behind them.

    A cell that several have done counts once, the first. Cells of one row must have one config, but for the seed.

    Args:
        ours: of this study.
        others: (where they are from, records).

    Raises:
        UserError: a cell or a row is there with two configs; it names the cell and the keys that differ.
    """
    found: dict[tuple, tuple[str, Cell]] = {}
    rows: dict[tuple, tuple[str, Cell]] = {}
    audits = {audit["row"]: audit for audit in ours.audits}
    for where, records in (("this study", ours), *others):
        for cell in records.cells:
            for known, key in ((found, cell_key(cell)), (rows, row_key(cell))):
                if key in known:
                    _check_same_config(known[key], (where, cell))
            found.setdefault(cell_key(cell), (where, cell))
            rows.setdefault(row_key(cell), (where, cell))
        for audit in records.audits:
            audits.setdefault(audit["row"], audit)
    return Records([cell for _, cell in found.values()], list(audits.values()))


def _check_same_config(one: tuple[str, Cell], other: tuple[str, Cell]) -> None:
    different = config_differences(one[1].get("config", {}), other[1].get("config", {}))
    if different:
        _, backbone, method, variant = row_key(other[1])
        seeds = f"seed {one[1]['seed']}" + (f" and {other[1]['seed']}" if one[1]["seed"] != other[1]["seed"] else "")
        raise UserError(
            f"{row_label(backbone, method, variant)}, {seeds}: two configs of one row, in {one[0]} and in {other[0]}: "
            f"{'; '.join(different[:3])}{' and more' if len(different) > 3 else ''}. Leave one of them out of "
            "--records, or give it a method.variant of its own"
        )


def config_differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Gives keys that decide the result and differ, as `section.key.

    One -> other`; a key of a later version: its default.
    """
    first, second = (_flat(to_dict(build(values, of_any_version=True))) for values in (one, other))
    return [
        f"{key}: {first.get(key)!r} -> {second.get(key)!r}"
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key) and not key.startswith(_NOT_COMPARED)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def factor_out(values: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Divides dicts into what all hold alike and the rest of each: `merge(shared, rest)` is the dict again."""
    shared: dict[str, Any] = {}
    rests: list[dict[str, Any]] = [dict(value) for value in values]
    if len(values) < 2:
        return shared, rests
    for key in values[0]:
        column = [value.get(key) for value in values]
        if not all(key in value for value in values):
            continue
        if all(isinstance(one, dict) for one in column):
            shared[key], inner = factor_out(column)  # pyright: ignore[reportArgumentType]
            for rest, one in zip(rests, inner, strict=True):
                rest[key] = one
                if not one:
                    del rest[key]
        elif all(one == column[0] for one in column):
            shared[key] = column[0]
            for rest in rests:
                del rest[key]
    return shared, rests


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list) else value


def _scores(folder: Path) -> dict[str, dict[str, Any]]:
    arrays = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
    few = sum(map(len, arrays.values())) <= _MAX_LOGITS
    return {name: _packed(array, few) for name, array in arrays.items()}


def _packed(array: np.ndarray, few: bool) -> dict[str, Any]:
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    entry: dict[str, Any] = {"rows": len(array), "sha256": hashlib.sha256(content).hexdigest()[:16]}
    if few:
        entry |= {"dtype": array.dtype.name, "logits": base64.b64encode(zlib.compress(content, 9)).decode()}
    return entry
