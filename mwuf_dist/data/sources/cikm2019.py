"""CIKM 2019 EComm AI, efficient user interest retrieval (Tianchi): what shoppers did with items, in about 16 days.

No file has a line of names:

    user.csv           user, gender, age, purchasing power
    item.csv           item, category, shop, brand
    user_behavior.csv  user, item, behaviour (pv, fav, cart or buy), seconds from the first day

Label: `buy` against the other behaviours. Rules:

* Files may lie in several folders that belong together: round 1 gave testA and testB, each with the same three files.
  They are put together in the order of the folders' names; the behaviours of a later folder come after those of an
  earlier one. Round 2 (`ECommAI_EUIR_round2_train_20190816`) is one folder, and what the paper's figures are about.
* Items stand in both parts of round 1: of several rows of an item or user the first counts. Repeated behaviours all
  count: a time is exact to the second at best, and raw rows are what the data set's size is given in.
* Users and items are those of the behaviours; without a row in user.csv or item.csv, or with an empty value, they are
  unknown, index 0.
* The age is a number in quantile buckets, all other fields are categories. Vocabularies of items are those of items
  with at least 3K behaviours: the others are dropped, and a value that only they have is never trained.

Checked against public sources that read the real files: the columns of all three files and that they have no names,
the four behaviours, ages in years, seconds from a first day (with 5 July 2019 as an assumption of theirs), the names of
the round-1 folders, the repeated items of testA and testB (solutions of the competition on GitHub; massquantity/DBRL,
`dbrl/run_prepare_data.py`, for round 2). Unverified, because the files need a login: line ends, the order of the
behaviours, whether testA and testB share users, whether a value may be empty, and K = 50: no public preparation of
these files with old and new items was found, and descriptions of the winning solutions (such as
cloud.tencent.com/developer/article/1824219) have no such split. The number of behaviours is given as 62.4 million by
the paper and as up to 80 million elsewhere, so no count is held against the files.
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
from mwuf_dist.data.sources.synthesized import mark_of
from mwuf_dist.data.stream_rule import Seen

VERSION = 1  # Raise it when the same raw files would give other tables.

NAME = "cikm2019"
FILES = ("user_behavior.csv", "item.csv", "user.csv")
TERMS = (
    'Where to get it: "CIKM 2019 EComm AI: user interest retrieval", '
    "https://tianchi.aliyun.com/competition/entrance/231721 (needs a login). Terms: Alibaba gave the data for the "
    "competition and for research; the page's own text, which the login shows, holds."
)

BEHAVIOURS = ("pv", "fav", "cart", "buy")
BEHAVIOUR_FILE = RawCsv(
    header=("user", "item", "behaviour", "time"),
    wanted=(
        Column("user", pa.int64()),
        Column("item", pa.int64()),
        Column("behaviour", pa.dictionary(pa.int32(), pa.string()), "|".join(BEHAVIOURS), "pv, fav, cart or buy"),
        Column("time", pa.int64()),
    ),
    named=False,
)
ITEM_FIELDS = {name: LogsField(name=name, side="item") for name in ("category", "shop", "brand")}
USER_FIELDS = {
    "gender": LogsField(name="gender", side="user"),
    "age": LogsField(name="age", side="user", kind="numeric"),
    "purchasing_power": LogsField(name="purchasing_power", side="user"),
}


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Returns the reader version; what each file holds; what made-up files were made with."""
    parts = find_raw()
    files = content_of([path for part in parts for path in part])
    mark = {key: value for part in parts for key, value in mark_of(part[0].parent).items()}
    return {"source": NAME, "version": VERSION, "files": files, **mark}


def find_raw() -> tuple[tuple[Path, ...], ...]:
    """Returns the three files of each part, plain or .gz: in `$MWUF_DATA_DIR/cikm2019`, or in folders in it.

    Raises:
        UserError: there are none, or not all of a part, or parts of both rounds.
    """
    named = data_dir()
    top = named / NAME if named else None
    if top is None or not top.is_dir():
        raise UserError(f"CIKM 2019 EComm AI is not there. {_by_hand()}")
    folders = [top, *sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))]
    parts = []
    for folder in folders:
        found, missing = csv_pieces.find_files(folder, FILES)
        if not missing:
            parts.append(found)
        elif found:
            raise UserError(f"{folder}: {', '.join(missing)} of CIKM 2019 EComm AI missing. {_by_hand()}")
    if not parts:
        raise UserError(f"CIKM 2019 EComm AI is not in {top}. {_by_hand()}")
    _refuse_mixture(top, [part[0].parent for part in parts])
    return tuple(parts)


def _refuse_mixture(top: Path, folders: list[Path]) -> None:
    """Refuses both rounds at once: round 2 has IDs of its own, so rows of both under one ID would be nonsense."""
    second = [folder for folder in folders if "round2" in folder.name.lower()]
    if len(folders) > 1 and (top in folders or second):
        names = ", ".join("." if folder == top else folder.name for folder in folders)
        raise UserError(f"{top}: holds several data sets ({names}): keep one round there, and only its parts")


def _by_hand() -> str:
    return (
        f"Put {', '.join(FILES)} (.csv.gz will do) of round 2 into a folder {NAME} in the folder that the environment "
        "variable MWUF_DATA_DIR names, or there the folder ECommAI_EUIR_round2_train_20190816, or the folders of round "
        f"1, testA and testB. {TERMS} Files in the same layout, made up: `mwuf synthesize {NAME} --rows 1_000_000 "
        "--output DIR`"
    )


def pieces(config: DataConfig) -> RawPieces:
    """Returns the behaviours, and the items and users that they join.

    Raises:
        UserError: a file is absent or malformed; it names file and line.
    """
    behaviours, items_files, users_files = zip(*find_raw(), strict=True)
    read = functools.partial(csv_pieces.read_piece, kind=BEHAVIOUR_FILE, convert=_convert)
    entities = functools.partial(_entities, items_files, users_files, 3 * config.warm_rows)
    return RawPieces(csv_pieces.pieces_of(behaviours, BEHAVIOUR_FILE), read, entities)


def _entities(
    items_files: tuple[Path, ...],
    users_files: tuple[Path, ...],
    fewest_rows: int,
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    item_rows: np.ndarray,
    seen: Seen | None = None,
) -> Entities:
    kept = item_rows >= fewest_rows
    table = _side_table(items_files, "items", "item", ITEM_FIELDS)
    of_items, of_users = (None, None) if seen is None else (seen.items, seen.users)
    items, item_fields = csv_pieces.join("item", item_ids, table, "item", ITEM_FIELDS, kept, of_items)
    table = _side_table(users_files, "users", "user", USER_FIELDS)
    everyone = np.ones(len(user_ids), dtype=bool)
    users, user_fields = csv_pieces.join("user", user_ids, table, "user", USER_FIELDS, everyone, of_users)
    return Entities(users, items, (*user_fields, *item_fields))


def _convert(columns: dict[str, Any]) -> dict[str, np.ndarray] | None:
    behaviour = columns["behaviour"]
    words = behaviour.dictionary.to_pylist()
    if not set(words) <= set(BEHAVIOURS):
        return None
    is_buy = np.array([word == "buy" for word in words], dtype=np.int8)
    return {
        "user": csv_pieces.narrow(columns["user"]),
        "item": csv_pieces.narrow(columns["item"]),
        "label": is_buy[behaviour.indices.to_numpy()],
        "time": columns["time"].to_numpy(),
    }


def _side_table(
    paths: tuple[Path, ...], what: str, id_column: str, fields: dict[str, LogsField]
) -> log_tables.LogTable:
    for path in paths:
        csv_pieces.refuse_cut_line(path)
    names = (id_column, *fields)
    return log_tables.read(paths, names, LogsConfig(missing=("", "NULL"), header=names), what, plain=[id_column])
