"""Identifiers: validated once where they enter, then trusted.

A `DocumentID` and a `Sequence` are a `str` and an `int` that were checked; a `SourceID` is the
128-bit author of versions, written on the wire as 22 base64 characters.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NewType
from uuid import UUID

from trio_p2p import limits
from trio_p2p.errors import InvalidDocumentError

DocumentID = NewType("DocumentID", str)
DatabaseID = NewType("DatabaseID", UUID)
Sequence = NewType("Sequence", int)
SourceID = NewType("SourceID", bytes)

SOURCE_ID_BYTES = 16
SOURCE_TEXT_CHARACTERS = 22

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
# A document ID that is ASCII. Most are, and one look finds them right.
_PLAIN_DOCUMENT_ID = re.compile(f"[!-^`-~ ][ -~]{{0,{limits.DOCUMENT_ID_BYTES_MAX - 1}}}\\Z")
_SOURCE_TEXT = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]\Z")
_COLLECTION_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_%-]*\Z")


def document_id(text: object) -> DocumentID:
    """Check a document ID: 1 to 240 bytes of UTF-8, no leading `_`, no control characters.

    Raises: InvalidDocumentError.
    """
    if not isinstance(text, str):
        raise InvalidDocumentError("a document ID is a str", got=type(text).__name__)
    if _PLAIN_DOCUMENT_ID.match(text):
        return DocumentID(text)
    try:
        length = len(text.encode())
    except UnicodeEncodeError as exc:
        raise InvalidDocumentError("a document ID must be valid Unicode") from exc
    if not 1 <= length <= limits.DOCUMENT_ID_BYTES_MAX:
        raise InvalidDocumentError(
            "a document ID has 1 to 240 bytes", bytes=length, document_id=text[:40]
        )
    if text[0] == "_":
        raise InvalidDocumentError("a document ID does not begin with '_'", document_id=text)
    if _CONTROL.search(text):
        raise InvalidDocumentError("a document ID has no control characters", document_id=text)
    return DocumentID(text)


def source_id(raw: bytes) -> SourceID:
    """Check the 16 bytes of a source ID. All zero means "nobody" and is refused (ValueError)."""
    if len(raw) != SOURCE_ID_BYTES or not any(raw):
        raise ValueError("a source ID is 16 bytes, not all zero")
    return SourceID(bytes(raw))


def parse_source_id(text: str) -> SourceID:
    """Read the 22-character form. Raises ValueError, also when spare bits are set."""
    if not _SOURCE_TEXT.match(text):
        raise ValueError("a source ID is 22 base64 characters")
    try:
        return source_id(base64.b64decode(text + "==", validate=True))
    except binascii.Error as exc:
        raise ValueError("a source ID is 22 base64 characters") from exc


def format_source_id(source: SourceID) -> str:
    """Write the 22-character form."""
    return base64.b64encode(source)[:SOURCE_TEXT_CHARACTERS].decode("ascii")


def collection_name(text: str) -> tuple[str, str]:
    """Split a collection's full name into scope and name, filling in the default scope.

    `"notes"` is `("_default", "notes")`; `"shop.notes"` is `("shop", "notes")`. Names consist of
    letters, digits, `_`, `-` and `%`, do not begin with `_` or `%`, and have at most 251 bytes;
    `_default` is the one exception. Raises ValueError.
    """
    scope, dot, name = text.rpartition(".")
    scope = scope if dot else "_default"
    for part in (scope, name):
        if part == "_default":
            continue
        if len(part) > limits.COLLECTION_NAME_BYTES_MAX or not _COLLECTION_NAME.match(part):
            raise ValueError(f"not a collection name: {text!r}")
    if name == "_default" and scope != "_default":
        raise ValueError(f"the default collection is in the default scope: {text!r}")
    return scope, name


def full_name(scope: str, name: str) -> str:
    """The name as it stands on the wire: the default scope is left out."""
    return name if scope == "_default" else f"{scope}.{name}"
