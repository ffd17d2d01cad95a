"""The payloads of one direction: a shared deflate stream and a checksum that runs through all.

The checksum covers the payloads before compression, of compressed and plain frames alike, from the
first frame of the connection on. Compressed frames continue one raw deflate stream; each ends with
a sync flush whose last four bytes, always the same, are left out on the wire. So a frame must be
encoded exactly once and in the order of sending. Source: LiteCore's Codec.cc.
"""

from __future__ import annotations

import zlib
from typing import Final

from trio_p2p.blip.frames import CHECKSUM_BYTES
from trio_p2p.errors import RemoteProtocolError

SYNC_FLUSH_TAIL: Final = b"\x00\x00\xff\xff"
# What random bytes grow by when deflated: one stored block's header and the sync flush, with room.
DEFLATE_OVERHEAD_BYTES: Final = 16

_WINDOW_BITS: Final = -15  # Raw deflate, 32 KiB window.
_MEMORY_LEVEL: Final = 9


class Deflater:
    """The sending direction. `level` is zlib's, 1 to 9; with 0 nothing may be compressed."""

    def __init__(self, level: int) -> None:
        self._checksum = 0
        self._stream = (
            zlib.compressobj(level, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL) if level else None
        )

    def encode(self, header: bytes, piece: bytes | memoryview, *, compressed: bool) -> bytes:
        """Make a frame of its header and a piece of a message; an empty one is not compressed."""
        # A compressed frame without bytes makes LiteCore's receiver lose the deflate stream.
        assert piece or not compressed, "an empty piece"
        self._checksum = zlib.crc32(piece, self._checksum)
        payload = self._deflate(piece) if compressed else piece
        return b"".join((header, payload, self._checksum.to_bytes(CHECKSUM_BYTES, "big")))

    def _deflate(self, piece: bytes | memoryview) -> bytes:
        assert self._stream is not None, "compression is off"
        deflated = self._stream.compress(piece) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        assert deflated.endswith(SYNC_FLUSH_TAIL)
        return deflated[: -len(SYNC_FLUSH_TAIL)]


class Inflater:
    """The receiving direction. After an error it cannot be used any more."""

    def __init__(self) -> None:
        self._checksum = 0
        self._stream = zlib.decompressobj(_WINDOW_BITS)

    def decode(self, frame: bytes, start: int, *, compressed: bool, bytes_max: int) -> bytes:
        """Return the piece of a message that begins, encoded, at `start` of a frame.

        Raises: RemoteProtocolError if the checksum is wrong, the piece does not inflate, or it has
        more than `bytes_max` bytes; no more than those are ever inflated.
        """
        end = len(frame) - CHECKSUM_BYTES
        if end < start:
            raise RemoteProtocolError("a frame is too short for its checksum", bytes=len(frame))
        payload = frame[start:end]
        # Nothing at all is not the end of a deflate block: a tail fed alone would corrupt the
        # stream. LiteCore sends such frames when a blob ends on the boundary of a frame.
        if compressed and payload:
            payload = self._inflate(payload, bytes_max)
        if len(payload) > bytes_max:
            raise RemoteProtocolError("a message is too large", bytes_left=bytes_max)
        self._checksum = zlib.crc32(payload, self._checksum)
        if self._checksum != int.from_bytes(frame[end:], "big"):
            raise RemoteProtocolError("a frame has the wrong checksum")
        return payload

    def _inflate(self, payload: bytes, bytes_max: int) -> bytes:
        stream = self._stream
        try:
            # One byte more than allowed tells "just fits" from "there is more".
            inflated = stream.decompress(payload + SYNC_FLUSH_TAIL, bytes_max + 1)
        except zlib.error as exc:
            raise RemoteProtocolError("a frame does not inflate") from exc
        # A final block would end the stream; everything after it would be dropped silently.
        if stream.eof or (stream.unconsumed_tail and len(inflated) <= bytes_max):
            raise RemoteProtocolError("a deflate stream ended early")
        return inflated
