"""Keys: ordered bytes, so that LMDB's order is the order readers want.

Integers are big-endian. Document IDs are UTF-8, whose byte order is the order of code points, and
hold no byte 0xFF and no control character: so 0xFF after a prefix lies behind every key that begins
with it, and 0x00 ends an ID within a key.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from trio_p2p import limits
from trio_p2p.ids import DocumentID
from trio_p2p.model.version import Version

# LMDB's limit, compiled in. Every key built here stays below it.
KEY_BYTES_MAX: Final = 511
_VERSION_BYTES: Final = 24
_SEQUENCE_MAX: Final = 2**64 - 1
_SHA1_BYTES: Final = 20
assert _SHA1_BYTES + 1 + 4 + limits.DOCUMENT_ID_BYTES_MAX + 1 + _VERSION_BYTES <= KEY_BYTES_MAX

_collection = struct.Struct(">I")
_sequence = struct.Struct(">IQ")
_known = struct.Struct(">II")
_expiring = struct.Struct(">QI")
_number = struct.Struct(">Q")

collection = _collection.pack
"""The key of a collection, and what the keys of all its documents begin with."""

read_collection = _collection.unpack
known_prefix = _collection.pack
"""What the keys of all that a remote is known to have begin with."""

change = _sequence.pack
"""The key of a change: collection and sequence."""

read_change = _sequence.unpack
number = _number.pack
read_number = _number.unpack


def document(collection: int, document_id: DocumentID) -> bytes:
    """The key of a document."""
    return _collection.pack(collection) + document_id.encode()


def behind_change(collection: int, sequence: int) -> bytes:
    """A bound right behind the change of a sequence, which may be any integer."""
    return change(collection, min(max(sequence, -1) + 1, _SEQUENCE_MAX))


def read_expiring(key: memoryview) -> tuple[int, int, DocumentID]:
    """The time, collection and document ID in the key of an expiration by its time."""
    when_us, collection = _expiring.unpack_from(key)
    return when_us, collection, DocumentID(str(key[_expiring.size :], "utf-8"))


def known(remote: int, collection: int, document_id: DocumentID) -> bytes:
    """The key of what a remote is known to have of a document."""
    return _known.pack(remote, collection) + document_id.encode()


def conflicts(collection: int, document_id: DocumentID) -> bytes:
    """What the keys of all conflicting revisions of a document begin with."""
    return _collection.pack(collection) + document_id.encode() + b"\0"


def conflict(collection: int, document_id: DocumentID, version: Version) -> bytes:
    """The key of one conflicting revision of a document."""
    return conflicts(collection, document_id) + version.to_bytes()


def blob_use(sha1: bytes, place: bytes, key: bytes) -> bytes:
    """The key that tells of a revision which names a blob: its table's sign, and its key there."""
    return sha1 + place + key


def read_document(key: memoryview) -> DocumentID:
    """The document ID in the key of a document."""
    return DocumentID(str(key[_collection.size :], "utf-8"))


def read_conflict(key: bytes) -> DocumentID:
    """The document ID in the key of a conflicting revision."""
    return DocumentID(key[_collection.size : -_VERSION_BYTES - 1].decode())


def behind_conflicts(collection: int, document_id: DocumentID) -> bytes:
    """A bound behind all conflicting revisions of a document, before those of any other."""
    return _collection.pack(collection) + document_id.encode() + b"\x01"


def bound(collection: int, text: str) -> bytes:
    """Where the documents begin whose IDs are not smaller than `text`, which may be any text."""
    # No ID is as long as what is cut off here, so cutting does not move the bound.
    cut = text.encode("utf-8", "surrogatepass")[: limits.DOCUMENT_ID_BYTES_MAX + 1]
    return _collection.pack(collection) + cut


def behind(prefix: bytes) -> bytes:
    """A bound behind every document key that begins with `prefix`."""
    return prefix + b"\xff"


def text(text: str) -> bytes:
    """A key for text of any length; what is too long is represented by its hash."""
    raw = text.encode("utf-8", "surrogatepass")
    if 0 < len(raw) <= KEY_BYTES_MAX:
        return raw
    return b"\xff" + hashlib.sha256(raw).digest()
