"""Forgetting documents here: nothing of it replicates, and their sequences are not given again."""

from __future__ import annotations

from trio_p2p.ids import DocumentID
from trio_p2p.store import bases, blob_uses, conflicts, expirations, keys, records, remotes
from trio_p2p.store.transaction import WriteTransaction


def purge(txn: WriteTransaction, collection: int, document_id: DocumentID) -> bool:
    """Forget a document: its revision or tombstone, those that wait, and what peers have of it.

    Returns whether there was any. Peers that were promised it are told that it is gone.
    """
    state = txn.collection(collection)
    tables = txn.tables
    key = keys.document(collection, document_id)
    old = txn.raw.get(key, None, tables.documents)
    if old is None:
        return False
    deleted, sequence = records.unpack_place(old, key)
    blob_uses.forget(txn, blob_uses.CURRENT, key, old)
    txn.raw.delete(key, b"", tables.documents)
    txn.raw.delete(keys.change(collection, sequence), b"", tables.changes)
    state.count -= not deleted
    for waiting in conflicts.heads(txn, collection, document_id):
        conflicts.remove(txn, collection, document_id, waiting.version)
    conflicts.set_merges(txn, collection, document_id, 0)
    bases.drop_all(txn, collection, document_id)
    remotes.forget_document(txn, collection, document_id)
    expirations.remove(txn, collection, document_id)
    return True


def purge_due(txn: WriteTransaction, limit: int) -> None:
    """Purge documents whose time has come, at most `limit`."""
    for collection, document_id in expirations.due(txn, limit):
        if txn.collections.get(collection) is not None:
            purge(txn, collection, document_id)
        else:
            expirations.remove(txn, collection, document_id)
