"""Requests of the profile `BLIP_3+CBMobile_4`, read, and the rows of those that list something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import InvalidDocumentError, RemoteProtocolError
from trio_p2p.hearsay import repeatable
from trio_p2p.ids import document_id
from trio_p2p.model.document import EMPTY_BODY
from trio_p2p.replication.messages import (
    Delta,
    GetAttachment,
    GetCheckpoint,
    GetCollections,
    NoRevision,
    OfferChanges,
    OfferedChange,
    Proposal,
    ProposeChanges,
    ProveAttachment,
    Request,
    SendRevisions,
    SentRevision,
    SetCheckpoint,
    SubscribeChanges,
)
from trio_p2p.replication.profile import describe
from trio_p2p.replication.profiles import values
from trio_p2p.replication.profiles.attachments import body_from_peer
from trio_p2p.replication.profiles.history import read_revision, revision_id


def _read_get_collections(_: int, message: Message) -> Request:
    body = values.json_object(message.body)
    names, ids = body.get("collections"), body.get("checkpoint_ids")
    if not isinstance(names, list) or not isinstance(ids, list) or len(names) != len(ids):
        raise RemoteProtocolError("collections and checkpoint_ids are lists of one length")
    if not all(isinstance(text, str) and text for text in (*names, *ids)):
        raise RemoteProtocolError("collections and checkpoint_ids hold non-empty texts")
    if not names or len(set(names)) < len(names):
        raise RemoteProtocolError("collections are named once each, and at least one")
    if len(names) > limits.COLLECTIONS_PER_CONNECTION_MAX:
        raise RemoteProtocolError("too many collections", count=len(names))
    return GetCollections(tuple(names), tuple(ids), values.uuid(message.properties.get("uuid")))


def _read_get_checkpoint(collection: int, message: Message) -> Request:
    return GetCheckpoint(collection, values.required(message.properties, "client"))


def _read_set_checkpoint(collection: int, message: Message) -> Request:
    if len(message.body) > limits.CHECKPOINT_BYTES_MAX:
        raise RemoteProtocolError("a checkpoint is too large", bytes=len(message.body))
    # In the reply to getCollections it will stand in a list, with those of other collections.
    checkpoint = values.json_object(message.body, limits.LISTED_VALUES_MAX)
    values.written([checkpoint])
    client = values.required(message.properties, "client")
    return SetCheckpoint(collection, client, message.properties.get("rev", ""), message.body)


def _read_subscribe(collection: int, message: Message) -> Request:
    properties = message.properties
    document_ids = None
    if message.body:
        document_ids = values.json_object(message.body).get("docIDs")
        if document_ids is not None and not (
            isinstance(document_ids, list) and all(isinstance(item, str) for item in document_ids)
        ):
            raise RemoteProtocolError("docIDs is a list of texts")
        if document_ids is not None and len(document_ids) > limits.SUBSCRIBED_DOCUMENTS_MAX:
            raise RemoteProtocolError("too many docIDs", count=len(document_ids))
    if document_ids is not None:
        # What is longer is no document's ID, and would only be kept.
        document_ids = [name for name in document_ids if len(name) <= limits.DOCUMENT_ID_BYTES_MAX]
    return SubscribeChanges(
        collection,
        properties.get("since"),
        values.is_true(properties, "continuous"),
        values.number(properties, "batch") or 0,
        values.is_true(properties, "activeOnly"),
        None if document_ids is None else tuple(document_ids),
        filter=properties.get("filter") or None,
    )


def _read_changes(collection: int, message: Message) -> Request:
    return OfferChanges(collection, tuple(map(_offered_change, values.array(message.body))))


def _offered_change(item: Any) -> OfferedChange | None:
    if not isinstance(item, list) or len(item) < 3:
        raise RemoteProtocolError("a change is an array of three or more")
    sequence, name, current = values.sequence(item[0]), item[1], revision_id(item[2])
    try:
        name = document_id(name)
    except InvalidDocumentError as exc:
        if not isinstance(name, str):
            raise RemoteProtocolError("not a document ID", got=str(name)[:80]) from exc
        # Other databases permit longer ones, for example. Those beside it are not to blame.
        return None
    return OfferedChange(
        sequence,
        name,
        current,
        bool(item[3]) if len(item) > 3 else False,
        item[4] if len(item) > 4 and type(item[4]) is int else 0,
    )


def _read_propose(collection: int, message: Message) -> Request:
    return ProposeChanges(collection, tuple(map(_proposal, values.array(message.body))))


def _proposal(item: Any) -> Proposal:
    if not isinstance(item, list) or len(item) < 2:
        raise RemoteProtocolError("a proposal is an array of two or more")
    return Proposal(
        values.document_id_of(item[0]),
        revision_id(item[1]),
        revision_id(item[2]) if len(item) > 2 and item[2] else None,
    )


def _read_revision(collection: int, message: Message) -> Request:
    properties = message.properties
    base = properties.get("deltaSrc")
    deleted = values.is_true(properties, "deleted")
    is_empty = base is not None or (deleted and message.body in (b"", b"{}"))
    revision = read_revision(
        values.required(properties, "rev"),
        properties.get("history", ""),
        EMPTY_BODY if is_empty else body_from_peer(message.body),
        deleted=deleted,
    )
    replaced = properties.get("replacedRev")
    sent = SentRevision(
        values.document_id_of(properties.get("id")),
        values.sequence_of(properties),
        revision,
        revision_id(replaced) if replaced else None,
        None if base is None else Delta(revision_id(base), message.body),
    )
    return SendRevisions(collection, (sent,))


def _read_no_revision(collection: int, message: Message) -> Request:
    properties = message.properties
    return NoRevision(
        collection,
        values.document_id_of(properties.get("id")),
        revision_id(properties.get("rev")),
        values.sequence_of(properties),
        values.number(properties, "error") or 404,
        repeatable(properties.get("reason", "")),
    )


def _read_get_attachment(collection: int, message: Message) -> Request:
    properties = message.properties
    return GetAttachment(
        collection,
        values.digest(properties),
        properties.get("docID", ""),
        values.is_true(properties, "compress"),
        values.number(properties, "offset", "0") or 0,
    )


def _read_prove_attachment(collection: int, message: Message) -> Request:
    if not 1 <= len(message.body) <= 255:
        raise RemoteProtocolError("a nonce has 1 to 255 bytes", bytes=len(message.body))
    return ProveAttachment(collection, values.digest(message.properties), message.body)


READERS: Mapping[str, Callable[[int, Message], Request]] = {
    "getCollections": _read_get_collections,
    "getCheckpoint": _read_get_checkpoint,
    "setCheckpoint": _read_set_checkpoint,
    "subChanges": _read_subscribe,
    "changes": _read_changes,
    "proposeChanges": _read_propose,
    "rev": _read_revision,
    "norev": _read_no_revision,
    "getAttachment": _read_get_attachment,
    "proveAttachment": _read_prove_attachment,
}


def change_row(change: OfferedChange) -> list[Any]:
    row = [orjson.Fragment(change.sequence), change.document_id, describe(change.revision_id)]
    return [*row, 1] if change.deleted else [*row, 0, change.body_bytes]


def proposal_row(proposal: Proposal) -> list[Any]:
    row: list[Any] = [
        proposal.document_id,
        describe(proposal.revision_id),
        describe(proposal.parent),
    ]
    return row if proposal.body_bytes is None else [*row, proposal.body_bytes]
