"""MovieLens-1M: a million ratings of 3,883 films by 6,040 users, read from the three raw files of GroupLens.

Label: rating >= 4. User fields: ID, gender, age, occupation (the zip code is left out: it adds nothing). Item fields:
year and words of the title, genres. The data is GroupLens's, for research, and may not be redistributed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data.locations import cache_dir, data_dir
from mwuf_dist.data.schema import RAW_ID, USER_ID, Field, RawDataset, RawPieces, list_column
from mwuf_dist.files import appearing
from mwuf_dist.locks import locked

NAME = "movielens-1m"
VERSION = 1  # Raise it when the same raw files would give other tables.
MIN_TOKEN_COUNT = 2  # A title word in fewer films than this tells nothing that the film's own ID does not.
POSITIVE_RATING = 4

FOLDER = "ml-1m"
ADDRESS = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
CHECKSUMS = {
    "ratings.dat": "a89aa3591bc97d6d4e0c89459ff39362",
    "users.dat": "681c0711d0d4548cd3d4718a49c2dcd8",
    "movies.dat": "ef9fd9ff8d1b33faf73e2122c371e910",
}
TERMS = """MovieLens-1M is data of GroupLens Research, University of Minnesota. Their terms of use, in short:
  * for research; commercial use only with their permission;
  * no redistribution without separate permission;
  * do not imply that the University of Minnesota or GroupLens endorses you;
  * in publications, cite F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
    ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872
The full text is the README of the archive: https://files.grouplens.org/datasets/movielens/ml-1m-README.txt"""

RATINGS_COLUMNS = ("UserID", "MovieID", "Rating", "Timestamp")
USERS_COLUMNS = ("UserID", "Gender", "Age", "Occupation", "Zip-code")
MOVIES_COLUMNS = ("MovieID", "Title", "Genres")

_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Gives reader version and checksums.

    Absent raw files count as the published ones, so that shards serve without them.
    """
    folder = find_raw()
    sums = {name: md5(folder / name) for name in CHECKSUMS} if folder else CHECKSUMS
    # Shards of a changed file, accepted once, must not answer for a config that refuses changed files.
    accepted = not config.verify_checksums and sums != CHECKSUMS
    made_of = {"source": NAME, "version": VERSION, "min_token_count": MIN_TOKEN_COUNT}
    return {**made_of, "md5": sums, "changed_files_accepted": accepted}


def pieces(config: DataConfig) -> RawPieces:
    """Finds the raw files, downloads them where they are absent, and reads them.

    Raises:
        UserError: they cannot be had, a line is malformed (with file and line), or a checksum is not the published one.
    """
    folder = find_raw() or download()
    dataset = read_folder(folder)
    # After the lines, because an error that names the line helps more than "the checksum differs".
    if config.verify_checksums:
        _verify(folder, "download it again, or set data.verify_checksums = false if the change is meant")
    return dataset.in_pieces(config.name)


def find_raw() -> Path | None:
    """Returns the folder of the raw files: in `$MWUF_DATA_DIR` or, downloaded earlier, in the cache.

    Raises:
        UserError: a folder has some of the three files but not all.
    """
    named = data_dir()
    candidates = [named / FOLDER, named] if named else []
    for folder in [*candidates, cache_dir() / "raw" / FOLDER]:
        missing = [name for name in CHECKSUMS if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(CHECKSUMS):
            raise UserError(f"{folder}: {', '.join(missing)} of MovieLens-1M missing; put the file there. {_by_hand()}")
    return None


def download(address: str = ADDRESS) -> Path:
    """Fetches the official archive into `$MWUF_DATA_DIR` (or the cache), terms shown, checksums verified.

    Raises:
        UserError: it cannot be fetched or is not the published archive; it says what to put where.
    """
    target = (data_dir() or cache_dir() / "raw") / FOLDER
    print(f"{TERMS}\nDownloading {address} into {target}", file=sys.stderr, flush=True)
    with locked(target, "download", wait=lambda text: print(text, file=sys.stderr, flush=True)):
        if find_raw() is None:  # Otherwise another process was faster.
            with appearing(target, _by_hand()) as folder:
                _fetch(address, folder)
                _verify(folder, "the archive is damaged or not the published one; nothing was kept")
    return target


def _fetch(address: str, folder: Path) -> None:
    archive_path = folder / "archive.zip"
    try:
        with urllib.request.urlopen(address, timeout=60) as response, archive_path.open("wb") as archive:
            shutil.copyfileobj(response, archive, 1 << 20)
        with zipfile.ZipFile(archive_path) as archive:
            for name in CHECKSUMS:
                (folder / name).write_bytes(archive.read(f"{FOLDER}/{name}"))
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(f"MovieLens-1M could not be downloaded from {address} ({reason}). {_by_hand()}") from None
    archive_path.unlink()


def _by_hand() -> str:
    return (
        f"By hand: get {ADDRESS}, unpack it, and put {', '.join(CHECKSUMS)} into a folder {FOLDER} in the folder that "
        "the environment variable MWUF_DATA_DIR names"
    )


def md5(path: Path) -> str:
    """Returns the checksum of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _verify(folder: Path, advice: str) -> None:
    for name, published in CHECKSUMS.items():
        found = md5(folder / name)
        if found != published:
            raise UserError(
                f"{folder / name}: md5 is {found}, the published file has {published}: truncated or changed; {advice}"
            )


def read_folder(folder: Path) -> RawDataset:
    """Reads the three files, whatever their checksums.

    Raises:
        UserError: a malformed line; it names file and line.
    """
    user_ids, users, user_fields = _read_users(folder / "users.dat")
    item_ids, items, item_fields = _read_movies(folder / "movies.dat")
    interactions = _read_ratings(folder / "ratings.dat", user_ids, item_ids)
    fields = (*user_fields, *item_fields)
    return RawDataset(interactions, users, items, fields, fewest={"title": MIN_TOKEN_COUNT})


def _read_ratings(path: Path, user_ids: np.ndarray, item_ids: np.ndarray) -> pa.Table:
    raw = _read_bytes(path)
    # Arrow's reader takes one-byte separators only, and is far faster than Python; what it refuses is read again, line
    # by line, to say which line and why.
    options = {
        "read_options": csv.ReadOptions(column_names=list(RATINGS_COLUMNS)),
        "parse_options": csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
        "convert_options": csv.ConvertOptions(
            column_types=dict.fromkeys(RATINGS_COLUMNS, pa.int64()), null_values=[], strings_can_be_null=False
        ),
    }
    try:
        if b"," in raw:
            raise pa.ArrowInvalid("a comma would pass for a separator")
        table = csv.read_csv(pa.BufferReader(raw.replace(b"::", b",")), **options)
    except pa.ArrowInvalid as error:
        for line, parts in _lines(path, raw, RATINGS_COLUMNS):
            for column, text in zip(RATINGS_COLUMNS, parts, strict=True):
                _integer(text, path, line, column)
        raise UserError(f"{path}: {error}") from None
    columns = {name: table[name].to_numpy() for name in RATINGS_COLUMNS}
    rating = columns["Rating"]
    _refuse_rows(path, (rating < 1) | (rating > 5), rating, "Rating {} is outside 1 to 5")
    user = _index_of(columns["UserID"], user_ids)
    _refuse_rows(path, user < 0, columns["UserID"], "UserID {} is out of range: users.dat has no such user")
    item = _index_of(columns["MovieID"], item_ids)
    _refuse_rows(path, item < 0, columns["MovieID"], "MovieID {} is out of range: movies.dat has no such film")
    label = (rating >= POSITIVE_RATING).astype(np.int8)
    return pa.table({"user": user, "item": item, "label": label, "time": columns["Timestamp"]})


def _index_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns the row [R] of each ID in `known`, -1 where there is none; int32."""
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    row = order[place]
    return np.where(known[row] == ids, row, -1).astype(np.int32)


def _refuse_rows(path: Path, bad: np.ndarray, values: np.ndarray, message: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(f"{path}:{row + 1}: {message.format(values[row])}; correct or remove the line")


def _read_users(path: Path) -> tuple[np.ndarray, pa.Table, list[Field]]:
    ids, genders, ages, occupations = [], [], [], []
    for line, (raw_id, gender, age, occupation, _) in _lines(path, _read_bytes(path), USERS_COLUMNS):
        ids.append(_integer(raw_id, path, line, "UserID"))
        if gender not in ("F", "M"):
            raise UserError(f"{path}:{line}: Gender is {gender!r}, not F or M; correct the line")
        genders.append(gender)
        ages.append(_integer(age, path, line, "Age"))
        occupations.append(_integer(occupation, path, line, "Occupation"))
    known = _unique_ids(ids, path, "UserID")
    columns: dict[str, Any] = {RAW_ID: known, USER_ID: np.arange(1, len(ids) + 1, dtype=np.int32)}
    fields = [Field(USER_ID, "categorical", "user", len(ids) + 1)]
    for name, values in (("gender", genders), ("age", ages), ("occupation", occupations)):
        vocabulary, index = np.unique(values, return_inverse=True)
        columns[name] = (index + 1).astype(np.int32)
        fields.append(Field(name, "categorical", "user", len(vocabulary) + 1))
    return known, pa.table(columns), fields


def _read_movies(path: Path) -> tuple[np.ndarray, pa.Table, list[Field]]:
    ids, years, words, genres = [], [], [], []
    for line, (raw_id, title, kinds) in _lines(path, _read_bytes(path), MOVIES_COLUMNS):
        ids.append(_integer(raw_id, path, line, "MovieID"))
        year = _YEAR.search(title)
        years.append(int(year.group(1)) if year else 0)
        words.append(_WORD.findall(_YEAR.sub("", title).lower()))
        genres.append([kind for kind in kinds.split("|") if kind])
    known = _unique_ids(ids, path, "MovieID")
    # Consecutive years get consecutive indices, so that neighbours can be smoothed; 0 is a title without a year.
    first = min((year for year in years if year), default=0)
    index = np.array([year - first + 1 if year else 0 for year in years], dtype=np.int32)
    title_column, num_words = _multi_valued(words, MIN_TOKEN_COUNT)
    genre_column, num_genres = _multi_valued(genres, 1)
    table = pa.table({RAW_ID: known, "year": index, "title": title_column, "genres": genre_column})
    fields = [
        Field("year", "categorical", "item", int(index.max()) + 1, ordinal=True),
        Field("title", "multi_valued", "item", num_words + 1),
        Field("genres", "multi_valued", "item", num_genres + 1),
    ]
    return known, table, fields


def _multi_valued(rows: list[list[str]], min_count: int) -> tuple[pa.ListArray, int]:
    """Gives indices of each row's distinct words, in order.

    [0] for a row without a known one; and the vocabulary's size.
    """
    counts = Counter(word for row in rows for word in set(row))
    vocabulary = {word: j + 1 for j, word in enumerate(sorted(w for w, n in counts.items() if n >= min_count))}
    indices = [[vocabulary[word] for word in dict.fromkeys(row) if word in vocabulary] or [0] for row in rows]
    flat = np.array([index for row in indices for index in row], dtype=np.int32)
    return list_column(np.array([len(row) for row in indices]), flat), len(vocabulary)


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {_by_hand()}") from None
    if not raw:
        raise UserError(f"{path}: is empty. {_by_hand()}")
    if not raw.endswith(b"\n"):
        line = raw.count(b"\n") + 1
        raise UserError(f"{path}:{line}: the last line has no line end: the file is truncated. {_by_hand()}")
    return raw


def _lines(path: Path, raw: bytes, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number, from 1, and columns of each line.

    Raises:
        UserError: a line has another number of columns.
    """
    for line, text in enumerate(raw.decode("latin-1").split("\n")[:-1], start=1):
        parts = text.rstrip("\r").split("::")
        if len(parts) != len(columns):
            expected = f"{len(columns)} columns {'::'.join(columns)}"
            raise UserError(f"{path}:{line}: expected {expected}, found {len(parts)}: {text!r}; correct the line")
        yield line, parts


def _integer(text: str, path: Path, line: int, column: str) -> int:
    if not _INTEGER.fullmatch(text):
        what = "a number (of seconds)" if column == "Timestamp" else "an integer"
        raise UserError(f"{path}:{line}: {column} is {text!r}, not {what}; correct the line")
    return int(text)


def _unique_ids(ids: list[int], path: Path, column: str) -> np.ndarray:
    known = np.array(ids, dtype=np.int64)
    values, first = np.unique(known, return_index=True)
    if len(values) < len(known):
        line = min(set(range(len(known))) - set(first.tolist())) + 1
        raise UserError(f"{path}:{line}: {column} {known[line - 1]} stands in an earlier line too; remove one")
    return known
