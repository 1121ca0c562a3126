"""The kernels' benchmark: what it writes, and that it times nothing that is wrong."""

import json

import pytest
import torch

from benchmarks import kernels

TINY = {
    "warm_embedding": {"batch": 30, "rows": 20, "dim": 5, "dtype": "float32"},
    "meta_networks": {"items": 20, "dim": 5, "inputs": (4, 3), "hidden": 6, "dtype": "float32"},
    "bulk_warm": {"items": 20, "dim": 5, "inputs": (4, 3), "hidden": 6, "dtype": "float32"},
    "user_mean": {"items": 9, "users": 3, "rows": 20, "dim": 5, "dtype": "float32"},
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels, "copy_bandwidth", lambda *_: 1e10)
    monkeypatch.setattr(kernels, "time_all", lambda ways, *_, real=kernels.time_all: real(ways, "cpu", seconds=0.01))
    monkeypatch.setattr(kernels, "cases_of", lambda *_: list(TINY.items()))


def run(path):
    status = kernels.main(["--output", str(path)])
    return status, json.loads(path.read_text(encoding="utf-8"))


def op(row):
    return row["name"].partition(",")[0]


def test_every_op_is_measured_here_and_shown_as_not_measured_on_a_gpu(tiny, tmp_path, capsys):
    status, result = run(tmp_path / "out.json")
    here, gpu = ([r for r in result["rows"] if r["config"]["device"] == device] for device in ("cpu", "cuda"))
    assert status == 0 and not result["config"]["wrong"]
    assert {op(row) for row in here} == set(TINY) == {op(row) for row in gpu}
    assert all(row["ours"]["p50"] > 0 and row["more"]["others_us"]["eager"] > 0 for row in here)
    assert all(row["ours"] is None for row in gpu)
    assert capsys.readouterr().out.count("not measured") == len(gpu)


def test_the_way_of_a_gpu_measures_every_part_and_names_the_best_alternative(monkeypatch):
    """On tensors of the CPU, with a replay that calls the function again and a compiler that leaves it as it is."""
    monkeypatch.setattr(
        kernels, "time_all", lambda ways, *_: {name: [_called(way) + 2.0] for name, way in ways.items()}
    )
    monkeypatch.setattr(kernels, "_graph_of", lambda function: function)
    monkeypatch.setattr(kernels, "SMALL_BATCH", 30)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    parts = {}
    for name, config in TINY.items():
        rows = kernels.measure(name, config, "cuda", 1e10, place="cpu")
        parts[name] = [row.name.split(", ")[1:-1] for row in rows]
        assert all(row.name.endswith("cuda") and row.more["others_us"].keys() == {"eager", "compile"} for row in rows)
        limits = {row.limit.name for row in rows if "CUDA graph" in row.name}
        assert limits <= {"empty"}
    assert parts["warm_embedding"] == [["forward"], ["forward", "CUDA graph"], ["backward"]]
    assert parts["meta_networks"] == [["forward"], ["backward"]] and parts["bulk_warm"] == [["forward"]]


def _called(way):
    way()
    return 0.0


def test_a_case_that_fails_is_named_and_costs_the_others_nothing(tiny, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of shared memory")

    monkeypatch.setitem(kernels.OPS, "user_mean", fails)
    status, result = run(tmp_path / "out.json")
    assert status == 1 and result["config"]["wrong"][0].endswith("RuntimeError: out of shared memory")
    assert {op(row) for row in result["rows"] if row["ours"]} == set(TINY) - {"user_mean"}


def test_every_op_comes_before_the_second_case_of_any_and_a_gpus_tables_outgrow_its_cache():
    cases = kernels.cases_of("cuda", 50 << 20)
    turns = kernels.in_turn(cases)
    assert sorted(map(str, turns)) == sorted(map(str, cases))
    assert {name for name, _ in turns[: len(TINY)]} == set(TINY)
    tables = [c for name, c in cases if name == "warm_embedding"]
    assert all(c["rows"] * c["dim"] * (4 if c["dtype"] == "float32" else 2) >= 4 * (50 << 20) for c in tables)
    assert {16, 64, 128} == {c["dim"] for c in tables} and {4096, 1_048_576} <= {c["batch"] for c in tables}


def test_a_wrong_result_is_named_and_not_timed(tiny, tmp_path, monkeypatch):
    def wrong(*_):
        return kernels.Problem([torch.ones(3)], lambda x: x + 1, lambda x: x, (0, 0))

    monkeypatch.setitem(kernels.OPS, "user_mean", wrong)
    status, result = run(tmp_path / "out.json")
    assert status == 1 and len(result["config"]["wrong"]) == 1 and "user_mean" in result["config"]["wrong"][0]
    assert not any(row["ours"] for row in result["rows"] if op(row) == "user_mean")
