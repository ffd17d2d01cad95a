"""Recorded conversations of Couchbase Lite, frame by frame."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from trio_p2p import limits
from trio_p2p.blip import Connection, ErrorReceived, Message, RequestReceived, frames, varint
from trio_p2p.blip.compress import Inflater
from trio_p2p.blip.message import decode_data, encode_data

TRANSCRIPTS = sorted((Path(__file__).parents[1] / "vectors" / "transcripts").glob("*.jsonl"))
BINARY = 2

each_transcript = pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)


def blip_frames(path):
    """Yield connection, direction and bytes of each BLIP frame, in the order recorded."""
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "ws" and entry["opcode"] == BINARY:
            yield entry["conn"], entry["dir"], bytes.fromhex(entry["hex"])


class Direction:
    """Decodes one direction of one connection, knowing nothing of the other."""

    def __init__(self):
        self._inflater = Inflater()
        self._incomplete = defaultdict(bytes)

    def decode(self, frame):
        """Take a frame; return the data of the message it completes and whether it has it all."""
        number, flags, start = frames.decode_header(frame)
        kind = flags & frames.TYPE_MASK
        if kind in (frames.ACK_REQUEST, frames.ACK_REPLY):
            _, end = varint.decode(frame, start)
            assert end == len(frame)
            return None
        assert kind <= frames.ERROR
        piece = self._inflater.decode(
            frame,
            start,
            compressed=bool(flags & frames.COMPRESSED),
            bytes_max=limits.MESSAGE_BYTES_MAX,
        )
        self._incomplete[kind, number] += piece
        if flags & frames.MORE_COMING:
            return None
        data = self._incomplete.pop((kind, number))
        return data, len(data) == len(piece)

    @property
    def unfinished(self):
        return len(self._incomplete)


def test_the_transcripts_are_there():
    assert len(TRANSCRIPTS) == 39
    assert sum(1 for path in TRANSCRIPTS for _ in blip_frames(path)) > 500


@each_transcript
def test_every_frame_has_the_right_checksum_and_every_message_parses(path):
    directions = defaultdict(Direction)
    for connection, direction, frame in blip_frames(path):
        decoded = directions[connection, direction].decode(frame)
        if decoded is not None:
            decode_data(decoded[0])
    assert not any(direction.unfinished for direction in directions.values())


@each_transcript
def test_every_message_encodes_to_the_recorded_bytes_again(path):
    directions = defaultdict(Direction)
    for connection, direction, frame in blip_frames(path):
        decoded = directions[connection, direction].decode(frame)
        if decoded is None:
            continue
        data, single_frame = decoded
        properties, body = decode_data(data)
        again = encode_data(Message(properties, body))
        assert again == data
        if single_frame and not flags_of(frame) & frames.COMPRESSED:
            assert again == payload_of(frame)


def flags_of(frame):
    return frames.decode_header(frame)[1]


def payload_of(frame):
    return frame[frames.decode_header(frame)[2] : -frames.CHECKSUM_BYTES]


@each_transcript
def test_a_connection_in_the_place_of_either_side_accepts_what_the_other_sent(path):
    """Each side is told to send the requests that it sent in the recording."""
    pairs = defaultdict(lambda: {"c2s": Connection(), "s2c": Connection()})
    opposite = {"c2s": "s2c", "s2c": "c2s"}
    for connection, direction, frame in blip_frames(path):
        # Named after what it receives; the other one sends in this direction.
        receiver = pairs[connection][direction]
        sender = pairs[connection][opposite[direction]]
        for event in receiver.receive_frame(frame):
            if isinstance(event, RequestReceived):
                assert sender.send_request(event.message) == event.number
                while sender.next_frame() is not None:
                    pass
            elif isinstance(event, ErrorReceived):
                assert event.domain in ("HTTP", "BLIP", "LiteCore", "WebSocket")
    for pair in pairs.values():
        assert pair["c2s"].unsent_bytes == pair["s2c"].unsent_bytes == 0
