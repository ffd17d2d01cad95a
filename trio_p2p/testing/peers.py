"""Whole peers in one Trio loop: real databases, real sessions, and links in memory that fail.

The wall clocks follow Trio's clock, each with an error of its own, so that under a mocked clock a
run is repeated exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn
from unittest import mock

import trio

from trio_p2p.errors import ReplicationError
from trio_p2p.ids import DocumentID, SourceID
from trio_p2p.model.conflict import ConflictResolver
from trio_p2p.model.document import Document, Revision
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.replication.checkpoint import Checkpoint, checkpoint_id
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.session import ActiveSession, CollectionPlan, Plan
from trio_p2p.store import changes, checkpoints, conflicts, documents, schema
from trio_p2p.store.database import Collection, Database
from trio_p2p.store.transaction import WriteTransaction
from trio_p2p.testing.databases import open_test_database
from trio_p2p.transport.memory import Faults, memory_transport_pair

_SECOND_NS: Final = 10**9
_START_NS: Final = 1_700_000_000 * _SECOND_NS
_MAP_BYTES: Final = 2**26
# Longer than any exchange here takes: only one that hangs gets here.
_HANG_S: Final = 10_000
_FEED_ROWS: Final = 1_000


class Witness:
    """Sees every revision that any store makes current, and checks it.

    A trivial merge adds the loser to the vector of one peer's copy alone, so the revision that all
    peers end with need not name every write that it was decided against. The witness can tell.
    """

    def __init__(self) -> None:
        self._vectors: dict[DocumentID, list[VersionVector]] = defaultdict(list)
        self._last: dict[SourceID, int] = defaultdict(int)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what is stored in this block."""
        put_revision = documents.put_revision

        def put(txn: WriteTransaction, number: int, name: DocumentID, revision: Revision) -> Any:
            sequence = put_revision(txn, number, name, revision)
            assert revision.version == revision.vector.greatest(), revision
            assert sequence > self._last[txn.source], (sequence, self._last[txn.source])
            self._last[txn.source] = sequence
            self._vectors[name].append(revision.vector)
            return sequence

        with mock.patch.object(documents, "put_revision", put):
            yield

    def covers(self, document_id: DocumentID, held: Iterable[Revision], version: Version) -> bool:
        """Whether the revisions include the version, or were made or chosen over it."""
        found = [revision.vector for revision in held]
        waiting = self._vectors[document_id]
        latest: dict[SourceID, int] = {}
        while found:
            for time, source in (version for vector in found for version in vector):
                latest[source] = max(time, latest.get(source, 0))
            found = [v for v in waiting if v.current.time <= latest.get(v.current.source, 0)]
            waiting = [v for v in waiting if v.current.time > latest.get(v.current.source, 0)]
        return version.time <= latest.get(version.source, 0)


class Node:
    """A peer: a database with a clock that is wrong by `skew_s`, reopened whenever it crashes."""

    database: Database

    def __init__(self, number: int, path: Path, skew_s: int) -> None:
        self.number = number
        self.skew_s = skew_s
        self._path = path
        self._crashed = trio.Event()
        self._opened = trio.Event()

    def __repr__(self) -> str:
        return f"<Node {self.number}>"

    @property
    def collection(self) -> Collection:
        """Where all its documents are."""
        return self.database.default_collection

    def clock(self) -> int:
        """Its wall clock in nanoseconds."""
        return _START_NS + round((trio.current_time() + self.skew_s) * _SECOND_NS)

    async def run(self) -> NoReturn:
        """Hold the database open. Cancelling: closes it."""
        await self._create()
        while True:
            async with open_test_database(
                self._path, map_size_max=_MAP_BYTES, clock=self.clock
            ) as self.database:
                self._opened.set()
                await self._crashed.wait()
            self._crashed = trio.Event()

    async def wait_open(self) -> None:
        """Wait until the database is open. Cancelling: safe."""
        await self._opened.wait()

    def crash(self) -> None:
        """Lose everything that was not committed; the database is opened again at once."""
        self._opened = trio.Event()
        self.database.engine.abort()
        self._crashed.set()

    def revisions(self) -> dict[DocumentID, Revision]:
        """Every document, tombstones included."""
        with self.database.engine.read() as txn:
            rows = changes.read_since(txn, self.collection.number, _zero(), _FEED_ROWS)
            stored = {
                row.document_id: documents.get(txn, self.collection.number, row.document_id)
                for row in rows
            }
        return {name: found.revision for name, found in stored.items() if found is not None}

    def waiting(self, document_id: DocumentID) -> list[Revision]:
        """Its revisions that wait for a resolver."""
        with self.database.engine.read() as txn:
            return conflicts.of_document(txn, self.collection.number, document_id)

    async def _create(self) -> None:
        """Make the database with an identity that is the same in every run."""

        def job(txn: WriteTransaction) -> None:
            identity = bytes([self.number + 1]) * 16
            txn.raw.put(schema.META_DATABASE_ID, identity, db=txn.tables.meta)
            txn.raw.put(schema.META_SOURCE_ID, identity, db=txn.tables.meta)

        async with open_test_database(
            self._path, map_size_max=_MAP_BYTES, clock=self.clock
        ) as database:
            await database.engine.write(job)
