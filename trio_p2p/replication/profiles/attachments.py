"""Blobs for peers that know only the older attachments, and from them.

Such a peer wants every blob of a document listed in its `_attachments`, as `blob_` and the path to
where it stands; the list is not part of the document. Source: LiteCore's legacy attachments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import orjson

from trio_p2p import limits
from trio_p2p.model.blob import ATTACHMENTS, may_name_blobs, named_digest
from trio_p2p.model.codec import RESERVED_KEYS, encode_body, parse_json

_Place = tuple["_Place", str] | None
"""Where something stands: where that stands which holds it, and the key or index there."""

_STUB_PREFIX: Final = "blob_"
_OF_A_STUB: Final = ("digest", "length", "content_type")
_ATTACHMENTS_JSON: Final = b'"_attachments"'
# What a stub takes beside its path and what its blob says of itself, generously.
_STUB_BYTES: Final = 200
# Attachments that stand for no blob in the body are part of the document.
_RESERVED: Final = RESERVED_KEYS - {ATTACHMENTS}


def body_from_peer(text: bytes) -> bytes:
    """A body from a peer, as CBOR. Raises InvalidDocumentError, BlobNotFoundError."""
    body = parse_json(text)
    if _ATTACHMENTS_JSON in text and isinstance(body, dict):
        return encode_body(_without_stubs(body), reserved=_RESERVED)
    return encode_body(body)


def with_stubs(text: bytes) -> bytes:
    """A body as JSON, with all of its blobs listed as attachments.

    Where the list would make the body larger than bodies are, it is as it was: thousands of blobs
    may stand below names of megabytes, each of which tells them all. So it is where something else
    stands in the place of the list.
    """
    if not may_name_blobs(text):
        return text
    body = parse_json(text)
    attachments = body.get(ATTACHMENTS, {})
    if not isinstance(attachments, dict):
        return text
    stubs = {}
    bytes_left = limits.BODY_BYTES_MAX - len(text)
    for place, naming in _blobs(body, None):
        path = _pointer(place)
        bytes_left -= len(path) + _STUB_BYTES
        if bytes_left < 0:
            return text
        stubs[_STUB_PREFIX + path] = {
            **{key: naming[key] for key in _OF_A_STUB if key in naming},
            "stub": True,
            "revpos": 1,
        }
    if stubs:
        body[ATTACHMENTS] = {**attachments, **stubs}
    return orjson.dumps(body)


def _without_stubs(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without the attachments that only list its blobs."""
    kept = dict(body)
    attachments = kept.get(ATTACHMENTS)
    if isinstance(attachments, dict):
        real = {k: v for k, v in attachments.items() if not k.startswith(_STUB_PREFIX)}
        if real:
            kept[ATTACHMENTS] = real
        else:
            del kept[ATTACHMENTS]
    return kept


def _pointer(place: _Place) -> str:
    """The JSON pointer to a place."""
    keys = []
    while place is not None:
        place, key = place
        keys.append(key.replace("~", "~0").replace("/", "~1"))
    return "".join([f"/{key}" for key in reversed(keys)])


def _blobs(value: Any, place: _Place) -> Iterator[tuple[_Place, Mapping[str, Any]]]:
    """Each mapping that names a blob, and where it stands."""
    if isinstance(value, dict):
        if place is not None and named_digest(value) is not None:
            yield place, value
        children: Iterable[tuple[str, Any]] = value.items()
    elif isinstance(value, list):
        children = ((str(index), item) for index, item in enumerate(value))
    else:
        return
    for key, item in children:
        yield from _blobs(item, (place, key))
