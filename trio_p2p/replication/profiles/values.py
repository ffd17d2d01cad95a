"""Values in messages, checked as they are read: what is wrong is a RemoteProtocolError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import orjson

from trio_p2p import limits
from trio_p2p.errors import InvalidDocumentError, RemoteProtocolError
from trio_p2p.ids import DocumentID, document_id
from trio_p2p.model.blob import parse_digest
from trio_p2p.model.codec import parse_json

Properties = Mapping[str, str]


def array(body: bytes, values_max: int = limits.LISTED_VALUES_MAX) -> list[Any]:
    """A list of rows, as long as a peer may make one."""
    value = json_value(body, values_max)
    if not isinstance(value, list):
        raise RemoteProtocolError("not a JSON array", got=type(value).__name__)
    if len(value) > limits.LISTED_ROWS_MAX:
        raise RemoteProtocolError("a list is too long", rows=len(value))
    return value


def json_object(body: bytes, values_max: int = limits.BODY_VALUES_MAX) -> dict[str, Any]:
    value = json_value(body, values_max)
    if not isinstance(value, dict):
        raise RemoteProtocolError("not a JSON object", got=type(value).__name__)
    return value


def json_value(body: bytes, values_max: int = limits.BODY_VALUES_MAX) -> Any:
    try:
        return parse_json(body, values_max=values_max)
    except InvalidDocumentError as exc:
        raise RemoteProtocolError(exc.message, got=body[:40]) from exc


def is_true(properties: Properties, name: str) -> bool:
    """LiteCore writes `true` in some places and `1` in others."""
    return properties.get(name, "").lower() in ("true", "yes") or bool(number(properties, name))


def number(properties: Properties, name: str, default: str = "") -> int | None:
    """A count in decimal digits; None for anything else."""
    text = properties.get(name, default)
    # Python refuses to read very long ones, and nothing here needs more than 64 bits.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def required(properties: Properties, name: str) -> str:
    text = properties.get(name)
    if not text:
        raise RemoteProtocolError("a property is missing", property=name)
    return text


def digest(properties: Properties) -> bytes:
    """The SHA-1 that names a blob."""
    sha1 = parse_digest(properties.get("digest"))
    if sha1 is None:
        raise RemoteProtocolError("not a digest", got=properties.get("digest", "")[:80])
    return sha1


def written(value: Any) -> bytes:
    """JSON that was read, written again: orjson reads deeper nesting than it writes."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as exc:
        raise RemoteProtocolError("JSON is nested too deeply") from exc


def sequence(value: Any) -> str:
    """A sequence as JSON text, its form in properties: nearly always a plain number."""
    return str(value) if type(value) is int else _bounded(written(value).decode())


def sequence_of(properties: Properties) -> str:
    """The sequence in a property, written as in the offer before it, however the peer writes it."""
    text = _bounded(properties.get("sequence", ""))
    if text.isdecimal():
        return text
    try:
        return written(orjson.loads(text)).decode()
    except (orjson.JSONDecodeError, RemoteProtocolError):
        return text


def _bounded(text: str) -> str:
    if len(text) > limits.SEQUENCE_CHARACTERS_MAX:
        raise RemoteProtocolError("a sequence is too long", characters=len(text))
    return text


def uuid(text: str | None) -> UUID | None:
    """Another database's UUID; None for anything that is not one, since peers may leave it out."""
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


def document_id_of(value: object) -> DocumentID:
    try:
        return document_id(value)
    except InvalidDocumentError as exc:
        raise RemoteProtocolError("not a document ID", got=str(value)[:80]) from exc


def padded(answers: list[Any], length: int, filler: Any) -> list[Any]:
    """Trailing zeros are left out on the wire."""
    if len(answers) > length:
        raise RemoteProtocolError("more answers than questions")
    return answers + [filler] * (length - len(answers))
