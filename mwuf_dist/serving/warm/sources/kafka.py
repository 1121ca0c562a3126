"""Messages of a topic of Kafka, each a JSON object with the columns of one interaction.

The position is the offset behind the last message that is in a delta, for each partition. It stands in the deltas, and
the offsets that Kafka itself keeps for a group of consumers are neither read nor written: a process that was killed
goes on behind its last delta, wherever that was. Offsets that are missing in between (a compacted topic, marks of
transactions) are no loss; that the log of a partition now begins behind the position is one, and is refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.data.readers import log_tables, row_values
from mwuf_dist.runtime.shutdown import asked_to_stop
from mwuf_dist.serving.warm.sources.interface import Position, Taken

_BATCH_BYTES = 1 << 24  # Of messages that are taken at once, about.
_BATCH_MESSAGES = 1 << 17
_WAIT_S = 0.2  # For a message to come.
_ANSWER_S = 10.0  # For a broker to answer.
_LOOKS = 50  # Waits without a message after which new partitions are looked for.


class KafkaSource:
    """A topic, all partitions of it, from their first message on.

    Args:
        brokers: HOST:PORT, with commas between several.
        topic: its name.
        names: keys of a message that are read, the columns of an interaction.
        settings: further settings of the client (librdkafka), for encryption and passwords, say.
        skip_lost: go on where messages are gone that had not been taken.

    Raises:
        UserError: the library is missing, no broker answers, or there is no such topic.
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        names: Sequence[str],
        settings: dict[str, str] | None = None,
        skip_lost: bool = False,
    ) -> None:
        try:
            import confluent_kafka
        except ImportError:
            raise UserError("this source needs a client of Kafka: pip install 'mwuf-dist[kafka]'") from None
        self._kafka, self._topic, self._names, self._skip_lost = confluent_kafka, topic, tuple(names), skip_lost
        self._uri = f"kafka://{brokers}/{topic}"
        ours = {
            "bootstrap.servers": brokers,
            "group.id": "mwuf-warm",  # must be there; nobody joins it
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
        }
        try:
            self._consumer = confluent_kafka.Consumer({"client.id": "mwuf-warm", **(settings or {}), **ours})
        except (confluent_kafka.KafkaException, ValueError, TypeError) as error:
            raise UserError(f"{self._uri}: {_said(error)}") from None
        self._next: dict[int, int] = {}  # partition -> the offset that is read next
        self._at_end: set[int] = set()
        self._idle = 0
        self._folder = tempfile.TemporaryDirectory(prefix="mwuf-kafka-")
        self._messages: dict[Path, list[Any]] = {}
        self._partitions()  # before a model is loaded

    @classmethod
    def named(cls, uri: str, options: LogsConfig, settings: Path | None, skip_lost: bool) -> KafkaSource:
        """Returns the source of a URI, kafka://HOST:PORT,HOST:PORT/TOPIC; see `source_of`."""
        brokers, _, topic = uri.removeprefix("kafka:").lstrip("/").partition("/")
        if not brokers or not topic or "/" in topic or "@" in brokers:
            raise UserError(f"--follow {uri}: write a topic as kafka://HOST:PORT/TOPIC; passwords go into --kafka FILE")
        names = [*log_tables.needed_columns(options), *row_values.columns(options)]
        return cls(brokers, topic, names, read_settings(settings), skip_lost)

    def take(self, position: Position) -> Taken | None:
        """See `Source.take`; waits a moment for a message, and longer for a broker that says nothing at all."""
        self._clear()
        self._go_to(position)
        found, size = [], 0
        while not asked_to_stop() and size < _BATCH_BYTES and len(found) < _BATCH_MESSAGES:
            num = min(_BATCH_MESSAGES - len(found), 1 << 13)
            came = self._consumer.consume(num, timeout=0 if found else _WAIT_S)
            messages = [one for one in came if self._is_message(one)]
            found += messages
            size += sum(len(one.value() or b"") for one in messages)
            if not messages and (found or self._at_end >= set(self._next)):
                break
        if not found:
            self._look_around(position)
            return None
        self._idle = 0
        for one in found:
            self._next[one.partition()] = one.offset() + 1
        reached = {self._key(one.partition()): self._next[one.partition()] for one in found}
        return Taken((self._write(found),), reached, self._divide)

    def close(self) -> None:
        """Lets go of the brokers."""
        self._consumer.close()
        self._folder.cleanup()

    def _is_message(self, one: Any) -> bool:
        """Sorts out what is no message: the end of a partition, faults that pass, and those that do not."""
        error = one.error()
        if error is None:
            self._at_end.discard(one.partition())
            return True
        codes = self._kafka.KafkaError
        if error.code() == codes._PARTITION_EOF:
            self._at_end.add(one.partition())
        elif error.code() == codes._AUTO_OFFSET_RESET:
            partition = one.partition()
            self._next[partition] = self._first(partition, self._next[partition])
            self._assign()
        elif error.fatal() or not (error.retriable() or error.code() in (codes._TRANSPORT, codes._ALL_BROKERS_DOWN)):
            raise UserError(f"{self._uri}: {_said(error)}")
        return False

    def _key(self, partition: int) -> str:
        return f"kafka/{self._topic}/{partition}"  # no name of a file has a slash

    def _partitions(self) -> list[int]:
        """Returns the partitions that the topic has now."""
        try:
            about = self._consumer.list_topics(self._topic, timeout=_ANSWER_S).topics[self._topic]
        except self._kafka.KafkaException as error:
            raise UserError(f"{self._uri}: no broker answers: {_said(error)}") from None
        if about.error is not None or not about.partitions:
            raise UserError(f"{self._uri}: {_said(about.error)}: make the topic, or name another with --follow")
        return sorted(about.partitions)

    def _go_to(self, position: Position) -> None:
        """Makes the next message of each partition that of a position; of one that has none, the first there is."""
        own = {partition: position.get(self._key(partition), offset) for partition, offset in self._next.items()}
        if not self._next:
            own = {partition: position.get(self._key(partition), -1) for partition in self._partitions()}
        if own != self._next:
            self._next = {partition: self._first(partition, offset) for partition, offset in own.items()}
            self._assign()

    def _first(self, partition: int, offset: int) -> int:
        """Returns the offset to go on from.

        Raises:
            UserError: messages from `offset` on are gone, or the partition does not reach so far.
        """
        asked = self._kafka.TopicPartition(self._topic, partition)
        try:
            low, high = self._consumer.get_watermark_offsets(asked, timeout=_ANSWER_S)
        except self._kafka.KafkaException as error:
            raise UserError(f"{self._uri}: no broker answers: {_said(error)}") from None
        if offset < 0 or (self._skip_lost and not low <= offset <= high):
            return low
        if offset < low:
            raise UserError(
                f"{self._uri}: messages {offset:,} to {low - 1:,} of partition {partition} are gone (the topic keeps "
                "them for too short a time) and had not been taken. Put their interactions into a folder, give them "
                "to a job of `mwuf warm` on OUTPUT, if you have them; then go on without with --skip-lost"
            )
        if offset > high:
            raise UserError(
                f"{self._uri}: partition {partition} ends at message {high:,}, and {offset:,} were taken of it: the "
                "topic has been made anew. Name another --output, or take it from its beginning with --skip-lost"
            )
        return offset

    def _assign(self) -> None:
        self._at_end.clear()
        wanted = [self._kafka.TopicPartition(self._topic, *pair) for pair in self._next.items()]
        self._consumer.assign(wanted)

    def _look_around(self, position: Position) -> None:
        """Looks now and then whether the topic has more partitions."""
        self._idle += 1
        if self._idle % _LOOKS:
            return
        fresh = [partition for partition in self._partitions() if partition not in self._next]
        if fresh:
            self._next |= {one: self._first(one, position.get(self._key(one), -1)) for one in fresh}
            self._assign()

    def _write(self, messages: list[Any]) -> Path:
        """Returns messages as a file that is read as any other; one of them that is no object makes it unreadable."""
        one = messages[0]
        name = f"{self._topic}[{one.partition()}]@{one.offset()}"
        path = Path(self._folder.name, name if len(messages) == 1 else f"{name} and {len(messages) - 1} more")
        path = path.with_name(f"{path.name}.parquet")
        self._messages[path] = messages
        try:
            rows = [json.loads(one.value()) for one in messages]
            columns = {name: pa.array([row.get(name) for row in rows]) for name in self._names}
            pq.write_table(pa.table({name: values for name, values in columns.items() if _is_there(values)}), path)
        except (ValueError, TypeError, AttributeError, RecursionError, pa.ArrowException):
            path.write_bytes(b"")
        return path

    def _divide(self, path: Path) -> tuple[Path, ...]:
        messages = self._messages[path]
        half = len(messages) // 2
        return (self._write(messages[:half]), self._write(messages[half:])) if half else ()

    def _clear(self) -> None:
        for path in self._messages:
            path.unlink(missing_ok=True)
        self._messages = {}


def _is_there(values: pa.Array) -> bool:
    """Says whether a column has a value; one without has no type either."""
    return not pa.types.is_null(values.type)


def read_settings(path: Path | None) -> dict[str, str]:
    """Returns settings of librdkafka from a file of lines `name=value`; # begins a comment.

    Raises:
        UserError: it cannot be read.
    """
    if path is None:
        return {}
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--kafka {path}: cannot be read ({error})") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        name, is_set, value = line.partition("=")
        if not is_set:
            raise UserError(f"--kafka {path}, line {number}: write name=value")
        found[name.strip()] = value.strip()
    return found


def _said(error: Any) -> str:
    """Returns the reason that librdkafka gives, without codes."""
    inner: Any = error.args[0] if isinstance(error, Exception) and error.args else error
    return inner.str() if hasattr(inner, "str") else str(inner)
