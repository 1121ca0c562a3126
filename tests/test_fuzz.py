"""Text of any kind, from a seed: whatever is wrong with it, the user gets a message and never a traceback.

`MWUF_FUZZ_INPUTS` says how many inputs of each kind are tried.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.cli import main
from mwuf_dist.config import UserError, build, read_toml, to_dict, to_toml, without_studies
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.studies import compare, tune
from mwuf_dist.studies.records import read_records
from mwuf_dist.training.folder import check_folder
from tests.tiny import tiny

NUM_INPUTS = int(os.environ.get("MWUF_FUZZ_INPUTS", "100"))
HOSTILE = [
    "", "\0", "~nosuchuser", "../../x", "\x1b[2J", "9" * 5000, "1e400", "nan", "-1", "0", str(1 << 63), "[" * 3000,
    "1979-05-27", "07:32:00", "true", "[[1]]", "{a=1}", "'\n[method]\nname = \"evil:X\"\n'", "\ud800", "ü" * 300, "inf",
]  # fmt: skip


def _mutated(draw: random.Random, text: str) -> str:
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(text) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            text = text[:place] + draw.choice(HOSTILE) + text[place:]
        elif kind == 1:
            text = text[:place] + text[place + draw.randint(1, 40) :]
        elif kind == 2:
            text = text[:place] + draw.choice(string.printable) + text[place + 1 :]
        elif kind == 3:  # a value of a line
            lines = text.split("\n")
            number = draw.randrange(len(lines))
            head, sign, _ = lines[number].partition("=" if "=" in lines[number] else ":")
            lines[number] = head + sign + " " + draw.choice(HOSTILE)
            text = "\n".join(lines)
        else:
            text = text[:place] + text[draw.randrange(len(text) + 1) :][:60] + text[place:]
    return text


def _values(draw: random.Random) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(HOSTILE),
        lambda: draw.choice([None, True, -1, 0, 9.0, 1e308, 10**30, [], {}, [[]], {"a": []}]),
        lambda: [_values(draw)],
    ]
    return draw.choice(kinds)()


def _changed_json(draw: random.Random, values: Any) -> Any:
    """The values with one of them replaced, anywhere."""
    values = json.loads(json.dumps(values))
    place = values
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place)) if isinstance(place, list) else []
        if not keys:
            return values
        key = draw.choice(list(keys))
        if draw.random() < 0.4 or not isinstance(place[key], dict | list):
            if isinstance(place, dict) and draw.random() < 0.3:
                del place[key]
            else:
                place[key] = _values(draw)
            return values
        place = place[key]


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode(errors="surrogatepass"))


def test_toml(tmp_path: Path) -> None:
    draw, path = random.Random(1), tmp_path / "config.toml"
    text = to_toml(tiny()) + '\n[study]\nseeds = 2\n[[study.runs]]\nmethod.name = "base"\n[[tune.settings]]\nseed = 1\n'
    num_refused = 0
    for _ in range(NUM_INPUTS):
        _write(path, _mutated(draw, text))
        try:
            values = read_toml(path)
            build(without_studies(values), str(path))
            study = compare.read_study(values, str(path))
            compare.run_configs(values, study, str(path), {})
            tune.read_tune(values, str(path))
        except UserError:
            num_refused += 1
    assert num_refused > NUM_INPUTS // 3


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.toml").write_text(to_toml(tiny()))
    keys = [f"--{section}.{key}" for section, keys in to_dict(tiny()).items() if isinstance(keys, dict) for key in keys]
    for _ in range(NUM_INPUTS // 4):
        command = draw.choice(["run", "compare", "tune", "prepare", "plan", "export", "warm", "explain", "nothing"])
        words = [draw.choice(["good.toml", "missing.toml", *HOSTILE])]
        words += [draw.choice([*keys, "--output", "--seed", *HOSTILE]) for _ in range(draw.randint(1, 3))]
        words += ["--no-such-option"]  # so that nothing is ever begun
        with pytest.raises(SystemExit) as end:
            main([command, *words])
        assert end.value.code in (0, 2), (command, words)
    assert "Traceback" not in capsys.readouterr().err


def _cell() -> dict[str, Any]:
    phase = {"auc_next": 0.6, "auc_test": 0.7, "logloss_test": 0.5}
    return {
        "dataset": "synthetic", "backbone": "deepfm", "method": "mwuf", "seed": 0, "config": to_dict(tiny()),
        "phases": {"cold": phase, "warm-a": phase}, "stages": {"pretrain": {"samples": 9, "seconds": 1.5}},
    }  # fmt: skip


def test_records(tmp_path: Path) -> None:
    draw, path = random.Random(3), tmp_path / "records.json"
    audit = {"row": "deepfm / mwuf", "passed": True, "num_scores": 3, "num_labels": 2, "changed": {}}
    values = {"schema": 1, "shared": {}, "audits": [audit], "cells": [_cell()]}
    path.write_text(json.dumps(values))
    assert read_records(path).cells == [_cell()]
    for number in range(NUM_INPUTS):
        text = json.dumps(_changed_json(draw, values))
        _write(path, _mutated(draw, text) if number % 3 == 0 else text)
        try:
            records = read_records(path)
        except UserError:
            continue
        for cell in records.cells:
            assert all(0 <= one["auc_next"] <= 1 for one in cell["phases"].values() if one.get("auc_next") is not None)


@pytest.mark.parametrize("auc", [9, -0.1, 1.0001, float("nan"), "0.7"])
def test_an_auc_that_none_can_be_is_refused_by_name(auc: Any, tmp_path: Path) -> None:
    cell = _cell()
    cell["phases"]["cold"]["auc_next"] = auc
    (tmp_path / "records.json").write_text(json.dumps({"schema": 1, "shared": {}, "audits": [], "cells": [cell]}))
    with pytest.raises(UserError, match=r"auc_next"):
        read_records(tmp_path)


def test_run_folders(tmp_path: Path) -> None:
    draw = random.Random(4)
    results = _cell() | {"schema": 1, "versions": {"mwuf_dist": "0.1.0"}, "split": {}, "config_hash": "0" * 12}
    for number in range(NUM_INPUTS):
        folder = tmp_path / "run"
        (folder / "checkpoints" / "warm_up-4-0-00000000").mkdir(parents=True)
        _write(folder / "config.toml", _mutated(draw, to_toml(tiny())) if number % 2 else to_toml(tiny()))
        _write(folder / "results.json", _mutated(draw, json.dumps(_changed_json(draw, results))))
        _write(folder / "checkpoints" / "LATEST", draw.choice(HOSTILE))
        _write(folder / "checkpoints" / "warm_up-4-0-00000000" / "meta.json", _mutated(draw, json.dumps(results)))
        for read in (read_run, lambda folder: check_folder(tiny(), folder)):
            try:
                read(folder)
            except UserError:
                continue
        shutil.rmtree(folder)
