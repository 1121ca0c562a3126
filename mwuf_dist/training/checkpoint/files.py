"""The files of one checkpoint: whether they are what was saved, and reading them without running anything in them.

    __RANK_0.distcp   tensors that a rank has written, each a `torch.save` file; read with `weights_only=True`
    .metadata         which tensor is where, a pickle that `torch.distributed.checkpoint` has no other format for; read
                      by an unpickler that knows the dozen classes it is made of and refuses any other
    meta.json         everything else, for a person to read; with the size and CRC-32 of each of the files above, and
                      its own checksum

`torch.distributed.checkpoint` would unpickle what is neither a tensor nor that index: there is no such thing in a
checkpoint, and one that has it is refused. A CRC finds damage, not malice: whoever may write the folder may write it.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from mwuf_dist.config import UserError
from mwuf_dist.files import DamagedError, crc32_of, read_json, with_checksum
from mwuf_dist.runtime.versions import other_version

STAGES = ("pretrain", "meta_train", "warm_up")
META = "meta.json"
INDEX = ".metadata"
# What an index of tensors consists of, apart from dtypes.
_INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",  # in checkpoints of others; such an entry is not read
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


# Objects of the index that are filled with their fields.
_FILLED = {
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
    _StorageInfo,
}
# What the bytes of no pickle, or of one of something else, come to.
_BROKEN_PICKLE = (EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError, struct.error)


@dataclass(frozen=True)
class Cursor:
    """Where a run stands: the next thing to do is `step` of `epoch` of `stage` (for `warm_up`: of phase `phase`)."""

    stage: str
    phase: int = 0
    epoch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """Of the checkpoint that goes on here."""
        return f"{self.stage}-{self.phase}-{self.epoch}-{self.step:08d}"


@dataclass(frozen=True)
class FileRecord:
    """Records what a file must be."""

    bytes: int
    crc32: int


@dataclass
class Meta:
    """Holds what `meta.json` holds beside the tensors.

    `held_out_loss` is that of the last finished epoch of a stage that trains until it stops falling; `data` is the
    checksum of the data, empty in what earlier versions wrote.
    """

    cursor: Cursor
    config_hash: str
    world_size: int
    versions: dict[str, str]
    metrics_bytes: int = 0
    held_out_loss: float | None = None
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    plans: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, FileRecord] = field(default_factory=dict)
    data: str = ""

    def to_json(self) -> str:
        """Returns for `meta.json`."""
        return json.dumps(with_checksum(asdict(self)), indent=1) + "\n"


def record(path: Path) -> FileRecord:
    """Returns the size and CRC-32 of a file."""
    return FileRecord(path.stat().st_size, crc32_of(path))


def parse_meta(path: Path, config_hash: str | None) -> Meta:
    """Reads `meta.json` of a checkpoint, and looks whether its files are there and it is ours.

    Raises:
        DamagedError: it is damaged, or made by another config (`config_hash` None: not compared) or version.
    """
    try:
        values = read_json(path / META)
        files = {name: FileRecord(**entry) for name, entry in values["files"].items()}
        meta = Meta(**values | {"cursor": Cursor(**values["cursor"]), "files": files})
        if meta.cursor.name != path.name:
            raise DamagedError(f"{META} is that of {meta.cursor.name}")
        _check_values(meta)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{META} cannot be read ({error})") from None
    for name, expected in meta.files.items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != expected.bytes:
            state = "is missing" if found is None else f"has {found} bytes instead of {expected.bytes}"
            raise DamagedError(f"{name} {state}: the checkpoint is damaged")
    if config_hash is not None and meta.config_hash != config_hash:
        raise DamagedError(f"made by a run of config {meta.config_hash}, this is {config_hash}")
    problem = other_version(meta.versions)
    if problem is not None:
        raise DamagedError(problem)
    return meta


def _check_values(meta: Meta) -> None:
    """Raises ValueError where a value cannot have been written: an older version wrote no checksum."""
    counts = [meta.cursor.phase, meta.cursor.epoch, meta.cursor.step, meta.metrics_bytes, meta.world_size - 1]
    counts += [number for entry in meta.files.values() for number in (entry.bytes, entry.crc32)]
    if meta.cursor.stage not in STAGES or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("a number or name that no run writes")
    if INDEX not in meta.files or any(Path(name).name != name for name in meta.files):
        raise ValueError("its list of files is not that of a checkpoint")
    for table in (meta.versions, meta.stages, meta.phases, meta.plans):
        if not isinstance(table, dict):
            raise ValueError("a list where a table belongs")


def content_problem(path: Path, meta: Meta, part: int = 0, num_parts: int = 1) -> str | None:
    """Says what is wrong with the content of the files; None where nothing is.

    Args:
        path: of the checkpoint.
        meta: its own.
        part: which part of the files to look at, so that ranks share the work.
        num_parts: number of parts.
    """
    for name in sorted(meta.files)[part::num_parts]:
        try:
            if record(path / name) != meta.files[name]:
                return f"{name} is not what was saved (its CRC-32 differs): the checkpoint is damaged"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror}): the checkpoint is damaged"
    return None


def read_meta(path: Path, config_hash: str | None) -> Meta:
    """Reads and checks a checkpoint, content and all.

    Raises:
        UserError: it is damaged, or made by another config (`config_hash` None: not compared) or version.
    """
    try:
        meta = parse_meta(path, config_hash)
        problem = content_problem(path, meta)
    except DamagedError as error:
        problem = str(error)
    else:
        if problem is None:
            return meta
    raise UserError(f"{path}: {problem}")


def load_tensors(path: Path, tensors: dict[str, Any]) -> None:
    """Loads a checkpoint into tensors, in place. A collective."""
    try:
        with warnings.catch_warnings():
            # That the sharded tensors which TorchRec hands over are of an older kind.
            warnings.simplefilter("ignore", FutureWarning)
            dcp.load(tensors, storage_reader=_Reader(path), planner=_TensorsOnly())
    except CheckpointException as error:  # not an Exception, and every rank raises it
        raise next(iter(error.failures.values()))[0] from None


def stored_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Gives all tensors of a folder of `torch.distributed.checkpoint` of any origin, by name.

    What is none is left unread.

    Raises:
        UserError: its index is none, or names what does not belong in one.
    """
    tensors = {
        name: torch.empty(about.size, dtype=about.properties.dtype)
        for name, about in _read_index(path / INDEX).state_dict_metadata.items()
        if isinstance(about, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=_Reader(path), planner=_TensorsOnly(), no_dist=True)
    return tensors


class _IndexUnpickler(pickle._Unpickler):
    """Python's own unpickler, in Python: that of C cannot be told how to fill an object with what it holds.

    By itself it would set any attribute of anything, of a class too: of an allowed one, for the whole process.
    """

    stack: list[Any]  # which its stubs do not know
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Fills an object of the index, and nothing else, with the fields that its class declares."""
        state = self.stack.pop()
        found = self.stack[-1]
        if type(found) is TensorProperties and isinstance(state, tuple):
            found.__setstate__(state)
            return
        names = {field.name for field in fields(found)} if type(found) in _FILLED else set()
        if not isinstance(state, dict) or not state.keys() <= names:
            raise pickle.UnpicklingError(f"{type(found).__name__} has no such content in a checkpoint")
        found.__dict__.update(state)

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python up to 3.11.3 pickles a member of an Enum
            return _member
        value = super().find_class(module, name) if module == "torch" else None
        if name in _INDEX_CLASSES.get(module, ()) or isinstance(value, torch.dtype):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _member(cls: Any, name: str) -> Enum:
    if not (isinstance(cls, type) and issubclass(cls, Enum) and name in cls.__members__):
        raise pickle.UnpicklingError("getattr has no place in a checkpoint, but for members of an Enum")
    return cls[name]


class _Reader(dcp.FileSystemReader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Now, and not where it is asked for: there, any error is taken for an index of another kind.
        self._index = _read_index(path / INDEX)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._index.storage_meta = self._index.storage_meta or StorageMeta()
        self._index.storage_meta.load_id = self.load_id
        return self._index


def _read_index(path: Path) -> Metadata:
    try:
        with path.open("rb") as file:
            found = _IndexUnpickler(file).load()
        _check_index(found)
        return found
    except (OSError, pickle.UnpicklingError, *_BROKEN_PICKLE) as error:
        raise UserError(f"{path}: not the index of a checkpoint ({error}): it is not loaded") from None


def _check_index(found: Any) -> None:
    """Looks at what native code would take for granted: that tensors have sizes, and pieces that lie in them."""
    if type(found) is not Metadata or not isinstance(found.state_dict_metadata, dict):
        raise ValueError("it holds something else")
    for name, about in found.state_dict_metadata.items():
        if type(about) is BytesStorageMetadata:
            continue
        if type(about) is not TensorStorageMetadata or not isinstance(about.properties.dtype, torch.dtype):
            raise ValueError(f"{name!r} is no tensor")
        for piece in about.chunks:
            ends = [low + size for low, size in zip(piece.offsets, piece.sizes, strict=True)]
            if min([*piece.offsets, *piece.sizes, 0]) < 0 or not all(
                end <= size for end, size in zip(ends, about.size, strict=True)
            ):
                raise ValueError(f"a piece of {name!r} does not lie in it")
    for info in (found.storage_data or {}).values():
        if type(info) is not _StorageInfo or Path(info.relative_path).name != str(info.relative_path):
            raise ValueError("it names a file elsewhere")


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        raise UserError(f"{read_item.dest_index.fqn}: a checkpoint holds tensors, and this is none: it is not loaded")
