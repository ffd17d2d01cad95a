"""JSON Lines: one document a line, `_id` its ID, the rest its body."""

from __future__ import annotations

from typing import Any

import orjson

from trio_p2p import Blob, Document, InvalidDocumentError

ID_KEY = "_id"


def parse_object(text: bytes) -> dict[str, Any]:
    """Read a JSON object. Raises InvalidDocumentError."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise InvalidDocumentError(f"not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InvalidDocumentError("a document is a JSON object")
    return value


def parse_document(line: bytes) -> tuple[str, dict[str, Any]]:
    """Read a document: its ID and body. Raises InvalidDocumentError."""
    body = parse_object(line)
    document_id = body.pop(ID_KEY, None)
    if not isinstance(document_id, str):
        raise InvalidDocumentError('a document needs its ID, a text, as "_id"')
    return document_id, body


def format_document(document: Document) -> bytes:
    """Write a document as one line, which ends with a newline."""
    return format_line({ID_KEY: document.id, **document.body})


def format_line(value: dict[str, Any]) -> bytes:
    """Write what may hold bodies, and so blobs, as one line, which ends with a newline."""
    return orjson.dumps(value, default=_blob_properties, option=orjson.OPT_APPEND_NEWLINE)


def _blob_properties(value: Any) -> Any:
    assert isinstance(value, Blob)
    return value.blob_properties()
