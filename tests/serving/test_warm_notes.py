"""What a later file has that the run's own logs do not is refused with its place, or counted and said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import Config, UserError
from mwuf_dist.config.logs import Written
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.readers.gate import DataForm
from mwuf_dist.data.shards import Prepared
from mwuf_dist.serving.served_log import NewRows
from mwuf_dist.serving.warm.alarms import alarms, usual_fractions
from mwuf_dist.serving.warm.change import OTHERWISE
from mwuf_dist.serving.warm.interactions import Columns, log_options, read_files
from mwuf_dist.serving.warm.item_fields import read_fields
from tests.serving.own_logs import COLORS, a_day, config_for, make_logs, write

NUM_ROWS = 60


def with_events(table: pa.Table) -> pa.Table:
    """The rows with what was done in the place of the label, and the device and the hour."""
    label, rows = table["label"].to_pylist(), np.arange(table.num_rows)
    table = table.append_column("event", pa.array(["buy" if one else "view" for one in label])).drop(["label"])
    table = table.append_column("device", pa.array([("web", "app")[one % 2] for one in rows]))
    return table.append_column("hour", pa.array(rows % 24))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Prepared]:
    folder = tmp_path_factory.mktemp("notes")
    write(with_events(make_logs()), folder / "log.csv")
    rows: list[dict[str, Any]] = [
        {"name": "device", "side": "row"},
        {"name": "hour", "side": "row", "kind": "numeric"},
    ]
    fields: list[dict[str, Any]] = [
        {"name": "color", "side": "item"},
        {"name": "price", "side": "item", "kind": "numeric"},
    ]
    config = config_for(folder, label="", label_from="event", label_is=["buy"], fields=[*fields, *rows])
    return config, prepare(config.data)


def read(data: tuple[Config, Prepared], path: Path, written: Written | None = None) -> NewRows:
    config, prepared = data
    return read_files((path,), (), log_options(config, Columns(written=written or Written())), prepared, is_logs=True)


def day_with(name: str, values: list[Any] | pa.Array) -> pa.Table:
    day = with_events(a_day(num_rows=NUM_ROWS))
    return day.set_column(day.column_names.index(name), name, pa.array(values))


def test_a_plain_day_has_no_note(data: tuple[Config, Prepared], tmp_path: Path) -> None:
    assert read(data, write(with_events(a_day()), tmp_path / "day.csv")).notes == ()


def test_words_that_the_run_does_not_have_are_counted_in_labels_and_fields_of_rows(
    data: tuple[Config, Prepared], tmp_path: Path
) -> None:
    events = with_events(a_day())["event"].to_pylist()
    found = read(data, write(day_with("event", ["share", "Buy", "share", *events[3:]]), tmp_path / "event.csv"))
    assert found.log["label"][:3].tolist() == [0, 0, 0]
    assert found.notes == (
        "3 of 60 rows have a value of event that the run's logs have not ('share', 'Buy'): their label is 0, as "
        "positive is 'buy' alone",
    )
    found = read(data, write(day_with("device", ["watch"] * 7 + ["web"] * 53), tmp_path / "device.csv"))
    assert found.notes == (
        "device: 7 of 60 rows have a value that is none that the run knows (like 'watch'): it counts as unknown",
    )
    found = read(data, write(day_with("hour", ["noon", None, *map(str, range(58))]), tmp_path / "hour.csv"))
    assert found.notes == ("hour: 1 of 60 rows have a value that is no number (like 'noon'): it counts as unknown",)


def test_forms_without_the_words_of_labels_are_read(data: tuple[Config, Prepared]) -> None:
    kept = dict(data[1].manifest["form"])
    assert DataForm.from_dict(json.loads(json.dumps(kept))).labels == ("buy", "view")
    del kept["labels"]
    assert DataForm.from_dict(kept).labels == ()


def test_a_list_where_the_run_has_one_value_is_refused(data: tuple[Config, Prepared], tmp_path: Path) -> None:
    path = tmp_path / "day.parquet"
    pq.write_table(day_with("device", [["web"]] * NUM_ROWS), path)
    with pytest.raises(UserError, match=r"day.parquet: device is a list, and field 'device' .* takes one value"):
        read(data, path)
    items = pa.table({"item_id": [950], "color": [["red"]], "price": [1]})
    pq.write_table(items, tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"items.parquet: column 'color' is a list, and field 'color' .* takes one"):
        fields_of(data, tmp_path / "items.parquet")


def fields_of(data: tuple[Config, Prepared], path: Path) -> tuple[pa.Array, pa.Table, list[str]]:
    config, prepared = data
    return read_fields(path, log_options(config, Columns()), prepared, is_logs=True)


def test_what_a_table_of_items_has_that_is_not_used_is_counted(data: tuple[Config, Prepared], tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,color,price\n950,purple,3\n951,red,cheap\n,red,1\n900,red,1\n0952,blue,2\n952,green,2\n")
    ids, fields, notes = fields_of(data, path)
    assert ids.to_pylist() == [900, 950, 951, 952]
    colors = sorted(COLORS)
    assert fields["color"].to_pylist() == [1 + colors.index(one) if one else 0 for one in ("red", "", "red", "blue")]
    assert notes == [
        "--items: 1 of 6 rows are left out: no item_id",
        "--items: 1 of 4 items are the run's own, whose fields stay",
        "color: 1 items have several rows with other values; the first counts",
        "color: 1 of 4 items have a value that is none that the run knows (like 'purple'): it counts as unknown",
        "price: 1 of 4 items have a value that is no number (like 'cheap'): it counts as unknown",
    ]


def test_ids_that_the_run_could_not_have_are_refused_with_their_place_or_counted(
    data: tuple[Config, Prepared], tmp_path: Path
) -> None:
    items = with_events(a_day())["item_id"].to_pylist()
    path = write(day_with("item_id", [str(items[0]), "x7", *map(str, items[2:])]), tmp_path / "day.csv")
    with pytest.raises(UserError, match=r"day.csv:3: item_id is 'x7', and all items of the run have whole numbers"):
        read(data, path)
    (tmp_path / "items.csv").write_text("item_id,color,price\n1234567890123456789,red,3\nx951,red,3\n")
    with pytest.raises(UserError, match=r"items.csv:3: item_id is 'x951', and all items of the run have whole"):
        fields_of(data, tmp_path / "items.csv")
    users = with_events(a_day())["user_id"].to_pylist()
    found = read(data, write(day_with("user_id", ["anonymous", *map(str, users[1:])]), tmp_path / "users.csv"))
    assert found.log["user"][0] == -1 and (found.log["user"][1:] >= 0).all()
    assert any("1 of 3" in note and "'anonymous'" in note and "get no row (--users)" in note for note in found.notes)


def test_items_of_a_table_have_the_zeros_of_the_runs_ids(tmp_path: Path) -> None:
    log = make_logs()
    place = log.column_names.index("item_id")
    padded = log.set_column(place, "item_id", pa.array([f"{one:05d}" for one in log["item_id"].to_pylist()]))
    write(padded, tmp_path / "log.csv")
    config = config_for(tmp_path)
    (tmp_path / "items.csv").write_text("item_id,color,price\n950,red,3\n00951,red,3\n")
    ids, _, notes = fields_of((config, prepare(config.data)), tmp_path / "items.csv")
    assert ids.to_pylist() == ["00950", "00951"] and not notes


def test_rows_in_the_future_are_counted(data: tuple[Config, Prepared], tmp_path: Path) -> None:
    times = a_day()["timestamp"].to_pylist()
    found = read(data, write(day_with("timestamp", [*times[:-1], 4_200_000_000]), tmp_path / "day.csv"))
    assert found.notes == (
        "1 of 60 rows have a timestamp in the future, up to 2103-02-04: if a clock was wrong, correct them",
    )


def test_rows_that_lack_something_are_left_out_where_the_command_says_so(
    data: tuple[Config, Prepared], tmp_path: Path
) -> None:
    users = with_events(a_day())["user_id"].to_pylist()
    path = write(day_with("user_id", [None, *users[1:]]), tmp_path / "day.csv")
    with pytest.raises(UserError, match=r"day.csv:2: user_id is missing \(1 of 60 rows\).*--drop-incomplete"):
        read(data, path)
    found = read(data, path, Written(drop_incomplete=True))
    assert found.num_rows == 59 and found.notes == ("1 of 60 rows are left out: no user_id",)


def test_a_file_that_is_cut_short_or_has_names_alone_says_what_to_do(
    data: tuple[Config, Prepared], tmp_path: Path
) -> None:
    whole = write(with_events(a_day()), tmp_path / "day.csv").read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(whole)[:300])
    with pytest.raises(UserError, match=r"cut.csv.gz: the compressed file is cut short .*: copy or write it again"):
        read(data, tmp_path / "cut.csv.gz")
    (tmp_path / "names.csv").write_bytes(whole.splitlines(keepends=True)[0])
    with pytest.raises(UserError, match=r"names.csv: no rows of interactions, only names.*leave the file out"):
        read(data, tmp_path / "names.csv")


def test_a_day_without_a_positive_sounds_an_alarm_and_a_short_one_does_not(data: tuple[Config, Prepared]) -> None:
    usual = usual_fractions(data[1])
    sets = [data[1].manifest["splits"][name] for name in ("warm_a", "warm_b", "warm_c")]
    assert usual == {
        OTHERWISE: 0.0,
        "positive": sum(one["positives"] for one in sets) / sum(one["rows"] for one in sets),
    }
    assert alarms({"positive": 0.0}, [], {"positive": 0.2}, 100) == [
        "ALARM: 0% of the rows are positive, 20% in the run's own sets"
    ]
    assert alarms({"positive": 0.0}, [{"positive": 0.2}], {}, 100)[0].endswith("20% on the days before")
    assert alarms({"positive": 0.0}, [], {"positive": 0.2}, 99) == []  # under twenty were likely
    assert alarms({"positive": 0.6}, [], {"positive": 0.2}, 1) == [
        "ALARM: 60% of the rows are positive, 20% in the run's own sets"
    ]
    assert alarms({"positive": 0.5}, [], {}, 100) == []  # a run that does not know
    # One item's rows, or one user's, come together: that they do not come says little.
    assert alarms({"of users never seen": 0.0}, [{"of users never seen": 0.03}], {}, 1000) == []
