"""What the peer is known to have: for each document, the revision last seen there.

The active side proposes with it as parent, and recognises by it what need not be sent back. What a
pull brings is stored with the revisions themselves; what else is learned is noted here and stored
with the next checkpoint, in one transaction: losing it costs a proposal that is answered "held".
"""

from __future__ import annotations

from trio_p2p import limits
from trio_p2p.ids import DocumentID
from trio_p2p.model.version import RevisionID
from trio_p2p.store import remotes
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction


class RemoteKnowledge:
    """The peer's revisions of the documents of one collection."""

    def __init__(self, remote: int, collection: int) -> None:
        """`remote` and `collection` are the numbers under which the store keeps both."""
        self.remote = remote
        self._collection = collection
        self._noted: dict[DocumentID, RevisionID] = {}

    def of(self, txn: ReadTransaction, document_id: DocumentID) -> RevisionID | None:
        """The revision that the peer is known to have, or None."""
        noted = self._noted.get(document_id)
        return noted or remotes.known(txn, self.remote, self._collection, document_id)

    def is_fresh(self, document_id: DocumentID) -> bool:
        """Whether what is known of a document was learned since the last checkpoint."""
        return document_id in self._noted

    def note(self, document_id: DocumentID, revision_id: RevisionID) -> None:
        """The peer has this revision; to be stored later."""
        self._noted[document_id] = revision_id

    def store(
        self, txn: WriteTransaction, document_id: DocumentID, revision_id: RevisionID
    ) -> None:
        """The peer has this revision; part of the transaction that stores it here."""
        remotes.set_known(txn, self.remote, self._collection, document_id, revision_id)

    def stored(self, document_id: DocumentID) -> None:
        """What `store` wrote was committed and is newer than what was noted before."""
        self._noted.pop(document_id, None)

    def take_noted(self) -> dict[DocumentID, RevisionID]:
        """What is yet to be stored, for `store_noted`; still known until `forget_noted`."""
        return dict(self._noted)

    def store_noted(self, txn: WriteTransaction, noted: dict[DocumentID, RevisionID]) -> None:
        """Store what was noted."""
        for document_id, revision_id in noted.items():
            self.store(txn, document_id, revision_id)

    def forget_noted(self, noted: dict[DocumentID, RevisionID]) -> None:
        """It was committed."""
        for document_id, revision_id in noted.items():
            if self._noted.get(document_id) == revision_id:
                del self._noted[document_id]


class NoKnowledge(RemoteKnowledge):
    """What is known of a peer that nothing names: what was noted last, and nothing in the store.

    It is asked about everything else, and tells what it has.
    """

    def __init__(self) -> None:
        super().__init__(remote=0, collection=0)  # Numbers that nothing has.
        self._sent: dict[DocumentID, RevisionID] = {}

    def note(self, document_id: DocumentID, revision_id: RevisionID) -> None:
        """The peer has this revision; the latest ones are kept."""
        super().note(document_id, revision_id)
        if len(self._noted) > limits.NOTED_DOCUMENTS_MAX:
            del self._noted[next(iter(self._noted))]

    def store(
        self, txn: WriteTransaction, document_id: DocumentID, revision_id: RevisionID
    ) -> None:
        """The peer has this revision; known once `stored`."""
        self._sent[document_id] = revision_id

    def stored(self, document_id: DocumentID) -> None:
        """What `store` told last is known from now on: one batch may bring several revisions."""
        revision_id = self._sent.pop(document_id, None)
        if revision_id is not None:
            self.note(document_id, revision_id)

    def take_noted(self) -> dict[DocumentID, RevisionID]:
        """Nothing is to be stored."""
        return {}
