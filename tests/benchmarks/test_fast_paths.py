"""benchmarks/fast_paths: every stage is timed without each path, and every line of the loops is counted once."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from mwuf_kernels import native

from benchmarks import fast_paths
from benchmarks.contest import Step
from benchmarks.record import ROOT, interleaved
from benchmarks.train_step import STAGES
from tests.tiny import tiny
from tools.count_lines import lines_of, lines_of_code

# A function, by its file and line, or a loop of the library.
Called = tuple[str, int] | str
# What tells that a path is used whose function does the plain one, too.
LOOPS: dict[str, set[Called]] = {"distinct_ids": {"mwuf_distinct"}}
CODE = {path.name: path.code for path in fast_paths.PATHS} | {"shared": fast_paths.SHARED}


@pytest.mark.parametrize("backbone", [None, *(path.backbone for path in fast_paths.PATHS if path.backbone)])
def test_every_stage_is_timed_without_each_path_and_all_are_in_place_again(
    backbone: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [path for path in fast_paths.PATHS if path.backbone == backbone]
    before = [getattr(owner, name) for path in paths for owner, name, _ in path.plain]
    used: dict[str, set[Called]] = {}

    def watched(steps: dict[str, Step], *arguments: Any) -> dict[str, list[float]]:
        spied = {name: partial(watch, step, used.setdefault(name, set())) for name, step in steps.items()}
        return interleaved(spied, *arguments)

    monkeypatch.setattr(fast_paths, "interleaved", watched)
    drawn = {} if backbone in ("encoder", "din", "gru4rec") else {"batch_norm": False, "dropout": 0.2}
    config = tiny(backbone={"name": backbone or "deepfm"} | drawn, method={"name": "mwuf"}, runtime={"threads": 1})
    rows = fast_paths.in_order(fast_paths.measure(config, paths, num_steps=1, rounds=2))
    names = [path.name for path in paths] + (["all"] if len(paths) > 1 else [])
    assert [row.name for row in rows] == [name for name in names for _ in STAGES] + ["shared"]
    assert all(row.ratio(row.alternative) for row in rows[:-1])
    assert before == [getattr(owner, name) for path in paths for owner, name, _ in path.plain]
    for path in paths:
        own: set[Called] = {(str(ROOT / file), line) for one in path.code for file, line in fast_paths.places(one)}
        assert (used["fast"] - used[path.name]) & (own | LOOPS.get(path.name, set())), f"{path.name} stays"


def watch(step: Step, used: set[Called]) -> None:
    """Runs a step and adds the functions that it calls, and the loops that `native.call` does."""

    def called(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            is_loop = frame.f_code is native.call.__code__
            used.add(frame.f_locals["name"] if is_loop else (frame.f_code.co_filename, frame.f_code.co_firstlineno))

    sys.setprofile(called)
    try:
        step()
    finally:
        sys.setprofile(None)


def test_every_line_of_the_loops_is_counted_once() -> None:
    folder = ROOT / "kernels/mwuf_kernels/cpu"
    cpp = sum(len(lines_of_code(path)) for path in folder.iterdir())
    assert sum(fast_paths.lines(code)["cpp"] for code in CODE.values()) == cpp
    assert all(fast_paths.lines(code)["python"] for code in CODE.values())
    together = tuple(one for code in CODE.values() for one in code)
    python = sum(fast_paths.lines(code)["python"] for code in CODE.values())
    assert fast_paths.lines(together) == {"python": python, "cpp": cpp}


def test_comments_and_docstrings_are_no_lines_and_a_definition_has_its_own(tmp_path: Path) -> None:
    python, cpp = tmp_path / "a.py", tmp_path / "a.cpp"
    python.write_text(
        '"""What."""\n\nx = 1  # one\n\n\nclass A:\n    @staticmethod\n    def f():\n        # two\n        return 2\n'
    )
    assert lines_of_code(python) == {3, 6, 7, 8, 10}
    assert lines_of(python, "A.f") == {7, 8, 10} and lines_of(python, "x") == {3}
    cpp.write_text(
        "// what\nlong a;\n\nvoid f(long n) {\n    // one\n    n++;  // two\n}\n\nvoid g() {\n    f(1);\n}\n"
    )
    assert lines_of_code(cpp) == {2, 4, 6, 7, 9, 10, 11}
    assert lines_of(cpp, "f") == {4, 6, 7}
    for path, name in ((python, "A.g"), (cpp, "a")):
        with pytest.raises(ValueError, match=f"defines no {name}"):
            lines_of(path, name)
