"""`mwuf init`: what it proposes for logs of several kinds is accepted by `mwuf prepare` and `mwuf run` as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.config import SyntheticConfig, UserError, build, load_config
from mwuf_dist.data.init_config.fields import kind_of
from mwuf_dist.data.init_config.propose import Asked, Proposal, propose
from mwuf_dist.data.init_config.write_config import choose, write_config
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.sources import synthetic


def mwuf(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated log as it would lie somewhere, with its side tables."""
    folder = tmp_path_factory.mktemp("generated") / "log"
    synthetic.write_raw(SyntheticConfig(num_rows=12_000, num_users=150, num_items=120), folder)
    return folder


@pytest.fixture(scope="module")
def proposed(generated: Path) -> Path:
    """The config that `mwuf init` writes for it."""
    path = generated.parent / "mine.toml"
    sides = [f"--{side}s={generated / f'{side}s.parquet'}" for side in ("user", "item")]
    assert mwuf("init", generated / "interactions", *sides, "--output", path) == 0
    return path


def test_the_proposal_for_a_generated_log_is_what_the_log_is(proposed: Path) -> None:
    logs = load_config(proposed).data.logs
    assert (logs.user, logs.item, logs.time, logs.label) == ("user_id", "item_id", "timestamp", "label")
    kinds = {field.name: (field.side, field.kind) for field in logs.fields}
    assert kinds["category"] == ("item", "categorical") and kinds["tags"] == ("item", "multi_valued")
    assert kinds["age_group"] == ("user", "categorical")


def test_the_whole_protocol_runs_on_the_proposal_without_edits(proposed: Path, tmp_path: Path) -> None:
    assert mwuf("prepare", proposed) == 0
    data = prepare(load_config(proposed).data)
    assert data.num_old_items >= 10 and data.num_new_items >= 10
    quick = ["--pretrain.epochs", 1, "--warm-up.epochs", 1, "--embedding.dim", 4, "--runtime.progress", "off"]
    assert mwuf("run", proposed, "--output", tmp_path / "run", *quick) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dataset"] == "logs" and set(results["phases"]) == {"cold", "warm-a", "warm-b", "warm-c"}
    assert results["split"]["new_items"] == data.num_new_items


def test_an_existing_config_is_not_overwritten(generated: Path, proposed: Path) -> None:
    before = proposed.read_text()
    assert mwuf("init", generated / "interactions", "--output", proposed) == 2
    assert proposed.read_text() == before


def proposal(folder: Path, **columns: list[object]) -> Proposal:
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return propose(str(folder / "log.parquet"))


def base(num: int = 60) -> dict[str, list[object]]:
    return {
        "uid": [f"u{index % 10}" for index in range(num)],
        "productId": [index * 7 % 12 for index in range(num)],
        "created_at": [1_600_000_000 + index for index in range(num)],
    }


def test_a_rating_is_cut_where_it_halves_the_rows(tmp_path: Path) -> None:
    options = proposal(tmp_path, **base(), rating=[1 + index % 5 for index in range(60)]).options
    assert (options.user, options.item, options.time) == ("uid", "productId", "created_at")
    assert (options.label_from, options.label_at_least) in {("rating", 3.0), ("rating", 4.0)}


def test_actions_give_the_most_telling_one_as_positive(tmp_path: Path) -> None:
    action = [("view", "cart", "purchase")[index % 3] for index in range(60)]
    options = proposal(tmp_path, **base(), event_type=action).options
    assert (options.label_from, options.label_is) == ("event_type", ("purchase",))


def test_logs_without_a_label_get_negatives(tmp_path: Path) -> None:
    found = proposal(tmp_path, **base())
    assert found.options.negatives_per_positive > 0 and "negatives_per_positive" in found.notes


def test_columns_are_fields_of_those_for_whom_they_are_constant(tmp_path: Path) -> None:
    columns = base(600)
    columns["productId"] = [index * 7 % 12 if index < 480 else index % 6 for index in range(600)]
    columns["city"] = [f"c{str(user)[1:]}" for user in columns["uid"]]
    columns["shelf"] = [f"s{int(str(item)) % 4}" for item in columns["productId"]]
    columns["device"] = [("phone", "tablet", "tv")[index * index % 7 % 3] for index in range(600)]
    columns["adPosition"] = [index * index % 11 for index in range(600)]
    columns["dwell"] = [index * index % 53 for index in range(600)]
    found = proposal(tmp_path, **columns)
    sides = {"city": "user", "shelf": "item", "device": "row", "adPosition": "row"}
    assert {field.name: field.side for field in found.options.fields} == sides
    assert set(found.left_out) == {"dwell"} and 'it can be a field with side = "row"' in found.left_out["dwell"]
    assert "leave it out if it is known only after the label" in found.notes["field device"]
    path = tmp_path / "mine.toml"
    assert mwuf("init", tmp_path / "log.parquet", "--output", path) == 0
    assert prepare(load_config(path).data).row_columns == ("row:adPosition", "row:device")


def test_the_share_that_makes_a_column_a_feature_is_said_and_an_option(tmp_path: Path) -> None:
    columns = base(600)
    columns["city"] = [f"c{str(user)[1:]}" for user in columns["uid"]]
    columns["city"][0] = "elsewhere"  # one user of ten has two
    found = proposal(tmp_path, **columns)
    assert not found.options.fields and "90.0% of the users and" in found.left_out["city"]
    found = propose(str(tmp_path / "log.parquet"), asked=Asked(constant_share=0.9))
    assert [(field.name, field.side) for field in found.options.fields] == [("city", "user")]
    assert "90.0% of the users" in found.notes["field city"]


@pytest.mark.parametrize(
    ("name", "numbers", "kind"),
    [
        ("i_zone", range(1000, 1900, 7), "categorical"),  # written like IDs
        ("i_category", range(57), "categorical"),  # a code by its name
        ("visits", range(57), "numeric"),
        ("release_year", range(1920, 2020), "numeric"),
        ("price", range(1000, 1900, 7), "numeric"),
        ("score", [one / 4 for one in range(50)], "numeric"),
    ],
)
def test_whole_numbers_that_are_ids_are_categories_and_amounts_are_numeric(
    name: str, numbers: list[float], kind: str
) -> None:
    assert kind_of(name, pa.chunked_array([[one for one in numbers for _ in range(3)]]))[0] == kind


def test_an_item_crosses_from_new_to_old_at_the_next_training(tmp_path: Path) -> None:
    def trained_on(num: int) -> dict[int, str]:
        counts = [(range(20), 40), (range(100, 120), num), (range(200, 210), 12)]
        item = np.concatenate([np.repeat(items, rows) for items, rows in counts])
        columns = {
            "user_id": np.arange(len(item)) % 50,
            "item_id": item,
            "timestamp": 1_600_000_000 + np.arange(len(item)),
        }
        pq.write_table(pa.table(columns | {"label": np.arange(len(item)) % 3 // 2}), tmp_path / "log.parquet")
        own = {"interactions": str(tmp_path / "log.parquet"), "label": "label"}
        data = prepare(build({"data": {"name": "logs", "old_above": 30, "warm_rows": 3, "logs": own}}).data)
        ids = data.raw_ids("item").to_pylist()
        return {one: "old" if place < data.num_old_items else "new" for place, one in enumerate(ids)}

    before, after = trained_on(15), trained_on(35)
    assert {before[one] for one in range(100, 120)} == {"new"} and {before[one] for one in range(20)} == {"old"}
    assert {after[one] for one in range(120) if one in after} == {"old"} and after[200] == "new"


def test_a_log_whose_item_has_no_telling_name_asks_for_it(tmp_path: Path) -> None:
    columns = base()
    columns["thing"] = columns.pop("productId")
    with pytest.raises(UserError, match="no column looks like the item; name it: --item one of created_at, thing"):
        proposal(tmp_path, **columns)
    assert propose(str(tmp_path / "log.parquet"), asked=Asked(item="thing")).options.item == "thing"


def test_the_choice_of_n_and_k_has_old_and_new_items_or_says_why_not() -> None:
    counts = np.concatenate([np.full(40, 900), np.full(40, 150), np.full(100, 3)])
    old_above, warm_rows = choose(counts)
    assert (counts > old_above).sum() >= 10 and ((counts >= 3 * warm_rows) & (counts <= old_above)).sum() >= 10
    with pytest.raises(UserError, match="at most 3 rows each"):
        choose(np.full(50, 3))


def test_new_items_that_came_long_ago_are_said_and_a_launch_date_is_proposed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    counts = np.concatenate([np.full(30, 300), np.full(30, 60)])
    item = np.repeat(np.arange(60), counts)
    begin = np.where(item < 45, 0.0, 0.8)  # of the 30 items with few rows 15 come late
    day = begin + (1 - begin) * random.random(len(item))
    columns = {
        "user_id": random.integers(50, size=len(item)),
        "item_id": item,
        "timestamp": 1_600_000_000 + (100 * 86_400 * day).astype(int),
        "label": random.integers(2, size=len(item)),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    path = tmp_path / "mine.toml"
    assert mwuf("init", tmp_path / "log.parquet", "--output", path) == 0
    text = path.read_text()
    assert "15 of these 30 new items" not in text  # half of them: no majority
    pq.write_table(pa.table(columns).filter(pa.array(item != 59)), tmp_path / "log.parquet")
    path.unlink()
    assert mwuf("init", tmp_path / "log.parquet", "--output", path) == 0
    text = path.read_text()
    assert "# 15 of these 29 new items were first seen in the first tenth" in text
    line = next(one for one in text.split("\n") if one.startswith("# new_since"))
    assert "would take the 14 items" in line
    since = line.split('"')[1]
    prepared = prepare(load_config(path, {"data": {"new_since": since, "warm_rows": 15}}).data)
    assert sorted(prepared.raw_ids("item").to_pylist()[prepared.num_old_items :]) == list(range(45, 59))


def test_an_hour_of_the_day_is_not_the_time_and_not_said_to_be_one(tmp_path: Path) -> None:
    columns = base(600)
    columns["hour"] = [index * 7 % 24 for index in range(600)]
    found = proposal(tmp_path, **columns)
    assert found.options.time and "hour" not in found.notes["time"]
    del columns[found.options.time]
    found = proposal(tmp_path, **columns)
    assert found.options.time == "" and "hour holds hours of the day" in found.notes["time"]
    # A column of the same name that holds moments is one.
    columns["hour"] = [1_600_000_000 + 3600 * index for index in range(600)]
    assert proposal(tmp_path, **columns).options.time == "hour"


def test_columns_that_are_left_out_for_one_reason_are_listed_in_one_comment(tmp_path: Path) -> None:
    columns = base(600)
    columns["productId"] = [index % 4 if index % 3 else 4 + index // 3 % 20 for index in range(600)]
    for number in range(5):
        columns[f"odd {number}"] = [index * (index + number) % 53 for index in range(600)]
    found = proposal(tmp_path, **columns)
    assert len(found.left_out) == 5
    text = write_config(found)
    (tmp_path / "mine.toml").write_text(text)
    assert load_config(tmp_path / "mine.toml").data.logs.user == "uid"
    said = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert said.count("it changes from row to row") == said.count('side = "row"') == 1
    assert "Each of 5 columns is left out: " in said
    for name, why in found.left_out.items():
        users, items = (part.split("%")[0].split()[-1].lstrip("(") for part in why.split("of the")[:2])
        full = f"'{name}' ({users}% of the users and {items}% of the items have one value)"
        assert full in said if name == "odd 0" else f"'{name}' ({users}%, {items}%)" in said
