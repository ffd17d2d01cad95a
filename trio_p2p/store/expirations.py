"""When documents expire: by document, and by time for whoever purges them.

A document that is due is as good as purged: the change feed leaves it out, and its expiration can
no longer be changed.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from trio_p2p.errors import DocumentNotFoundError, InvalidDocumentError
from trio_p2p.ids import DocumentID
from trio_p2p.store import documents, keys
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Due(NamedTuple):
    """A document whose time has come."""

    collection: int
    document_id: DocumentID


def microseconds(when: datetime | None) -> int | None:
    """An aware time as microseconds since 1970; 0 if it is earlier. Raises InvalidDocumentError."""
    if when is None:
        return None
    if when.utcoffset() is None:
        raise InvalidDocumentError("an expiration needs a time zone", when=when)
    return max((when - _EPOCH) // timedelta(microseconds=1), 0)


def moment(when_us: int | None) -> datetime | None:
    """The inverse of `microseconds`."""
    return None if when_us is None else _EPOCH + timedelta(microseconds=when_us)


def get(txn: ReadTransaction, collection: int, document_id: DocumentID) -> int | None:
    """When a document expires, in microseconds since 1970; None if it does not."""
    raw = txn.raw.get(keys.document(collection, document_id), None, txn.tables.expirations)
    return None if raw is None else keys.read_number(raw)[0]


def change(
    txn: WriteTransaction, collection: int, document_id: DocumentID, when_us: int | None
) -> None:
    """Let a document expire at another time, in microseconds since 1970, or for None not at all.

    Raises: DocumentNotFoundError if there is no live document, or its time has come.
    """
    txn.collection(collection)
    if not documents.is_live(txn, collection, document_id) or is_due(txn, collection, document_id):
        raise DocumentNotFoundError("there is nothing to expire", document_id=document_id)
    remove(txn, collection, document_id)
    if when_us is not None:
        _put(txn, collection, document_id, when_us)


def _put(txn: WriteTransaction, collection: int, document_id: DocumentID, when_us: int) -> None:
    tables = txn.tables
    key = keys.document(collection, document_id)
    txn.raw.put(key, keys.number(when_us), db=tables.expirations)
    txn.raw.put(keys.number(when_us) + key, b"", db=tables.expiring)


def remove(txn: WriteTransaction, collection: int, document_id: DocumentID) -> None:
    """Let a document stay; nothing if it does anyway."""
    key = keys.document(collection, document_id)
    when = txn.raw.pop(key, txn.tables.expirations)
    if when is not None:
        txn.raw.delete(bytes(when) + key, b"", txn.tables.expiring)


def erase(txn: WriteTransaction, collection: int, limit: int) -> int:
    """Remove expirations of a collection, at most `limit`; returns how many."""
    prefix = keys.collection(collection)
    cursor = txn.raw.cursor(txn.tables.expirations)
    count = 0
    while count < limit and cursor.set_range(prefix) and cursor.key()[: len(prefix)] == prefix:
        remove(txn, collection, keys.read_document(cursor.key()))
        count += 1
    return count


def first(txn: ReadTransaction) -> int | None:
    """When the first document expires, in microseconds since 1970; None if none does."""
    cursor = txn.raw.cursor(txn.tables.expiring)
    return keys.read_expiring(cursor.key())[0] if cursor.first() else None


def due(txn: ReadTransaction, limit: int) -> list[Due]:
    """The documents whose time has come, the earliest first, at most `limit`."""
    now_us = txn.now_ns() // 1000
    found: list[Due] = []
    for key in txn.raw.cursor(txn.tables.expiring).iternext(values=False):
        when_us, collection, document_id = keys.read_expiring(key)
        if when_us > now_us or len(found) == limit:
            break
        found.append(Due(collection, document_id))
    return found


def is_any_due(txn: ReadTransaction) -> bool:
    """Whether the time of any document has come."""
    when_us = first(txn)
    return when_us is not None and when_us <= txn.now_ns() // 1000


def is_due(txn: ReadTransaction, collection: int, document_id: DocumentID) -> bool:
    """Whether the time of this document has come."""
    when_us = get(txn, collection, document_id)
    return when_us is not None and when_us <= txn.now_ns() // 1000
