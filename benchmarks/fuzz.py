"""Gives every reader of the user's text inputs that are wrong in some way, and counts what is no message.

    python -m benchmarks.fuzz --inputs 20000

Kinds: TOML, command lines, raw lines of logs (read as `run` and as `init` do, and of MovieLens-1M), tables of vectors,
run folders and records. Each input is drawn from (seed, kind, number) alone, so that one can be made again. It
is taken, or refused with a `UserError` or exit code 2: anything else is a fault, and stands in the record.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import random
import shutil
import string
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import Figure, Record, Row, command_line
from mwuf_dist.config import UserError, build, read_toml, to_dict, to_toml, without_studies

HOSTILE = [
    "", "\0", "~nosuchuser", "../../x", "\x1b[2J", "9" * 5000, "1e400", "nan", "-1", "0", str(1 << 63), "[" * 3000,
    "1979-05-27", "07:32:00", "true", "[[1]]", "{a=1}", "'\n[method]\nname = \"evil:X\"\n'", "\ud800", "ü" * 300, "inf",
    "1e19", "-1e300", "1e-320", "\u2028", "\x7f", "$\\frac{$", "%s%n", "</script>",
]  # fmt: skip
VALUES: dict[str, Any] = {
    "data": {"name": "synthetic", "old_above": 60, "warm_rows": 8, "synthetic": {"num_rows": 20_000}},
    "backbone": {"name": "deepfm", "hidden": [16, 8]},
}
LOGS: dict[str, Any] = {
    "user": "user", "item": "item", "time": "time", "label": "label",
    "fields": [
        {"name": "kind", "side": "item"},
        {"name": "price", "side": "item", "kind": "numeric", "buckets": 4},
        {"name": "tags", "side": "item", "kind": "multi_valued"},
    ],
}  # fmt: skip
OPTIONS = {
    "run": ["--output", "--num-workers", "--launcher", "--ray-address", "--profile"],
    "compare": ["--output", "--parallel", "--seeds", "--first-seed", "--records"],
    "tune": ["--output", "--parallel", "--ray-address"],
    "prepare": ["--num-workers", "--launcher"],
    "plan": ["--world-size", "--device", "--rows", "--users", "--items"],
    "export": ["--output", "--format", "--old-items", "--catch-up", "--context", "--prepared"],
    "warm": ["--output", "--interactions", "--follow", "--until-idle", "--items", "--retire", "--retire-after-days",
             "--format", "--old-items", "--user", "--label", "--prepared"],
    "apply": ["--output", "--prepared"],
    "explain": ["--item", "--output", "--all"],
    "adopt": ["--item-table", "--model", "--logs", "--output", "--check", "--epochs", "--warm-rows", "--item-ids"],
    "init": ["--output", "--check", "--users", "--items", "--user", "--label-at-least", "--header", "--delimiter",
             "--quote", "--encoding", "--time-format", "--constant-share"],
    "vectors": ["--output", "--fields", "--item", "--size", "--like", "--header", "--delimiter", "--encoding"],
    "synthesize": ["--rows", "--output", "--seed"],
    "recommend": ["--minutes", "--methods", "--output", "--parallel"],
    "doctor": ["--x"],
    "nothing": [],
}  # fmt: skip


def mutated(draw: random.Random, text: str, most: int = 4) -> str:
    """The text with one to `most` places of it changed."""
    for _ in range(draw.randint(1, most)):
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
            sign = next((sign for sign in ("=", "::", ":", ",") if sign in lines[number]), ":")
            head, sign, _ = lines[number].partition(sign)
            lines[number] = head + sign + draw.choice(("", " ")) + draw.choice(HOSTILE)
            text = "\n".join(lines)
        else:
            text = text[:place] + text[draw.randrange(len(text) + 1) :][:60] + text[place:]
    return text


def _value(draw: random.Random) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(HOSTILE),
        lambda: draw.choice([None, True, -1, 0, 9.0, 1e308, 10**30, [], {}, [[]], {"a": []}]),
        lambda: [_value(draw)],
    ]
    return draw.choice(kinds)()


def changed_json(draw: random.Random, values: Any) -> Any:
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
                place[key] = _value(draw)
            return values
        place = place[key]


def write(path: Path, text: str) -> None:
    """Writes text, halves of characters too."""
    path.write_bytes(text.encode(errors="surrogatepass"))


@functools.cache
def _config_text() -> str:
    study = '\n[study]\nseeds = 2\n[[study.runs]]\nmethod.name = "base"\n[[tune.settings]]\nseed = 1\n'
    return to_toml(build(VALUES)) + study


def toml(draw: random.Random, folder: Path) -> None:
    """A config with sections of compare and tune."""
    from mwuf_dist.studies import compare, tune

    path = folder / "config.toml"
    write(path, mutated(draw, _config_text()))
    values = read_toml(path)
    build(without_studies(values), str(path))
    study = compare.read_study(values, str(path))
    compare.run_configs(values, study, str(path), {})
    tune.read_tune(values, str(path))


def value(draw: random.Random, folder: Path) -> None:
    """A config with one value replaced: most of them are TOML, and wrong in their type or size alone."""
    from mwuf_dist.data.split import SplitRule

    config = build(changed_json(draw, to_dict(build(VALUES))), str(folder))
    launched = draw.choice([*HOSTILE, "2021-03-04", "2021-03-04T05:06:07+09:00", "1e9"])
    SplitRule.of(dataclasses.replace(config.data, new_since=launched))


@functools.cache
def _keys() -> list[str]:
    sections = to_dict(build(VALUES)).items()
    return [f"--{name}.{key}" for name, keys in sections if isinstance(keys, dict) for key in keys]


def command(draw: random.Random, folder: Path) -> None:
    """A command line: words that fit and words that do not. Where something could begin, an option is no option."""
    from mwuf_dist.cli import main

    name = draw.choice(list(OPTIONS))
    write(folder / "good.toml", to_toml(build(VALUES)))
    write(folder / "bad.toml", mutated(draw, _config_text()))
    write(folder / "log.csv", mutated(draw, _log(draw)) if draw.random() < 0.5 else _log(draw))
    (folder / "run").mkdir()
    write(folder / "run" / "config.toml", mutated(draw, to_toml(build(VALUES))))
    files = ["good.toml", "bad.toml", "missing.toml", "run", "log.csv", *HOSTILE]
    words = [draw.choice(files)] if draw.random() < 0.9 else []
    for _ in range(draw.randint(0, 4)):
        option = draw.choice([*OPTIONS[name], *OPTIONS[name], *_keys(), draw.choice(HOSTILE)])
        words += [option, draw.choice(files)] if draw.random() < 0.8 else [option]
    could_begin = name in ("run", "compare", "tune", "recommend", "prepare", "plan", "synthesize", "doctor")
    code = _exit_code(main, [name, *words, *(["--no-such-option"] if could_begin else [])], folder)
    if code != 0:
        raise UserError("refused")


def _exit_code(main: Callable[[list[str]], None], words: list[str], folder: Path) -> int:
    before, said = os.getcwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(words)
    except SystemExit as end:
        if end.code not in (0, 2):
            raise AssertionError(f"exit code {end.code}: {words!r}: {said.getvalue()[-300:]}") from None
        if "Traceback" in said.getvalue():
            raise AssertionError(f"a traceback: {words!r}: {said.getvalue()[-300:]}") from None
        return int(end.code or 0)
    finally:
        os.chdir(before)
    raise AssertionError("main has returned")


def _log(draw: random.Random, num_rows: int = 40) -> str:
    kinds, prices, tags = ("a", "b", "ü"), ("1", "2.5", "", "1e3"), ("x", "x|y", "")
    rows = [
        f"u{draw.randrange(num_rows // 4)},i{draw.randrange(1 + draw.randrange(num_rows // 8))},"
        f"{1_600_000_000 + draw.randrange(10**6)},{draw.randrange(2)},"
        f"{draw.choice(kinds)},{draw.choice(prices)},{draw.choice(tags)}"
        for _ in range(num_rows)
    ]
    return "\n".join(["user,item,time,label,kind,price,tags", *rows, ""])


def log_lines(draw: random.Random, folder: Path) -> None:
    """Raw lines of one's own log, with a table of the items, as `run` reads them."""
    from mwuf_dist.config import DataConfig
    from mwuf_dist.data.sources import logs

    write(folder / "log.csv", mutated(draw, _log(draw), 2))
    options = {**LOGS, "interactions": str(folder / "log.csv")}
    if draw.random() < 0.3:
        lines = ["item,kind,price,tags", *(f"i{number},a,{number},x|y" for number in range(6)), ""]
        write(folder / "items.csv", mutated(draw, "\n".join(lines)))
        options["items"] = str(folder / "items.csv")
    if draw.random() < 0.3:
        options |= {"label": "", "negatives_per_positive": 1}
    if draw.random() < 0.5:
        options["drop_incomplete"] = True
    data: DataConfig = build({"data": {"name": "logs", "old_above": 6, "warm_rows": 1, "logs": options}}).data
    logs.load(data)


def init_lines(draw: random.Random, folder: Path) -> None:
    """The same lines, as `init` looks at them; what it proposes is a config."""
    from mwuf_dist.data.init_config.propose import propose
    from mwuf_dist.data.init_config.write_config import write_config

    write(folder / "log.csv", mutated(draw, _log(draw, 300), 2))
    write(folder / "proposed.toml", write_config(propose(str(folder / "log.csv"))))
    build(without_studies(read_toml(folder / "proposed.toml")))


def movielens_lines(draw: random.Random, folder: Path) -> None:
    """Lines of the three files of MovieLens-1M."""
    from mwuf_dist.data.sources import movielens

    users = "".join(f"{number}::{'FM'[number % 2]}::25::7::12345\n" for number in range(1, 9))
    movies = "".join(f"{number}::A Film, Part {number} (19{number + 70})::Drama|War\n" for number in range(1, 9))
    ratings = "".join(
        f"{draw.randrange(1, 9)}::{draw.randrange(1, 9)}::{draw.randrange(1, 6)}::{draw.randrange(10**9)}\n"
        for _ in range(20)
    )
    texts = {"users.dat": users, "movies.dat": movies, "ratings.dat": ratings}
    broken = draw.choice(list(texts))
    for name, text in texts.items():
        write(folder / name, mutated(draw, text) if name == broken else text)
    movielens.read_folder(folder)


def vectors(draw: random.Random, folder: Path) -> None:
    """A table of item vectors (data.item_vectors), of types and lengths that fit or not; and data.new_since."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mwuf_dist.data.readers.vectors import with_file
    from mwuf_dist.data.schema import RAW_ID, Entities

    num = draw.randrange(6)
    cells: list[Callable[[], Any]] = [
        lambda: [0.5, 1.0],
        lambda: None,
        lambda: [draw.choice([float("nan"), float("inf"), 1e308, 0.0]), 1.0],
        lambda: [1.0] * draw.randrange(4),
    ]
    table: dict[str, Any] = {"item_id": [draw.choice([f"i{row}", "", None, "i0"]) for row in range(num)]}
    columns = [draw.choice(cells)() if draw.random() < 0.3 else [0.5, 1.0] for _ in range(num)]
    table[draw.choice(["text", "item_id", "\x1b[2J", ""])] = columns if draw.random() < 0.8 else [1.0] * num
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowTypeError):  # no table
        pq.write_table(pa.table(table), folder / "vectors.parquet")
    if draw.random() < 0.2:
        write(folder / "vectors.parquet", mutated(draw, "PAR1 and no table"))
    if (folder / "vectors.parquet").exists():
        known = pa.table({RAW_ID: [f"i{row}" for row in range(4)]})
        with_file(str(folder / "vectors.parquet"), Entities(known, known, ())).check()


def cell() -> dict[str, Any]:
    """A cell of records.json."""
    phase = {"auc_next": 0.6, "auc_test": 0.7, "logloss_test": 0.5}
    return {
        "dataset": "synthetic", "backbone": "deepfm", "method": "mwuf", "seed": 0, "config": to_dict(build(VALUES)),
        "phases": {"cold": phase, "warm-a": phase}, "stages": {"pretrain": {"samples": 9, "seconds": 1.5}},
    }  # fmt: skip


def records(draw: random.Random, folder: Path) -> None:
    """A records.json; an AUC that is taken is one."""
    from mwuf_dist.studies.records import read_records

    audit = {"row": "deepfm / mwuf", "passed": True, "num_scores": 3, "num_labels": 2, "changed": {}}
    text = json.dumps(changed_json(draw, {"schema": 1, "shared": {}, "audits": [audit], "cells": [cell()]}))
    write(folder / "records.json", mutated(draw, text) if draw.random() < 0.3 else text)
    for one in read_records(folder / "records.json").cells:
        aucs = [phase["auc_next"] for phase in one["phases"].values() if phase.get("auc_next") is not None]
        assert all(0 <= auc <= 1 for auc in aucs), aucs


def run_folder(draw: random.Random, folder: Path) -> None:
    """A run's folder: config, results, and the files of a checkpoint."""
    from mwuf_dist.serving.run_files import read_run
    from mwuf_dist.training.folder import check_folder

    results = cell() | {"schema": 1, "versions": {"mwuf_dist": "0.1.0"}, "split": {}, "config_hash": "0" * 12}
    point = folder / "checkpoints" / "warm_up-4-0-00000000"
    point.mkdir(parents=True)
    text = to_toml(build(VALUES))
    write(folder / "config.toml", mutated(draw, text) if draw.random() < 0.5 else text)
    write(folder / "results.json", mutated(draw, json.dumps(changed_json(draw, results))))
    write(folder / "checkpoints" / "LATEST", draw.choice(HOSTILE))
    write(point / "meta.json", mutated(draw, json.dumps(results)))
    refused = None
    for read in (read_run, lambda folder: check_folder(build(VALUES), folder)):
        try:
            read(folder)
        except UserError as error:
            refused = error
    if refused is not None:
        raise refused


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    one.__name__: one
    for one in (toml, value, command, log_lines, init_lines, movielens_lines, vectors, records, run_folder)
}


def attempt(kind: str, seed: int, number: int) -> str:
    """Tries one input: `taken`, `refused`, or what is wrong."""
    draw = random.Random(f"{seed} {kind} {number}")
    folder = Path(tempfile.mkdtemp(prefix="mwuf-fuzz-"))
    try:
        KINDS[kind](draw, folder)
    except UserError:
        return "refused"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:300]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "taken"


def fuzz(kind: str, seed: int, num_inputs: int) -> dict[str, Any]:
    """Tries the first inputs of a kind; how many were taken and refused, and the faults by their number."""
    found = [attempt(kind, seed, number) for number in range(num_inputs)]
    faults = {number: one for number, one in enumerate(found) if one not in ("taken", "refused")}
    return {"taken": found.count("taken"), "refused": found.count("refused"), "faults": faults}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz.json"))
    options = parser.parse_args()
    importlib.import_module("mwuf_dist.evaluation.report")  # what is imported in the middle of an input is no fault
    # What an earlier call that was ended has found is taken.
    kept = options.output.with_suffix(".part.json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    done: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    rows = []
    for place, kind in enumerate(KINDS):
        num = options.inputs * (place + 1) // len(KINDS) - options.inputs * place // len(KINDS)
        if kind not in done:
            done[kind] = fuzz(kind, options.seed, num)
            kept.write_text(json.dumps(done))
        found = done[kind]
        print(f"{kind}: {found['taken']} taken, {found['refused']} refused, {len(found['faults'])} faults", flush=True)
        for number, fault in found["faults"].items():
            print(f"  {number}: {fault}", flush=True)
        faults = Figure.of("ours", [float(len(found["faults"]))])
        rows.append(Row(kind, "faults", False, faults, config={"inputs": num}, more=found))
    command = command_line("fuzz", sys.argv[1:])
    Record("Inputs that are neither taken nor refused", command, VALUES, rows, threads=1).write(options.output)
    sys.exit(1 if any(row.more["faults"] for row in rows) else 0)


if __name__ == "__main__":
    main()
