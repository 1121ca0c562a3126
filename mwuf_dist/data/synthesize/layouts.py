"""The raw layouts of `mwuf synthesize`: how the generated users, items and rows are written, with every quirk.

The generated item has a category, a brand and a set of tags that explain a share of what it is; the user an age group
and a region. Each layout has a column for every one of them: the tag set becomes the advertiser (or shop), the region
the user's micro group (or purchasing power). Columns without a counterpart are noise, or follow from another column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from mwuf_dist.config import SyntheticConfig
from mwuf_dist.data.schema import RAW_ID
from mwuf_dist.data.sources.synthetic import MAX_TAGS, World

# A generated row: rows of the entity tables, seconds from the start, its number.
ROW = np.dtype([("user", "<u4"), ("item", "<u4"), ("second", "<i4"), ("row", "<u4"), ("label", "u1")])

SideTables = dict[str, tuple[str, pa.Table]]  # file name -> (line of names or nothing, columns)


@dataclass(frozen=True)
class Layout:
    """The raw files of one data set.

    Attributes:
        rows, users, items, categories, brands, tag_sets: size of the public data set (tag sets: advertisers or shops);
            fewer rows have proportionally fewer of all but categories, which fall with the square root.
        zipf_exponent: popularity of items.
        offset: log-odds that give its fraction of positives.
        span_s: seconds from the first row to the last.
        sorted_by: the ID by which the interactions lie sorted.
        interactions_file: their file.
        interactions_header: its line of names, or nothing.
        interactions: makes its columns from rows [R] of dtype `ROW`.
        side_tables: makes the other files.
    """

    rows: int
    users: int
    items: int
    categories: int
    brands: int
    tag_sets: int
    zipf_exponent: float
    offset: float
    span_s: int
    sorted_by: Literal["item", "user"]
    interactions_file: str
    interactions_header: str
    interactions: Callable[[np.ndarray], pa.Table]
    side_tables: Callable[[World, int], SideTables]

    def options(self, num_rows: int, seed: int) -> SyntheticConfig:
        """Returns options of the generator for so many rows."""
        share = num_rows / self.rows

        def scaled(full: int, least: int) -> int:
            return max(least, round(full * share))

        # Sets of up to four of T tags are about T^4 / 24.
        num_tags = round((24 * scaled(self.tag_sets, 100)) ** (1 / MAX_TAGS))
        return SyntheticConfig(
            num_rows=num_rows,
            num_users=scaled(self.users, 20),
            num_items=scaled(self.items, 20),
            num_categories=max(5, round(self.categories * share**0.5)),
            num_brands=scaled(self.brands, 10),
            num_tags=num_tags,
            zipf_exponent=self.zipf_exponent,
            offset=self.offset,
            label_noise=0.0,
            seed=seed,
        )


def _ids(table: pa.Table) -> np.ndarray:
    return table[RAW_ID].to_numpy()


def _tag_sets(world: World) -> np.ndarray:
    """Returns a number from 1 for each item's set of tags, equal for equal sets [num_items]."""
    tags = world.items["tags"].combine_chunks()
    lengths = np.diff(tags.offsets.to_numpy())
    base = int(tags.values.to_numpy().max()) + 1
    starts = np.cumsum(lengths) - lengths
    values, packed = tags.values.to_numpy(), np.zeros(len(lengths), dtype=np.int64)
    for place in range(MAX_TAGS):
        has = lengths > place
        packed[has] = packed[has] * base + values[starts[has] + place]
    return np.unique(packed, return_inverse=True)[1] + 1


def _noise(world: World, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, len(world.user_vectors), len(world.item_vectors)])


def _hash(rows: np.ndarray) -> np.ndarray:
    """Returns a number from 0 to 99 for each row, which says nothing of it."""
    mixed = (rows["row"].astype(np.uint64) * np.uint64(0x85EBCA6B)) & np.uint64(0xFFFFFFFF)
    return (mixed >> np.uint64(16)) * np.uint64(0xC2B2) % np.uint64(65_521) % np.uint64(100)


def _or_empty(values: np.ndarray, empty: np.ndarray) -> pa.Array:
    return pa.array(values, mask=empty)  # A null is written as nothing between two commas.


# Taobao Display Ad Click

_TAOBAO_START_S = 1_494_000_000  # 6 May 2017, 00:00 in China.
_PLACES = pa.array(["430548_1007", "430539_1007"])


def _taobao_sample(rows: np.ndarray) -> pa.Table:
    place = (_hash(rows) < 40).astype(np.int8)
    columns = {
        "user": rows["user"].astype(np.int64) + 1,
        "time_stamp": rows["second"].astype(np.int64) + _TAOBAO_START_S,
        "adgroup_id": rows["item"].astype(np.int64) + 1,
        "pid": _PLACES.take(pa.array(place)),
        "nonclk": 1 - rows["label"],
        "clk": rows["label"],
    }
    return pa.table(columns)


def _taobao_side_tables(world: World, seed: int) -> SideTables:
    noise = _noise(world, seed)
    return {"ad_feature.csv": _taobao_ads(world, noise), "user_profile.csv": _taobao_users(world, noise)}


def _taobao_ads(world: World, noise: np.random.Generator) -> tuple[str, pa.Table]:
    """Gives sorted by advertiser; a third of the brands NULL.

    Prices over ten orders of magnitude, as in the real file.
    """
    ids = _ids(world.items)
    num = len(ids)
    customer = _tag_sets(world)
    campaign = np.unique(customer * 2 + noise.integers(0, 2, num), return_inverse=True)[1] + 1
    brand = world.items["brand"].to_numpy()
    is_null = noise.random(num) < 1 / 3
    price = np.exp(4.5 + 1.3 * (0.6 * world.item_vectors[:, -1] + 0.8 * noise.standard_normal(num)))
    price[noise.integers(0, num, 2)] = 0.01, 1e8
    order = np.lexsort((ids, customer))
    columns = {
        "adgroup_id": ids[order],
        "cate_id": world.items["category"].to_numpy()[order],
        "campaign_id": campaign[order],
        "customer": customer[order],
        "brand": pa.array(np.where(is_null, "NULL", brand.astype("U12"))[order]),
        "price": pa.array([str(one) for one in np.maximum(price, 0.01).round(2)[order].tolist()]),
    }
    return "adgroup_id,cate_id,campaign_id,customer,brand,price\n", pa.table(columns)


def _taobao_users(world: World, noise: np.random.Generator) -> tuple[str, pa.Table]:
    """Gives 7 % of the users are not in it; half of the consumption levels and a third of the city levels are empty."""
    ids = _ids(world.users)
    num = len(ids)
    age = world.users["age_group"].to_numpy() - 1
    region = world.users["region"].to_numpy() - 1
    gender = noise.integers(1, 3, num)
    columns = {
        "userid": ids,
        "cms_segid": region + 20 * noise.integers(0, 4, num),
        "cms_group_id": np.minimum(age, 5) + 6 * (gender == 1),
        "final_gender_code": gender,
        "age_level": age,
        "pvalue_level": _or_empty(noise.integers(1, 4, num), noise.random(num) < 0.54),
        "shopping_level": noise.integers(1, 4, num),
        "occupation": (noise.random(num) < 0.06).astype(np.int8),
        "new_user_class_level ": _or_empty(noise.integers(1, 5, num), noise.random(num) < 0.32),
    }
    known = pa.array(noise.random(num) >= 0.07)
    return ",".join(columns) + "\n", pa.table(columns).filter(known)


# CIKM 2019 EComm AI

_BEHAVIOURS = pa.array(["buy", "cart", "fav", "pv"])


def _cikm_behaviours(rows: np.ndarray) -> pa.Table:
    chance = _hash(rows)
    other = np.where(chance < 6, 1, np.where(chance < 10, 2, 3))
    columns = {
        "user": rows["user"].astype(np.int64) + 1,
        "item": rows["item"].astype(np.int64) + 1,
        "behaviour": _BEHAVIOURS.take(pa.array(np.where(rows["label"] == 1, 0, other))),
        "time": rows["second"],
    }
    return pa.table(columns)


def _cikm_side_tables(world: World, seed: int) -> SideTables:
    noise = _noise(world, seed)
    user_ids, item_ids = _ids(world.users), _ids(world.items)
    users = {
        "user": user_ids,
        "gender": noise.integers(0, 2, len(user_ids)),
        "age": 8 + 8 * world.users["age_group"].to_numpy() + noise.integers(0, 8, len(user_ids)),
        "purchasing_power": world.users["region"].to_numpy(),
    }
    items = {
        "item": item_ids,
        "category": world.items["category"].to_numpy(),
        "shop": _tag_sets(world),
        "brand": world.items["brand"].to_numpy(),
    }
    once = pa.table(items)
    repeated = once.slice(0, max(1, len(item_ids) // 1000))
    return {"user.csv": ("", pa.table(users)), "item.csv": ("", pa.concat_tables([once, repeated]))}


LAYOUTS: dict[str, Layout] = {
    "cikm2019": Layout(
        rows=62_400_000,
        users=1_050_000,
        items=3_930_000,
        categories=8_000,
        brands=200_000,
        tag_sets=500_000,
        zipf_exponent=0.6,
        offset=-5.0,
        span_s=16 * 86_400,
        sorted_by="user",
        interactions_file="user_behavior.csv",
        interactions_header="",
        interactions=_cikm_behaviours,
        side_tables=_cikm_side_tables,
    ),
    "taobao-ad": Layout(
        rows=26_557_961,
        users=1_141_729,
        items=846_811,
        categories=6_769,
        brands=99_815,
        tag_sets=255_875,
        zipf_exponent=0.73,  # With it about as many impressions are of old ads as is known of the real files: 3.1M.
        offset=-4.9,  # 5 % are clicked.
        span_s=8 * 86_400,
        sorted_by="item",
        interactions_file="raw_sample.csv",
        interactions_header="user,time_stamp,adgroup_id,pid,nonclk,clk\n",
        interactions=_taobao_sample,
        side_tables=_taobao_side_tables,
    ),
}
