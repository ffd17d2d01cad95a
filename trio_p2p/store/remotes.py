"""What is known of other peers: their numbers, what they have, and who was met where.

A peer's key (its database's UUID, or a stable name) stands in a record of every document it is
known to have, so it is replaced by a small number there. How many peers are remembered is limited:
the one that was met least recently is forgotten, with all that is known of it.
"""

from __future__ import annotations

from typing import Final

from trio_p2p import limits
from trio_p2p.ids import DocumentID
from trio_p2p.model.version import RevisionID
from trio_p2p.store import bases, checkpoints, keys, recent, records, schema
from trio_p2p.store.recent import Bounded
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction

REMOTES: Final = Bounded("remotes", 3)
PEERS_AT: Final = Bounded("peers_at", 4)

# Looking at a record is so much cheaper than removing one.
_LOOKS_PER_REMOVAL: Final = 10


def find(txn: ReadTransaction, key: str) -> int | None:
    """The number of a peer, if it has one."""
    entry = recent.get(txn, REMOTES, keys.text(key))
    return None if entry is None else keys.read_number(entry.content)[0]


def number(txn: WriteTransaction, key: str) -> int:
    """The number of a peer that is met, given to it now if it has none; never one that another had.

    If too many are remembered, the one met least recently is forgotten.
    """
    found = find(txn, key)
    if found is None:
        least = recent.make_room(txn, REMOTES, limits.REMOTES_MAX)
        if least is not None:
            _forget(txn, least)
        found = schema.next_number(txn.raw, txn.tables.meta, schema.META_LAST_REMOTE)
    recent.put(txn, REMOTES, keys.text(key), keys.number(found))
    return found


# --- What peers have -----------------------------------------------------------------------------


def known(
    txn: ReadTransaction, remote: int, collection: int, document_id: DocumentID
) -> RevisionID | None:
    """The latest revision of a document that a peer is known to have."""
    key = keys.known_revision(collection, document_id, remote)
    raw = txn.raw.get(key, None, txn.tables.known_revisions)
    return None if raw is None else records.unpack_revision_id(bytes(raw))


def set_known(
    txn: WriteTransaction,
    remote: int,
    collection: int,
    document_id: DocumentID,
    revision_id: RevisionID,
) -> None:
    """Note that a peer has this revision of a document."""
    key = keys.known_revision(collection, document_id, remote)
    packed = records.pack_revision_id(revision_id)
    before = txn.raw.replace(key, packed, db=txn.tables.known_revisions)
    if before is None:
        txn.peers = None
    elif before != packed:
        bases.drop_if_unneeded(txn, collection, document_id, bytes(before))


def forget_revision(
    txn: WriteTransaction,
    collection: int,
    document_id: DocumentID,
    revision_id: RevisionID,
    *,
    but_of: int = 0,
) -> None:
    """Forget which peers have a revision that is stored anew, as when a conflict was decided so.

    Its new sequence is behind what they are known to have, and one that was rolled back meanwhile
    would not be offered it again. `but_of` is a peer that has just sent it, if any.
    """
    table, packed = txn.tables.known_revisions, records.pack_revision_id(revision_id)
    rows = txn.rows(table, keys.of_document(collection, document_id))
    having = [
        bytes(key) for key, value in rows if value == packed and keys.read_remote(key) != but_of
    ]
    for key in having:
        txn.raw.delete(key, b"", table)


def forget_document(txn: WriteTransaction, collection: int, document_id: DocumentID) -> None:
    """Forget which revisions of a document any peer has."""
    table, prefix = txn.tables.known_revisions, keys.of_document(collection, document_id)
    for key in [bytes(key) for key, _ in txn.rows(table, prefix)]:
        txn.raw.delete(key, b"", table)


# --- Forgetting peers ----------------------------------------------------------------------------


def _forget(txn: WriteTransaction, least: recent.Entry) -> None:
    """Forget a peer that was removed; what it has is left to `erase_forgotten`."""
    for met in list(recent.entries(txn, PEERS_AT)):
        if keys.text(str(met.content, "utf-8")) == least.key:
            recent.remove(txn, PEERS_AT, met.key)
    checkpoints.forget_remote(txn, keys.read_number(least.content)[0])
    txn.raw.put(least.content, b"", db=txn.tables.forgotten)


def is_any_forgotten(txn: ReadTransaction) -> bool:
    """Whether there is anything for `erase_forgotten`."""
    return txn.raw.cursor(txn.tables.forgotten).first()


def erase_forgotten(txn: WriteTransaction, limit: int) -> None:
    """Remove about `limit` records of what a forgotten peer had; once there are none, its number.

    They stand among those of other peers, so all are looked at, some in each transaction.
    """
    forgotten = txn.raw.cursor(txn.tables.forgotten)
    if not forgotten.first():
        return
    number_key, after = bytes(forgotten.key()), bytes(forgotten.value())
    found, last = _next_known(txn, keys.read_number(number_key)[0], after, limit)
    for key in found:
        txn.raw.delete(key, b"", txn.tables.known_revisions)
        bases.drop_unneeded(txn, *keys.read_known_revision(key))
    if last is None:
        txn.raw.delete(number_key, b"", txn.tables.forgotten)
    else:
        txn.raw.put(number_key, last, db=txn.tables.forgotten)


def _next_known(
    txn: ReadTransaction, remote: int, after: bytes, limit: int
) -> tuple[list[bytes], bytes | None]:
    """The next keys of what a peer has, and the last key looked at; None for that at the end."""
    found: list[bytes] = []
    looks = limit * _LOOKS_PER_REMOVAL
    cursor = txn.raw.cursor(txn.tables.known_revisions)
    if cursor.set_range(after + b"\0"):
        for key in cursor.iternext(values=False):
            looks -= 1
            if keys.read_remote(key) == remote:
                found.append(bytes(key))
            if looks == 0 or len(found) == limit:
                return found, bytes(key)
    return found, None


# --- Who was met where ---------------------------------------------------------------------------


def peer_at(txn: ReadTransaction, target: str) -> str | None:
    """The key of the peer that was last met at a target (a URL)."""
    entry = recent.get(txn, PEERS_AT, keys.text(target))
    return None if entry is None else str(entry.content, "utf-8")


def set_peer_at(txn: WriteTransaction, target: str, peer_key: str) -> None:
    """Note which peer was met at a target."""
    if recent.get(txn, PEERS_AT, keys.text(target)) is None:
        recent.make_room(txn, PEERS_AT, limits.TARGETS_MAX)
    recent.put(txn, PEERS_AT, keys.text(target), peer_key.encode())
