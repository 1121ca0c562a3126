"""`mwuf apply`: puts deltas into an export, or into a copy of the state that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mwuf_dist.config import UserError
from mwuf_dist.data.remote import shown
from mwuf_dist.files import appearing, write_json
from mwuf_dist.locks import locked
from mwuf_dist.serving import served_state
from mwuf_dist.serving.deltas import hashes
from mwuf_dist.serving.deltas.files import delta_files, read_chain
from mwuf_dist.serving.deltas.pending import state_of, with_deltas
from mwuf_dist.serving.deltas.reader import Delta, DeltaError, ItemTable, UserTable
from mwuf_dist.serving.export.chunks import Chunk
from mwuf_dist.serving.export.export import MANIFEST, read_manifest
from mwuf_dist.serving.finished_run import PHASE_NAMES
from mwuf_dist.serving.run_files import chain_of, open_prepared, read_run
from mwuf_dist.serving.writers import writer_of
from mwuf_dist.serving.writers.interface import Writer

_ROWS = 1 << 16


@dataclass(frozen=True)
class ApplyReport:
    """Reports what was applied.

    Attributes:
        output: the folder that was written.
        first, last: numbers of the deltas.
        num_changed, num_retired: items put in and taken out, as often as a delta did.
        num_items: items of the export, or others than the run's in the state.
        state: hash of what is there now.
    """

    output: Path
    first: int
    last: int
    num_changed: int
    num_retired: int
    num_items: int
    state: str

    def text(self, output: Path | None = None) -> str:
        """Returns for a terminal; `output` is where the folder has been copied to, if it has."""
        return (
            f"deltas {self.first} to {self.last}: {self.num_changed:,} items put in, {self.num_retired:,} taken out, "
            f"{self.num_items:,} there now\n{shown(output or self.output)}: state {self.state}"
        )


def apply(
    target: Path, named: Sequence[Path], output: Path | None = None, prepared: Path | None = None, to: str = ""
) -> ApplyReport:
    """Applies deltas to an export, or to the state of a run. All of them, or none.

    Args:
        target: folder of an export, or of a run or job.
        named: files of deltas, or folders of them, in their order.
        output: folder to write; None: the export itself is replaced.
        prepared: of a run, see `load_run`.
        to: the server that the format of an export fills; empty: the one that the export says.

    Raises:
        UserError: one is damaged, missing, there twice, out of order or of another chain; or `output` is missing.
    """
    paths = delta_files(named)
    if not paths:
        raise UserError("name the deltas behind the folder: mwuf apply EXPORT RUN/deltas")
    if (target / MANIFEST).exists():
        return _to_export(target, paths, output or target, to)
    if (target / "config.toml").exists():
        if output is None or output.resolve() == target.resolve():
            raise UserError(f"{target}: is a run, which stays as it is: name another folder with --output")
        return _to_run(target, paths, output, prepared)
    raise UserError(f"{target}: neither an export ({MANIFEST}) nor a run (config.toml) is here")


def _to_export(folder: Path, paths: list[Path], output: Path, to: str) -> ApplyReport:
    with locked(output, "apply"):
        about, version = read_manifest(folder)
        found = read_chain(paths, *version, names=("changed", "retired", "changed_users"))
        writer = writer_of(about["format"], to or about.get("to", ""))
        writer.check()
        table = ItemTable(*writer.read(folder, "item"), *version, old_items=about["old_items"])
        users = None
        if "num_users" in about and any("changed_users" in delta.parts for delta in found):
            users = UserTable(*writer.read(folder, "user"), *version)
        try:
            for delta in found:
                table.apply(delta)
                if users is not None:
                    users.apply(delta)
        except DeltaError as error:
            raise UserError(f"{folder}: {error}: export it again, or without what it has more") from None
        with appearing(output, "name another --output") as beside:
            changed = writer.files(folder, "item") | (writer.files(folder, "user") if users is not None else set())
            _link_tree(folder, beside, but=changed | {MANIFEST})  # the model stays
            num_items = _write(table, "item", writer, beside)
            if users is not None:
                about |= {"num_users": _write(users, "user", writer, beside)}
            state = {"chain": table.chain, "number": table.number, "hash": table.state}
            about |= {"num_items": num_items, "state": state}
            write_json(beside / MANIFEST, about | writer.finish(beside, about, found))
    return _report(output, found, num_items)


def _link_tree(folder: Path, target: Path, but: set[str]) -> None:
    for path in folder.iterdir():
        if path.name in but:
            continue
        if path.is_dir():
            (target / path.name).mkdir()
            _link_tree(path, target / path.name, set())
        else:
            served_state.link(path, target / path.name)


def _write(entities: ItemTable, entity: str, writer: Writer, folder: Path) -> int:
    """Writes the items, or the users, in the format that the export had; returns how many."""
    ids, columns = entities.items()
    if "phase" in columns:
        code = {name: number for number, name in enumerate(PHASE_NAMES)}
        columns["phase"] = np.array([code[name] for name in columns["phase"].tolist()], dtype=np.uint8)
    raw_ids = pa.array(ids, pa.string() if ids and isinstance(ids[0], str) else pa.int64())
    shapes = {name: (str(values.dtype), values.shape[1] if values.ndim == 2 else 0) for name, values in columns.items()}
    table = writer.table(folder, entity, raw_ids, shapes)
    for first in range(0, len(ids), _ROWS):
        part = slice(first, first + _ROWS)
        table.write(Chunk(raw_ids[part], {name: values[part] for name, values in columns.items()}))
    table.close()
    return len(ids)


def _to_run(folder: Path, paths: list[Path], output: Path, prepared: Path | None) -> ApplyReport:
    config, results, checkpoint = read_run(folder)
    data = open_prepared(folder, config, results, prepared)
    run_ids = data.raw_ids("item")
    before = state_of(folder, data, config.embedding.dim)
    found = read_chain(paths, chain_of(folder), before.number, before.hash)
    after = with_deltas(before, found, run_ids)
    made = hashes.text_of(hashes.hash_of(after, run_ids))
    if made != after.hash:
        raise UserError(
            f"{folder}: with the deltas its state is {made}, and not the {after.hash} that they lead to: it has been "
            "changed; take the run before it"
        )
    with locked(output, "apply"):
        if output.exists():
            raise UserError(f"{output}: exists: name another --output")
        with appearing(output, "name another --output") as beside:
            served_state.write_run(after, folder, checkpoint, beside)
    return _report(output, found, len(after.ids))


def _report(output: Path, found: list[Delta], num_items: int) -> ApplyReport:
    changed, retired = (sum(delta.parts[name].num_rows for delta in found) for name in ("changed", "retired"))
    first, last = found[0].header, found[-1].header
    return ApplyReport(output, first["number"], last["number"], changed, retired, num_items, last["after"])
