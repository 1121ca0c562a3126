"""An export scores as the run did, in every format, chunk by chunk, and appears whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mwuf_kernels
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mwuf_kernels import without_library
from safetensors.numpy import load_file

from mwuf_dist import cli
from mwuf_dist.backbones import BACKBONES, Shape, build_backbone
from mwuf_dist.config import UserError, fitting
from mwuf_dist.config.registry import backbone_config, method_config
from mwuf_dist.methods import meta_warm_up
from mwuf_dist.methods.mwuf import Mwuf
from mwuf_dist.serving.export import chunks as chunks_module
from mwuf_dist.serving.export.chunks import Chunk, Columns
from mwuf_dist.serving.export.dense_model import exported
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun, open_run
from mwuf_dist.serving.writers import interface, writer_of
from mwuf_dist.training.implementations import frozen_model
from mwuf_dist.training.stages.warm_up import WarmUp
from tests.bounds import assert_auc_of_rounded, assert_float32_close, float32_bound

# Logits of the run and of the export differ by float32 rounding alone (the sums are in another order): fields, inner
# products and hidden units, some 100 terms, none larger than the largest logit (8).
ROUNDING = float32_bound(num_terms=100, size=8.0)


def read_back(folder: Path) -> dict[str, np.ndarray]:
    """The columns of an export in any format, phases as text."""
    manifest = json.loads((folder / "export.json").read_text())
    if manifest["format"] == "parquet":
        table = pq.read_table(folder / "items.parquet")
        return {
            "item_id": table["item_id"].to_numpy(),
            "embedding": np.array(table["embedding"].to_pylist(), dtype=np.float32),
            "phase": np.array(table["phase"].to_pylist()),
            "interactions": table["interactions"].to_numpy(),
        }
    if manifest["format"] == "safetensors":
        columns = load_file(folder / "items.safetensors")
    else:
        columns = {name: np.load(folder / f"{name}.npy") for name in ("item_id", "embedding", "phase", "interactions")}
    return columns | {"phase": np.array(manifest["phases"])[columns["phase"]]}


def scores_of_the_stage(run: FinishedRun, split: str) -> np.ndarray:
    """Logits by the stage that evaluated the run, which knows nothing of `serving`."""
    frozen = frozen_model(run.model, run.config.embedding)
    stage = WarmUp(run.config, run.model, frozen, run.method)
    stage.finish_phase(run.prepared, 3)
    scores = stage.score(run.prepared, split)
    assert scores is not None
    return scores


def test_exported_embeddings_and_exported_model_score_as_the_run_did(run: FinishedRun, tmp_path: Path) -> None:
    folder = export(run, "parquet", tmp_path / "export")
    columns = read_back(folder)
    vectors = dict(zip(columns["item_id"].tolist(), torch.from_numpy(columns["embedding"]), strict=True))
    model = torch.export.load(folder / "model.pt2").module()
    test = run.prepared.columns("test", ("user", "item", "label"))
    users, items = (torch.from_numpy(test[name].astype(np.int64)) for name in ("user", "item"))
    ids = run.item_ids.to_pylist()
    embeddings = torch.stack([vectors[ids[item]] for item in items.tolist()])
    with torch.no_grad():
        found = model(embeddings, run.context(users, items)).double().numpy()
    expected = scores_of_the_stage(run, "test")
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
    assert_auc_of_rounded(run.results["phases"]["warm-c"]["auc_test"], found, test["label"], ROUNDING)
    one = model(embeddings[:1], run.context(users[:1], items[:1]))
    np.testing.assert_allclose(one.detach().numpy(), expected[:1], rtol=0, atol=ROUNDING)


# A server: it has the export, NumPy, Arrow and torch, and the pairs of raw IDs to score.
SERVER = """
import json, sys
import numpy as np
import pyarrow.parquet as pq
import torch

export, pairs, output = sys.argv[1:]
items, users = (pq.read_table(f"{export}/{name}.parquet") for name in ("items", "users"))
manifest = json.load(open(f"{export}/export.json"))
model = torch.export.load(f"{export}/model.pt2").module()

def column(table, name):
    return torch.from_numpy(np.stack(table[name].to_numpy()))

embedding, item_context = column(items, "embedding"), column(items, "item_context")
user_context = torch.cat([column(users, "user_context"), torch.tensor([manifest["unknown_user"]])])
place_of_item = {one: place for place, one in enumerate(items["item_id"].to_pylist())}
place_of_user = {one: place for place, one in enumerate(users["user_id"].to_pylist())}
pairs = pq.read_table(pairs)
item = torch.tensor([place_of_item[one] for one in pairs["item_id"].to_pylist()])
user = torch.tensor([place_of_user.get(one, -1) for one in pairs["user_id"].to_pylist()])
with torch.no_grad():
    logits = model(embedding[item], torch.cat([item_context[item], user_context[user]], dim=1))
assert not {"mwuf_dist", "mwuf_kernels", "torchrec", "fbgemm_gpu"} & set(sys.modules)
np.save(output, logits.numpy())
"""


def served_scores(export: Path, user_ids: list[Any], item_ids: list[Any], scratch: Path) -> np.ndarray:
    """Logits of pairs of raw IDs, by a process that has only a Parquet export with context."""
    pq.write_table(pa.table({"user_id": user_ids, "item_id": item_ids}), scratch / "pairs.parquet")
    paths = [str(path) for path in (export, scratch / "pairs.parquet", scratch / "logits.npy")]
    subprocess.run([sys.executable, "-I", "-c", SERVER, *paths], check=True)
    return np.load(paths[-1])


def test_a_server_that_has_only_the_export_scores_as_the_run_did(run: FinishedRun, tmp_path: Path) -> None:
    folder = export(run, "parquet", tmp_path / "export", old_items=True, context=True)
    test = run.prepared.columns("test", ("user", "item"))
    user_ids, item_ids = run.user_ids.to_pylist(), run.item_ids.to_pylist()
    # Old items too, with users of every kind.
    users, items = torch.randint(run.prepared.num_users, (500,)), torch.randint(run.num_old_items, (500,))
    all_users, all_items = np.append(test["user"], users), np.append(test["item"], items)
    found = served_scores(folder, [user_ids[i] for i in all_users], [item_ids[i] for i in all_items], tmp_path)
    expected = np.append(scores_of_the_stage(run, "test"), run.scores(users, items))
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["safetensors", "npy"])
def test_contexts_are_the_same_in_every_format(kind: Any, run: FinishedRun, tmp_path: Path) -> None:
    folder = export(run, kind, tmp_path / "export", context=True)
    if kind == "npy":
        found = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    else:
        found = load_file(folder / "items.safetensors") | load_file(folder / "users.safetensors")
    assert found["user_id"].tolist() == run.user_ids.to_pylist() and found["item_id"].tolist() == run.new_item_ids
    users, items = torch.arange(run.prepared.num_users), torch.arange(run.num_old_items, run.num_items)
    np.testing.assert_array_equal(found["item_context"], run.item_context(items))
    np.testing.assert_array_equal(found["user_context"], run.user_context(users))
    pairs = torch.randint(len(items), (100,)), torch.randint(len(users), (100,))
    context = np.concatenate([found["item_context"][pairs[0]], found["user_context"][pairs[1]]], axis=1)
    np.testing.assert_array_equal(context, run.context(users[pairs[1]], items[pairs[0]]))
    assert json.loads((folder / "export.json").read_text())["num_users"] == len(users)


def test_every_warm_embedding_of_an_export_comes_from_the_bulk_kernel_once(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[torch.Tensor] = []
    assert meta_warm_up.bulk_warm is mwuf_kernels.bulk_warm

    def spied(table: torch.Tensor, *args: Any, **keys: Any) -> torch.Tensor:
        rows.append(table)
        return mwuf_kernels.bulk_warm(table, *args, **keys)

    monkeypatch.setattr(meta_warm_up, "bulk_warm", spied)
    export(run, "parquet", tmp_path / "export", old_items=True)
    weight = run.model.new_ids.shards("new")[0].weight
    torch.testing.assert_close(torch.cat(rows), weight[run.num_old_items :], rtol=0, atol=0)


@pytest.mark.parametrize("old_items", [False, True], ids=["new", "old-and-new"])
def test_all_formats_hold_the_same_items(run: FinishedRun, tmp_path: Path, old_items: bool) -> None:
    parquet, safetensors, npy = (
        read_back(export(run, kind, tmp_path / kind, old_items)) for kind in ("parquet", "safetensors", "npy")
    )
    for name, values in parquet.items():
        np.testing.assert_array_equal(values, safetensors[name])
        np.testing.assert_array_equal(values, npy[name])
    ids = run.item_ids.to_pylist() if old_items else run.new_item_ids
    assert parquet["item_id"].tolist() == ids
    first_new = run.num_old_items if old_items else 0
    assert set(parquet["phase"][:first_new]) <= {"old"} and set(parquet["phase"][first_new:]) == {"warm-c"}
    assert (parquet["interactions"][first_new:] == 3 * run.config.data.warm_rows).all()
    assert (parquet["interactions"][:first_new] > run.config.data.old_above).all()
    old = run.model.old_ids.shards("old")[0].weight[:first_new]
    np.testing.assert_array_equal(parquet["embedding"][:first_new], old.numpy())


def test_small_chunks_give_the_file_that_one_chunk_gives(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_back(export(run, "safetensors", tmp_path / "whole", old_items=True))
    monkeypatch.setattr(chunks_module, "_ROWS", 17)
    pieces = read_back(export(run, "safetensors", tmp_path / "pieces", old_items=True))
    for name, values in whole.items():
        if name == "embedding":  # matrix products of other sizes round differently
            assert_float32_close(values, pieces[name], num_terms=100)
        else:
            np.testing.assert_array_equal(values, pieces[name])
    export(run, "parquet", tmp_path / "groups", old_items=True)
    assert pq.ParquetFile(tmp_path / "groups" / "items.parquet").num_row_groups == -(-run.num_items // 17)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_the_exported_model_of_every_backbone_has_the_bits_of_its_forward_at_any_batch_size(
    name: str, batch_norm: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = Shape(8, 3, 2, item_fields=("a", "b", "c"))
    keys = {"hidden": (16, 8), "batch_norm": batch_norm, "product": "both"}
    backbone = build_backbone(backbone_config(name, **fitting("backbone", keys, name)), shape)
    for buffer in (one for key, one in backbone.named_buffers() if "running" in key):
        torch.nn.init.uniform_(buffer, 0.5, 1.5)
    backbone.eval()
    torch.export.save(exported(backbone, shape, torch.device("cpu"), name), tmp_path / "model.pt2")
    model = torch.export.load(tmp_path / "model.pt2").module()
    for num in (1, 7, 300):
        item, context = torch.randn(num, 8), torch.randn(num, 5 * 8 + backbone.history_width)
        with torch.no_grad(), without_library():  # an exported model is of torch's operators alone
            # The same operations in the same order: not even the rounding differs.
            assert torch.equal(model(item, context), backbone(item, context))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("scaling", "shifting"), [(True, True), (True, False), (False, True), (False, False)])
def test_bulk_rows_are_row_times_scale_plus_shift_with_either_network_off(
    scaling: bool, shifting: bool, residual: bool
) -> None:
    torch.manual_seed(0)
    method = Mwuf(method_config(scaling=scaling, shifting=shifting, residual=residual), 8, 12)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    rows, context, users = torch.randn(50, 8), torch.randn(50, 12), torch.randn(50, 8)
    with torch.no_grad():
        pair = method.scale_and_shift(context, users)
        expected = rows if pair is None else rows * pair[0] + pair[1]
        assert_float32_close(method.warm_rows(rows, context, users), expected, num_terms=12 + 8 + 1)


def test_text_ids_survive_in_the_array_formats(tmp_path: Path) -> None:
    ids = pa.array(["a", "äöü", "longer-name", ""])
    chunk = Chunk(ids, {"embedding": np.ones((4, 2), np.float32), "interactions": np.arange(4)})
    columns: Columns = {"embedding": ("float32", 2), "interactions": ("int64", 0)}
    for kind in ("npy", "safetensors"):
        table = writer_of(kind).table(tmp_path, "item", ids, columns)
        table.write(chunk)
        table.close()
    assert np.load(tmp_path / "item_id.npy").tolist() == ids.to_pylist()
    found = load_file(tmp_path / "items.safetensors")
    assert [bytes(row).rstrip(b"\0").decode() for row in found["item_id"]] == ids.to_pylist()
    assert found["interactions"].tolist() == [0, 1, 2, 3]


def test_an_export_that_fails_leaves_the_earlier_one_whole(
    run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export(run, "parquet", tmp_path / "export")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(interface, "export_model", fails)
    with pytest.raises(OSError, match="no space"):
        export(run, "npy", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_export_replaces_an_earlier_one_and_nothing_else(run: FinishedRun, tmp_path: Path) -> None:
    folder = export(run, "npy", tmp_path / "export")
    export(run, "safetensors", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "items.safetensors", "model.pt2"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="no export of ours"):
        export(run, "npy", tmp_path / "mine")


def test_command_writes_the_folder_and_says_what_is_in_it(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(run_folder), "--format", "npy", "--output", str(tmp_path / "out")])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "embedding.npy" in out and "model.pt2" in out and str(tmp_path / "out") in out
    with pytest.raises(SystemExit) as end:
        cli.main(["export", "--format", "npy"])
    assert end.value.code == 2
    assert "mwuf export RUN" in capsys.readouterr().err


def test_a_run_of_the_base_method_is_exported_as_its_rows_are(tmp_path: Path) -> None:
    from mwuf_dist.launch import local
    from tests.tiny import tiny

    local.train(tiny(method={"name": "base"}, pretrain={"epochs": 1}), tmp_path / "base")
    with open_run(tmp_path / "base") as run:
        columns = read_back(export(run, "npy", tmp_path / "export"))
        weight = run.model.new_ids.shards("new")[0].weight
    np.testing.assert_array_equal(columns["embedding"], weight[run.num_old_items :].numpy())
