"""Made-up raw files: a function of data set, rows and seed alone, with the generator's rows and every quirk in them."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mwuf_dist.config import Config, DataConfig, UserError, build, load_config, merge, read_toml, without_studies
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.readers import csv_pieces
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.sources import cikm2019, synthetic, taobao_ad
from mwuf_dist.data.synthesize import layouts, synthesize
from mwuf_dist.evaluation.report import build_comparison
from mwuf_dist.launch import local

ROOT = Path(__file__).parent.parent.parent
NUM_ROWS = 30_000
PUBLIC = ["cikm2019", "taobao-ad"]
RULE: dict[str, Any] = {"old_above": 60, "warm_rows": 8}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(path: Path, names: list[str] | None = None) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, fieldnames=names))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `MWUF_DATA_DIR` with both data sets."""
    top = tmp_path_factory.mktemp("made")
    for name in PUBLIC:
        synthesize.synthesize(name, NUM_ROWS, top / name)
    return top


def interactions(top: Path, name: str) -> list[tuple[int, int, int, int]]:
    """(user, item, label, time) of each row of the raw file."""
    if name == "taobao-ad":
        rows = read(top / name / "raw_sample.csv")
        return [(int(r["user"]), int(r["adgroup_id"]), int(r["clk"]), int(r["time_stamp"])) for r in rows]
    rows = read(top / name / "user_behavior.csv", ["user", "item", "behaviour", "time"])
    return [(int(r["user"]), int(r["item"]), int(r["behaviour"] == "buy"), int(r["time"])) for r in rows]


@pytest.mark.parametrize("name", [*PUBLIC, "synthetic"])
def test_same_seed_same_files_and_another_seed_other_files(name: str, tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        synthesize.synthesize(name, 5_000, tmp_path / folder, seed)
    a, b, c = (files_of(tmp_path / folder) for folder in "abc")
    assert a == b
    assert a.keys() == c.keys() and not any(a[path] == c[path] for path in a)


@pytest.mark.parametrize("name", PUBLIC)
def test_files_do_not_depend_on_batches_and_buckets(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesize, "BATCH_ROWS", 7_001)
    monkeypatch.setattr(synthesize, "BUCKET_ROWS", 4_000)
    synthesize.synthesize(name, NUM_ROWS, tmp_path / name)
    assert files_of(tmp_path / name) == files_of(made / name)


@pytest.mark.parametrize("name", PUBLIC)
def test_interactions_are_those_of_the_generator_sorted_by_an_id_and_not_by_time(name: str, made: Path) -> None:
    layout = layouts.LAYOUTS[name]
    found = interactions(made, name)
    options = layout.options(NUM_ROWS, 0)
    (batch,) = synthetic.generate_batches(options, NUM_ROWS)
    generated = zip(*(batch[column].to_pylist() for column in ("user", "item", "label")), strict=True)
    assert Counter(row[:3] for row in found) == Counter((user + 1, item + 1, label) for user, item, label in generated)

    ids = [row[0 if layout.sorted_by == "user" else 1] for row in found]
    times = [row[3] for row in found]
    assert ids == sorted(ids) and times != sorted(times)
    assert max(times) - min(times) > 0.95 * layout.span_s
    # Earlier rows of the generator are earlier here.
    of_generator = sorted(zip(batch["time"].to_pylist(), batch["user"].to_pylist(), strict=True))
    of_file = sorted((row[3], row[0] - 1) for row in found)
    same = np.mean([a == b for (_, a), (_, b) in zip(of_generator, of_file, strict=True)])
    assert same > 0.5, "but for ties, the order in time is the generator's"


def test_columns_of_taobao_ads_and_users_tell_the_fields_of_the_generator(made: Path) -> None:
    world = synthetic.make_world(layouts.LAYOUTS["taobao-ad"].options(NUM_ROWS, 0))
    ads = {int(row["adgroup_id"]): row for row in read(made / "taobao-ad" / "ad_feature.csv")}
    items = world.items.to_pylist()
    assert all(int(ads[item["raw_id"]]["cate_id"]) == item["category"] for item in items)
    assert all(ads[item["raw_id"]]["brand"] in ("NULL", str(item["brand"])) for item in items)
    pairs = {(tuple(item["tags"]), ads[item["raw_id"]]["customer"]) for item in items}
    assert len(pairs) == len({tags for tags, _ in pairs}) == len({customer for _, customer in pairs})
    campaigns = {(ad["campaign_id"], ad["customer"]) for ad in ads.values()}
    assert len(campaigns) == len({campaign for campaign, _ in campaigns}), "a campaign has one customer"
    prices = [math.log(float(ads[item["raw_id"]]["price"])) for item in items]
    assert np.corrcoef(prices, world.item_vectors[:, -1])[0, 1] > 0.3

    profiles = {int(row["userid"]): row for row in read(made / "taobao-ad" / "user_profile.csv")}
    for user in world.users.to_pylist():
        if user["raw_id"] in profiles:
            assert int(profiles[user["raw_id"]]["age_level"]) == user["age_group"] - 1
            assert int(profiles[user["raw_id"]]["cms_segid"]) % 20 == user["region"] - 1


def test_columns_of_cikm_items_and_users_tell_the_fields_of_the_generator(made: Path) -> None:
    world = synthetic.make_world(layouts.LAYOUTS["cikm2019"].options(NUM_ROWS, 0))
    rows = read(made / "cikm2019" / "item.csv", ["item", "category", "shop", "brand"])
    by_id = {int(row["item"]): row for row in rows}
    items = world.items.to_pylist()
    assert all(int(by_id[item["raw_id"]]["category"]) == item["category"] for item in items)
    assert all(int(by_id[item["raw_id"]]["brand"]) == item["brand"] for item in items)
    pairs = {(tuple(item["tags"]), by_id[item["raw_id"]]["shop"]) for item in items}
    assert len(pairs) == len({tags for tags, _ in pairs}) == len({shop for _, shop in pairs})
    users = read(made / "cikm2019" / "user.csv", ["user", "gender", "age", "power"])
    assert [int(row["power"]) for row in users] == world.users["region"].to_pylist()
    assert [int(row["age"]) // 8 - 1 for row in users] == world.users["age_group"].to_pylist()


def test_quirks_of_the_real_taobao_files_are_there(made: Path) -> None:
    folder = made / "taobao-ad"
    sample, ads, profiles = (read(folder / name) for name in taobao_ad.FILES)
    assert tuple(sample[0]) == taobao_ad.SAMPLE.header
    assert list(profiles[0])[-1] == "new_user_class_level "
    assert {row["pid"] for row in sample} == {"430548_1007", "430539_1007"}
    assert all(int(row["nonclk"]) + int(row["clk"]) == 1 for row in sample)
    # No statistical bound: the real files have 5.1 % of clicks, and one of 3 to 7 % trains alike.
    assert 0.03 < np.mean([int(row["clk"]) for row in sample]) < 0.07
    assert all(1_494_000_000 <= int(row["time_stamp"]) < 1_494_691_200 for row in sample)
    assert 0.2 < np.mean([row["brand"] == "NULL" for row in ads]) < 0.5
    prices = [row["price"] for row in ads]
    assert {"0.01", "100000000.0"} <= set(prices) and all("." in price for price in prices)
    customers = [int(row["customer"]) for row in ads]
    assert customers == sorted(customers), "ads lie by customer, not by their own ID"
    assert 0.4 < np.mean([row["pvalue_level"] == "" for row in profiles]) < 0.7
    assert 0.2 < np.mean([row["new_user_class_level "] == "" for row in profiles]) < 0.5
    missing = 1 - len(profiles) / layouts.LAYOUTS["taobao-ad"].options(NUM_ROWS, 0).num_users
    assert 0.03 < missing < 0.12


def test_quirks_of_the_real_cikm_files_are_there(made: Path) -> None:
    folder = made / "cikm2019"
    rows = read(folder / "user_behavior.csv", ["user", "item", "behaviour", "time"])
    shares = Counter(row["behaviour"] for row in rows)
    assert set(shares) == set(cikm2019.BEHAVIOURS) and shares["pv"] > 0.7 * len(rows)
    assert all(0 <= int(row["time"]) < 16 * 86_400 for row in rows)
    items = [line.split(",")[0] for line in (folder / "item.csv").read_text().splitlines()]
    assert len(items) > len(set(items)), "items stand there more than once"
    assert all(item.isdigit() for item in items), "there is no line of names"


@pytest.mark.parametrize("name", PUBLIC)
def test_prepared_counts_follow_from_the_raw_file(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MWUF_DATA_DIR", str(made))
    prepared = prepare(DataConfig(name=name, prepared_dir=str(tmp_path), **RULE))
    rows = interactions(made, name)
    counts = Counter(item for _, item, _, _ in rows)
    old = {item for item, count in counts.items() if count > 60}
    new = {item for item, count in counts.items() if 24 <= count <= 60}
    assert (prepared.num_old_items, prepared.num_new_items) == (len(old), len(new))
    assert prepared.num_rows("pretrain") == sum(counts[item] for item in old)
    assert prepared.num_rows("warm_a") == prepared.num_rows("warm_c") == 8 * len(new)
    assert prepared.num_rows("test") == sum(counts[item] - 24 for item in new)
    assert prepared.num_users == len({user for user, *_ in rows})
    positives = sum(split["positives"] for split in prepared.manifest["splits"].values())
    assert positives == sum(label for _, item, label, _ in rows if item in old | new)


def test_the_generated_data_set_can_be_read_as_a_log(tmp_path: Path) -> None:
    synthesize.synthesize("synthetic", NUM_ROWS, tmp_path / "raw")
    raw = {"interactions": "raw/interactions", "users": "raw/users.parquet", "items": "raw/items.parquet"}
    fields = [{"name": "region", "side": "user"}, {"name": "tags", "side": "item", "kind": "multi_valued"}]
    logs = {key: str(tmp_path / path) for key, path in raw.items()} | {"label": "label", "fields": fields}
    data = {"name": "logs", "logs": logs, "prepared_dir": str(tmp_path / "prepared")}
    prepared = prepare(build({"data": data}).data)
    assert prepared.num_old_items > 20 and prepared.num_new_items > 0
    assert [field.name for field in prepared.fields] == ["user_id", "region", "tags"]


@pytest.mark.parametrize("name", PUBLIC)
def test_prepared_files_do_not_depend_on_the_size_of_blocks(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MWUF_DATA_DIR", str(made))

    def prepared(folder: str) -> Prepared:
        return prepare(DataConfig(name=name, prepared_dir=str(tmp_path / folder), **RULE))

    whole = files_of(prepared("whole").path)
    monkeypatch.setattr(csv_pieces, "BLOCK_BYTES", 10_000)
    assert files_of(prepared("blocks").path) == whole


@pytest.mark.parametrize("name", PUBLIC)
def test_the_whole_protocol_runs_by_the_config_of_the_data_set_and_is_not_taken_for_the_real_data(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MWUF_DATA_DIR", str(made))
    steps = {"batch_size": 512}
    changes = {"data": RULE, "pretrain": steps, "meta_train": steps, "warm_up": {"batch_size": 512, "epochs": 1}}
    values = without_studies(read_toml(ROOT / "configs" / f"{name}.toml"))
    config = build(merge(merge(values, changes), {"embedding": {"dim": 8}, "runtime": {"progress": "off"}}))
    assert config.data.name == name
    results = local.train(config, tmp_path / "run")
    assert results["phases"].keys() == {"cold", "warm-a", "warm-b", "warm-c"}
    assert all(0 < phase["auc_test"] < 1 for phase in results["phases"].values())
    assert results["dataset"] == f"{name} (synthesized)"
    (row,) = build_comparison([results])["rows"]
    assert not row["published"], "figures of the real data beside those of made-up data would mislead"


@pytest.mark.parametrize(("name", "rule"), [("taobao-ad", (2000, 500)), ("cikm2019", (200, 50))])
def test_config_has_the_thresholds_of_the_paper_and_keeps_large_tables_fused(name: str, rule: tuple[int, int]) -> None:
    config: Config = load_config(ROOT / "configs" / f"{name}.toml")
    assert (config.data.name, config.data.old_above, config.data.warm_rows) == (name, *rule)
    full = layouts.LAYOUTS[name].options(layouts.LAYOUTS[name].rows, 0)
    assert config.embedding.optimizer == "auto" and config.embedding.fused_above_rows < full.num_users


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "criteo"}, "no data set 'criteo' to synthesize: there are cikm2019, synthetic, taobao-ad"),
        ({"num_rows": 999}, "--rows 999: must be between 1000 and"),
        ({"num_rows": 1 << 32}, "--rows 4294967296: must be between"),
        ({"seed": -1}, "--seed -1: must be"),
    ],
)
def test_a_wrong_option_is_told_and_leaves_nothing(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    options = {"name": "taobao-ad", "num_rows": 5_000, "folder": tmp_path / "out"} | arguments
    with pytest.raises(UserError, match=message):
        synthesize.synthesize(**options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(UserError, match="already holds something; name a new folder"):
        synthesize.synthesize("taobao-ad", 5_000, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_an_interrupted_synthesis_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesize, "_rows_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize.synthesize("cikm2019", 5_000, tmp_path / "out")
    assert not list(tmp_path.iterdir())
