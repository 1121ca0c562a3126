"""Taobao Display Ad Click: every quirk of its raw files, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data.prepare.prepare import describe
from mwuf_dist.data.readers import csv_pieces
from mwuf_dist.data.sources import known_counts, taobao_ad
from tests.data.raw_files import field_values, in_memory, rows_of, write_files

# Sorted by ad, not by time; user 90 has no profile; ads 7, 8 and 40 are in the sample; 7's brand is NULL.
SAMPLE = """user,time_stamp,adgroup_id,pid,nonclk,clk
20,1494137644,7,430548_1007,1,0
90,1494000000,7,430539_1007,0,1
31,1494137644,7,430548_1007,1,0
31,1494691186,8,430548_1007,1,0
20,1494001000,8,430548_1007,0,1
90,1494001000,8,430548_1007,1,0
20,1494002000,40,430539_1007,1,0
"""
ADS = """adgroup_id,cate_id,campaign_id,customer,brand,price
8,6406,83237,1,95471,170.0
7,6406,83238,1,NULL,0.01
40,9970,83239,2,87331,100000000.0
41,9971,83240,2,87332,38.0
"""
PROFILES = """userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,\
new_user_class_level \n20,0,5,2,5,,3,0,3
31,5,2,2,2,1,3,1,
55,9,9,1,9,2,3,1,4
"""
TEXTS = {"raw_sample.csv": SAMPLE, "ad_feature.csv": ADS, "user_profile.csv": PROFILES}
CONFIG = DataConfig(name="taobao-ad", old_above=3, warm_rows=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small data set, found by `MWUF_DATA_DIR`."""
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path))
    return write_files(tmp_path / "taobao-ad", TEXTS)


def test_rows_stand_in_the_order_of_the_file_with_clk_as_the_label(folder: Path) -> None:
    dataset = in_memory(taobao_ad.pieces(CONFIG))
    dataset.check("taobao-ad")
    lines = [line.split(",") for line in SAMPLE.splitlines()[1:]]
    assert rows_of(dataset) == [(int(u), int(ad), int(clk), int(time)) for u, time, ad, _, _, clk in lines]


def test_users_and_ads_are_those_of_the_sample(folder: Path) -> None:
    dataset = in_memory(taobao_ad.pieces(CONFIG))
    assert dataset.users["raw_id"].to_pylist() == [20, 31, 90]
    assert dataset.items["raw_id"].to_pylist() == [7, 8, 40]


def test_fields_are_those_of_the_paper_and_no_time_place_or_popularity(folder: Path) -> None:
    names = [(field.side, field.name) for field in in_memory(taobao_ad.pieces(CONFIG)).fields]
    users = ["cms_segid", "cms_group_id", "gender", "age", "pvalue", "shopping_level", "occupation", "city_level"]
    ads = ["cate", "campaign", "customer", "brand", "price"]
    assert names == [("user", "user_id"), *(("user", name) for name in users), *(("item", name) for name in ads)]


@pytest.mark.parametrize("last", ["new_user_class_level ", "new_user_class_level"], ids=["blank", "no blank"])
def test_the_last_name_of_the_profiles_may_end_in_a_blank(folder: Path, last: str) -> None:
    write_files(folder, {"user_profile.csv": PROFILES.replace("new_user_class_level ", last)})
    values = field_values(in_memory(taobao_ad.pieces(CONFIG)), "user", "city_level")
    assert values[20] != 0


def test_an_empty_level_is_unknown_and_a_zero_is_not(folder: Path) -> None:
    dataset = in_memory(taobao_ad.pieces(CONFIG))
    assert field_values(dataset, "user", "pvalue")[20] == 0
    assert field_values(dataset, "user", "pvalue")[31] != 0
    assert field_values(dataset, "user", "city_level")[31] == 0
    assert field_values(dataset, "user", "cms_segid")[20] != 0
    assert field_values(dataset, "user", "occupation")[20] != 0


def test_a_user_without_a_profile_keeps_the_rows_and_is_unknown_in_every_field_but_the_id(folder: Path) -> None:
    dataset = in_memory(taobao_ad.pieces(CONFIG))
    assert sum(row[0] == 90 for row in rows_of(dataset)) == 2
    for field in dataset.fields:
        if field.side == "user":
            assert (field_values(dataset, "user", field.name)[90] == 0) == (field.name != "user_id")


def test_a_profile_without_rows_is_in_no_vocabulary(folder: Path) -> None:
    sizes = {field.name: field.size for field in in_memory(taobao_ad.pieces(CONFIG)).fields}
    assert sizes["cms_segid"] == 3  # unknown, 0, 5


def test_a_null_brand_is_unknown(folder: Path) -> None:
    values = field_values(in_memory(taobao_ad.pieces(CONFIG)), "item", "brand")
    assert values[7] == 0 and values[8] != 0


def test_prices_over_ten_orders_of_magnitude_are_buckets_in_their_order(folder: Path) -> None:
    config = DataConfig(name="taobao-ad", old_above=3, warm_rows=1)
    write_files(folder, {"raw_sample.csv": SAMPLE + "20,1494002001,40,430539_1007,1,0\n" * 2})
    values = field_values(in_memory(taobao_ad.pieces(config)), "item", "price")
    assert 0 < values[7] < values[8] < values[40]


def test_ads_with_too_few_rows_make_no_vocabulary(folder: Path) -> None:
    dataset = in_memory(taobao_ad.pieces(CONFIG))  # Ad 40 has one row and is dropped: an item needs 3K = 3.
    sizes = {field.name: field.size for field in dataset.fields}
    assert (sizes["campaign"], sizes["cate"], sizes["price"]) == (3, 2, 3)
    assert field_values(dataset, "item", "campaign")[40] == 0


def test_of_several_rows_of_an_ad_or_a_user_the_first_counts(folder: Path) -> None:
    write_files(
        folder, {"ad_feature.csv": ADS + "8,1,1,1,1,1.0\n", "user_profile.csv": PROFILES + "31,1,1,1,1,1,1,1,1\n"}
    )
    again = in_memory(taobao_ad.pieces(CONFIG))
    write_files(folder, TEXTS)
    assert (
        again.items == in_memory(taobao_ad.pieces(CONFIG)).items
        and again.users == in_memory(taobao_ad.pieces(CONFIG)).users
    )


def test_gzipped_files_are_the_same_data_set(folder: Path) -> None:
    plain = in_memory(taobao_ad.pieces(CONFIG))
    for path in list(folder.iterdir()):
        path.unlink()
    write_files(folder, TEXTS, zipped=True)
    zipped = in_memory(taobao_ad.pieces(CONFIG))
    assert zipped.interactions == plain.interactions and zipped.items == plain.items and zipped.users == plain.users


def test_line_ends_of_windows_are_line_ends(folder: Path) -> None:
    plain = in_memory(taobao_ad.pieces(CONFIG))
    write_files(folder, {name: text.replace("\n", "\r\n") for name, text in TEXTS.items()})
    other = in_memory(taobao_ad.pieces(CONFIG))
    assert other.interactions == plain.interactions and other.items == plain.items and other.users == plain.users


@pytest.mark.parametrize("block_bytes", [64, 100, 1 << 20])
def test_rows_do_not_depend_on_the_size_of_blocks(
    folder: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = "".join(f"{row % 97},{1494000000 + row},{row % 11},430548_1007,1,{row % 2}\n" for row in range(500))
    write_files(folder, {"raw_sample.csv": SAMPLE.splitlines(keepends=True)[0] + many})
    whole = in_memory(taobao_ad.pieces(CONFIG)).interactions
    monkeypatch.setattr(csv_pieces, "BLOCK_BYTES", block_bytes)
    assert in_memory(taobao_ad.pieces(CONFIG)).interactions == whole


def test_ids_beyond_32_bits_and_far_apart_are_ids(folder: Path) -> None:
    write_files(folder, {"raw_sample.csv": SAMPLE.replace("\n31,", "\n9876543210123,")})
    dataset = in_memory(taobao_ad.pieces(CONFIG))
    assert dataset.users["raw_id"].to_pylist() == [20, 90, 9876543210123]
    assert [row[0] for row in rows_of(dataset)] == [20, 90, 9876543210123, 9876543210123, 20, 90, 20]


def replaced(name: str, old: str, new: str) -> dict[str, str]:
    assert old in TEXTS[name]
    return {name: TEXTS[name].replace(old, new, 1)}


WRONG = {
    "label 2": (replaced("raw_sample.csv", "1007,0,1", "1007,0,2"), r"raw_sample.csv:3: clk is '2', not 0 or 1"),
    "label missing": (replaced("raw_sample.csv", "1007,0,1", "1007,0,"), r"raw_sample.csv:3: clk is '', not 0 or 1"),
    "user missing": (replaced("raw_sample.csv", "\n90,", "\n,"), r"raw_sample.csv:3: user is '', not an integer"),
    "time is text": (
        replaced("raw_sample.csv", "1494691186", "2017-05-13"),
        r"raw_sample.csv:5: time_stamp is '2017-05-13', not an integer",
    ),
    "too few columns": (
        replaced("raw_sample.csv", "430539_1007,0,1", "0,1"),
        r"raw_sample.csv:3: expected 6 columns user,.*found 5: '90,1494000000,7,0,1'",
    ),
    "blank line": (replaced("raw_sample.csv", "\n31,", "\n\n31,"), r"raw_sample.csv:4: expected 6 columns"),
    "no names": (
        replaced("raw_sample.csv", SAMPLE.splitlines(keepends=True)[0], ""),
        r"raw_sample.csv:1: expected the",
    ),
    "empty sample": ({"raw_sample.csv": ""}, r"raw_sample.csv: is empty"),
    "names alone": ({"raw_sample.csv": SAMPLE.splitlines(keepends=True)[0]}, r"raw_sample.csv: no rows"),
    "sample truncated within a number": ({"raw_sample.csv": SAMPLE[:-2]}, r"raw_sample.csv: the last line has no line"),
    "ads truncated": ({"ad_feature.csv": ADS[:-2]}, r"ad_feature.csv: the last line has no line end"),
    "profiles truncated": ({"user_profile.csv": PROFILES[:-3]}, r"user_profile.csv: the last line has no line end"),
    "ad is text": (
        replaced("ad_feature.csv", "\n7,", "\nseven,"),
        r"ad_feature.csv:3: adgroup_id is 'seven', not an integer",
    ),
    "price is text": (replaced("ad_feature.csv", "170.0", "cheap"), r"ad_feature.csv:2: price 'cheap' is no number"),
    "another table": (
        replaced("ad_feature.csv", "adgroup_id,cate_id", "ad,category"),
        r"ad_feature.csv: no column 'adgroup_id'",
    ),
    "ads of another data set": (
        {"ad_feature.csv": ADS.splitlines()[0] + "\n1000,1,1,1,1,1.0\n"},
        r"ad_feature.csv: none of its ads is in the interactions",
    ),
}


@pytest.mark.parametrize(("texts", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_named_with_its_line(folder: Path, texts: dict[str, str], message: str) -> None:
    write_files(folder, texts)
    with pytest.raises(UserError, match=message):
        in_memory(taobao_ad.pieces(CONFIG))


def test_a_truncated_gzip_file_is_an_error(folder: Path) -> None:
    text = SAMPLE + "".join(
        f"{row},{1494000000 + row * 37 % 9999},{row * 7 % 99},430548_1007,1,0\n" for row in range(5000)
    )
    (folder / "raw_sample.csv").unlink()
    (folder / "raw_sample.csv.gz").write_bytes(gzip.compress(text.encode())[:-2000])
    with pytest.raises(UserError, match=r"raw_sample.csv.gz: cannot be read .*is the file complete\?"):
        in_memory(taobao_ad.pieces(CONFIG))


@pytest.mark.parametrize("call", [taobao_ad.pieces, taobao_ad.fingerprint], ids=["pieces", "fingerprint"])
@pytest.mark.parametrize("name", TEXTS)
def test_an_absent_file_says_where_to_get_it_on_what_terms_and_where_to_put_it(
    folder: Path, name: str, call: Any
) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} of Taobao.*missing.*taobao-ad in the folder that .*tianchi.*Terms: "):
        call(CONFIG)


@pytest.mark.parametrize("named", [True, False], ids=["empty folder", "no MWUF_DATA_DIR"])
def test_no_data_at_all_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    monkeypatch.delenv("MWUF_DATA_DIR", raising=False)
    if named:
        monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="is not there. Put raw_sample.csv, ad_feature.csv, user_profile.csv .*Terms"):
        describe(CONFIG)


def test_a_changed_file_is_another_fingerprint(folder: Path) -> None:
    before = taobao_ad.fingerprint(CONFIG)
    assert taobao_ad.fingerprint(CONFIG) == before
    write_files(folder, {"ad_feature.csv": ADS + "42,1,1,1,1,1.0\n"})
    assert taobao_ad.fingerprint(CONFIG) != before


# what is known of the real files


def counts_of(sizes: list[int]) -> np.ndarray:
    return np.array(sizes)


def test_split_counts_follow_from_the_rows_of_each_item() -> None:
    # N = 20, K = 5: items of 15 to 20 rows are new.
    counts = known_counts.split_counts(counts_of([21, 40, 20, 15, 17, 14, 3]), 20, 5)
    assert counts == {"pretrain": 61, "new items": 3, "each warm set": 15, "test": 52 - 45}


def test_real_files_are_told_whether_they_give_the_published_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_memory(taobao_ad.pieces(CONFIG))
    assert capsys.readouterr().err == "", "only files of the real size are held against the published counts"
    monkeypatch.setattr(taobao_ad, "KNOWN_ROWS", 7)
    monkeypatch.setattr(taobao_ad, "KNOWN_RULE", (3, 1))
    write_files(folder, {"raw_sample.csv": SAMPLE.replace(",40,", ",8,")})  # Ad 7 has 3 rows, ad 8 has 4.
    known = {"pretrain": 4, "new items": 1, "each warm set": 1, "test": 0}
    monkeypatch.setattr(taobao_ad, "KNOWN_SPLIT", known)
    in_memory(taobao_ad.pieces(CONFIG))
    assert capsys.readouterr().err == "taobao-ad: these raw files give the published counts\n"
    monkeypatch.setattr(taobao_ad, "KNOWN_SPLIT", {**known, "pretrain": 5})
    in_memory(taobao_ad.pieces(CONFIG))
    assert "other counts than the published ones: pretrain 4 (published 5)" in capsys.readouterr().err
    (folder / "synthesized.json").write_text("{}")
    in_memory(taobao_ad.pieces(CONFIG))
    assert capsys.readouterr().err == "", "made-up files are not the real ones"
