"""One writer per folder: the second is told who the first is.

The lock is the kernel's (`flock`), so it ends with its process however that ends. A kernel knows nothing of other
hosts on every file system that they share, so the file that is locked is a lease too: it says who holds it, and the
holder renews its time of change. The lease of another host counts until it has not been renewed for `LEASE_S`.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mwuf_dist.config import UserError
from mwuf_dist.files import make_folder, put_in_order

LEASE_S = 30.0
_RENEW_S = 5.0
# A process that was killed a moment ago may still hold its lock.
GRACE_S = 3.0
_SECONDS_BETWEEN_TRIES = 0.1
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def locked(
    folder: Path, command: str, wait: Callable[[str], None] | None = None, advice: str = "name another --output"
) -> Iterator[None]:
    """Holds the lock of a folder that is to be written, which need not exist; removes what a killed write has left.

    The lock is the file `.NAME.lock` beside the folder, or `.lock` in it where nothing can be written beside it. Where
    neither can be written, neither can the folder, and whoever tries is told.

    Args:
        folder: to be written; a link is followed.
        command: what the lock says of its holder.
        wait: told once who is waited for, instead of an error.
        advice: what the user can do where nothing can be written there.

    Raises:
        UserError: somebody else holds it.
    """
    folder = Path(os.path.realpath(folder))
    made = next((path for path in reversed(folder.parents) if not path.exists()), None)
    lock = _lock_of(folder, advice)
    if lock is None:
        yield
        return
    descriptor = _take(lock, folder, command, wait)
    ended = threading.Event()
    renewal = threading.Thread(target=_renew, args=(descriptor, ended), daemon=True)
    renewal.start()
    try:
        with contextlib.suppress(OSError):  # whoever writes will say so
            put_in_order(folder)
        yield
    finally:
        ended.set()
        renewal.join()
        with contextlib.suppress(OSError):
            if _is_at(lock, descriptor):
                lock.unlink()
        os.close(descriptor)
        if made is not None:  # folders for the lock alone
            for path in (path for path in folder.parents if path == made or made in path.parents):
                with contextlib.suppress(OSError):
                    path.rmdir()


def _lock_of(folder: Path, advice: str) -> Path | None:
    for lock in (folder.parent / f".{folder.name}.lock", folder / ".lock"):
        try:
            if lock.parent == folder.parent:
                make_folder(lock.parent)
            os.close(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666))
            return lock
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise UserError(f"{folder}: cannot be written ({error.strerror}): {advice}") from None
    return None


def _take(lock: Path, folder: Path, command: str, wait: Callable[[str], None] | None) -> int:
    """Returns the descriptor of the lock file, locked and with our name in it."""
    deadline, seen = time.monotonic() + GRACE_S, 0
    sign, sign_at = 0, time.monotonic()
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        is_held, is_alive, holder = False, True, _holder(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            is_held = error.errno not in _NO_LOCKS
        if not is_held:
            if not _is_at(lock, descriptor):  # its holder has removed it meanwhile
                os.close(descriptor)
                continue
            renewed = os.fstat(descriptor).st_mtime_ns
            is_free = not holder or _is_of_this_host(holder) or _now_ns(lock.parent) - renewed > LEASE_S * 1e9
            if is_free:
                try:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(_us(command)).encode(), 0)
                except OSError:  # the disk is full
                    lock.unlink()
                    os.close(descriptor)
                    raise
                return descriptor
            is_alive = seen not in (0, renewed)  # renewed while we looked on
            deadline, seen = time.monotonic(), renewed
        if sign != (sign := os.fstat(descriptor).st_mtime_ns):
            sign_at = time.monotonic()
        os.close(descriptor)
        if time.monotonic() - sign_at > LEASE_S:
            raise UserError(
                f"{_told(folder, holder)}, which gives no sign for {LEASE_S:g} s: it is stopped or hangs; let it go "
                "on, or end it"
            )
        if is_alive and (wait is not None or time.monotonic() >= deadline):
            if wait is None:
                raise UserError(f"{_told(folder, holder)}: wait for it to end, or name another --output")
            wait(_told(folder, holder))
            wait = _silent
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _silent(_text: str) -> None:
    pass


def _told(folder: Path, holder: dict[str, Any]) -> str:
    who = {key: ascii(holder.get(key, "?"))[:100].strip("'") for key in ("command", "pid", "host", "since")}
    return (
        f"{folder}: is being written by `mwuf {who['command']}` (process {who['pid']} on {who['host']}, since "
        f"{who['since']})"
    )


def _us(command: str) -> dict[str, Any]:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "since": since}


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        values = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _boot() -> str:
    """Tells kernels apart, which containers of one host share under names of their own."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _is_of_this_host(holder: dict[str, Any]) -> bool:
    """Says whether our kernel would know if it lived.

    It does not where the host has the same name and was started anew.
    """
    return holder.get("host") == socket.gethostname() or (holder.get("boot") == _boot() != "")


def _is_at(lock: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(lock), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _now_ns(folder: Path) -> int:
    """Returns the time by the clock that stamps files in a folder, which may be another host's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _renew(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_S):
        with contextlib.suppress(OSError):
            os.utime(descriptor)
