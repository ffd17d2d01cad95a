"""What is known of other peers: their numbers, what they have, and who was met where.

A peer's key (its database's UUID, or a stable name) stands in a record of every document it is
known to have, so it is replaced by a small number there.
"""

from __future__ import annotations

from trio_p2p.ids import DocumentID
from trio_p2p.model.version import RevisionID
from trio_p2p.store import keys, records, schema
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction


def find(txn: ReadTransaction, key: str) -> int | None:
    """The number of a peer, if it has one."""
    raw = txn.raw.get(keys.text(key), None, txn.tables.remotes)
    return None if raw is None else keys.read_number(raw)[0]


def number(txn: WriteTransaction, key: str) -> int:
    """The number of a peer, given to it now if it has none; never one that another had before."""
    found = find(txn, key)
    if found is None:
        found = schema.next_number(txn.raw, txn.tables.meta, schema.META_LAST_REMOTE)
        txn.raw.put(keys.text(key), keys.number(found), db=txn.tables.remotes)
    return found


def numbers(txn: ReadTransaction) -> list[int]:
    """The numbers of all peers."""
    return [keys.read_number(value)[0] for _, value in txn.raw.cursor(txn.tables.remotes)]


def known(
    txn: ReadTransaction, remote: int, collection: int, document_id: DocumentID
) -> RevisionID | None:
    """The latest revision of a document that a peer is known to have."""
    raw = txn.raw.get(keys.known(remote, collection, document_id), None, txn.tables.known)
    return None if raw is None else records.unpack_revision_id(bytes(raw))


def set_known(
    txn: WriteTransaction,
    remote: int,
    collection: int,
    document_id: DocumentID,
    revision_id: RevisionID,
) -> None:
    """Note that a peer has this revision of a document."""
    txn.raw.put(
        keys.known(remote, collection, document_id),
        records.pack_revision_id(revision_id),
        db=txn.tables.known,
    )


def forget_document(txn: WriteTransaction, collection: int, document_id: DocumentID) -> None:
    """Forget which revisions of a document any peer has."""
    for remote in numbers(txn):
        txn.raw.delete(keys.known(remote, collection, document_id), b"", txn.tables.known)


def peer_at(txn: ReadTransaction, target: str) -> str | None:
    """The key of the peer that was last met at a target (a URL)."""
    raw = txn.raw.get(keys.text(target), None, txn.tables.peers_at)
    return None if raw is None else str(raw, "utf-8")


def set_peer_at(txn: WriteTransaction, target: str, peer_key: str) -> None:
    """Note which peer was met at a target."""
    txn.raw.put(keys.text(target), peer_key.encode(), db=txn.tables.peers_at)
