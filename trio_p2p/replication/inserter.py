"""Stores the revisions that arrive: a batch at a time, in one transaction each."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import trio

from trio_p2p import limits
from trio_p2p.errors import CallbackError, ClockSkewError, StoreFullError, TrioP2PError
from trio_p2p.ids import Sequence as LocalSequence
from trio_p2p.model.conflict import (
    Arrival,
    judge_arrival,
    keep,
    revives,
    settle_alone,
    supersede,
)
from trio_p2p.model.document import Revision, Stored
from trio_p2p.replication.blob_fetcher import STATUS_FULL, BlobFetcher
from trio_p2p.replication.deltas import Restorer
from trio_p2p.replication.filters import Filter
from trio_p2p.replication.knowledge import RemoteKnowledge
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import RevisionOutcome, SentRevision
from trio_p2p.store import bases, blob_uses, conflicts, documents, remotes
from trio_p2p.store.transaction import WriteTransaction

STATUS_REJECTED = 403
STATUS_NOT_FOUND = 404
STATUS_HELD = 304
STATUS_FAILED = 500
# Transient for every peer; unlike 503, it does not make Couchbase Lite drop the connection.
STATUS_LATER = 429
STATUS_CONFLICT = 409
NO_SEQUENCE = LocalSequence(0)
"""Of a revision that is not stored yet."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """What became of one revision; `conflicted` if it now waits for a resolver.

    `error` tells more than the outcome where something failed here.
    """

    outcome: RevisionOutcome
    conflicted: bool = False
    error: TrioP2PError | None = None


OnInserted = Callable[[Insertion], None]


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A revision to be stored, and what keeps the blobs it names here meanwhile."""

    sent: SentRevision
    may_revive: bool
    on_inserted: OnInserted
    kept: Sequence[object] = ()


class Inserter:
    """Stores what arrives in one collection, with whole bodies and after the blobs it names.

    On the active side (`knowledge` given) a conflicting revision is kept for the resolver; on the
    passive side it is refused, and the peer resolves.
    """

    def __init__(
        self,
        link: Link,
        knowledge: RemoteKnowledge | None = None,
        *,
        pull_filter: Filter | None = None,
    ) -> None:
        self._filter = pull_filter
        self._filtering = 0
        self._unfiltered: deque[_Arrived] = deque()
        self._link = link
        self._knowledge = knowledge
        self._restorer = Restorer(link)
        self._fetcher = BlobFetcher(link)
        self._fetching = 0
        self._arrived: deque[_Arrived] = deque()
        self._storing = 0
        # Of its own, not the collection's pulse: it is set for every single revision.
        self._wake = trio.Event()

    @property
    def backlog(self) -> int:
        """Revisions that arrived and are not stored yet."""
        in_memory = len(self._arrived) + self._storing
        return self._restorer.backlog + self._filtering + self._fetching + in_memory

    def add(self, sent: SentRevision, on_inserted: OnInserted, *, may_revive: bool = False) -> None:
        """Queue a revision. `on_inserted` is called once its fate is durable; it must not block.

        `may_revive`: its proposal named no parent, so it may follow on a tombstone here. A delta
        that does not yield a body is answered with STATUS_UNPROCESSABLE: the body will follow.
        """
        delta = sent.delta
        if delta is None:
            self._filter_or_fetch(_Arrived(sent, may_revive, on_inserted))
            return

        def on_restored(restored: SentRevision, failure: RevisionOutcome | None) -> None:
            if failure is not None:
                on_inserted(Insertion(failure))
                return

            def on_settled(insertion: Insertion) -> None:
                self._restorer.release(restored)
                if not insertion.outcome.failed and restored.delta is not None:
                    self._link.journal.delta_received(restored.delta.bytes_saved)
                on_inserted(insertion)

            self._filter_or_fetch(_Arrived(restored, may_revive, on_settled))

        self._restorer.restore(sent, delta, on_restored)

    def _filter_or_fetch(self, arrived: _Arrived) -> None:
        if self._filter is None:
            self._fetch_blobs(arrived)
        else:
            self._filtering += 1
            self._unfiltered.append(arrived)
            self._link.pulse.notify()

    def _fetch_blobs(self, arrived: _Arrived) -> None:
        def on_ready(failure: RevisionOutcome | None, kept: Sequence[object]) -> None:
            self._fetching -= 1
            if failure is not None:
                arrived.on_inserted(Insertion(failure))
            else:
                self._enqueue(replace(arrived, kept=kept) if kept else arrived)

        self._fetching += 1
        self._fetcher.want(arrived.sent, on_ready)

    async def _filter_all(self, pull_filter: Filter) -> NoReturn:
        """Put what arrives to the filter; what is async is waited for beside the others."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._link.pulse.until(lambda: bool(self._unfiltered))
                while self._unfiltered:
                    arrived = self._unfiltered.popleft()
                    try:
                        stored = Stored(arrived.sent.revision, NO_SEQUENCE)
                        verdict = pull_filter.ask(arrived.sent.document_id, stored)
                    except CallbackError as exc:
                        self._judged(arrived, exc)
                        continue
                    if isinstance(verdict, bool):
                        self._judged(arrived, verdict)
                    else:
                        nursery.start_soon(self._await_verdict, arrived, verdict)

    async def _await_verdict(self, arrived: _Arrived, verdict: Awaitable[bool]) -> None:
        try:
            self._judged(arrived, await verdict)
        except CallbackError as exc:
            self._judged(arrived, exc)

    def _judged(self, arrived: _Arrived, verdict: bool | CallbackError) -> None:
        self._filtering -= 1
        if verdict is True:
            self._fetch_blobs(arrived)
        elif verdict is False:
            refused = RevisionOutcome(STATUS_REJECTED, "rejected by the pull filter")
            arrived.on_inserted(Insertion(refused))
        else:
            failed = RevisionOutcome(STATUS_FAILED, str(verdict), retryable=True)
            arrived.on_inserted(Insertion(failed, error=verdict))
        self._link.pulse.notify()

    async def run(self) -> None:
        """Make bodies, fetch blobs and store batches for ever. Raises ConnectionLostError.

        Cancelling: the batch being committed is finished.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._restorer.run)
            nursery.start_soon(self._fetcher.run)
            if self._filter is not None:
                nursery.start_soon(self._filter_all, self._filter)
            await self._store_all()

    def _enqueue(self, arrived: _Arrived) -> None:
        self._arrived.append(arrived)
        self._wake.set()

    async def _store_all(self) -> NoReturn:
        while True:
            await self._wake.wait()
            size = min(len(self._arrived), limits.INSERT_BATCH_REVISIONS_MAX)
            batch = [self._arrived.popleft() for _ in range(size)]
            if not self._arrived:
                self._wake = trio.Event()
            self._storing = size
            try:
                insertions = await self._store(batch)
            finally:
                self._storing = 0
            for arrived, insertion in zip(batch, insertions, strict=True):
                arrived.on_inserted(insertion)
            self._link.pulse.notify()

    async def _store(self, batch: list[_Arrived]) -> list[Insertion]:
        def job(txn: WriteTransaction) -> list[Insertion]:
            return [self._insert(txn, a.sent, a.may_revive) for a in batch]

        try:
            insertions = await self._link.engine.write(job)
        except StoreFullError as exc:
            if self._knowledge is not None:
                raise  # It ends the replication: nothing more can be pulled.
            return [Insertion(RevisionOutcome(STATUS_FULL, str(exc), retryable=True))] * len(batch)
        if self._knowledge is not None:
            for arrived, insertion in zip(batch, insertions, strict=True):
                self._learn(self._knowledge, arrived.sent, insertion.outcome)
        return insertions

    def _learn(
        self, knowledge: RemoteKnowledge, sent: SentRevision, outcome: RevisionOutcome
    ) -> None:
        """The peer has a revision whose fate is committed.

        That it has what was held is stored with the next checkpoint: the last one may vouch for the
        sequence that this has here, and the peer may yet lose what it had after that.
        """
        if outcome.status == STATUS_HELD:
            knowledge.note(sent.document_id, sent.revision.id)
        elif not outcome.failed:
            knowledge.stored(sent.document_id)

    def _insert(self, txn: WriteTransaction, sent: SentRevision, may_revive: bool) -> Insertion:
        arrived = sent.revision
        try:
            # Before anything is stamped: what is made from this revision must be later than it.
            txn.clock.see(arrived.vector.greatest().time)
        except ClockSkewError as exc:
            return Insertion(RevisionOutcome(STATUS_LATER, str(exc), retryable=True))
        lacking = blob_uses.missing(txn, arrived.body)
        if lacking:
            error = blob_uses.not_held(lacking)
            return Insertion(RevisionOutcome(STATUS_NOT_FOUND, str(error)))
        head = documents.head(txn, self._link.number, sent.document_id)
        match judge_arrival(head.revision if head else None, arrived):
            case Arrival.HELD:
                # `_learn` notes that the peer has it.
                return Insertion(RevisionOutcome(STATUS_HELD))
            case Arrival.STORE:
                # First, or what is overwritten would be kept as a base for this peer.
                self._know(txn, sent)
                self._put(txn, sent, supersede(head.revision if head else None, arrived))
                return Insertion(RevisionOutcome())
            case Arrival.CONFLICT:
                insertion = self._conflict(txn, sent, may_revive)
                # Last, or the base that both edits started from would be dropped.
                self._know(txn, sent)
                return insertion

    def _conflict(self, txn: WriteTransaction, sent: SentRevision, may_revive: bool) -> Insertion:
        local = documents.get(txn, self._link.number, sent.document_id)
        assert local is not None
        current, arrived = local.revision, sent.revision
        if self._knowledge is not None:
            settled = settle_alone(current, arrived, txn.stamp)
        elif may_revive and revives(current, arrived.id, None):
            # Under its own version, so that who wrote it goes on from there without hearing of it.
            settled = keep(arrived, current, txn.stamp)
        else:
            text = "conflicts with the current revision"
            return Insertion(RevisionOutcome(STATUS_CONFLICT, text))
        if settled is None:
            place = (self._link.number, sent.document_id)
            if conflicts.add(txn, *place, arrived):
                bases.drop_unneeded(txn, *place)
            return Insertion(RevisionOutcome(), conflicted=True)
        self._put(txn, sent, settled)
        remotes.forget_revision(txn, self._link.number, sent.document_id, settled.id)
        return Insertion(RevisionOutcome())

    def _know(self, txn: WriteTransaction, sent: SentRevision) -> None:
        if self._knowledge is not None:
            self._knowledge.store(txn, sent.document_id, sent.revision.id)

    def _put(self, txn: WriteTransaction, sent: SentRevision, revision: Revision) -> None:
        documents.put_revision(txn, self._link.number, sent.document_id, revision)
