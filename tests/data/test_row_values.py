"""Rows of own logs have fields of their own and weights: what is prepared of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist.config import UserError, build
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.schema import row_column
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.sources import logs
from mwuf_dist.data.vocabulary import read

WEIGHTS = {"click": 1.0, "cart": 2.5, "buy": 5.0}


def table(num: int = 400) -> pa.Table:
    """Item i has rows i, i + 10, ...; 8 and 9 have fewer, so that they are new."""
    row = np.arange(num)
    item = np.where((row % 10 >= 8) & (row >= 120), row % 8, row % 10)
    columns = {
        "user_id": row % 37,
        "item_id": item,
        "timestamp": 1_600_000_000 + row,
        "event": [("click", "cart", "view", "buy")[one % 4] for one in row],
        "device": [("web", "app", None)[one % 3] for one in row],
        "hour": row % 24,
        "value": row % 7 + 0.5,
    }
    return pa.table(columns)


def config_of(folder: Path, **options: Any) -> Any:
    path = folder / "log.parquet"
    if not path.exists():
        pq.write_table(table(), path)
    fields = [
        {"name": "hour", "side": "row", "kind": "numeric", "buckets": 3},
        {"name": "device", "side": "row", "min_count": 2},
    ]
    own = {"interactions": str(path), "label_from": "event", "label_is": ["click", "cart", "buy"], "fields": fields}
    return build({"data": {"name": "logs", "old_above": 20, "warm_rows": 3, "logs": own | options}})


def rows_of(prepared: Prepared) -> dict[str, np.ndarray]:
    """All rows of a prepared folder in the order of the raw file."""
    names = ("row", "label", *prepared.row_columns)
    parts = [prepared.columns(split, names) for split in prepared.manifest["splits"]]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    order = np.argsort(columns["row"])
    return {name: values[order] for name, values in columns.items()}


def test_each_row_has_its_own_values_and_its_own_weight(tmp_path: Path) -> None:
    weights = [f"{name}={weight}" for name, weight in WEIGHTS.items()]
    prepared = prepare(config_of(tmp_path, weight="event", weights=weights).data)
    raw, found, words = table(), rows_of(prepared), read(prepared)
    assert words is not None and len(found["row"]) == 400
    assert prepared.row_columns == ("row:device", "row:hour", "weight")
    assert [(field.name, field.size) for field in prepared.row_fields] == [("device", 3), ("hour", 4)]
    assert words["device"]["word"].to_pylist() == ["app", "web"]
    edges = words["hour"]["edge"].to_pylist()
    for row, device, hour, weight in zip(
        found["row"], found[row_column("device")], found[row_column("hour")], found["weight"], strict=True
    ):
        known = raw.slice(int(row), 1).to_pylist()[0]
        assert device == {"app": 1, "web": 2, None: 0}[known["device"]]
        assert known["hour"] <= edges[hour - 1] and (hour == 1 or known["hour"] > edges[hour - 2])
        assert weight == WEIGHTS.get(known["event"], 1.0)
    assert {one["word"] for one in words["hour"].to_pylist()} == {None}
    assert not {"device", "hour"} & {*prepared.entity("user").columns, *prepared.entity("item").columns}


def test_a_number_is_a_weight_and_drawn_rows_weigh_one_with_the_values_of_their_positive(tmp_path: Path) -> None:
    options = {"label_from": "", "label_is": [], "negatives_per_positive": 2, "weight": "value"}
    prepared = prepare(config_of(tmp_path, **options).data)
    found = rows_of(prepared)
    is_drawn = found["label"] == 0
    assert is_drawn.sum() > 10 and (found["weight"][is_drawn] == 1).all()
    assert found["weight"][~is_drawn].tolist() == table()["value"].to_pylist()
    # A positive stands behind the rows that are drawn for it.
    positive = np.flatnonzero(~is_drawn)
    own = positive[np.searchsorted(positive, np.flatnonzero(is_drawn))]
    for name in ("device", "hour"):
        values = found[row_column(name)]
        assert (values[is_drawn] == values[own]).all()


def test_prepared_data_without_them_have_the_fingerprint_that_they_had(tmp_path: Path) -> None:
    found = logs.fingerprint(config_of(tmp_path, fields=[]).data)
    assert not {"weight", "weights"} & {*found}
    assert logs.fingerprint(config_of(tmp_path, fields=[], weight="value").data)["weight"] == "value"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "event"}, r"log.parquet: row 0 .*event is 'click', no weight"),
        ({"weights": ["buy=5"]}, "of which column is missing: data.logs.weight"),
        ({"weight": "event", "weights": ["buy"]}, "'buy' is no value and its weight"),
        ({"weight": "event", "weights": ["buy=-1"]}, "'buy=-1' is no value and its weight"),
        ({"weight": "weigth"}, "no column 'weigth'"),
        ({"fields": [{"name": "device", "side": "row", "kind": "multi_valued"}]}, "a field of a row is categorical"),
        ({"fields": [{"name": "event", "side": "row"}]}, "column 'event' is the label"),
        ({"fields": [{"name": "colour", "side": "row"}]}, "no column 'colour'"),
    ],
)
def test_what_cannot_be_a_weight_or_a_field_of_rows_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path, **options).data)


def test_a_value_that_has_a_weight_and_no_row_is_told(tmp_path: Path) -> None:
    prepared = prepare(config_of(tmp_path, weight="event", weights=["cart=2", "Buy=5"]).data)
    assert "data.logs.weights: no row has event = 'Buy'; did you mean 'buy'?" in prepared.notes
