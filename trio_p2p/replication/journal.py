"""What happened in one replication: counters and document events, kept across its sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from trio_p2p import limits
from trio_p2p.errors import ClockSkewError, TrioP2PError
from trio_p2p.ids import DocumentID
from trio_p2p.model.document import CollectionName
from trio_p2p.replication.status import (
    Direction,
    DocumentFlags,
    DocumentReplication,
    Progress,
    ReplicatorStatistics,
)


class Journal:
    """Collects what pushers, pullers and resolvers report; readers take frozen snapshots."""

    def __init__(
        self,
        on_change: Callable[[], None] = lambda: None,
        *,
        events_max: int = limits.DOCUMENT_EVENTS_MAX,
    ) -> None:
        """`on_change` is called after every report; it must not block.

        `events_max` is how many events are kept, and how many failures besides.
        """
        self._on_change = on_change
        self._statistics = ReplicatorStatistics()
        self._counts = {Direction.PUSH: 0, Direction.PULL: 0}
        self._offered = self._settled = self._failed = self._resolved = 0
        # Offers that sessions before this one did not get to: offered again, they count again.
        self._left_over = 0
        self.events: deque[DocumentReplication] = deque(maxlen=events_max)
        # Kept by themselves, or the many that went well would push them out.
        self.failures: deque[DocumentReplication] = deque(maxlen=events_max)
        self.event_count = 0
        self._skewed: dict[tuple[str, DocumentID], ClockSkewError] = {}

    def offered(self, count: int) -> None:
        """Revisions were offered, by either side."""
        self._offered += count
        self._on_change()

    def settled(self, count: int = 1) -> None:
        """Offered revisions turned out not to be needed."""
        self._settled += count
        self._on_change()

    def stored(
        self,
        direction: Direction,
        collection: CollectionName,
        document_id: DocumentID,
        deleted: bool,
    ) -> None:
        """The receiving side stored a revision."""
        self._counts[direction] += 1
        self._settled += 1
        self._tell(DocumentReplication(direction, collection, document_id, _flags(deleted)))

    def failed(
        self,
        direction: Direction,
        collection: CollectionName,
        document_id: DocumentID,
        error: TrioP2PError,
        *,
        deleted: bool = False,
    ) -> None:
        """One document could not be replicated; `deleted`: its deletion, as far as is known."""
        self._settled += 1
        self._fail(direction, collection, document_id, error, deleted)

    def unresolved(
        self,
        collection: CollectionName,
        document_id: DocumentID,
        error: TrioP2PError,
        deleted: bool,
    ) -> None:
        """A conflict could not be resolved. What was pulled had been settled when it came."""
        self._fail(Direction.PULL, collection, document_id, error, deleted)

    def _fail(
        self,
        direction: Direction,
        collection: CollectionName,
        document_id: DocumentID,
        error: TrioP2PError,
        deleted: bool,
    ) -> None:
        self._failed += 1
        event = DocumentReplication(direction, collection, document_id, _flags(deleted), error)
        self.failures.append(event)
        self._tell(event)

        if isinstance(error, ClockSkewError):
            self._skewed[collection.full_name, document_id] = error
            if len(self._skewed) > limits.DOCUMENT_EVENTS_MAX:
                del self._skewed[next(iter(self._skewed))]

    def recovered(self, collection: CollectionName, document_id: DocumentID) -> None:
        """A document that failed for now went well, or will not be tried again."""
        if self._skewed.pop((collection.full_name, document_id), None) is not None:
            self._on_change()

    @property
    def clock_skew(self) -> ClockSkewError | None:
        """What a document failed with that waits for clocks to agree, the latest one."""
        return next(reversed(self._skewed.values()), None)

    def resolved(self, collection: CollectionName, document_id: DocumentID, deleted: bool) -> None:
        """A conflict was resolved: what was pulled counts from now on, not while it waited."""
        self._resolved += 1
        self._counts[Direction.PULL] += 1
        flags = _flags(deleted)
        self._tell(DocumentReplication(Direction.PULL, collection, document_id, flags))

    def delta_sent(self, bytes_saved: int) -> None:
        """The peer took a revision that was sent as a delta."""
        self._add(deltas_sent=1, delta_bytes_saved=bytes_saved)

    def delta_received(self, bytes_saved: int) -> None:
        """A revision that came as a delta was stored, or turned out to be here."""
        self._add(deltas_received=1, delta_bytes_saved=bytes_saved)

    def blob_received(self) -> None:
        """A blob is here, whole."""
        self._add(blobs_received=1)

    def blob_bytes_received(self, count: int) -> None:
        """So much of a blob has come."""
        self._add(blob_bytes_received=count)

    def blob_sent(self) -> None:
        """A blob was sent, whole."""
        self._add(blobs_sent=1)

    def blob_bytes_sent(self, count: int) -> None:
        """So much of a blob was sent."""
        self._add(blob_bytes_sent=count)

    def connected(self) -> None:
        """A session began, which tries again whatever failed."""
        self._skewed.clear()
        self._left_over = max(0, self._offered - self._settled)
        self._add(connections=1)

    def moved(self, bytes_sent: int, bytes_received: int) -> None:
        """A session ended that moved so many bytes."""
        self._add(wire_bytes_sent=bytes_sent, wire_bytes_received=bytes_received)

    def statistics(self) -> ReplicatorStatistics:
        """All counters now."""
        return replace(
            self._statistics,
            documents_pushed=self._counts[Direction.PUSH],
            documents_pulled=self._counts[Direction.PULL],
            documents_offered=self._offered,
            documents_failed=self._failed,
            conflicts_resolved=self._resolved,
        )

    def progress(self) -> Progress:
        """Documents done and known of."""
        total = max(self._offered - self._left_over, self._settled)
        return Progress(self._settled, total, sum(self._counts.values()))

    def _add(self, **counts: int) -> None:
        sums = {name: getattr(self._statistics, name) + n for name, n in counts.items()}
        self._statistics = replace(self._statistics, **sums)
        self._on_change()

    def _tell(self, event: DocumentReplication) -> None:
        self.events.append(event)
        self.event_count += 1
        self._on_change()


def _flags(deleted: bool) -> DocumentFlags:
    return DocumentFlags.DELETED if deleted else DocumentFlags.NONE
