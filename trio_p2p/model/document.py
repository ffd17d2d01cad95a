"""Revisions, as peers exchange them, and documents, as users see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.blob import may_name_blobs, with_blobs
from trio_p2p.model.codec import decode_body
from trio_p2p.model.version import (
    TREE_SOURCE,
    Order,
    RevisionID,
    TreeRevisionID,
    Version,
    VersionVector,
    relate,
)

EMPTY_BODY = b"\xa0"
"""CBOR of the empty mapping: the body of a tombstone."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Revision:
    """One state of a document: which versions it includes, and its body as CBOR.

    `trees` are tree revision IDs, newest first, of a document that began in Couchbase Lite 3. Where
    it was never edited since, the first of them is what names the revision, and `vector` holds
    nothing but the version that stands for it.
    """

    vector: VersionVector
    body: bytes = EMPTY_BODY
    deleted: bool = False
    trees: tuple[TreeRevisionID, ...] = ()

    @classmethod
    def from_tree(
        cls, trees: tuple[TreeRevisionID, ...], body: bytes, *, deleted: bool
    ) -> Revision:
        """A revision that has only tree revision IDs."""
        return cls(VersionVector(trees[0].as_version()), body, deleted, trees)

    @property
    def version(self) -> Version:
        """The current version."""
        return self.vector.current

    @property
    def is_legacy(self) -> bool:
        """Whether a tree revision ID names it."""
        return bool(self.trees) and self.vector.current.source == TREE_SOURCE

    @property
    def id(self) -> RevisionID:
        """What names it on the wire."""
        return self.trees[0] if self.is_legacy else self.vector.current

    def has(self, revision_id: RevisionID) -> bool:
        """Whether it is, or was made on top of, the revision of this ID."""
        if isinstance(revision_id, Version):
            return self.vector.has(revision_id)
        return (
            revision_id in self.trees
            or self.vector.time_of(TREE_SOURCE) == revision_id.as_version().time
        )

    def compare(self, other: Revision) -> Order:
        """Relate two revisions of one document."""
        return relate(
            same=self.version == other.version,
            includes=self.has(other.id),
            included=other.has(self.id),
        )

    def edited(self, version: Version, body: bytes, *, deleted: bool = False) -> Revision:
        """The revision that follows on this one. `version` must be later than all in it."""
        vector = VersionVector(version) if self.is_legacy else self.vector.edited(version)
        return Revision(vector, body, deleted, self.trees)


class StoredRevision(Protocol):
    """A revision under the sequence it was stored as, which tells the rest without unpacking it."""

    @property
    def revision(self) -> Revision: ...
    @property
    def sequence(self) -> Sequence: ...
    @property
    def deleted(self) -> bool: ...
    @property
    def body(self) -> bytes: ...


class Stored(NamedTuple):
    """A stored revision that is unpacked."""

    revision: Revision
    sequence: Sequence

    @property
    def deleted(self) -> bool:
        """Whether it is a tombstone."""
        return self.revision.deleted

    @property
    def body(self) -> bytes:
        """Its body as CBOR."""
        return self.revision.body


class CollectionName(Protocol):
    """What a document knows of the collection it is in."""

    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def full_name(self) -> str: ...
    def make_blob(self, properties: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """A document as it was when read; `doc["key"]` is a value of its body.

    Two reads of one revision are equal. `id` is text. `collection` is where it was read, and
    `stored` what it is made of, for the sync engine.
    """

    id: DocumentID
    stored: StoredRevision
    collection: CollectionName

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Document):
            return NotImplemented
        return self.id == other.id and self.revision == other.revision

    def __hash__(self) -> int:
        return hash((self.id, self.revision.vector))

    def __repr__(self) -> str:
        state = "deleted" if self.deleted else f"{len(self.stored.body)} bytes"
        return f"<Document {self.id!r} {self.version} {state}>"

    def __getitem__(self, key: str) -> Any:
        return self.body[key]

    @property
    def body(self) -> dict[str, Any]:
        """A fresh dict, yours to change, with a `Blob` where one is; empty for a tombstone.

        Its keys, and those of all mappings in it, are in the order of their code points.
        """
        encoded = self.stored.body
        body = decode_body(encoded)
        if may_name_blobs(encoded):
            return with_blobs(body, self.collection.make_blob)
        return body

    @property
    def revision(self) -> Revision:
        """What of it is exchanged with peers."""
        return self.stored.revision

    @property
    def sequence(self) -> Sequence:
        """The place of this revision among the changes of its collection, counting from 1."""
        return self.stored.sequence

    @property
    def version(self) -> Version:
        """The current version; `str` of it is `<hex time>@<source>`."""
        return self.revision.version

    @property
    def vector(self) -> VersionVector:
        """All versions this revision includes."""
        return self.revision.vector

    @property
    def deleted(self) -> bool:
        """Whether this is a tombstone."""
        return self.stored.deleted

    @property
    def timestamp(self) -> datetime:
        """When this version was made, by its author's clock (aware, UTC)."""
        return _EPOCH + timedelta(microseconds=self.version.time // 1000)
