"""The profile `BLIP_3+CBMobile_4`: JSON bodies, one `rev` message for each revision.

Source: LiteCore's Replicator, and conversations recorded with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import (
    BlobNotFoundError,
    ConnectionLostError,
    InvalidDocumentError,
    PeerError,
    RemoteProtocolError,
)
from trio_p2p.ids import DocumentID, document_id
from trio_p2p.model.codec import body_from_json, body_to_json
from trio_p2p.model.document import EMPTY_BODY
from trio_p2p.peer import Peer, Pending
from trio_p2p.replication.messages import (
    CheckpointSaved,
    CollectionsReply,
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
    Refusal,
    Reply,
    Request,
    RevisionOutcome,
    RevisionsReply,
    SendRevisions,
    SentRevision,
    SetCheckpoint,
    SubscribeChanges,
    Wanted,
)
from trio_p2p.replication.profile import PendingAnswers, describe
from trio_p2p.replication.profiles.history import (
    current_revision,
    history_of,
    read_revision,
    revision_id,
)

SUBPROTOCOL = "BLIP_3+CBMobile_4"

Properties = Mapping[str, str]


class CouchbaseProfile:
    """Writes and reads messages for one peer."""

    def __init__(
        self, peer: Peer, handler: Handler, *, active: bool, names_collections: bool = True
    ) -> None:
        """`handler` gets the peer's requests; `active` tells which side we are."""
        self._peer = peer
        self._handler = handler
        self._active = active
        # A session that does not name collections (Couchbase Lite's way up to 3.3) is about the
        # default one.
        self.names_collections = names_collections
        self.replacements_wanted = False
        # Whether the peer has answered a message about a collection.
        self.is_understood = False

    # --- Asking ----------------------------------------------------------------------------------

    async def get_collections(self, request: GetCollections) -> CollectionsReply:
        properties = {"Profile": "getCollections"}
        if request.database_id is not None:
            properties["uuid"] = str(request.database_id)
        body = {"checkpoint_ids": request.checkpoint_ids, "collections": request.names}
        reply = await self._peer.request(Message(properties, orjson.dumps(body)))
        checkpoints = tuple(_held_checkpoint(item) for item in _array(reply.body))
        if len(checkpoints) != len(request.names):
            raise RemoteProtocolError("not one checkpoint for each collection")
        return CollectionsReply(checkpoints, _uuid(reply.properties.get("uuid")))

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
        body = b""
        if request.document_ids is not None:
            body = orjson.dumps({"docIDs": request.document_ids})
        await self._ask(self._message("subChanges", request.collection, properties, body))

    def offer(self, collection: int, changes: Sequence[OfferedChange]) -> PendingAnswers:
        rows = [_change_row(change) for change in changes]
        pending = self._peer.begin(self._listing("changes", collection, rows))
        return _OfferAnswers(self, pending, len(changes))

    async def propose(
        self, collection: int, proposals: Sequence[Proposal]
    ) -> Sequence[ProposalAnswer]:
        rows = [_proposal_row(proposal) for proposal in proposals]
        reply = await self._ask(self._listing("proposeChanges", collection, rows))
        self.note_abilities(reply.properties)
        answers = [_proposal_answer(item) for item in _array(reply.body)]
        return _padded(answers, len(proposals), ProposalAnswer(0))

    def tell_caught_up(self, collection: int) -> None:
        profile = "proposeChanges" if self._active else "changes"
        self._peer.send(self._listing(profile, collection, []))

    def send_revisions(
        self, collection: int, revisions: Sequence[SentRevision], on_outcome: OnOutcome
    ) -> None:
        for sent in revisions:
            self._send_revision(collection, sent, on_outcome)

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

    def _send_revision(self, collection: int, sent: SentRevision, on_outcome: OnOutcome) -> None:
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

        def on_reply(reply: Message | PeerError | ConnectionLostError) -> None:
            on_outcome(sent, _outcome(reply))

        body = body_to_json(revision.body)
        message = self._message("rev", collection, properties, body, compressed=True)
        self._peer.send(message, on_reply)

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

    def note_abilities(self, properties: Properties) -> None:
        """Learn from a message of the peer what it can take."""
        if _true(properties, "sendReplacementRevs"):
            self.replacements_wanted = True

    # --- Being asked -----------------------------------------------------------------------------

    def on_request(self, number: int, message: Message) -> None:
        """Hand a request of the peer to the handler; refuse what cannot be read."""
        reader = _READERS.get(message.properties.get("Profile", ""))
        if reader is None:
            # This very text tells Couchbase Lite that the peer is older than a message.
            self._respond(number, message, Refusal(404, "no handler for message", "BLIP"))
            return
        try:
            self.note_abilities(message.properties)
            request = reader(self._collection(message.properties), message)
        except (RemoteProtocolError, InvalidDocumentError, BlobNotFoundError) as exc:
            status = 404 if isinstance(exc, BlobNotFoundError) else 400
            self._respond(number, message, Refusal(status, str(exc)))
            self._tell_unreadable(message.properties, status, str(exc))
        else:
            self._handler(request, lambda reply: self._respond(number, message, reply))

    def _tell_unreadable(self, properties: Properties, status: int, reason: str) -> None:
        """A revision that cannot be read will not come: whoever waits for it must know."""
        sequence, collection = properties.get("sequence"), _number(properties, "collection", "0")
        if properties["Profile"] != "rev" or not sequence or collection is None:
            return
        name = DocumentID(properties.get("id", ""))
        message = NoRevision(collection, name, None, sequence, status, reason)
        self._handler(message, lambda _: None)

    def _collection(self, properties: Properties) -> int:
        if "collection" not in properties:
            if properties["Profile"] == "getCheckpoint":
                self.names_collections = False
            return 0
        index = _number(properties, "collection")
        if index is None:
            text = properties["collection"]
            raise RemoteProtocolError("not a collection index", collection=text[:20])
        return index

    def _respond(self, number: int, message: Message, reply: Reply) -> None:
        if message.no_reply:
            return
        match reply:
            case Refusal(status, text, domain):
                self._peer.refuse(number, domain, status, text)
            case RevisionsReply((RevisionOutcome(status, text) as outcome,)):
                if outcome.failed:
                    self._peer.refuse(number, "HTTP", status, text)
                else:
                    self._peer.reply(number, Message({"noop": "true"} if status else {}))
            case _:
                self._peer.reply(number, _write_reply(reply))


@dataclass(frozen=True, slots=True)
class _OfferAnswers:
    profile: CouchbaseProfile
    pending: Pending
    count: int

    async def wait(self) -> Sequence[Wanted | None]:
        reply = await self.pending.wait()
        self.profile.note_abilities(reply.properties)
        return _padded([_change_answer(item) for item in _array(reply.body)], self.count, None)


# --- Writing -------------------------------------------------------------------------------------


def _change_row(change: OfferedChange) -> list[Any]:
    row = [orjson.Fragment(change.sequence), change.document_id, describe(change.revision_id)]
    return [*row, 1] if change.deleted else [*row, 0, change.body_bytes]


def _proposal_row(proposal: Proposal) -> list[Any]:
    row: list[Any] = [
        proposal.document_id,
        describe(proposal.revision_id),
        describe(proposal.parent),
    ]
    return row if proposal.body_bytes is None else [*row, proposal.body_bytes]


def _write_reply(reply: Reply) -> Message:
    match reply:
        case CollectionsReply(checkpoints, database_id):
            properties = {"uuid": str(database_id)} if database_id else {}
            return Message(properties, orjson.dumps([_checkpoint_row(c) for c in checkpoints]))
        case HeldCheckpoint(revision, body):
            return Message({"rev": revision}, body)
        case CheckpointSaved(revision):
            return Message({"rev": revision})
        case OffersReply(answers):
            return _listing_reply([_wanted_row(answer) for answer in answers])
        case ProposalsReply(proposal_answers):
            return _listing_reply([_status_row(answer) for answer in proposal_answers])
        case _:
            return Message({})


def _listing_reply(rows: list[Any]) -> Message:
    while rows and rows[-1] == 0:
        rows.pop()
    properties = {"blobs": "true", "sendReplacementRevs": "1"}
    return Message(properties, orjson.dumps(rows), compressed=True)


def _wanted_row(answer: Wanted | None) -> Any:
    return 0 if answer is None else [describe(ancestor) for ancestor in answer.ancestors]


def _status_row(answer: ProposalAnswer) -> Any:
    if answer.current is None:
        return answer.status
    return {"status": answer.status, "rev": str(answer.current)}


def _checkpoint_row(held: HeldCheckpoint | None) -> Any:
    if held is None:
        return None
    return orjson.loads(held.body) | {"rev": held.revision} if held.revision else {}


# --- Reading -------------------------------------------------------------------------------------


def _array(body: bytes) -> list[Any]:
    value = _json(body)
    if not isinstance(value, list):
        raise RemoteProtocolError("not a JSON array", got=type(value).__name__)
    return value


def _object(body: bytes) -> dict[str, Any]:
    value = _json(body)
    if not isinstance(value, dict):
        raise RemoteProtocolError("not a JSON object", got=type(value).__name__)
    return value


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise RemoteProtocolError("not JSON", got=body[:40]) from exc


def _true(properties: Properties, name: str) -> bool:
    """LiteCore writes `true` in some places and `1` in others."""
    return properties.get(name, "").lower() in ("true", "yes") or bool(_number(properties, name))


def _number(properties: Properties, name: str, default: str = "") -> int | None:
    """A count in decimal digits; None for anything else."""
    text = properties.get(name, default)
    # Python refuses to read very long ones, and nothing here needs more than 64 bits.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _required(properties: Properties, name: str) -> str:
    text = properties.get(name)
    if not text:
        raise RemoteProtocolError("a property is missing", property=name)
    return text


def _written(value: Any) -> bytes:
    """JSON that was read, written again: orjson reads deeper nesting than it writes."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as exc:
        raise RemoteProtocolError("JSON is nested too deeply") from exc


def _sequence(value: Any) -> str:
    """A sequence as JSON text, its form in properties: nearly always a plain number."""
    return str(value) if type(value) is int else _written(value).decode()


def _uuid(text: str | None) -> UUID | None:
    """Another database's UUID; None for anything that is not one, since peers may leave it out."""
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


def _document_id(value: object) -> DocumentID:
    try:
        return document_id(value)
    except InvalidDocumentError as exc:
        raise RemoteProtocolError("not a document ID", got=str(value)[:80]) from exc


def _padded(answers: list[Any], length: int, filler: Any) -> list[Any]:
    """Trailing zeros are left out on the wire."""
    if len(answers) > length:
        raise RemoteProtocolError("more answers than questions")
    return answers + [filler] * (length - len(answers))


def _held_checkpoint(item: Any) -> HeldCheckpoint | None:
    if item is None:
        return None
    if not isinstance(item, dict):
        raise RemoteProtocolError("not a checkpoint", got=type(item).__name__)
    revision = item.pop("rev", "")
    if not isinstance(revision, str):
        raise RemoteProtocolError("not a checkpoint revision", got=type(revision).__name__)
    return HeldCheckpoint(revision, _written(item))


def _change_answer(item: Any) -> Wanted | None:
    if isinstance(item, list):
        return Wanted()
    if item is None or isinstance(item, (int, dict)):
        return None
    raise RemoteProtocolError("not an answer to a change", got=type(item).__name__)


def _proposal_answer(item: Any) -> ProposalAnswer:
    if type(item) is int:
        return ProposalAnswer(item)
    if isinstance(item, dict) and type(item.get("status")) is int:
        current = item.get("rev")
        return ProposalAnswer(item["status"], current_revision(current) if current else None)
    raise RemoteProtocolError("not an answer to a proposal", got=type(item).__name__)


def _outcome(reply: Message | PeerError | ConnectionLostError) -> RevisionOutcome:
    match reply:
        case Message(properties):
            return RevisionOutcome(304 if _true(properties, "noop") else 0)
        case PeerError(domain="HTTP" | "WebSocket", code=code, text=text, retryable=retryable):
            return RevisionOutcome(code, text, retryable)
        case PeerError():
            return RevisionOutcome(502, str(reply))
        case lost:
            return RevisionOutcome(lost.code, lost.message, retryable=True)


def _read_get_collections(_: int, message: Message) -> Request:
    body = _object(message.body)
    names, ids = body.get("collections"), body.get("checkpoint_ids")
    if not isinstance(names, list) or not isinstance(ids, list) or len(names) != len(ids):
        raise RemoteProtocolError("collections and checkpoint_ids are lists of one length")
    if not all(isinstance(text, str) and text for text in (*names, *ids)):
        raise RemoteProtocolError("collections and checkpoint_ids hold non-empty texts")
    if not names or len(set(names)) < len(names):
        raise RemoteProtocolError("collections are named once each, and at least one")
    if len(names) > limits.COLLECTIONS_PER_CONNECTION_MAX:
        raise RemoteProtocolError("too many collections", count=len(names))
    return GetCollections(tuple(names), tuple(ids), _uuid(message.properties.get("uuid")))


def _read_get_checkpoint(collection: int, message: Message) -> Request:
    return GetCheckpoint(collection, _required(message.properties, "client"))


def _read_set_checkpoint(collection: int, message: Message) -> Request:
    if len(message.body) > limits.CHECKPOINT_BYTES_MAX:
        raise RemoteProtocolError("a checkpoint is too large", bytes=len(message.body))
    # In the reply to getCollections it will stand in a list.
    _written([_object(message.body)])
    client = _required(message.properties, "client")
    return SetCheckpoint(collection, client, message.properties.get("rev", ""), message.body)


def _read_subscribe(collection: int, message: Message) -> Request:
    properties = message.properties
    document_ids = None
    if message.body:
        document_ids = _object(message.body).get("docIDs")
        if document_ids is not None and not (
            isinstance(document_ids, list) and all(isinstance(item, str) for item in document_ids)
        ):
            raise RemoteProtocolError("docIDs is a list of texts")
    if properties.get("filter"):
        raise RemoteProtocolError("filters are not supported", filter=properties["filter"][:40])
    return SubscribeChanges(
        collection,
        properties.get("since"),
        _true(properties, "continuous"),
        _number(properties, "batch") or 0,
        _true(properties, "activeOnly"),
        None if document_ids is None else tuple(document_ids),
    )


def _read_changes(collection: int, message: Message) -> Request:
    return OfferChanges(collection, tuple(map(_offered_change, _array(message.body))))


def _offered_change(item: Any) -> OfferedChange:
    if not isinstance(item, list) or len(item) < 3:
        raise RemoteProtocolError("a change is an array of three or more")
    return OfferedChange(
        _sequence(item[0]),
        _document_id(item[1]),
        revision_id(item[2]),
        bool(item[3]) if len(item) > 3 else False,
        item[4] if len(item) > 4 and type(item[4]) is int else 0,
    )


def _read_propose(collection: int, message: Message) -> Request:
    return ProposeChanges(collection, tuple(map(_proposal, _array(message.body))))


def _proposal(item: Any) -> Proposal:
    if not isinstance(item, list) or len(item) < 2:
        raise RemoteProtocolError("a proposal is an array of two or more")
    return Proposal(
        _document_id(item[0]),
        revision_id(item[1]),
        revision_id(item[2]) if len(item) > 2 and item[2] else None,
    )


def _read_revision(collection: int, message: Message) -> Request:
    properties = message.properties
    if "deltaSrc" in properties:
        raise RemoteProtocolError("deltas were not announced")
    deleted = _true(properties, "deleted")
    revision = read_revision(
        _required(properties, "rev"),
        properties.get("history", ""),
        EMPTY_BODY if deleted and message.body in (b"", b"{}") else body_from_json(message.body),
        deleted=deleted,
    )
    replaced = properties.get("replacedRev")
    sent = SentRevision(
        _document_id(properties.get("id")),
        properties.get("sequence", ""),
        revision,
        revision_id(replaced) if replaced else None,
    )
    return SendRevisions(collection, (sent,))


def _read_no_revision(collection: int, message: Message) -> Request:
    properties = message.properties
    return NoRevision(
        collection,
        _document_id(properties.get("id")),
        revision_id(properties.get("rev")),
        properties.get("sequence", ""),
        _number(properties, "error") or 404,
        properties.get("reason", ""),
    )


_READERS: Mapping[str, Callable[[int, Message], Request]] = {
    "getCollections": _read_get_collections,
    "getCheckpoint": _read_get_checkpoint,
    "setCheckpoint": _read_set_checkpoint,
    "subChanges": _read_subscribe,
    "changes": _read_changes,
    "proposeChanges": _read_propose,
    "rev": _read_revision,
    "norev": _read_no_revision,
}
