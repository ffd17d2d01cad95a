"""The profile `BLIP_3+CBMobile_4`: JSON bodies, one `rev` message for each revision.

`docs/topics/wire-protocol.md` shows conversations in it.

Source: LiteCore's Replicator, and conversations recorded with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import orjson
import trio

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import (
    BlobNotFoundError,
    ConnectionLostError,
    InvalidDocumentError,
    LocalProtocolError,
    PeerError,
    RemoteProtocolError,
    TrioP2PError,
)
from trio_p2p.hearsay import repeatable
from trio_p2p.ids import DocumentID
from trio_p2p.model.blob import format_digest
from trio_p2p.model.codec import body_to_json
from trio_p2p.peer import PartialReply, Peer, Pending, RunSync
from trio_p2p.replication.messages import (
    CollectionsReply,
    GetAttachment,
    GetCheckpoint,
    GetCollections,
    Handler,
    HeldCheckpoint,
    NoRevision,
    OfferChanges,
    OfferedChange,
    OffersReply,
    OnOutcome,
    Proposal,
    ProposalAnswer,
    ProposalsReply,
    ProposeChanges,
    ProveAttachment,
    Refusal,
    Reply,
    Request,
    RevisionOutcome,
    RevisionsReply,
    SentRevision,
    SetCheckpoint,
    SubscribeChanges,
    Wanted,
)
from trio_p2p.replication.profile import PendingAnswers, describe
from trio_p2p.replication.profiles import values
from trio_p2p.replication.profiles.attachments import with_stubs
from trio_p2p.replication.profiles.history import (
    history_of,
)
from trio_p2p.replication.profiles.order import ListOrder
from trio_p2p.replication.profiles.replies import (
    change_answer,
    held_checkpoint,
    outcome_of,
    outcome_properties,
    proposal_answer,
    write_reply,
)
from trio_p2p.replication.profiles.requests import READERS, change_row, proposal_row

SUBPROTOCOL = "BLIP_3+CBMobile_4"
STATUS_TOO_LARGE = 413


class CouchbaseProfile:
    """Writes and reads messages for one peer. `run` must be running for large revisions to go."""

    def __init__(
        self,
        peer: Peer,
        handler: Handler,
        *,
        active: bool,
        deltas: bool = False,
        names_collections: bool = True,
        run_aside: RunSync | None = None,
    ) -> None:
        """`handler` gets the peer's requests; `active` tells which side we are.

        `deltas` enables them, if the peer does so too. `run_aside` calls what takes long,
        None: in a thread.
        """
        self._peer = peer
        self._handler = handler
        self._active = active
        # A session that does not name collections (Couchbase Lite's way up to 3.3) is about the
        # default one.
        self.names_collections = names_collections
        self.replacements_wanted = False
        # Whether the peer finds blobs in bodies, or has to be told of them.
        self._blobs_known = False
        self.deltas_taken = deltas
        self._deltas_told = False
        # The collections for which that we take deltas was told: once is enough.
        self._deltas_announced: set[str] = set()
        # Whether the peer has answered a message about a collection.
        self.is_understood = False
        self._run_aside = run_aside or trio.to_thread.run_sync
        # Revisions to be sent from the first one on whose large body is not written yet.
        self._unwritten: deque[tuple[int, SentRevision, OnOutcome]] = deque()
        self._wake = trio.Event()
        self._lists = ListOrder(peer)

    @property
    def deltas_wanted(self) -> bool:
        # A delta does not tell of blobs to a peer that has to be told of them.
        return self.deltas_taken and self._deltas_told and self._blobs_known

    # --- Asking ----------------------------------------------------------------------------------

    async def get_collections(self, request: GetCollections) -> CollectionsReply:
        properties = {"Profile": "getCollections"}
        if request.database_id is not None:
            properties["uuid"] = str(request.database_id)
        body = {"checkpoint_ids": request.checkpoint_ids, "collections": request.names}
        reply = await self._peer.request(Message(properties, orjson.dumps(body)))
        # Checkpoints may be long, where much was left out.
        rows = values.array(reply.body, limits.BODY_VALUES_MAX)
        checkpoints = tuple(map(held_checkpoint, rows))
        if len(checkpoints) != len(request.names):
            raise RemoteProtocolError("not one checkpoint for each collection")
        return CollectionsReply(checkpoints, values.uuid(reply.properties.get("uuid")))

    async def get_checkpoint(self, collection: int, client: str) -> HeldCheckpoint | None:
        try:
            reply = await self._ask(self._message("getCheckpoint", collection, {"client": client}))
        except PeerError as exc:
            if exc.domain == "HTTP" and exc.code == 404:
                self.is_understood = True
                return None
            raise
        return HeldCheckpoint(reply.properties.get("rev", ""), reply.body)

    async def set_checkpoint(self, collection: int, client: str, revision: str, body: bytes) -> str:
        properties = {"client": client, "rev": revision}
        reply = await self._ask(self._message("setCheckpoint", collection, properties, body))
        return reply.properties.get("rev", "")

    async def subscribe(self, request: SubscribeChanges) -> None:
        properties = {}
        if request.since is not None:
            properties["since"] = request.since
        if request.continuous:
            properties["continuous"] = "true"
        properties |= {
            "batch": str(request.batch),
            "sendReplacementRevs": "1",
            "versioning": "version-vectors",
        }
        if request.active_only:
            properties["activeOnly"] = "true"
        if request.channels is not None:
            properties["filter"] = "sync_gateway/bychannel"
            properties["channels"] = ",".join(request.channels)
        body = b""
        if request.document_ids is not None:
            body = orjson.dumps({"docIDs": request.document_ids})
        await self._ask(self._message("subChanges", request.collection, properties, body))

    def offer(self, collection: int, changes: Sequence[OfferedChange]) -> PendingAnswers:
        rows = [change_row(change) for change in changes]
        return _OfferAnswers(self, list(self._begin_lists(collection, rows)))

    def _begin_lists(self, collection: int, rows: list[Any]) -> Iterator[tuple[Pending, int]]:
        """Queue lists of changes, each of which fits into one frame.

        Of several frames, a list might be overtaken by a shorter one behind it, and by what tells
        that there is no more; but peers may take what comes first to be first in the feed.
        """
        message = self._listing("changes", collection, rows)
        if len(message.body) > limits.OFFERS_BYTES_MAX and len(rows) > 1:
            middle = len(rows) // 2
            yield from self._begin_lists(collection, rows[:middle])
            yield from self._begin_lists(collection, rows[middle:])
        else:
            yield self._peer.begin(message), len(rows)

    async def propose(
        self, collection: int, proposals: Sequence[Proposal]
    ) -> Sequence[ProposalAnswer]:
        rows = [proposal_row(proposal) for proposal in proposals]
        reply = await self._ask(self._listing("proposeChanges", collection, rows))
        self.note_abilities(reply.properties)
        answers = [proposal_answer(item) for item in values.array(reply.body)]
        return values.padded(answers, len(proposals), ProposalAnswer(0))

    def tell_caught_up(self, collection: int) -> None:
        profile = "proposeChanges" if self._active else "changes"
        self._peer.send(self._listing(profile, collection, []))

    def send_revisions(
        self, collection: int, revisions: Sequence[SentRevision], on_outcome: OnOutcome
    ) -> None:
        for sent in revisions:
            if self._unwritten or _is_large(sent):
                self._unwritten.append((collection, sent, on_outcome))
                self._wake.set()
            else:
                content = _content(sent, stubs=not self._blobs_known)
                self._send_revision(collection, sent, content, on_outcome)

    async def run(self) -> NoReturn:
        """Write large bodies aside, for ever; what is sent behind one goes out behind it.

        Cancelling: what waits is not sent.
        """
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._unwritten:
                collection, sent, on_outcome = self._unwritten[0]
                write = partial(_content, sent, stubs=not self._blobs_known)
                if _is_large(sent):
                    content = await self._run_aside(write)
                else:
                    await trio.lowlevel.checkpoint()
                    content = write()
                self._unwritten.popleft()
                self._send_revision(collection, sent, content, on_outcome)

    def send_no_revision(self, message: NoRevision) -> None:
        properties = {
            "id": message.document_id,
            "rev": describe(message.revision_id),
            "sequence": message.sequence,
            "error": str(message.status),
        }
        if message.reason:
            properties["reason"] = message.reason
        self._peer.send(
            self._message("norev", message.collection, properties, no_reply=True),
        )

    def get_attachment(self, request: GetAttachment) -> _IncomingAttachment:
        properties = {"digest": format_digest(request.sha1), "docID": request.document_id}
        if request.compress:
            properties["compress"] = "true"
        if request.start:
            properties["offset"] = str(request.start)
        message = self._message("getAttachment", request.collection, properties)
        return _IncomingAttachment(self._peer.request_in_parts(message))

    async def send_attachment(
        self, request: GetAttachment, start: int, content: AsyncIterable[bytes]
    ) -> bool:
        properties = {"offset": str(start)} if start else {}
        head = Message(properties, compressed=request.compress)
        return await self._peer.reply_in_parts(request.answer_to, head, content)

    def hold(self, what: Hashable, size: int) -> None:
        self._peer.hold(what, size)

    def release(self, what: Hashable) -> None:
        self._peer.release(what)

    def _send_revision(
        self, collection: int, sent: SentRevision, content: bytes, on_outcome: OnOutcome
    ) -> None:
        revision = sent.revision
        properties = {
            "id": str(sent.document_id),
            "rev": describe(revision.id),
            "sequence": sent.sequence,
        }
        if revision.deleted:
            properties["deleted"] = "1"
        history = history_of(revision)
        if history:
            properties["history"] = history
        if self._active:
            properties["noconflicts"] = "1"
        if sent.replaced is not None:
            properties["replacedRev"] = describe(sent.replaced)
        if sent.delta is not None:
            properties["deltaSrc"] = describe(sent.delta.base)

        def on_reply(reply: Message | PeerError | ConnectionLostError) -> None:
            # What a lost connection leaves unanswered has no outcome: the session ends by it.
            if not isinstance(reply, ConnectionLostError):
                on_outcome(sent, outcome_of(reply))

        message = self._message("rev", collection, properties, content, compressed=True)
        try:
            self._peer.send(message, on_reply)
        except LocalProtocolError as exc:
            # As JSON it may be longer than a message is. Nobody else's documents must suffer.
            reason = f"it cannot be sent: {exc.message}"
            number = STATUS_TOO_LARGE
            lost = NoRevision(
                collection, sent.document_id, revision.id, sent.sequence, number, reason
            )
            self.send_no_revision(lost)
            on_outcome(sent, RevisionOutcome(number, reason))

    async def _ask(self, message: Message) -> Message:
        reply = await self._peer.request(message)
        self.is_understood = True
        return reply

    def _message(
        self,
        profile: str,
        collection: int,
        properties: Mapping[str, str],
        body: bytes = b"",
        *,
        urgent: bool = False,
        compressed: bool = False,
        no_reply: bool = False,
    ) -> Message:
        head = {"Profile": profile}
        if self.names_collections:
            head["collection"] = str(collection)
        return Message(
            {**head, **properties}, body, urgent=urgent, compressed=compressed, no_reply=no_reply
        )

    def _listing(self, profile: str, collection: int, rows: list[Any]) -> Message:
        properties = {"conflictIncludesRev": "true"} if profile == "proposeChanges" else {}
        return self._message(
            profile,
            collection,
            properties,
            orjson.dumps(rows),
            urgent=True,
            compressed=bool(rows),
            # An empty list tells that the sender has caught up, and wants no answer.
            no_reply=not rows,
        )

    def note_abilities(self, properties: values.Properties) -> None:
        """Learn from a message of the peer what it can take."""
        if values.is_true(properties, "sendReplacementRevs"):
            self.replacements_wanted = True
        if values.is_true(properties, "blobs"):
            self._blobs_known = True
        if values.is_true(properties, "deltas"):
            self._deltas_told = True

    # --- Being asked -----------------------------------------------------------------------------

    def on_request(self, number: int, message: Message) -> None:
        """Hand a request of the peer to the handler; refuse what cannot be read.

        Raises: RemoteProtocolError for what cannot be done without.
        """
        self.prepare(message)(number)

    def prepare(self, message: Message) -> Callable[[int], None]:
        """Read a request of the peer; what is returned does the rest, given its number.

        Reading changes nothing and may be done in a thread.
        """
        answer = self._read(message)

        def handle(number: int) -> None:
            answer(number)
            self._lists.hand_on()

        return handle

    def _read(self, message: Message) -> Callable[[int], None]:
        reader = READERS.get(message.properties.get("Profile", ""))
        if reader is None:
            # This very text tells Couchbase Lite that the peer is older than a message.
            unknown = Refusal(404, "no handler for message", "BLIP")
            return lambda number: self._respond(number, message, unknown)
        try:
            request = reader(_collection(message.properties), message)
        except (RemoteProtocolError, InvalidDocumentError, BlobNotFoundError) as exc:
            failure = exc
            return lambda number: self._refuse(number, message, failure)
        return lambda number: self._take(number, message, request)

    def _take(self, number: int, message: Message, request: Request) -> None:
        """Hand a request to the handler. What it holds until the reply is held for the peer."""
        properties = message.properties
        self.note_abilities(properties)
        if isinstance(request, GetCheckpoint) and "collection" not in properties:
            self.names_collections = False
        if message.no_reply and isinstance(request, (GetAttachment, ProveAttachment)):
            return  # There is nothing else to do than to answer.
        if isinstance(request, GetAttachment):
            request = replace(request, answer_to=number)
        if isinstance(request, OfferChanges):
            self._peer.hold(number, len(request.changes) * limits.ROW_BYTES)
        elif isinstance(request, ProposeChanges):
            self._peer.hold(number, len(request.proposals) * limits.ROW_BYTES)
        elif isinstance(request, (GetAttachment, ProveAttachment, SetCheckpoint)):
            self._peer.hold(number, limits.TASK_BYTES)
        if message.no_reply:
            # What wants a reply is counted as it comes, by the peer.
            self._peer.hold(number, message.held_bytes)

        def handle() -> None:
            self._handler(request, lambda reply: self._respond(number, message, reply))

        if isinstance(request, OfferChanges):
            self._lists.add(number, handle)
        else:
            handle()

    def _refuse(self, number: int, message: Message, failure: TrioP2PError) -> None:
        self.note_abilities(message.properties)
        status = 404 if isinstance(failure, BlobNotFoundError) else 400
        self._respond(number, message, Refusal(status, str(failure)))
        self._tell_unreadable(message.properties, status, str(failure))
        if self._active and message.properties["Profile"] == "changes":
            # Of the lists behind it, no checkpoint can tell without passing what stood in it.
            raise failure

    def _tell_unreadable(self, properties: values.Properties, status: int, reason: str) -> None:
        """A revision that cannot be read will not come: whoever waits for it must know."""
        if properties["Profile"] != "rev":
            return
        try:
            sequence = values.sequence_of(properties)
        except RemoteProtocolError:
            return  # None that was offered is like that.
        collection = values.number(properties, "collection", "0")
        if not sequence or collection is None:
            return
        name = DocumentID(repeatable(properties.get("id", "")))
        message = NoRevision(collection, name, None, sequence, status, reason)
        self._handler(message, lambda _: None)

    def _respond(self, number: int, message: Message, reply: Reply) -> None:
        if message.no_reply:
            self._peer.release(number)
            return
        match reply:
            case Refusal(status, text, domain):
                self._peer.refuse(number, domain, status, text)
            case RevisionsReply((RevisionOutcome(status, text) as outcome,)):
                if outcome.failed:
                    self._peer.refuse(number, "HTTP", status, text)
                else:
                    self._peer.reply(number, Message(outcome_properties(outcome)))
            case OffersReply() | ProposalsReply():
                announce = self._announces_deltas(message.properties.get("collection", ""))
                self._peer.reply(number, write_reply(reply, announce_deltas=announce))
            case _:
                self._peer.reply(number, write_reply(reply))

    def _announces_deltas(self, collection: str) -> bool:
        if not self.deltas_taken or collection in self._deltas_announced:
            return False
        self._deltas_announced.add(collection)
        return True


def _is_large(sent: SentRevision) -> bool:
    """Whether its body takes long to write."""
    return sent.delta is None and len(sent.revision.body) > limits.READ_ASIDE_BYTES


def _content(sent: SentRevision, *, stubs: bool) -> bytes:
    """What a message holds of a revision. `stubs`: blobs are listed in it."""
    if sent.delta is not None:
        return sent.delta.content
    body = body_to_json(sent.revision.body)
    return with_stubs(body) if stubs else body


def _collection(properties: values.Properties) -> int:
    """The index of the collection that a request is about: the first one if it names none."""
    if "collection" not in properties:
        return 0
    index = values.number(properties, "collection")
    if index is None:
        text = properties["collection"]
        raise RemoteProtocolError("not a collection index", collection=text[:20])
    return index


@dataclass(frozen=True, slots=True)
class _IncomingAttachment:
    reply: PartialReply

    @property
    def start(self) -> int:
        # Only our own listener knows of offsets; any other sends the whole blob.
        return values.number(self.reply.properties, "offset", "0") or 0

    async def receive(self) -> bytes:
        return await self.reply.receive()

    def abandon(self) -> None:
        self.reply.abandon()


@dataclass(frozen=True, slots=True)
class _OfferAnswers:
    profile: CouchbaseProfile
    lists: Sequence[tuple[Pending, int]]

    async def wait(self) -> Sequence[Wanted | None]:
        answers: list[Wanted | None] = []
        for pending, length in self.lists:
            reply = await pending.wait()
            self.profile.note_abilities(reply.properties)
            told = [change_answer(item) for item in values.array(reply.body)]
            answers += values.padded(told, length, None)
        return answers
