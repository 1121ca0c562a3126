"""A topic of Kafka is followed as a folder is: each message once, whatever is killed, and no loss unsaid.

The brokers are those that librdkafka has for tests. They speak the protocol on a port of this machine and drop what is
more than 5 MB in a partition.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mwuf_dist import cli
from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.runtime import start
from mwuf_dist.serving.deltas import files as deltas
from mwuf_dist.serving.deltas.reader import read_delta
from mwuf_dist.serving.finished_run import open_run
from mwuf_dist.serving.run_files import read_run
from mwuf_dist.serving.warm import follow as follow_module
from mwuf_dist.serving.warm.job import warm
from mwuf_dist.serving.warm.sources import kafka as kafka_module
from mwuf_dist.serving.warm.sources import source_of
from mwuf_dist.serving.warm.sources.kafka import KafkaSource, read_settings
from tests.faults.ranks import forked

confluent_kafka = pytest.importorskip("confluent_kafka", reason="no client of Kafka: pip install 'mwuf-dist[kafka]'")

NAMES = ("user_id", "item_id", "label", "timestamp")
NUM_PARTITIONS = 4  # of a topic that these brokers make by themselves
Send = Callable[..., None]


@pytest.fixture(scope="module")
def producer() -> Any:
    return confluent_kafka.Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 3})


@pytest.fixture(scope="module")
def brokers(producer: Any) -> str:
    return ",".join(f"{one.host}:{one.port}" for one in producer.list_topics(timeout=30).brokers.values())


@pytest.fixture
def send(producer: Any) -> Send:
    """Puts values (objects, or bytes as they are) into partitions of a topic, in turns or all into one."""

    def put(topic: str, values: list[Any], partition: int | None = None) -> None:
        for place, value in enumerate(values):
            data = value if isinstance(value, bytes | None) else json.dumps(value).encode()
            producer.produce(topic, data, partition=place % NUM_PARTITIONS if partition is None else partition)
        assert producer.flush(60) == 0

    return put


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A name that no other test has."""
    return f"{request.node.originalname}-{os.getpid()}"[-80:]


def rows_of(path: Path, num: int = 400) -> list[dict[str, Any]]:
    """Clicks on new items of a run and on others, some of them twice, in no order."""
    with open_run(path) as run:
        users, items = run.user_ids.to_pylist(), run.item_ids.to_pylist()[-40:]
    random = np.random.default_rng(11)
    rows = []
    for _ in range(num):
        item = int(random.choice(items)) if random.random() < 0.6 else 10**6 + int(random.integers(12))
        row = {"user_id": int(random.choice(users)), "item_id": item, "label": int(random.integers(2))}
        rows.append(row | {"timestamp": 10**9 + int(random.integers(5000))})
    return [*rows, *rows[::7]]


def dies(where: str, after: int, arguments: list[str]) -> None:
    """The command, whose process ends on the spot before or after its n-th delta has its name, or in a snapshot."""
    kafka_module._BATCH_MESSAGES, follow_module._SNAPSHOT_ROWS = 60, 150
    write, count = deltas.write_delta, itertools.count(1)

    def killed(*given: Any) -> Any:
        number = next(count)
        if where == "before" and number == after:
            os._exit(9)
        made = write(*given)
        if where == "after" and number == after:
            os._exit(9)
        return made

    follow_module.deltas.write_delta = killed
    if where == "snapshot":
        follow_module.served_state.save_into = lambda *_: os._exit(9)
    cli.main(arguments)


@pytest.mark.dist
def test_killed_anywhere_each_message_is_in_one_delta_and_the_state_is_that_of_one_job(
    run_folder: Path, brokers: str, send: Send, topic: str, tmp_path: Path
) -> None:
    rows = rows_of(run_folder)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    with start(read_run(run_folder)[0]) as runtime:
        warm(run_folder, tmp_path / "all.parquet", tmp_path / "at-once", runtime)
    send(topic, rows)
    live = tmp_path / "live"
    arguments = ["warm", str(run_folder), "--follow", f"kafka://{brokers}/{topic}", "--output", str(live)]
    arguments.append("--until-idle")
    for where, after, code in (("before", 2, 9), ("after", 1, 9), ("snapshot", 0, 9), ("never", 0, 0)):
        with forked(dies, (where, after, arguments), tmp_path / f"log-{where}", 1) as launch:
            assert launch.wait() == [code], launch.said()
    for name in ("items.parquet", "log.parquet", "rows.parquet"):
        assert (live / "warm" / name).read_bytes() == (tmp_path / "at-once" / "warm" / name).read_bytes(), name
    heads = [read_delta(path).header for path in deltas.delta_files([live])]
    assert len(heads) >= len(rows) // 60
    assert heads[-1]["after"] == read_delta(deltas.delta_files([tmp_path / "at-once"])[0]).header["after"]
    reached = dict.fromkeys(range(NUM_PARTITIONS), 0)
    num_taken = 0
    for head in heads:
        for key, offset in head["position"].items():
            if not key.startswith("kafka/"):
                continue
            partition = int(key.removeprefix(f"kafka/{topic}/"))
            num_taken += offset - reached[partition]
            assert offset > reached[partition]
            reached[partition] = offset
    assert num_taken == len(rows)
    # What Kafka itself keeps for a group was never written, so it cannot be believed either.
    group = confluent_kafka.Consumer({"bootstrap.servers": brokers, "group.id": "mwuf-warm"})
    kept = group.committed([confluent_kafka.TopicPartition(topic, one) for one in range(NUM_PARTITIONS)], timeout=30)
    assert all(one.offset < 0 for one in kept)
    group.close()


def taken_of(source: KafkaSource, position: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    """(`user_id` of all messages behind a position, the position behind them)."""
    users, position = [], dict(position)
    while (batch := source.take(position)) is not None:
        for path in batch.files:
            users += pq.read_table(path)["user_id"].to_pylist()
        position |= batch.position
    return users, position


def test_messages_that_are_gone_before_they_were_taken_are_an_error_that_names_them(
    brokers: str, send: Send, topic: str
) -> None:
    send(topic, [{"user_id": number, "filler": "x" * 900_000} for number in range(4)], partition=2)
    source = KafkaSource(brokers, topic, NAMES)
    users, position = taken_of(source, {})
    assert users == [0, 1, 2, 3] and position == {f"kafka/{topic}/2": 4}
    send(topic, [{"user_id": number, "filler": "x" * 900_000} for number in range(4, 20)], partition=2)
    source.close()
    again = KafkaSource(brokers, topic, NAMES)
    with pytest.raises(UserError, match=r"messages 4 to 1\d of partition 2 are gone .* --skip-lost"):
        again.take(position)
    # So is what goes while a process follows.
    again._next = dict.fromkeys(range(NUM_PARTITIONS), 0) | {2: 4}
    again._assign()
    with pytest.raises(UserError, match="of partition 2 are gone"):
        taken_of(again, {})
    again.close()
    skipping = KafkaSource(brokers, topic, NAMES, skip_lost=True)
    users, position = taken_of(skipping, position)
    assert users[-1] == 19 and users == list(range(users[0], 20)) and users[0] > 4
    assert position == {f"kafka/{topic}/2": 20}
    # One that ends before the position has been made anew.
    with pytest.raises(UserError, match=r"ends at message 20, and 30 were taken of it: the topic has been made anew"):
        KafkaSource(brokers, topic, NAMES).take({f"kafka/{topic}/2": 30})
    skipping.close()


def test_a_message_that_cannot_be_read_is_refused_by_its_offset_and_the_others_are_taken(
    run_folder: Path, brokers: str, send: Send, topic: str, tmp_path: Path
) -> None:
    good = rows_of(run_folder, 60)
    odd = [b"no object", [1, 2], good[0] | {"label": "perhaps"}, None, b'{"user_id": ' + b"[" * 5000, b"\xff\xfe"]
    mixed = [*good[:20], *odd, *good[20:]]
    send(topic, mixed, partition=1)
    seen = []
    with start(read_run(run_folder)[0]) as runtime:
        source = KafkaSource(brokers, topic, NAMES)
        output = tmp_path / "live"
        # In one batch, or in two where the brokers are slow.
        follow_module.follow(run_folder, source, output, runtime, until_idle=True, told=seen.append)
        pq.write_table(pa.Table.from_pylist(good), tmp_path / "good.parquet")
        warm(run_folder, tmp_path / "good.parquet", tmp_path / "at-once", runtime)
        last = follow_module.follow(run_folder, source, output, runtime, until_idle=True)
    assert last == len(seen), "something was left"
    refused = dict(itertools.chain.from_iterable(one.refused.items() for one in seen))
    assert sorted(refused) == [f"{topic}[1]@{20 + place}.parquet" for place in range(len(odd))]
    assert "perhaps" in refused[f"{topic}[1]@22.parquet"]
    for name in ("items.parquet", "log.parquet", "rows.parquet"):
        assert (output / "warm" / name).read_bytes() == (tmp_path / "at-once" / "warm" / name).read_bytes(), name


def test_what_is_wrong_with_brokers_topics_and_settings_is_said(
    brokers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LogsConfig(label="label")
    for uri in ("kafka://", "kafka://broker", "kafka://broker/", "kafka://b:1/a/b", "kafka://user:word@b:1/topic"):
        with pytest.raises(UserError, match="write a topic as kafka://HOST:PORT/TOPIC"):
            source_of(uri, options)
    monkeypatch.setattr(kafka_module, "_ANSWER_S", 0.3)
    with pytest.raises(UserError, match=r"kafka://127\.0\.0\.1:1/clicks: no broker answers"):
        source_of("kafka:/127.0.0.1:1/clicks", options)  # as a `Path` has it
    monkeypatch.setattr(kafka_module, "_ANSWER_S", 30)
    with pytest.raises(UserError, match="nowhere: .*Unknown topic.*: make the topic"):
        source_of(f"kafka://{brokers}/nowhere", options)
    (tmp_path / "settings").write_text("# of the cluster\nfetch.wait.max.ms = 50\n\nsasl.password=a=b#c\n")
    assert read_settings(tmp_path / "settings") == {"fetch.wait.max.ms": "50", "sasl.password": "a=b#c"}
    (tmp_path / "wrong").write_text("fetch.wait\n")
    with pytest.raises(UserError, match="line 1: write name=value"):
        read_settings(tmp_path / "wrong")
    with pytest.raises(UserError, match="cannot be read"):
        read_settings(tmp_path / "none")
    with pytest.raises(UserError, match="No such configuration property"):
        KafkaSource(brokers, "topic", NAMES, {"no.such": "1"})
    monkeypatch.setitem(__import__("sys").modules, "confluent_kafka", None)
    with pytest.raises(UserError, match=r"pip install 'mwuf-dist\[kafka\]'"):
        source_of("kafka://broker:1/topic", options)
