"""A generated data set that is a model of the cold-start problem, with known probabilities.

A user u and an item i have latent factors p_u, q_i [D]; fields explain a share of each, the entity's own draw the
rest: only its ID can carry that. A row (u, i): u by activity; a few items by popularity, of which u meets one with
probability proportional to exp(exposure * <p_u, q_i> / sqrt(D)), so that the users of an item say something of it. Then

    logit = offset + affinity * <p_u, q_i> / sqrt(D) + item_bias * b_i + user_bias * c_u
    P(label = 1) = (1 - label_noise) * sigmoid(logit) + label_noise / 2

The log-odds of this probability are the column `bayes_logit`: no model ranks better than its AUC, the Bayes ceiling.

Every row is a pure function of the options and its own number (counter-based Philox streams), so that any range of rows
can be generated alone. Memory: 4 (D + 1) bytes per user and item, and one block of rows, however many rows there are.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mwuf_dist.config import DataConfig, SyntheticConfig
from mwuf_dist.data import schema
from mwuf_dist.data.locations import new_folder
from mwuf_dist.data.schema import (
    INTERACTION_TYPES,
    RAW_ID,
    USER_ID,
    Entities,
    Field,
    RawPieces,
    list_column,
)

NAME = "synthetic"
VERSION = 1  # Raise it when the same options would give other rows.

BLOCK_ROWS = 65_536  # Rows drawn from one Philox counter.
NUM_CANDIDATES = 4  # Items of which a user meets one.
START_TIME_S = 1_577_836_800  # 2020-01-01.
SPAN_S = 180 * 86_400
JITTER_S = 600  # Rows of a log arrive a little out of order.
MAX_TAGS = 4

NUM_AGE_GROUPS = 7
NUM_REGIONS = 20
# Shares of what the fields explain.
USER_FIELD_WEIGHTS = {"age_group": 0.5, "region": 0.5}
ITEM_FIELD_WEIGHTS = {"category": 0.4, "brand": 0.3, "tags": 0.3}

_USERS, _ITEMS, _EFFECTS, _ROWS = range(4)  # Philox streams.

INTERACTIONS_SCHEMA = pa.schema(list(INTERACTION_TYPES.items()))
RAW_SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "label": pa.int8(),
        "timestamp": pa.int64(),
        "bayes_logit": pa.float32(),
    }
)


@dataclass(frozen=True)
class World:
    """The entities: field values and what they like.

    Attributes:
        users: entity table of users, as in `RawDataset`.
        items: entity table of items.
        fields: all fields.
        user_vectors: factors and, last, the bias of each user [num_users, D + 1], of mean 0 and variance 1.
        item_vectors: the same for items [num_items, D + 1].
    """

    users: pa.Table
    items: pa.Table
    fields: tuple[Field, ...]
    user_vectors: np.ndarray
    item_vectors: np.ndarray

    @property
    def entities(self) -> Entities:
        """Users and items without what they like."""
        return Entities(self.users, self.items, self.fields)


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """Returns the generator version and options."""
    return {"source": NAME, "version": VERSION, **dataclasses.asdict(config.synthetic)}


def pieces(config: DataConfig) -> RawPieces:
    """Generates the data set piece by piece."""
    options = config.synthetic
    starts = tuple(range(0, options.num_rows, schema.PIECE_ROWS))
    read = functools.partial(_piece, options)
    return RawPieces(starts, read, lambda *_: _cached_world(options).entities, ids_are_rows=True)


def _piece(options: SyntheticConfig, start: int) -> Iterator[dict[str, np.ndarray]]:
    stop = min(start + schema.PIECE_ROWS, options.num_rows)
    for batch in _batches(options, _cached_world(options), BLOCK_ROWS, start, stop):
        yield {name: batch[name].to_numpy() for name in batch.schema.names}


def generate_batches(
    config: SyntheticConfig,
    batch_rows: int = BLOCK_ROWS,
    start: int = 0,
    stop: int | None = None,
    world: World | None = None,
) -> Iterator[pa.RecordBatch]:
    """Returns interactions of rows `start` to `stop`, the same rows whatever `batch_rows` is.

    Args:
        config: the options.
        batch_rows: rows of each batch but the last.
        start: first row.
        stop: row after the last; None means all.
        world: of `make_world`, where the caller has it already.

    Yields:
        Batches with `user`, `item` (rows of the entity tables), `label`, `time` and `bayes_logit`.
    """
    end = config.num_rows if stop is None else stop
    assert 0 <= start <= end <= config.num_rows and batch_rows >= 1
    return _batches(config, world or make_world(config), batch_rows, start, end)


def write_raw(
    config: SyntheticConfig,
    folder: Path,
    rows_per_file: int = 64 * BLOCK_ROWS,
    written: Callable[[int], Any] = lambda rows: None,
) -> None:
    """Streams the data set into Parquet files, as a log would lie there; written beside, then renamed.

    `users.parquet`, `items.parquet` (IDs and fields), `interactions/part-*.parquet` (`user_id`, `item_id`, `label`,
    `timestamp` in seconds, `bayes_logit`) and `dataset.json` (the options). IDs count from 1.

    Args:
        config: the options; any number of rows.
        folder: created; must not exist or be empty.
        rows_per_file: rows of each file of interactions but the last.
        written: called with the number of rows of each block that is written.

    Raises:
        UserError: the folder holds something or cannot be written.
    """
    with new_folder(folder) as beside:
        _write_raw_files(config, beside, rows_per_file, written)


def _write_raw_files(config: SyntheticConfig, folder: Path, rows_per_file: int, written: Callable[[int], Any]) -> None:
    world = make_world(config)
    users = world.users.drop_columns(USER_ID).rename_columns({RAW_ID: "user_id"})
    pq.write_table(users, folder / "users.parquet", compression="zstd")
    pq.write_table(world.items.rename_columns({RAW_ID: "item_id"}), folder / "items.parquet", compression="zstd")
    (folder / "interactions").mkdir()
    for part, start in enumerate(range(0, config.num_rows, rows_per_file)):
        stop = min(start + rows_per_file, config.num_rows)
        path = folder / "interactions" / f"part-{part:05d}.parquet"
        with pq.ParquetWriter(path, RAW_SCHEMA, compression="zstd") as writer:
            for batch in _batches(config, world, BLOCK_ROWS, start, stop):
                user, item = (batch[name].to_numpy().astype(np.int64) + 1 for name in ("user", "item"))
                columns = [user, item, batch["label"], batch["time"], batch["bayes_logit"]]
                writer.write_batch(pa.record_batch(columns, schema=RAW_SCHEMA))
                written(batch.num_rows)
    options = {"name": NAME, "version": VERSION, **dataclasses.asdict(config)}
    (folder / "dataset.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def _generator(config: SyntheticConfig, stream: int, block: int = 0) -> np.random.Generator:
    """Draws number `block` of a stream: 2^128 apart in the counter, so that no two ever overlap."""
    key = np.array([config.seed % 2**64, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, block, 0], dtype=np.uint64)))


def make_world(config: SyntheticConfig) -> World:
    """Draws users, items and their fields, O(num_users + num_items)."""
    dim = config.num_factors + 1
    effects = _generator(config, _EFFECTS)

    generator = _generator(config, _USERS)
    users: dict[str, Any] = {
        RAW_ID: np.arange(1, config.num_users + 1),
        USER_ID: np.arange(1, config.num_users + 1, dtype=np.int32),
    }
    explained = np.zeros((config.num_users, dim), dtype=np.float32)
    for name, size in (("age_group", NUM_AGE_GROUPS), ("region", NUM_REGIONS)):
        value = generator.integers(0, size, config.num_users)
        users[name] = (value + 1).astype(np.int32)
        explained += math.sqrt(USER_FIELD_WEIGHTS[name]) * _effect(effects, size, dim)[value]
    user_vectors = _mix(generator, explained, config.user_feature_share)

    generator = _generator(config, _ITEMS)
    items: dict[str, Any] = {RAW_ID: np.arange(1, config.num_items + 1)}
    explained = np.zeros((config.num_items, dim), dtype=np.float32)
    for name, size in (("category", config.num_categories), ("brand", config.num_brands)):
        value = generator.integers(0, size, config.num_items)
        items[name] = (value + 1).astype(np.int32)
        explained += math.sqrt(ITEM_FIELD_WEIGHTS[name]) * _effect(effects, size, dim)[value]
    items["tags"], tag_part = _tags(generator, _effect(effects, config.num_tags, dim), config.num_items)
    explained += math.sqrt(ITEM_FIELD_WEIGHTS["tags"]) * tag_part
    item_vectors = _mix(generator, explained, config.feature_share)

    fields = (
        Field(USER_ID, "categorical", "user", config.num_users + 1),
        Field("age_group", "categorical", "user", NUM_AGE_GROUPS + 1),
        Field("region", "categorical", "user", NUM_REGIONS + 1),
        Field("category", "categorical", "item", config.num_categories + 1),
        Field("brand", "categorical", "item", config.num_brands + 1),
        Field("tags", "multi_valued", "item", config.num_tags + 1),
    )
    return World(pa.table(users), pa.table(items), fields, user_vectors, item_vectors)


_cached_world = functools.lru_cache(maxsize=1)(make_world)  # every piece of a data set needs it


def _effect(generator: np.random.Generator, size: int, dim: int) -> np.ndarray:
    """Draws what each value of a field does to the vector of its entity [size, dim]."""
    return generator.standard_normal((size, dim), dtype=np.float32)


def _mix(generator: np.random.Generator, explained: np.ndarray, share: float) -> np.ndarray:
    """Returns the explained part and the entity's own, of variances `share` and `1 - share` [E, dim]."""
    own = generator.standard_normal(explained.shape, dtype=np.float32)
    return np.float32(math.sqrt(share)) * explained + np.float32(math.sqrt(1 - share)) * own


def _tags(generator: np.random.Generator, effect: np.ndarray, num_items: int) -> tuple[pa.ListArray, np.ndarray]:
    """Returns one to `MAX_TAGS` distinct tags per item, and the part they explain [num_items, dim], of variance 1."""
    tags = np.sort(generator.integers(0, len(effect), (num_items, MAX_TAGS)), axis=1)
    used = np.arange(MAX_TAGS) < generator.integers(1, MAX_TAGS + 1, (num_items, 1))
    used[:, 1:] &= tags[:, 1:] != tags[:, :-1]
    lengths = used.sum(axis=1)
    part = np.zeros((num_items, effect.shape[1]), dtype=np.float32)
    # One tag at a time: a gather of all would need MAX_TAGS times the memory.
    for place in range(MAX_TAGS):
        part += effect[tags[:, place]] * used[:, place, None]
    part /= np.sqrt(lengths, dtype=np.float32)[:, None]
    return list_column(lengths, tags[used] + 1), part


def _batches(config: SyntheticConfig, world: World, batch_rows: int, start: int, stop: int) -> Iterator[pa.RecordBatch]:
    """Cuts blocks, whose borders never move, into batches."""
    parts: list[pa.RecordBatch] = []
    missing = batch_rows
    for index in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
        first = index * BLOCK_ROWS
        low, high = max(start - first, 0), min(stop - first, BLOCK_ROWS)
        block = _block(config, world, index)
        while low < high:
            taken = min(missing, high - low)
            parts.append(block.slice(low, taken))
            low, missing = low + taken, missing - taken
            if not missing:
                yield parts[0] if len(parts) == 1 else pa.concat_batches(parts)
                parts, missing = [], batch_rows
    if parts:
        yield pa.concat_batches(parts)


def _block(config: SyntheticConfig, world: World, index: int) -> pa.RecordBatch:
    """Returns rows `index * BLOCK_ROWS` and on, always a full block of them."""
    generator = _generator(config, _ROWS, index)
    user = _zipf_rank(generator.random(BLOCK_ROWS), config.num_users, config.activity_exponent)
    user = _scatter(user, config.num_users)
    popularity = _zipf_rank(generator.random((NUM_CANDIDATES, BLOCK_ROWS)), config.num_items, config.zipf_exponent)
    candidates = _scatter(popularity, config.num_items)
    dim = config.num_factors
    user_vector = world.user_vectors[user]  # [R, D + 1]
    affinity = np.stack([_dot(user_vector, world.item_vectors[item], dim) for item in candidates])  # [C, R]
    item, affinity = _meet(generator.random(BLOCK_ROWS), candidates, affinity, config.exposure)

    logit = config.offset + config.affinity_scale * affinity
    logit += config.item_bias_scale * world.item_vectors[item, dim] + config.user_bias_scale * user_vector[:, dim]
    probability = (1 - config.label_noise) / (1 + np.exp(-logit)) + config.label_noise / 2
    label = generator.random(BLOCK_ROWS) < probability
    row = np.arange(BLOCK_ROWS, dtype=np.int64) + index * BLOCK_ROWS
    jitter = (generator.random(BLOCK_ROWS) * JITTER_S).astype(np.int64)
    time = START_TIME_S + row * SPAN_S // config.num_rows + jitter
    bayes_logit = np.log(probability) - np.log1p(-probability)
    columns = [
        user.astype(np.int32),
        item.astype(np.int32),
        label.astype(np.int8),
        time,
        bayes_logit.astype(np.float32),
    ]
    return pa.record_batch(columns, schema=INTERACTIONS_SCHEMA)


def _dot(user: np.ndarray, item: np.ndarray, dim: int) -> np.ndarray:
    """Returns affinity <p_u, q_i> / sqrt(D) of each row [R], of variance 1; float64."""
    total = np.zeros(len(user))
    for factor in range(dim):  # In a fixed order, where a library's sum could depend on the machine.
        total += user[:, factor] * item[:, factor]
    return total / math.sqrt(dim)


def _meet(draw: np.ndarray, candidates: np.ndarray, affinity: np.ndarray, exposure: float) -> tuple[np.ndarray, ...]:
    """Chooses one of the candidates [C, R] of each row with probability proportional to exp(exposure * affinity)."""
    cumulative = np.cumsum(np.exp(exposure * affinity), axis=0)
    chosen = np.minimum((draw * cumulative[-1] >= cumulative).sum(axis=0), NUM_CANDIDATES - 1)[None]
    return np.take_along_axis(candidates, chosen, axis=0)[0], np.take_along_axis(affinity, chosen, axis=0)[0]


def _zipf_rank(draw: np.ndarray, num: int, exponent: float) -> np.ndarray:
    """Ranks 0 to num - 1, rank k with probability close to (k + 1)^-exponent, from uniform draws; int64.

    The inverse of the continuous distribution: exact draws would need a table of `num` probabilities.
    """
    power = 1 - exponent
    if abs(power) < 1e-6:
        value = np.exp(draw * math.log(num + 1))
    else:
        value = (1 + draw * ((num + 1) ** power - 1)) ** (1 / power)
    return np.clip(value.astype(np.int64) - 1, 0, num - 1)


def _scatter(rank: np.ndarray, num: int) -> np.ndarray:
    """Maps ranks to IDs one to one: IDs in order of popularity would load the shards of a table unevenly."""
    factor = max(1, int(num * 0.6180339887))
    while math.gcd(factor, num) != 1:
        factor += 1
    return (rank * factor + num // 3) % num
