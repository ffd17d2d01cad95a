"""Messages, and the block of bytes that one becomes before it is cut into frames.

::

    uvarint length of the properties | key NUL value NUL ... in UTF-8 | body

The length is there even when it is 0. Source: BLIP 3, without the token abbreviations of BLIP 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trio_p2p import limits
from trio_p2p.blip import varint
from trio_p2p.errors import LocalProtocolError, RemoteProtocolError


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a reply.

    `urgent` of a reply is that of its request, `no_reply` is for requests only, and `compressed`
    asks for deflation, which small or random bodies do not repay.
    """

    properties: Mapping[str, str]
    body: bytes = b""
    urgent: bool = False
    compressed: bool = False
    no_reply: bool = False

    @property
    def held_bytes(self) -> int:
        """How many bytes it takes, about, as long as it is held."""
        characters = sum(map(len, self.properties)) + sum(map(len, self.properties.values()))
        return len(self.body) + max(characters, limits.REQUEST_BYTES)


def encode_properties(properties: Mapping[str, str]) -> bytes:
    """Encode properties with their length before them, in the order of the mapping.

    Raises: LocalProtocolError if they are too long, hold a NUL, or are not valid Unicode.
    """
    text = "".join([f"{key}\0{value}\0" for key, value in properties.items()])
    if text.count("\0") != 2 * len(properties):
        raise LocalProtocolError("a property holds a NUL", keys=list(properties))
    try:
        block = text.encode()
    except UnicodeEncodeError as exc:
        raise LocalProtocolError("a property is not valid Unicode", keys=list(properties)) from exc
    if len(block) > limits.PROPERTIES_BYTES_MAX:
        raise LocalProtocolError("the properties are too long", bytes=len(block))
    return varint.encode(len(block)) + block


def decode_properties(data: bytes) -> tuple[dict[str, str], int]:
    """Decode the properties that a message begins with; return them and the offset of the body.

    Raises: RemoteProtocolError if they are malformed, too long, or name a key twice.
    """
    length, start = varint.decode(data)
    if not length:
        return {}, start
    if length > limits.PROPERTIES_BYTES_MAX:
        raise RemoteProtocolError("the properties are too long", bytes=length)
    end = start + length
    if end > len(data):
        raise RemoteProtocolError("a message ends inside its properties", bytes=len(data))
    try:
        strings = data[start:end].decode().split("\0")
    except UnicodeDecodeError as exc:
        raise RemoteProtocolError("the properties are not UTF-8") from exc
    if strings.pop():
        raise RemoteProtocolError("the properties do not end with a NUL")
    if len(strings) % 2:
        raise RemoteProtocolError("a property has no value", key=strings[-1])
    if len(strings) > 2 * limits.PROPERTIES_MAX:
        raise RemoteProtocolError("there are too many properties", count=len(strings) // 2)
    properties = dict(zip(strings[::2], strings[1::2], strict=True))
    if 2 * len(properties) != len(strings):
        raise RemoteProtocolError("a property is there twice", keys=strings[::2])
    return properties, end


def has_properties(data: bytes) -> bool:
    """Whether the beginning of a message holds all of its properties.

    Raises: RemoteProtocolError if they are too long.
    """
    if len(data) < varint.VARINT_BYTES_MAX and all(byte & 0x80 for byte in data):
        return False  # Not even all of their length.
    length, start = varint.decode(data)
    if length > limits.PROPERTIES_BYTES_MAX:
        raise RemoteProtocolError("the properties are too long", bytes=length)
    return len(data) >= start + length


def encode_data(message: Message) -> bytes:
    """Encode the properties and body of a message.

    Raises: LocalProtocolError if it exceeds what a peer accepts or a property cannot be sent.
    """
    data = encode_properties(message.properties) + message.body
    if len(data) > limits.MESSAGE_BYTES_MAX:
        raise LocalProtocolError("a message is too large", bytes=len(data))
    return data


def decode_data(data: bytes) -> tuple[dict[str, str], bytes]:
    """Decode a whole message into its properties and its body.

    Raises: RemoteProtocolError if the properties are malformed.
    """
    properties, start = decode_properties(data)
    return properties, data[start:]
