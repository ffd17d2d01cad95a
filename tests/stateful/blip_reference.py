"""BLIP written once more, from the specification alone, as what the tests compare with.

What both ends of one implementation get wrong in the same way, this does not.
"""

import zlib
from dataclasses import dataclass, field

# Of the flags of a frame.
TYPE, COMPRESSED, URGENT, NO_REPLY, MORE = 0x07, 0x08, 0x10, 0x20, 0x40
REQUEST, REPLY, ERROR, ACK_REQUEST, ACK_REPLY = 0, 1, 2, 4, 5


def uvarint(data, start):
    value = shift = 0
    for at in range(start, len(data)):
        value |= (data[at] & 0x7F) << shift
        shift += 7
        if data[at] < 0x80:
            return value, at + 1
    raise AssertionError("a number without an end")


def to_uvarint(value):
    encoded = b""
    while value >= 0x80:
        encoded += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return encoded + bytes((value,))


def encode(message):
    """A message before it is cut into frames."""
    block = "".join(f"{key}\0{value}\0" for key, value in message.properties.items()).encode()
    return to_uvarint(len(block)) + block + message.body


@dataclass
class Frame:
    """What a frame says."""

    number: int
    flags: int
    size: int
    payload_bytes: int
    piece: bytes = field(default=b"", repr=False)
    acknowledged: int = 0

    @property
    def kind(self):
        return self.flags & TYPE

    @property
    def key(self):
        """Which message it is of, or acknowledges."""
        return self.kind not in (REQUEST, ACK_REQUEST), self.number


@dataclass
class Reader:
    """Reads the frames of one direction."""

    checksum: int = 0
    inflater: object = field(default_factory=lambda: zlib.decompressobj(-15))

    def read(self, raw):
        number, at = uvarint(raw, 0)
        flags, at = uvarint(raw, at)
        frame = Frame(number, flags, len(raw), len(raw) - at)
        if frame.kind in (ACK_REQUEST, ACK_REPLY):
            frame.acknowledged, end = uvarint(raw, at)
            assert end == len(raw)
            assert flags & (URGENT | NO_REPLY) == URGENT | NO_REPLY
            return frame
        payload, crc = raw[at:-4], raw[-4:]
        if flags & COMPRESSED:
            assert payload
            payload = self.inflater.decompress(payload + b"\0\0\xff\xff")
        frame.piece = payload
        self.checksum = zlib.crc32(payload, self.checksum)
        assert self.checksum == int.from_bytes(crc, "big")
        return frame


@dataclass
class Writer:
    """Writes messages as another implementation might: cut and mixed in any way."""

    checksum: int = 0
    deflater: object = field(default_factory=lambda: zlib.compressobj(6, zlib.DEFLATED, -15, 9))

    def write(self, number, flags, piece):
        self.checksum = zlib.crc32(piece, self.checksum)
        if flags & COMPRESSED and piece:
            piece = self.deflater.compress(piece) + self.deflater.flush(zlib.Z_SYNC_FLUSH)
            piece = piece[:-4]
        crc = self.checksum.to_bytes(4, "big")
        return to_uvarint(number) + to_uvarint(flags) + piece + crc
