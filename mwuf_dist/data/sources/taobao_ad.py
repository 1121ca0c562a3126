"""Taobao Display Ad Click (Alimama, on Tianchi): 26.6 million impressions of 0.85 million ads, 6 to 13 May 2017.

    raw_sample.csv    user,time_stamp,adgroup_id,pid,nonclk,clk
    ad_feature.csv    adgroup_id,cate_id,campaign_id,customer,brand,price
    user_profile.csv  userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,
                      new_user_class_level (the last name ends in a blank)

Label: `clk`. The item is the ad. Rules:

* Ads and users are those of raw_sample, which is sorted by ad, not by time. Users without a profile (7 %) and ads
  without features are unknown, index 0, in every field; so are an empty level and a brand `NULL`.
* Of several rows of an ad or a user the first counts.
* The price is a number in quantile buckets, all other fields are categories. Their vocabularies and the buckets are
  those of ads with at least 3K impressions: the others are dropped, and a value that only they have is never trained.
* `pid` (the position on the page) is a feature of neither side and is not read. Nor is behavior_log.csv: a user's
  history is made of the interactions themselves.

Checked against public sources that read the real files: names and order of all columns, the blank, NULL brands and
empty levels, the order of raw_sample, 26,557,961 impressions, 846,811 ads, 6,769 categories, 423,436 campaigns,
255,875 customers, prices from 0.01 to 1e8 (notebooks of a recommender course, such as
www.twblogs.net/a/5ee7ff7793db66959e4cdcc5); 1,061,768 profiles (github.com/john-james-ai/LungCancerDetection, which
describes this data set, its 26,557,961 impressions, 846,811 ads and 723,268,134 behaviours); 1,141,729 users (printed
by embedding-cache experiments on GitHub). Unverified, because the
files need a login: line ends, how very large prices are written, and the counts of the split in `KNOWN_SPLIT`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.config.logs import LogsConfig, LogsField
from mwuf_dist.data.locations import data_dir
from mwuf_dist.data.readers import csv_pieces, log_tables
from mwuf_dist.data.readers.csv_pieces import Column, RawCsv
from mwuf_dist.data.schema import Entities, RawPieces
from mwuf_dist.data.sources.content import content_of
from mwuf_dist.data.sources.known_counts import report_split
from mwuf_dist.data.sources.synthesized import mark_of
from mwuf_dist.data.stream_rule import Seen

VERSION = 1  # Raise it when the same raw files would give other tables.

NAME = "taobao-ad"
FILES = ("raw_sample.csv", "ad_feature.csv", "user_profile.csv")
TERMS = (
    'Where to get it: "Ad Display/Click Data on Taobao.com", https://tianchi.aliyun.com/dataset/dataDetail?dataId=56 '
    "(needs a login). Terms: Alimama gives the data for research; the page's own text, which the login shows, holds."
)

KNOWN_ROWS = 26_557_961
# At N = 2000, K = 500. Printed by another public preparation of these files.
KNOWN_SPLIT = {"pretrain": 3_592_047, "new items": 541, "each warm set": 270_500, "test": 109_712}
KNOWN_RULE = (2000, 500)

SAMPLE = RawCsv(
    header=("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"),
    wanted=(
        Column("user", pa.int64()),
        Column("time_stamp", pa.int64()),
        Column("adgroup_id", pa.int64()),
        Column("clk", pa.int8(), "[01]", "0 or 1"),
    ),
    named=True,
)
# Column of the file (but for blanks) -> field.
AD_FIELDS = {
    "cate_id": LogsField(name="cate", side="item"),
    "campaign_id": LogsField(name="campaign", side="item"),
    "customer": LogsField(name="customer", side="item"),
    "brand": LogsField(name="brand", side="item"),
    "price": LogsField(name="price", side="item", kind="numeric"),
}
USER_FIELDS = {
    "cms_segid": LogsField(name="cms_segid", side="user"),
    "cms_group_id": LogsField(name="cms_group_id", side="user"),
    "final_gender_code": LogsField(name="gender", side="user"),
    "age_level": LogsField(name="age", side="user"),
    "pvalue_level": LogsField(name="pvalue", side="user"),
    "shopping_level": LogsField(name="shopping_level", side="user"),
    "occupation": LogsField(name="occupation", side="user"),
    "new_user_class_level": LogsField(name="city_level", side="user"),
}
_SIDE_TABLES = LogsConfig(missing=("", "NULL"))


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Returns the reader version and what each file holds."""
    paths = find_raw()
    return {"source": NAME, "version": VERSION, "files": content_of(paths), **mark_of(paths[0].parent)}


def find_raw() -> tuple[Path, ...]:
    """Returns the three files, plain or .gz, in `$MWUF_DATA_DIR/taobao-ad`.

    Raises:
        UserError: there are none, or not all.
    """
    named = data_dir()
    if named is None or not (named / NAME).is_dir():
        raise UserError(f"Taobao Display Ad Click is not there. {_by_hand()}")
    found, missing = csv_pieces.find_files(named / NAME, FILES)
    if missing:
        raise UserError(f"{named / NAME}: {', '.join(missing)} of Taobao Display Ad Click missing. {_by_hand()}")
    return found


def _by_hand() -> str:
    return (
        f"Put {', '.join(FILES)} (unpacked from their .tar.gz; .csv.gz will do) into a folder {NAME} in the folder "
        f"that the environment variable MWUF_DATA_DIR names. {TERMS} Files in the same layout, made up: `mwuf "
        f"synthesize {NAME} --rows 1_000_000 --output DIR`"
    )


def pieces(config: DataConfig) -> RawPieces:
    """Returns the impressions, and the ads and users that they join.

    Raises:
        UserError: a file is absent or malformed; it names file and line.
    """
    sample, ads, profiles = find_raw()
    read = functools.partial(csv_pieces.read_piece, kind=SAMPLE, convert=_convert)
    entities = functools.partial(_entities, ads, profiles, not mark_of(sample.parent), config)
    return RawPieces(csv_pieces.pieces_of([sample], SAMPLE), read, entities)


def _entities(
    ads: Path,
    profiles: Path,
    are_real: bool,
    config: DataConfig,
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    item_rows: np.ndarray,
    seen: Seen | None = None,
) -> Entities:
    is_known = seen is None and item_rows.sum() == KNOWN_ROWS and (config.old_above, config.warm_rows) == KNOWN_RULE
    if are_real and is_known:
        report_split(NAME, item_rows, config.old_above, config.warm_rows, KNOWN_SPLIT)
    kept = item_rows >= 3 * config.warm_rows
    table = _side_table(ads, "ads", "adgroup_id", AD_FIELDS)
    items, item_fields = csv_pieces.join("item", item_ids, *table, kept, None if seen is None else seen.items)
    everyone = np.ones(len(user_ids), dtype=bool)
    table = _side_table(profiles, "users", "userid", USER_FIELDS)
    users, user_fields = csv_pieces.join("user", user_ids, *table, everyone, None if seen is None else seen.users)
    return Entities(users, items, (*user_fields, *item_fields))


def _convert(columns: dict[str, Any]) -> dict[str, np.ndarray] | None:
    label = columns["clk"].to_numpy()
    if label.min() < 0 or label.max() > 1:
        return None
    return {
        "user": csv_pieces.narrow(columns["user"]),
        "item": csv_pieces.narrow(columns["adgroup_id"]),
        "label": label,
        "time": columns["time_stamp"].to_numpy(),
    }


def _side_table(
    path: Path, what: str, id_column: str, fields: dict[str, LogsField]
) -> tuple[log_tables.LogTable, str, dict[str, LogsField]]:
    """Returns a side table, the name of its IDs, and its fields by the names that the file has, blanks included."""
    csv_pieces.refuse_cut_line(path)
    written = {name.strip(): name for name in log_tables.column_names(path, _SIDE_TABLES)}
    names = {name: written.get(name, name) for name in (id_column, *fields)}
    table = log_tables.read([path], list(names.values()), _SIDE_TABLES, what, plain=[names[id_column]])
    return table, names[id_column], {names[name]: field for name, field in fields.items()}
