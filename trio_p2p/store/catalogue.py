"""The collections of a database: their making and their end, as functions of a transaction.

A deleted collection is gone at once. What it held is erased afterwards, some at a time, so that no
transaction grows with it; its number is never given again.
"""

from __future__ import annotations

from collections.abc import Iterator

import lmdb

from trio_p2p.errors import CollectionNotFoundError, ConfigurationError
from trio_p2p.ids import Sequence
from trio_p2p.store import bases, blob_uses, checkpoints, expirations, keys, schema
from trio_p2p.store.records import CollectionState
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction


def create(full_name: str, txn: WriteTransaction) -> int:
    """The number of a collection, which is made now if there is none of this name."""
    found = _find(txn, full_name)
    if found is not None:
        return found
    meta = txn.tables.meta
    number = schema.next_number(txn.raw, meta, schema.META_LAST_COLLECTION)
    # Behind all sequences of deleted collections: a peer may still hold a checkpoint of one that
    # had this name, and what it claims to have must not be what is stored from now on.
    floor = Sequence(schema.counter(txn.raw, meta, schema.META_SEQUENCE_FLOOR))
    txn.changed[number] = CollectionState(full_name, floor)
    txn.note_growth(len(full_name))
    return number


def drop(full_name: str, txn: WriteTransaction) -> int:
    """Delete a collection, and return its number; `erase` removes what it held.

    All checkpoints are forgotten, so that one made anew under this name gets its documents again.

    Raises: CollectionNotFoundError; ConfigurationError for the default one.
    """
    number = _find(txn, full_name)
    if number is None:
        raise CollectionNotFoundError("there is no such collection", name=full_name)
    if number == schema.DEFAULT_COLLECTION:
        raise ConfigurationError("the default collection cannot be deleted")
    tables, raw = txn.tables, txn.raw
    floor = schema.counter(raw, tables.meta, schema.META_SEQUENCE_FLOOR)
    floor = max(floor, txn.collection(number).last_sequence)
    raw.put(schema.META_SEQUENCE_FLOOR, keys.number(floor), db=tables.meta)
    raw.delete(keys.collection(number), b"", tables.collections)
    raw.put(keys.collection(number), b"", db=tables.dropped)
    checkpoints.forget_all(txn)
    txn.changed[number] = None
    return number


def is_any_dropped(txn: ReadTransaction) -> bool:
    """Whether there is anything for `erase`."""
    return txn.raw.cursor(txn.tables.dropped).first()


def erase(txn: WriteTransaction, limit: int) -> None:
    """Remove about `limit` records of a deleted collection; once there are none, its number."""
    dropped = txn.raw.cursor(txn.tables.dropped)
    if not dropped.first():
        return
    prefix = bytes(dropped.key())
    number = keys.read_collection(prefix)[0]
    limit -= expirations.erase(txn, number, limit)
    limit -= bases.erase(txn, number, limit)
    for table, start, uses in _places(txn, prefix):
        limit -= _erase(txn, table, start, uses, limit)
    if limit <= 0:
        return
    txn.raw.delete(prefix, b"", txn.tables.dropped)


def _find(txn: WriteTransaction, full_name: str) -> int | None:
    for number, state in txn.collections.items():
        if state is not None and state.full_name == full_name:
            return number
    return None


def _places(
    txn: WriteTransaction, prefix: bytes
) -> Iterator[tuple[lmdb._Database, bytes, bytes | None]]:
    """Where records of a collection stand: tables, how their keys begin there, and for revisions
    what their uses of blobs are filed under.
    """
    tables = txn.tables
    yield tables.documents, prefix, blob_uses.CURRENT
    yield tables.conflicts, prefix, blob_uses.CONFLICTING
    for table in (
        tables.changes,
        tables.base_ends,
        tables.marks,
        tables.passed,
        tables.known_revisions,
        tables.merges,
    ):
        yield table, prefix, None


def _erase(
    txn: WriteTransaction, table: lmdb._Database, prefix: bytes, uses: bytes | None, limit: int
) -> int:
    """Remove records whose keys begin with `prefix`; returns how many."""
    cursor = txn.raw.cursor(table)
    count = 0
    while count < limit and cursor.set_range(prefix) and cursor.key()[: len(prefix)] == prefix:
        if uses is not None:
            blob_uses.forget(txn, uses, bytes(cursor.key()), cursor.value())
        cursor.delete()
        count += 1
    return count
