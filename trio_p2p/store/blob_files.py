"""The files that blobs are kept in, each named by the digest of what it holds.

A file gets its name once it is whole and on the disk, so that one with a name never changes. Until
then it stands in a directory of its own: under a name of chance, which is removed at the next
opening, or under its digest, if it comes from elsewhere and can be resumed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from trio_p2p import limits
from trio_p2p.errors import InvalidDocumentError
from trio_p2p.store import files

BLOB_DIRECTORY: Final = "blobs"
UNFINISHED_DIRECTORY: Final = "unfinished"

_NAME_CHARACTERS: Final = 40


class BlobFile(NamedTuple):
    """A file that is there: its digest, when it was saved (nanoseconds since 1970), its size."""

    sha1: bytes
    saved_ns: int
    length: int


class BlobFiles:
    """The blob files of one database. What it does blocks; any thread may use it."""

    def __init__(self, directory: Path, now_ns: Callable[[], int]) -> None:
        self._directory = directory / BLOB_DIRECTORY
        self._unfinished = directory / UNFINISHED_DIRECTORY
        self._now_ns = now_ns
        # Between looking at a file and removing it, nobody may save it anew.
        self._naming = threading.Lock()

    def path(self, sha1: bytes) -> Path:
        """Where a blob is, or would be."""
        return self._directory / sha1.hex()

    def has(self, sha1: bytes) -> bool:
        """Whether a blob is there."""
        # A revision may name thousands: building a path takes as long as looking for it.
        return os.path.isfile(f"{self._directory}/{sha1.hex()}")

    def length(self, sha1: bytes) -> int:
        """How many bytes a blob has; 0 if it is not there."""
        try:
            return self.path(sha1).stat().st_size
        except OSError:
            return 0

    def begin(self) -> UnfinishedBlob:
        """Begin to save one. Raises OSError."""
        self._unfinished.mkdir(exist_ok=True)
        return UnfinishedBlob(self._unfinished / secrets.token_hex(16), self._name)

    def resume(self, sha1: bytes) -> UnfinishedBlob:
        """Go on with a blob that comes from elsewhere, where it was left. Raises OSError.

        Only one at a time may write a blob.
        """
        self._unfinished.mkdir(exist_ok=True)
        return UnfinishedBlob(self._unfinished / sha1.hex(), self._name, resumable=True)

    def all(self) -> Iterator[BlobFile]:
        """Every blob that is there. Raises OSError."""
        return _listed(self._directory)

    def remove_unless_saved_anew(self, blob: BlobFile, is_in_hand: Callable[[bytes], bool]) -> bool:
        """Remove a blob, unless it is in hand or was saved since it was listed.

        Returns whether it is gone. Raises: OSError.
        """
        path = self.path(blob.sha1)
        with self._naming:
            # Not earlier: who saves it takes it in hand before its file gets its name.
            if is_in_hand(blob.sha1):
                return False
            try:
                if path.stat().st_mtime_ns != blob.saved_ns:
                    return False
                path.unlink()
            except FileNotFoundError:
                pass
        return True

    def drop_left(self, before_ns: int) -> None:
        """Remove blobs that nobody went on with since. Raises OSError."""
        for blob in _listed(self._unfinished):
            if blob.saved_ns < before_ns:
                (self._unfinished / blob.sha1.hex()).unlink()

    def copy_to(self, directory: Path) -> None:
        """Copy all blobs to another database's directory, durably. Raises OSError."""
        target = BlobFiles(directory, self._now_ns)
        for blob in self.all():
            with self.path(blob.sha1).open("rb") as source:
                copy = target.begin()
                with copy:
                    shutil.copyfileobj(source, copy.file)
                    copy.finish_as(blob.sha1)
        clear_unfinished(directory)

    def _name(self, unfinished: Path, sha1: bytes) -> None:
        if not self._directory.exists():
            self._directory.mkdir(exist_ok=True)
            files.sync_directory(self._directory.parent)
        now_ns = self._now_ns()
        os.utime(unfinished, ns=(now_ns, now_ns))
        # In place of one that is there already: should that be damaged, it is whole from now on.
        with self._naming:
            unfinished.replace(self.path(sha1))
        files.sync_directory(self._directory)


def clear_unfinished(directory: Path) -> None:
    """Remove from a database's directory what an earlier process did not finish.

    What can be resumed stays. Raises OSError.
    """
    unfinished = directory / UNFINISHED_DIRECTORY
    if not unfinished.exists():
        return
    for path in unfinished.iterdir():
        if len(path.name) != _NAME_CHARACTERS:
            path.unlink()


def _listed(directory: Path) -> Iterator[BlobFile]:
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if len(entry.name) == _NAME_CHARACTERS:
                stat = entry.stat()
                yield BlobFile(bytes.fromhex(entry.name), stat.st_mtime_ns, stat.st_size)


class UnfinishedBlob:
    """A blob being saved, as a context manager that closes it.

    Unless it was finished its file is removed then; or, where it can be resumed, kept if there is
    anything in it.
    """

    def __init__(
        self, path: Path, name: Callable[[Path, bytes], None], *, resumable: bool = False
    ) -> None:
        self.length = 0
        self._path = path
        self._name = name
        self._resumable = resumable
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self.file: BinaryIO = path.open("a+b" if resumable else "xb")
        if resumable:
            self._read_what_is_there()

    def __enter__(self) -> UnfinishedBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        # Nothing of a blob is nothing to go on with, and a peer may name any number of them.
        if not self._resumable or not self.length:
            self._path.unlink(missing_ok=True)

    @property
    def sha1(self) -> bytes:
        """The digest of what was written so far."""
        return self._sha1.digest()

    def write(self, data: bytes) -> None:
        """Append. Raises OSError, InvalidDocumentError."""
        if self.length + len(data) > limits.BLOB_BYTES_MAX:
            raise InvalidDocumentError("a blob is too large", bytes_max=limits.BLOB_BYTES_MAX)
        self._sha1.update(data)
        self.length += len(data)
        self.file.write(data)

    def restart(self) -> None:
        """Forget what was written. Raises OSError."""
        self.file.truncate(0)
        self.length = 0
        self._sha1 = hashlib.sha1(usedforsecurity=False)

    def finish(self) -> bytes:
        """Give it its name, durably; returns the digest. Raises OSError."""
        self.finish_as(self.sha1)
        return self.sha1

    def finish_as(self, sha1: bytes) -> None:
        """As `finish`, where the digest is known. Raises OSError."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._name(self._path, sha1)

    def _read_what_is_there(self) -> None:
        self.file.seek(0)
        while part := self.file.read(limits.BLOB_PART_BYTES):
            self._sha1.update(part)
            self.length += len(part)
