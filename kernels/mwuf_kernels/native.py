"""Compiles the `.cpp` files of `cpu/` for this machine at its first use, as Inductor does with what it generates.

With `-march=native`, so the library is of the kind of processor it was made on: its file is named after the source, the
compiler, its flags and the processor, and lies in `$MWUF_CACHE_DIR/native` or `~/.cache/mwuf-dist/native`. Where there
is no C++ compiler nothing is compiled, and whoever asks gets None and takes torch; `MWUF_NATIVE=0` does so by choice.
`MWUF_NATIVE_ARCH` names another `-march` (x86-64-v2, say): to play a lesser processor, or for one library of a fleet.

The library is code, so it is loaded only from where nobody else can have put it: file and folders belong to this user
(or the system) and no other may write them; else `~/.cache/mwuf-dist` serves. It ends with the SHA-256 of what is
before, and one that a full disk or a power cut has spoilt is made again.
"""

import contextlib
import ctypes
import fcntl
import functools
import grp
import hashlib
import os
import platform
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import torch

_CPU = Path(__file__).parent / "cpu"
_SOURCES = sorted(_CPU.glob("*.cpp"))
_HEADERS = sorted(_CPU.glob("*.h"))
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC", "-shared", "-pthread")

# Seconds that the compiler may take, and that others wait for a process that compiles: it takes some 20 on one core.
COMPILE_S = 120.0
LOCK_S = 120.0
_SECONDS_BETWEEN_TRIES = 0.1

_is_out_of_use = False
_num_threads = 1
_structures: dict[str, type[ctypes.Structure]] = {}
_nothing = ctypes.c_double()
_NO_ELEMENTS = ctypes.addressof(_nothing)


def compiler() -> str | None:
    """Gives the C++ compiler of this machine.

    What $CXX names, or one that stands in the path; None where there is none.
    """
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns the compiled library; None where it cannot be had, with a warning where a compiler is there and fails."""
    found = compiler()
    if found is None or os.environ.get("MWUF_NATIVE") == "0":
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled(found)))
        loaded.mwuf_set_threads(ctypes.c_long(_num_threads))
    except subprocess.TimeoutExpired as error:
        warnings.warn(
            f"{found} took longer than {error.timeout:g} s for mwuf_kernels and was ended, so training is slower: when "
            "less runs on this machine, `mwuf doctor` compiles them once for all later runs",
            stacklevel=2,
        )
        return None
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        warnings.warn(f"{found} cannot compile mwuf_kernels, so training is slower: {said}", stacklevel=2)
        return None
    _check_structures(loaded)
    return loaded


def address(tensor: torch.Tensor | None) -> int | None:
    """Gives the address of a tensor, which must be contiguous and on the CPU; None for None.

    torch has none for a tensor without elements, and C would take that for one that is not there.
    """
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.is_cpu
    return tensor.data_ptr() or _NO_ELEMENTS


def has_library(*tensors: torch.Tensor) -> bool:
    """Says whether the library can be used for these tensors: float32, on the CPU."""
    fits = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return fits and not _is_out_of_use and library() is not None


def has_loop(*tensors: torch.Tensor) -> bool:
    """Says whether a loop may stand in the place of torch's operators on these tensors, in the middle of a model.

    Beside `has_library`: no compiler follows what is called (it would follow the library's making, too), and autocast,
    under which torch would multiply in another type, is off.
    """
    return not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") and has_library(*tensors)


def set_num_threads(num_threads: int) -> None:
    """Lets a loop of the library use so many threads, the caller's own among them.

    Results do not depend on it: rows are cut into the same blocks, and sums are made in the same order.
    """
    global _num_threads
    _num_threads = num_threads
    if library.cache_info().currsize and (found := library()) is not None:
        found.mwuf_set_threads(ctypes.c_long(num_threads))


def num_threads() -> int:
    """Returns how many threads a loop of the library may use, the caller's own among them; 1 without the library."""
    return _num_threads if has_library() else 1


def structure(name: str, **fields: str) -> type[ctypes.Structure]:
    """Makes a structure of the library, whose size is checked when that is loaded.

    Args:
        name: what `mwuf_size_of_NAME` of the library gives the size of.
        fields: names of its fields by their type, in order: `longs`, `floats` and `pointers`.
    """
    kinds = {"longs": ctypes.c_long, "floats": ctypes.c_float, "pointers": ctypes.c_void_p}
    pairs = [(one, kinds[kind]) for kind, names in fields.items() for one in names.split()]
    made = type(name, (ctypes.Structure,), {"_fields_": pairs})
    _structures[name] = made
    return made


def _check_structures(found: ctypes.CDLL) -> None:
    for name, made in _structures.items():
        size_of = getattr(found, f"mwuf_size_of_{name}")
        size_of.restype = ctypes.c_long
        size, expected = ctypes.sizeof(made), size_of()
        assert size == expected, f"structure {name} has {size} bytes here and {expected} in the library"


@contextlib.contextmanager
def without_library() -> Iterator[None]:
    """Makes torch do everything: to count its operators, which it does not see in the library."""
    global _is_out_of_use
    before, _is_out_of_use = _is_out_of_use, True
    try:
        yield
    finally:
        _is_out_of_use = before


def call(name: str, *arguments: torch.Tensor | int | float | None) -> None:
    """Calls a function of the library: tensors go as addresses, numbers as long or float."""
    function = _function(name, tuple(map(type, arguments)))
    function(*(one if isinstance(one, (int, float)) else address(one) for one in arguments))


@functools.cache
def _function(name: str, kinds: tuple[type, ...]) -> Callable[..., None]:
    """Returns a function of the library that takes arguments of these types, whose types in C are set once."""
    found = library()
    assert found is not None, "ask has_library first"
    of_number = {int: ctypes.c_long, bool: ctypes.c_long, float: ctypes.c_float}
    # Not `found.NAME`, which is one object for all: a tensor may be None in one call and not in the other.
    prototype = ctypes.CFUNCTYPE(None, *(of_number.get(kind, ctypes.c_void_p) for kind in kinds))
    return prototype((name, found))


def _compiled(found: str) -> Path:
    path = _folder() / f"kernels-{_name(found)}.so"
    if path.exists() and not others_may_write(path) and _is_whole(path):
        return path
    # Several ranks ask at once: one compiles, the others wait for it and take what it has made. The lock dies with its
    # process; where that is stopped, the others compile too, each beside its place.
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        _take(lock, LOCK_S)
        if not (path.exists() and not others_may_write(path) and _is_whole(path)):
            _compile(found, path)
    return path


def _take(lock: TextIO, seconds: float) -> None:
    """Takes a lock, or does without it when the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_SECONDS_BETWEEN_TRIES)
    return None


def _compile(found: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        made = Path(beside) / "kernels.so"
        command = [found, *_flags(), *map(str, _SOURCES), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_S)
        made.chmod(0o755)
        with made.open("ab") as file:
            file.write(hashlib.sha256(made.read_bytes()).digest())  # loaders of ELF do not look behind its end
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    return len(content) > 32 and hashlib.sha256(content[:-32]).digest() == content[-32:]


def _folder() -> Path:
    """Returns the first folder for libraries in which nobody else can write."""
    named = os.environ.get("MWUF_CACHE_DIR")
    caches = [Path(named).expanduser()] if named else []
    with contextlib.suppress(RuntimeError):  # no home
        caches.append(Path.home() / ".cache" / "mwuf-dist")
    reasons = []
    for cache in caches:
        folder = Path(os.path.realpath(cache / "native"))
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        reason = others_may_write(folder)
        if reason is None:
            return folder
        reasons.append(reason)
    raise RuntimeError(f"no folder for it is this user's alone ({'; '.join(reasons)}): set MWUF_CACHE_DIR to one")


def others_may_write(path: Path) -> str | None:
    """Says who else could have put what is at a path; None where nobody could but this user and the system."""
    for place in (path, *path.parents):
        about = place.stat()
        if about.st_uid not in (os.geteuid(), 0):
            return f"{place} belongs to another user"
        is_sticky = place != path and bool(about.st_mode & stat.S_ISVTX)  # as /tmp: others cannot replace what is ours
        if not is_sticky and (about.st_mode & 0o002 or (about.st_mode & 0o020 and not _is_private(about.st_gid))):
            return f"others may write {place}"
    return None


def _is_private(group: int) -> bool:
    """Says whether a group is that of one user, as many systems give each one."""
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return group in (0, user.pw_gid) and found.gr_name == user.pw_name and not set(found.gr_mem) - {user.pw_name}


def _flags() -> tuple[str, ...]:
    return (*FLAGS, f"-march={os.environ.get('MWUF_NATIVE_ARCH') or 'native'}")


def _name(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    sources = (path.read_text(encoding="utf-8") for path in (*_SOURCES, *_HEADERS))
    parts = (*sources, *_flags(), version, platform.machine(), _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Reads what decides which instructions this processor knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    kinds = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
