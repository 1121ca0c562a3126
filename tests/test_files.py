"""Files that a later command believes: whole, durable, checked."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist import files
from mwuf_dist.files import DamagedError


def test_json_comes_back_without_its_checksum_and_in_any_layout(tmp_path: Path) -> None:
    values = {"b": [1, 2.5, None, "ü"], "a": {"x": True}}
    files.write_json(tmp_path / "file.json", values)
    assert files.read_json(tmp_path / "file.json") == values
    stored = json.loads((tmp_path / "file.json").read_text())
    (tmp_path / "file.json").write_text(json.dumps(stored, sort_keys=True, separators=(",", ":")))
    assert files.read_json(tmp_path / "file.json") == values


def test_every_flipped_bit_of_a_json_file_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path, values = tmp_path / "file.json", {"auc": 0.626, "rows": 854530, "name": "mwuf", "list": [1, 2, 3]}
    files.write_json(path, values)
    whole = path.read_bytes()
    num_noticed = 0
    for place in range(len(whole)):
        for bit in range(8):
            spoilt = bytearray(whole)
            spoilt[place] ^= 1 << bit
            path.write_bytes(spoilt)
            try:
                found = files.read_json(path)
            except DamagedError:
                num_noticed += 1
                continue
            # The name of the checksum itself may have changed: then it is one key more, which no reader asks for.
            assert {key: found.get(key) for key in values} == values, bytes(spoilt)
    assert num_noticed > 7 * len(whole)


@pytest.mark.parametrize(
    "content",
    [b"", b"   \n", b"[]", b"3", b"null", b'{"a": 1', b"\xff\xfe", b"\0" * 50, b"[" * 100_000, b'{"a": ' + b"1" * 5000],
)
def test_what_is_no_table_of_keys_is_damaged_and_nothing_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"^file\.json "):
        files.read_json(tmp_path / "file.json")


def test_a_file_of_a_version_without_checksums_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "file.json") == {"a": 1}


def test_lines_that_are_whole_are_told_from_the_others(tmp_path: Path) -> None:
    lines = [json.dumps(files.with_checksum({"step": step})) for step in range(4)]
    spoilt = [lines[0], lines[1].replace("1", "7", 1), lines[2], lines[3][:10]]
    (tmp_path / "lines").write_text("\n".join(spoilt))
    assert files.whole_lines(tmp_path / "lines") == ([lines[0], lines[2]], 2)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    files.write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "file").read_text() == "new"
    (tmp_path / "out").symlink_to(tmp_path / "far")
    with files.appearing(tmp_path / "out", "") as beside:
        (beside / "whole").touch()
    assert (tmp_path / "out").is_symlink() and [path.name for path in (tmp_path / "far").iterdir()] == ["whole"]


def _fail_in(folder: Path, error: Exception) -> None:
    with files.appearing(folder, "") as beside:
        assert folder.exists()
        (beside / "new").touch()
        raise error


def _no_exchange(one: Path, other: Path) -> bool:
    return False


@pytest.mark.parametrize("exchange", [files._exchange, _no_exchange])
def test_a_folder_is_replaced_as_a_whole_or_stays(
    exchange: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", exchange)
    folder = tmp_path / "out"
    for content in ("first", "second"):
        with files.appearing(folder, "") as beside:
            (beside / content).touch()
        assert [path.name for path in tmp_path.rglob("*")] == ["out", content]
    with pytest.raises(OSError, match="No space"):
        _fail_in(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "second"]


def test_a_folder_that_was_moved_aside_is_put_back_by_the_next_command(tmp_path: Path) -> None:
    (tmp_path / ".out.was").mkdir()
    (tmp_path / ".out.was" / "old").touch()
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(KeyError):
        _fail_in(tmp_path / "out", KeyError())
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_text_whose_comments_tell_is_known_as_written() -> None:
    text = files.with_text_checksum('a = 1\nname = "x"\n')
    assert files.is_as_written(text) and files.is_as_written("a = 1\n")
    spoilt = (text.replace("1", "2", 1), text[:-3], "", text.replace("\n", " "))
    assert not any(files.is_as_written(one) for one in spoilt)
