"""Export, apply and serve-check from the command line, with all that they read and write on a server that speaks S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.config import UserError
from mwuf_dist.data import remote
from mwuf_dist.serving.deltas.files import FOLDER
from mwuf_dist.serving.finished_run import open_run
from tests.s3_server import Faulty


def mwuf(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in arguments])
    return int(end.value.code or 0)


def test_an_export_by_uri_is_brought_up_to_date_and_checked_there_and_a_fault_leaves_it_whole(
    s3: tuple[Faulty, Any], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty, uri = s3
    with open_run(run_folder) as run:
        users, items = run.user_ids[:40].to_numpy(), run.item_ids.to_numpy()[-4:]
    rows = {
        "user_id": users,
        "item_id": np.resize(items, 40),
        "label": np.arange(40) % 2,
        "timestamp": [2 * 10**9] * 40,
    }
    pq.write_table(pa.table(rows), tmp_path / "day.parquet")
    remote.publish(tmp_path, uri("logs"), "--output")
    assert mwuf("warm", run_folder, "--interactions", uri("logs/day.parquet"), "--output", tmp_path / "day1") == 0
    remote.publish(tmp_path / "day1" / FOLDER, uri("deltas"), "--output")
    local = ["export", run_folder, "--old-items", "--context", "--output"]
    assert mwuf(*local, tmp_path / "here") == 0 and mwuf(*local, uri("export")) == 0
    said = capsys.readouterr().out
    assert f"s3://shop/{tmp_path.name}/export" in said and "endpoint_override" not in said
    assert mwuf("serve-check", uri("export"), "--run", run_folder, "--deltas", uri("deltas"), "--requests", 20) == 0
    assert "answers that are not of the one version they name: none" in capsys.readouterr().out

    # A server that stays broken: a message, and what is there is the export of before.
    faulty.faults += [("refuse", "PUT", "items.parquet"), ("refuse", "POST", "items.parquet")] * 1000
    assert mwuf("apply", uri("export"), uri("deltas"), "--output", uri("broken")) == 2
    faulty.faults.clear()
    assert "mwuf: " in capsys.readouterr().err
    with pytest.raises(UserError):
        remote.local_path(uri("broken"), "EXPORT", whole=True)

    assert mwuf("apply", tmp_path / "here", tmp_path / "day1" / FOLDER) == 0
    assert mwuf("apply", uri("export"), uri("deltas")) == 0  # in its place
    assert f"s3://shop/{tmp_path.name}/export: state" in capsys.readouterr().out
    there = remote.local_path(uri("export"), "EXPORT", whole=True)
    for name in ("items.parquet", "users.parquet"):
        assert (there / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
    about = [json.loads((folder / "export.json").read_text()) for folder in (there, tmp_path / "here")]
    assert about[0]["state"] == about[1]["state"] and about[0]["state"]["number"] == 1
    # The same delta again is refused by name, and the export stays.
    assert mwuf("apply", uri("export"), uri("deltas")) == 2
    assert "nothing has been applied" in capsys.readouterr().err
