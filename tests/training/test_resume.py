"""A run that is stopped anywhere and run again computes, to the bit, what it would have computed at once."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from mwuf_dist.config import Config, UserError, config_hash
from mwuf_dist.files import read_json, write_json
from mwuf_dist.runtime import start
from mwuf_dist.training import run as run_module
from mwuf_dist.training.checkpoint.files import _IndexUnpickler, _read_index, load_tensors, read_meta
from mwuf_dist.training.checkpoint.save import Checkpointer, SavePolicy
from mwuf_dist.training.stages.meta_train import MetaTrain
from mwuf_dist.training.stages.pretrain import Pretrain
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.faults.ranks import forked
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parents[2]
SECTIONS: dict[str, Any] = {
    "backbone": {"hidden": [8, 8], "batch_norm": True, "dropout": 0.2},
    "pretrain": {"epochs": 2, "batch_size": 1024, "weight_decay": 1e-3},
    "meta_train": {"epochs": 2, "batch_size": 1024, "users_per_item": 10},
    "warm_up": {"batch_size": 512, "carry_over": True},
}
CONFIGS = {
    "adam": tiny(**SECTIONS),
    "rowwise_adagrad": tiny(**SECTIONS, embedding={"optimizer": "rowwise_adagrad", "rowwise_adagrad_lr": 0.05}),
    "two ranks": tiny(**SECTIONS, embedding={"optimizer": "rowwise_adagrad", "sharding": "row_wise"}),
    "auto": tiny(**SECTIONS | {"meta_train": SECTIONS["meta_train"] | {"epochs": "auto", "max_epochs": 4}}),
}


Outcome = tuple[dict[str, Any], dict[str, torch.Tensor], str]


def stop_and_resume(folder: Path, name: str) -> None:
    """What each of two ranks does: a whole run in `folder/whole`, and one in `folder/parts` that stops and goes on."""
    # One rank is late to each process group but the first: it must not be looked for where it was in the last one.
    run(CONFIGS[name], folder / "whole")
    time.sleep(int(os.environ["RANK"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavePolicy, "due", lambda self, step: step % 3 == 0)
        stop_at(patch, MetaTrain, "step", 17)
        with pytest.raises(Stop):
            run(CONFIGS[name], folder / "parts")
    time.sleep(1 - int(os.environ["RANK"]))
    assert not (folder / "parts" / "results.json").exists()
    run(CONFIGS[name], folder / "parts")


class Stop(Exception):
    """The power cut."""


def stop_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Makes the `call`-th call of a function raise `Stop` when it is done (0: before the first)."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls == call:
            raise Stop
        calls += 1
        return function(*args, **kwargs)

    patch.setattr(owner, name, counted)


def run(config: Config, folder: Path) -> dict[str, Any]:
    with start(config) as runtime:
        return run_module.run(config, folder, runtime)


def outcome(folder: Path) -> Outcome:
    """What must be the same: the numbers of results.json that are not times, every tensor, metrics.jsonl."""
    results = json.loads((folder / "results.json").read_text())
    samples = {stage: entry["samples"] for stage, entry in results["stages"].items() if stage != "prepare"}
    checkpoint = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text()
    dcp_to_torch_save(checkpoint, folder / "whole.pt")
    tensors = torch.load(folder / "whole.pt", weights_only=False)
    return {"phases": results["phases"], "samples": samples}, tensors, (folder / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    done: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in done:
            folder = tmp_path_factory.mktemp("uninterrupted") / "run"
            run(CONFIGS[name], folder)
            done[name] = outcome(folder)
        return done[name]

    return of


@pytest.mark.parametrize(
    ("name", "owner", "function", "call", "checkpoint"),
    [
        ("adam", Pretrain, "step", 4, "pretrain-0-0-00000003"),
        ("adam", Pretrain, "step", 17, "pretrain-0-1-00000003"),
        ("adam", MetaTrain, "step", 0, "meta_train-0-0-00000000"),  # between pretrain and meta_train
        ("adam", MetaTrain, "step", 17, "meta_train-1-1-00000003"),
        ("adam", WarmUp, "step", 0, "warm_up-1-0-00000000"),  # between the phases cold and warm-a
        ("adam", WarmUp, "step", 9, "warm_up-2-0-00000000"),
        ("adam", WarmUp, "score", 4, "warm_up-2-0-00000000"),  # warm-b is trained, not scored
        ("adam", run_module, "write_json", 0, "warm_up-4-0-00000000"),  # all is done but results.json
        ("rowwise_adagrad", Pretrain, "step", 17, "pretrain-0-1-00000003"),
        ("rowwise_adagrad", MetaTrain, "step", 17, "meta_train-1-1-00000003"),
        ("rowwise_adagrad", WarmUp, "score", 4, "warm_up-2-0-00000000"),
        ("auto", MetaTrain, "step", 17, "meta_train-1-1-00000003"),
        ("auto", MetaTrain, "_held_out_loss", 1, "meta_train-1-1-00000009"),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    name: str,
    owner: Any,
    function: str,
    call: int,
    checkpoint: str,
    uninterrupted: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavePolicy, "due", lambda self, step: step % 3 == 0)
        stop_at(patch, owner, function, call)
        with pytest.raises(Stop):
            run(CONFIGS[name], tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    capsys.readouterr()
    run(CONFIGS[name], tmp_path / "run")
    assert f"goes on from {checkpoint}\n" in capsys.readouterr().out
    assert_same(outcome(tmp_path / "run"), uninterrupted(name))


def assert_same(found: Outcome, expected: Outcome) -> None:
    (results, tensors, metrics), (expected_results, expected_tensors, expected_metrics) = found, expected
    assert results == expected_results
    assert metrics == expected_metrics
    assert tensors.keys() == expected_tensors.keys()
    for key, value in expected_tensors.items():
        assert torch.equal(tensors[key], value), key


@pytest.mark.dist
def test_two_ranks_that_are_stopped_go_on_to_the_same_bits(tmp_path: Path) -> None:
    with forked(stop_and_resume, (tmp_path, "two ranks"), tmp_path / "log", 2) as launch:
        assert launch.wait() == [0, 0], launch.said()
        assert "goes on from meta_train-1-1-00000003\n" in launch.said(0)
    assert_same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in pretrain, after a save."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavePolicy, "due", lambda self, step: step == 4)
        stop_at(patch, Pretrain, "step", 6)
        with pytest.raises(Stop):
            run(CONFIGS["adam"], folder)
    return folder


def truncate(checkpoint: Path) -> str:
    path = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])
    return rf"{path.name} has \d+ bytes instead of \d+: the checkpoint is damaged"


def remove_a_file(checkpoint: Path) -> str:
    path = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    path.unlink()
    return f"{path.name} is missing: the checkpoint is damaged"


def cut_meta(checkpoint: Path) -> str:
    path = checkpoint / "meta.json"
    path.write_text(path.read_text()[:40])
    return "meta.json cannot be read"


def remove_it(checkpoint: Path) -> str:
    shutil.rmtree(checkpoint)
    return "meta.json cannot be read"


def flip_a_bit(checkpoint: Path) -> str:
    path = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"{path.name} is not what was saved"


def make_it_of_another_version(checkpoint: Path) -> str:
    path = checkpoint / "meta.json"
    meta = read_json(path)
    major, minor, _ = meta["versions"]["torch"].split(".", 2)
    write_json(path, meta | {"versions": meta["versions"] | {"torch": f"{major}.{int(minor) - 1}.0"}})
    return rf"saved with torch {major}.{int(minor) - 1}.0, this is .*: install"


def make_it_of_another_config(checkpoint: Path) -> str:
    path = checkpoint / "meta.json"
    meta = read_json(path)
    write_json(path, meta | {"config_hash": "0123456789ab"})
    return f"made by a run of config 0123456789ab, this is {meta['config_hash']}"


def flip_a_bit_of_meta(checkpoint: Path) -> str:
    path = checkpoint / "meta.json"
    path.write_text(path.read_text().replace('"step": ', '"step": 1', 1))
    return r"meta\.json is not what was written \(its checksum differs\)"


def give_it_the_cursor_of_another(checkpoint: Path) -> str:
    meta = read_json(checkpoint / "meta.json")
    write_json(checkpoint / "meta.json", meta | {"cursor": meta["cursor"] | {"step": 1}})
    return "meta.json is that of pretrain-0-0-00000001"


DAMAGES = [
    flip_a_bit_of_meta,
    give_it_the_cursor_of_another,
    truncate,
    remove_a_file,
    flip_a_bit,
    cut_meta,
    remove_it,
    make_it_of_another_config,
    make_it_of_another_version,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_the_reason_and_the_way_out(
    damage: Callable[[Path], str], stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    reason = damage(folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text())
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match=f"(?s){reason}.*delete the run's `checkpoints` folder"):
        run(CONFIGS["adam"], folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    shutil.rmtree(folder / "checkpoints")  # the way out
    assert run(CONFIGS["adam"], folder)["phases"].keys() == {"cold", "warm-a", "warm-b", "warm-c"}


@pytest.fixture(scope="module")
def stopped_later(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped again after another save."""
    folder = tmp_path_factory.mktemp("stopped-later") / "run"
    shutil.copytree(stopped, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavePolicy, "due", lambda self, step: step == 8)
        stop_at(patch, Pretrain, "step", 6)
        with pytest.raises(Stop):
            run(CONFIGS["adam"], folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_the_reason(
    damage: Callable[[Path], str], stopped_later: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped_later / "checkpoints", tmp_path / "checkpoints")
    reason = damage(tmp_path / "checkpoints" / "pretrain-0-0-00000008")
    config = CONFIGS["adam"]
    with start(config) as runtime:
        found = Checkpointer(tmp_path / "checkpoints", config.checkpoint, runtime).latest(config_hash(config))
    assert found is not None
    path, meta, (refused,) = found
    assert (path.name, meta.cursor.step) == ("pretrain-0-0-00000004", 4)
    assert re.search(f"pretrain-0-0-00000008: {reason}", refused), refused


@pytest.mark.parametrize("latest", [b"", b"\0\0\0\0", b"\xff", b"pretrain", b"../checkpoints/pretrain-0-0-00000004"])
def test_where_latest_names_nothing_the_newest_whole_checkpoint_is_taken(
    latest: bytes, stopped_later: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped_later / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "LATEST").write_bytes(latest)
    config = CONFIGS["adam"]
    with start(config) as runtime:
        found = Checkpointer(tmp_path / "checkpoints", config.checkpoint, runtime).latest(config_hash(config))
    assert found is not None and found[1].cursor.step == 8


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_bits(
    stopped_later: Path, uninterrupted: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped_later, folder)
    reason = flip_a_bit(folder / "checkpoints" / "pretrain-0-0-00000008")
    capsys.readouterr()
    run(CONFIGS["adam"], folder)
    said = capsys.readouterr().out
    assert re.search(rf"not taken: .*{reason}.*\ngoes on from pretrain-0-0-00000004\n", said), said
    assert_same(outcome(folder), uninterrupted("adam"))


def test_another_patch_release_is_accepted(stopped_later: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "pretrain-0-0-00000008"
    shutil.copytree(stopped_later / "checkpoints" / checkpoint.name, checkpoint)
    meta = read_json(checkpoint / "meta.json")
    minor = meta["versions"]["torch"].rsplit(".", 1)[0]
    write_json(checkpoint / "meta.json", meta | {"versions": meta["versions"] | {"torch": f"{minor}.99"}})
    assert read_meta(checkpoint, meta["config_hash"]).cursor.step == 8


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch sprung",)


class Named:
    """Is pickled as an attribute of a class, as Python up to 3.11.3 does with a member of an Enum."""

    def __init__(self, cls: type, name: str) -> None:
        self._pair = cls, name

    def __reduce__(self) -> Any:
        return getattr, self._pair


def test_an_index_may_name_members_of_an_enum_and_no_other_attribute(tmp_path: Path) -> None:
    index = tmp_path / ".metadata"
    for member in _MEM_FORMAT_ENCODING:
        pickled = pickle.dumps(Named(_MEM_FORMAT_ENCODING, member.name))
        assert _IndexUnpickler(io.BytesIO(pickled)).load() is member
    for cls, name in ((_MEM_FORMAT_ENCODING, "mro"), (PosixPath, "cwd")):
        index.write_bytes(pickle.dumps(Named(cls, name)))
        with pytest.raises(UserError, match="getattr has no place in a checkpoint"):
            _read_index(index)


class Filled:
    """Is pickled as a class whose attributes are set, as `BUILD` does."""

    def __init__(self, cls: type, state: dict[str, Any]) -> None:
        self._cls, self._state = cls, state

    def pickled(self) -> bytes:
        whole = pickle.dumps((self._cls, self._state), protocol=2)  # ... class, state, TUPLE2, (put), STOP
        end = whole.rindex(pickle.TUPLE2)
        return whole[:end] + pickle.BUILD + pickle.STOP


@pytest.mark.parametrize("cls", [PosixPath, _MEM_FORMAT_ENCODING, Metadata])
def test_an_index_sets_no_attribute_of_a_class(cls: type, tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(Filled(cls, {"exists": 1, "planted": 2}).pickled())
    with pytest.raises(UserError, match="has no such content in a checkpoint"):
        _read_index(tmp_path / ".metadata")
    assert callable(PosixPath.exists) and not hasattr(cls, "planted")


def test_loading_unpickles_nothing_but_an_index_of_tensors(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(next((stopped / "checkpoints").glob("pretrain-*")), checkpoint)
    with start(CONFIGS["adam"]):
        (tmp_path / "foreign").mkdir()
        dcp.save({"trap": Trap()}, checkpoint_id=str(tmp_path / "foreign"))
        with pytest.raises(UserError, match="a checkpoint holds tensors|has no place in a checkpoint"):
            load_tensors(tmp_path / "foreign", {"trap": None})
        (checkpoint / ".metadata").write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError, match=r"system has no place in a checkpoint"):
            load_tensors(checkpoint, {"anything": torch.zeros(1)})
    assert not (tmp_path / "sprung").exists()
