"""Checkpoints: our own, and those that peers keep with us.

A peer's checkpoint has a revision that its next one must name, so that two clients which share an
ID notice each other. How many are kept is limited, since anyone may invent IDs: the one that was
set least recently gives way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trio_p2p import limits
from trio_p2p.errors import ConflictError
from trio_p2p.store import bases, keys, recent, records, schema
from trio_p2p.store.recent import Bounded, Entry
from trio_p2p.store.records import LocalCheckpoint
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction

LOCAL: Final = Bounded("local_checkpoints", 1)
PEERS: Final = Bounded("peer_checkpoints", 2)


@dataclass(frozen=True, slots=True)
class PeerCheckpoint:
    """A checkpoint kept for a peer. Its revision is `<n>-cc`, as Couchbase Lite writes it."""

    revision: str
    body: bytes


def local(txn: ReadTransaction, checkpoint_id: str) -> bytes | None:
    """Our own checkpoint of this ID."""
    entry = recent.get(txn, LOCAL, keys.text(checkpoint_id))
    return None if entry is None else records.unpack_local_checkpoint(entry.content).body


def seen(txn: ReadTransaction, checkpoint_id: str) -> int:
    """Up to which sequence the peer had, when it stored the checkpoint, what it had sent us."""
    entry = recent.get(txn, LOCAL, keys.text(checkpoint_id))
    return 0 if entry is None else records.unpack_local_checkpoint(entry.content).seen


def set_local(
    txn: WriteTransaction, checkpoint_id: str, body: bytes, *, remote: int = 0, seen: int = 0
) -> None:
    """Keep our own checkpoint, the number of the peer it is shared with, and what `seen` tells."""
    key = keys.text(checkpoint_id)
    if recent.get(txn, LOCAL, key) is None:
        recent.make_room(txn, LOCAL, limits.LOCAL_CHECKPOINTS_MAX)
    record = records.pack_local_checkpoint(LocalCheckpoint(remote, seen, body))
    recent.put(txn, LOCAL, key, record)


def forget_remote(txn: WriteTransaction, remote: int) -> None:
    """Forget our own checkpoints that are shared with a peer."""
    for entry in list(recent.entries(txn, LOCAL)):
        if records.unpack_local_checkpoint(entry.content).remote == remote:
            recent.remove(txn, LOCAL, entry.key)


def peer(txn: ReadTransaction, client: str) -> PeerCheckpoint | None:
    """The checkpoint kept for a peer."""
    entry = recent.get(txn, PEERS, keys.text(client))
    if entry is None:
        return None
    generation, _, _, body = records.unpack_peer_checkpoint(entry.content)
    return PeerCheckpoint(_revision(generation), body)


def set_peer(
    txn: WriteTransaction,
    client: str,
    expected_revision: str,
    body: bytes,
    *,
    collection: int = schema.DEFAULT_COLLECTION,
    reached: int = 0,
) -> str:
    """Keep a checkpoint for a peer; returns its new revision.

    `expected_revision` names the one it replaces; it is empty if there is none yet. `reached` is
    the sequence that the peer has come to in a collection, as the checkpoint tells.

    Raises: ConflictError if another one is kept; `current` is its revision;
    CollectionNotFoundError: one that is made anew has nothing of what the peer says it sent.
    """
    txn.check_collection(collection)
    key = keys.text(client)
    entry = recent.get(txn, PEERS, key)
    generation = 0 if entry is None else records.unpack_peer_checkpoint(entry.content)[0]
    current = _revision(generation)
    if expected_revision != current:
        raise ConflictError(
            "the checkpoint has another revision", expected=expected_revision, current=current
        )
    least = None
    if entry is None:
        txn.peers = None
        least = recent.make_room(txn, PEERS, limits.PEER_CHECKPOINTS_MAX)
    record = records.pack_peer_checkpoint(generation + 1, collection, reached, body)
    use = recent.put(txn, PEERS, key, record)
    _move_mark(txn, entry, Entry(key, use, record))
    if least is not None:
        # Last, since the new mark may need what this one kept.
        _move_mark(txn, least, None)
    while least := recent.shrink(txn, PEERS, limits.PEER_CHECKPOINTS_BYTES_MAX):
        txn.peers = None
        _move_mark(txn, least, None)
    return _revision(generation + 1)


def forget_all(txn: WriteTransaction) -> None:
    """Forget all checkpoints, so that whoever replicates starts over."""
    kept = [(*_place(entry), entry.use) for entry in recent.entries(txn, PEERS)]
    marks = [(collection, reached, use) for collection, reached, use in kept if reached]
    for collection, reached, use in marks:
        bases.remove_mark(txn, collection, reached, use)
    # Afterwards: what is dropped must not depend on which mark goes first.
    for collection, reached, _ in marks:
        bases.note_passed(txn, collection, reached)
    recent.clear(txn, LOCAL)
    recent.clear(txn, PEERS)


def _revision(generation: int) -> str:
    return f"{generation}-cc" if generation else ""


def _move_mark(txn: WriteTransaction, before: Entry | None, after: Entry | None) -> None:
    """Let the mark of a peer follow its checkpoint."""
    collection, reached = _place(after)
    old_collection, old_reached = _place(before)
    if after is not None and reached:
        bases.add_mark(txn, collection, reached, after.use)
    if before is not None and old_reached:
        bases.remove_mark(txn, old_collection, old_reached, before.use)
    if old_collection == collection and reached >= old_reached:
        bases.note_passed(txn, collection, old_reached, reached)
        return
    if old_reached:
        bases.note_passed(txn, old_collection, old_reached)
    if reached:
        bases.note_passed(txn, collection, 0, reached)


def _place(entry: Entry | None) -> tuple[int, int]:
    """The collection and sequence that a peer has come to, as its checkpoint tells; or zeros."""
    if entry is None:
        return 0, 0
    _, collection, reached, _ = records.unpack_peer_checkpoint(entry.content)
    return collection, reached
