"""The facade that users hold: open a database, and what concerns it as a whole."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

import trio

from trio_p2p import ids, limits
from trio_p2p.errors import CollectionNotFoundError, ConfigurationError
from trio_p2p.ids import DatabaseID
from trio_p2p.model.blob import DEFAULT_CONTENT_TYPE
from trio_p2p.store import catalogue, garbage, identity, schema
from trio_p2p.store.blobs import Blob
from trio_p2p.store.collection import Change, ChangeIterator, Collection, DocumentIterator
from trio_p2p.store.edits import Batch, Body, Expected
from trio_p2p.store.engine import Engine, open_engine
from trio_p2p.store.services import Services
from trio_p2p.store.transaction import WriteTransaction
from trio_p2p.store.turns import Turns

__all__ = [
    "Batch",
    "Blob",
    "Body",
    "Change",
    "ChangeIterator",
    "Collection",
    "CompactResult",
    "Database",
    "DatabaseStatistics",
    "DocumentIterator",
    "Expected",
    "open_database",
    "open_facade",
]


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """`commits` and `writes` count since opening.

    `documents` are live ones, `conflicts` revisions that wait for a resolver, `expirations`
    documents that will be purged. Of `file_bytes` on the disk, `bytes_used` hold something;
    `bytes_max` is the limit on those.
    """

    collections: int
    documents: int
    conflicts: int
    expirations: int
    bytes_used: int
    bytes_max: int
    file_bytes: int
    commits: int
    writes: int


@dataclass(frozen=True, slots=True)
class CompactResult:
    """What was dropped. `bytes_freed` are of the data file, where later writes use them."""

    bytes_freed: int
    blobs_removed: int
    blob_bytes_freed: int


@asynccontextmanager
async def open_database(
    path: str | PathLike[str],
    *,
    create: bool = True,
    map_size_max: int = limits.MAP_SIZE_BYTES_DEFAULT,
    durable: bool = True,
    delta_sync: bool = False,
    clock: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Database]:
    """Open the database in a directory, which is made with its parents if missing.

    `map_size_max` limits what the database holds, in bytes; a reserve beyond it is for making room
    and for checkpoints. Where addresses are too scarce for that (a 32-bit system, `ulimit -v`) the
    limit is lowered, as `statistics` tells. If it is not `durable`, writes do not wait for the
    disk: all survive the death of the process, but a power cut takes those of about the last second
    with it, and the database takes a new identity then. `delta_sync` permits replications to
    send and take only what changed in documents, where they enable it too. `clock` reads the wall
    clock in nanoseconds since 1970.

    Leaving the block stops the listeners and replicators that still use the database, finishes the
    writes that were begun, then closes; what the body raises leaves as it was.

    Raises: DatabaseNotFoundError if it is missing and `create` is not set; DatabaseBusyError if it
    is already open; AddressesExhaustedError if not even what it holds can be mapped;
    StoreFormatError, StoreCorruptError, StoreError if it cannot be read; on leaving, StoreError if
    it is not `durable` and the disk failed.
    Cancelling: safe.
    """
    opening = open_engine(
        path, create=create, map_size_max=map_size_max, durable=durable, clock=clock
    )
    async with opening as engine, open_facade(engine, delta_sync=delta_sync) as database:
        yield database


@asynccontextmanager
async def open_facade(engine: Engine, *, delta_sync: bool = False) -> AsyncIterator[Database]:
    """The facade of an open store; leaving the block ends what works on it in the background."""
    database = Database(engine, delta_sync=delta_sync)
    try:
        yield database
    finally:
        with trio.CancelScope(shield=True):  # Bounded: `stop` has deadlines.
            await database.services.stop()


class Database:
    """An open database; `open_database` makes one."""

    def __init__(self, engine: Engine, *, delta_sync: bool = False) -> None:
        self.engine = engine
        """The store beneath, for the sync engine."""
        self.delta_sync = delta_sync
        """Whether replications may send and take only what changed in documents."""
        self.services = Services(engine)
        """What works on it in the background, for the sync engine."""
        self.resolving = Turns()
        """Whose turn it is to resolve the conflicts of a document, for the sync engine."""
        self._collections: dict[int, Collection] = {}

    def __repr__(self) -> str:
        return f"<Database {str(self.path)!r} {self.id}>"

    @property
    def path(self) -> Path:
        """The directory."""
        return self.engine.path

    @property
    def name(self) -> str:
        """The directory's name without its suffix."""
        return self.engine.path.stem

    @property
    def id(self) -> DatabaseID:
        """The public UUID of this database, which no other one has."""
        return self.engine.id

    @property
    def source_id(self) -> str:
        """The author of the versions made here, as 22 base64 characters."""
        return ids.format_source_id(self.engine.source)

    @property
    def default_collection(self) -> Collection:
        """The collection that every database has."""
        return self._at(schema.DEFAULT_COLLECTION, "_default")

    def collection(self, name: str) -> Collection:
        """The collection called `"name"` or `"scope.name"`. Raises CollectionNotFoundError."""
        with suppress(ConfigurationError):
            full_name = _full_name(name)
            for collection in self.collections():
                if collection.full_name == full_name:
                    return collection
        raise CollectionNotFoundError("there is no such collection", name=name)

    def collections(self) -> list[Collection]:
        """All collections, in order of their making."""
        states = self.engine.collections.items()
        return [self._at(number, state.full_name) for number, state in states]

    async def create_collection(self, name: str) -> Collection:
        """Make a collection called `"name"` or `"scope.name"`, or return the one there is.

        Raises: ConfigurationError if that is no collection name.
        Cancelling: either leaves no trace, or has no effect.
        """
        full_name = _full_name(name)
        number = await self.engine.write(partial(catalogue.create, full_name))
        return self._at(number, full_name)

    async def delete_collection(self, name: str) -> None:
        """Delete a collection and all it holds, here only. What uses it fails from now on.

        Its checkpoints with peers are forgotten, so that a new one of this name starts over. The
        space it took is free some time after this returns.

        Raises: CollectionNotFoundError; ConfigurationError for the default collection.
        Cancelling: either leaves no trace, or has no effect.
        """
        full_name = self.collection(name).full_name
        number = await self.engine.write(partial(catalogue.drop, full_name))
        self._collections.pop(number, None)
        self.engine.tidy_soon()

    async def save_blob(
        self, data: bytes | AsyncIterable[bytes], content_type: str = DEFAULT_CONTENT_TYPE
    ) -> Blob:
        """Save a blob, for documents to name: put what this returns into a body.

        It is durable when this returns. Blobs of the same content are kept once. One that no
        document names is dropped by `compact`, though not while the program has its `Blob`.

        Raises: InvalidDocumentError if `data` or `content_type` is of another type, or there is too
        much of it; StoreError if it cannot be written, StoreClosedError; what the iterable raises.
        Cancelling: leaves no trace, or that of a blob that no document names.
        """
        return await self.engine.blobs.save(data, content_type)

    async def compact(self) -> CompactResult:
        """Drop what nothing needs: documents that are due, what deleted collections held, blobs.

        A blob that no document names any more is dropped; one that none ever named is spared for an
        hour after it was saved, and as long as the program has its `Blob`. The data file does not
        get shorter; what is free in it is used by later writes. Waits for a running backup.

        Raises: StoreError, StoreClosedError.
        Cancelling: what was dropped stays dropped.
        """
        before = self.engine.statistics().bytes_used
        await self.engine.tidy()
        removed = await garbage.remove_unneeded(self.engine)
        return CompactResult(
            bytes_freed=max(before - self.engine.statistics().bytes_used, 0),
            blobs_removed=removed.blobs,
            blob_bytes_freed=removed.bytes,
        )

    async def backup(self, path: str | PathLike[str]) -> None:
        """Copy the database as it is now to a directory that must not exist, while in use.

        The copy takes an identity of its own when it is first opened. What is written meanwhile is
        not in it, and the data file grows by what is overwritten.

        Raises: DatabaseExistsError if there is anything at the path; StoreError if it cannot be
        written, and nothing stands there then; StoreClosedError.
        Cancelling: once it was begun, has no effect.
        """
        await self.engine.backup(Path(path))

    async def renew_identity(self) -> None:
        """Take a new `id` and `source_id`: for a directory that was copied by hand.

        What was known of peers is forgotten, so replications start over. Those that run meanwhile
        should be started again.

        Raises: StoreClosedError, StoreError.
        Cancelling: either leaves no trace, or has no effect.
        """

        def job(txn: WriteTransaction) -> None:
            txn.identity = identity.renew(txn.raw, txn.tables)

        await self.engine.write(job)

    def statistics(self) -> DatabaseStatistics:
        """What the database holds and has done."""
        store = self.engine.statistics()
        states = self.engine.collections.values()
        return DatabaseStatistics(
            collections=len(states),
            documents=sum(state.count for state in states),
            conflicts=store.conflicts,
            expirations=store.expirations,
            bytes_used=store.bytes_used,
            bytes_max=store.bytes_max,
            file_bytes=store.file_bytes,
            commits=store.commits,
            writes=store.jobs,
        )

    def _at(self, number: int, full_name: str) -> Collection:
        """The one object that stands for a collection."""
        found = self._collections.get(number)
        if found is None:
            found = self._collections[number] = Collection(self, number, full_name)
        return found


def _full_name(name: str) -> str:
    """A collection's name in its shortest form. Raises ConfigurationError."""
    try:
        return ids.full_name(*ids.collection_name(name))
    except (ValueError, AttributeError) as exc:
        raise ConfigurationError("not a collection name", name=name) from exc
