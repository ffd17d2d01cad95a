"""A disk that fails under an open LMDB environment, by what its file descriptors lead to.

LMDB writes its pages through one descriptor and, where commits wait for the disk, the meta pages
through another one; it reads through a mapping. So other files can be put under its descriptors:
reads go on, and writes meet what such a file has for them. Linux only: it finds the descriptors in
`/proc`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from trio_p2p.store.environment import DATA_FILE


class Fault(Enum):
    """What fails: the file put under a descriptor, how it is opened, and under which ones."""

    PAGES_REFUSED = ("/dev/null", os.O_RDONLY, "pages")
    """No page can be written (EBADF)."""
    DISK_FULL = ("/dev/full", os.O_RDWR, "pages")
    """No page can be written (ENOSPC)."""
    SYNC_FAILS = ("/dev/null", os.O_RDWR, "pages")
    """Pages are taken and lost, and syncing fails (EINVAL)."""
    META_REFUSED = ("/dev/null", os.O_RDONLY, "meta")
    """Pages get to the disk, but not the meta page that tells of them (EBADF)."""
    META_FULL = ("/dev/full", os.O_RDWR, "meta")
    """The same, as on a disk that is full (ENOSPC)."""


@contextmanager
def failing(path: Path, fault: Fault) -> Iterator[None]:
    """Let the disk fail under the database that is open in a directory, as long as the block runs.

    It may be closed meanwhile.
    """
    file, flags, which = fault.value
    descriptor = _descriptors(path)[which]
    kept = os.dup(descriptor)
    other = os.open(file, flags | os.O_CLOEXEC)
    os.dup2(other, descriptor, inheritable=False)
    try:
        yield
    finally:
        # Unless it was closed.
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.fstat(other)):
                os.dup2(kept, descriptor, inheritable=False)
        os.close(other)
        os.close(kept)


def _descriptors(path: Path) -> dict[str, int]:
    """LMDB's descriptors of a data file, by what is written through them."""
    found = {}
    data_file = str(path.resolve() / DATA_FILE)
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # The one of the listing itself.
        if target == data_file:
            flags = fcntl.fcntl(int(name), fcntl.F_GETFL)
            if flags & os.O_ACCMODE != os.O_RDONLY:
                found["meta" if flags & os.O_DSYNC else "pages"] = int(name)
    return found
