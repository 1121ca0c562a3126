"""The configuration: typed, frozen, strict. Every section is the help text of `mwuf run --help`.

A TOML file names only what differs from the defaults here, `extends = "other.toml"` starts from another file (or, as a
list, from several, the later above the earlier), and any key may be given on the command line as `--section.key VALUE`.
An unknown key is an error that names its nearest neighbour; a value of the wrong type is an error that names the key.
"""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tomli_w
from annotated_types import Ge, MinLen

from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.config.registry import ROOMS, Kind, backbone_config, config_class, method_config, who_has
from mwuf_dist.config.types import Count, CountOrZero, NonNegative, Positive, Seed, Share, UserError
from mwuf_dist.config.types import section as _section

PHASES = ("cold", "warm-a", "warm-b", "warm-c")
WARM_SETS = ("warm_a", "warm_b", "warm_c")


@_section
class SyntheticConfig:
    """The generated data set: a model of the cold-start problem with a known Bayes AUC."""

    num_rows: Annotated[int, Ge(1_000)] = 300_000  # Interactions to generate.
    num_users: Annotated[int, Ge(2)] = 1_000  # Users.
    num_items: Annotated[int, Ge(2)] = 1_200  # Items, old, new and dropped ones together.
    num_categories: Count = 12  # Values of the item field `category`.
    num_brands: Count = 40  # Values of the item field `brand`.
    num_tags: Count = 30  # Values of the multi-valued item field `tags`.
    num_factors: Count = 2  # Latent factors of users and items.
    feature_share: Share = 0.5  # Share of an item's factors and bias that its fields explain; only its ID has the rest.
    user_feature_share: Share = 0.5  # The same for users.
    zipf_exponent: NonNegative = 0.5  # Popularity of items: the k-th is met k^-exponent times as often as the first.
    activity_exponent: NonNegative = 0.4  # The same for the activity of users.
    exposure: NonNegative = 1.0  # How much users meet what they like; 0: what is popular alone.
    offset: float = -0.7  # Log-odds of a click where all else is zero.
    affinity_scale: NonNegative = 1.4  # Standard deviation of the log-odds by user-item affinity.
    item_bias_scale: NonNegative = 0.9  # By the item alone.
    user_bias_scale: NonNegative = 0.5  # By the user alone.
    label_noise: Share = 0.05  # Share of labels that are coin tosses.
    seed: Seed = 0  # Seed of the data (not of the training).


@_section
class DataConfig:
    """Which data, and the rule that splits it into old and new items."""

    name: str = "synthetic"  # Data set: a name of `mwuf_dist.data.sources`.
    old_above: Count = 200  # N: an old item has more labelled rows than this.
    warm_rows: Count = 20  # K: rows in each warm set; a new item has 3K to N rows.
    old_items_as_new: bool = False  # Validation: a fifth of the old items plays new, real new items are left out.
    old_items_as_new_seed: Seed = 0  # Which fifth.
    prepared_dir: str = ""  # Folder of prepared shards; empty: `prepared` in $MWUF_CACHE_DIR or ~/.cache/mwuf-dist.
    verify_checksums: bool = True  # Refuse raw files of a public data set whose checksum is not the published one.
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)  # Options of `name = "synthetic"`.
    logs: LogsConfig = dataclasses.field(default_factory=LogsConfig)  # Your own files, for `name = "logs"`.


@_section
class EmbeddingConfig:
    """The sharded tables: phi_old, phi_new and the feature tables."""

    dim: Count = 16  # Width d of every embedding.
    init_std: Positive = 0.01  # Every table starts as draws from N(0, init_std^2).
    # adam: dense; rowwise_adagrad: fused; auto: by rows.
    optimizer: Literal["auto", "adam", "rowwise_adagrad"] = "auto"
    fused_above_rows: Count = 5_000_000  # `auto` takes rowwise_adagrad above this many rows.
    rowwise_adagrad_lr: Positive = 0.02  # Its learning rate (adam uses the stage's).
    sharding: Literal["auto", "row_wise", "table_wise", "column_wise"] = "auto"  # auto: row-wise for large tables.
    # Item fields: a value that fewer old items have is treated as unknown, so that it cannot stand for one of them.
    min_old_items: CountOrZero = 0
    smooth_ordinal: bool = False  # An ordinal field (a year, say) is the mean of its value and the two beside it.


@_section
class BackboneConfig:
    """The deep model f_theta: the keys that every backbone has; the chosen one's class has its own."""

    name: str = "wide_deep"  # A file of `mwuf_dist/backbones/`, or a module of your own as "package.module:Class".
    # Of its products, by autocast; weights, embeddings, optimizer, logits and loss stay float32. Slow on a CPU without
    # bfloat16 units.
    precision: Literal["float32", "bfloat16"] = "float32"


@_section
class MlpConfig(BackboneConfig):
    """A backbone with an MLP, as nearly all are."""

    hidden: Annotated[tuple[Count, ...], MinLen(1)] = (64, 64)  # Widths of the hidden layers.
    batch_norm: bool = False  # BatchNorm (moments of the global batch) after each hidden layer.
    dropout: Share = 0.0  # After each hidden layer, in pretrain only.


@_section
class MethodConfig:
    """How new items get an embedding: the keys that every method has; the chosen one's class has its own."""

    name: str = "mwuf"  # A file of `mwuf_dist/methods/`, or a method of your own as "package.module:Class".
    variant: str = ""  # A label of your own for the report.
    # First rows of phi_new: default is the method's own; metaemb (for mwuf): what MetaEmb's generator makes.
    initialisation: Literal["default", "mean", "random", "zero", "metaemb"] = "default"


@_section
class PretrainConfig:
    """Stage `pretrain`: theta, feature tables and phi_old on the rows of old items."""

    epochs: Count = 1  # Passes over the rows.
    batch_size: Count = 2048  # Rows of a global batch.
    learning_rate: Positive = 1e-3  # Adam.
    learning_rate_ids: NonNegative = 0.0  # Adam on phi_old; 0: as everything else.
    schedule: Literal["constant", "cosine"] = "constant"  # Of the rates; cosine: from 1 at the start to 0 at the end.
    weight_decay: NonNegative = 0.0  # AdamW's decay, on the dense weights.
    item_weight: Literal["rows", "equal"] = "rows"  # equal: every old item weighs the same, however many rows it has.
    # users: a batch holds parts of users' rows; for a backbone that reads whole histories (encoder).
    order: Literal["shuffled", "time", "users"] = "shuffled"  # Order of the rows.


@_section
class MetaTrainConfig:
    """Stage `meta_train`: phi_new by L_cold, the meta networks by L_warm, everything else frozen."""

    epochs: CountOrZero | Literal["auto"] = 1  # Passes; auto: until the loss of held-out old items stops falling.
    max_epochs: Count = 10  # Bound of `epochs = "auto"`.
    batch_size: Count = 2048  # Rows of a global batch.
    learning_rate_cold: Positive = 1e-3  # Adam on phi_new.
    learning_rate_warm: Positive = 1e-3  # Adam on h and g.
    order: Literal["shuffled", "time", "users"] = "shuffled"  # Order of the rows, as in pretrain.
    users_per_item: CountOrZero = 0  # U(v) of an old item: this many of its users; 0 takes all.


@_section
class WarmUpConfig:
    """Stage `warm_up`: per phase, new items' rows of phi_new by L_cold, the same budget for every method."""

    epochs: CountOrZero = 1  # Passes over a phase's rows.
    batch_size: Count = 256  # Rows of a global batch.
    learning_rate: Positive = 1e-3  # Adam, fresh in every phase.
    carry_over: bool = False  # Train a phase on the rows of the phases before it too.


@_section
class RuntimeConfig:
    """Where and how it runs. Nothing here changes what is computed beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one.
    threads: CountOrZero = 0  # CPU threads of a rank; 0: OMP_NUM_THREADS or 1.
    deterministic: bool = True  # Only deterministic algorithms.
    timeout_s: Count = 600  # A collective that takes longer is a failed rank.
    progress: Literal["auto", "on", "off"] = "auto"  # Progress bar on rank 0; auto: on a terminal.
    profile: bool = False  # Trace a few steps of each stage on rank 0, for Perfetto: OUTPUT/profile/STAGE.json.


@_section
class CheckpointConfig:
    """When the state is saved."""

    every_s: NonNegative = 120.0  # Seconds between saves within a stage; 0: only at stage ends.
    keep_last: Count = 2  # Checkpoints kept.
    # From so many MB per rank on, tensors are copied and the copies written beside training, which goes on meanwhile.
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


_ADAPTER = pydantic.TypeAdapter(Config)
_adapter_of = functools.cache(pydantic.TypeAdapter)


def build(values: dict[str, Any], where: str = "config", *, of_any_version: bool = False) -> Config:
    """Checks plain nested values against the schema.

    Args:
        values: sections and keys as TOML gives them.
        where: named in error messages.
        of_any_version: leave out what the chosen backbone and method do not have and others of the package do. A run
            folder or record of a version in which every key stood in every config has such keys.

    Raises:
        UserError: an unknown key (with its nearest neighbour, or whose it is) or a value of the wrong type or range.
    """
    chosen = _chosen_sections(values, where)
    if of_any_version:
        values = values | {
            kind: {key: value for key, value in values[kind].items() if _is_known(cls, key) or not who_has(kind, key)}
            for kind, cls in chosen.items()
            if isinstance(values.get(kind), dict)
        }
    _refuse_unknown_keys(values, Config, where, chosen=chosen)
    rest = {key: value for key, value in values.items() if key not in chosen}
    parts = {kind: _checked(_adapter_of(cls), values.get(kind, {}), where, cls, kind) for kind, cls in chosen.items()}
    return dataclasses.replace(_checked(_ADAPTER, rest, where, Config), **parts)


def _chosen_sections(values: Any, where: str) -> dict[Kind, type]:
    """The dataclass of each section whose keys its `name` chooses."""
    found: dict[Kind, type] = {}
    for kind, room in ROOMS.items():
        section = values.get(kind, {}) if isinstance(values, dict) else {}
        name = section.get("name", room.default) if isinstance(section, dict) else room.default
        try:
            found[kind] = config_class(kind, name if isinstance(name, str) else room.default)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return found


def _checked(adapter: pydantic.TypeAdapter, values: dict[str, Any], where: str, cls: type, prefix: str = "") -> Any:
    """The values as the dataclass of the adapter."""
    try:
        # Through JSON, because strict Python mode refuses a TOML array for a tuple and 1 for a float.
        return adapter.validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        found = error.errors()
        key = _key(found[0]["loc"], cls)
        # A key that takes a number or a word has an error for each.
        reasons = dict.fromkeys(one["msg"] for one in found if _key(one["loc"], cls) == key)
        name = f"{prefix}.{key}" if prefix else key
        raise UserError(f"{where}: `{name}` = {found[0]['input']!r}: {' or '.join(reasons)}") from None


def _key(location: tuple[int | str, ...], cls: type) -> str:
    """`section.key` of pydantic's location, without what it says about types behind that."""
    parts: list[str] = []
    section: type | None = cls
    for part in location:
        if section and isinstance(part, int):  # one of a list of sections
            parts.append(str(part))
            continue
        if section is None or not _is_known(section, str(part)):
            break
        parts.append(str(part))
        section = _sections(section).get(str(part))
    return ".".join(parts)


def _is_known(cls: type, key: str) -> bool:
    return key in {field.name for field in dataclasses.fields(cls)}


def _refuse_unknown_keys(
    values: Any, cls: type, where: str, prefix: str = "", chosen: dict[Kind, type] | None = None
) -> None:
    known = {field.name: field for field in dataclasses.fields(cls)}
    if not isinstance(values, dict):
        raise UserError(f"{where}: `{prefix.rstrip('.')}` must be a table of keys, not {values!r}")
    sections = _sections(cls) | (chosen or {})
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            whose = _whose(prefix.rstrip("."), key, values.get("name"))
            raise UserError(f"{where}: unknown key `{prefix}{key}`{whose or f'; did you mean `{prefix}{near[0]}`?'}")
        if key in sections and "of" in known[key].metadata:
            for index, one in enumerate(value if isinstance(value, list | tuple) else [value]):
                _refuse_unknown_keys(one, sections[key], where, f"{prefix}{key}.{index}.")
        elif key in sections:
            _refuse_unknown_keys(value, sections[key], where, f"{prefix}{key}.")
        elif isinstance(value, datetime.date | datetime.time):
            raise UserError(f"{where}: `{prefix}{key}` = {value}: a date, which no key takes; put it in quotes")


def _whose(kind: str, key: str, name: Any) -> str:
    """Says which other backbones or methods have a key."""
    owners = who_has(kind, key) if kind in ("backbone", "method") else []
    return f": it is a key of {', '.join(owners)}, not of {name or ROOMS[kind].default}" if owners else ""  # pyright: ignore


def _sections(cls: type) -> dict[str, type]:
    return {
        field.name: field.metadata.get("of", field.default_factory)
        for field in dataclasses.fields(cls)
        if "of" in field.metadata
        or (isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory))
    }


def read_toml(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Reads a TOML file and, below it, the file that its `extends` names, or the files, each above those before it.

    Their paths are relative to the file that names them.

    Args:
        path: of the file.
        children: the files that extend this one.

    Raises:
        UserError: the file is absent, is not TOML, or extends itself.
    """
    if path.resolve() in children:
        raise UserError(f"{children[-1]}: `extends` leads back to {path}: remove one of them")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an existing config file") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid TOML, which is UTF-8 text: {error.reason} at byte {error.start}") from None
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not (isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)):
        raise UserError(f"{path}: `extends` must name a file, or a list of files, not {parents!r}")
    below: dict[str, Any] = {}
    for parent in parents:
        below = merge(below, read_toml(path.parent / parent, (*children, path.resolve())))
    return merge(below, values)


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`top` over `base`, section by section.

    Where `top` names another backbone or method, those keys of `base` that this one does not have are left out.

    Raises:
        UserError: `top` names a backbone or method that there is not.
    """
    below = dict(base)
    for kind in ROOMS:
        section, over = base.get(kind), top.get(kind)
        if isinstance(section, dict) and isinstance(over, dict) and isinstance(over.get("name"), str):
            below[kind] = fitting(kind, section, over["name"])
    return _merged(below, top)


def fitting(kind: Kind, section: dict[str, Any], name: str) -> dict[str, Any]:
    """The keys of a section that the backbone or method of this name has."""
    cls = config_class(kind, name)
    return {key: value for key, value in section.items() if _is_known(cls, key)}


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Reads a config file; sections that say what `mwuf compare` and `mwuf tune` do are left to these."""
    return build(merge(without_studies(read_toml(path)), overrides or {}), str(path))


def load_run_config(folder: Path) -> Config:
    """Reads the config that a run has left in its folder, this version or an earlier one."""
    path = folder / "config.toml"
    return build(read_toml(path), str(path), of_any_version=True)


def without_studies(values: dict[str, Any]) -> dict[str, Any]:
    """A file's values without the sections of `mwuf compare` and `mwuf tune`."""
    return {key: value for key, value in values.items() if key not in ("study", "tune")}


def to_dict(config: Config) -> dict[str, Any]:
    """Every key with its value, as TOML and JSON can hold it."""
    return _ADAPTER.dump_python(config, mode="json", serialize_as_any=True)


def to_toml(config: Config) -> str:
    """The fully resolved config; `load_config` of it gives the same config."""
    return tomli_w.dumps(to_dict(config))


# What may differ between two runs that compute the same thing.
_NOT_HASHED = {"runtime": None, "checkpoint": None, "data": ("prepared_dir",)}


def config_hash(config: Config) -> str:
    """Twelve hex digits over everything that decides the result."""
    return hash_of_values(to_dict(config))


def hash_of_values(values: dict[str, Any]) -> str:
    """`config_hash` of a resolved config as it was written, by this version or by one that had fewer keys."""
    values = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in values.items()}
    for section, keys in _NOT_HASHED.items():
        if keys is None:
            values.pop(section, None)
        else:
            for key in keys:
                values[section].pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def differences(ours: Config, theirs: Config) -> list[str]:
    """Keys whose values differ, as `section.key: ours -> theirs` lines (runtime and checkpoint sections aside)."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        return out

    first, second = flat(to_dict(ours)), flat(to_dict(theirs))
    skip = ("runtime.", "checkpoint.", "data.prepared_dir")
    return [
        f"{key}: {first[key]!r} -> {second[key]!r}"
        for key in first
        if first[key] != second.get(key) and not key.startswith(skip)
    ]
