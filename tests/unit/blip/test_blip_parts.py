"""Replies in parts: of any size, with no more than a window of them anywhere."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.blip import Connection, ErrorReceived, Message, PartReceived, frames
from trio_p2p.blip.compress import Deflater
from trio_p2p.blip.message import encode_properties, has_properties
from trio_p2p.errors import RemoteProtocolError

ASK = Message({"Profile": "getAttachment"})
RANDOM = random.Random(0).randbytes(400_000)


class Exchange:
    """A connection that asked for a reply in parts, and the one that is to give it."""

    def __init__(self):
        self.asking, self.giving = Connection(), Connection()
        self.number = self.asking.send_request(ASK, in_parts=True)
        self.unconsumed = []
        self.events = []
        self.move()

    def move(self):
        """Move all frames that may be sent; what arrives in parts is not consumed yet."""
        moved = True
        while moved:
            moved = False
            for sender, receiver in ((self.asking, self.giving), (self.giving, self.asking)):
                while (frame := sender.next_frame()) is not None:
                    moved = True
                    for event in receiver.receive_frame(frame):
                        self.events.append(event)
                        if isinstance(event, PartReceived):
                            self.unconsumed.append(event)

    def consume(self):
        parts, self.unconsumed = self.unconsumed, []
        for part in parts:
            self.asking.consumed(part)
        self.move()
        return parts


@given(
    st.lists(st.integers(0, 40_000), max_size=8),
    st.booleans(),
    st.dictionaries(
        st.sampled_from(["a", "b"]), st.text(max_size=3).filter(lambda t: "\0" not in t)
    ),
    st.randoms(use_true_random=False),
)
def test_a_reply_arrives_whole_however_it_is_fed_and_consumed(
    sizes, compressed, properties, chance
):
    exchange = Exchange()
    content = RANDOM if chance.random() < 0.5 else bytes(400_000)
    message = Message(properties, b"", compressed=compressed)
    reply = exchange.giving.begin_reply(exchange.number, message)
    got, at = [], 0
    for place, size in enumerate(sizes):
        last = place == len(sizes) - 1 and chance.random() < 0.5
        exchange.giving.feed(reply, content[at : at + size], last=last)
        at += size
        if chance.random() < 0.5:
            exchange.move()
        if chance.random() < 0.5:
            got += exchange.consume()
    if not reply.whole:
        exchange.giving.feed(reply, b"", last=True)
    exchange.move()
    while exchange.unconsumed:
        got += exchange.consume()
    assert got[0].properties == properties
    assert all(part.properties is None for part in got[1:])
    assert [part.last for part in got] == [False] * (len(got) - 1) + [True]
    assert b"".join(part.data for part in got) == content[:at]
    assert not exchange.giving.has_work
    assert not exchange.asking.has_work


def test_no_more_than_a_window_comes_before_it_is_consumed():
    exchange = Exchange()
    reply = exchange.giving.begin_reply(exchange.number, Message({}))
    exchange.giving.feed(reply, RANDOM, last=True)
    exchange.move()
    held = sum(part.wire_bytes for part in exchange.unconsumed)
    assert held >= limits.UNACKNOWLEDGED_BYTES_MAX
    assert held < limits.UNACKNOWLEDGED_BYTES_MAX + limits.FRAME_BYTES_MAX
    assert exchange.giving.has_work
    exchange.move()
    assert sum(part.wire_bytes for part in exchange.unconsumed) == held
    exchange.consume()
    assert exchange.unconsumed


def test_a_reply_that_waits_for_more_of_itself_holds_up_no_other():
    exchange = Exchange()
    reply = exchange.giving.begin_reply(exchange.number, Message({}))
    exchange.move()
    exchange.giving.send_request(Message({"Profile": "other"}))
    exchange.move()
    assert exchange.events[-1].message.properties == {"Profile": "other"}
    assert not exchange.giving.has_work
    exchange.giving.feed(reply, b"end", last=True)
    assert exchange.giving.has_work


def test_an_error_in_place_of_the_parts_is_told_as_one():
    exchange = Exchange()
    exchange.giving.send_error(exchange.number, "HTTP", 404, "no such blob")
    exchange.move()
    assert exchange.events[-1] == ErrorReceived(exchange.number, "HTTP", 404, "no such blob")


def test_a_peer_that_ignores_the_window_is_cut_off():
    asking = Connection()
    number = asking.send_request(ASK, in_parts=True)
    asking.next_frame()
    deflater = Deflater(6)
    header = frames.encode_header(number, frames.REPLY | frames.MORE_COMING)
    piece = RANDOM[:16_000]
    asking.receive_frame(deflater.encode(header, b"\0" + piece, compressed=False))

    def go_on():
        for _ in range(100):
            asking.receive_frame(deflater.encode(header, piece, compressed=False))

    with pytest.raises(RemoteProtocolError, match="window"):
        go_on()


def test_what_is_not_consumed_counts_as_held(monkeypatch):
    monkeypatch.setattr(limits, "INCOMPLETE_BYTES_MAX", 40_000)
    exchange = Exchange()
    reply = exchange.giving.begin_reply(exchange.number, Message({}))
    exchange.giving.feed(reply, RANDOM[:30_000], last=False)
    exchange.move()
    exchange.consume()
    exchange.giving.feed(reply, RANDOM[:30_000], last=False)
    exchange.move()
    exchange.giving.feed(reply, RANDOM[:30_000], last=False)
    with pytest.raises(RemoteProtocolError, match="too large"):
        exchange.move()


def test_a_reply_to_be_given_to_a_closed_connection_is_dropped():
    exchange = Exchange()
    reply = exchange.giving.begin_reply(exchange.number, Message({}))
    exchange.giving.close()
    exchange.giving.feed(reply, b"late", last=True)
    assert not exchange.giving.has_work


@given(st.dictionaries(st.sampled_from(["a", "bc"]), st.just("x" * 100)), st.binary(max_size=5))
def test_properties_are_known_to_be_there_once_all_of_them_are(properties, body):
    whole = encode_properties(properties)
    assert not any(has_properties(whole[:length]) for length in range(len(whole)))
    assert has_properties(whole + body)


@pytest.mark.parametrize("start", [b"\xff" * 10, b"\xff\xff\xff\x7f"])
def test_properties_that_would_be_too_long_are_refused_at_once(start):
    with pytest.raises(RemoteProtocolError):
        has_properties(start)
