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
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import lmdb

from trio_p2p.errors import StoreCorruptError, StoreError
from trio_p2p.store import files, identity
from trio_p2p.store.transaction import store_error

T = TypeVar("T")

HELD_FILE: Final = "held"

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BOOT_ID_BYTES: Final = 36
_HASH_BYTES: Final = 32


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
        self._make_durable(self._held)

    def capture(self) -> State:
        """The present state. To be called when no commit can come between."""
        reader = self._env.begin()
        with self._data_file.open("rb") as file:
            metas = file.read(2 * self._env.stat()["psize"])
        return State(reader, metas)

    def hold(self, state: State) -> None:
        """Hold another state; what was committed before it is durable when this returns.

        Raises: StoreError; the state before is still held then.
        """
        with self._holding:
            self._make_durable(state)
            self._held.reader.abort()
            self._held = state

    def ask(self, question: Callable[[lmdb.Transaction[bytes]], T]) -> T:
        """The answer of the state that is held."""
        with self._holding:
            return question(self._held.reader)

    def end(self) -> None:
        """Make everything durable: from now on the data file is whole by itself."""
        self._env.sync(True)
        files.remove_file(self._held_file)
        self._held.reader.abort()

    @property
    def _held_file(self) -> Path:
        return self._data_file.with_name(HELD_FILE)

    def _make_durable(self, state: State) -> None:
        boot = boot_id()
        content = _hash(boot + state.metas) + boot + state.metas
        try:
            self._env.sync(True)
            files.write_file(self._held_file, content)
        except OSError as exc:
            raise StoreError("the disk failed", reason=exc.strerror) from exc
        except lmdb.Error as exc:
            raise store_error(exc) from exc


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


def boot_id() -> bytes:
    """What differs after each start of the machine; blank where the system does not tell.

    There every opening after a process died counts as one after a power cut.
    """
    try:
        found = _BOOT_ID.read_bytes()
    except OSError:
        found = b""
    return found[:_BOOT_ID_BYTES].ljust(_BOOT_ID_BYTES)


def _read(held_file: Path) -> tuple[bytes, bytes]:
    raw = held_file.read_bytes()
    told, content = raw[:_HASH_BYTES], raw[_HASH_BYTES:]
    if _hash(content) != told:
        raise StoreCorruptError(
            "the file that holds the last safe state is damaged: restore a backup",
            path=str(held_file.parent),
        )
    return content[:_BOOT_ID_BYTES], content[_BOOT_ID_BYTES:]


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
