"""One connection of a passive peer: it answers, and never decides a conflict."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from trio_p2p import limits
from trio_p2p.blip.load import Budget, Share
from trio_p2p.errors import (
    CollectionNotFoundError,
    ConflictError,
    ConnectionLostError,
    ReplicationError,
    StoreFullError,
    TrioP2PError,
)
from trio_p2p.ids import DocumentID
from trio_p2p.model.conflict import ProposalStatus, judge_proposal
from trio_p2p.model.document import Revision
from trio_p2p.model.version import VersionVector
from trio_p2p.peer import Peer
from trio_p2p.replication.blob_fetcher import STATUS_FULL
from trio_p2p.replication.blob_server import BlobServer
from trio_p2p.replication.checkpoint import Checkpoint
from trio_p2p.replication.deltas import STATUS_UNPROCESSABLE
from trio_p2p.replication.failure import replication_error
from trio_p2p.replication.feeder import Feeder
from trio_p2p.replication.inserter import Inserter, Insertion
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.link import Link, Pulse, Window
from trio_p2p.replication.messages import (
    Accepted,
    CheckpointSaved,
    CollectionsReply,
    GetAttachment,
    GetCheckpoint,
    GetCollections,
    HeldCheckpoint,
    NoRevision,
    OfferChanges,
    Proposal,
    ProposalAnswer,
    ProposalsReply,
    ProposeChanges,
    ProveAttachment,
    Refusal,
    Request,
    Respond,
    RevisionOutcome,
    RevisionsReply,
    SendRevisions,
    SentRevision,
    SetCheckpoint,
    SubscribeChanges,
)
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.replication.status import Direction
from trio_p2p.store import checkpoints, documents
from trio_p2p.store.database import Collection
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction
from trio_p2p.transport.base import (
    CLOSE_GOING_AWAY,
    CLOSE_NORMAL,
    CLOSE_TRANSIENT,
    MessageTransport,
)

# Couchbase Lite's kC4ErrorUnsupported: what its passive peers answer to whoever wants a filter.
CODE_UNSUPPORTED = 19
NO_CHECKPOINT = HeldCheckpoint("", b"{}")


@dataclass(slots=True)
class _Listed:
    """A list of proposals, and the answers that were found so far."""

    proposals: Sequence[Proposal]
    respond: Respond
    answers: list[ProposalAnswer] = field(default_factory=list)
    versions_told: int = 0

    @property
    def is_answered(self) -> bool:
        return len(self.answers) == len(self.proposals)

    def refuse(self, current: Revision) -> ProposalAnswer:
        """That a proposal conflicts with a revision, which is told as far as there is room.

        Its current version alone tells whether the proposed revision was made on top of it.
        """
        if current.is_legacy:
            return ProposalAnswer(ProposalStatus.CONFLICT, current.trees[0])
        told = current.vector
        if self.versions_told + len(told) > limits.CONFLICT_VERSIONS_MAX:
            told = VersionVector(told.current)
        self.versions_told += len(told)
        return ProposalAnswer(ProposalStatus.CONFLICT, told)


@dataclass(slots=True)
class _Part:
    """What works on one collection."""

    link: Link
    inserter: Inserter
    feeder: Feeder | None = None
    fetch: Feeder | None = None
    # Proposals wait here while the inserter is behind; of the first ones some may be judged.
    proposals: deque[_Listed] = field(default_factory=deque)
    answering: bool = False
    """Whether a task answers them."""
    # Documents deleted here that the peer, knowing nothing of them, writes anew: the latest ones.
    revivals: dict[DocumentID, None] = field(default_factory=dict)

    @property
    def may_answer(self) -> bool:
        """Whether there are proposals to answer, and room for what is wanted of them."""
        has_room = self.inserter.backlog < limits.REVISIONS_REQUESTED_MAX
        return bool(self.proposals) and has_room

    def expect_revival(self, document_id: DocumentID) -> None:
        """The peer may write anew a document that was deleted here."""
        self.revivals[document_id] = None
        if len(self.revivals) > limits.NOTED_DOCUMENTS_MAX:
            del self.revivals[next(iter(self.revivals))]

    def take_revival(self, document_id: DocumentID) -> bool:
        """Whether it may, which it may once."""
        return document_id in self.revivals and self.revivals.pop(document_id) is None


class PassiveSession:
    """Serves some collections of one database to one peer."""

    def __init__(
        self,
        transport: MessageTransport,
        collections: Sequence[Collection],
        journal: Journal,
        budget: Budget | Share | None = None,
        *,
        on_asked: Callable[[], None] = lambda: None,
        read_only: bool = False,
        deltas: bool = False,
    ) -> None:
        """`budget` is what the peers of all sessions together may make us hold.

        `on_asked` is called when the peer asks for something for the first time. `deltas` enables
        them, if the peer does so too.
        """
        self._on_asked = on_asked
        self._read_only = read_only
        self._transport = transport
        self._collections = {collection.full_name: collection for collection in collections}
        self._engine = collections[0].database.engine
        self._journal = journal
        self._window = Window()
        self._peer = Peer(transport, budget=budget)
        self._profile = CouchbaseProfile(
            self._peer,
            self._handle,
            active=False,
            deltas=deltas,
            run_aside=self._engine.run_aside,
        )
        self._readable = frozenset(collection.number for collection in collections)
        self._blob_server = BlobServer(self._engine, self._profile, journal, self._readable)
        self._parts: list[_Part] = []
        self._tasks: trio.Nursery | None = None
        self._asked = trio.Event()

    @property
    def busy(self) -> bool:
        """Whether revisions are under way in either direction."""
        return any(
            part.inserter.backlog
            or part.proposals
            or (part.feeder and part.feeder.busy)
            or (part.fetch and part.fetch.busy)
            for part in self._parts
        )

    async def run(self) -> None:
        """Serve until the peer says goodbye.

        Raises: ReplicationError if the connection ended in another way.
        Cancelling: ends the connection without a goodbye; close the transport first for one.
        """
        failure: BaseExceptionGroup[TrioP2PError] | None = None
        try:
            try:
                async with trio.open_nursery() as nursery:
                    self._tasks = nursery
                    nursery.start_soon(self._end_if_nothing_is_asked)
                    nursery.start_soon(self._profile.run)
                    await self._peer.run(self._profile.on_request, self._profile.prepare)
            except* TrioP2PError as group:
                failure = group
            if failure is not None and failure.subgroup(CollectionNotFoundError):
                # It comes back, asks for the collections by their names, and hears which is gone.
                await self._transport.aclose(CLOSE_TRANSIENT, "a collection was deleted")
        finally:
            self._tasks = None
            self._transport.abort()
            self._journal.moved(self._peer.bytes_sent, self._peer.bytes_received)
        if failure is not None and failure.split(_is_goodbye)[1] is not None:
            raise replication_error(failure) from failure

    async def _end_if_nothing_is_asked(self) -> None:
        """Say goodbye to a peer that only takes a place: clients ask for something at once."""
        with trio.move_on_after(limits.FIRST_REQUEST_TIMEOUT_S) as deadline:
            await self._asked.wait()
        if deadline.cancelled_caught:
            await self._transport.aclose(CLOSE_TRANSIENT, "nothing was asked for")

    def _handle(self, request: Request, respond: Respond) -> None:
        if not self._asked.is_set():
            self._asked.set()
            self._on_asked()
        if isinstance(request, GetCollections):
            self._open(request, respond)
            return
        if not self._parts and not self._open_default(request):
            respond(Refusal(400, "the first message names the collections"))
            return
        if request.collection >= len(self._parts):
            respond(Refusal(400, "no such collection index"))
            return
        part = self._parts[request.collection]
        if self._read_only and isinstance(request, ProposeChanges | SendRevisions):
            # In the words of Couchbase Lite, which stops when it hears them.
            respond(Refusal(403, "Attempting to push to a pull-only replicator"))
            return
        match request:
            case GetCheckpoint():
                self._get_checkpoint(request, respond)
            case SetCheckpoint():
                self._start(self._set_checkpoint, part, request, respond)
            case SubscribeChanges():
                self._subscribe(part, request, respond)
            case ProposeChanges():
                self._journal.offered(len(request.proposals))
                part.proposals.append(_Listed(request.proposals, respond))
                self._answer_proposals(part)
            case SendRevisions():
                self._arrived(part, request, respond)
            case OfferChanges():
                respond(Refusal(409, "use proposeChanges", "BLIP"))
            case GetAttachment():
                self._start(self._blob_server.send, request, respond)
            case ProveAttachment():
                self._start(self._blob_server.prove, request, respond)
            case NoRevision(document_id=document_id):
                part.take_revival(document_id)
                respond(Accepted())

    # --- Opening and checkpoints -----------------------------------------------------------------

    def _open(self, request: GetCollections, respond: Respond) -> None:
        if self._parts:
            respond(Refusal(400, "the collections were named already"))
            return
        if request.database_id == self._engine.id:
            text = "both peers hold copies of the same database; give one of them a new identity"
            respond(Refusal(409, text))
            return
        found = [self._served(name) for name in request.names]
        held = self._held(found, request.checkpoint_ids)
        if all(found):
            self._journal.connected()
            for collection in found:
                assert collection is not None
                self._add_part(collection)
        respond(CollectionsReply(held, self._engine.id))

    def _served(self, name: str) -> Collection | None:
        """The collection of this name, None if it is not served or was deleted meanwhile."""
        collection = self._collections.get(name)
        if collection is None or collection.number not in self._engine.collections:
            return None
        return collection

    def _held(
        self, found: Sequence[Collection | None], clients: Sequence[str]
    ) -> tuple[HeldCheckpoint | None, ...]:
        """The checkpoint kept for each collection, as far as one message can hold them."""
        bytes_left = limits.BODY_BYTES_MAX
        held: list[HeldCheckpoint | None] = []
        with self._engine.read() as txn:
            for collection, client in zip(found, clients, strict=True):
                checkpoint = None if collection is None else _held(txn, client)
                if checkpoint is not None and len(checkpoint.body) > bytes_left:
                    # As if there were none: what it tells of is looked at anew.
                    checkpoint = NO_CHECKPOINT
                bytes_left -= len(checkpoint.body) if checkpoint else 0
                held.append(checkpoint)
        return tuple(held)

    def _open_default(self, request: Request) -> bool:
        """Before 3.1 Couchbase Lite knew of no collections and began with its checkpoint."""
        default = self._collections.get("_default")
        if default is None or not isinstance(request, GetCheckpoint):
            return False
        if self._profile.names_collections:
            return False
        self._journal.connected()
        self._add_part(default)
        return True

    def _add_part(self, collection: Collection) -> None:
        index = len(self._parts)
        link = Link(
            collection,
            index,
            self._profile,
            self._journal,
            Pulse(),
            self._window,
            self._readable,
        )
        part = _Part(link, Inserter(link))
        self._parts.append(part)
        self._start(part.inserter.run)

    def _get_checkpoint(self, request: GetCheckpoint, respond: Respond) -> None:
        with self._engine.read() as txn:
            held = _held(txn, request.client)
        respond(held if held.revision else Refusal(404, "no such checkpoint"))

    async def _set_checkpoint(self, part: _Part, request: SetCheckpoint, respond: Respond) -> None:
        def job(txn: WriteTransaction) -> str:
            return checkpoints.set_peer(
                txn,
                request.client,
                request.revision,
                request.body,
                collection=part.link.number,
                reached=Checkpoint.from_json(request.body).remote_sequence,
            )

        try:
            revision = await self._engine.write(job)
        except ConflictError as exc:
            respond(Refusal(409, str(exc)))
        except StoreFullError as exc:
            respond(Refusal(STATUS_FULL, str(exc)))
        else:
            respond(CheckpointSaved(revision))
            # What the peer has passed may be more than one transaction should drop.
            self._engine.tidy_soon()

    # --- Being pulled from -----------------------------------------------------------------------

    def _subscribe(self, part: _Part, request: SubscribeChanges, respond: Respond) -> None:
        if request.filter is not None:
            text = f"there is no filter {request.filter[:40]!r} here"
            respond(Refusal(CODE_UNSUPPORTED, text, "LiteCore"))
            return
        # Beside a running subscription, documents may be fetched by their IDs.
        fetching = request.document_ids is not None and not request.continuous
        kept = part.fetch if fetching else part.feeder
        # A fetch may be asked for while the one before is still being sent, and comes after it.
        if kept is not None and not (kept.is_through if fetching else kept.ended.is_set()):
            respond(Refusal(500, "a subscription to this collection is running"))
            return
        respond(Accepted())
        feeder = Feeder(part.link, request)
        if fetching:
            part.fetch = feeder
        else:
            part.feeder = feeder
        self._start(self._feed, feeder, kept)

    async def _feed(self, feeder: Feeder, before: Feeder | None) -> None:
        self._peer.hold(feeder, feeder.held_bytes)
        try:
            if before is not None:
                await before.ended.wait()
            await feeder.run()
        finally:
            self._peer.release(feeder)

    # --- Being pushed to -------------------------------------------------------------------------

    def _answer_proposals(self, part: _Part) -> None:
        """Answer what waits, as far as the inserter keeps up: a slice now, the rest by and by."""
        if part.answering or not part.may_answer:
            return
        self._judge_slice(part)
        if part.may_answer:
            part.answering = True
            self._start(self._answer_other_proposals, part)

    async def _answer_other_proposals(self, part: _Part) -> None:
        """Lists may be long, or many may have waited, and other tasks want their turns."""
        await trio.lowlevel.checkpoint()
        while part.may_answer:
            self._judge_slice(part)
            await trio.lowlevel.checkpoint()
        part.answering = False

    def _judge_slice(self, part: _Part) -> None:
        """Judge the next proposals, less if their documents have long vectors."""
        listed = part.proposals[0]
        room_rows, room_versions = limits.SCAN_SLICE_ROWS, limits.JUDGED_VERSIONS_SLICE
        with self._engine.read() as txn:
            while not listed.is_answered and room_rows > 0 and room_versions > 0:
                proposal = listed.proposals[len(listed.answers)]
                head = documents.head(txn, part.link.number, proposal.document_id)
                current = head.revision if head else None
                listed.answers.append(self._judge(part, listed, proposal, current))
                room_rows -= 1
                room_versions -= len(current.vector) + len(current.trees) if current else 0
        if listed.is_answered:
            part.proposals.popleft()
            listed.respond(ProposalsReply(tuple(listed.answers)))

    def _judge(
        self, part: _Part, listed: _Listed, proposal: Proposal, current: Revision | None
    ) -> ProposalAnswer:
        status = judge_proposal(current, proposal.revision_id, proposal.parent)
        if status is not ProposalStatus.WANTED:
            self._journal.settled()
        if status is ProposalStatus.CONFLICT:
            assert current is not None
            return listed.refuse(current)
        if current is not None and current.deleted and proposal.parent is None:
            part.expect_revival(proposal.document_id)
        return ProposalAnswer(status)

    def _arrived(self, part: _Part, request: SendRevisions, respond: Respond) -> None:
        outcomes: list[RevisionOutcome] = []

        def on_inserted(sent: SentRevision, insertion: Insertion) -> None:
            outcomes.append(insertion.outcome)
            if insertion.outcome.status != STATUS_UNPROCESSABLE:
                self._tell(part, sent, insertion.outcome)
            if len(outcomes) == len(request.revisions):
                respond(RevisionsReply(tuple(outcomes)))
            self._answer_proposals(part)

        for sent in request.revisions:
            may_revive = part.take_revival(sent.document_id)
            part.inserter.add(
                sent,
                lambda insertion, sent=sent: on_inserted(sent, insertion),  # type: ignore[misc]
                may_revive=may_revive,
            )

    def _tell(self, part: _Part, sent: SentRevision, outcome: RevisionOutcome) -> None:
        collection = part.link.collection
        if outcome.failed:
            error = ReplicationError(outcome.text, status=outcome.status)
            self._journal.failed(Direction.PULL, collection, sent.document_id, error)
        elif outcome.status:
            self._journal.settled()
        else:
            deleted = sent.revision.deleted
            self._journal.stored(Direction.PULL, collection, sent.document_id, deleted)

    def _start(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(function, *args)


def _is_goodbye(error: BaseException) -> bool:
    return isinstance(error, ConnectionLostError) and error.code in (
        CLOSE_NORMAL,
        CLOSE_GOING_AWAY,
    )


def _held(txn: ReadTransaction, client: str) -> HeldCheckpoint:
    found = checkpoints.peer(txn, client)
    return HeldCheckpoint(found.revision, found.body) if found else NO_CHECKPOINT
