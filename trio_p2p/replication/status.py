"""What a replication tells of itself: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, Flag

from trio_p2p.errors import TrioP2PError
from trio_p2p.ids import DocumentID
from trio_p2p.model.document import CollectionName


class ActivityLevel(Enum):
    """What a replicator is doing."""

    STOPPED = "stopped"
    """It has not begun, or has ended for good."""
    OFFLINE = "offline"
    """It waits for the next attempt to connect, or is suspended."""
    CONNECTING = "connecting"
    """It connects, or opens a session."""
    IDLE = "idle"
    """It is connected, and all that is known of is replicated and covered by a checkpoint."""
    BUSY = "busy"
    """It is connected, and there is something to do, or it is ending."""


class Direction(Enum):
    """Which way a document went: from here to the peer, or from the peer to here."""

    PUSH = "push"
    PULL = "pull"


class DocumentFlags(Flag):
    """What a document event is about."""

    NONE = 0
    DELETED = 1
    ACCESS_REMOVED = 2
    """Of Sync Gateway alone: we may not see the document any more."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Documents done and known of in this run; `document_count` those done without an error."""

    completed: int = 0
    total: int = 0
    document_count: int = 0


@dataclass(frozen=True, slots=True)
class ReplicatorStatus:
    """`error` is what made it stop or go offline, if anything did.

    While it is connected, a ClockSkewError tells that documents wait for clocks that differ.
    """

    activity: ActivityLevel
    progress: Progress = Progress()
    error: TrioP2PError | None = None


@dataclass(frozen=True, slots=True)
class DocumentReplication:
    """One document was pushed or pulled, or could not be.

    `error.retryable` tells whether it is tried again without being edited.
    """

    direction: Direction
    collection: CollectionName
    document_id: DocumentID
    flags: DocumentFlags = DocumentFlags.NONE
    error: TrioP2PError | None = None


@dataclass(frozen=True, slots=True)
class ReplicatorStatistics:
    """Counters since the replicator was made.

    `documents_offered` counts the revisions that either side offered to the other, less our own
    that come back to us; `documents_pushed` and `documents_pulled` those that the receiving side
    stored, those that conflicted once they are resolved; `documents_failed` attempts that failed,
    so that one document may count several times.
    `conflicts_resolved` are those that were decided here.

    Blobs count once they went whole, their bytes as they go. `deltas_sent` and `deltas_received`
    count the revisions that went as what changed in them, and that the receiving side took.
    `delta_bytes_saved` is by how much both made the bodies of messages shorter: each body as this
    side writes it as JSON, less its delta, before compression. `wire_bytes_sent` and
    `wire_bytes_received` are those of BLIP frames, after compression, on connections that have
    ended; `connections` are those on which a session was opened.
    """

    documents_pushed: int = 0
    documents_pulled: int = 0
    documents_offered: int = 0
    documents_failed: int = 0
    conflicts_resolved: int = 0
    deltas_sent: int = 0
    deltas_received: int = 0
    delta_bytes_saved: int = 0
    blobs_sent: int = 0
    blobs_received: int = 0
    blob_bytes_sent: int = 0
    blob_bytes_received: int = 0
    wire_bytes_sent: int = 0
    wire_bytes_received: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class ReplicatorResult:
    """What a one-shot replication did; `errors` are the documents that failed."""

    documents_pushed: int = 0
    documents_pulled: int = 0
    documents_failed: int = 0
    errors: tuple[DocumentReplication, ...] = ()
    statistics: ReplicatorStatistics = field(default_factory=ReplicatorStatistics)
