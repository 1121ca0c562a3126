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


def test_every_op_is_measured_here_and_shown_as_not_measured_on_a_gpu(tiny, tmp_path, capsys):
    status, result = run(tmp_path / "out.json")
    here, gpu = ([r for r in result["records"] if r["device"] == device] for device in ("cpu", "cuda"))
    assert status == 0 and not result["wrong"]
    assert {record["op"] for record in here} == set(TINY) == {record["op"] for record in gpu}
    assert all(record["us"]["ours"]["p50"] > 0 and record["us"]["eager"]["p50"] > 0 for record in here)
    assert all(record["us"] == {} and record["share_of_copy"] is None for record in gpu)
    assert capsys.readouterr().out.count("not measured") == len(gpu)


def test_a_wrong_result_is_named_and_not_timed(tiny, tmp_path, monkeypatch):
    def wrong(*_):
        return kernels.Problem([torch.ones(3)], lambda x: x + 1, lambda x: x, (0, 0))

    monkeypatch.setitem(kernels.OPS, "user_mean", wrong)
    status, result = run(tmp_path / "out.json")
    assert status == 1 and len(result["wrong"]) == 1 and "user_mean" in result["wrong"][0]
    assert not any(record["us"] for record in result["records"] if record["op"] == "user_mean")
