"""Plain values to a `Config` and back: TOML files, what lies above what, checks that name the key, hashes."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import functools
import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pydantic
import tomli_w

from mwuf_dist.config.registry import ROOMS, Kind, config_class, who_has
from mwuf_dist.config.schema import Config
from mwuf_dist.config.types import UserError

_MAX_EXTENDS = 100
_ADAPTER = pydantic.TypeAdapter(Config)
_SURROGATE = re.compile(r"\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2}")
_adapter_of = functools.cache(pydantic.TypeAdapter)

# What a key means that a config of an earlier version does not have.
_MEANT_BEFORE = {"data": {"events": "all"}, "backbone": {"recent_gap_s": -1.0}}


def build(values: dict[str, Any], where: str = "config", *, of_any_version: bool = False) -> Config:
    """Checks plain nested values against the schema.

    Args:
        values: sections and keys as TOML gives them.
        where: named in error messages.
        of_any_version: leave out what the chosen backbone and method do not have and others of the package do: a run
            folder or record of a version in which every key stood in every config has such keys. And keys that are not
            there mean what they meant before there were these keys.

    Raises:
        UserError: an unknown key (with its nearest neighbour, or whose it is) or a value of the wrong type or range.
    """
    if of_any_version and isinstance(values, dict):
        values = _merged(_MEANT_BEFORE, values)
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
    """Returns the dataclass of each section whose keys its `name` chooses."""
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
    """Returns the values as the dataclass of the adapter."""
    try:
        text = json.dumps(values)
    except (TypeError, ValueError, RecursionError) as error:  # a date in a list, a number of thousands of digits
        raise UserError(f"{where}: holds what no key takes ({str(error)[:200]})") from None
    if "\\u0000" in text or _SURROGATE.search(text):
        raise UserError(f"{where}: a value holds a NUL or half of a character, which no key takes")
    try:
        # Through JSON, because strict Python mode refuses a TOML array for a tuple and 1 for a float.
        return adapter.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        found = error.errors()
        key = _key(found[0]["loc"], cls)
        # A key that takes a number or a word has an error for each.
        reasons = dict.fromkeys(one["msg"] for one in found if _key(one["loc"], cls) == key)
        name = f"{prefix}.{key}" if prefix else key
        raise UserError(f"{where}: `{name}` = {_short(found[0]['input'])}: {' or '.join(reasons)}") from None


def _short(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _key(location: tuple[int | str, ...], cls: type) -> str:
    """Returns `section.key` of pydantic's location, without what it says about types behind that."""
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
    if "\0" in str(path):
        raise UserError(f"{str(path)!a}: no path has a NUL in it; name an existing config file")
    if len(children) > _MAX_EXTENDS:
        raise UserError(f"{path}: `extends` goes over more than {_MAX_EXTENDS} files")
    try:
        if path.resolve() in children:
            raise UserError(f"{children[-1]}: `extends` leads back to {path}: remove one of them")
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name an existing config file") from None
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid TOML, which is UTF-8 text: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:  # of tomllib, of a number of thousands of digits, of deep arrays
        raise UserError(f"{path}: not valid TOML: {str(error)[:200]}") from None
    parents = values.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not (isinstance(parents, list) and all(isinstance(parent, str) for parent in parents)):
        raise UserError(f"{path}: `extends` must name a file, or a list of files, not {parents!r}")
    below: dict[str, Any] = {}
    for parent in parents:
        below = merge(below, read_toml(path.parent / parent, (*children, path.resolve())))
    return merge(below, values)


def merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Returns `top` over `base`, section by section.

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
    """Returns the keys of a section that the backbone or method of this name has."""
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
    """Returns a file's values without the sections of `mwuf compare` and `mwuf tune`."""
    return {key: value for key, value in values.items() if key not in ("study", "tune")}


def to_dict(config: Config) -> dict[str, Any]:
    """Returns every key with its value, as TOML and JSON can hold it."""
    return _ADAPTER.dump_python(config, mode="json", serialize_as_any=True)


def to_toml(config: Config) -> str:
    """Returns the fully resolved config; `load_config` of it gives the same config."""
    return tomli_w.dumps(to_dict(config))


# What may differ between two runs that compute the same thing.
_NOT_HASHED = {"runtime": None, "checkpoint": None, "data": ("prepared_dir",)}


def config_hash(config: Config) -> str:
    """Returns twelve hex digits over everything that decides the result."""
    return hash_of_values(to_dict(config))


def hash_of_values(values: dict[str, Any]) -> str:
    """Returns `config_hash` of a resolved config as it was written, by this version or by one that had fewer keys."""
    values = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in values.items()}
    for section, keys in _NOT_HASHED.items():
        if keys is None:
            values.pop(section, None)
        else:
            for key in keys:
                values[section].pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def differences(ours: Config, theirs: Config) -> list[str]:
    """Gives keys whose values differ, as `section.key.

    Ours -> theirs` lines (runtime and checkpoint sections aside).
    """

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
