"""Sends promised revisions, no more at once than the other side can store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import trio

from trio_p2p import limits
from trio_p2p.ids import DocumentID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import RevisionID
from trio_p2p.replication import deltas
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
    held: tuple[RevisionID, ...] = ()
    """Other revisions of the document that the other side holds, for a delta to start from."""


class _Outgoing(NamedTuple):
    """A promise about to be kept, and what a delta can start from."""

    promise: Promise
    sent: SentRevision
    base: Revision | None


OnSettled = Callable[[Promise, SentRevision | None, RevisionOutcome], None]
"""Called once for each promise, unless the connection is lost first: with what was sent, or None
where there was nothing to send.
"""


class Sender:
    """The sending half of a pusher, active or passive.

    `may_replace`: a newer revision may be sent in place of the promised one.
    """

    def __init__(self, link: Link, *, may_replace: bool = True) -> None:
        self._link = link
        self._may_replace = may_replace
        self._window = link.window
        self._unanswered = 0

    @property
    def unanswered(self) -> int:
        """Revisions of this collection sent and not yet answered."""
        return self._unanswered

    async def send(self, promises: Sequence[Promise], on_settled: OnSettled) -> None:
        """Send revisions as the window allows. Cancelling: those already sent stay sent."""
        waiting = deque(promises)
        while waiting:
            await self._window.pulse.until(lambda: self._window.has_room)
            await self._send_slice(self._read_slice(waiting, on_settled), on_settled)
            await trio.lowlevel.checkpoint()

    def _read_slice(self, waiting: deque[Promise], on_settled: OnSettled) -> list[_Outgoing]:
        """Take the next promises, and read what they are about; less of them if that is much."""
        outgoing: list[_Outgoing] = []
        with self._link.engine.read() as txn:
            while (
                waiting
                and len(outgoing) < _SLICE
                and self._window.body_bytes < limits.REVISION_BYTES_UNANSWERED_MAX
            ):
                promise = waiting.popleft()
                sent = self._read(txn, promise)
                if sent is None:
                    self._withhold(promise)
                    on_settled(promise, None, RevisionOutcome(404))
                    continue
                self._unanswered += 1
                self._window.revisions += 1
                self._window.body_bytes += len(sent.revision.body)
                base = deltas.find_base(txn, self._link, sent, promise.held)
                outgoing.append(_Outgoing(promise, sent, base))
        return outgoing

    async def _send_slice(self, outgoing: Sequence[_Outgoing], on_settled: OnSettled) -> None:
        by_sequence = {promise.sequence: promise for promise, _, _ in outgoing}

        def on_outcome(sent: SentRevision, outcome: RevisionOutcome) -> None:
            if sent.delta is not None:
                if outcome.status == deltas.STATUS_UNPROCESSABLE:
                    send([replace(sent, delta=None)])
                    return
                if not outcome.failed:
                    self._link.journal.delta_sent(sent.delta.bytes_saved)
            self._unanswered -= 1
            self._window.revisions -= 1
            self._window.body_bytes -= len(sent.revision.body)
            on_settled(by_sequence[sent.sequence], sent, outcome)
            # Waking the session for every answer would cost more than the answers do.
            if self._unanswered % _SLICE == 0:
                self._window.pulse.notify()
                self._link.pulse.notify()

        def send(revisions: Sequence[SentRevision]) -> None:
            self._link.profile.send_revisions(self._link.index, revisions, on_outcome)

        if outgoing:
            send([await self._with_delta(sent, base) for _, sent, base in outgoing])

    async def _with_delta(self, sent: SentRevision, base: Revision | None) -> SentRevision:
        """The same revision, as what changed since the base if that is worth it."""
        if base is None:
            return sent
        if len(base.body) + len(sent.revision.body) <= limits.DELTA_BYTES_IN_PLACE_MAX:
            await trio.lowlevel.checkpoint()
            return replace(sent, delta=deltas.make(base, sent.revision))
        delta = await self._link.engine.run_aside(deltas.make, base, sent.revision)
        return replace(sent, delta=delta)

    def _read(self, txn: ReadTransaction, promise: Promise) -> SentRevision | None:
        """The promised revision, or what has taken its place if the other side takes that."""
        stored = documents.get(txn, self._link.number, promise.document_id)
        if stored is None:
            return None
        revision = stored.revision
        if revision.id == promise.revision_id:
            return SentRevision(promise.document_id, promise.sequence, revision)
        if not self._may_replace or not self._link.profile.replacements_wanted:
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
