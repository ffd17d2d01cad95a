"""Checkpoints: our own, and those that peers keep with us.

A peer's checkpoint has a revision that its next one must name, so that two clients which share an
ID notice each other. How many are kept is limited, since anyone may invent IDs: the one that was
set least recently gives way.
"""

from __future__ import annotations

from dataclasses import dataclass

from trio_p2p import limits
from trio_p2p.errors import ConflictError
from trio_p2p.store import keys, records
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction


@dataclass(frozen=True, slots=True)
class PeerCheckpoint:
    """A checkpoint kept for a peer. Its revision is `<n>-cc`, as Couchbase Lite writes it."""

    revision: str
    body: bytes


def local(txn: ReadTransaction, checkpoint_id: str) -> bytes | None:
    """Our own checkpoint of this ID."""
    raw = txn.raw.get(keys.text(checkpoint_id), None, txn.tables.local_checkpoints)
    return None if raw is None else bytes(raw)


def set_local(txn: WriteTransaction, checkpoint_id: str, body: bytes) -> None:
    """Keep our own checkpoint."""
    txn.raw.put(keys.text(checkpoint_id), body, db=txn.tables.local_checkpoints)


def seen(txn: ReadTransaction, checkpoint_id: str) -> int:
    """Up to which sequence the peer had, when it stored the checkpoint, what it had sent us."""
    raw = txn.raw.get(keys.text(checkpoint_id), None, txn.tables.seen)
    return 0 if raw is None else keys.read_number(raw)[0]


def set_seen(txn: WriteTransaction, checkpoint_id: str, sequence: int) -> None:
    """Keep what `seen` tells, with our own checkpoint."""
    txn.raw.put(keys.text(checkpoint_id), keys.number(sequence), db=txn.tables.seen)


def peer(txn: ReadTransaction, client: str) -> PeerCheckpoint | None:
    """The checkpoint kept for a peer."""
    raw = txn.raw.get(keys.text(client), None, txn.tables.peer_checkpoints)
    if raw is None:
        return None
    _, generation, body = records.unpack_peer_checkpoint(raw)
    return PeerCheckpoint(_revision(generation), body)


def set_peer(txn: WriteTransaction, client: str, expected_revision: str, body: bytes) -> str:
    """Keep a checkpoint for a peer; returns its new revision.

    `expected_revision` names the one it replaces; it is empty if there is none yet.

    Raises: ConflictError if another one is kept; `current` is its revision.
    """
    tables = txn.tables
    key = keys.text(client)
    raw = txn.raw.get(key, None, tables.peer_checkpoints)
    use, generation = (0, 0) if raw is None else records.unpack_peer_checkpoint(raw)[:2]
    current = _revision(generation)
    if expected_revision != current:
        raise ConflictError(
            "the checkpoint has another revision", expected=expected_revision, current=current
        )
    if raw is not None:
        txn.raw.delete(keys.number(use), b"", tables.checkpoint_uses)
    else:
        _make_room(txn)
    use = _next_use(txn)
    record = records.pack_peer_checkpoint(use, generation + 1, body)
    txn.raw.put(key, record, db=tables.peer_checkpoints)
    txn.raw.put(keys.number(use), key, db=tables.checkpoint_uses)
    return _revision(generation + 1)


def forget_all(txn: WriteTransaction) -> None:
    """Forget all checkpoints, so that whoever replicates starts over."""
    tables = txn.tables
    for table in (
        tables.local_checkpoints,
        tables.seen,
        tables.peer_checkpoints,
        tables.checkpoint_uses,
    ):
        txn.raw.drop(table, delete=False)


def _revision(generation: int) -> str:
    return f"{generation}-cc" if generation else ""


def _make_room(txn: WriteTransaction) -> None:
    """Drop the checkpoint that was set least recently, if there is no room for another one."""
    uses = txn.raw.cursor(txn.tables.checkpoint_uses)
    kept = txn.raw.stat(txn.tables.peer_checkpoints)["entries"]
    if kept >= limits.PEER_CHECKPOINTS_MAX and uses.first():
        txn.raw.delete(bytes(uses.value()), b"", txn.tables.peer_checkpoints)
        uses.delete()


def _next_use(txn: WriteTransaction) -> int:
    uses = txn.raw.cursor(txn.tables.checkpoint_uses)
    last: int = keys.read_number(uses.key())[0] if uses.last() else 0
    return last + 1
