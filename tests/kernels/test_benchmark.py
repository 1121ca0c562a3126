"""The kernels' benchmark: what it writes, and that it times nothing that is wrong."""

import json

import pytest
import torch

from benchmarks import kernels

TINY = {
    "warm_embedding": {"batch": 30, "rows": 20, "dim": 5, "dtype": "float32", "order": "inside"},
    "meta_networks": {"items": 20, "dim": 5, "inputs": (4, 3), "hidden": 6, "dtype": "float32"},
    "bulk_warm": {"items": 20, "dim": 5, "inputs": (4, 3), "hidden": 6, "dtype": "float32"},
    "user_mean": {"items": 9, "users": 3, "rows": 20, "dim": 5, "dtype": "float32"},
    "add_users": {"items": 9, "rows": 20, "batch": 30, "dim": 5},
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


def test_a_wrong_result_is_named_and_not_timed(tiny, tmp_path, monkeypatch):
    def wrong(*_):
        return kernels.Problem([torch.ones(3)], lambda x: x + 1, lambda x: x, (0, 0))

    monkeypatch.setitem(kernels.OPS, "user_mean", wrong)
    status, result = run(tmp_path / "out.json")
    assert status == 1 and len(result["config"]["wrong"]) == 1 and "user_mean" in result["config"]["wrong"][0]
    assert not any(row["ours"] for row in result["rows"] if op(row) == "user_mean")
