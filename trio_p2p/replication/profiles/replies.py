"""Replies of the profile `BLIP_3+CBMobile_4`, written and read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import orjson

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import PeerError, RemoteProtocolError
from trio_p2p.model.version import RevisionID
from trio_p2p.replication.messages import (
    AttachmentProof,
    CheckpointSaved,
    CollectionsReply,
    HeldCheckpoint,
    OffersReply,
    ProposalAnswer,
    ProposalsReply,
    Reply,
    RevisionOutcome,
    Wanted,
)
from trio_p2p.replication.profile import describe
from trio_p2p.replication.profiles import values
from trio_p2p.replication.profiles.history import revision_id


def write_reply(reply: Reply, *, announce_deltas: bool = False) -> Message:
    match reply:
        case CollectionsReply(checkpoints, database_id):
            properties = {"uuid": str(database_id)} if database_id else {}
            return Message(properties, orjson.dumps([_checkpoint_row(c) for c in checkpoints]))
        case HeldCheckpoint(revision, body):
            return Message({"rev": revision}, body)
        case CheckpointSaved(revision):
            return Message({"rev": revision})
        case OffersReply(answers):
            return _listing_reply([_wanted_row(answer) for answer in answers], announce_deltas)
        case AttachmentProof(digest):
            return Message({}, digest.encode())
        case ProposalsReply(proposal_answers):
            rows = [_status_row(answer) for answer in proposal_answers]
            return _listing_reply(rows, announce_deltas)
        case _:
            return Message({})


def _listing_reply(rows: list[Any], announce_deltas: bool) -> Message:
    while rows and rows[-1] == 0:
        rows.pop()
    properties = {"blobs": "true", "sendReplacementRevs": "1"}
    if announce_deltas:
        properties["deltas"] = "true"
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


def held_checkpoint(item: Any) -> HeldCheckpoint | None:
    if item is None:
        return None
    if not isinstance(item, dict):
        raise RemoteProtocolError("not a checkpoint", got=type(item).__name__)
    revision = item.pop("rev", "")
    if not isinstance(revision, str):
        raise RemoteProtocolError("not a checkpoint revision", got=type(revision).__name__)
    return HeldCheckpoint(revision, values.written(item))


def change_answer(item: Any) -> Wanted | None:
    if isinstance(item, list):
        return Wanted(tuple(_ancestors(item)))
    if item is None or isinstance(item, (int, dict)):
        return None
    raise RemoteProtocolError("not an answer to a change", got=type(item).__name__)


def _ancestors(texts: list[Any]) -> Iterator[RevisionID]:
    for text in texts[: limits.ANCESTORS_MAX]:
        # They but help to save bytes.
        with suppress(RemoteProtocolError):
            yield revision_id(text)


def proposal_answer(item: Any) -> ProposalAnswer:
    if type(item) is int:
        return ProposalAnswer(item)
    if isinstance(item, dict) and type(item.get("status")) is int:
        current = item.get("rev")
        return ProposalAnswer(item["status"], revision_id(current) if current else None)
    raise RemoteProtocolError("not an answer to a proposal", got=type(item).__name__)


def outcome_properties(outcome: RevisionOutcome) -> dict[str, str]:
    """What the reply to a revision says that did not fail."""
    return {"noop": "true"} if outcome.status else {}


def outcome_of(reply: Message | PeerError) -> RevisionOutcome:
    match reply:
        case Message(properties):
            return RevisionOutcome(304 if values.is_true(properties, "noop") else 0)
        case PeerError(domain="HTTP" | "WebSocket", code=code, text=text, retryable=retryable):
            return RevisionOutcome(code, text, retryable)
        case PeerError():
            return RevisionOutcome(502, str(reply))
