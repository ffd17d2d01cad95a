"""From one format version to the next: a function each, all run in the transaction of the opening.

A migration changes the data file in place, so what fails leaves the file as it was. Its records are
told by the page "Store format" of the documentation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import lmdb

from trio_p2p.store import keys, schema
from trio_p2p.store.schema import Tables

Migration = Callable[["lmdb.Transaction[Any]", Tables], None]


def migrate(txn: lmdb.Transaction[Any], tables: Tables, version: int) -> None:
    """Bring a database from a format version of `MIGRATIONS` to the present one."""
    for step in range(version, schema.FORMAT_VERSION):
        MIGRATIONS[step](txn, tables)
    txn.put(schema.META_FORMAT, keys.number(schema.FORMAT_VERSION), db=tables.meta)


def _number_for_good(txn: lmdb.Transaction[Any], tables: Tables) -> None:
    """Numbers came from counting rows; since rows may go, the last ones given are kept."""
    collections = txn.cursor(tables.collections)
    last = keys.read_collection(collections.key())[0] if collections.last() else 0
    remotes = txn.stat(tables.remotes)["entries"]
    txn.put(schema.META_LAST_COLLECTION, keys.number(last), db=tables.meta)
    txn.put(schema.META_LAST_REMOTE, keys.number(remotes), db=tables.meta)
    txn.put(schema.META_SEQUENCE_FLOOR, keys.number(0), db=tables.meta)


def _add_checksums(txn: lmdb.Transaction[Any], tables: Tables) -> None:
    """Revisions, change rows and collections had no checksums behind them."""
    for table in (tables.documents, tables.conflicts):
        _rewrite(txn, table, _sum_revision)
    for table in (tables.changes, tables.collections):
        _rewrite(txn, table, lambda raw, key: _sum(raw, zlib.crc32(key)))


def _sum_revision(raw: bytes, key: bytes) -> bytes:
    header = struct.Struct(">BQII")
    _, _, vector_bytes, tree_bytes = header.unpack_from(raw)
    body_at = header.size + vector_bytes + tree_bytes
    key_sum = zlib.crc32(key)
    return _sum(_sum(raw[:body_at], key_sum) + raw[body_at:], key_sum)


def _sum(raw: bytes, key_sum: int) -> bytes:
    return raw + zlib.crc32(raw, key_sum).to_bytes(4, "little")


def _rewrite(
    txn: lmdb.Transaction[Any], table: lmdb._Database, change: Callable[[bytes, bytes], bytes]
) -> None:
    """Replace each record of a table."""
    cursor = txn.cursor(table)
    is_there = cursor.first()
    while is_there:
        key, record = bytes(cursor.key()), bytes(cursor.value())
        cursor.put(key, change(record, key))
        is_there = cursor.set_range(key + b"\0")


MIGRATIONS: Final[Mapping[int, Migration]] = {1: _number_for_good, 2: _add_checksums}
"""By the version each starts from."""
