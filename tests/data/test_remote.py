"""Logs, prepared data and exports by URI, from a server that speaks S3 and that fails as servers do."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError
from mwuf_dist.data import remote
from mwuf_dist.data.prepare import prepare
from mwuf_dist.data.readers import log_files
from tests.s3_server import Faulty
from tests.tiny import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "logs"
    (made / "day=1").mkdir(parents=True)
    pq.write_table(pa.table({"user_id": range(1000)}), made / "day=1" / "a.parquet")
    (made / "b.csv").write_text("user_id,item_id\n1,2\n")
    return made


def content(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: one for name, one in files.items() if name != remote.COMPLETE}


def reads(faulty: Faulty, word: str) -> int:
    return sum(method == "GET" and word in path for method, path in faulty.seen)


def test_a_folder_comes_back_as_it_was_and_what_has_not_changed_is_not_read_again(
    s3: tuple[Faulty, Any], folder: Path
) -> None:
    faulty, uri = s3
    remote.publish(folder, uri("logs"), "--output")
    copy = remote.local_path(uri("logs"), "LOGS", whole=True)
    assert content(copy) == content(folder) and copy.name == "logs"
    faulty.seen.clear()
    (folder / "b.csv").write_text("user_id,item_id\n1,2\n3,4\n")
    (folder / "day=1" / "a.parquet").rename(folder / "c.parquet")
    remote.publish(folder, uri("logs"), "--output")
    faulty.seen.clear()
    assert content(remote.local_path(uri("logs"), "LOGS")) == content(folder)
    assert reads(faulty, "b.csv") == 1 and reads(faulty, "a.parquet") == 0
    faulty.seen.clear()
    # A `Path` of it, as a command line makes one, is the same URI.
    assert content(remote.local_path(Path(uri("logs")), "LOGS")) == content(folder)
    assert reads(faulty, "b.csv") == 0


def test_logs_are_found_by_uri_as_by_path(s3: tuple[Faulty, Any], folder: Path) -> None:
    _, uri = s3
    remote.publish(folder, uri("logs"), "--output")
    found = log_files.find(uri("logs"), "data.logs.interactions")
    assert [path.name for path in found.files] == [path.name for path in log_files.find(str(folder), "LOGS").files]
    one = log_files.find(uri("logs/b.csv"), "data.logs.interactions")
    assert one.files[0].read_bytes() == (folder / "b.csv").read_bytes() and one.files[0].name == "b.csv"
    with pytest.raises(UserError, match=r"there is nothing") as error:
        log_files.find(uri("other"), "data.logs.interactions")
    assert "endpoint_override" not in str(error.value)
    with pytest.raises(UserError, match="is no URI"):
        log_files.find(uri("a[b"), "data.logs.interactions")
    assert log_files.find(f"file://{folder}", "LOGS").files == log_files.find(str(folder), "LOGS").files


@pytest.mark.parametrize("kind", ["error", "cut", "slow"])
def test_a_fault_of_a_moment_changes_nothing(kind: str, s3: tuple[Faulty, Any], folder: Path) -> None:
    faulty, uri = s3
    faulty.faults = [] if kind == "cut" else [(kind, "PUT", "b.csv")]
    remote.publish(folder, uri("logs"), "--output")
    faulty.faults += [(kind, "GET", "a.parquet")]
    assert content(remote.local_path(uri("logs"), "LOGS", whole=True)) == content(folder)
    assert not faulty.faults, "every fault has hit"


def test_a_server_that_stays_broken_is_a_message_and_the_copy_stays_whole(s3: tuple[Faulty, Any], folder: Path) -> None:
    faulty, uri = s3
    remote.publish(folder, uri("logs"), "--output")
    before = content(remote.local_path(uri("logs"), "LOGS"))
    (folder / "b.csv").write_text("user_id,item_id\n5,6\n7,8\n")
    remote.publish(folder, uri("logs"), "--output")
    faulty.faults = [("cut", "GET", "b.csv"), ("refuse", "GET", "b.csv")] * 100
    with pytest.raises(UserError, match=r"LOGS = .*cannot be read \(b.csv\).*run the same command again"):
        remote.local_path(uri("logs"), "LOGS")
    copy = remote.copy_place(uri("logs")) / "logs"
    assert content(copy) == before and not list(copy.rglob("*.part"))
    faulty.faults.clear()
    assert content(remote.local_path(uri("logs"), "LOGS")) == content(folder)


def test_a_folder_that_was_written_half_is_not_believed(s3: tuple[Faulty, Any], folder: Path) -> None:
    faulty, uri = s3
    remote.publish(folder, uri("export"), "--output")
    (folder / "b.csv").write_text("user_id,item_id\n9,9\n")
    faulty.faults = [("refuse", "PUT", "day=1")] * 100
    with pytest.raises(UserError, match="cannot be written"):
        remote.publish(folder, uri("export"), "--output")
    faulty.faults.clear()
    assert not remote.is_complete(uri("export"), "EXPORT")
    with pytest.raises(UserError, match="is not whole"):
        remote.local_path(uri("export"), "EXPORT", whole=True)
    remote.publish(folder, uri("export"), "--output")  # the same command again
    assert content(remote.local_path(uri("export"), "EXPORT", whole=True)) == content(folder)


def test_a_folder_of_somebody_else_is_not_written_over(s3: tuple[Faulty, Any], folder: Path, tmp_path: Path) -> None:
    _, uri = s3
    remote.publish(folder, uri("theirs"), "--output")
    system, path = remote.fs.FileSystem.from_uri(uri(f"theirs/{remote.COMPLETE}"))
    system.delete_file(path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "items.parquet").write_bytes(b"items")
    with pytest.raises(UserError, match="not ours"):
        remote.publish(tmp_path / "export", uri("theirs"), "--output")
    with pytest.raises(UserError, match="_complete.json is not as it was written"):
        remote.local_path(uri("theirs"), "EXPORT", whole=True)


def test_prepared_data_by_uri_are_made_once_for_every_machine(
    s3: tuple[Faulty, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uri = s3
    config = dataclasses.replace(tiny().data, prepared_dir=uri("prepared"))
    first = prepare(config)
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "another-machine"))
    monkeypatch.setattr(sys.modules[prepare.__module__], "_build", None)  # whoever prepared again would call it
    second = prepare(config)
    assert second.path != first.path and second.checksum == first.checksum
    assert content(second.path) == content(first.path)
