"""What is fuzzed: each target takes any bytes, and may raise nothing.

What is documented it catches itself. Beyond that it checks what must hold for whatever was read:
that it is read the same again once it is written, that limits are kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import orjson

from trio_p2p import limits
from trio_p2p.blip import Connection, Message, RequestReceived, frames
from trio_p2p.blip import message as messages
from trio_p2p.errors import (
    BlobNotFoundError,
    ConfigurationError,
    DeltaError,
    InvalidDocumentError,
    RemoteProtocolError,
    StoreCorruptError,
)
from trio_p2p.ids import Sequence
from trio_p2p.model import codec
from trio_p2p.model.delta import patch_body
from trio_p2p.model.version import TreeRevisionID, Version, VersionVector, parse_revision_id
from trio_p2p.replication.connector import Endpoint
from trio_p2p.replication.profiles import history, replies, requests, values
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.security import auth, trust
from trio_p2p.store import records

Target = Callable[[bytes], None]

# Long inputs are cut: what they could show, short ones show sooner.
INPUT_BYTES_MAX = 16 * 1024
BASE = codec.encode_body(
    {"type": "note", "n": 1, "text": "hello " * 20, "list": [1, [2], {"a": None}], "b": True}
)


def pieces(data: bytes) -> list[bytes]:
    """Cut data into pieces: each byte pair tells the length of the next one."""
    cut = []
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "big")
        cut.append(data[2 : 2 + size])
        data = data[2 + size :]
    return cut


def joined(parts: list[bytes]) -> bytes:
    """What `pieces` cuts so."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


# --- BLIP ----------------------------------------------------------------------------------------


def frame(data: bytes) -> None:
    """The header of a frame."""
    try:
        number, flags, start = frames.decode_header(data)
    except RemoteProtocolError:
        return
    assert start <= len(data)
    assert frames.decode_header(frames.encode_header(number, flags))[:2] == (number, flags)


def message(data: bytes) -> None:
    """A whole message."""
    try:
        properties, body = messages.decode_data(data)
    except RemoteProtocolError:
        return
    again = messages.encode_data(Message(properties, body))
    assert messages.decode_data(again) == (properties, body)


def connection(data: bytes) -> None:
    """Frames, one after the other, into a connection that has asked and answers."""
    ours = Connection()
    for in_parts in (False, True, False):
        ours.send_request(Message({"Profile": "x"}, bytes(100)), in_parts=in_parts)
    while ours.next_frame() is not None:
        pass
    inflated = 0
    for each in pieces(data):
        try:
            events = ours.receive_frame(each)
        except RemoteProtocolError:
            break
        for event in events:
            if isinstance(event, RequestReceived) and not event.message.no_reply:
                ours.send_reply(event.number, Message({}, event.message.body[:1000]))
        assert ours.held_bytes <= limits.INCOMPLETE_BYTES_MAX + limits.MESSAGE_BYTES_MAX
        inflated += len(each)
    assert ours.inflated_bytes <= 2_000 * (inflated + 1)
    while ours.next_frame() is not None:
        pass
    ours.close()


def intact(data: bytes) -> None:
    """The same with checksums that are right, which chance would not find."""
    checksum, whole = 0, []
    for each in pieces(data):
        try:
            _, flags, start = frames.decode_header(each)
        except RemoteProtocolError:
            continue
        if flags & frames.COMPRESSED or flags & frames.TYPE_MASK > frames.ERROR:
            continue
        checksum = zlib.crc32(each[start:], checksum)
        whole.append(each + checksum.to_bytes(4, "big"))
    connection(joined(whole))


# --- The profile ---------------------------------------------------------------------------------


class _Peer:
    """Takes what a profile answers."""

    def unfinished_requests(self) -> Iterator[tuple[int, bytes]]:
        return iter(())

    def hold(self, number: int, size: int) -> None:
        assert size >= 0

    def release(self, number: int) -> None:
        pass

    def refuse(self, number: int, domain: str, code: int, text: str = "") -> None:
        assert 400 <= code < 600
        text.encode(errors="replace")

    def reply(self, number: int, answer: Message) -> None:
        messages.encode_data(answer)


def request(data: bytes) -> None:
    """A message of a peer, read as the Couchbase profile reads it."""
    try:
        properties, body = messages.decode_data(data)
    except RemoteProtocolError:
        return
    heard: list[Any] = []
    peer: Any = _Peer()
    for active in (False, True):
        profile = CouchbaseProfile(peer, lambda asked, respond: heard.append(asked), active=active)
        for number, no_reply in ((1, False), (2, True)):
            with suppress(RemoteProtocolError):
                profile.on_request(number, Message(properties, body, no_reply=no_reply))
    for asked in heard:
        repr(asked)


_PROFILES = [name.encode() for name in requests.READERS]


def known_request(data: bytes) -> None:
    """The same, for a profile there is: the first byte chooses it."""
    if data:
        name = _PROFILES[data[0] % len(_PROFILES)]
        properties, _, body = data[1:].partition(b"\0\0")
        block = b"Profile\0" + name + b"\0" + (properties + b"\0" if properties else b"")
        length = len(block)
        varint = bytes((length & 0x7F | 0x80, length >> 7)) if length >= 0x80 else bytes((length,))
        request(varint + block + body)


def reply(data: bytes) -> None:
    """The rows of a reply, as either side reads them."""
    try:
        rows = values.array(data)
    except RemoteProtocolError:
        return
    for reader in (replies.change_answer, replies.proposal_answer, replies.held_checkpoint):
        for row in rows:
            with suppress(RemoteProtocolError):
                reader(row)


# --- Values --------------------------------------------------------------------------------------


def version(data: bytes) -> None:
    """Versions, vectors and tree revision IDs, as text and in bytes."""
    text = data.decode(errors="replace")
    for kind in (Version, VersionVector, TreeRevisionID):
        try:
            read = kind.parse(text)
        except ValueError:
            continue
        assert kind.parse(str(read)) == read
    with suppress(ValueError):
        parse_revision_id(text)
    try:
        vector = VersionVector.from_bytes(data)
    except ValueError:
        return
    assert vector.to_bytes() == data


def revision(data: bytes) -> None:
    """A revision's ID and history, as they come on the wire."""
    current, _, past = data.decode(errors="replace").partition("\n")
    for text in (current, past):
        with suppress(RemoteProtocolError):
            history.revision_id(text)
    try:
        read = history.read_revision(current, past, b"\xa0", deleted=False)
    except RemoteProtocolError:
        return
    assert len(read.trees) <= limits.TREE_REVISIONS_MAX + 1
    assert sum(1 for _ in read.vector) <= limits.VECTOR_VERSIONS_MAX
    again = history.read_revision(str(read.id), history.history_of(read), b"\xa0", deleted=False)
    assert again == read


def json_body(data: bytes) -> None:
    """A body as JSON."""
    try:
        encoded = codec.body_from_json(data)
    except (InvalidDocumentError, BlobNotFoundError):
        return
    assert codec.encode_body(codec.check_body(encoded)) == encoded
    assert codec.body_from_json(codec.body_to_json(encoded)) == encoded


def cbor_body(data: bytes) -> None:
    """A body as CBOR, from elsewhere."""
    try:
        body = codec.check_body(data)
    except (InvalidDocumentError, BlobNotFoundError):
        return
    assert codec.encode_body(body) == data
    orjson.dumps(body)


def delta(data: bytes) -> None:
    """A delta, applied to a body."""
    try:
        patched = patch_body(BASE, data)
    except DeltaError:
        return
    assert codec.encode_body(codec.check_body(patched)) == patched


def record(data: bytes) -> None:
    """Records of the store, damaged in whatever way."""
    raw, key = memoryview(data), b"key"
    for unpack in (
        lambda: records.unpack_revision(raw, key),
        lambda: records.unpack_revision(raw, key, with_body=False),
        lambda: records.unpack_place(raw, key),
        lambda: records.unpack_change(Sequence(1), raw, key),
        lambda: records.unpack_collection(data, key),
    ):
        with suppress(StoreCorruptError):
            unpack()


# --- What users and clients write ----------------------------------------------------------------


def endpoint(data: bytes) -> None:
    """A URL."""
    text = data.decode("latin-1")
    try:
        read = Endpoint.parse(text)
    except ConfigurationError:
        return
    assert Endpoint.parse(str(read)) == read
    assert read.host_header.isascii()


def credentials(data: bytes) -> None:
    """An Authorization header."""
    read = auth._parse(data.decode("latin-1"))
    if read is not None:
        try:
            shown = auth.BasicAuthenticator(*read)
        except ConfigurationError:
            return
        assert auth._parse(shown.header()[1]) == read


def certificate(data: bytes) -> None:
    """What is given as a certificate to trust."""
    try:
        roots = trust.parse_roots(data)
    except ConfigurationError:
        return
    for root in roots:
        trust.is_self_signed(root)
        with suppress(*trust.UNREADABLE):
            trust.names_host(root, "host.example")
            trust.may_be_used(root, trust.SERVER_AUTH)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        frame,
        message,
        connection,
        intact,
        request,
        known_request,
        reply,
        version,
        revision,
        json_body,
        cbor_body,
        delta,
        record,
        endpoint,
        credentials,
        certificate,
    )
}

__all__ = ["INPUT_BYTES_MAX", "TARGETS", "Target", "joined", "pieces"]
