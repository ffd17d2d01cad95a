"""Transactions: a snapshot to read, and a change to write.

The functions of this package's other modules take one of these as their first argument. None may
live across an await: an open snapshot keeps every page that was current in it, and a write
transaction belongs to the thread that began it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Final, NamedTuple, Self

import lmdb

from trio_p2p import limits
from trio_p2p.errors import (
    CollectionNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
)
from trio_p2p.ids import SourceID
from trio_p2p.model.clock import HybridClock
from trio_p2p.model.version import Version
from trio_p2p.store import files
from trio_p2p.store.blob_files import BlobFiles
from trio_p2p.store.records import CollectionState, Identity
from trio_p2p.store.schema import Tables


class PeerFacts(NamedTuple):
    """Whether any peer is known to have any revision, whether any pushes or pulls by itself, and
    the last mark in a collection.
    """

    collection: int
    is_any_known: bool
    is_any_served: bool
    last_mark: int


class ReadTransaction:
    """One snapshot, as a context manager; `raw` gives memoryviews that die with it."""

    __slots__ = ("now_ns", "raw", "tables")

    def __init__(
        self, raw: lmdb.Transaction[memoryview], tables: Tables, now_ns: Callable[[], int]
    ) -> None:
        self.raw = raw
        self.tables = tables
        self.now_ns = now_ns
        """Reads the wall clock: nanoseconds since 1970."""

    def rows(self, table: lmdb._Database, prefix: bytes) -> Iterator[tuple[memoryview, memoryview]]:
        """The keys that begin with a prefix, with their records; they must not change meanwhile."""
        cursor = self.raw.cursor(table)
        if cursor.set_range(prefix):
            length = len(prefix)
            for key, value in cursor:
                if key[:length] != prefix:
                    break
                yield key, value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.raw.abort()
        if isinstance(error, lmdb.Error):
            raise store_error(error) from error
        if isinstance(error, UNREADABLE):
            raise unreadable(error) from error


class WriteTransaction(ReadTransaction):
    """What a job may change. Counters and records alike vanish if the job raises."""

    __slots__ = ("blob_files", "changed", "clock", "collections", "grew", "identity", "peers")

    def __init__(
        self,
        raw: lmdb.Transaction[memoryview],
        tables: Tables,
        now_ns: Callable[[], int],
        clock: HybridClock,
        identity: Identity,
        collections: Mapping[int, CollectionState | None],
        blob_files: BlobFiles,
    ) -> None:
        """`identity` and `collections` are as the jobs before this one left them."""
        super().__init__(raw, tables, now_ns)
        self.clock = clock
        self.identity = identity
        self.collections = collections
        """By number; None stands for one that was deleted."""
        self.blob_files = blob_files
        self.changed: dict[int, CollectionState | None] = {}
        self.grew = 0
        """By how many bytes at most, of what the size limit may refuse."""
        self.peers: PeerFacts | None = None
        """What `bases` found out about peers and asks again with every put."""

    @property
    def source(self) -> SourceID:
        """The author of the versions made here."""
        return self.identity.source

    def collection(self, number: int) -> CollectionState:
        """The collection's counters, to be changed in place. Raises CollectionNotFoundError."""
        if number in self.changed:
            state = self.changed[number]
        else:
            state = self.collections.get(number)
            if state is not None:
                state = self.changed[number] = replace(state)
        if state is None:
            raise CollectionNotFoundError("the collection was deleted")
        return state

    def check_collection(self, number: int) -> None:
        """Raises CollectionNotFoundError for a collection that was deleted, also in this one."""
        if self.changed.get(number, self.collections.get(number)) is None:
            raise CollectionNotFoundError("the collection was deleted")

    def note_growth(self, record_bytes: int) -> None:
        """Note that a record of this size was stored, which the size limit may refuse."""
        self.grew += record_bytes + limits.RECORD_GROWTH_BYTES_MAX

    def stamp(self) -> Version:
        """A new version by this database, later than all it has made or stored."""
        return Version(self.clock.now(), self.source)


# What comes of bytes that keys and small records never hold.
UNREADABLE: Final = (struct.error, UnicodeDecodeError)


def unreadable(error: Exception) -> StoreError:
    """Our error for stored bytes that make no sense; to be raised from the one they caused."""
    return StoreCorruptError("the data file is damaged: restore a backup", reason=str(error))


def system_code(error: lmdb.Error) -> int:
    """The `errno` that LMDB passed on, 0 if the error is its own."""
    return max(getattr(error, "code", 0), 0)


def store_error(error: lmdb.Error) -> StoreError:
    """Our error for one of LMDB's; to be raised from it."""
    if isinstance(error, lmdb.MapFullError):
        return StoreFullError(
            "the database has reached its size limit: delete something, or open it with more"
        )
    damage = (
        lmdb.CorruptedError,
        lmdb.InvalidError,
        lmdb.PageNotFoundError,
        lmdb.VersionMismatchError,
    )
    if isinstance(error, damage):
        return StoreCorruptError("the data file is damaged: restore a backup", reason=str(error))
    if files.is_for_room(system_code(error)):
        return StoreFullError("the disk is full: make room on it", reason=str(error))
    return StoreError("the database failed", reason=str(error))
