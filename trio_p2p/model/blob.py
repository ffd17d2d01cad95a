"""Blobs as bodies name them: by a digest of what they hold.

A blob stands in a body as the mapping `{"@type": "blob", "digest": "sha1-…", "length": …,
"content_type": …}`, which may have more keys. In documents from older peers, so does each value of
the top-level `_attachments`, without a type. Source: Couchbase Lite's blob properties.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol, runtime_checkable

import cbor2

ATTACHMENTS: Final = "_attachments"
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

_DIGEST_PREFIX: Final = "sha1-"
_SHA1_BYTES: Final = 20
_DIGEST_CHARACTERS: Final = len(_DIGEST_PREFIX) + 28
# Stands in the encoding of every body that names a blob, and in hardly any other.
DIGEST_MARK: Final = _DIGEST_PREFIX.encode()


@runtime_checkable
class BlobValue(Protocol):
    """What may stand in a body where a blob is."""

    def blob_properties(self) -> dict[str, Any]:
        """The mapping that names it."""


def format_digest(sha1: bytes) -> str:
    """A digest as it stands in bodies, from its 20 bytes."""
    return _DIGEST_PREFIX + b64encode(sha1).decode()


def parse_digest(text: object) -> bytes | None:
    """The 20 bytes of a digest; None for anything that `format_digest` does not write."""
    if not isinstance(text, str) or len(text) != _DIGEST_CHARACTERS:
        return None
    try:
        sha1 = b64decode(text[len(_DIGEST_PREFIX) :], validate=True)
    except (binascii.Error, ValueError):
        return None
    return sha1 if len(sha1) == _SHA1_BYTES and format_digest(sha1) == text else None


def named_digest(properties: Mapping[str, Any]) -> bytes | None:
    """The digest that a mapping in a body names, None if it stands for no blob."""
    if properties.get("@type") != "blob":
        return None
    return parse_digest(properties.get("digest"))


def may_name_blobs(encoded: bytes) -> bool:
    """Whether an encoded body may name any blob: cheap, and seldom wrong."""
    return DIGEST_MARK in encoded


def named_blobs(encoded: bytes) -> dict[bytes, Mapping[str, Any]]:
    """All blobs that an encoded body names: their digests, and a mapping that names each."""
    if not may_name_blobs(encoded):
        return {}
    named: dict[bytes, Mapping[str, Any]] = {}
    for key, value in cbor2.loads(encoded).items():
        for item in _attached(value) if key == ATTACHMENTS else ():
            named |= _named(item, attached=True)
        named |= _named(value)
    return named


def digests(encoded: bytes) -> frozenset[bytes]:
    """The digests of all blobs that an encoded body names."""
    return frozenset(named_blobs(encoded))


def with_blobs(
    body: Mapping[str, Any], make_blob: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    """A body with each mapping that names a blob replaced."""
    replaced = {}
    for key, value in body.items():
        if key == ATTACHMENTS and isinstance(value, dict):
            replaced[key] = {
                name: _replaced(item, make_blob, attached=True) for name, item in value.items()
            }
        else:
            replaced[key] = _replaced(value, make_blob)
    return replaced


def _attached(attachments: Any) -> Iterable[Any]:
    return attachments.values() if isinstance(attachments, dict) else ()


def _sha1(value: Mapping[str, Any], *, attached: bool) -> bytes | None:
    return parse_digest(value.get("digest")) if attached else named_digest(value)


def _replaced(
    value: Any, make_blob: Callable[[Mapping[str, Any]], Any], *, attached: bool = False
) -> Any:
    if isinstance(value, dict):
        if _sha1(value, attached=attached) is not None:
            return make_blob(value)
        return {key: _replaced(item, make_blob) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, make_blob) for item in value]
    return value


def _named(value: Any, *, attached: bool = False) -> Iterator[tuple[bytes, Mapping[str, Any]]]:
    if isinstance(value, dict):
        sha1 = _sha1(value, attached=attached)
        if sha1 is not None:
            yield sha1, value
        for item in value.values():
            yield from _named(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item)
