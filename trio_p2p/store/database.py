"""The facade that users hold: databases, collections, batches and iterators.

Input is checked and bodies are encoded on the caller's side, before anything is queued, so that the
writer's thread only stores. Document IDs and versions come back as the values of `model`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import trio

from trio_p2p import ids, limits
from trio_p2p.errors import CollectionNotFoundError, ConfigurationError, ConflictError, StoreError
from trio_p2p.ids import DatabaseID, DocumentID, Sequence
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import Document
from trio_p2p.model.version import Version
from trio_p2p.store import changes, documents
from trio_p2p.store.documents import ANY, Anything, Stored
from trio_p2p.store.engine import Engine, open_engine
from trio_p2p.store.records import ChangeRow, CollectionState
from trio_p2p.store.transaction import WriteTransaction

Body = Mapping[str, Any]
Expected = Document | Version | None | Literal[Anything.ANY]
"""What an edit takes to be current: a document or version, None for no live document, or `ANY`."""


class Change(NamedTuple):
    """That a document changed: its current version, and whether that is a tombstone."""

    sequence: Sequence
    document_id: DocumentID
    version: Version
    deleted: bool


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """Counts since opening, but for `collections`, `documents` (live ones) and `bytes_used`."""

    collections: int
    documents: int
    bytes_used: int
    commits: int
    writes: int


@asynccontextmanager
async def open_database(
    path: str | PathLike[str],
    *,
    create: bool = True,
    map_size_max: int = limits.MAP_SIZE_BYTES_DEFAULT,
    clock: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Database]:
    """Open the database in a directory, which is made with its parents if missing.

    `map_size_max` is the size in bytes that its data file may reach; `clock` reads the wall clock
    in nanoseconds since 1970. Leaving the block finishes the writes that were begun, then closes;
    what the body raises leaves as it was.

    Raises: DatabaseNotFoundError if it is missing and `create` is not set; DatabaseBusyError if it
    is already open; StoreFormatError, StoreCorruptError, StoreError if it cannot be read.
    Cancelling: safe.
    """
    opening = open_engine(path, create=create, map_size_max=map_size_max, clock=clock)
    async with opening as engine:
        yield Database(engine)


class Database:
    """An open database; `open_database` makes one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        """The store beneath, for the sync engine."""
        self._collections = {
            state.full_name: Collection(self, number, state.full_name)
            for number, state in engine.collections.items()
        }

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
        return self._collections["_default"]

    def collection(self, name: str) -> Collection:
        """The collection called `"name"` or `"scope.name"`. Raises CollectionNotFoundError."""
        try:
            found = self._collections.get(_full_name(name))
        except ConfigurationError:
            found = None
        if found is None:
            raise CollectionNotFoundError("there is no such collection", name=name)
        return found

    def collections(self) -> list[Collection]:
        """All collections, in order of their making."""
        return list(self._collections.values())

    async def create_collection(self, name: str) -> Collection:
        """Make a collection called `"name"` or `"scope.name"`, or return the one there is.

        Raises: ConfigurationError if that is no collection name.
        Cancelling: either leaves no trace, or has no effect.
        """
        full_name = _full_name(name)
        number = await self.engine.write(partial(_create_collection, full_name))
        return self._collections.setdefault(full_name, Collection(self, number, full_name))

    def statistics(self) -> DatabaseStatistics:
        """What the database holds and has done."""
        store = self.engine.statistics()
        states = self.engine.collections.values()
        return DatabaseStatistics(
            collections=len(states),
            documents=sum(state.count for state in states),
            bytes_used=store.bytes_used,
            commits=store.commits,
            writes=store.jobs,
        )


class Collection:
    """Documents under one name; a `Database` gives them out. Two of one name are the same."""

    def __init__(self, database: Database, number: int, full_name: str) -> None:
        self.database = database
        self.number = number
        """What stands for it in keys; never given to another one."""
        self.full_name = full_name
        """`"name"` in the default scope, `"scope.name"` in others."""
        self.scope, self.name = ids.collection_name(full_name)
        self._engine = database.engine

    def __repr__(self) -> str:
        return f"<Collection {self.full_name!r} of {self.database.name!r}>"

    @property
    def count(self) -> int:
        """How many live documents it has."""
        return self._engine.collections[self.number].count

    @property
    def last_sequence(self) -> Sequence:
        """The sequence of the latest change; 0 before the first one."""
        return self._engine.collections[self.number].last_sequence

    def get(self, document_id: str, *, deleted: bool = False) -> Document | None:
        """The document, or None if it is absent or deleted; with `deleted` also a tombstone.

        Raises: InvalidDocumentError if that is no document ID; StoreClosedError.
        """
        checked = ids.document_id(document_id)
        with self._engine.read() as txn:
            stored = documents.get(txn, self.number, checked)
        if stored is None or (stored.revision.deleted and not deleted):
            return None
        return _document(self, checked, stored)

    async def put(self, document_id: str, body: Body, *, expected: Expected = ANY) -> Document:
        """Create or replace a document; durable when this returns.

        `expected` is `ANY` (the last write wins), None (there must be no live document), or the
        document or version that must still be current.

        Raises: InvalidDocumentError, BlobNotFoundError, ConflictError (`current` is the document as
        it is, or None), StoreFullError, StoreClosedError; nothing is written then.
        Cancelling: either leaves no trace, or has no effect.
        """
        edit = _Edit(ids.document_id(document_id), encode_body(body), expected)
        return await self._write(edit)

    async def delete(self, document_id: str, *, expected: Expected = ANY) -> Document:
        """Replace a document by a tombstone, which replicates; returns that.

        Raises: DocumentNotFoundError if there is no live document; otherwise as `put`.
        Cancelling: either leaves no trace, or has no effect.
        """
        return await self._write(_Edit(ids.document_id(document_id), None, expected))

    async def update(
        self, document_id: str, function: Callable[[dict[str, Any] | None], Body | None]
    ) -> Document:
        """Read a document, give its body to a function, and write what that returns.

        The function gets None if there is no live document, and returns None to delete it. It is
        called again whenever the document changed meanwhile, so it should do nothing else.

        Raises: DocumentNotFoundError if there is nothing to delete; what the function raises;
        otherwise as `put`.
        Cancelling: either leaves no trace, or has no effect.
        """
        while True:
            current = self.get(document_id)
            body = function(None if current is None else current.body)
            try:
                if body is None:
                    return await self.delete(document_id, expected=current)
                return await self.put(document_id, body, expected=current)
            except ConflictError:
                continue

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """Collect edits and write them in one transaction when the block is left: all or none.

        A block that raises writes nothing.

        Raises: on leaving, what `put` and `delete` raise, for the first edit that fails.
        Cancelling: either leaves no trace, or has no effect.
        """
        batch = Batch()
        try:
            yield batch
        finally:
            edits = batch.close()
        await self._engine.write(partial(_apply_all, self, edits))

    def documents(
        self,
        *,
        prefix: str = "",
        start: str | None = None,
        end: str | None = None,
        include_deleted: bool = False,
    ) -> DocumentIterator:
        """Iterate over the documents with start <= ID < end that begin with `prefix`.

        They come in order of their IDs, read in slices: each is as it was when its slice was read.
        """
        return DocumentIterator(self, prefix, start, end, include_deleted)

    def changes(self, since: int = 0, *, live: bool = True) -> ChangeIterator:
        """Iterate over the changes with a sequence greater than `since`, ascending.

        Each document comes with its latest change only. Without `live` it ends when it has caught
        up; otherwise it waits for more. A slow consumer costs nothing and misses nothing.
        """
        return ChangeIterator(self, Sequence(max(since, 0)), live)

    async def _write(self, edit: _Edit) -> Document:
        return await self._engine.write(partial(edit.apply, self))


class Batch:
    """Edits of one collection, collected until `Collection.batch` is left.

    They are applied in the order they were asked for, so a document may be edited twice.
    """

    def __init__(self) -> None:
        self._edits: list[_Edit] = []
        self._closed = False

    def put(self, document_id: str, body: Body, *, expected: Expected = ANY) -> None:
        """Create or replace a document. Raises InvalidDocumentError, BlobNotFoundError."""
        self._add(_Edit(ids.document_id(document_id), encode_body(body), expected))

    def delete(self, document_id: str, *, expected: Expected = ANY) -> None:
        """Replace a document by a tombstone. Raises InvalidDocumentError."""
        self._add(_Edit(ids.document_id(document_id), None, expected))

    def close(self) -> list[_Edit]:
        """Take no more edits; returns those that were collected."""
        self._closed = True
        return self._edits

    def _add(self, edit: _Edit) -> None:
        if self._closed:
            raise StoreError("this batch has ended; open another one")
        self._edits.append(edit)


class DocumentIterator:
    """What `Collection.documents` gives. Cancelling: safe; the iteration can go on."""

    def __init__(
        self,
        collection: Collection,
        prefix: str,
        start: str | None,
        end: str | None,
        include_deleted: bool,
    ) -> None:
        self._collection = collection
        self._next = start or ""
        self._ended = False
        self._scan = partial(
            documents.scan,
            collection=collection.number,
            prefix=prefix,
            end=end,
            include_deleted=include_deleted,
        )
        self._slice: deque[tuple[DocumentID, Stored]] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Document:
        while not self._slice:
            await trio.lowlevel.checkpoint()
            if self._ended:
                raise StopAsyncIteration
            self._read_slice()
        return _document(self._collection, *self._slice.popleft())

    def _read_slice(self) -> None:
        with self._collection.database.engine.read() as txn:
            found, after = self._scan(txn, start=self._next)
        self._slice.extend(found)
        if after is None:
            self._ended = True
        else:
            self._next = after


class ChangeIterator:
    """What `Collection.changes` gives. Cancelling: safe; the iteration can go on."""

    def __init__(self, collection: Collection, since: Sequence, live: bool) -> None:
        self._number = collection.number
        self._engine = collection.database.engine
        self._read_up_to = since
        self._live = live
        self._slice: deque[ChangeRow] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._slice:
            await trio.lowlevel.checkpoint()
            if self._read_slice():
                break
            if not self._live:
                raise StopAsyncIteration
            await self._engine.wait_change(self._number, self._read_up_to)
        row = self._slice.popleft()
        found = row.revision_id
        version = found if isinstance(found, Version) else found.as_version()
        return Change(row.sequence, row.document_id, version, row.deleted)

    def _read_slice(self) -> bool:
        with self._engine.read() as txn:
            rows = changes.read_since(txn, self._number, self._read_up_to, limits.SCAN_SLICE_ROWS)
        if rows:
            self._read_up_to = rows[-1].sequence
            self._slice.extend(rows)
        return bool(rows)


class _Edit(NamedTuple):
    """A put, or for no body a delete, that was checked and is ready to be applied."""

    document_id: DocumentID
    body: bytes | None
    expected: Expected

    def apply(self, collection: Collection, txn: WriteTransaction) -> Document:
        expected = self.expected.version if isinstance(self.expected, Document) else self.expected
        try:
            stored = documents.edit(txn, collection.number, self.document_id, self.body, expected)
        except ConflictError as exc:
            current = (
                None
                if exc.current is None
                else _document(collection, self.document_id, exc.current)
            )
            raise ConflictError(
                exc.message, expected=self.expected, current=current, **exc.facts
            ) from exc
        return _document(collection, self.document_id, stored)


def _apply_all(collection: Collection, edits: list[_Edit], txn: WriteTransaction) -> None:
    for edit in edits:
        edit.apply(collection, txn)


def _document(collection: Collection, document_id: DocumentID, stored: Stored) -> Document:
    return Document(document_id, stored.revision, stored.sequence, collection)


def _full_name(name: str) -> str:
    """A collection's name in its shortest form. Raises ConfigurationError."""
    try:
        return ids.full_name(*ids.collection_name(name))
    except (ValueError, AttributeError) as exc:
        raise ConfigurationError("not a collection name", name=name) from exc


def _create_collection(full_name: str, txn: WriteTransaction) -> int:
    """The number of a collection, which is made now if there is none of this name."""
    numbers = {state.full_name: number for number, state in txn.collections.items()}
    if full_name not in numbers:
        number = max(numbers.values()) + 1
        txn.changed[number] = CollectionState(full_name)
        return number
    return numbers[full_name]
