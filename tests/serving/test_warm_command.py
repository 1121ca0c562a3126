"""`mwuf warm` from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from mwuf_dist import cli
from mwuf_dist.serving.finished_run import open_run


def test_command_prints_the_proof_and_exits_as_all_commands_do(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with open_run(run_folder) as run:
        item = run.new_item_ids[0]
    logs = pa.table({"who": [1, 2, 10**7], "what": [item, 10**6, 10**6], "label": [1, 0, 1], "when": [10**9] * 3})
    pa_csv.write_csv(logs, tmp_path / "new.csv")
    arguments = [
        "warm",
        str(run_folder),
        "--interactions",
        str(tmp_path / "new.csv"),
        "--output",
        str(tmp_path / "run2"),
    ]
    for extra, code, text in (
        ([], 2, "no column 'user_id'"),
        (["--user", "who", "--item", "what", "--time", "when"], 0, "16,384 of 16,384 scores of old items"),
        (["--user", "who", "--item", "what", "--time", "when"], 0, "nothing to do"),
        (["--help"], 0, "mwuf warm runs/ml-1 --interactions"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, *extra])
        assert end.value.code == code
        printed = capsys.readouterr()
        assert text in printed.out + printed.err
