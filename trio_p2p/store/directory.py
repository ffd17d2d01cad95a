"""The directory of a database: who has it open, and how its last use ended.

The file `lock` is held (`flock`) while the database is open. The system lets go of it when the
process dies, however it does. What stands in the file tells the next one to open the directory how
much of the rest it may trust:

* that the database was closed: everything is on the disk;
* a boot ID: it was open since that start of the machine, and never closed. If the machine was not
  started since, only the process died; what it wrote the system has, though perhaps not the disk.
  Otherwise the power was cut, or the system crashed: some disks lose then what they said they had.
* anything else: nothing is known, as of a directory that was copied.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from trio_p2p.errors import DatabaseBusyError
from trio_p2p.store import files
from trio_p2p.store.boot import boot_id

LOCK_FILE: Final = "lock"

_CLOSED: Final = b"closed"
_BYTES_MAX: Final = 64


class DirectoryLock:
    """Holds a directory, which is made if missing, until `release`."""

    def __init__(self, path: Path, *, sync: bool) -> None:
        """Take the lock. Raises: DatabaseBusyError if another one has it; OSError.

        Without `sync` nothing waits for the disk.
        """
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._sync = sync
        self._file = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._found = os.pread(self._file, _BYTES_MAX, 0)
        except BlockingIOError as exc:
            os.close(self._file)
            raise DatabaseBusyError(
                "the database is already open: close it there", path=str(path)
            ) from exc
        except BaseException:
            os.close(self._file)
            raise

    @property
    def was_closed(self) -> bool:
        """Whether the last use ended as it should, so that everything is on the disk."""
        return self._found == _CLOSED

    @property
    def is_suspect(self) -> bool:
        """Whether the files may have been damaged since they were last looked at whole."""
        return not self.was_closed and (self._found != boot_id() or not boot_id().strip())

    def note_use(self) -> None:
        """Note that the database is in use, and has been looked at. Raises OSError."""
        # Never takes room. From now on the disk must not tell that all is well.
        os.ftruncate(self._file, 0)
        if self.was_closed and self._sync:
            os.fsync(self._file)
        # Where the disk is full nothing is known of it next time: that costs time only.
        with suppress(OSError):
            os.pwrite(self._file, boot_id(), 0)

    def note_closed(self) -> None:
        """Note that everything is on the disk. Nothing may be written any more."""
        if not self._sync:
            return
        with suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _CLOSED, 0)

    def sync_entries(self, *names: str) -> None:
        """Unless the last use ended well: make durable that the directory is there, which files are
        in it, and what is in those of these names. Raises OSError.
        """
        if self.was_closed or not self._sync:
            return
        for name in names:
            files.sync_file(self._path / name)
        files.sync_directory(self._path)
        for parent in self._path.absolute().parents:
            # Most were there before, may belong to others, and be of file systems that cannot.
            with suppress(OSError):
                files.sync_directory(parent)

    def release(self) -> None:
        """Let others have the directory."""
        os.close(self._file)
