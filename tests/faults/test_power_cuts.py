"""A power cut at any write of a command: the same command ends with the same result."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.power_cuts import COMMANDS, begin, record_states, recorded, tried
from mwuf_dist import files

# Of each command's states, so many are tried every day; `python -m benchmarks.power_cuts` tries hundreds.
SAMPLE = 2


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("here") / "begun"
    begin(base)
    return base


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=pytest.mark.slow) if one == "compare" else one for one in COMMANDS]
)
def test_after_a_power_cut_the_same_command_ends_with_the_same_result(
    command: str, begun: Path, tmp_path: Path
) -> None:
    states, expected = record_states(command, begun, tmp_path)
    chosen = states[:: max(1, len(states) // SAMPLE)]
    wrong = {name: what for name, state in chosen if (what := tried(command, state, expected, tmp_path))}
    assert not wrong


def test_a_file_that_is_not_synced_before_it_is_renamed_is_seen(tmp_path: Path) -> None:
    with recorded(tmp_path) as recording:
        (tmp_path / "beside").write_text("all of it")
        (tmp_path / "beside").rename(tmp_path / "file")
    assert {"file": b""} in [state for _, state in recording.states]
    with recorded(tmp_path) as recording:
        files.write_atomically(tmp_path / "file", "new")
    found = {state.get("file") for _, state in recording.states}
    assert found == {b"all of it", b"new"}
