"""Peers in memory: databases that crash, forget and come back, with wall clocks that are wrong.

The wall clocks follow Trio's clock, each with an error of its own, so that under a mocked clock a
run is repeated exactly.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, NoReturn, TypeVar
from unittest import mock
from uuid import UUID

import trio

from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.document import Revision
from trio_p2p.store import changes, conflicts, documents, identity, schema
from trio_p2p.store.database import Collection, Database
from trio_p2p.store.engine import Engine, open_engine
from trio_p2p.store.records import ChangeRow
from trio_p2p.store.transaction import WriteTransaction
from trio_p2p.testing.databases import run_in_place

T = TypeVar("T")

DEFAULT: Final = "_default"

_SECOND_NS: Final = 10**9
_START_NS: Final = 1_700_000_000 * _SECOND_NS
_MAP_BYTES: Final = 2**26
_FEED_ROWS: Final = 1_000


class Name(NamedTuple):
    """What all peers call a document: its collection and its ID."""

    collection: str
    document: DocumentID


class Node:
    """A peer: a database that is opened again whenever it crashes.

    Its clock is wrong by `skew_s`, and each of its commits takes `commit_s`. `on_commit` is called
    after each.
    """

    database: Database

    def __init__(
        self,
        number: int,
        path: Path,
        skew_s: int,
        *,
        collections: Iterable[str] = (),
        backup: Path | None = None,
    ) -> None:
        """`collections` are made beside the default one, unless it begins with a `backup`."""
        self.number = number
        self.skew_s = skew_s
        self.commit_s = 0.0
        self.commits_left: int | None = None
        """After so many more commits it crashes."""
        self.permits_deltas = True
        """In sessions that begin from now on."""
        self.on_commit: Callable[[], None] = lambda: None
        self._collections = tuple(collections)
        self._path = path
        self._copies = 0
        self._replacement = backup
        self._crashed = trio.Event()
        self._opened = trio.Event()

    def __repr__(self) -> str:
        return f"<Node {self.number}>"

    # --- What it holds ---------------------------------------------------------------------------

    @property
    def collection(self) -> Collection:
        """The default collection."""
        return self.database.default_collection

    @property
    def collections(self) -> list[Collection]:
        """All collections that it has now."""
        return self.database.collections()

    @property
    def is_open(self) -> bool:
        """Whether its database is open: not so for a moment after a crash."""
        return self._opened.is_set() and not self.database.engine.closed

    def clock(self) -> int:
        """Its wall clock in nanoseconds."""
        return _START_NS + round((trio.current_time() + self.skew_s) * _SECOND_NS)

    def feed(self, collection: Collection) -> list[ChangeRow]:
        """The latest change of every document of a collection."""
        with self.database.engine.read() as txn:
            return changes.read_since(txn, collection.number, Sequence(0), _FEED_ROWS).rows

    def revision(self, name: Name) -> Revision | None:
        """The document, or its tombstone."""
        collection = self.find(name.collection)
        if collection is None:
            return None
        with self.database.engine.read() as txn:
            stored = documents.get(txn, collection.number, name.document)
        return stored.revision if stored else None

    def revisions(self) -> dict[Name, Revision]:
        """Every document, tombstones included."""
        found: dict[Name, Revision] = {}
        for collection in self.collections:
            for row in self.feed(collection):
                name = Name(collection.full_name, row.document_id)
                revision = self.revision(name)
                if revision is not None:
                    found[name] = revision
        return found

    def waiting(self, name: Name) -> list[Revision]:
        """Revisions of a document that wait for a resolver."""
        collection = self.find(name.collection)
        if collection is None:
            return []
        with self.database.engine.read() as txn:
            return conflicts.of_document(txn, collection.number, name.document)

    def held(self, name: Name) -> list[Revision]:
        """Every revision of a document that is here, current or waiting."""
        current = self.revision(name)
        return self.waiting(name) + ([current] if current else [])

    def read_blob(self, sha1: bytes) -> bytes:
        """The content of a blob, as it is on the disk. Raises FileNotFoundError."""
        return self.database.engine.blob_files.path(sha1).read_bytes()

    def find(self, full_name: str) -> Collection | None:
        """The collection of this name, if it has one."""
        return next((c for c in self.collections if c.full_name == full_name), None)

    # --- Life ------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Hold the database open. Cancelling: closes it."""
        if self._replacement is None:
            await self._create()
        while True:
            if self._replacement is not None:
                shutil.rmtree(self._path, ignore_errors=True)
                shutil.copytree(self._replacement, self._path)
                self._replacement = None
            async with self._open() as engine:
                self.database = Database(engine, delta_sync=True)
                self._opened.set()
                await self._crashed.wait()
            self._crashed = trio.Event()

    async def wait_open(self) -> None:
        """Wait until the database is open. Cancelling: safe."""
        await self._opened.wait()

    def crash(self) -> None:
        """Lose everything that was not committed; the database is opened again at once."""
        if not self.is_open:
            return
        self._opened = trio.Event()
        self.database.engine.abort()
        self._crashed.set()

    def copy(self) -> Path:
        """Copy the directory as somebody would by hand: with its identity. For `replace`."""
        target = self._next_copy()
        # No commit runs meanwhile: they run in this thread.
        shutil.copytree(self._path, target, ignore=shutil.ignore_patterns("lock*"))
        return target

    async def back_up(self) -> Path:
        """Make a backup, which takes another identity when it is opened. For `replace`."""
        target = self._next_copy()
        await self.database.backup(target)
        return target

    def replace(self, copy: Path) -> None:
        """Crash, and go on with what a copy of the directory holds."""
        if self.is_open:
            self._replacement = copy
            self.crash()

    def _next_copy(self) -> Path:
        self._copies += 1
        return self._path.with_name(f"{self._path.name}-copy-{self._copies}")

    async def _create(self) -> None:
        """Make the database with an identity that is the same in every run."""

        def job(txn: WriteTransaction) -> None:
            made = bytes([self.number + 1]) * 16
            txn.raw.put(schema.META_DATABASE_ID, made, db=txn.tables.meta)
            txn.raw.put(schema.META_SOURCE_ID, made, db=txn.tables.meta)

        async with self._open() as engine:
            await engine.write(job)
            for name in self._collections:
                await Database(engine).create_collection(name)

    def _open(self) -> AbstractAsyncContextManager[Engine]:
        return open_engine(
            self._path,
            map_size_max=_MAP_BYTES,
            clock=self.clock,
            run_sync=self._run_slowly,
            sync=False,
        )

    async def _run_slowly(self, function: Callable[..., T], *args: Any) -> T:
        await trio.sleep(self.commit_s)
        result = await run_in_place(function, *args)
        if self.is_open:
            self.on_commit()
        return result


@contextmanager
def repeatable_identities() -> Iterator[None]:
    """In this block, databases that take a new identity take the same ones in every run."""
    made = iter(range(1, 10**9))

    def next_bytes(size: int) -> bytes:
        return hashlib.sha256(b"%d" % next(made)).digest()[:size]

    with (
        mock.patch.object(identity, "os", SimpleNamespace(urandom=next_bytes)),
        mock.patch.object(
            identity, "uuid", SimpleNamespace(uuid4=lambda: UUID(bytes=next_bytes(16)))
        ),
    ):
        yield
