"""Records keep what a cell has found, merge over machines, and refuse two configs under one name."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mwuf_dist.config import UserError, merge, to_dict
from mwuf_dist.evaluation.comparison import build_comparison
from mwuf_dist.studies.records import Records, factor_out, merged, read_records, with_scores, write_records
from tests.evaluation.results import make_result
from tests.tiny import tiny

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_VALUES = st.recursive(
    st.integers(0, 2) | st.text("ab", max_size=1) | st.lists(st.integers(0, 1), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
)
_DICTS = st.dictionaries(st.sampled_from("uvw"), _VALUES, max_size=3)


def cells(seeds: Any = range(3), **sections: Any) -> list[dict[str, Any]]:
    found = []
    for seed in seeds:
        for method in ("base", "mwuf"):
            config = to_dict(tiny(method={"name": method}, **sections))
            found.append(make_result("deepfm", method, seed, [0.61, 0.62 + seed / 997, 0.63, 0.64], config=config))
    return found


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*-records.json")), ids=lambda path: path.name)
def test_records_that_are_kept_can_be_read(path: Path) -> None:
    assert read_records(path).cells


@given(st.lists(_DICTS, max_size=4))
def test_what_is_factored_out_and_the_rest_make_the_whole_again(values: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(values)
    shared, rests = factor_out(values)
    assert [merge(shared, rest) for rest in rests] == before == values


def test_a_file_holds_all_that_a_comparison_needs_and_the_config_once(tmp_path: Path) -> None:
    records = Records(cells(), [{"row": "deepfm / base", "passed": True}])
    write_records(records, tmp_path / "records.json")
    text = (tmp_path / "records.json").read_text()
    assert text.count("fused_above_rows") == 1
    assert len(text) < 0.5 * len(json.dumps(records.cells))
    found = read_records(tmp_path / "records.json")
    assert found.audits == records.audits
    assert read_records(tmp_path).cells == found.cells
    ours, theirs = build_comparison(records.cells), build_comparison(found.cells)
    for row, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert row["config"] == other["config"]
        for phase, numbers in row["phases"].items():
            for scoring in ("next", "test"):
                mean = numbers[f"auc_{scoring}"]["mean"]
                assert other["phases"][phase][f"auc_{scoring}"]["mean"] == pytest.approx(mean, abs=1e-7)


@pytest.mark.parametrize("num", [10, 100_000])
def test_logits_stand_in_the_record_where_they_are_few(num: int, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=num).astype(np.float32)
    (tmp_path / "scores").mkdir()
    np.save(tmp_path / "scores" / "warm-a-test.npy", logits)
    cell = with_scores(cells()[0] | {"prepared_path": "/of/one/machine"}, tmp_path)
    assert "prepared_path" not in cell
    entry = json.loads(json.dumps(cell))["scores"]["warm-a-test"]
    assert entry["rows"] == num and len(entry["sha256"]) == 16
    if num > 10_000:
        assert "logits" not in entry
    else:
        found = np.frombuffer(zlib.decompress(base64.b64decode(entry["logits"])), dtype=entry["dtype"])
        assert np.array_equal(found, logits)


def test_records_of_two_machines_merge_and_a_cell_of_both_counts_once() -> None:
    ours, theirs = cells(range(3)), cells(range(2, 6))
    theirs[0]["phases"]["cold"]["auc_next"] += 1e-9  # another machine rounds otherwise
    found = merged(Records(ours), [("there", Records(theirs))]).cells
    assert [(cell["method"], cell["seed"]) for cell in found if cell["method"] == "mwuf"] == [
        ("mwuf", seed) for seed in range(6)
    ]
    assert found[:6] == ours


@pytest.mark.parametrize("seed", [0, 7])
def test_two_configs_under_one_name_are_an_error_that_names_cell_and_key(seed: int) -> None:
    theirs = cells([seed], warm_up={"learning_rate": 0.5})
    said = r"deepfm / base, seed 0( and 7)?: two configs.*this study.*in there: warm_up.learning_rate: 0.01 -> 0.5"
    with pytest.raises(UserError, match=said):
        merged(Records(cells([0])), [("there", Records(theirs))])


def test_what_decides_no_result_is_no_conflict_and_a_later_key_has_its_default() -> None:
    theirs = cells([1], runtime={"threads": 3}, checkpoint={"keep_last": 9})
    for cell in theirs:
        del cell["config"]["embedding"]["smooth_ordinal"]  # the record is older than the key
    assert len(merged(Records(cells([0])), [("there", Records(theirs))]).cells) == 4


@pytest.mark.parametrize("content", [None, "{}", "[]", "no json", '{"schema": 2}'])
def test_what_is_no_record_is_the_users_error(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"some.json: (no records there|records of schema 2)"):
        read_records(path)
