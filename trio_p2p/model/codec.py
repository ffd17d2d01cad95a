"""Document bodies: the values a body may hold, and their CBOR and JSON forms.

Bodies are kept and passed on as the CBOR that `encode_body` writes, with the keys of each mapping
in order, so that the same values are the same bytes at every peer: in JSON the order of keys tells
nothing, and a delta does not keep it. CBOR from elsewhere is taken only if it is exactly that,
which refuses at one stroke trailing bytes, tags, indefinite lengths, numbers in longer forms than
needed and every other second way of writing the same body.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from io import BytesIO
from typing import Any

import cbor2
import orjson

from trio_p2p import limits
from trio_p2p.errors import BlobNotFoundError, InvalidDocumentError
from trio_p2p.model.blob import DIGEST_MARK, BlobValue, digests, named_digest

# Top-level names that Couchbase Lite and Sync Gateway keep for themselves.
RESERVED_KEYS = frozenset(
    {"_id", "_rev", "_deleted", "_removed", "_attachments", "_revisions", "_exp"}
)
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**63 - 1

# CBOR's major types whose content follows their head.
_BYTES = 2
_TEXT = 3

# A text that does not end counts as one up to the end, and nothing is tried twice: else the time
# for what somebody made for it would grow with the square of its size, and nothing else would run.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)

# Whatever is exactly of one of these types needs no further check.
_PLAIN_TYPES = frozenset({str, bool, type(None)})


def encode_body(body: Mapping[str, Any], *, reserved: frozenset[str] = RESERVED_KEYS) -> bytes:
    """Check a body and write it as CBOR.

    Takes a mapping of `str` to text, finite numbers, integers of 64 bits, booleans, None, lists,
    tuples, mappings, blobs and aware datetimes (written as RFC 3339 text). No top-level key may be
    one of the `reserved` ones.

    Raises: InvalidDocumentError for anything else; BlobNotFoundError for what names a blob by no
    digest. Whether a database holds the blob is not known here.
    """
    if type(body) is not dict and not isinstance(body, Mapping):
        raise InvalidDocumentError("a body is a mapping", got=type(body).__name__)
    if not reserved.isdisjoint(body):
        taken = reserved.intersection(body)
        raise InvalidDocumentError("reserved top-level keys", keys=sorted(taken))
    try:
        encoded: bytes = cbor2.dumps(_plain_mapping(body, 1))
    except UnicodeEncodeError as exc:
        raise InvalidDocumentError("text must be valid Unicode") from exc
    if len(encoded) > limits.BODY_BYTES_MAX:
        raise InvalidDocumentError("a body is too large", bytes=len(encoded))
    # The digest of each stands in it, and few other texts look like one.
    if encoded.count(DIGEST_MARK) > limits.BODY_BLOBS_MAX < len(digests(encoded)):
        raise InvalidDocumentError("a body names too many blobs", limit=limits.BODY_BLOBS_MAX)
    # A value takes a byte or more, so that few bodies have to be counted.
    if len(encoded) > limits.BODY_VALUES_MAX and _count(body) > limits.BODY_VALUES_MAX:
        raise InvalidDocumentError("too many values", limit=limits.BODY_VALUES_MAX)
    return encoded


def decode_body(encoded: bytes) -> dict[str, Any]:
    """Read a body that `encode_body` or `check_body` let through: a fresh dict."""
    body: dict[str, Any] = cbor2.loads(encoded)
    return body


def check_body(encoded: bytes) -> dict[str, Any]:
    """Read CBOR from elsewhere; it must be what `encode_body` would have written.

    Raises: InvalidDocumentError; BlobNotFoundError.
    """
    if len(encoded) > limits.BODY_BYTES_MAX:
        raise InvalidDocumentError("a body is too large", bytes=len(encoded))
    if len(encoded) > limits.BODY_VALUES_MAX and _heads(encoded) > 2 * limits.BODY_VALUES_MAX:
        raise InvalidDocumentError("too many values", limit=limits.BODY_VALUES_MAX)
    try:
        body = cbor2.loads(
            encoded,
            semantic_decoders=_NO_TAGS,
            max_depth=limits.BODY_DEPTH_MAX + 1,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except (cbor2.CBORError, ValueError, TypeError, OverflowError) as exc:
        raise InvalidDocumentError("not a CBOR body") from exc
    if encode_body(body) != encoded:
        raise InvalidDocumentError("a CBOR body in another form than this database writes")
    checked: dict[str, Any] = body
    return checked


def _heads(encoded: bytes) -> int:
    """How many values and keys there are in CBOR, or so many that it does not matter how many.

    It is not checked to be right, and what is wrong may be counted wrongly: it is refused anyway.
    """
    count = at = 0
    while at < len(encoded) and count <= 2 * limits.BODY_VALUES_MAX:
        kind, more = encoded[at] >> 5, encoded[at] & 0x1F
        at += 1
        size = 1 << (more - 24) if 24 <= more <= 27 else 0
        if kind in (_BYTES, _TEXT):
            at += int.from_bytes(encoded[at : at + size], "big") if size else more
        at += size
        count += 1
    return count


def body_from_json(text: bytes) -> bytes:
    """Turn a JSON object into CBOR. Raises InvalidDocumentError; BlobNotFoundError."""
    return encode_body(parse_json(text))


def parse_json(text: bytes, *, values_max: int = limits.BODY_VALUES_MAX) -> Any:
    """Read JSON of so many values at most. Raises InvalidDocumentError."""
    # Before it is read: the values would take fifty times the bytes that tell of them.
    if len(text) > values_max and _may_hold_more(text, values_max):
        raise InvalidDocumentError("too many values", limit=values_max)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise InvalidDocumentError("not JSON") from exc


def _may_hold_more(text: bytes, values_max: int) -> bool:
    """Whether there may be more values in a JSON text; False is certain.

    Each but the first stands behind a comma or is the first of an array or object. If too many of
    these are there, those that stand in strings are left out.
    """
    return _separators(text) >= values_max and (
        _separators(_JSON_STRING.sub(b"", text)) >= values_max
    )


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def body_to_json(encoded: bytes) -> bytes:
    """Turn stored CBOR into JSON. In a thread, that of a large body lets others run in between."""
    if len(encoded) > limits.READ_ASIDE_BYTES:
        return orjson.dumps(cbor2.load(_Pieces(encoded)))
    return orjson.dumps(cbor2.loads(encoded))


class _Pieces(BytesIO):
    """Read by calls of Python code, at which the interpreter may turn to another thread."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size)


class _NoTags(dict[int, Callable[[cbor2.CBORDecoder, bool], Any]]):
    """Refuses every tag before what it holds is read: references let a few bytes unfold to more
    than any memory holds, and others parse numbers, patterns or mails.
    """

    def __missing__(self, tag: int) -> Callable[[cbor2.CBORDecoder, bool], Any]:
        return _refuse_tag


def _refuse_tag(decoder: cbor2.CBORDecoder, immutable: bool) -> Any:
    raise ValueError("a body has no tags")


_NO_TAGS = _NoTags()


def _count(value: Any) -> int:
    """How many values there are in this one, itself included."""
    if isinstance(value, Mapping):
        return 1 + sum(map(_count, value.values()))
    if isinstance(value, (list, tuple)):
        return 1 + sum(map(_count, value))
    return 1


def _plain(value: Any, depth: int) -> Any:
    """The value in the types CBOR knows, itself if it is made of them; or InvalidDocumentError."""
    kind = type(value)
    if kind in _PLAIN_TYPES:
        return value
    if kind is list and _PLAIN_TYPES.issuperset(map(type, value)) and depth < limits.BODY_DEPTH_MAX:
        return value
    if isinstance(value, int):
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise InvalidDocumentError("an integer has at most 64 bits", bits=value.bit_length())
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidDocumentError("numbers are finite", value=str(value))
        return float(value)
    if isinstance(value, Mapping):
        return _plain_mapping(value, depth + 1)
    if isinstance(value, (list, tuple)):
        if depth >= limits.BODY_DEPTH_MAX:
            raise InvalidDocumentError("a body is nested too deeply", limit=limits.BODY_DEPTH_MAX)
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, BlobValue):
        return _plain_mapping(value.blob_properties(), depth + 1)
    raise InvalidDocumentError("a body cannot hold this type", type=kind.__name__)


def _plain_mapping(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if depth > limits.BODY_DEPTH_MAX:
        raise InvalidDocumentError("a body is nested too deeply", limit=limits.BODY_DEPTH_MAX)
    if value.get("@type") == "blob" and "digest" in value and named_digest(value) is None:
        raise BlobNotFoundError("this is no digest of a blob", digest=value["digest"])
    given = value if type(value) is dict else dict(value)
    plain = given
    for key, item in given.items():
        if type(key) is not str:
            raise InvalidDocumentError("keys are text", got=type(key).__name__)
        kind = type(item)
        # What bodies mostly consist of: `_plain` would return it as it is, but costs a call.
        if kind is str or (kind is int and INTEGER_MIN <= item <= INTEGER_MAX):
            continue
        if kind is float and math.isfinite(item):
            continue
        replaced = _plain(item, depth)
        if replaced is not item:
            if plain is given:
                plain = dict(given)
            plain[key] = replaced
    ordered = sorted(plain)
    return plain if ordered == list(plain) else {key: plain[key] for key in ordered}
