"""Edits, checked and encoded on the caller's side and ready to be applied by the writer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trio_p2p import ids
from trio_p2p.errors import ConflictError, StoreError
from trio_p2p.ids import DocumentID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import Document, Stored
from trio_p2p.model.version import Version
from trio_p2p.store import documents, purging
from trio_p2p.store.documents import ANY, Anything
from trio_p2p.store.transaction import WriteTransaction

if TYPE_CHECKING:
    from trio_p2p.store.collection import Collection

Body = Mapping[str, Any]
Expected = Document | Version | None | Literal[Anything.ANY]
"""What an edit takes to be current: a document or version, None for no live document, or `ANY`."""


class Edit(NamedTuple):
    """A put, or for no body a delete, that was checked and is ready to be applied."""

    document_id: DocumentID
    body: bytes | None
    expected: Expected

    def apply(self, collection: Collection, txn: WriteTransaction) -> Stored:
        expected = self.expected.version if isinstance(self.expected, Document) else self.expected
        try:
            return documents.edit(txn, collection.number, self.document_id, self.body, expected)
        except ConflictError as exc:
            current = (
                None if exc.current is None else Document(self.document_id, exc.current, collection)
            )
            raise ConflictError(
                exc.message, expected=self.expected, current=current, **exc.facts
            ) from exc


class Purge(NamedTuple):
    """A document to be forgotten."""

    document_id: DocumentID

    def apply(self, collection: Collection, txn: WriteTransaction) -> bool:
        return purging.purge(txn, collection.number, self.document_id)


class Batch:
    """Edits of one collection, collected until `Collection.batch` is left.

    They are applied in the order they were asked for, so a document may be edited twice.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._edits: list[Edit | Purge] = []
        self._closed = False

    def put(self, document_id: str, body: Body, *, expected: Expected = ANY) -> None:
        """Create or replace a document, as `Collection.put` does, when the block is left.

        Raises: InvalidDocumentError, BlobNotFoundError; StoreError once the block was left.
        """
        encoded = encode_body(body)
        self._collection.check_blobs(encoded)
        self._add(Edit(ids.document_id(document_id), encoded, expected))

    def delete(self, document_id: str, *, expected: Expected = ANY) -> None:
        """Replace a document by a tombstone, as `Collection.delete` does, when the block is left.

        Raises: InvalidDocumentError; StoreError once the block was left.
        """
        self._add(Edit(ids.document_id(document_id), None, expected))

    def purge(self, document_id: str) -> None:
        """Forget a document here, if there is one, when the block is left.

        Raises: InvalidDocumentError; StoreError once the block was left.
        """
        self._add(Purge(ids.document_id(document_id)))

    def close(self) -> list[Edit | Purge]:
        """Take no more edits; returns those that were collected."""
        self._closed = True
        return self._edits

    def _add(self, edit: Edit | Purge) -> None:
        if self._closed:
            raise StoreError("this batch has ended; open another one")
        self._edits.append(edit)


def apply_all(collection: Collection, edits: list[Edit | Purge], txn: WriteTransaction) -> None:
    """Apply edits in their order."""
    for edit in edits:
        edit.apply(collection, txn)
