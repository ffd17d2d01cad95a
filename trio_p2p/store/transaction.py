"""Transactions: a snapshot to read, and a change to write.

The functions of this package's other modules take one of these as their first argument. None may
live across an await: an open snapshot keeps every page that was current in it, and a write
transaction belongs to the thread that began it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

import lmdb

from trio_p2p.errors import StoreCorruptError, StoreError, StoreFullError
from trio_p2p.ids import SourceID
from trio_p2p.model.clock import HybridClock
from trio_p2p.model.version import Version
from trio_p2p.store.records import CollectionState
from trio_p2p.store.schema import Tables


class ReadTransaction:
    """One snapshot, as a context manager; `raw` gives memoryviews that die with it."""

    __slots__ = ("raw", "tables")

    def __init__(self, raw: lmdb.Transaction[memoryview], tables: Tables) -> None:
        self.raw = raw
        self.tables = tables

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


class WriteTransaction(ReadTransaction):
    """What a job may change. Counters and records alike vanish if the job raises."""

    __slots__ = ("changed", "clock", "collections", "source")

    def __init__(
        self,
        raw: lmdb.Transaction[memoryview],
        tables: Tables,
        clock: HybridClock,
        source: SourceID,
        collections: Mapping[int, CollectionState],
    ) -> None:
        """`collections` are as the jobs before this one left them."""
        super().__init__(raw, tables)
        self.clock = clock
        self.source = source
        self.changed: dict[int, CollectionState] = {}
        self.collections = collections

    def collection(self, number: int) -> CollectionState:
        """The collection's counters, to be changed in place."""
        state = self.changed.get(number)
        if state is None:
            state = self.changed[number] = replace(self.collections[number])
        return state

    def stamp(self) -> Version:
        """A new version by this database, later than all it has made or stored."""
        return Version(self.clock.now(), self.source)


def store_error(error: lmdb.Error) -> StoreError:
    """Our error for one of LMDB's; to be raised from it."""
    if isinstance(error, lmdb.MapFullError):
        return StoreFullError("the database has reached its size limit")
    damage = (
        lmdb.CorruptedError,
        lmdb.InvalidError,
        lmdb.PageNotFoundError,
        lmdb.PanicError,
        lmdb.VersionMismatchError,
    )
    if isinstance(error, damage):
        return StoreCorruptError("the data file is damaged", reason=str(error))
    return StoreError("the database failed", reason=str(error))
