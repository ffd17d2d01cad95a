"""Which documents are yet to be pushed, also without a connection."""

from __future__ import annotations

from collections.abc import Iterator

from trio_p2p import limits
from trio_p2p.errors import CallbackError
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.document import Stored
from trio_p2p.model.sequence_set import SequenceSet
from trio_p2p.replication.checkpoint import Checkpoint
from trio_p2p.replication.filters import Filter
from trio_p2p.replication.session import CollectionPlan
from trio_p2p.store import changes, checkpoints, documents, expirations, remotes
from trio_p2p.store.transaction import ReadTransaction


class Pending:
    """What one collection has that a peer, known by its key, has not; a key of None: all of it.

    `done` are the sequences that a running session knows to be done, None if there is no session.
    """

    def __init__(
        self, plan: CollectionPlan, peer_key: str | None, done: SequenceSet | None
    ) -> None:
        self._plan = plan
        self._number = plan.collection.number
        self._peer_key = peer_key
        function = plan.push_filter
        self._filter = None if function is None else Filter(function, plan.collection)
        self._done = done
        self._chosen = None if plan.document_ids is None else frozenset(plan.document_ids)
        self._remote: int | None = None
        with plan.collection.read() as txn:
            if peer_key is not None:
                self._remote = remotes.find(txn, peer_key)
                saved = checkpoints.local(txn, plan.checkpoint_id(peer_key))
                if done is None and saved is not None:
                    self._done = Checkpoint.from_json(saved).local

    def document_ids(self) -> frozenset[str]:
        """All pending documents, tombstones included."""
        return frozenset(self._all())

    def has(self, document_id: DocumentID) -> bool:
        """Whether this document is pending."""
        with self._plan.collection.read() as txn:
            stored = documents.get(txn, self._number, document_id)
            if stored is None or expirations.is_due(txn, self._number, document_id):
                return False
            return self._is_pending(txn, document_id, stored)

    def _all(self) -> Iterator[str]:
        after = Sequence(0 if self._done is None else self._done.low_water)
        last = self._plan.collection.last_sequence
        while after < last:
            found = []
            with self._plan.collection.read() as txn:
                rows, after = changes.read_since(txn, self._number, after, limits.SCAN_SLICE_ROWS)
                for row in rows:
                    stored = documents.get(txn, self._number, row.document_id)
                    if stored is not None and self._is_pending(txn, row.document_id, stored):
                        found.append(row.document_id)
            yield from found

    def _is_pending(self, txn: ReadTransaction, document_id: DocumentID, stored: Stored) -> bool:
        if self._done is not None and stored.sequence in self._done:
            return False
        if self._chosen is not None and document_id not in self._chosen:
            return False
        if self._remote is not None:
            known = remotes.known(txn, self._remote, self._number, document_id)
            if known == stored.revision.id:
                return False
        return self._filter is None or self._passes(self._filter, document_id, stored)

    def _passes(self, push_filter: Filter, document_id: DocumentID, stored: Stored) -> bool:
        """What the filter says; one that is async or fails leaves the document pending."""
        try:
            return push_filter.ask_now(document_id, stored) is not False
        except CallbackError:
            return True
