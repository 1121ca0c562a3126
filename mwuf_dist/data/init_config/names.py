"""What names of columns say: whole words, camel case split, and the words around the one that tells."""

from __future__ import annotations

import re
from collections.abc import Sequence

USER = (
    "user",
    "usr",
    "uid",
    "customer",
    "cust",
    "member",
    "visitor",
    "account",
    "listener",
    "reader",
    "viewer",
    "client",
    "buyer",
    "shopper",
    "reviewer",
    "consumer",
    "subscriber",
    "household",
    "person",
    "player",
    "student",
    "msno",
)
ITEM = (
    "item",
    "iid",
    "movie",
    "film",
    "product",
    "article",
    "adgroup",
    "ad",
    "track",
    "song",
    "video",
    "book",
    "recipe",
    "news",
    "sku",
    "asin",
    "isbn",
    "game",
    "app",
    "business",
    "anime",
    "hotel",
    "listing",
    "restaurant",
    "venue",
    "poi",
    "course",
    "job",
    "post",
    "photo",
    "place",
    "podcast",
    "show",
    "stock",
    "artist",
    "creative",
    "content",
    "goods",
)
TIME = (
    "timestamp",
    "time_stamp",
    "event_time",
    "unix_review_time",
    "time",
    "ts",
    "datetime",
    "date",
    "created",
    "played",
    "occurred",
    "viewed",
    "clicked_at",
    "purchased_at",
    "at",
    "day",
    "dat",
    "when",
    "dt",
    "hour",
    "week",
)
LABEL = (
    "label",
    "clicked",
    "click",
    "clk",
    "target",
    "liked",
    "like",
    "purchased",
    "purchase",
    "bought",
    "converted",
    "conversion",
    "is_buy",
    "buy",
    "reward",
    "is_positive",
    "y",
)
RATING = ("rating", "rate", "stars", "star", "score", "overall", "grade", "review_score")
ACTION = (
    "event_type",
    "event_name",
    "event",
    "behavior_type",
    "behaviour_type",
    "behavior",
    "behaviour",
    "action_type",
    "action",
    "btag",
    "interaction_type",
    "interaction",
    "activity",
)

_ID_WORDS = {
    "id",
    "ids",
    "key",
    "code",
    "no",
    "num",
    "nr",
    "number",
    "uuid",
    "guid",
    "hash",
    "idx",
    "index",
    "sk",
    "pk",
    "ref",
}
_PREFIXES = {
    "the",
    "hashed",
    "anon",
    "anonymous",
    "encrypted",
    "raw",
    "target",
    "click",
    "clicked",
    "full",
    "fk",
    "dim",
}
_NOT_A_TIME = {
    "birth",
    "release",
    "released",
    "signup",
    "registration",
    "registered",
    "join",
    "joined",
    "launch",
    "zone",
    "on",
    "launched",
    "publish",
    "published",
    "expire",
    "expires",
    "expiry",
    "spent",
    "dwell",
    "watch",
    "duration",
    "elapsed",
    "first",
    "last",
    "updated",
    "modified",
    "of",
    "per",
    "play",
    "session",
    "load",
    "response",
    "since",
}
_NO_LABEL = {
    "count",
    "counts",
    "id",
    "time",
    "at",
    "date",
    "rate",
    "ratio",
    "url",
    "type",
    "encoder",
    "ts",
    "timestamp",
}
NEGATIONS = {
    "no",
    "not",
    "non",
    "un",
    "dis",
    "remove",
    "removed",
    "removal",
    "cancel",
    "cancelled",
    "canceled",
    "delete",
    "skip",
    "skipped",
    "return",
    "returned",
    "refund",
    "refunded",
    "without",
    "never",
    "hide",
    "report",
    "from",
}
_AMOUNTS = {
    "age",
    "price",
    "cost",
    "amount",
    "count",
    "num",
    "year",
    "size",
    "length",
    "duration",
    "weight",
    "score",
    "avg",
    "mean",
    "sum",
    "total",
    "ratio",
    "rate",
    "income",
    "salary",
    "distance",
    "quantity",
    "qty",
    "seats",
}
_CODES = {
    "category",
    "categories",
    "cat",
    "cate",
    "type",
    "class",
    "brand",
    "zip",
    "genre",
    "city",
    "country",
    "region",
    "segment",
    "cluster",
    "group",
    "shop",
    "store",
    "seller",
    "merchant",
    "publisher",
    "language",
    "lang",
    "os",
}


def words(name: str) -> list[str]:
    """The words of a name in small letters: userId, USER_ID and "User ID" are user, id."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    split = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", split)
    return re.findall(r"[a-z]+|[0-9]+", split.lower())


def entity_score(name: str, wanted: Sequence[str]) -> int:
    """How surely a column holds IDs of one of the wanted kinds; 0: it does not.

    A name is an ID's when it is the word, or the word and one for IDs (`movie_id`), perhaps behind others; a name that
    goes on with another word (`user_agent`, `item_price`) is an attribute's.
    """
    parts = words(name)
    for place, word in enumerate(wanted):
        for one in (word, f"{word}s"):
            rank = 100 - place
            glued = [one + tail for tail in ("id", "no", "code", "key", "hash")]
            if parts and parts[-1] in glued:
                return 300 + rank if len(parts) == 1 else 200 + rank
            if one not in parts:
                continue
            at = len(parts) - 1 - parts[::-1].index(one)
            before, after = parts[:at], parts[at + 1 :]
            if after and not set(after) <= _ID_WORDS:
                continue
            if not set(before) - _PREFIXES:
                return (400 if after else 300) + rank
            return (200 if after else 100) + rank
    return 0


def time_score(name: str) -> int:
    """How surely a column is the time of the event by its name; 0: it is not."""
    parts = words(name)
    if set(parts) & _NOT_A_TIME:
        return 0
    joined = "_".join(parts)
    for place, word in enumerate(TIME):
        if joined in (word, word.replace("_", "")):
            return 300 - place
    for place, word in enumerate(TIME):
        if word in parts or f"_{word}_" in f"_{joined}_" or any(part in (f"{word}s", f"event{word}") for part in parts):
            return 200 - place
    return 0


def label_score(name: str) -> int:
    """How surely a column says whether the row is a positive; 0: it does not."""
    parts = [part for part in words(name) if part not in ("is", "has", "was", "did", "n", "num")]
    if set(parts) & (NEGATIONS | _NO_LABEL):
        return 0
    joined = "_".join(parts)
    for place, word in enumerate(LABEL):
        if joined in (word, word.removeprefix("is_")):
            return 300 - place
    return next((200 - place for place, word in enumerate(LABEL) if word in parts and len(word) > 1), 0)


def by_word(names: Sequence[str], wanted: Sequence[str]) -> str:
    """The column whose name is one of the wanted, or has one as a whole word; empty where there is none."""
    plain = {name: "_".join(words(name)) for name in names}
    for exact in (True, False):
        for word in wanted:
            for name, text in plain.items():
                if text == word if exact else f"_{word}_" in f"_{text}_" and not set(words(name)) & {"count", "id"}:
                    return name
    return ""


def is_code(name: str) -> bool:
    """Whether a name says that numbers are codes, not amounts."""
    parts = words(name)
    if set(parts) & _AMOUNTS:
        return False
    return bool(set(parts) & _CODES) or (bool(parts) and parts[-1] in _ID_WORDS)
