"""Collections, and iterating over what they hold.

Input is checked and bodies are encoded on the caller's side, before anything is queued, so that the
writer's thread only stores. Document IDs and versions come back as the values of `model`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import trio

from trio_p2p import ids, limits
from trio_p2p.errors import CollectionNotFoundError, ConflictError
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.blob import digests, may_name_blobs
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import Conflict
from trio_p2p.model.document import Document, Revision, Stored
from trio_p2p.model.version import Version
from trio_p2p.store import bases, changes, conflicts, documents, expirations, keys
from trio_p2p.store.blob_uses import not_held
from trio_p2p.store.blobs import Blob
from trio_p2p.store.documents import ANY
from trio_p2p.store.edits import Batch, Body, Edit, Expected, Purge, apply_all
from trio_p2p.store.records import ChangeRow, Record
from trio_p2p.store.transaction import ReadTransaction

if TYPE_CHECKING:
    from trio_p2p.store.database import Database


class Change(NamedTuple):
    """That a document changed: its current version, and whether that is a tombstone."""

    sequence: Sequence
    document_id: DocumentID
    version: Version
    deleted: bool


class Collection:
    """Documents under one name; a `Database` gives them out. Two of one name are the same.

    A document ID is text of 1 to 240 bytes in UTF-8 that does not begin with `_` and holds no
    control characters. A body is a mapping of text to values: text, finite numbers, integers of 64
    bits with sign, booleans, None, lists and mappings of such values, at most 100 levels deep, and
    `Blob`. An aware datetime is stored as RFC 3339 text with milliseconds, a tuple as a list. Bytes
    are for blobs. Top-level keys other than `_id`, `_rev`, `_deleted`, `_removed`, `_attachments`,
    `_revisions` and `_exp` are free to use. A body has 20 MiB and a million values at most.
    Anything else is an InvalidDocumentError.

    What only reads takes one snapshot, does not wait, and is as it was at that moment.
    """

    def __init__(self, database: Database, number: int, full_name: str) -> None:
        self.database = database
        self.number = number
        """What stands for it in keys; never given to another one."""
        self.full_name = full_name
        """`"name"` in the default scope, `"scope.name"` in others."""
        self.scope, self.name = ids.collection_name(full_name)
        self._engine = database.engine
        self._prefix = keys.collection(number)

    def __repr__(self) -> str:
        return f"<Collection {self.full_name!r} of {self.database.name!r}>"

    @property
    def count(self) -> int:
        """How many live documents it has. Raises CollectionNotFoundError if deleted."""
        return self._engine.collection(self.number).count

    @property
    def last_sequence(self) -> Sequence:
        """The sequence of the latest change; 0 before the first one. Raises as `count`."""
        return self._engine.collection(self.number).last_sequence

    def get(self, document_id: str, *, deleted: bool = False) -> Document | None:
        """The document, or None if it is absent or deleted; with `deleted` also a tombstone.

        Raises: InvalidDocumentError if that is no document ID; CollectionNotFoundError if the
        collection was deleted; StoreCorruptError if what is stored was damaged; StoreClosedError.
        """
        checked = ids.document_id(document_id)
        key = self._prefix + checked.encode()
        raw = self._engine.fetch(self.number, key)
        if raw is None:
            return None
        record = Record(raw, key)
        return Document(checked, record, self) if deleted or not record.deleted else None

    async def put(self, document_id: str, body: Body, *, expected: Expected = ANY) -> Document:
        """Create or replace a document; durable when this returns.

        `expected` is `ANY` (the last write wins), None (there must be no live document), or the
        document or version that must still be current.

        Raises: InvalidDocumentError, BlobNotFoundError, ConflictError (`current` is the document as
        it is, or None), CollectionNotFoundError, StoreFullError, StoreClosedError; nothing is
        written then. StoreFailedError if the disk failed: the next opening shows whether it was.
        Cancelling: either leaves no trace, or has no effect.
        """
        edit = Edit(ids.document_id(document_id), encode_body(body), expected)
        return await self._write(edit)

    async def delete(self, document_id: str, *, expected: Expected = ANY) -> Document:
        """Replace a document by a tombstone, which replicates; returns that.

        Raises: DocumentNotFoundError if there is no live document; otherwise as `put`.
        Cancelling: either leaves no trace, or has no effect.
        """
        return await self._write(Edit(ids.document_id(document_id), None, expected))

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

    async def purge(self, document_id: str) -> bool:
        """Forget a document here; other peers keep it. Returns whether there was any.

        Tombstones and revisions that wait for a resolver are forgotten too. A peer that edits the
        document later brings it back.

        Raises: InvalidDocumentError, CollectionNotFoundError, StoreClosedError.
        Cancelling: either leaves no trace, or has no effect.
        """
        purge = Purge(ids.document_id(document_id))
        return await self._engine.write(partial(purge.apply, self))

    async def set_expiration(self, document_id: str, when: datetime | None) -> None:
        """Purge a document here at an aware time, kept to the microsecond; None lets it stay.

        Edits keep the expiration. A document that is due is purged at once while the database is
        open, else at its next opening; it is not offered to peers meanwhile.

        Raises: DocumentNotFoundError if there is no live document, InvalidDocumentError if the time
        has no time zone, CollectionNotFoundError, StoreFullError, StoreClosedError.
        Cancelling: either leaves no trace, or has no effect.
        """
        checked, when_us = ids.document_id(document_id), expirations.microseconds(when)
        await self._engine.write(lambda txn: expirations.change(txn, self.number, checked, when_us))
        self._engine.tidy_soon()

    def expiration(self, document_id: str) -> datetime | None:
        """When a document is to be purged; None if it stays, or is absent.

        Raises: InvalidDocumentError, CollectionNotFoundError, StoreClosedError.
        """
        checked = ids.document_id(document_id)
        with self.read() as txn:
            when_us = expirations.get(txn, self.number, checked)
        return expirations.moment(when_us)

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """Collect edits and write them in one transaction when the block is left: all or none.

        A block that raises writes nothing.

        Raises: on leaving, what `put` and `delete` raise, for the first edit that fails.
        Cancelling: either leaves no trace, or has no effect.
        """
        batch = Batch(self)
        try:
            yield batch
        finally:
            edits = batch.close()
        await self._engine.write(partial(apply_all, self, edits))

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
        With `include_deleted` tombstones come too.

        Raises, while iterating: CollectionNotFoundError if it is deleted meanwhile,
        StoreClosedError.
        Cancelling: safe; the iteration can go on.
        """
        return DocumentIterator(self, prefix, start, end, include_deleted)

    def changes(self, since: int = 0, *, live: bool = True) -> ChangeIterator:
        """Iterate over the changes with a sequence greater than `since`, ascending.

        Each document comes with its latest change only. Without `live` it ends when it has caught
        up; otherwise it waits for more. A slow consumer costs nothing and misses nothing.

        Raises, while iterating: CollectionNotFoundError if it is deleted meanwhile,
        StoreClosedError.
        Cancelling: safe; the iteration can go on.
        """
        return ChangeIterator(self, Sequence(max(since, 0)), live)

    def conflicts(self) -> ConflictIterator:
        """Iterate over the conflicts that wait for a resolver, in order of document IDs.

        Each is as it was when it was read. A resolver decides them when a replicator runs.

        Raises, while iterating: CollectionNotFoundError if it is deleted meanwhile,
        StoreClosedError.
        Cancelling: safe; the iteration can go on.
        """
        return ConflictIterator(self)

    def make_blob(self, properties: Mapping[str, Any]) -> Blob:
        """The object for a mapping in a body that names a blob."""
        return self._engine.blobs.named(properties)

    def check_blobs(self, body: bytes) -> None:
        """Raises BlobNotFoundError if an encoded body names a blob that is not held now."""
        if not may_name_blobs(body):
            return
        lacking = {sha1 for sha1 in digests(body) if not self._engine.blob_files.has(sha1)}
        if lacking:
            raise not_held(lacking)

    def read(self) -> ReadTransaction:
        """A snapshot, as `Engine.read`. Raises StoreClosedError, CollectionNotFoundError."""
        self._engine.collection(self.number)
        return self._engine.read()

    async def _write(self, edit: Edit) -> Document:
        stored = await self._engine.write(partial(edit.apply, self))
        return Document(edit.document_id, stored, self)


def check_undeleted(collections: Iterable[Collection]) -> None:
    """Raises CollectionNotFoundError, with its name, for a collection that was deleted."""
    for collection in collections:
        if collection.number not in collection.database.engine.collections:
            raise CollectionNotFoundError("the collection was deleted", name=collection.full_name)


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
        self._slice: deque[tuple[DocumentID, Record]] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Document:
        while not self._slice:
            await trio.lowlevel.checkpoint()
            if self._ended:
                raise StopAsyncIteration
            self._read_slice()
        document_id, found = self._slice.popleft()
        return Document(document_id, found, self._collection)

    def _read_slice(self) -> None:
        with self._collection.read() as txn:
            found, after = self._scan(txn, start=self._next)
        self._slice.extend(found)
        if after is None:
            self._ended = True
        else:
            self._next = after


class ChangeIterator:
    """What `Collection.changes` gives. Cancelling: safe; the iteration can go on."""

    def __init__(self, collection: Collection, since: Sequence, live: bool) -> None:
        self._collection = collection
        self._number = collection.number
        self._read_up_to = since
        self._live = live
        self._slice: deque[ChangeRow] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._slice:
            await trio.lowlevel.checkpoint()
            self._read_slice()
            if self._slice or self._read_up_to < self._collection.last_sequence:
                continue
            if not self._live:
                raise StopAsyncIteration
            await self._collection.database.engine.wait_change(self._number, self._read_up_to)
        row = self._slice.popleft()
        found = row.revision_id
        version = found if isinstance(found, Version) else found.as_version()
        return Change(row.sequence, row.document_id, version, row.deleted)

    def _read_slice(self) -> None:
        with self._collection.read() as txn:
            rows, self._read_up_to = changes.read_since(
                txn, self._number, self._read_up_to, limits.SCAN_SLICE_ROWS
            )
        self._slice.extend(rows)


class ConflictIterator:
    """What `Collection.conflicts` gives. Cancelling: safe; the iteration can go on."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._after: DocumentID | None = None
        # Those of the document that are yet to be read: one by one, since they may be large.
        self._versions: deque[Version] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Conflict:
        conflict = None
        while conflict is None:
            await trio.lowlevel.checkpoint()
            conflict = self._read_next()
        return conflict

    def _read_next(self) -> Conflict | None:
        """The next conflict; None if it was resolved meanwhile. Raises StopAsyncIteration."""
        number = self._collection.number
        with self._collection.read() as txn:
            if not self._versions:
                names = conflicts.documents(txn, number, self._after, 1)
                if not names:
                    raise StopAsyncIteration
                self._after = names[0]
                heads = conflicts.heads(txn, number, self._after)
                self._versions.extend(head.version for head in heads)
            assert self._after is not None
            remote = conflicts.get(txn, number, self._after, self._versions.popleft())
            if remote is None:
                return None
            local = documents.get(txn, number, self._after)
            base = None
            if local is not None:
                base = bases.common(txn, number, self._after, local.revision, remote)
        revisions = (local and local.revision, remote, base)
        return Conflict(self._after, *(self._side(revision, local) for revision in revisions))

    def _side(self, revision: Revision | None, local: Stored | None) -> Document | None:
        if revision is None or revision.deleted:
            return None
        assert self._after is not None
        stored = Stored(revision, local.sequence if local else Sequence(0))
        return Document(self._after, stored, self._collection)
