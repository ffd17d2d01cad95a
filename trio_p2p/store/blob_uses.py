"""Which stored revisions name which blobs, as functions of a transaction.

Every revision record that names blobs, in whichever table, has a row for each of them. Who stores
such a record calls `note`, who removes one calls `forget`, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import lmdb

from trio_p2p.errors import BlobNotFoundError
from trio_p2p.model import blob
from trio_p2p.store import keys, records
from trio_p2p.store.schema import Tables
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction

# The parts of a use's key behind the digest: which table the record stands in.
CURRENT: Final = b"\x01"
CONFLICTING: Final = b"\x02"
KEPT: Final = b"\x03"
_NAMED_ONCE: Final = b"\x00"
_SHA1_BYTES: Final = 20


def missing(txn: WriteTransaction, body: bytes) -> list[bytes]:
    """The digests of blobs that a body names and the database does not hold."""
    return [
        sha1
        for sha1 in blob.digests(body)
        if not is_used(txn.raw, txn.tables, sha1) and not txn.blob_files.has(sha1)
    ]


def check(txn: WriteTransaction, body: bytes) -> None:
    """Raises BlobNotFoundError if a body names a blob that the database does not hold."""
    lacking = missing(txn, body)
    if lacking:
        raise not_held(lacking)


def not_held(lacking: Iterable[bytes]) -> BlobNotFoundError:
    """The error for blobs that a body names and the database does not hold."""
    digests = sorted(map(blob.format_digest, lacking))
    return BlobNotFoundError("the database does not hold this blob", digest=", ".join(digests))


def note(txn: WriteTransaction, place: bytes, key: bytes, body: bytes) -> None:
    """A revision with this body was stored under a key of its table."""
    for sha1 in blob.digests(body):
        row = keys.blob_use(sha1, place, key)
        txn.raw.put(row, b"", db=txn.tables.blob_uses)
        txn.note_growth(len(row))


def forget(txn: WriteTransaction, place: bytes, key: bytes, record: memoryview) -> None:
    """The revision record under a key of its table is about to be removed."""
    if not records.may_name_blobs(record):
        return
    for sha1 in blob.digests(records.unpack_revision(record, key).revision.body):
        txn.raw.delete(keys.blob_use(sha1, place, key), b"", txn.tables.blob_uses)
        # Tells it from one that was saved and is yet to be named.
        txn.raw.put(sha1 + _NAMED_ONCE, b"", db=txn.tables.blob_uses)


def forget_all(raw: lmdb.Transaction[Any], tables: Tables, place: bytes) -> None:
    """All records of a table are about to be removed."""
    rows = [bytes(row) for row in raw.cursor(tables.blob_uses).iternext(values=False)]
    for row in rows:
        sha1, found = row[:_SHA1_BYTES], row[_SHA1_BYTES : _SHA1_BYTES + 1]
        if found == place:
            raw.delete(row, b"", tables.blob_uses)
            raw.put(sha1 + _NAMED_ONCE, b"", db=tables.blob_uses)


def is_used(raw: lmdb.Transaction[Any], tables: Tables, sha1: bytes) -> bool:
    """Whether any revision in a snapshot names this blob."""
    cursor = raw.cursor(tables.blob_uses)
    return cursor.set_range(sha1 + CURRENT) and bytes(cursor.key())[: len(sha1)] == sha1


def is_named_in(
    raw: lmdb.Transaction[Any], tables: Tables, sha1: bytes, collections: Collection[int]
) -> bool | None:
    """Whether a revision in one of these collections names this blob; None if none at all does."""
    cursor = raw.cursor(tables.blob_uses)
    named = None
    place, number = CURRENT, 0
    # From one collection to the next: in each, any number of documents may name it.
    while cursor.set_range(keys.blob_use(sha1, place, keys.collection(number))):
        row = bytes(cursor.key())
        if row[:_SHA1_BYTES] != sha1:
            break
        place, number = keys.read_blob_use(row)
        if number in collections:
            return True
        named = False
        number += 1
    return named


def may_be_read(txn: ReadTransaction, sha1: bytes, collections: Collection[int]) -> bool:
    """Whether who may read these collections may read this blob.

    One that no revision names any more may be on its way, with a revision that did.
    """
    named = is_named_in(txn.raw, txn.tables, sha1, collections)
    return was_named(txn.raw, txn.tables, sha1) if named is None else named


def is_foreign(txn: ReadTransaction, sha1: bytes, collections: Collection[int]) -> bool:
    """Whether a blob is named by revisions of other collections only."""
    return is_named_in(txn.raw, txn.tables, sha1, collections) is False


def was_named(raw: lmdb.Transaction[Any], tables: Tables, sha1: bytes) -> bool:
    """Whether any revision that is gone named this blob."""
    return raw.get(sha1 + _NAMED_ONCE, None, tables.blob_uses) is not None


def forget_blob(txn: WriteTransaction, sha1: bytes) -> None:
    """A blob that nothing names was removed."""
    txn.raw.delete(sha1 + _NAMED_ONCE, b"", txn.tables.blob_uses)
