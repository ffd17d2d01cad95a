"""Sends promised revisions, no more at once than the other side can store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from trio_p2p import limits
from trio_p2p.ids import DocumentID
from trio_p2p.model.version import RevisionID
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import (
    NoRevision,
    RemoteSequence,
    RevisionOutcome,
    SentRevision,
)
from trio_p2p.store import documents
from trio_p2p.store.transaction import ReadTransaction

# Revisions read from the store at a time: bounds what waits in memory for the window to open.
_SLICE = 50


@dataclass(frozen=True, slots=True)
class Promise:
    """A revision that the other side wants."""

    document_id: DocumentID
    revision_id: RevisionID
    sequence: RemoteSequence


OnSettled = Callable[[Promise, SentRevision | None, RevisionOutcome], None]
"""Called once for each promise: with what was sent, or None where there was nothing to send."""


class Sender:
    """The sending half of a pusher, active or passive."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._unanswered = 0
        self._unanswered_bytes = 0

    @property
    def unanswered(self) -> int:
        """Revisions sent and not yet answered."""
        return self._unanswered

    async def send(self, promises: Sequence[Promise], on_settled: OnSettled) -> None:
        """Send revisions as the window allows. Cancelling: those already sent stay sent."""
        for start in range(0, len(promises), _SLICE):
            await self._link.pulse.until(self._has_room)
            self._send_slice(promises[start : start + _SLICE], on_settled)
            await trio.lowlevel.checkpoint()

    def _has_room(self) -> bool:
        return (
            self._unanswered < limits.REVISIONS_UNANSWERED_MAX
            and self._unanswered_bytes < limits.REVISION_BYTES_UNANSWERED_MAX
        )

    def _send_slice(self, promises: Sequence[Promise], on_settled: OnSettled) -> None:
        outgoing: list[tuple[Promise, SentRevision]] = []
        with self._link.engine.read() as txn:
            for promise in promises:
                sent = self._read(txn, promise)
                if sent is None:
                    self._withhold(promise)
                    on_settled(promise, None, RevisionOutcome(404))
                else:
                    outgoing.append((promise, sent))
        if not outgoing:
            return
        by_sequence = {promise.sequence: promise for promise, _ in outgoing}
        for _, sent in outgoing:
            self._unanswered += 1
            self._unanswered_bytes += len(sent.revision.body)

        def on_outcome(sent: SentRevision, outcome: RevisionOutcome) -> None:
            self._unanswered -= 1
            self._unanswered_bytes -= len(sent.revision.body)
            on_settled(by_sequence[sent.sequence], sent, outcome)
            # Waking the session for every answer would cost more than the answers do.
            if self._unanswered % _SLICE == 0:
                self._link.pulse.notify()

        revisions = [sent for _, sent in outgoing]
        self._link.profile.send_revisions(self._link.index, revisions, on_outcome)

    def _read(self, txn: ReadTransaction, promise: Promise) -> SentRevision | None:
        """The promised revision, or what has taken its place if the other side takes that."""
        stored = documents.get(txn, self._link.number, promise.document_id)
        if stored is None:
            return None
        revision = stored.revision
        if revision.id == promise.revision_id:
            return SentRevision(promise.document_id, promise.sequence, revision)
        if not self._link.profile.replacements_wanted:
            return None
        return SentRevision(
            promise.document_id, promise.sequence, revision, replaced=promise.revision_id
        )

    def _withhold(self, promise: Promise) -> None:
        self._link.profile.send_no_revision(
            NoRevision(
                self._link.index,
                promise.document_id,
                promise.revision_id,
                promise.sequence,
                404,
                "the revision is no longer current",
            )
        )
