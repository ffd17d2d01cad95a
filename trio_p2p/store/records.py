"""Packed records: a fixed header, then parts whose lengths it tells.

A body stands last, so that everything before it is read without touching the pages it fills.
Readers take memoryviews of LMDB's pages and copy what outlives the transaction.

Revisions, change rows and collections end with a checksum (CRC-32) of their key and themselves:
disks and memory may change a bit, and LMDB does not notice. What was damaged must not be shown to
users nor sent to peers.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from trio_p2p.errors import StoreCorruptError
from trio_p2p.ids import DatabaseID, DocumentID, Sequence, SourceID
from trio_p2p.model import blob
from trio_p2p.model.document import EMPTY_BODY, Revision, Stored
from trio_p2p.model.version import (
    TREE_SOURCE,
    RevisionID,
    TreeRevisionID,
    Version,
    VersionVector,
)

# Flags of a revision record; the first one is also a change row's.
_DELETED: Final = 1
_MAY_NAME_BLOBS: Final = 2
_NO_SEQUENCE: Final = Sequence(0)

# Stands behind a record, and within a revision before its body too. Little-endian: the checksum of
# anything with its checksum behind it is the same number then, so that checking takes one call.
_CHECKSUM: Final = struct.Struct("<I")
_CHECKED: Final = 0x2144DF1C
# A revision: flags, sequence, bytes of the vector, bytes of the tree revision IDs.
_HEADER: Final = struct.Struct(">BQII")
# A change: flags, bytes of the body; then the revision ID, then the document ID.
_CHANGE: Final = struct.Struct(">BI")
# A change whose revision ID is a version, up to the document ID.
_VERSION_CHANGE: Final = struct.Struct(">BIBQ16s")
# A vector of one version: no merged ones, time, source. Most documents have one author, so these
# are written and read without a loop.
_SINGLE: Final = struct.Struct(">HQ16s")
_SINGLE_HEADER: Final = struct.Struct(">BQIIHQ16s")
_COLLECTION: Final = struct.Struct(">QQ")
# Where the current version stands in a revision record, whatever follows it.
_CURRENT: Final = slice(_HEADER.size + 2, _SINGLE_HEADER.size)
# A peer's checkpoint, before its body: how often it was set, collection, sequence reached in it.
_PEER_CHECKPOINT: Final = struct.Struct(">IIQ")
# A checkpoint of ours, before its body: the number of the peer it is shared with, and `seen`.
_LOCAL_CHECKPOINT: Final = struct.Struct(">QQ")


class Record:
    """A copy of a revision record, unpacked as far as it is asked for.

    Of most documents that a program reads it looks at nothing but the body, and making the objects
    that a `Revision` consists of takes longer than the reading.
    """

    __slots__ = ("_body_at", "_raw", "deleted")

    def __init__(self, raw: memoryview | bytes, key: bytes | memoryview) -> None:
        """Raises StoreCorruptError."""
        # Every document that is read comes through here: so there are no calls to the functions
        # below that do the same.
        if zlib.crc32(raw, zlib.crc32(key)) != _CHECKED or len(raw) < _HEADER.size:
            raise _damaged(raw)
        flags, _, vector_bytes, tree_bytes = _HEADER.unpack_from(raw)
        self._body_at: int = _HEADER.size + vector_bytes + tree_bytes + _CHECKSUM.size
        if len(raw) < self._body_at + _CHECKSUM.size:
            raise _damaged(raw)
        self._raw = bytes(raw)
        self.deleted: bool = flags & _DELETED == _DELETED
        """Whether it is a tombstone."""

    @property
    def revision(self) -> Revision:
        """All of it but the sequence."""
        return _unpack(self._raw, with_body=True).revision

    @property
    def sequence(self) -> Sequence:
        """The sequence it was stored under."""
        return _place(self._raw)[1]

    @property
    def body(self) -> bytes:
        """Its body as CBOR."""
        return self._raw[self._body_at : -_CHECKSUM.size]


class ChangeRow(NamedTuple):
    """The latest change of a document: what a peer must be offered."""

    sequence: Sequence
    document_id: DocumentID
    revision_id: RevisionID
    deleted: bool
    body_bytes: int


class Identity(NamedTuple):
    """What a database is called by its peers, and who authors the versions it makes."""

    id: DatabaseID
    source: SourceID


class LocalCheckpoint(NamedTuple):
    """A checkpoint of ours as it stands on the wire; of which peer (0: unknown), and what of its
    revisions it had when it stored it: those that we had stored up to the sequence `seen`.
    """

    remote: int
    seen: int
    body: bytes


@dataclass(slots=True)
class CollectionState:
    """A collection's name, the last sequence given in it, and how many live documents it has."""

    full_name: str
    last_sequence: Sequence = _NO_SEQUENCE
    count: int = 0


def pack_revision(revision: Revision, sequence: Sequence, key: bytes) -> bytes:
    """A revision with all it has, for a key. One that is not current has the sequence 0."""
    flags = revision.deleted * _DELETED | blob.may_name_blobs(revision.body) * _MAY_NAME_BLOBS
    vector = revision.vector
    if not (revision.trees or vector.merged or vector.previous):
        head = _SINGLE_HEADER.pack(flags, sequence, _SINGLE.size, 0, 0, *vector.current)
    else:
        packed = vector.to_bytes()
        trees = b"".join(map(_pack_tree, revision.trees))
        head = _HEADER.pack(flags, sequence, len(packed), len(trees)) + packed + trees
    body = revision.body
    return b"".join(
        (
            head,
            _CHECKSUM.pack(zlib.crc32(head, zlib.crc32(key))),
            body,
            _CHECKSUM.pack(zlib.crc32(body, _CHECKED)),
        )
    )


def unpack_revision(raw: memoryview, key: bytes | memoryview, *, with_body: bool = True) -> Stored:
    """Read what `pack_revision` wrote, copied; without its body if that is not wanted.

    Raises: StoreCorruptError.
    """
    if with_body:
        _check_revision(raw, key)
    else:
        _check_head(raw, key)
    return _unpack(raw, with_body=with_body)


def may_name_blobs(raw: memoryview | bytes) -> bool:
    """Whether the body in a revision record may name any blob, without reading it."""
    return raw[0] & _MAY_NAME_BLOBS != 0


def unpack_place(raw: memoryview, key: bytes | memoryview) -> tuple[bool, Sequence]:
    """Whether a revision record is a tombstone, and its sequence. Raises StoreCorruptError."""
    _check_head(raw, key)
    return _place(raw)


def _check_all(raw: memoryview | bytes, key: bytes | memoryview) -> None:
    """Raises StoreCorruptError if a record is not what was written for this key."""
    if zlib.crc32(raw, zlib.crc32(key)) != _CHECKED:
        raise _damaged(raw)


def _check_revision(raw: memoryview, key: bytes | memoryview) -> None:
    """As `_check_all` for a revision, whose head alone has a valid checksum too."""
    _check_all(raw, key)
    if len(raw) < _HEADER.size or len(raw) < _body_at(raw) + _CHECKSUM.size:
        raise _damaged(raw)


def _check_head(raw: memoryview, key: bytes | memoryview) -> None:
    """As `_check_all` for a revision, but for the body, which is not read."""
    try:
        body_at = _body_at(raw)
    except struct.error as exc:
        raise _damaged(raw) from exc
    if zlib.crc32(raw[:body_at], zlib.crc32(key)) != _CHECKED:
        raise _damaged(raw)


def _checksum(record: bytes, key: bytes) -> bytes:
    """What stands behind a record."""
    return _CHECKSUM.pack(zlib.crc32(record, zlib.crc32(key)))


def _unpack(raw: memoryview | bytes, *, with_body: bool) -> Stored:
    """Unpack a record that was checked."""
    try:
        flags, sequence, vector_bytes, tree_bytes, _, time, source = _SINGLE_HEADER.unpack_from(raw)
        trees_at = _HEADER.size + vector_bytes
        trees_end = trees_at + tree_bytes
        if vector_bytes == _SINGLE.size:
            vector = VersionVector(Version(time, source))
        else:
            vector = VersionVector.from_bytes(bytes(raw[_HEADER.size : trees_at]))
        trees = _unpack_trees(bytes(raw[trees_at:trees_end])) if tree_bytes else ()
    except (struct.error, ValueError, IndexError) as exc:
        raise _damaged(raw) from exc
    body = EMPTY_BODY
    if with_body:
        body = bytes(raw[trees_end + _CHECKSUM.size : -_CHECKSUM.size])
    return Stored(Revision(vector, body, flags & _DELETED == _DELETED, trees), sequence)


def _place(raw: memoryview | bytes) -> tuple[bool, Sequence]:
    flags, sequence, _, _ = _HEADER.unpack_from(raw)
    return flags & _DELETED == _DELETED, sequence


def _body_at(raw: memoryview | bytes) -> int:
    """Where the body begins in a revision record."""
    _, _, vector_bytes, tree_bytes = _HEADER.unpack_from(raw)
    body_at: int = _HEADER.size + vector_bytes + tree_bytes + _CHECKSUM.size
    return body_at


def _damaged(raw: memoryview | bytes) -> StoreCorruptError:
    return StoreCorruptError("a record is damaged: restore a backup", bytes=len(raw))


def current_version(raw: memoryview) -> bytes:
    """The current version in a revision record, as its 24 bytes."""
    return bytes(raw[_CURRENT])


def current_id(raw: memoryview) -> bytes:
    """The revision ID in a revision record, as `pack_revision_id` writes it."""
    version = current_version(raw)
    _, _, vector_bytes, tree_bytes = _HEADER.unpack_from(raw)
    if tree_bytes and version[8:] == TREE_SOURCE:
        tree_at = _HEADER.size + vector_bytes
        return bytes(raw[tree_at : tree_at + 1 + raw[tree_at]])
    return b"\0" + version


def under_key(raw: memoryview, key: bytes) -> bytes:
    """A revision record whose head was checked, for another key; the body is not looked at."""
    body_at = _body_at(raw)
    head = bytes(raw[: body_at - _CHECKSUM.size])
    return b"".join((head, _checksum(head, key), raw[body_at:]))


def pack_change(revision: Revision, document_id: bytes, key: bytes) -> bytes:
    """A row of the change feed, for a key; the ID is UTF-8."""
    revision_id = revision.id
    if isinstance(revision_id, Version):
        row = _VERSION_CHANGE.pack(revision.deleted, len(revision.body), 0, *revision_id)
    else:
        row = _CHANGE.pack(revision.deleted, len(revision.body)) + _pack_tree(revision_id)
    row += document_id
    return row + _checksum(row, key)


def unpack_change(sequence: Sequence, raw: memoryview, key: bytes | memoryview) -> ChangeRow:
    """Read what `pack_change` wrote. Raises StoreCorruptError."""
    _check_all(raw, key)
    revision_id: RevisionID
    try:
        if raw[_CHANGE.size] == 0:
            flags, body_bytes, _, time, source = _VERSION_CHANGE.unpack_from(raw)
            revision_id = Version(time, source)
            name = str(raw[_VERSION_CHANGE.size : -_CHECKSUM.size], "utf-8")
        else:
            flags, body_bytes = _CHANGE.unpack_from(raw)
            revision_id = unpack_revision_id(bytes(raw[_CHANGE.size :]))
            name = str(raw[_CHANGE.size + 1 + raw[_CHANGE.size] : -_CHECKSUM.size], "utf-8")
    except (struct.error, ValueError, IndexError) as exc:
        raise _damaged(raw) from exc
    deleted = flags & _DELETED == _DELETED
    return ChangeRow(sequence, DocumentID(name), revision_id, deleted, body_bytes)


def pack_revision_id(revision_id: RevisionID) -> bytes:
    """0 and the version, or the length of a tree revision ID and that: tells its own end."""
    if isinstance(revision_id, Version):
        return b"\0" + revision_id.to_bytes()
    return _pack_tree(revision_id)


def unpack_revision_id(raw: bytes) -> RevisionID:
    """Read what `pack_revision_id` wrote; more bytes may follow."""
    if raw[0] == 0:
        return Version(int.from_bytes(raw[1:9], "big"), SourceID(raw[9:25]))
    return _unpack_tree(raw[1 : 1 + raw[0]])


def _pack_tree(tree: TreeRevisionID) -> bytes:
    return bytes((4 + len(tree.digest),)) + tree.generation.to_bytes(4, "big") + tree.digest


def _unpack_tree(raw: bytes) -> TreeRevisionID:
    return TreeRevisionID(int.from_bytes(raw[:4], "big"), raw[4:])


def _unpack_trees(raw: bytes) -> tuple[TreeRevisionID, ...]:
    trees = []
    at = 0
    while at < len(raw):
        end = at + 1 + raw[at]
        trees.append(_unpack_tree(raw[at + 1 : end]))
        at = end
    return tuple(trees)


def pack_collection(state: CollectionState, key: bytes) -> bytes:
    """A collection's record, for its key."""
    record = _COLLECTION.pack(state.last_sequence, state.count) + state.full_name.encode()
    return record + _checksum(record, key)


def unpack_collection(raw: bytes, key: bytes) -> CollectionState:
    """Read what `pack_collection` wrote. Raises StoreCorruptError."""
    _check_all(raw, key)
    try:
        last_sequence, count = _COLLECTION.unpack_from(raw)
        name = raw[_COLLECTION.size : -_CHECKSUM.size].decode()
    except (struct.error, ValueError) as exc:
        raise _damaged(raw) from exc
    return CollectionState(name, last_sequence, count)


def pack_peer_checkpoint(generation: int, collection: int, reached: int, body: bytes) -> bytes:
    """A checkpoint kept for a peer: how often it was set, how far that peer has come in a
    collection (both 0 if that is not known), and what it is.
    """
    return _PEER_CHECKPOINT.pack(generation, collection, reached) + body


def unpack_peer_checkpoint(raw: bytes) -> tuple[int, int, Sequence, bytes]:
    """Read what `pack_peer_checkpoint` wrote."""
    generation, collection, reached = _PEER_CHECKPOINT.unpack_from(raw)
    return generation, collection, Sequence(reached), raw[_PEER_CHECKPOINT.size :]


def pack_local_checkpoint(checkpoint: LocalCheckpoint) -> bytes:
    """A checkpoint of ours."""
    return _LOCAL_CHECKPOINT.pack(checkpoint.remote, checkpoint.seen) + checkpoint.body


def unpack_local_checkpoint(raw: bytes) -> LocalCheckpoint:
    """Read what `pack_local_checkpoint` wrote."""
    remote, seen = _LOCAL_CHECKPOINT.unpack_from(raw)
    return LocalCheckpoint(remote, seen, raw[_LOCAL_CHECKPOINT.size :])
