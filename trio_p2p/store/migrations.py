"""From one format version to the next: a function each, all run in the transaction of the opening.

A migration changes the data file in place, so what fails leaves the file as it was. Its records are
told by the page "Store format" of the documentation.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import cbor2
import lmdb

from trio_p2p.store import checkpoints, keys, recent, records, remotes, schema
from trio_p2p.store.recent import Entry
from trio_p2p.store.records import LocalCheckpoint
from trio_p2p.store.schema import Tables

Migration = Callable[["lmdb.Environment", "lmdb.Transaction[Any]", Tables], None]

# A peer's checkpoint in format 2, before its body: use, and how often it was set.
_PEER_CHECKPOINT_2: Final = struct.Struct(">QI")
# A revision since format 2, before its vector: of what follows it, the lengths of the first parts.
_REVISION: Final = struct.Struct(">BQII")

# The checksum since format 3: behind a record, and within a revision before its body too.
_CHECKSUM_BYTES: Final = 4

FORMER_TABLES: Final = ("checkpoint_uses", "known")
"""Tables of earlier formats, which migrations open beside those of the present one."""


def migrate(
    env: lmdb.Environment, txn: lmdb.Transaction[Any], tables: Tables, version: int
) -> None:
    """Bring a database from a format version of `MIGRATIONS` to the present one."""
    for step in range(version, schema.FORMAT_VERSION):
        MIGRATIONS[step](env, txn, tables)
    txn.put(schema.META_FORMAT, keys.number(schema.FORMAT_VERSION), db=tables.meta)


# --- 1 to 2 --------------------------------------------------------------------------------------


def _number_for_good(env: lmdb.Environment, txn: lmdb.Transaction[Any], tables: Tables) -> None:
    """Numbers came from counting rows; since rows may go, the last ones given are kept."""
    collections = txn.cursor(tables.collections)
    last = keys.read_collection(collections.key())[0] if collections.last() else 0
    last_remote = txn.stat(tables.remotes)["entries"]
    txn.put(schema.META_LAST_COLLECTION, keys.number(last), db=tables.meta)
    txn.put(schema.META_LAST_REMOTE, keys.number(last_remote), db=tables.meta)
    txn.put(schema.META_SEQUENCE_FLOOR, keys.number(0), db=tables.meta)


# --- 2 to 3 --------------------------------------------------------------------------------------


def _from_2(env: lmdb.Environment, txn: lmdb.Transaction[Any], tables: Tables) -> None:
    _add_checksums(txn, tables)
    _sort_known_by_document(env, txn, tables)
    _note_uses(env, txn, tables)


def _add_checksums(txn: lmdb.Transaction[Any], tables: Tables) -> None:
    """Revisions, change rows and collections had no checksums behind them."""
    for table in (tables.documents, tables.conflicts):
        _rewrite(txn, table, _sum_revision)
    for table in (tables.changes, tables.collections):
        _rewrite(txn, table, lambda raw, key: _sum(raw, zlib.crc32(key)))


def _sum_revision(raw: bytes, key: bytes) -> bytes:
    _, _, vector_bytes, tree_bytes = _REVISION.unpack_from(raw)
    body_at = _REVISION.size + vector_bytes + tree_bytes
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
        changed = change(record, key)
        if changed != record:
            cursor.put(key, changed)
        is_there = cursor.set_range(key + b"\0")


def _sort_known_by_document(
    env: lmdb.Environment, txn: lmdb.Transaction[Any], tables: Tables
) -> None:
    """What peers have stood in order of peer, collection, document; now the peer comes last."""
    former = env.open_db(b"known", txn=txn)
    for key, value in txn.cursor(former):
        remote, document_key = key[:4], key[4:]
        txn.put(keys.of_document_at(document_key) + remote, value, db=tables.known_revisions)
    txn.drop(former)


def _note_uses(env: lmdb.Environment, txn: lmdb.Transaction[Any], tables: Tables) -> None:
    """Of the tables that are of bounded size now, one alone told when each entry was put."""
    former = env.open_db(b"checkpoint_uses", txn=txn)
    order = [key for _, key in txn.cursor(former)]
    txn.drop(former)
    for use, key in enumerate(order, 1):
        former_record = bytes(txn.get(key, b"", tables.peer_checkpoints))
        _, generation = _PEER_CHECKPOINT_2.unpack_from(former_record)
        body = former_record[_PEER_CHECKPOINT_2.size :]
        content = records.pack_peer_checkpoint(generation, 0, 0, body)
        recent.place(txn, tables, checkpoints.PEERS, Entry(key, use, content))
    # Which peer a checkpoint of ours is shared with was not told.
    for table, convert in (
        (checkpoints.LOCAL, _add_peer),
        (remotes.REMOTES, bytes),
        (remotes.PEERS_AT, bytes),
    ):
        rows = list(txn.cursor(table.handle(tables)))
        for use, (key, content) in enumerate(rows, 1):
            recent.place(txn, tables, table, Entry(key, use, convert(content)))


def _add_peer(body: bytes) -> bytes:
    return records.pack_local_checkpoint(LocalCheckpoint(0, 0, body))


# --- 3 to 4 --------------------------------------------------------------------------------------


def _put_keys_in_order(env: lmdb.Environment, txn: lmdb.Transaction[Any], tables: Tables) -> None:
    """The keys in bodies stood as they came."""
    for table in (tables.documents, tables.conflicts, tables.bases):
        _rewrite(txn, table, _with_keys_in_order)


def _with_keys_in_order(raw: bytes, key: bytes) -> bytes:
    key_sum = zlib.crc32(key)
    if _sum(raw[:-_CHECKSUM_BYTES], key_sum) != raw:
        return raw  # Damaged, and must stay so.
    _, _, vector_bytes, tree_bytes = _REVISION.unpack_from(raw)
    body_at = _REVISION.size + vector_bytes + tree_bytes + _CHECKSUM_BYTES
    body = cbor2.dumps(_ordered(cbor2.loads(raw[body_at:-_CHECKSUM_BYTES])))
    return _sum(raw[:body_at] + body, key_sum)


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return list(map(_ordered, value)) if isinstance(value, list) else value


MIGRATIONS: Final[Mapping[int, Migration]] = {
    1: _number_for_good,
    2: _from_2,
    3: _put_keys_in_order,
}
"""By the version each starts from."""
