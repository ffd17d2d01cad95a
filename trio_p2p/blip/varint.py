"""Unsigned integers of variable length: seven bits a byte, lowest first, the top bit says "more".

The same as LEB128, and as the varints of Protocol Buffers and Go.
"""

from __future__ import annotations

from typing import Final

from trio_p2p.errors import RemoteProtocolError

# 64 bits in groups of seven.
VARINT_BYTES_MAX: Final = 10

_VALUE_MAX: Final = 2**64 - 1
# Flags, short property blocks and the first message numbers: most of what is ever encoded.
_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(0x80))


def encode(value: int) -> bytes:
    """Encode a number from 0 to 2**64 - 1."""
    assert 0 <= value <= _VALUE_MAX, value
    if value < 0x80:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode(data: bytes, start: int = 0) -> tuple[int, int]:
    """Decode the number at `start`; return it and the offset behind it.

    Raises: RemoteProtocolError if the data ends inside the number or it exceeds 64 bits.
    """
    value = 0
    for index, byte in enumerate(data[start : start + VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value > _VALUE_MAX:
                break
            return value, start + index + 1
    raise RemoteProtocolError("a variable-length integer is cut short or too large", offset=start)
