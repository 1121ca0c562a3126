"""Prepared folders: what they hold, when they are reused and when rebuilt, and that nothing half-written stays."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mwuf_dist.config import DataConfig, SyntheticConfig, UserError
from mwuf_dist.data import manifest as manifests
from mwuf_dist.data import shards, sources
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.schema import Field, RawDataset, RawPieces, list_column
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.sources import synthetic
from mwuf_dist.data.split import SPLITS, SplitRule
from tests.data.raw_files import files_of, in_memory
from tests.data.splits import split_rows

# The package offers the function under the name of its module.
prepare_module = importlib.import_module("mwuf_dist.data.prepare.prepare")

COLUMNS = ("user", "item", "label", "time", "row", "bayes_logit")
OPTIONS = SyntheticConfig(num_rows=40_000, num_users=300, num_items=200)


def config_in(folder: Path, **changes: Any) -> DataConfig:
    values = {"synthetic": OPTIONS, "old_above": 150, "warm_rows": 15, "prepared_dir": str(folder)} | changes
    return DataConfig(name="synthetic", **values)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return config_in(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def prepared(config: DataConfig) -> Prepared:
    return prepare(config)


@pytest.fixture
def num_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with every build."""
    builds: list[str] = []

    def build(config: DataConfig, *others: Any) -> dict[str, Any]:
        builds.append(config.name)
        return original(config, *others)

    original = prepare_module._build
    monkeypatch.setattr(prepare_module, "_build", build)
    return builds


def test_shards_hold_the_rows_of_the_split(config: DataConfig, prepared: Prepared) -> None:
    raw = in_memory(synthetic.pieces(config))
    columns = {name: raw.interactions[name].to_numpy() for name in raw.interactions.column_names}
    split = split_rows(columns["item"], columns["time"], 200, SplitRule(150, 15))
    new_index = {int(j): place for place, j in enumerate(split.item_order)}
    for name in SPLITS:
        rows = split.rows[name]
        ours = prepared.columns(name, COLUMNS)
        assert {column: array.dtype.name for column, array in ours.items()} == {
            "user": "int32",
            "item": "int32",
            "label": "int8",
            "time": "int64",
            "row": "int64",
            "bayes_logit": "float32",
        }
        assert (ours["row"] == rows).all()
        assert ours["item"].tolist() == [new_index[int(j)] for j in columns["item"][rows]]
        for column in ("user", "label", "time", "bayes_logit"):
            assert (ours[column] == columns[column][rows]).all()
        assert prepared.manifest["splits"][name]["positives"] == int(columns["label"][rows].sum())


def test_items_stand_in_their_new_order_and_users_in_the_raw_one(config: DataConfig, prepared: Prepared) -> None:
    raw = in_memory(synthetic.pieces(config))
    items, users = prepared.entity("item"), prepared.entity("user")
    order = items.raw_ids - 1
    assert items.num_rows == prepared.num_items == prepared.num_old_items + prepared.num_new_items
    assert (np.diff(order[: prepared.num_old_items]) > 0).all() and (np.diff(order[prepared.num_old_items :]) > 0).all()
    assert users.raw_ids.tolist() == raw.users["raw_id"].to_pylist()
    for table, ours, rows in ((raw.items, items, order), (raw.users, users, np.arange(300))):
        for field in ours.fields:
            column = ours.columns[field.name]
            expected = [table[field.name][int(row)].as_py() for row in rows]
            assert column.values.dtype == np.int32 and column.values.max() < field.size
            if field.kind == "categorical":
                assert column.offsets is None and column.values.tolist() == expected
            else:
                assert column.offsets is not None and column.offsets.dtype == np.int64
                assert [part.tolist() for part in np.split(column.values, column.offsets[1:-1])] == expected


def test_fields_are_those_of_the_source(prepared: Prepared) -> None:
    assert prepared.fields == synthetic.make_world(OPTIONS).fields
    assert all(field.side == "item" for field in prepared.entity("item").fields)


def test_any_range_of_rows_reads_as_a_slice_of_the_whole(
    prepared: Prepared, config: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Small groups and files, so that ranges cross both.
    monkeypatch.setattr(shards, "MIN_ROW_GROUP_ROWS", 70)
    monkeypatch.setattr(shards, "MAX_ROW_GROUP_ROWS", 80)
    monkeypatch.setattr(shards, "MAX_FILE_ROWS", 500)
    small = prepare(dataclasses.replace(config, prepared_dir=str(tmp_path)))
    files = small.manifest["splits"]["test"]["files"]
    assert len(files) > 3 and all(set(file["row_groups"][:-1]) == {70} for file in files[:-1])
    assert sum(sum(file["row_groups"]) for file in files) == small.num_rows("test")
    assert len({sum(file["row_groups"]) for file in files[:-1]}) == 1, "row r must be in group r // row_group_rows"
    whole = prepared.columns("test", COLUMNS)
    generator = np.random.default_rng(0)
    ranges = [(0, 0), (0, 1), (69, 71), (489, 491), (0, small.num_rows("test"))]
    ranges += [tuple(sorted(generator.integers(0, small.num_rows("test") + 1, 2))) for _ in range(50)]
    for start, stop in ranges:
        part = small.read_rows("test", int(start), int(stop), ("item", "time"))
        assert (part["item"] == whole["item"][start:stop]).all()
        assert (part["time"] == whole["time"][start:stop]).all()


def test_reading_a_range_decodes_only_its_row_groups(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    group_rows = prepared.row_group_rows("pretrain")
    read: list[int] = []
    original = shards.pq.ParquetFile.read_row_groups

    def read_row_groups(self: Any, groups: Any, **options: Any) -> pa.Table:
        read.extend(groups)
        assert options["columns"] == ["user"]
        return original(self, groups, **options)

    monkeypatch.setattr(shards.pq.ParquetFile, "read_row_groups", read_row_groups)
    prepared.read_rows("pretrain", group_rows + 1, 3 * group_rows, ["user"])
    assert read == [1, 2]


def test_threads_may_read_at_once_and_a_copy_may_travel(prepared: Prepared) -> None:
    prepared = pickle.loads(pickle.dumps(prepared))
    whole = prepared.columns("pretrain", ["row"])["row"]
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda j: prepared.read_rows("pretrain", j * 100, j * 100 + 100, ["row"])["row"], range(100))
        assert (np.concatenate(list(parts)) == whole[:10_000]).all()


@pytest.mark.parametrize(
    ("rows", "group_rows"), [(0, 1024), (1, 1024), (524_288, 1024), (854_530, 1670), (10**9, 65_536)]
)
def test_row_groups_are_about_512_but_never_tiny_nor_huge(rows: int, group_rows: int) -> None:
    assert shards.row_group_rows(rows) == group_rows


def test_same_config_is_reused(config: DataConfig, prepared: Prepared, num_builds: list[str]) -> None:
    assert prepare(config).path == prepared.path
    assert not num_builds


CHANGES = {
    "generator option": {"synthetic": dataclasses.replace(OPTIONS, label_noise=0.1)},
    "data seed": {"synthetic": dataclasses.replace(OPTIONS, seed=1)},
    "old_above": {"old_above": 160},
    "warm_rows": {"warm_rows": 14},
    "old items as new": {"old_items_as_new": True},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_changed_inputs_are_prepared_anew_beside(
    config: DataConfig, prepared: Prepared, num_builds: list[str], changes: dict[str, Any]
) -> None:
    other = prepare(dataclasses.replace(config, **changes))
    assert other.path != prepared.path and len(num_builds) == 1
    assert prepare(config).path == prepared.path and len(num_builds) == 1


@pytest.mark.parametrize(("module", "version"), [(synthetic, "VERSION"), (manifests, "LAYOUT_VERSION")])
def test_a_new_version_of_the_reader_or_layout_is_prepared_anew(
    config: DataConfig,
    prepared: Prepared,
    num_builds: list[str],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    version: str,
) -> None:
    monkeypatch.setattr(module, version, 99)
    assert prepare(config).path != prepared.path and len(num_builds) == 1


def test_a_changed_raw_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    for name in ("ratings.dat", "users.dat", "movies.dat"):
        (folder / name).write_text("a\n")
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path))
    config = DataConfig(name="movielens-1m", prepared_dir=str(tmp_path / "prepared"))
    before = prepare_module.prepared_folder(config, prepare_module.describe(config))
    (folder / "movies.dat").write_text("b\n")
    assert prepare_module.prepared_folder(config, prepare_module.describe(config)) != before


def test_the_seed_of_played_items_matters_only_when_items_play(config: DataConfig) -> None:
    def folder(**changes: Any) -> Path:
        changed = dataclasses.replace(config, **changes)
        return prepare_module.prepared_folder(changed, prepare_module.describe(changed))

    assert folder(old_items_as_new_seed=1) == folder()
    assert folder(old_items_as_new=True, old_items_as_new_seed=1) != folder(old_items_as_new=True)


DAMAGES = {
    "shard missing": lambda folder: (folder / "warm_b" / "part-00000.parquet").unlink(),
    "shard truncated": lambda folder: (folder / "test" / "part-00000.parquet").write_bytes(b"PAR1"),
    "entity table missing": lambda folder: (folder / "items.parquet").unlink(),
    "manifest missing": lambda folder: (folder / "manifest.json").unlink(),
    "manifest truncated": lambda folder: (folder / "manifest.json").write_text('{"layout": 1,'),
    "manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest without files": lambda folder: (folder / "manifest.json").write_text('{"layout": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_folder_is_rebuilt(tmp_path: Path, num_builds: list[str], damage: Any) -> None:
    config = config_in(tmp_path)
    first = prepare(config)
    intact = files_of(first.path)
    damage(first.path)
    assert prepare(config).path == first.path
    assert len(num_builds) == 2
    assert files_of(first.path) == intact
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


def test_builds_of_several_processes_end_in_one_folder(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with ThreadPoolExecutor(4) as pool:  # Threads race for the same names just as processes do.
        paths = list(pool.map(lambda _: prepare(config).path, range(4)))
    assert len(set(paths)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [paths[0].name]


def test_what_a_killed_build_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    folder = prepare_module.prepared_folder(config_in(tmp_path), prepare_module.describe(config_in(tmp_path)))
    (tmp_path / f".{folder.name}.partial" / ".scratch").mkdir(parents=True)
    (tmp_path / f".{folder.name}.lock").write_text("")
    prepared = prepare(config_in(tmp_path))
    assert list(tmp_path.iterdir()) == [prepared.path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_file", fail)
        with pytest.raises(type(error)):
            prepare(config_in(tmp_path))
    assert not list(tmp_path.iterdir())
    assert prepare(config_in(tmp_path)).num_old_items > 0


def test_no_new_item_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no item is new.*Raise data.old_above or lower data.warm_rows"):
        prepare(config_in(tmp_path, synthetic=dataclasses.replace(OPTIONS, num_items=5), old_above=60))
    assert not list(tmp_path.iterdir())


def test_unknown_data_set_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'movielens' is no data set; did you mean 'movielens-1m'"):
        prepare(DataConfig(name="movielens", prepared_dir=str(tmp_path)))


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*set data.prepared_dir"):
        prepare(config_in(tmp_path / "file" / "below"))


def test_default_folder_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path))
    assert prepare(config_in(Path(), prepared_dir="")).path.parent == tmp_path / "prepared"


def test_positive_shares_tell_played_items_from_really_new_ones(config: DataConfig, prepared: Prepared) -> None:
    raw = in_memory(synthetic.pieces(config)).interactions
    item, label = raw["item"].to_numpy(), raw["label"].to_numpy()
    counts = np.bincount(item, minlength=200)
    really_new = label[((counts >= 45) & (counts <= 150))[item]].mean()
    assert prepared.manifest["positive_share"] == pytest.approx(
        {"old_items": label[(counts > 150)[item]].mean(), "new_items": really_new}, abs=1e-6
    )
    played = prepare(dataclasses.replace(config, old_items_as_new=True)).manifest["positive_share"]
    assert played["really_new_items"] == pytest.approx(really_new, abs=1e-6)
    assert played["new_items"] != pytest.approx(really_new, abs=1e-4)


def test_manifest_says_what_made_the_shards(config: DataConfig, prepared: Prepared) -> None:
    manifest = json.loads((prepared.path / "manifest.json").read_text())
    del manifest["checksum"]  # of the file
    assert manifest == prepared.manifest
    assert manifest["made_of"]["rule"]["old_above"] == 150
    assert manifest["made_of"]["source"]["num_rows"] == 40_000


def hand_made(**changes: Any) -> RawDataset:
    """Item 0 with 12 rows, item 1 with 7; no `bayes_logit`."""
    interactions = {
        "user": pa.array([0, 1] * 9 + [0], pa.int32()),
        "item": pa.array([0] * 12 + [1] * 7, pa.int32()),
        "label": pa.array([0, 1] * 9 + [1], pa.int8()),
        "time": pa.array(range(19), pa.int64()),
    } | changes
    users = pa.table({"raw_id": ["ann", "bob"], "user_id": pa.array([1, 2], pa.int32())})
    items = pa.table({"raw_id": ["x", "y"], "tags": list_column(np.array([2, 1]), np.array([1, 2, 0]))})
    fields = (Field("user_id", "categorical", "user", 3), Field("tags", "multi_valued", "item", 3))
    return RawDataset(pa.table(interactions), users, items, fields)


@pytest.fixture
def prepare_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prepares a hand-made data set."""

    def run(dataset: RawDataset) -> Prepared:
        class HandMade:
            def fingerprint(self, config: DataConfig) -> dict[str, Any]:
                return {"source": "hand-made"}

            def pieces(self, config: DataConfig) -> RawPieces:
                return dataset.in_pieces(config.name)

        monkeypatch.setitem(sources.SOURCES, "hand-made", HandMade())
        return prepare(DataConfig(name="hand-made", old_above=9, warm_rows=2, prepared_dir=str(tmp_path)))

    return run


def test_string_ids_and_data_without_known_probabilities(prepare_raw: Any) -> None:
    prepared = prepare_raw(hand_made())
    assert prepared.entity("user").raw_ids.tolist() == ["ann", "bob"]
    assert "bayes_logit" not in prepared.manifest["columns"]
    assert prepared.columns("test", ["row"])["row"].tolist() == [18]
    tags = prepared.entity("item").columns["tags"]
    assert tags.offsets is not None and (tags.offsets.tolist(), tags.values.tolist()) == ([0, 2, 3], [1, 2, 0])


BAD_ROWS = {
    "label 2": ({"label": pa.array([0, 1, 2] + [0] * 16, pa.int8())}, r"label 2 of row 2 .*neither 0 nor 1"),
    "label -1": ({"label": pa.array([-1] + [0] * 18, pa.int8())}, r"label -1 of row 0 .*neither 0 nor 1"),
    "label missing": ({"label": pa.array([0, None] + [0] * 17, pa.int8())}, r"label None of row 1 .*is missing"),
    "user out of range": ({"user": pa.array([2] + [0] * 18, pa.int32())}, r"user 2 of row 0 .*there are 2 users"),
    "item out of range": ({"item": pa.array([0, -1] * 9 + [0], pa.int32())}, r"item -1 of row 1 .*there are 2 items"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_row_is_named(prepare_raw: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_raw(hand_made(**changes))
    assert not list(tmp_path.iterdir())


BAD_FIELDS = {
    "value beyond the table": pa.array([[1], [3]], pa.list_(pa.int32())),
    "empty list": pa.array([[1], []], pa.list_(pa.int32())),
    "missing value": pa.array([[1], [None]], pa.list_(pa.int32())),
    "another type": pa.array([1, 2], pa.int32()),
}


@pytest.mark.parametrize("column", BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_field_that_breaks_its_declaration_is_a_bug_of_the_source(column: pa.Array) -> None:
    dataset = hand_made()
    items = dataset.items.set_column(1, "tags", column)
    with pytest.raises(AssertionError, match="field tags"):
        dataclasses.replace(dataset, items=items).entities.check()
