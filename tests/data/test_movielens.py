"""MovieLens-1M: the published counts, the parsing of its odd corners, and every way in which its files can be wrong."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.sources import movielens

USERS = "1::F::1::10::48067\n2::M::56::16::70072\n7::M::25::15::55117\n"
MOVIES = (
    "1::Toy Story (1995)::Animation|Children's|Comedy\n"
    "2::Misérables, Les (1998)::Drama\n"
    "5::Toy Soldiers: The Story (1991)::Action|Drama\n"
    "9::Don't Look (1995)::Drama|Comedy\n"
)
RATINGS = "1::5::5::978300760\n7::1::4::978302109\n2::2::3::978301968\n2::9::1::978300275\n"


def raw_folder(parent: Path, **texts: str) -> Path:
    """A small ml-1m; `users`, `movies` and `ratings` replace its files' text."""
    folder = parent / "ml-1m"
    folder.mkdir(parents=True)
    for name, text in {"users": USERS, "movies": MOVIES, "ratings": RATINGS, **texts}.items():
        (folder / f"{name}.dat").write_bytes(text.encode("latin-1"))
    return folder


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MWUF_DATA_DIR and the cache are empty folders."""
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(name="movielens-1m", prepared_dir=str(tmp_path_factory.mktemp("prepared")))


def test_published_split_counts(movielens_dir: Path, config: DataConfig) -> None:
    prepared = prepare(config)
    assert (prepared.num_users, prepared.num_old_items, prepared.num_new_items) == (6040, 1420, 972)
    counts = {name: prepared.num_rows(name) for name in prepared.manifest["splits"]}
    assert counts == {"pretrain": 854_530, "warm_a": 19_440, "warm_b": 19_440, "warm_c": 19_440, "test": 58_409}
    share = prepared.manifest["positive_share"]
    assert share["old_items"] == pytest.approx(0.603, abs=0.001)
    assert share["new_items"] == pytest.approx(0.411, abs=0.001)


def test_rows_carry_what_the_raw_file_says(movielens_dir: Path, config: DataConfig) -> None:
    prepared = prepare(config)
    lines = (movielens_dir / "ml-1m" / "ratings.dat").read_text("latin-1").splitlines()
    users, items = prepared.entity("user"), prepared.entity("item")
    for split in ("pretrain", "warm_b", "test"):
        columns = prepared.columns(split, ["user", "item", "label", "time", "row"])
        for place in range(0, prepared.num_rows(split), 997):
            user, item, label, time, row = (int(columns[n][place]) for n in ("user", "item", "label", "time", "row"))
            raw_user, raw_item, rating, raw_time = map(int, lines[row].split("::"))
            assert (users.raw_ids[user], items.raw_ids[item], time) == (raw_user, raw_item, raw_time)
            assert label == (rating >= 4)
            assert (item < prepared.num_old_items) == (split == "pretrain")


def test_fields_of_movielens_have_no_zip_code_and_no_popularity(movielens_dir: Path, config: DataConfig) -> None:
    prepared = prepare(config)
    sizes = {(field.side, field.name): field.size for field in prepared.fields}
    title_size = sizes.pop(("item", "title"))
    assert sizes == {
        ("user", "user_id"): 6041,
        ("user", "gender"): 3,
        ("user", "age"): 8,
        ("user", "occupation"): 22,
        ("item", "year"): 83,  # 1919 to 2000, and unknown
        ("item", "genres"): 19,
    }
    assert 1_000 < title_size < 3_000


def test_a_changed_official_file_is_refused_by_its_checksum(
    movielens_dir: Path, no_cache: Path, tmp_path: Path
) -> None:
    folder = no_cache / "ml-1m"
    shutil.copytree(movielens_dir / "ml-1m", folder)
    folder.chmod(0o755)
    ratings = folder / "ratings.dat"
    raw = ratings.read_bytes()
    ratings.unlink()
    ratings.write_bytes(raw[: raw.rindex(b"\n", 0, -1) + 1])  # One whole line is gone.
    config = DataConfig(name="movielens-1m", prepared_dir=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match=r"ratings.dat: md5 is .*truncated or changed.*verify_checksums"):
        prepare(config)
    assert not list((tmp_path / "prepared").glob("*"))


def test_download_unpacks_and_verifies_the_official_archive(
    movielens_dir: Path, no_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in movielens.CHECKSUMS:
            file.write(movielens_dir / "ml-1m" / name, f"ml-1m/{name}")
    folder = movielens.download(archive.as_uri())
    assert folder == no_cache / "ml-1m" == movielens.find_raw()
    assert sorted(path.name for path in folder.iterdir()) == ["movies.dat", "ratings.dat", "users.dat"]
    assert "terms of use" in capsys.readouterr().err


def test_download_of_another_archive_keeps_nothing(no_cache: Path, tmp_path: Path) -> None:
    folder = raw_folder(tmp_path / "other")
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, f"ml-1m/{path.name}")
    with pytest.raises(UserError, match="not the published one; nothing was kept"):
        movielens.download(archive.as_uri())
    assert not list(no_cache.glob("*"))


def test_failed_download_says_which_file_to_put_where(no_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ratings.dat, users.dat, movies.dat into a folder ml-1m .*MWUF_DATA_DIR"):
        movielens.download((tmp_path / "absent.zip").as_uri())
    assert not list(no_cache.glob("*"))


def test_archive_that_is_no_archive_is_an_error(no_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>Sorry</html>")
    with pytest.raises(UserError, match="could not be downloaded.*zip"):
        movielens.download((tmp_path / "page.zip").as_uri())


def test_raw_files_are_found_in_the_folder_itself_and_in_its_subfolder(
    tmp_path: Path, no_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert movielens.find_raw() is None
    folder = raw_folder(tmp_path)
    for named in (tmp_path, folder):
        monkeypatch.setenv("MWUF_DATA_DIR", str(named))
        assert movielens.find_raw() == folder


def test_one_absent_file_is_named(no_cache: Path) -> None:
    folder = raw_folder(no_cache)
    (folder / "movies.dat").unlink()
    with pytest.raises(UserError, match="movies.dat of MovieLens-1M missing"):
        movielens.find_raw()


def test_small_folder_reads_as_written(tmp_path: Path) -> None:
    dataset = movielens.read_folder(raw_folder(tmp_path))
    dataset.check("movielens-1m")
    assert dataset.interactions.to_pydict() == {
        "user": [0, 2, 1, 1],
        "item": [2, 0, 1, 3],
        "label": [1, 1, 0, 0],
        "time": [978300760, 978302109, 978301968, 978300275],
    }
    assert dataset.users.to_pydict() == {
        "raw_id": [1, 2, 7],
        "user_id": [1, 2, 3],
        "gender": [1, 2, 2],
        "age": [1, 3, 2],
        "occupation": [1, 3, 2],
    }
    # Words in two films or more: story, toy; the accent of Latin-1 must not break a title.
    assert dataset.items.to_pydict() == {
        "raw_id": [1, 2, 5, 9],
        "year": [5, 8, 1, 5],
        "title": [[2, 1], [0], [2, 1], [0]],
        "genres": [[2, 3, 4], [5], [1, 5], [5, 4]],
    }
    assert {field.name: field.size for field in dataset.fields if field.side == "item"} == {
        "year": 9,
        "title": 3,
        "genres": 6,
    }


def test_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    texts = {"users": USERS, "movies": MOVIES, "ratings": RATINGS}
    plain = movielens.read_folder(raw_folder(tmp_path / "a"))
    other = movielens.read_folder(raw_folder(tmp_path / "b", **{k: v.replace("\n", "\r\n") for k, v in texts.items()}))
    assert plain == other


def test_title_without_a_year_and_film_without_a_genre_are_unknown(tmp_path: Path) -> None:
    movies = MOVIES + "12::Untitled::\n"
    dataset = movielens.read_folder(raw_folder(tmp_path, movies=movies))
    assert [dataset.items[name].to_pylist()[-1] for name in ("year", "title", "genres")] == [0, [0], [0]]


def replace_line(text: str, line: int, new: str) -> str:
    lines = text.splitlines(keepends=True)
    lines[line - 1] = new
    return "".join(lines)


BAD_LINES = {
    "malformed line": ("ratings", 2, "garbage\n", r"ratings.dat:2: expected 4 columns .*found 1: 'garbage'"),
    "missing column": ("ratings", 3, "2::2::3\n", r"ratings.dat:3: expected 4 columns UserID::MovieID::.*found 3"),
    "additional column": ("ratings", 3, "2::2::3::4::5\n", r"ratings.dat:3: expected 4 columns .*found 5"),
    "comma for a separator": ("ratings", 1, "1,5::5::978300760\n", r"ratings.dat:1: expected 4 columns"),
    "empty line": ("ratings", 2, "\n", r"ratings.dat:2: expected 4 columns"),
    "empty ID": ("ratings", 2, "::1::4::978302109\n", r"ratings.dat:2: UserID is '', not an integer"),
    "non-integer user": ("ratings", 2, "x7::1::4::978302109\n", r"ratings.dat:2: UserID is 'x7', not an integer"),
    "non-integer film": ("ratings", 4, "2::9.5::1::978300275\n", r"ratings.dat:4: MovieID is '9.5', not an integer"),
    "huge ID": ("ratings", 4, "99999999999999999999::9::1::1\n", r"ratings.dat:4: UserID is '9{20}', not an integer"),
    "unknown user": ("ratings", 4, "3::9::1::978300275\n", r"ratings.dat:4: UserID 3 is out of range"),
    "user above all": ("ratings", 4, "8::9::1::978300275\n", r"ratings.dat:4: UserID 8 is out of range"),
    "negative user": ("ratings", 4, "-1::9::1::978300275\n", r"ratings.dat:4: UserID -1 is out of range"),
    "unknown film": ("ratings", 1, "1::4::5::978300760\n", r"ratings.dat:1: MovieID 4 is out of range"),
    "rating above 5": ("ratings", 1, "1::5::6::978300760\n", r"ratings.dat:1: Rating 6 is outside 1 to 5"),
    "rating below 1": ("ratings", 1, "1::5::0::978300760\n", r"ratings.dat:1: Rating 0 is outside 1 to 5"),
    "half a rating": ("ratings", 1, "1::5::3.5::978300760\n", r"ratings.dat:1: Rating is '3.5', not an integer"),
    "time not a number": ("ratings", 1, "1::5::5::noon\n", r"ratings.dat:1: Timestamp is 'noon', not a number"),
    "user without columns": ("users", 2, "2::M::56\n", r"users.dat:2: expected 5 columns .*found 3"),
    "user ID of letters": ("users", 2, "two::M::56::16::70072\n", r"users.dat:2: UserID is 'two'"),
    "unknown gender": ("users", 3, "7::Q::25::15::55117\n", r"users.dat:3: Gender is 'Q'"),
    "age of letters": ("users", 3, "7::M::old::15::55117\n", r"users.dat:3: Age is 'old'"),
    "occupation of letters": ("users", 3, "7::M::25::x::55117\n", r"users.dat:3: Occupation is 'x'"),
    "user twice": ("users", 3, "1::M::25::15::55117\n", r"users.dat:3: UserID 1 stands in an earlier line too"),
    "film without genres": ("movies", 1, "1::Toy Story (1995)\n", r"movies.dat:1: expected 3 columns .*found 2"),
    "film ID of letters": ("movies", 1, "a::Toy Story (1995)::Comedy\n", r"movies.dat:1: MovieID is 'a'"),
    "film twice": ("movies", 4, "2::Don't Look (1995)::Drama\n", r"movies.dat:4: MovieID 2 stands in an earlier line"),
}
TEXTS = {"users": USERS, "movies": MOVIES, "ratings": RATINGS}


@pytest.mark.parametrize(("name", "line", "new", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_is_named_with_file_and_line(
    no_cache: Path, tmp_path: Path, name: str, line: int, new: str, message: str
) -> None:
    raw_folder(no_cache, **{name: replace_line(TEXTS[name], line, new)})
    # Checksums are on: the error that names the line comes before the one that the file is not the official one.
    config = DataConfig(name="movielens-1m", prepared_dir=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match=message):
        prepare(config)
    assert not list((tmp_path / "prepared").glob("*")), "something half-written was left behind"


@pytest.mark.parametrize("name", ["users", "movies", "ratings"])
def test_cut_last_line_is_a_truncated_file(tmp_path: Path, name: str) -> None:
    folder = raw_folder(tmp_path, **{name: TEXTS[name][:-4]})
    last = TEXTS[name].count("\n")
    with pytest.raises(UserError, match=rf"{name}.dat:{last}: the last line has no line end: the file is truncated"):
        movielens.read_folder(folder)


@pytest.mark.parametrize("name", ["users", "movies", "ratings"])
def test_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}.dat: is empty"):
        movielens.read_folder(raw_folder(tmp_path, **{name: ""}))


def test_first_bad_line_of_a_long_file_is_found(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = [f"1::5::{rating}::{978300760 + j}\n" for j, rating in enumerate(generator.integers(1, 6, 50_000))]
    lines[31_415] = "1::5::5::\n"
    lines[40_000] = "1::5::5\n"
    with pytest.raises(UserError, match=r"ratings.dat:31416: Timestamp is ''"):
        movielens.read_folder(raw_folder(tmp_path, ratings="".join(lines)))


def test_unverified_folder_of_ones_own_is_prepared(no_cache: Path, tmp_path: Path) -> None:
    rows = [(1, j) for j in range(30)] + [(2, j) for j in range(8)]  # Film 1 gets 30, film 2 gets 8.
    ratings = [f"{item}::{item}::{1 + j % 5}::{978_300_000 + j}\n" for item, j in rows]
    raw_folder(no_cache, ratings="".join(ratings))
    options = {"name": "movielens-1m", "old_above": 20, "warm_rows": 2, "prepared_dir": str(tmp_path / "prepared")}
    with pytest.raises(UserError, match="verify_checksums"):
        prepare(DataConfig(**options))
    prepared = prepare(DataConfig(**options, verify_checksums=False))
    assert (prepared.num_old_items, prepared.num_new_items, prepared.num_rows("test")) == (1, 1, 2)
    assert prepared.entity("item").raw_ids.tolist() == [1, 2]
    with pytest.raises(UserError, match="verify_checksums"):  # Now too, when shards of these files exist.
        prepare(DataConfig(**options))


def test_data_without_new_items_is_an_error(no_cache: Path, tmp_path: Path) -> None:
    raw_folder(no_cache)
    config = DataConfig(name="movielens-1m", verify_checksums=False, prepared_dir=str(tmp_path / "prepared"))
    with pytest.raises(UserError, match="no item is old"):
        prepare(config)
    assert not list((tmp_path / "prepared").glob("*"))


def test_prepared_shards_serve_without_the_raw_files(
    movielens_dir: Path, config: DataConfig, no_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MWUF_DATA_DIR", str(movielens_dir))
        path = prepare(config).path
    monkeypatch.setattr(movielens, "download", lambda: pytest.fail("nothing needs downloading"))
    assert prepare(config).path == path
