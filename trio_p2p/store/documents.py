"""Documents: read, store, edit and scan, as functions of a transaction."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

from trio_p2p import limits
from trio_p2p.errors import ConflictError, DocumentNotFoundError, StoreCorruptError
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.blob import may_name_blobs
from trio_p2p.model.document import EMPTY_BODY, Revision, Stored
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.store import bases, blob_uses, keys, records
from trio_p2p.store.records import Record
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction

__all__ = [
    "ANY",
    "Anything",
    "Expected",
    "Stored",
    "edit",
    "get",
    "head",
    "put_revision",
    "scan",
]


class Anything(Enum):
    """`ANY` expects nothing of the revision that is replaced: the last write wins."""

    ANY = "any"


ANY: Final = Anything.ANY
"""Expect nothing of the revision that is replaced: the last write wins."""

Expected = Version | None | Literal[Anything.ANY]
"""What an edit takes to be current: a version, None for no live document, or `ANY`."""


def get(txn: ReadTransaction, collection: int, document_id: DocumentID) -> Stored | None:
    """The current revision, tombstones included; None if there is none."""
    key = keys.document(collection, document_id)
    raw = txn.raw.get(key, None, txn.tables.documents)
    return None if raw is None else records.unpack_revision(raw, key)


def head(txn: ReadTransaction, collection: int, document_id: DocumentID) -> Stored | None:
    """As `get`, with an empty body in place of the real one, which is not read."""
    key = keys.document(collection, document_id)
    raw = txn.raw.get(key, None, txn.tables.documents)
    return None if raw is None else records.unpack_revision(raw, key, with_body=False)


def is_live(txn: ReadTransaction, collection: int, document_id: DocumentID) -> bool:
    """Whether there is a document, and not only its tombstone."""
    key = keys.document(collection, document_id)
    raw = txn.raw.get(key, None, txn.tables.documents)
    return raw is not None and not records.unpack_place(raw, key)[0]


def put_revision(
    txn: WriteTransaction, collection: int, document_id: DocumentID, revision: Revision
) -> Sequence:
    """Make a revision current under a new sequence, whatever was current before.

    Raises: ClockSkewError, BlobNotFoundError, with nothing changed.
    """
    names_blobs = may_name_blobs(revision.body)
    if names_blobs:
        blob_uses.check(txn, revision.body)
    txn.clock.see(revision.vector.greatest().time)
    raw, tables = txn.raw, txn.tables
    state = txn.collection(collection)
    name = document_id.encode()
    key = keys.collection(collection) + name
    sequence = state.last_sequence = Sequence(state.last_sequence + 1)
    old = raw.get(key, None, tables.documents)
    if old is not None:
        was_deleted, old_sequence = records.unpack_place(old, key)
        if records.may_name_blobs(old):
            # It is read again after something was written.
            old = memoryview(bytes(old))
        if revision.deleted:
            bases.drop_all(txn, collection, document_id)
        elif not was_deleted:
            bases.keep(txn, key, old, since=old_sequence, until=sequence, by=revision.version)
        blob_uses.forget(txn, blob_uses.CURRENT, key, old)
        raw.delete(keys.change(collection, old_sequence), b"", tables.changes)
        state.count -= not was_deleted
    state.count += not revision.deleted
    record = records.pack_revision(revision, sequence, key)
    raw.put(key, record, db=tables.documents)
    if names_blobs:
        blob_uses.note(txn, blob_uses.CURRENT, key, revision.body)
    change = keys.change(collection, sequence)
    raw.put(change, records.pack_change(revision, name, change), db=tables.changes)
    if not revision.deleted:
        txn.note_growth(len(record))
    return sequence


def edit(
    txn: WriteTransaction,
    collection: int,
    document_id: DocumentID,
    body: bytes | None,
    expected: Expected = ANY,
) -> Stored:
    """Edit a document here: a new version with this body, or a tombstone for None.

    Raises: ConflictError, whose `current` is a Stored or None; DocumentNotFoundError if there is
    nothing to delete; BlobNotFoundError; CollectionNotFoundError; StoreCorruptError.
    """
    txn.collection(collection)
    current = head(txn, collection, document_id)
    if not _is_expected(current, expected):
        raise ConflictError(
            "the document is not at the expected version",
            document_id=document_id,
            expected=expected,
            current=get(txn, collection, document_id),
        )
    if body is None and (current is None or current.revision.deleted):
        raise DocumentNotFoundError("there is nothing to delete", document_id=document_id)
    deleted = body is None
    content = EMPTY_BODY if body is None else body
    version = txn.stamp()
    if current is not None and version.time <= current.revision.vector.greatest().time:
        raise StoreCorruptError(
            "the stored clock is behind the version of a document: restore a backup",
            document_id=document_id,
        )
    revision = (
        current.revision.edited(version, content, deleted=deleted)
        if current is not None
        else Revision(VersionVector(version), content, deleted)
    )
    return Stored(revision, put_revision(txn, collection, document_id, revision))


def scan(
    txn: ReadTransaction,
    collection: int,
    *,
    prefix: str = "",
    start: str | None = None,
    end: str | None = None,
    limit: int = limits.SCAN_SLICE_ROWS,
    include_deleted: bool = False,
) -> tuple[list[tuple[DocumentID, Record]], str | None]:
    """A slice of the documents with start <= ID < end that begin with `prefix`, in ID order.

    Returns the documents and where the next slice starts, None if this was the last one. `limit`
    counts tombstones too; large records end a slice earlier.
    """
    first = keys.bound(collection, max(prefix, start or ""))
    last = keys.behind(keys.bound(collection, prefix))
    if end is not None:
        last = min(last, keys.bound(collection, end))
    found: list[tuple[DocumentID, Record]] = []
    room_rows, room_bytes = limit, limits.SCAN_SLICE_BYTES
    cursor = txn.raw.cursor(txn.tables.documents)
    if not cursor.set_range(first):
        return found, None
    for key, value in cursor:
        if bytes(key) >= last:
            break
        document_id = keys.read_document(key)
        if room_rows == 0 or room_bytes <= 0:
            return found, document_id
        room_rows -= 1
        room_bytes -= len(value)
        record = Record(value, key)
        if include_deleted or not record.deleted:
            found.append((document_id, record))
    return found, None


def _is_expected(current: Stored | None, expected: Expected) -> bool:
    if expected is ANY:
        return True
    if expected is None:
        return current is None or current.revision.deleted
    return current is not None and current.revision.version == expected
