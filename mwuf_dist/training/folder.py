"""Checks and claims the output folder of a run: no other process's, no other run's, with its files as written."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mwuf_dist.config import Config, UserError, build, differences, load_run_config, to_toml
from mwuf_dist.data.shards import Prepared
from mwuf_dist.files import (
    DamagedError,
    is_as_written,
    make_folder,
    read_json,
    remove_left_overs,
    with_text_checksum,
    write_atomically,
)
from mwuf_dist.locks import locked
from mwuf_dist.runtime import Runtime
from mwuf_dist.training.checkpoint.files import parse_meta


@contextlib.contextmanager
def alone_in(folder: Path, runtime: Runtime) -> Iterator[None]:
    """Lets nobody else write into the folder meanwhile; the main rank holds its lock."""
    with contextlib.ExitStack() as stack:
        runtime.on_main(lambda: stack.enter_context(locked(folder, "run")))
        yield


def finished_results(folder: Path) -> dict[str, Any] | None:
    """Reads what `results.json` holds; None where there is none yet, or a damaged one, which is said."""
    try:
        return read_json(folder / "results.json")
    except FileNotFoundError:
        return None
    except DamagedError as error:
        print(f"{folder}: {error}: made again from the last checkpoint", file=sys.stderr)
        return None


def check_folder(config: Config, folder: Path) -> None:
    """Refuses a folder that holds something else than this very run."""
    path = folder / "config.toml"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name another --output")
    remove_left_overs(folder, folder / "checkpoints", folder / "scores")
    if path.exists():
        different = _other_config(config, folder)
        if different:
            raise UserError(
                f"{folder} holds another run, which differs in {'; '.join(different[:3])}"
                f"{' and more' if len(different) > 3 else ''}: name another --output, or delete the folder"
            )
    elif folder.exists() and any(one.name != ".lock" for one in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run: name another --output")


def trained_on(folder: Path) -> str:
    """Returns checksum of the data of a run's folder, finished or begun; empty where it is not known."""
    with contextlib.suppress(FileNotFoundError, DamagedError):  # a damaged file is said later, and made again
        return read_json(folder / "results.json").get("prepared_checksum", "")
    for path in (folder / "checkpoints").glob("*/meta.json"):
        with contextlib.suppress(DamagedError):
            return parse_meta(path.parent, None).data
    return ""


def check_same_data(folder: Path, trained_on: str, prepared: Prepared) -> None:
    """Refuses to go on in a folder with what was trained on other data.

    Args:
        folder: of the run or the comparison.
        trained_on: checksum of the data of then; empty: not known, as earlier versions did not keep it.
        prepared: the data of now.
    """
    if trained_on not in ("", prepared.checksum):
        raise UserError(
            f"{folder}: was trained on other data: the files, or how they are read, have changed since (checksum "
            f"{trained_on} then, {prepared.checksum} now): name another --output, or delete the folder"
        )


def _other_config(config: Config, folder: Path) -> list[str]:
    """Says in what the run of a folder differs; where its `config.toml` is damaged, `results.json` says so.

    Where there is none yet, its checkpoints are of its config, and are not taken where that is another one.
    """
    path = folder / "config.toml"
    is_whole = is_as_written(path.read_text(encoding="utf-8", errors="replace"))
    try:
        different = differences(load_run_config(folder), config)
        if is_whole or not different:
            return different
    except UserError:
        if is_whole:
            raise
    print(f"{path}: is damaged (its checksum differs): written again", file=sys.stderr)
    results = finished_results(folder)
    if results is not None and isinstance(results.get("config"), dict):
        different = differences(build(results["config"], str(folder / "results.json"), of_any_version=True), config)
        if not different:
            write_atomically(path, with_text_checksum(to_toml(config)))
        return different
    return []


def claim(config: Config, folder: Path) -> None:
    """Makes the folder this run's. Only when nothing of the config is left to find fault with: see `Run`."""
    try:
        make_folder(folder)
        write_atomically(folder / "config.toml", with_text_checksum(to_toml(config)))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}): name another --output") from None
