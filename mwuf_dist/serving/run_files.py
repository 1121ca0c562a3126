"""What a finished run's folder says: its config, its results, its last checkpoint, and the prepared data it names."""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mwuf_dist.config import PHASES, Config, UserError, hash_of_values, load_run_config
from mwuf_dist.data import remote
from mwuf_dist.data.locations import expanded
from mwuf_dist.data.manifest import MANIFEST, read_manifest
from mwuf_dist.data.prepare.prepare import prepare
from mwuf_dist.data.remote import prepared_root
from mwuf_dist.data.schema import USER_ID
from mwuf_dist.data.shards import Prepared
from mwuf_dist.embeddings.tables import Tables
from mwuf_dist.files import DamagedError, assert_tables, read_json
from mwuf_dist.methods import Method
from mwuf_dist.serving.served_state import WarmState
from mwuf_dist.training.checkpoint.files import Cursor, load_tensors, read_meta
from mwuf_dist.training.checkpoint.save import module_state
from mwuf_dist.training.model import Model
from mwuf_dist.training.results import SCHEMA, versions
from mwuf_dist.training.stages.pretrain import pretrained_tensors

# Names the folder of a run's prepared data, or the one that holds it, where it is no longer where the run found it.
PREPARED_VARIABLE = "MWUF_PREPARED_DIR"


def read_run(folder: Path) -> tuple[Config, dict[str, Any], Path]:
    """Returns (config, content of results.json, last checkpoint) of a finished run.

    Raises:
        UserError: it is no run, it is not finished, or another version made it.
    """
    if not (folder / "config.toml").exists():
        raise UserError(f"{folder}: no run is here (no config.toml); name the --output folder of a `mwuf run`")
    try:
        results = read_json(folder / "results.json")
        assert_tables(results, "versions", "split")
    except FileNotFoundError:
        raise UserError(
            f"{folder}: this run is not finished (no results.json): `mwuf run {folder / 'config.toml'} --output "
            f"{folder}` goes on where it stopped"
        ) from None
    except DamagedError as error:
        raise UserError(
            f"{folder}: {error}: `mwuf run {folder / 'config.toml'} --output {folder}` makes it again from the last "
            "checkpoint"
        ) from None
    made_by = results["versions"].get("mwuf_dist", "unknown")
    if results.get("schema") != SCHEMA:
        raise UserError(
            f"{folder}: results of schema {results.get('schema')!r}; this version ({versions().get('mwuf_dist')}) "
            f"reads {SCHEMA}: use mwuf-dist {made_by}, which made it"
        )
    config = load_run_config(folder)
    # Of the keys that stand in it: it has all that there were when the run was made, and there may be more now.
    hashed = hash_of_values(tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")))
    if hashed != results.get("config_hash"):
        raise UserError(
            f"{folder}: config.toml is not that of results.json ({hashed} and {results.get('config_hash')}): "
            f"it was edited (the run was made by mwuf-dist {made_by}): run again in a new folder"
        )
    if config.data.protocol == "stream":
        raise UserError(
            f"{folder}: a run by days (data.protocol = 'stream') measures, and keeps no embeddings: run the config "
            "with data.protocol = 'paper' in a new folder, and let `mwuf warm` take the days"
        )
    checkpoint = folder / "checkpoints" / Cursor("warm_up", len(PHASES)).name
    if not checkpoint.exists():
        raise UserError(f"{folder}: its last checkpoint is gone; delete results.json and run again to make it anew")
    read_meta(checkpoint, results["config_hash"])
    return config, results, checkpoint


def chain_of(folder: Path) -> str:
    """Gives twelve hex digits of the run that a folder holds or was made from by jobs: what their deltas belong to."""
    return hashlib.sha256((folder / "results.json").read_bytes()).hexdigest()[:12]


def open_prepared(
    folder: Path, config: Config, results: dict[str, Any], named: Path | str | None = None, progress: bool = False
) -> Prepared:
    """Returns the prepared data that a run was trained on; the raw data are needed only where these are gone.

    Args:
        folder: of the run.
        config: of the run.
        results: content of its results.json.
        named: the prepared folder, or one that holds it; None: `MWUF_PREPARED_DIR`, then where the run found it, then
            where the config, the cache or a folder beside the run has it.
        progress: show a progress bar where the data must be prepared again.

    Raises:
        UserError: there is none, or it holds other data.
    """
    name, other = results.get("prepared", ""), []
    places = list(_places(folder, config, results, named))
    for place in places:
        manifest = read_manifest(place)
        if manifest is None:
            continue
        prepared = Prepared(place, manifest)
        other = _differences(results, prepared)
        if not other:
            return prepared
        if named is not None or place.name == name:
            raise UserError(
                f"{place}: is not what {folder} was trained on ({'; '.join(other)}): name its prepared data with "
                f"--prepared or {PREPARED_VARIABLE}, or run again in a new folder"
            )
    if named is not None:
        raise UserError(f"{named}: no prepared data ({MANIFEST}) is here, nor in a folder {name} in it: name another")
    return _prepared_again(folder, config, results, places, progress)


def _places(folder: Path, config: Config, results: dict[str, Any], named: Path | str | None) -> Iterator[Path]:
    name = results.get("prepared", "")
    asked = named or os.environ.get(PREPARED_VARIABLE)
    if asked and remote.is_remote(asked):
        for uri in (remote.uri_of(asked), remote.below(asked, name)):
            if remote.is_complete(uri, "--prepared"):
                yield remote.local_path(uri, "--prepared", whole=True)
    elif asked:
        place = expanded(str(asked), "--prepared" if named else PREPARED_VARIABLE)
        yield from (place, place / name)
    if named is not None or not name:
        return
    if "prepared_path" in results:
        yield Path(results["prepared_path"])
    yield from (prepared_root(config.data.prepared_dir) / name, prepared_root("") / name, folder.parent / name)


def _prepared_again(
    folder: Path, config: Config, results: dict[str, Any], places: list[Path], progress: bool
) -> Prepared:
    """Returns the data made again from the raw ones, checked to be the same."""
    name = results.get("prepared", "")
    try:
        prepared = prepare(config.data, progress)
    except UserError as error:
        looked = ", ".join(dict.fromkeys(str(place.parent) for place in places)) or "nothing is written down"
        raise UserError(
            f"{folder}: its prepared data {name} are gone (looked in {looked}), and cannot be made again: {error}. "
            f"Where they have been moved, name them with --prepared or {PREPARED_VARIABLE}"
        ) from None
    changed = _differences(results, prepared)
    if changed:
        if name and name != prepared.path.name:
            changed.insert(0, f"shards {name} -> {prepared.path.name}")
        raise UserError(
            f"{folder}: the data has changed since the run ({'; '.join(changed)}): bring the old files back, or run "
            "again in a new folder"
        )
    if name and name != prepared.path.name and "prepared_checksum" not in results:
        print(
            f"{folder}: its prepared data {name} are gone; those made again, {prepared.path.name}, have as many rows "
            "and positives, which is all that this run has written down of them",
            file=sys.stderr,
        )
    return prepared


def _differences(results: dict[str, Any], prepared: Prepared) -> list[str]:
    """Lists what of the data is not as the run has written it down."""
    split, splits = results["split"], prepared.manifest["splits"]
    found = {"old_items": prepared.num_old_items, "new_items": prepared.num_new_items}
    found |= {name: one["rows"] for name, one in splits.items()}
    changed = [f"{name} {split[name]} -> {value}" for name, value in found.items() if split[name] != value]
    for name, share in split.get("positives", {}).items():
        now = splits[name]["positives"] / max(1, splits[name]["rows"])
        if now != share:
            changed.append(f"positives of {name} {share:.6f} -> {now:.6f}")
    checksum = results.get("prepared_checksum", prepared.checksum)
    if checksum != prepared.checksum:
        changed.append(f"checksum {checksum} -> {prepared.checksum}")
    return changed


def load_with_state(checkpoint: Path, model: Model, method: Method, state: WarmState, config: Config) -> torch.Tensor:
    """Loads a run's last checkpoint, and fills tables with what jobs have made; returns the run's rows of phi_new.

    Args:
        checkpoint: of the run.
        model: made for its data with what has come since.
        method: of the run.
        state: what has come since.
        config: of the run.
    """
    run_rows = torch.zeros(state.num_run_items, model.dim)
    tensors = pretrained_tensors(model) | module_state("method", method) | {f"{model.new_ids.name}.new": run_rows}
    users, name = state.users, model.user_tables.name
    if users is not None:  # the table is larger than the run's, and so would be what a fused optimizer keeps of it
        of_run = torch.zeros(model.user_tables.specs[USER_ID].rows - len(users.ids), model.dim)
        tensors = {key: one for key, one in tensors.items() if not key.startswith(f"{name}.fused.")}
        tensors[f"{name}.{USER_ID}"] = of_run
    load_tensors(checkpoint, tensors)
    _fill_new_ids(model, run_rows, state, config)
    if users is not None:
        rows = torch.cat([of_run, torch.from_numpy(users.rows)])  # the unknown user's is the first
        model.user_tables.fill(USER_ID, lambda index: rows[index.cpu()].to(index.device))
    return run_rows


def _fill_new_ids(model: Model, run_rows: torch.Tensor, state: WarmState, config: Config) -> None:
    """Fills phi_new with the run's rows and, above them, those of the state; in histories the run's stay."""
    rows = torch.zeros(state.num_items, model.dim)
    rows[: len(run_rows)] = run_rows
    if model.backbone.uses_history and model.backbone.history_scope != "all":  # else no new item is in a history
        specs, before = [*model.new_ids.specs.values()], rows.clone()
        model.new_in_histories = Tables("new_in_histories", specs, config.embedding, model.runtime, trained=False)
        model.new_in_histories.fill("new", lambda index: before[index.cpu()].to(index.device))
    rows[torch.from_numpy(state.rows.item)] = torch.from_numpy(state.rows.served)
    model.new_ids.fill("new", lambda index: rows[index.cpu()].to(index.device))
