"""Conflicting revisions that wait for a resolver, beside the current revision they conflict with.

They stand in a table of their own, so that waiting costs no memory and outlives a restart.
"""

from __future__ import annotations

from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Order, Version
from trio_p2p.store import blob_uses, keys, records
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction


def add(
    txn: WriteTransaction, collection: int, document_id: DocumentID, revision: Revision
) -> bool:
    """Let a revision wait, in place of those it includes; nothing if it waits already.

    Returns whether it took the place of any: the bases of those may not be needed any more.

    Raises: BlobNotFoundError.
    """
    blob_uses.check(txn, revision.body)
    replaced = False
    for waiting in heads(txn, collection, document_id):
        order = revision.compare(waiting)
        if order is Order.SAME:
            return False
        if order is Order.NEWER:
            remove(txn, collection, document_id, waiting.version)
            replaced = True
    key = keys.revision(collection, document_id, revision.version)
    record = records.pack_revision(revision, Sequence(0), key)
    txn.raw.put(key, record, db=txn.tables.conflicts)
    blob_uses.note(txn, blob_uses.CONFLICTING, key, revision.body)
    txn.note_growth(len(record))
    return replaced


def of_document(txn: ReadTransaction, collection: int, document_id: DocumentID) -> list[Revision]:
    """The revisions of a document that wait, by version. Their bodies together may be large."""
    rows = txn.rows(txn.tables.conflicts, keys.of_document(collection, document_id))
    return [records.unpack_revision(value, key).revision for key, value in rows]


def heads(txn: ReadTransaction, collection: int, document_id: DocumentID) -> list[Revision]:
    """As `of_document`, with empty bodies in place of the real ones, which are not read."""
    rows = txn.rows(txn.tables.conflicts, keys.of_document(collection, document_id))
    return [records.unpack_revision(value, key, with_body=False).revision for key, value in rows]


def get(
    txn: ReadTransaction, collection: int, document_id: DocumentID, version: Version
) -> Revision | None:
    """A revision that waits; None if it does not."""
    key = keys.revision(collection, document_id, version)
    raw = txn.raw.get(key, None, txn.tables.conflicts)
    return None if raw is None else records.unpack_revision(raw, key).revision


def remove(
    txn: WriteTransaction, collection: int, document_id: DocumentID, version: Version
) -> None:
    """Let a revision wait no longer; nothing if it does not."""
    key = keys.revision(collection, document_id, version)
    record = txn.raw.get(key, None, txn.tables.conflicts)
    if record is not None:
        blob_uses.forget(txn, blob_uses.CONFLICTING, key, record)
        txn.raw.delete(key, b"", txn.tables.conflicts)


def is_waiting(
    txn: ReadTransaction, collection: int, document_id: DocumentID, version: Version
) -> bool:
    """Whether a revision waits."""
    key = keys.revision(collection, document_id, version)
    return txn.raw.get(key, None, txn.tables.conflicts) is not None


def merges(txn: ReadTransaction, collection: int, document_id: DocumentID) -> int:
    """How often in a row a document's merges were merged here."""
    raw = txn.raw.get(keys.document(collection, document_id), None, txn.tables.merges)
    return 0 if raw is None else keys.read_number(raw)[0]


def set_merges(txn: WriteTransaction, collection: int, document_id: DocumentID, count: int) -> None:
    """Note how often in a row a document's merges were merged here."""
    key = keys.document(collection, document_id)
    if count:
        txn.raw.put(key, keys.number(count), db=txn.tables.merges)
    else:
        txn.raw.delete(key, b"", txn.tables.merges)


def documents(
    txn: ReadTransaction, collection: int, after: DocumentID | None, limit: int
) -> list[DocumentID]:
    """The next documents after this one that have waiting revisions, in ID order."""
    found: list[DocumentID] = []
    prefix = keys.collection(collection)
    at = prefix if after is None else keys.behind_document(collection, after)
    cursor = txn.raw.cursor(txn.tables.conflicts)
    while len(found) < limit and cursor.set_range(at) and cursor.key()[:4] == prefix:
        found.append(keys.read_revision(bytes(cursor.key())))
        at = keys.behind_document(collection, found[-1])
    return found
