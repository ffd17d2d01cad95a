"""The active side's receiving half for one collection."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import trio

from trio_p2p import limits
from trio_p2p.errors import ClockSkewError, PeerError, RemoteProtocolError, TrioP2PError
from trio_p2p.ids import DocumentID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import RevisionID, Version
from trio_p2p.replication.checkpoint import RemoteSequences, is_behind
from trio_p2p.replication.deltas import STATUS_UNPROCESSABLE
from trio_p2p.replication.filters import Filter
from trio_p2p.replication.inserter import STATUS_LATER, STATUS_REJECTED, Inserter, Insertion
from trio_p2p.replication.knowledge import RemoteKnowledge
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import (
    NoRevision,
    OfferChanges,
    OfferedChange,
    OffersReply,
    RemoteSequence,
    Respond,
    RevisionOutcome,
    RevisionsReply,
    SendRevisions,
    SentRevision,
    SubscribeChanges,
    Wanted,
)
from trio_p2p.replication.resolver import Resolver
from trio_p2p.replication.status import Direction
from trio_p2p.store import bases, conflicts, documents
from trio_p2p.store.transaction import ReadTransaction

logger = logging.getLogger(__name__)


class Puller:
    """Subscribes to the peer's changes, asks for those that are missing and stores them.

    It holds the peer back by leaving its offers unanswered while many revisions are on their way.
    """

    def __init__(
        self,
        link: Link,
        knowledge: RemoteKnowledge,
        sequences: RemoteSequences,
        resolver: Resolver,
        *,
        pull_filter: Filter | None = None,
        channels: tuple[str, ...] | None = None,
    ) -> None:
        self._link = link
        self._knowledge = knowledge
        self._sequences = sequences
        self._resolver = resolver
        self._channels = channels
        self._inserter = Inserter(link, knowledge, pull_filter=pull_filter)
        self._offers: deque[tuple[OfferChanges, Respond]] = deque()
        self._document_ids: frozenset[str] | None = None
        self._requested: dict[RemoteSequence, DocumentID] = {}
        # Those of them that have not come yet.
        self._promised: set[RemoteSequence] = set()
        self._answering = False
        self._caught_up = False
        # Asked for by their IDs: what the peer offers of them, as often as it does so until it has
        # caught up, is not in the order of its feed.
        self._fetching: set[DocumentID] = set()
        # Those of them that it has not offered.
        self._unoffered: set[DocumentID] = set()
        # One fetch at a time: nothing tells which one the peer has come to the end of.
        self._turn = trio.Lock()
        # Failed for now, to be asked for again: the sequence that was not completed.
        self._failed: dict[DocumentID, RemoteSequence] = {}

    @property
    def has_failed(self) -> bool:
        """Whether there is anything for `retry_failed`."""
        return bool(self._failed)

    @property
    def waits_for_peer(self) -> bool:
        """Whether the peer has yet to send something: what it promised, or what else it has."""
        at_hand = self._offers or self._answering or self._requested
        return bool(self._promised) or not (self._caught_up or at_hand)

    @property
    def caught_up(self) -> bool:
        """Whether the peer has offered all that it had."""
        return self._caught_up

    @property
    def busy(self) -> bool:
        """Whether anything the peer has is still to be pulled, as far as is known."""
        return not self._caught_up or self._unfinished

    @property
    def _unfinished(self) -> bool:
        return bool(self._offers or self._answering or self._requested or self._inserter.backlog)

    async def run(self, continuous: bool, document_ids: tuple[str, ...] | None) -> None:
        """Pull until cancelled. Raises PeerError if the peer will not be pulled from."""
        self._document_ids = None if document_ids is None else frozenset(document_ids)
        await self._link.profile.subscribe(
            SubscribeChanges(
                collection=self._link.index,
                since=self._sequences.reached,
                continuous=continuous,
                batch=limits.CHANGES_PER_MESSAGE_MAX,
                # Tombstones come even to an empty database: the documents may yet come to it,
                # alive, from a third peer, and the checkpoint says that what is before it came.
                active_only=False,
                document_ids=document_ids,
                channels=self._channels,
            )
        )
        while True:
            await self._link.pulse.until(self._may_answer)
            self._answering = True
            request, respond = self._offers.popleft()
            await self._answer(request, respond)
            self._answering = False
            self._link.pulse.notify()

    async def fetch(self, document_ids: Sequence[DocumentID]) -> Sequence[DocumentID]:
        """Let the peer offer these documents, wherever they stand in its feed, and pull them.

        Returns those that it let us pull: a peer may serve one subscription at a time only.
        """
        async with self._turn:
            await self._link.pulse.until(lambda: self._caught_up)
            for start in range(0, len(document_ids), limits.FETCHED_DOCUMENTS_MAX):
                some = tuple(document_ids[start : start + limits.FETCHED_DOCUMENTS_MAX])
                self._fetching.update(some)
                self._unoffered.update(some)
                self._caught_up = False
                try:
                    await self._pull_some(some)
                except PeerError as exc:
                    logger.info("documents could not be fetched by their IDs: %s", exc)
                    return document_ids[:start]
                finally:
                    self._fetching.clear()
                    self._unoffered.clear()
                    self._caught_up = True
                    self._link.pulse.notify()
            return document_ids

    async def _pull_some(self, document_ids: tuple[DocumentID, ...]) -> None:
        await self._link.profile.subscribe(
            SubscribeChanges(
                collection=self._link.index,
                since=None,
                continuous=False,
                batch=limits.CHANGES_PER_MESSAGE_MAX,
                active_only=False,
                document_ids=document_ids,
            )
        )
        await self._link.pulse.until(lambda: self._caught_up)
        for document_id in self._unoffered & self._failed.keys():
            # The peer has it no more.
            self._complete(document_id, self._failed[document_id])
        # Not by their documents, which may be offered again and again.
        awaited = {s for s, name in self._requested.items() if name in self._fetching}
        await self._link.pulse.until(lambda: awaited.isdisjoint(self._requested))

    async def retry_failed(self) -> None:
        """Ask once more for what failed for now."""
        document_ids = sorted(self._failed)
        if document_ids:
            await self.fetch(document_ids)
        else:
            await trio.lowlevel.checkpoint()

    async def run_inserter(self) -> None:
        """Store what arrives, until cancelled."""
        await self._inserter.run()

    def offered(self, request: OfferChanges, respond: Respond) -> None:
        """The peer offers changes."""
        self._offers.append((request, respond))
        self._link.pulse.notify()

    def arrived(self, request: SendRevisions, respond: Respond) -> None:
        """Revisions asked for have come."""
        outcomes: list[RevisionOutcome] = []

        def settle(outcome: RevisionOutcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) == len(request.revisions):
                respond(RevisionsReply(tuple(outcomes)))

        def on_inserted(sent: SentRevision, insertion: Insertion) -> None:
            if insertion.outcome.status == STATUS_UNPROCESSABLE:
                self._promised.add(sent.sequence)  # It comes once more, whole.
            else:
                self._inserted(sent, insertion)
            settle(insertion.outcome)

        for sent in request.revisions:
            sequence = self._requested_as(sent.sequence, sent.document_id)
            if sequence is None:
                # What to pull is decided here: by documents, by what is offered and wanted.
                settle(RevisionOutcome(STATUS_REJECTED, "this revision was not asked for"))
                continue
            asked_for = sent if sequence == sent.sequence else replace(sent, sequence=sequence)
            self._promised.discard(sequence)
            self._inserter.add(
                asked_for,
                lambda insertion, sent=asked_for: on_inserted(sent, insertion),  # type: ignore[misc]
            )

    def _requested_as(
        self, sequence: RemoteSequence, document_id: DocumentID
    ) -> RemoteSequence | None:
        """The sequence that was asked for: one that stands in for it may bring its own."""
        if sequence in self._requested:
            return sequence
        requested = (s for s, name in self._requested.items() if name == document_id)
        return next(requested, None)

    def withheld(self, message: NoRevision) -> None:
        """A promised revision will not come: its document changed again, or is gone."""
        sequence = self._requested_as(message.sequence, message.document_id)
        if sequence is None:
            return
        self._promised.discard(sequence)
        document_id = self._requested.pop(sequence)
        error = PeerError("HTTP", message.status, message.reason)
        if error.retryable:
            self._note_failed(document_id, sequence)
        else:
            self._complete(document_id, sequence)
        self._link.journal.failed(Direction.PULL, self._link.collection, document_id, error)
        self._link.pulse.notify()

    def _may_answer(self) -> bool:
        return bool(self._offers) and len(self._requested) < limits.REVISIONS_REQUESTED_MAX

    async def _answer(self, request: OfferChanges, respond: Respond) -> None:
        if not request.changes:
            self._caught_up = True
        if left_out := request.changes.count(None):
            logger.warning("documents whose IDs cannot be stored are left out: %d", left_out)
        answers: list[Wanted | None] = []
        while len(answers) < len(request.changes):
            # Lists may be long, and other tasks want their turns.
            await trio.lowlevel.checkpoint()
            answers += self._answer_slice(request.changes[len(answers) :])
        respond(OffersReply(tuple(answers)))

    def _answer_slice(self, changes: Sequence[OfferedChange | None]) -> list[Wanted | None]:
        """The answers to the next changes, less if their documents have long vectors."""
        answers: list[Wanted | None] = []
        room_versions = limits.JUDGED_VERSIONS_SLICE
        with self._link.engine.read() as txn:
            for change in changes[: limits.SCAN_SLICE_ROWS]:
                if change is None:
                    answers.append(None)
                    continue
                held = self._heads(txn, change.document_id)
                answers.append(self._wanted(txn, change, held))
                room_versions -= sum(len(head.vector) + len(head.trees) for head in held)
                if room_versions <= 0:
                    break
        return answers

    def _heads(self, txn: ReadTransaction, document_id: DocumentID) -> list[Revision]:
        """The revisions of a document that are here: the current one, and those that wait."""
        current = documents.head(txn, self._link.number, document_id)
        if current is None:
            return []
        return [current.revision, *conflicts.heads(txn, self._link.number, document_id)]

    def _wanted(
        self, txn: ReadTransaction, change: OfferedChange, held: Sequence[Revision]
    ) -> Wanted | None:
        """Whether to ask for an offered revision, where these are `held`.

        Raises: RemoteProtocolError.
        """
        self._unoffered.discard(change.document_id)
        requested = self._requested.get(change.sequence)
        if requested == change.document_id:
            return None  # Offered by two subscriptions; it is on its way.
        if requested is not None:
            raise RemoteProtocolError(
                "two documents have one sequence", sequence=change.sequence, document_id=requested
            )
        self._sequences.begin(change.sequence, in_order=change.document_id not in self._fetching)
        if self._document_ids is not None and change.document_id not in self._document_ids:
            # A peer that offers it all the same is broken, or has something in mind with it.
            self._complete(change.document_id, change.sequence)
            return None
        known = self._knowledge.of(txn, change.document_id)
        if any(revision.has(change.revision_id) for revision in held):
            self._held(change, known)
            return None
        self._link.journal.offered(1)
        self._requested[change.sequence] = change.document_id
        self._promised.add(change.sequence)
        ancestors: list[RevisionID] = [current.id for current in held[:1]]
        if ancestors and known is not None and known not in ancestors:
            place = (self._link.number, change.document_id)
            base = bases.get(txn, *place, known, with_body=False)
            # A delta may start from it, if its body was kept.
            ancestors += [known] if base is not None else []
        return Wanted(tuple(ancestors))

    def _held(self, change: OfferedChange, known: RevisionID | None) -> None:
        """The offered revision is here already."""
        offered = change.revision_id
        if known != offered:
            self._knowledge.note(change.document_id, offered)
        self._complete(change.document_id, change.sequence)
        # What we made ourselves only comes back to us: that is no offer.
        if not (isinstance(offered, Version) and offered.source == self._link.engine.source):
            self._link.journal.offered(1)
            self._link.journal.settled()

    def _inserted(self, sent: SentRevision, insertion: Insertion) -> None:
        self._requested.pop(sent.sequence, None)
        outcome = insertion.outcome
        collection, journal = self._link.collection, self._link.journal
        if outcome.failed:
            error: TrioP2PError = outcome.error(ours=True)
            if outcome.status == STATUS_LATER:
                error = ClockSkewError(outcome.text)
            if insertion.error is not None:
                error = insertion.error
            deleted = sent.revision.deleted
            journal.failed(Direction.PULL, collection, sent.document_id, error, deleted=deleted)
        elif outcome.status or insertion.conflicted:
            # The resolver tells of a conflict.
            journal.settled()
        else:
            journal.stored(Direction.PULL, collection, sent.document_id, sent.revision.deleted)
        if insertion.conflicted:
            self._resolver.add(sent.document_id)
        # What failed for now stays open, so that the checkpoint makes the next session ask again.
        if outcome.retryable:
            self._note_failed(sent.document_id, sent.sequence)
        else:
            self._complete(sent.document_id, sent.sequence)

    def _note_failed(self, document_id: DocumentID, sequence: RemoteSequence) -> None:
        """To be asked for again: in this session, or with too many of them, in the next one."""
        before = self._failed.get(document_id)
        if before is None:
            if len(self._failed) < limits.SEQUENCE_GAPS_MAX:
                self._failed[document_id] = sequence
        elif is_behind(before, sequence) and self._sequences.is_open(sequence):
            # This revision takes the place of the one that failed before.
            self._failed[document_id] = sequence
            self._sequences.complete(before)

    def _complete(self, document_id: DocumentID, sequence: RemoteSequence) -> None:
        """A revision of a document is here, or will not be asked for again."""
        self._sequences.complete(sequence)
        failed = self._failed.get(document_id)
        if failed is not None and (failed == sequence or is_behind(failed, sequence)):
            # The revision that failed is this one, or was superseded by it.
            del self._failed[document_id]
            self._sequences.complete(failed)
            self._link.journal.recovered(self._link.collection, document_id)
