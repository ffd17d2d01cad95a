"""The payload codec of one direction: shared deflate stream and running checksum."""

import json
import random
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.blip.compress import DEFLATE_OVERHEAD_BYTES, Deflater, Inflater
from trio_p2p.blip.frames import CHECKSUM_BYTES
from trio_p2p.blip.message import encode_data
from trio_p2p.errors import RemoteProtocolError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "blip_frames.json").read_text())


def checksum(data, running=0):
    return zlib.crc32(data, running).to_bytes(4, "big")


def decode(inflater, frame, *, compressed, bytes_max=limits.MESSAGE_BYTES_MAX):
    return inflater.decode(frame, 0, compressed=compressed, bytes_max=bytes_max)


@pytest.mark.behaviour("B1")
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.booleans())))
def test_pieces_survive_one_codec_pair_in_sequence(pieces):
    deflater, inflater = Deflater(6), Inflater()
    for piece, compressed in pieces:
        frame = deflater.encode(b"", piece, compressed=compressed)
        assert decode(inflater, frame, compressed=compressed) == piece


@pytest.mark.behaviour("B1")
@pytest.mark.parametrize("level", [1, 6, 9])
def test_sizes_around_powers_of_two_survive_one_codec_pair(level):
    deflater, inflater = Deflater(level), Inflater()
    source = random.Random(0)
    for size in sorted({2**exponent + delta for exponent in range(1, 18) for delta in (-1, 0, 1)}):
        for piece in (b"note " * (size // 5) + b"!", source.randbytes(size)):
            frame = deflater.encode(b"", piece, compressed=True)
            assert decode(inflater, frame, compressed=True) == piece


def test_random_bytes_grow_by_no_more_than_the_overhead_allowed_for():
    deflater, source = Deflater(6), random.Random(0)
    for size in [*range(1, 300, 7), 4_096, 16_000, 16_384] * 2:
        frame = deflater.encode(b"", source.randbytes(size), compressed=True)
        assert len(frame) <= size + DEFLATE_OVERHEAD_BYTES + CHECKSUM_BYTES


@pytest.mark.behaviour("X6")
def test_a_recorded_direction_has_its_checksums_and_decodes():
    deflater, inflater = Deflater(6), Inflater()
    for vector in VECTORS["direction"]:
        data = encode_data(Message(vector["properties"], vector["body"].encode()))
        header = bytes.fromhex(vector["header"])
        ours = deflater.encode(header, data, compressed=vector["compressed"])
        assert ours[-CHECKSUM_BYTES:].hex() == vector["checksum"]
        if not vector["compressed"]:  # The deflated bytes depend on the version of zlib.
            assert ours.hex() == vector["frame"]
        recorded = bytes.fromhex(vector["frame"])[len(header) :]
        assert decode(inflater, recorded, compressed=vector["compressed"]) == data


def test_our_own_frames_of_the_recorded_direction_decode_too():
    deflater, inflater = Deflater(6), Inflater()
    for vector in VECTORS["direction"]:
        data = encode_data(Message(vector["properties"], vector["body"].encode()))
        frame = deflater.encode(b"", data, compressed=vector["compressed"])
        assert decode(inflater, frame, compressed=vector["compressed"]) == data


@pytest.mark.behaviour("B1", "B13e")
def test_a_compressed_frame_without_bytes_leaves_the_stream_alone():
    deflater, inflater = Deflater(6), Inflater()
    first = deflater.encode(b"", b"some text", compressed=True)
    second = deflater.encode(b"", b"some text again", compressed=True)
    assert decode(inflater, first, compressed=True) == b"some text"
    assert decode(inflater, first[-CHECKSUM_BYTES:], compressed=True) == b""
    assert decode(inflater, second, compressed=True) == b"some text again"


@pytest.mark.behaviour("B2")
def test_a_wrong_checksum_is_refused():
    frame = bytearray(Deflater(6).encode(b"", b"text", compressed=False))
    frame[-1] ^= 1
    with pytest.raises(RemoteProtocolError, match="checksum"):
        decode(Inflater(), bytes(frame), compressed=False)


def test_the_checksum_covers_the_frames_before():
    deflater, inflater = Deflater(6), Inflater()
    deflater.encode(b"", b"lost", compressed=False)
    with pytest.raises(RemoteProtocolError, match="checksum"):
        decode(inflater, deflater.encode(b"", b"text", compressed=False), compressed=False)


def test_a_frame_shorter_than_its_checksum_is_refused():
    with pytest.raises(RemoteProtocolError, match="too short"):
        decode(Inflater(), b"\0\0\0", compressed=False)


@pytest.mark.behaviour("B2")
def test_garbage_does_not_inflate():
    with pytest.raises(RemoteProtocolError, match="inflate"):
        decode(Inflater(), b"\xff" * 40, compressed=True)


@pytest.mark.parametrize("after", [b"", b"more"])
def test_a_stream_that_ends_itself_is_refused(after):
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    ended = stream.compress(b"text") + stream.flush(zlib.Z_FINISH)
    with pytest.raises(RemoteProtocolError, match="ended early"):
        decode(Inflater(), ended + after + checksum(b"text"), compressed=True)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_piece_may_fill_the_room_exactly_but_not_exceed_it(compressed):
    piece = bytes(100_000)
    frame = Deflater(6).encode(b"", piece, compressed=compressed)
    assert decode(Inflater(), frame, compressed=compressed, bytes_max=100_000) == piece
    with pytest.raises(RemoteProtocolError, match="too large"):
        decode(Inflater(), frame, compressed=compressed, bytes_max=99_999)


def test_a_deflate_bomb_is_inflated_no_further_than_allowed():
    frame = Deflater(9).encode(b"", bytes(8 * limits.MIB), compressed=True)
    assert len(frame) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="too large"):
            decode(Inflater(), frame, compressed=True, bytes_max=1_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < limits.MIB


@given(st.binary(max_size=100), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_the_protocol_error(data, compressed):
    try:
        decode(Inflater(), data + checksum(data), compressed=compressed, bytes_max=1_000)
    except RemoteProtocolError:
        assert compressed
