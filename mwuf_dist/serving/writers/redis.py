"""Items and users in a Redis server: one hash of each, whose fields a server of scores reads in one command.

    PREFIX:items    id:ITEM -> the columns of the item one after another, little-endian; `state` -> JSON: chain, number
                    and hash of the state that all of them are of
    PREFIX:users    id:USER -> the user's context
    PREFIX:about    the content of `export.json`; its `redis` names the columns in their order

`HMGET PREFIX:items state id:17 id:99` is one command, so its rows are of one version, and `state` says of which. An
export is loaded beside the hashes that are there and takes their place in one transaction; a delta is one transaction.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.config import UserError
from mwuf_dist.serving.deltas.reader import Delta, changed_items, values_of
from mwuf_dist.serving.finished_run import PHASE_NAMES
from mwuf_dist.serving.writers.parquet import ITEMS, ParquetWriter

PREFIX = "mwuf"
_ROWS = 10_000
# For an answer of the server; a delta of a million items takes it some seconds.
_WAIT_S = 60
# Until then an export that was not finished stays in the server.
_UNFINISHED_S = 24 * 3600


class RedisWriter(ParquetWriter):
    """Writes what Parquet has, and fills the server that `to` names: redis://HOST:PORT/DATABASE, with #PREFIX behind.

    What is not yet in the server is put in before the folder appears, so a command that was killed is run again.
    """

    fills_a_server = True

    def check(self) -> None:
        """See `Writer.check`."""
        if not self.to:
            raise UserError("name the server to fill: --to redis://127.0.0.1:6379/0#mwuf")
        _Server(self.to)

    def finish(self, folder: Path, about: dict[str, Any], deltas: Sequence[Delta] = ()) -> dict[str, Any]:
        """See `Writer.finish`."""
        server = _Server(self.to)
        columns = _columns(pq.read_schema(folder / ITEMS))
        said = {"to": server.name, "redis": {"prefix": server.prefix, "columns": columns}}
        about = about | said
        if deltas and server.state() is not None:
            server.put_in(deltas, about)
        else:
            server.load(folder, about)
        return said


class _Server:
    """A Redis server, under one prefix.

    Raises:
        UserError: the library is missing, the URL is none, or the server does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError:
            raise UserError("this format needs the client of Redis: pip install 'mwuf-dist[redis]'") from None
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise UserError(f"--to {url}: is no URL of Redis; write it as redis://HOST:PORT/DATABASE#PREFIX")
        self.prefix = parts.fragment or PREFIX
        # Without the password, which does not belong into a file.
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}#{self.prefix}"
        self._redis = redis.from_url(url.partition("#")[0], socket_connect_timeout=_WAIT_S, socket_timeout=_WAIT_S)
        self._error = redis.RedisError
        self._told(self._redis.ping)

    def _told(self, call: Any, *args: Any, **keys: Any) -> Any:
        try:
            return call(*args, **keys)
        except self._error as error:
            raise UserError(
                f"{self.name}: {str(error)[:200]}; what is served is whole: run the same command again"
            ) from None

    def state(self) -> dict[str, Any] | None:
        """Returns the state of the items that are served; None where none are."""
        text = self._told(self._redis.hget, f"{self.prefix}:items", "state")
        return None if text is None else json.loads(text)

    def load(self, folder: Path, about: dict[str, Any]) -> None:
        """Puts an export into the place of what is there."""
        beside = f"{self.prefix}:unfinished:{secrets.token_hex(8)}"
        loaded = {}
        for name in ("items", "users"):
            if (path := folder / f"{name}.parquet").exists():
                loaded[name] = f"{beside}:{name}"
                self._told(self._fill, loaded[name], path, about if name == "items" else None)

        def switch() -> None:
            with self._redis.pipeline(transaction=True) as change:
                for name in ("items", "users"):
                    if name in loaded:
                        change.rename(loaded[name], f"{self.prefix}:{name}")
                        change.persist(f"{self.prefix}:{name}")
                    else:
                        change.unlink(f"{self.prefix}:{name}")
                change.set(f"{self.prefix}:about", json.dumps(about))
                change.execute()

        self._told(switch)

    def put_in(self, deltas: Sequence[Delta], about: dict[str, Any]) -> None:
        """Applies deltas to the items that are served, each in one transaction; what is in already is passed over.

        Raises:
            UserError: the server has items of another chain, or of a state that the deltas do not go on from.
        """
        for delta in deltas:
            there = self.state()
            assert there is not None
            header = delta.header
            if there["chain"] == header["chain"] and there["number"] >= header["number"]:
                continue  # by a command that was killed before its folder appeared
            if there["chain"] != header["chain"] or there["hash"] != header["before"]:
                raise UserError(
                    f"{self.name}: serves delta {there['number']} of the chain {there['chain']}, and {delta.name} does "
                    "not go on from there: export the run into it again"
                )
            state = {"chain": header["chain"], "number": header["number"], "hash": header["after"]}
            self._told(self._change, delta, about, state)

    def _change(self, delta: Delta, about: dict[str, Any], state: dict[str, Any]) -> None:
        with self._redis.pipeline(transaction=True) as change:
            gone = [_field(one) for one in delta.parts["retired"]["item_id"].to_pylist()]
            if gone:
                change.hdel(f"{self.prefix}:items", *gone)
            fields: dict[Any, Any] = dict(
                _fields(changed_items(delta, about["old_items"]), "item_id", about["redis"]["columns"])
            )
            change.hset(f"{self.prefix}:items", mapping=fields | {"state": json.dumps(state)})
            users = delta.parts.get("changed_users")
            if users is not None and users.num_rows and "num_users" in about:
                change.hset(f"{self.prefix}:users", mapping=dict(_fields(users, "user_id", _columns(users.schema))))
            change.set(f"{self.prefix}:about", json.dumps(about | {"state": state}))
            change.execute()

    def _fill(self, key: str, path: Path, about: dict[str, Any] | None) -> None:
        file = pq.ParquetFile(path)
        columns = _columns(file.schema_arrow)
        if about is not None:
            self._redis.hset(key, "state", json.dumps(about["state"]))
        for batch in file.iter_batches(_ROWS):
            table = pa.Table.from_batches([batch])
            self._redis.hset(key, mapping=dict(_fields(table, table.column_names[0], columns)))
            self._redis.expire(key, _UNFINISHED_S)
        assert self._redis.hlen(key) == file.metadata.num_rows + (about is not None)


def _columns(schema: pa.Schema) -> list[list[Any]]:
    """Returns (name, NumPy type, width or 0) of the columns of a table, but of the ID."""
    found: list[list[Any]] = []
    for field in schema:
        if field.name == "phase":
            found.append(["phase", "|u1", 0])
        elif pa.types.is_fixed_size_list(field.type):
            found.append([field.name, "<f4", field.type.list_size])
        elif not field.name.endswith("_id"):
            found.append([field.name, np.dtype(field.type.to_pandas_dtype()).newbyteorder("<").str, 0])
    return found


def _fields(table: pa.Table, id_name: str, columns: list[list[Any]]) -> Iterator[tuple[str, bytes]]:
    """Yields (field, value) of each row."""
    rows = np.zeros(table.num_rows, [(name, kind, (width,) if width else ()) for name, kind, width in columns])
    for name, _, _ in columns:
        values = values_of(table[name])
        if name == "phase":
            values = np.array([PHASE_NAMES.index(one) for one in values.tolist()], dtype=np.uint8)
        rows[name] = values
    content, size = rows.tobytes(), rows.dtype.itemsize
    for place, one in enumerate(table[id_name].to_pylist()):
        yield _field(one), content[place * size : (place + 1) * size]


def _field(raw_id: Any) -> str:
    return f"id:{raw_id}"
