"""The envelope of a frame: message number, flags, payload, checksum.

::

    uvarint message number | uvarint flags | payload | CRC-32 big-endian (not on acknowledgements)

The payload and its checksum are the business of `compress`. Requests and replies are numbered
apart: a reply carries the number of its request. Source: BLIP 3.
"""

from __future__ import annotations

from typing import Final

from trio_p2p.blip import varint

# Plain integers: an enum.IntFlag costs a microsecond for each operator, several times a frame.
TYPE_MASK: Final = 0x07
REQUEST: Final = 0
REPLY: Final = 1
ERROR: Final = 2
ACK_REQUEST: Final = 4
ACK_REPLY: Final = 5

COMPRESSED: Final = 0x08
URGENT: Final = 0x10
NO_REPLY: Final = 0x20
MORE_COMING: Final = 0x40

CHECKSUM_BYTES: Final = 4
# A number and the flags, at their longest.
HEADER_BYTES_MAX: Final = varint.VARINT_BYTES_MAX + 1


def encode_header(number: int, flags: int) -> bytes:
    """Encode what a frame begins with."""
    return varint.encode(number) + varint.encode(flags)


def decode_header(frame: bytes) -> tuple[int, int, int]:
    """Decode what a frame begins with; return the number, the flags and the payload's offset.

    Raises: RemoteProtocolError if the frame is cut short.
    """
    # Both in one byte: the first hundred messages of a connection.
    if len(frame) >= 2 and frame[0] < 0x80 and frame[1] < 0x80:
        return frame[0], frame[1], 2
    number, offset = varint.decode(frame)
    flags, offset = varint.decode(frame, offset)
    return number, flags, offset


def encode_acknowledgement(number: int, bytes_received: int, *, of_reply: bool) -> bytes:
    """Encode the frame that tells how many bytes of a message have arrived so far."""
    flags = (ACK_REPLY if of_reply else ACK_REQUEST) | URGENT | NO_REPLY
    return encode_header(number, flags) + varint.encode(bytes_received)
