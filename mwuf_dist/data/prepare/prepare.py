"""Stage `prepare`: raw data to a prepared folder, reused as long as nothing that made it changes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mwuf_dist.config import DataConfig, UserError
from mwuf_dist.data import manifest as manifests
from mwuf_dist.data import remote, sources
from mwuf_dist.data.manifest import check_manifest, read_manifest
from mwuf_dist.data.prepare.pipeline import STEPS, write_prepared
from mwuf_dist.data.prepare.workers import Pool
from mwuf_dist.data.readers.vectors import with_file
from mwuf_dist.data.schema import Entities, RawPieces
from mwuf_dist.data.shards import Prepared
from mwuf_dist.data.sources.content import content_of
from mwuf_dist.data.split import SplitRule
from mwuf_dist.files import DamagedError, appearing
from mwuf_dist.locks import locked

_ADVICE = "set data.prepared_dir or MWUF_CACHE_DIR"


def prepare(
    config: DataConfig, progress: bool = False, pool: Pool | None = None, made_of: dict[str, Any] | None = None
) -> Prepared:
    """Reads, splits and writes the data set, or opens the folder that an earlier call with the same inputs left.

    Several processes may call it at once: the first prepares, the others wait and open what it has made.

    Args:
        config: section `data`.
        progress: show a progress bar.
        pool: who does the work, where there is some; None: this process. What is written does not depend on it.
        made_of: what `describe` has found already; it reads all raw files.

    Raises:
        UserError: the raw data is wrong or absent, or the rule leaves no old or no new item. Nothing is left behind.
    """
    made_of = made_of or describe(config)
    folder = prepared_folder(config, made_of)
    manifest = read_manifest(folder)
    if manifest is None:
        with locked(folder, "prepare", _say, _ADVICE):
            manifest = read_manifest(folder)  # of another process, which was faster
            if manifest is None:
                manifest = _build_or_copy(config, made_of, folder, progress, pool)
    return Prepared(folder, manifest)


def is_prepared(config: DataConfig, made_of: dict[str, Any] | None = None) -> bool:
    """Says whether `prepare`, called with the same, would only open what an earlier call has written."""
    return read_manifest(prepared_folder(config, made_of or describe(config))) is not None


def describe(config: DataConfig) -> dict[str, Any]:
    """Returns everything that decides the content of the shards: the source's fingerprint, the rule, the layout."""
    vectors = {}
    if config.item_vectors:
        vectors["item_vectors"] = content_of([remote.local_path(config.item_vectors, "data.item_vectors")])
    return {
        "source": sources.find(config.name).fingerprint(config) | vectors,
        "rule": {key: value for key, value in asdict(SplitRule.of(config)).items() if value is not None},
        "layout": manifests.LAYOUT_VERSION,
    }


def prepared_folder(config: DataConfig, made_of: dict[str, Any]) -> Path:
    """Says where the shards that are made of this lie."""
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    return remote.prepared_root(config.prepared_dir) / f"{config.name}-{key}"


def _build_or_copy(
    config: DataConfig, made_of: dict[str, Any], folder: Path, progress: bool, pool: Pool | None
) -> dict[str, Any]:
    """Prepares; where `data.prepared_dir` is a URI the folder is copied from there, or to there."""
    if not remote.is_remote(config.prepared_dir):
        return _build(config, made_of, folder, progress, pool)
    there, key = remote.below(config.prepared_dir, folder.name), "data.prepared_dir"
    if remote.is_complete(there, key):
        copy = remote.local_path(there, key, whole=True)
        with appearing(folder, _ADVICE) as beside:
            shutil.copytree(copy, beside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(remote.COMPLETE))
        shutil.rmtree(copy)
        manifest = read_manifest(folder)
        if manifest is not None:
            return manifest
    manifest = _build(config, made_of, folder, progress, pool)
    remote.publish(folder, there, key)
    return manifest


def _build(
    config: DataConfig, made_of: dict[str, Any], folder: Path, progress: bool, pool: Pool | None
) -> dict[str, Any]:
    facts = {
        "name": config.name + (" (synthesized)" if "synthesized" in made_of["source"] else ""),
        "made_of": made_of,
    }
    if folder.exists():
        try:
            check_manifest(folder)
        except (FileNotFoundError, DamagedError) as error:
            _say(f"{folder}: {error}: prepared anew")
    with (
        appearing(folder, _ADVICE) as beside,
        tqdm(total=len(STEPS), desc="prepare", unit="step", disable=not progress) as bar,
    ):

        def step(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        raw = _with_vectors(sources.find(config.name).pieces(config), config)
        write_prepared(raw, SplitRule.of(config), beside, facts, pool, step)
        if describe(config) != made_of:
            raise UserError(f"data set {config.name!r}: a file has changed while it was read; call it again")
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} changed while it was written"
    return manifest


def _with_vectors(raw: RawPieces, config: DataConfig) -> RawPieces:
    """Returns the data set with the vectors of a file beside it."""
    if not config.item_vectors:
        return raw
    id_column = config.logs.item if config.name == "logs" else ""

    def entities(*found: Any) -> Entities:
        return with_file(config.item_vectors, raw.entities(*found), id_column)

    return replace(raw, entities=entities)


def _say(text: str) -> None:
    print(f"mwuf: {text}", file=sys.stderr, flush=True)
