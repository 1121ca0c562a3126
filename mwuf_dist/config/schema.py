"""The configuration: typed, frozen, strict. Every section is the help text of `mwuf run --help`.

A TOML file names only what differs from the defaults here, `extends = "other.toml"` starts from another file (or, as a
list, from several, the later above the earlier), and any key may be given on the command line as `--section.key VALUE`.
An unknown key is an error that names its nearest neighbour; a value of the wrong type is an error that names the key.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt, MaxLen, MinLen

from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.config.registry import backbone_config, method_config
from mwuf_dist.config.types import Count, CountOrZero, NonNegative, Positive, Rows, Seconds, Seed, Share, Threads, Width
from mwuf_dist.config.types import section as _section

PHASES = ("cold", "warm-a", "warm-b", "warm-c")
WARM_SETS = ("warm_a", "warm_b", "warm_c")
Events = Literal["positives", "all"]


@_section
class SyntheticConfig:
    """The generated data set: a model of the cold-start problem with a known Bayes AUC."""

    num_rows: Annotated[int, Ge(1_000), Lt(1 << 32)] = 300_000  # Interactions to generate.
    num_users: Annotated[int, Ge(2), Le(2_147_483_647)] = 1_000  # Users.
    num_items: Annotated[int, Ge(2), Le(2_147_483_647)] = 1_200  # Items, old, new and dropped ones together.
    num_categories: Count = 12  # Values of the item field `category`.
    num_brands: Count = 40  # Values of the item field `brand`.
    num_tags: Count = 30  # Values of the multi-valued item field `tags`.
    num_factors: Width = 2  # Latent factors of users and items.
    feature_share: Share = 0.5  # Share of an item's factors and bias that its fields explain; only its ID has the rest.
    user_feature_share: Share = 0.5  # The same for users.
    zipf_exponent: NonNegative = 0.5  # Popularity: the k-th item has k^-exponent times the rows of the first.
    activity_exponent: NonNegative = 0.4  # The same for the activity of users.
    exposure: NonNegative = 1.0  # How much users see of what they like; 0: only what is popular.
    offset: Annotated[float, Ge(-1e3), Le(1e3)] = -0.7  # Log-odds of a click where all else is zero.
    affinity_scale: NonNegative = 1.4  # Standard deviation of the user-item affinity, in log-odds.
    item_bias_scale: NonNegative = 0.9  # The same of the item's bias.
    user_bias_scale: NonNegative = 0.5  # The same of the user's bias.
    label_noise: Share = 0.05  # Share of labels that are random.
    seed: Seed = 0  # Seed of the data (not of the training).


@_section
class StreamConfig:
    """The stream protocol: train on rows before day 0, then score and learn day by day. `[study] protocol` asks for it.

    A method learns by the rule of `mwuf warm`, with the rates and epochs of section `warm_up`.
    """

    pretrain_days: Count = 30  # Day 0 is this many days after the day of the first row.
    max_age_days: Count = 30  # Rows of a new item are scored up to this age of it.
    num_days: CountOrZero = 0  # Days from day 0 on; 0: all.
    day_s: Positive = 86_400.0  # Seconds of a day; another length suits a log of hours or of years.
    ranked_users: CountOrZero = 200  # Users per day, at most, for whom the items are ranked.
    # n > 0: instead of the daily rule, train the base from scratch before every n-th day on all rows up to it.
    retrain_every_days: CountOrZero = 0


@_section
class DataConfig:
    """Which data, and the rule that splits it into old and new items."""

    name: str = "synthetic"  # Data set: a name of `mwuf_dist.data.sources`.
    # paper: per item, by rows; stream: by days, see section `data.stream`.
    protocol: Literal["paper", "stream"] = "paper"
    stream: StreamConfig = dataclasses.field(default_factory=StreamConfig)  # Of `protocol = "stream"`.
    old_above: Count = 200  # N: an old item has more labelled rows than this.
    # K: rows in each warm set; a new item has 3K to N rows. Of a log of positives only, N and K count positives.
    warm_rows: Count = 20
    # What histories and U(v) hold; all: rows of label 0 too, whose label the encoder reads (GRU4Rec and DIN read none).
    events: Events = "positives"
    # Launch date, ISO 8601 (UTC) or seconds since 1970: items first seen since then are new (3K rows and more), all
    # others old; N decides nothing then. Empty: by N and K alone.
    new_since: str = ""
    old_items_as_new: bool = False  # Validation: a fifth of the old items is played as new, new ones are left out.
    old_items_as_new_seed: Seed = 0  # Which fifth.
    # Parquet file with vectors of the items: a field per column of lists of numbers, beside their IDs (`item_id`). Of
    # any encoder, or of `mwuf vectors`; empty: none.
    item_vectors: str = ""
    prepared_dir: str = ""  # Folder of prepared shards; empty: `prepared` in $MWUF_CACHE_DIR or ~/.cache/mwuf-dist.
    verify_checksums: bool = True  # Refuse raw files of a public data set whose checksum is not the published one.
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)  # Options of `name = "synthetic"`.
    logs: LogsConfig = dataclasses.field(default_factory=LogsConfig)  # Your own files, for `name = "logs"`.


@_section
class EmbeddingConfig:
    """The sharded tables: phi_old, phi_new and the feature tables."""

    dim: Width = 16  # Width d of every embedding.
    init_std: Positive = 0.01  # Every table starts as draws from N(0, init_std^2).
    # adam: dense; rowwise_adagrad: fused, for large tables; auto: by `fused_above_rows`.
    optimizer: Literal["auto", "adam", "rowwise_adagrad"] = "auto"
    fused_above_rows: Rows = 5_000_000  # `auto` takes rowwise_adagrad above this many rows.
    rowwise_adagrad_lr: Positive = 0.02  # Its learning rate (adam uses the stage's).
    # On several ranks. replicated: every rank holds all rows; auto: replicated for small tables, else row_wise.
    sharding: Literal["auto", "replicated", "row_wise", "table_wise", "column_wise"] = "auto"
    # Item fields: a value that fewer old items have is treated as unknown, so that it cannot stand for one of them.
    min_old_items: CountOrZero = 0
    smooth_ordinal: bool = False  # An ordinal field (a year, say) is the mean of its value and the two beside it.


@_section
class BackboneConfig:
    """The deep model f_theta: the keys that every backbone has; the chosen one's class has its own."""

    name: str = "wide_deep"  # A file of `mwuf_dist/backbones/`, or a module of your own as "package.module:Class".
    # Of its matrix products, by autocast. Weights, embeddings, optimizer, logits and loss stay float32. bfloat16 is
    # slow on a CPU without units for it.
    precision: Literal["float32", "bfloat16"] = "float32"


@_section
class MlpConfig(BackboneConfig):
    """A backbone with an MLP, as nearly all are."""

    hidden: Annotated[tuple[Width, ...], MinLen(1), MaxLen(100)] = (64, 64)  # Widths of the hidden layers.
    batch_norm: bool = False  # BatchNorm (moments of the global batch) after each hidden layer.
    dropout: Share = 0.0  # After each hidden layer, in pretrain only.


@_section
class MethodConfig:
    """How new items get an embedding: the keys that every method has; the chosen one's class has its own."""

    name: str = "mwuf"  # A file of `mwuf_dist/methods/`, or a method of your own as "package.module:Class".
    variant: str = ""  # A label of your own for the report.
    # First rows of phi_new: default is the method's own; the last four (for mwuf): what the method of that name makes.
    initialisation: Literal["default", "mean", "random", "zero", "align", "content_delta", "metaemb", "semantic_id"] = (
        "default"
    )


@_section
class PretrainConfig:
    """Stage `pretrain`: theta, feature tables and phi_old on the rows of old items."""

    epochs: Count = 1  # Passes over the rows.
    batch_size: Count = 2048  # Rows of a global batch.
    learning_rate: Positive = 1e-3  # Learning rate of Adam.
    learning_rate_ids: NonNegative = 0.0  # Learning rate of Adam on phi_old; 0: that of everything else.
    schedule: Literal["constant", "cosine"] = "constant"  # Of the learning rates; cosine: falls to 0 at the end.
    weight_decay: NonNegative = 0.0  # Weight decay of AdamW, on the dense weights.
    item_weight: Literal["rows", "equal"] = "rows"  # equal: every old item weighs the same, however many rows it has.
    # users: a batch holds parts of users' rows; for a backbone that reads whole histories (encoder).
    # blocks: shuffled within parts of row groups that are drawn at random, which reads large data faster.
    order: Literal["shuffled", "blocks", "time", "users"] = "shuffled"  # Order of the rows.


@_section
class MetaTrainConfig:
    """Stage `meta_train`: phi_new by L_cold, the meta networks by L_warm, everything else frozen."""

    epochs: CountOrZero | Literal["auto"] = 1  # Passes; auto: until the loss of held-out old items stops falling.
    max_epochs: Count = 10  # Bound of `epochs = "auto"`.
    batch_size: Count = 2048  # Rows of a global batch.
    learning_rate_cold: Positive = 1e-3  # Learning rate of Adam on phi_new.
    learning_rate_warm: Positive = 1e-3  # Learning rate of Adam on h and g.
    order: Literal["shuffled", "blocks", "time", "users"] = "shuffled"  # Order of the rows, as in pretrain.
    users_per_item: CountOrZero = 0  # U(v) of an old item: this many of its users; 0 takes all.


@_section
class WarmUpConfig:
    """Stage `warm_up`: per phase, new items' rows of phi_new by L_cold, the same budget for every method."""

    epochs: CountOrZero = 1  # Passes over a phase's rows.
    batch_size: Count = 256  # Rows of a global batch.
    learning_rate: Positive = 1e-3  # Learning rate of Adam, which starts anew in every phase.
    carry_over: bool = False  # Train a phase on the rows of the phases before it too.


@_section
class RuntimeConfig:
    """Where and how it runs. Nothing here changes what is computed beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one.
    threads: Threads = 0  # CPU threads of a rank; 0: usable cores / ranks of the host, at most OMP_NUM_THREADS.
    deterministic: bool = True  # Only deterministic algorithms.
    timeout_s: Seconds = 600  # A rank fails if another one lets it wait longer, in seconds.
    progress: Literal["auto", "on", "off"] = "auto"  # Progress bar on rank 0; auto: on a terminal.
    profile: bool = False  # Trace a few steps of each stage on rank 0, for Perfetto: OUTPUT/profile/STAGE.json.


@_section
class CheckpointConfig:
    """When the state is saved."""

    every_s: NonNegative = 120.0  # Seconds between saves within a stage; 0: only at stage ends.
    keep_last: Count = 2  # Checkpoints kept.
    # From this many MB per rank on, tensors are copied, and the copies are written while training goes on.
    background_from_mb: NonNegative = 500.0


@_section
class Config:
    """One run: data, backbone, method, and the five stages."""

    seed: Seed = 0  # Seed of initialisation, order and dropout.
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    embedding: EmbeddingConfig = dataclasses.field(default_factory=EmbeddingConfig)
    # Of the class that the name chooses: see `registry.config_class`.
    backbone: BackboneConfig = dataclasses.field(default_factory=backbone_config, metadata={"base": BackboneConfig})
    method: MethodConfig = dataclasses.field(default_factory=method_config, metadata={"base": MethodConfig})
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    meta_train: MetaTrainConfig = dataclasses.field(default_factory=MetaTrainConfig)
    warm_up: WarmUpConfig = dataclasses.field(default_factory=WarmUpConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
