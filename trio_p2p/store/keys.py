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
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.version import Version

# LMDB's limit, compiled in. Every key built here stays below it.
KEY_BYTES_MAX: Final = 511
_VERSION_BYTES: Final = 24
_SEQUENCE_MAX: Final = 2**64 - 1
_SHA1_BYTES: Final = 20
assert _SHA1_BYTES + 1 + 4 + limits.DOCUMENT_ID_BYTES_MAX + 1 + _VERSION_BYTES + 8 <= KEY_BYTES_MAX

_collection = struct.Struct(">I")
_sequence = struct.Struct(">IQ")
_mark = struct.Struct(">IQQ")
_expiring = struct.Struct(">QI")
_number = struct.Struct(">Q")
_use = struct.Struct(">BQ")

collection = _collection.pack
"""The key of a collection, and what the keys of all its documents begin with."""

read_collection = _collection.unpack
change = _sequence.pack
"""The key of a change: collection and sequence."""

read_change = _sequence.unpack
mark = _mark.pack
"""The key of a peer's mark: collection, sequence, and the use of its checkpoint."""

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


def of_document(collection: int, document_id: DocumentID) -> bytes:
    """What keys begin with where a document may have several records."""
    return of_document_at(document(collection, document_id))


def of_document_at(document_key: bytes) -> bytes:
    """As `of_document`, from the key of the document."""
    return document_key + b"\0"


def revision(collection: int, document_id: DocumentID, version: Version) -> bytes:
    """The key of one of several revisions of a document."""
    return of_document(collection, document_id) + version.to_bytes()


def base(prefix: bytes, version: bytes, until: int) -> bytes:
    """The key of a base, behind `of_document`: its version, and which sequence took its place."""
    return prefix + version + number(until)


def read_base(key: memoryview) -> tuple[DocumentID, Sequence]:
    """The document ID in the key of a base, and the sequence that took the base's place."""
    name = str(key[_collection.size : -_VERSION_BYTES - _number.size - 1], "utf-8")
    return DocumentID(name), Sequence(_number.unpack(key[-_number.size :])[0])


def known_revision(collection: int, document_id: DocumentID, remote: int) -> bytes:
    """The key of what a remote is known to have of a document."""
    return of_document(collection, document_id) + _collection.pack(remote)


def read_known_revision(key: bytes) -> tuple[int, DocumentID]:
    """The collection and document ID in the key of what a remote is known to have."""
    name = key[_collection.size : -_collection.size - 1]
    return _collection.unpack_from(key)[0], DocumentID(name.decode())


def read_remote(known_revision_key: memoryview) -> int:
    """The number of the remote in the key of what it is known to have."""
    remote: int = _collection.unpack(known_revision_key[-_collection.size :])[0]
    return remote


def read_mark(key: memoryview) -> tuple[int, int]:
    """The collection and sequence in the key of a mark."""
    collection, sequence, _ = _mark.unpack(key)
    return collection, sequence


def use(sign: int, number: int) -> bytes:
    """The key of a use of an entry, behind the sign of its table."""
    return _use.pack(sign, number)


def read_use(key: memoryview) -> int:
    """The number in the key of a use."""
    number: int = _use.unpack(key)[1]
    return number


def blob_use(sha1: bytes, place: bytes, key: bytes) -> bytes:
    """The key that tells of a revision which names a blob: its table's sign, and its key there."""
    return sha1 + place + key


def read_blob_use(row: bytes) -> tuple[bytes, int]:
    """The sign of the table, and the collection, in the key of a use of a blob."""
    place = row[_SHA1_BYTES : _SHA1_BYTES + 1]
    return place, _collection.unpack_from(row, _SHA1_BYTES + 1)[0]


def read_document(key: memoryview) -> DocumentID:
    """The document ID in the key of a document."""
    return DocumentID(str(key[_collection.size :], "utf-8"))


def read_revision(key: bytes) -> DocumentID:
    """The document ID in the key of one of several revisions."""
    return DocumentID(key[_collection.size : -_VERSION_BYTES - 1].decode())


def behind_document(collection: int, document_id: DocumentID) -> bytes:
    """A bound behind all records of a document that has several, before those of any other."""
    return document(collection, document_id) + b"\x01"


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
