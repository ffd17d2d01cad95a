"""Files that outlive a power cut: what is written is on the disk before it gets its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from trio_p2p.errors import StoreError, StoreFullError

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def failure(message: str, path: Path, error: OSError) -> StoreError:
    """Our error for what the operating system refused; to be raised from its own."""
    kind = StoreFullError if is_for_room(error.errno) else StoreError
    return kind(message, path=str(path), reason=error.strerror or str(error))


def is_for_room(code: int | None) -> bool:
    """Whether a call failed because a disk, a quota or a file has reached its limit."""
    return code in _NO_ROOM


def can_grow(path: Path) -> bool:
    """Whether there is room for one more page in a file, as far as the system tells.

    Nobody else may write to it meanwhile.
    """
    if not hasattr(os, "posix_fallocate"):
        return os.statvfs(path).f_bavail > 0
    with path.open("r+b") as file:
        length = os.fstat(file.fileno()).st_size
        try:
            os.posix_fallocate(file.fileno(), length, os.sysconf("SC_PAGE_SIZE"))
        except OSError as exc:
            return not is_for_room(exc.errno)
        os.ftruncate(file.fileno(), length)
    return True


def sync_file(path: Path) -> None:
    """Make what was written to a file durable, by whomever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make what was created, renamed and removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a small file, in place of the one of that name: one or the other is there, whole."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file if it is there, durably."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
