"""Text of any kind, from a seed: whatever is wrong with it, the user gets a message and never a traceback.

`python -m benchmarks.fuzz --inputs 20000` tries more of the same inputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz import KINDS, cell, fuzz
from mwuf_dist.config import UserError
from mwuf_dist.studies.records import read_records

NUM_INPUTS = {"command": 25, "init_lines": 25}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_are_wrong_are_taken_or_refused_with_a_message(kind: str) -> None:
    num = NUM_INPUTS.get(kind, 60)
    found = fuzz(kind, 0, num)
    assert not found["faults"]
    assert found["refused"] > num // 5 and found["taken"] + found["refused"] == num


def test_records_that_nothing_was_done_to_are_taken(tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text(json.dumps({"schema": 1, "shared": {}, "audits": [], "cells": [cell()]}))
    assert read_records(tmp_path / "records.json").cells == [cell()]


@pytest.mark.parametrize("auc", [9, -0.1, 1.0001, float("nan"), "0.7"])
def test_an_auc_that_none_can_be_is_refused_by_name(auc: Any, tmp_path: Path) -> None:
    one = cell()
    one["phases"]["cold"]["auc_next"] = auc
    (tmp_path / "records.json").write_text(json.dumps({"schema": 1, "shared": {}, "audits": [], "cells": [one]}))
    with pytest.raises(UserError, match=r"auc_next"):
        read_records(tmp_path)
