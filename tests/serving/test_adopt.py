"""A model trained elsewhere gets warm embeddings for its new items, and nothing of it changes."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp

from examples import adopt_torcheasyrec, adopt_torchrec, own_loop
from mwuf_dist import MetaWarmUp, cli
from mwuf_dist.config import UserError
from mwuf_dist.evaluation.metrics import auc
from mwuf_dist.serving.adopt import adopt as adopt_module
from mwuf_dist.serving.adopt.adopt import AdoptSettings, adopt
from mwuf_dist.serving.adopt.command import AdoptInput, adopt_files, check_fit
from mwuf_dist.serving.adopt.files import find_table, import_factory, load_weights
from tests.bounds import assert_float32_close


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adopt")
    adopt_torchrec.main(folder)
    return folder


def test_new_items_rank_better_warm_than_at_the_common_row_and_the_model_stays(folder: Path) -> None:
    weights = load_weights(folder / "dlrm.pt")
    before = copy.deepcopy(weights)
    model, table = adopt_torchrec.make_model(weights), find_table(weights, "item_id")
    logs = pq.read_table(folder / "logs.parquet")
    is_new = logs["item_id"].to_numpy() >= adopt_torchrec.FIELDS["item_id"]
    later = is_new & (np.arange(len(is_new)) > len(is_new) // 2)
    found = adopt(model, table, logs.filter(pa.array(~later)))
    assert found.item_ids.to_pylist() == list(range(120, 160))
    test = logs.filter(pa.array(later))
    rows = torch.from_numpy(np.searchsorted(found.item_ids.to_numpy(), test["item_id"].to_numpy()))
    label = test["label"].to_numpy()
    with torch.no_grad():
        context = model.context(test)
        scores = {
            "common": model(table.mean(0).expand(len(rows), -1), context),
            "warm": model(found.embeddings[rows], context),
        }
    common, warm = (auc(value.double().numpy(), label) for value in scores.values())
    assert warm > common + 0.05
    assert all(torch.equal(before[name], value) for name, value in model.dlrm.state_dict().items())


def test_text_ids_and_small_pieces_give_the_same_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of IDs says which row of the table an item has; the logs' contexts are never all there at once."""
    weights = load_weights(folder / "dlrm.pt")
    table, logs = find_table(weights, "item_id"), pq.read_table(folder / "logs.parquet")
    expected = adopt(adopt_torchrec.make_model(weights), table, logs)
    monkeypatch.setattr(adopt_module, "_CHUNK_ROWS", 700)
    most = 0

    class Watched(adopt_torchrec.Ranking):
        def context(self, rows: pa.Table) -> torch.Tensor:
            nonlocal most
            most = max(most, rows.num_rows)
            return super().context(rows)

    names = np.array([f"sku-{item:03d}" for item in range(160)])
    named = logs.set_column(logs.column_names.index("item_id"), "item_id", pa.array(names[logs["item_id"].to_numpy()]))
    known = pa.chunked_array([names[: len(table)]])
    model = Watched(adopt_torchrec.make_model(weights).dlrm)
    found = adopt(model, table, named, item_ids=known)
    assert found.item_ids.to_pylist() == names[120:].tolist()
    assert_float32_close(found.embeddings, expected.embeddings, num_terms=100)  # batches of other sizes
    assert 700 <= most < 2000 < logs.num_rows
    with pytest.raises(UserError, match="--item-ids"):
        adopt(model, table, named)
    with pytest.raises(UserError, match="160 rows, and the item table only 120"):
        adopt(model, table, named, item_ids=pa.chunked_array([names]))


def test_a_distributed_checkpoint_holds_what_a_state_dict_file_holds(folder: Path, tmp_path: Path) -> None:
    weights = load_weights(folder / "dlrm.pt")
    whole = {"model": weights, "epoch": 3, "when": [1, "monday"]}  # what is no tensor is left
    dcp.save(whole, checkpoint_id=str(tmp_path / "checkpoint"), no_dist=True)
    found = load_weights(tmp_path / "checkpoint")
    assert len(found) == len(weights)
    assert torch.equal(find_table(found, "item_id"), find_table(weights, "item_id"))


def test_a_checkpoint_of_torcheasyrec_is_adopted_as_the_state_dict_is(folder: Path, tmp_path: Path) -> None:
    weights = torch.load(folder / "dlrm.pt", weights_only=True)
    adopt_torcheasyrec.write_checkpoint(weights, tmp_path)
    # An earlier one beside it, with other weights, whose number is larger as text.
    earlier = adopt_torcheasyrec.write_checkpoint(
        {name: value * 0 for name, value in weights.items()}, tmp_path / "old"
    )
    earlier.rename(tmp_path / "model.ckpt-50")
    found = []
    for path in (tmp_path, tmp_path / f"model.ckpt-{adopt_torcheasyrec.STEP}"):
        named = path, "item_id_emb", "examples.adopt_torcheasyrec:make_model", folder / "logs.parquet"
        found.append(adopt_files(AdoptInput(*named), tmp_path / f"warm{len(found)}")[0])
    named = folder / "dlrm.pt", "item_id", "examples.adopt_torchrec:make_model", folder / "logs.parquet"
    expected, told = adopt_files(AdoptInput(*named), tmp_path / "expected")
    assert all(torch.equal(one.embeddings, expected.embeddings) for one in found) and len(expected.item_ids) == 40
    # Ratings by a rule for labels, some rows twice: the same model comes out, and what was not used is said.
    logs = pq.read_table(folder / "logs.parquet")
    rating = pa.array([5 if one else 2 for one in logs["label"].to_pylist()])
    rated = logs.set_column(logs.column_names.index("label"), "label", rating)
    pq.write_table(pa.concat_tables([rated, rated.slice(0, 7)]), tmp_path / "rated.parquet")
    given = AdoptInput(*named[:3], tmp_path / "rated.parquet", label_at_least=4)
    again, told_again = adopt_files(given, tmp_path / "again")
    assert torch.equal(again.embeddings, expected.embeddings)
    num = logs.num_rows
    repeats = f"7 of {num + 7:,} rows repeat an earlier one (user, item, time and label) and do not count"
    assert [one for one in told_again if one not in told] == [f"logs: {num + 7:,} rows read", repeats]
    # Users in text, some with a point (a gap once stood among them), and items of 19 digits that a list names.
    user, item = logs["user_id"].to_pylist(), logs["item_id"].to_numpy()
    odd = {"user_id": [f"{one}.0" if k % 2 else str(one) for k, one in enumerate(user)]}
    odd["item_id"] = [str(one) for one in item + 10**18]
    for name, values in odd.items():
        logs = logs.set_column(logs.column_names.index(name), name, pa.array(values))
    pq.write_table(logs, tmp_path / "odd.parquet")
    (tmp_path / "ids.csv").write_text("\n".join(["item_id", *map(str, range(10**18, 10**18 + 120)), ""]))
    given = AdoptInput(*named[:3], tmp_path / "odd.parquet", item_ids=tmp_path / "ids.csv")
    of_odd, told_of_odd = adopt_files(given, tmp_path / "odd")
    assert torch.equal(of_odd.embeddings, expected.embeddings) and of_odd.item_ids[0].as_py() == 10**18 + 120
    assert any(one.startswith("200 values of user_id are another way of writing") for one in told_of_odd), told_of_odd
    with pytest.raises(UserError, match="label is 2, neither 0 nor 1.*`mwuf adopt` have --label-at-least"):
        adopt_files(AdoptInput(*named[:3], tmp_path / "rated.parquet"), tmp_path / "never")


def test_a_table_whose_rows_are_given_out_as_ids_come_needs_the_ids(folder: Path, tmp_path: Path) -> None:
    weights = torch.load(folder / "dlrm.pt", weights_only=True)
    named = {f"mc_ebc._embedding_module.{name}": value for name, value in weights.items()}
    torch.save(named, tmp_path / "weights.pt")
    given = tmp_path / "weights.pt", "item_id", "examples.adopt_torchrec:make_model", folder / "logs.parquet"
    with pytest.raises(UserError, match="no ID is its row: say which ID each row has with --item-ids"):
        adopt_files(AdoptInput(*given), tmp_path / "out")


def test_a_pickle_is_refused_as_weights(tmp_path: Path) -> None:
    torch.save({"model": Path("/")}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"state dict file of tensors alone \(more than tensors is in it\); write one"):
        load_weights(tmp_path / "bad.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".metadata").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(UserError, match="getcwd has no place in a checkpoint"):
        load_weights(tmp_path / "folder")


@pytest.mark.parametrize(("name", "message"), [("itm_id", "did you mean"), ("bags", "several tables")])
def test_a_table_that_is_not_one_is_named_with_its_neighbours(name: str, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        find_table(load_weights(folder / "dlrm.pt"), name)


def test_a_factory_that_is_none_is_the_users_error() -> None:
    for path in ("examples.nowhere:make", "examples.adopt_torchrec:mak_model"):
        with pytest.raises(UserError, match="--model"):
            import_factory(path)


def test_command_writes_the_new_items(folder: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["adopt", str(folder / "dlrm.pt"), "--item-table", "item_id", "--logs", str(folder / "logs.parquet")]
    arguments += ["--model", "examples.adopt_torchrec:make_model", "--output", str(tmp_path / "out")]
    for code, text in ((0, "40 new items"), (2, "name another --output")):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        printed = capsys.readouterr()
        assert end.value.code == code and text in printed.out + printed.err
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items.num_rows == 40 and len(items["embedding"][0].as_py()) == adopt_torchrec.DIM
    meta = MetaWarmUp(8, 8, 8)
    meta.load_state_dict(torch.load(tmp_path / "out" / "meta.pt", weights_only=True))


def test_one_backward_trains_rows_by_the_cold_loss_and_networks_by_the_warm_one() -> None:
    torch.manual_seed(0)
    meta = MetaWarmUp(4, 6, 5)
    for parameter in meta.parameters():
        torch.nn.init.normal_(parameter)
    rows, fields, users = torch.randn(3, 4, requires_grad=True), torch.randn(3, 6), torch.randn(3, 5)
    inverse = torch.tensor([2, 0, 2, 1])
    cold, warm = meta(rows, fields, users, inverse)
    assert torch.equal(cold, rows[inverse])
    expected = rows.detach() * (1 + meta.scaling(fields)) + meta.shifting(users)
    rounding = {"num_terms": 2 * (6 + 5 + 4)}  # inputs and hidden units, there and back
    assert_float32_close(warm, expected[inverse], **rounding)
    assert_float32_close(meta.embeddings(rows.detach(), fields, users), expected, **rounding)
    (cold.square().sum() + warm.square().sum()).backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, 2 * rows.detach() * torch.tensor([[1.0], [1.0], [2.0]]))
    gradient = torch.autograd.grad(expected[inverse].square().sum(), list(meta.parameters()))
    for parameter, wanted in zip(meta.parameters(), gradient, strict=True):
        assert_float32_close(parameter.grad, wanted, **rounding)


def test_the_loop_of_the_example_trains_the_networks_and_not_the_model() -> None:
    warm_up = own_loop.main()
    assert float(warm_up.scaling[2].weight.detach().abs().max()) > 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
        lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"state": {"0": torch.zeros(2)}}},
        lambda weights: {f"_fsdp_wrapped_module.{name}": value for name, value in weights.items()},
    ],
    ids=["DDP", "compiled DDP", "a training script's", "FSDP"],
)
def test_weights_are_found_under_the_models_own_names_whatever_it_was_wrapped_in(
    wrap: Any, folder: Path, tmp_path: Path
) -> None:
    expected = load_weights(folder / "dlrm.pt")
    torch.save(wrap(expected), tmp_path / "wrapped.pt")
    found = load_weights(tmp_path / "wrapped.pt")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_would_make_every_embedding_wrong_is_refused(folder: Path) -> None:
    weights = load_weights(folder / "dlrm.pt")
    model, table = adopt_torchrec.make_model(weights), find_table(weights, "item_id")
    logs = pq.read_table(folder / "logs.parquet")
    label = logs.column_names.index("label")
    values = logs["label"].to_pylist()
    bad_row = table.clone()
    bad_row[3, 1] = torch.nan
    for wrong, message in (
        (logs.set_column(label, "label", pa.array([None, *values[1:]])), "label is missing in 1 of"),
        (logs.set_column(label, "label", pa.array([5, *values[1:]])), "label is 5.0 .*neither 0 nor 1"),
    ):
        with pytest.raises(UserError, match=message):
            adopt(model, table, wrong)
    with pytest.raises(UserError, match="row 3 of the item table"):
        adopt(model, bad_row, logs)
    with pytest.raises(UserError, match=r"row 3 \(counted from 0\) and 0 others"):
        find_table({"t.item_id": bad_row}, "item_id")


@pytest.mark.parametrize("method", ["users", "context"])
@pytest.mark.parametrize("wrong", [r"gives NaN or infinity", r"fails \(KeyError: 77\)"])
def test_a_row_of_which_the_model_makes_no_number_is_named(method: str, wrong: str, folder: Path) -> None:
    weights = load_weights(folder / "dlrm.pt")
    model, logs = adopt_torchrec.make_model(weights), pq.read_table(folder / "logs.parquet")
    asked = getattr(model, method)

    def odd(rows: pa.Table) -> torch.Tensor:
        is_odd = torch.from_numpy(rows["user_id"].to_numpy() == 77)
        if "fails" in wrong and is_odd.any():
            raise KeyError(77)
        return torch.where(is_odd[:, None], torch.nan, asked(rows))

    setattr(model, method, odd)
    with pytest.raises(UserError, match=rf"{method}\(rows\) {wrong} for the row with user_id = 77, item_id = "):
        adopt(model, find_table(weights, "item_id"), logs)


def test_a_column_of_a_type_that_is_not_read_is_left_out_unless_it_is_needed(folder: Path, tmp_path: Path) -> None:
    logs = pq.read_table(folder / "logs.parquet")
    odd = pa.array([{"a": 1}] * logs.num_rows)
    pq.write_table(logs.append_column("more", odd), tmp_path / "more.parquet")
    pq.write_table(logs.set_column(0, "user_id", odd), tmp_path / "user.parquet")
    named = folder / "dlrm.pt", "item_id", "examples.adopt_torchrec:make_model"
    fit = check_fit(AdoptInput(*named, tmp_path / "more.parquet"))
    assert not fit.faults and "column 'more' is left out: its type is struct<a: int64>, which is not read" in fit.told
    assert "column 'user_id' has type struct" in check_fit(AdoptInput(*named, tmp_path / "user.parquet")).faults[0]


def test_numbers_and_ids_written_in_another_way_fit_and_ids_that_rows_lack_are_told(
    folder: Path, tmp_path: Path
) -> None:
    logs = pq.read_table(folder / "logs.parquet")
    for name, form in (("category", "{}.0"), ("item_id", "{:05d}")):
        values = pa.array([form.format(one) for one in logs[name].to_pylist()])
        logs = logs.set_column(logs.column_names.index(name), name, values)
    pq.write_table(logs, tmp_path / "logs.parquet")
    (tmp_path / "ids.csv").write_text("\n".join(["item_id", *map(str, range(119)), "0", ""]))
    named = folder / "dlrm.pt", "item_id", "examples.adopt_torchrec:make_model", tmp_path / "logs.parquet"
    fit = check_fit(AdoptInput(*named, item_ids=tmp_path / "ids.csv"))
    assert not fit.faults and any("items that are new" in one and "41 items" in one for one in fit.told)
    assert any("--item-ids: 119 IDs for 120 rows of the item table" in one for one in fit.told)


def check(
    folder: Path, *more: object, model: str = "examples.adopt_torchrec:make_model", table: str = "item_id"
) -> int:
    given = ["adopt", folder / "dlrm.pt", "--item-table", table, "--model", model, "--logs", folder / "logs.parquet"]
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in (*given, "--check", *more)])
    return int(end.value.code or 0)


def test_a_dry_run_says_which_tables_shapes_and_logs_fit_and_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    assert check(folder) == 0
    said = capsys.readouterr().out
    logs = pq.read_table(folder / "logs.parquet")
    num_known = int((logs["item_id"].to_numpy() < 120).sum())
    assert f"logs: {num_known:,} rows of 120 items that are in the item table" in said
    assert f"logs: {logs.num_rows - num_known:,} rows of 40 items that are new" in said
    assert "item table 'item_id': 120 items in" in said and "logits [256]" in said
    assert sorted(folder.rglob("*")) == before and not list(tmp_path.iterdir())


def test_a_dry_run_says_what_does_not_fit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd_models.py").write_text(
        """
import torch
from examples import adopt_torchrec

def wide(weights):
    model = adopt_torchrec.make_model(weights)
    model.forward = lambda item, context: torch.zeros(len(item), 1)
    return model

def fails(weights):
    model = adopt_torchrec.make_model(weights)
    model.users = lambda rows: rows["no such column"]
    return model

def deaf(weights):
    model = adopt_torchrec.make_model(weights)
    model.forward = lambda item, context: context.sum(1)
    return model
"""
    )
    for model, message in {
        "wide": "gives [256, 1] for 256 rows, not [n]",
        "fails": "users failed on the first rows: KeyError",
        "deaf": "does not depend on the item's embedding",
    }.items():
        assert check(folder, model=f"odd_models:{model}") == 2
        assert message in capsys.readouterr().out
    assert check(folder, table="nowhere") == 2
    assert "no table has this name" in capsys.readouterr().out
    with pytest.raises(UserError, match="does not depend on the item"):
        adopt_files(
            AdoptInput(folder / "dlrm.pt", "item_id", "odd_models:deaf", folder / "logs.parquet"), tmp_path / "warm"
        )


def _other_weights(key: str, change: Any, folder: Path, output: Path) -> AdoptInput:
    weights = load_weights(folder / "dlrm.pt")
    torch.save({name: change(value) if key in name else value for name, value in weights.items()}, output)
    made, logs = "examples.adopt_torchrec:make_model", folder / "logs.parquet"
    return AdoptInput(output, "item_id", made, logs, None, AdoptSettings())


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(folder: Path, tmp_path: Path) -> None:
    for key, change, message in (
        (
            "item_id",
            lambda value: value.t().contiguous(),
            "failed on the weights: RuntimeError: .*mismatch",
        ),
        ("bias", lambda value: torch.full_like(value, torch.nan), "a weight is not finite"),
    ):
        given = _other_weights(key, change, folder, tmp_path / f"{key}.pt")
        with pytest.raises(UserError, match=f"(?s){message}"):
            adopt_files(given, tmp_path / "out")
        assert check_fit(given).faults and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="none of the 0 weights is a table"):
        find_table({}, "item_id")
