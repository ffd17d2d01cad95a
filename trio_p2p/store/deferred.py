"""Commits that do not wait for the disk, and what keeps the data file whole all the same.

LMDB never writes over a page of the newest state, or of one that a reader holds, but for the two
meta pages, which tell where the newest trees begin. Where nobody waits for the disk, a power cut
may leave those pointing at pages that never got there. So a state is held:

- A reader is kept open at the held state: none of its pages is written over.
- All pages are on the disk, and the meta pages of that state stand in a file beside.

Now and then a newer state is held in its place, in this order: a reader is opened and the meta
pages are copied between two commits; the data file is synced; the copy replaces the file beside;
the older reader is closed. Until the file is replaced the older state is whole, and from then on
the newer one is.

If the machine went down since (another boot ID), an opening puts the held meta pages back. Later
commits are lost then, and peers may have seen them, so the database takes a new identity. If only
the process died, the system still has every page, and nothing is lost.

A disk that fails to sync counts as a power cut: what could not be written the system may forget,
and say at the next try that all is well.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from trio_p2p.errors import StoreCorruptError, StoreError, StoreFailedError
from trio_p2p.store import files, identity
from trio_p2p.store.boot import BOOT_ID_BYTES, boot_id

T = TypeVar("T")

HELD_FILE: Final = "held"

_HASH_BYTES: Final = 32
# In place of a boot ID: the held state is safe and nothing else, whatever happened since.
_UNTRUSTED: Final = b"-".ljust(BOOT_ID_BYTES)
_NOT_KEPT: Final = "the file that holds the last safe state could not be kept"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """A state of the data file: a reader that holds its pages, and its meta pages."""

    reader: lmdb.Transaction[bytes]
    metas: bytes


class Holder:
    """Holds a state of an environment that was opened without `sync`."""

    def __init__(self, env: lmdb.Environment, data_file: Path) -> None:
        """Hold the present state. No transaction may be open."""
        self._env = env
        # The writer may want its pages back while another thread waits for the disk.
        self._holding = threading.Lock()
        self._data_file = data_file
        self._held = self.capture()
        self._doubtful: State | None = None
        """One that is held too, since writing the file beside failed: it may tell of either."""
        self._sync()
        self._write(self._held, boot_id())

    def capture(self) -> State:
        """The present state. To be called when no commit can come between. Raises StoreError."""
        try:
            with self._data_file.open("rb") as file:
                metas = file.read(2 * self._env.stat()["psize"])
        except OSError as exc:
            raise files.failure(_NOT_KEPT, self._data_file.parent, exc) from exc
        return State(self._env.begin(), metas)

    def hold(self, state: State) -> None:
        """Hold another state; what was committed before it is durable when this returns.

        Raises: StoreFailedError if the disk failed, and nothing may be written any more; StoreError
        if the state could not be noted. The state before is still held then.
        """
        with self._holding:
            try:
                self._sync()
                if self._doubtful is not None:
                    # It first, or there would be more and more of them.
                    self._replace_by(self._doubtful)
                self._replace_by(state)
            except BaseException:
                if state is not self._doubtful:
                    state.reader.abort()
                raise

    def ask(self, question: Callable[[lmdb.Transaction[bytes]], T]) -> list[T]:
        """The answers of each state that is held."""
        with self._holding:
            return [question(state.reader) for state in (self._held, self._doubtful) if state]

    def end(self) -> None:
        """Make everything durable: from now on the data file is whole by itself.

        Raises: StoreFailedError, StoreError.
        """
        with self._holding:
            self._sync()
            try:
                files.remove_file(self._held_file)
            except OSError as exc:
                raise files.failure(_NOT_KEPT, self._data_file.parent, exc) from exc

    @property
    def _held_file(self) -> Path:
        return self._data_file.with_name(HELD_FILE)

    def _replace_by(self, state: State) -> None:
        self._doubtful = state
        self._write(state, boot_id())
        self._held.reader.abort()
        self._held, self._doubtful = state, None

    def _sync(self) -> None:
        """Sync the data file. If that fails nothing but the held state is to be trusted."""
        try:
            self._env.sync(True)
        except lmdb.Error as exc:
            try:
                self._write(self._held, _UNTRUSTED)
            except StoreError as second:
                logger.error("the state that is safe could not be marked: %s", second)
            raise StoreFailedError(
                "the disk failed, so the database was closed, and its last second may be lost: "
                "open it again",
                path=str(self._data_file.parent),
                reason=str(exc),
            ) from exc

    def _write(self, state: State, boot: bytes) -> None:
        """Write the file beside. Raises StoreError."""
        content = boot + state.metas
        try:
            files.write_file(self._held_file, _hash(content) + content)
        except OSError as exc:
            raise files.failure(_NOT_KEPT, self._data_file.parent, exc) from exc


def recover(data_file: Path) -> None:
    """Before the environment is opened: make the data file whole if it was not closed.

    Raises: StoreCorruptError if the file beside it is damaged.
    """
    held_file = data_file.with_name(HELD_FILE)
    if not held_file.exists():
        return
    boot, metas = _read(held_file)
    with data_file.open("r+b") as file:
        if boot != boot_id() or not boot.strip():
            # First of all: an interruption must not let it be forgotten.
            identity.mark(data_file.parent)
            file.write(metas)
            file.flush()
        os.fsync(file.fileno())
    files.remove_file(held_file)


def _read(held_file: Path) -> tuple[bytes, bytes]:
    raw = held_file.read_bytes()
    told, content = raw[:_HASH_BYTES], raw[_HASH_BYTES:]
    if _hash(content) != told:
        raise StoreCorruptError(
            "the file that holds the last safe state is damaged: restore a backup",
            path=str(held_file.parent),
        )
    return content[:BOOT_ID_BYTES], content[BOOT_ID_BYTES:]


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
