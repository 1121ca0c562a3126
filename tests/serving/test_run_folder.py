"""A finished run opens with what it left, and a folder that is none is refused with the reason."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mwuf_dist.config import UserError, hash_of_values
from mwuf_dist.files import read_json, write_json
from mwuf_dist.serving.finished_run import FinishedRun, open_run
from tests.serving.test_export import ROUNDING, scores_of_the_stage


def test_scores_of_pairs_are_those_of_the_evaluation(run: FinishedRun) -> None:
    test = run.prepared.columns("test", ("user", "item"))
    users, items = (torch.from_numpy(test[name].astype(np.int64)) for name in ("user", "item"))
    found = run.scores(users, items).double().numpy()
    np.testing.assert_allclose(found, scores_of_the_stage(run, "test"), rtol=0, atol=ROUNDING)


def test_old_items_score_as_in_pretraining(run: FinishedRun) -> None:
    from mwuf_dist.data.batches.loader import Loader

    batch = next(iter(Loader(run.prepared, ["pretrain"], 256, 0, run.model.runtime).epoch(0)))
    with torch.no_grad():
        expected = run.model.logit(batch)
    np.testing.assert_allclose(run.scores(batch.user, batch.item), expected, rtol=0, atol=ROUNDING)


def test_items_are_found_by_their_raw_ids(run: FinishedRun) -> None:
    ids = [*run.old_item_ids, *run.new_item_ids]
    assert len(ids) == run.num_items and len(run.old_item_ids) == run.num_old_items
    for index in (0, run.num_old_items, run.num_items - 1):
        assert run.index_of(ids[index]) == run.index_of(str(ids[index])) == index
    for absent in ("no such item", 10**12):
        with pytest.raises(UserError, match=r"no item .* IDs look like"):
            run.index_of(absent)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def change_results(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_json(folder / "results.json", read_json(folder / "results.json") | {key: value})

    return change


def change_split(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        results = read_json(folder / "results.json")
        write_json(folder / "results.json", results | {"split": results["split"] | {key: value}})

    return change


@pytest.mark.parametrize("latest", [None, b"", b"\0\0\0", b"warm_up-3-0-00000000", b"../../elsewhere"])
def test_a_finished_run_opens_whatever_latest_says(latest: bytes | None, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    pointer = tmp_path / "run" / "checkpoints" / "LATEST"
    pointer.unlink() if latest is None else pointer.write_bytes(latest)
    with open_run(tmp_path / "run") as run:
        assert run.num_items


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (remove("config.toml"), "no run is here"),
        (remove("results.json"), "not finished .* goes on where it stopped"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "last checkpoint is gone"),
        (edit("config.toml", "old_above = 60", "old_above = 61"), "it was edited"),
        (edit("config.toml", "old_above = 60", "older_above = 60"), "unknown key `data.older_above`"),
        (change_results("schema", 99), "results of schema 99"),
        (change_results("prepared_checksum", "000000000000"), "is not what .* was trained on .*checksum"),
        (change_split("old_items", 1), "is not what .* was trained on .*old_items"),
        (edit("results.json", '"old_items": ', '"old_items": 1'), "its checksum differs.*makes it again from the last"),
        (edit("results.json", "{", ""), "cannot be read.*makes it again from the last"),
        (edit("checkpoints/warm_up-4-0-00000000/meta.json", '"world_size": 1', '"world_size": 2'), "checksum differs"),
    ],
)
def test_a_folder_without_a_finished_run_of_this_data_and_version_is_refused_with_the_reason(
    break_it: Callable[[Path], None], message: str, run_folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    break_it(copy)
    with pytest.raises(UserError, match=message), open_run(copy):
        pass


def test_a_run_of_a_version_that_had_fewer_keys_opens(run_folder: Path, tmp_path: Path) -> None:
    """Nothing but its hash tells that a key is missing, and the default of a new key is what there was before."""
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    edit("config.toml", 'precision = "float32"\n', "")(copy)
    before = json.loads((copy / "results.json").read_text())["config_hash"]
    then = hash_of_values(tomllib.loads((copy / "config.toml").read_text()))
    assert then != before
    change_results("config_hash", then)(copy)
    for meta in copy.glob("checkpoints/*/meta.json"):
        write_json(meta, read_json(meta) | {"config_hash": then})
    found = []
    for folder in (copy, run_folder):
        with open_run(folder) as run:
            found.append(run.embeddings(torch.arange(run.num_items)))
    assert torch.equal(*found)


def test_opening_a_run_changes_nothing_in_its_folder(run_folder: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}

    before = state()
    with open_run(run_folder) as run:
        run.embeddings(torch.arange(run.num_items))
    assert state() == before
