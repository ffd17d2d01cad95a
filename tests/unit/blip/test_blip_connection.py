"""The multiplexer: two connections, or one and a peer that writes frames by hand."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.blip import (
    Connection,
    ErrorReceived,
    Message,
    ReplyReceived,
    RequestReceived,
    frames,
    varint,
)
from trio_p2p.blip.compress import Deflater
from trio_p2p.blip.message import encode_data
from trio_p2p.errors import LocalProtocolError, RemoteProtocolError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "blip_frames.json").read_text())

PING = Message({"Profile": "ping"})
LARGE = Message({"Profile": "large"}, random.Random(0).randbytes(300_000))


class HandMadePeer:
    """Writes whatever frames a test wants, with the checksum that they ought to have."""

    def __init__(self):
        self._deflater = Deflater(6)

    def frame(self, number, flags, piece):
        compressed = bool(flags & frames.COMPRESSED)
        header = frames.encode_header(number, flags)
        return self._deflater.encode(header, piece, compressed=compressed)

    def message(self, number, flags, message=PING):
        return self.frame(number, flags, encode_data(message))


def all_frames(connection):
    return list(iter(connection.next_frame, None))


def receive_all(connection, sent):
    return [event for frame in sent for event in connection.receive_frame(frame)]


def exchange(left, right):
    """Move frames both ways until there are none; return what each side was told."""
    told_left, told_right = [], []
    while True:
        to_right, to_left = all_frames(left), all_frames(right)
        if not to_right and not to_left:
            return told_left, told_right
        told_right += receive_all(right, to_right)
        told_left += receive_all(left, to_left)


def flags_of(frame):
    return frames.decode_header(frame)[1]


# --- Requests and replies ------------------------------------------------------------------------


@pytest.mark.behaviour("B5")
@pytest.mark.parametrize("urgent", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("no_reply", [False, True])
@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_request_arrives_as_it_was_sent(urgent, compressed, no_reply, size):
    left, right = Connection(), Connection()
    message = Message({"Profile": "x"}, LARGE.body[:size], urgent, compressed, no_reply)
    number = left.send_request(message)
    assert exchange(left, right) == ([], [RequestReceived(number, message)])


@pytest.mark.behaviour("X6")
def test_a_recorded_direction_is_received_as_what_it_says():
    connection = Connection()
    for vector in VECTORS["direction"]:
        message = Message(
            vector["properties"],
            vector["body"].encode(),
            vector["urgent"],
            vector["compressed"],
            vector["no_reply"],
        )
        received = connection.receive_frame(bytes.fromhex(vector["frame"]))
        assert received == [RequestReceived(vector["number"], message)]


def test_requests_are_numbered_from_one():
    connection = Connection()
    assert [connection.send_request(PING) for _ in range(3)] == [1, 2, 3]


def test_a_reply_reaches_its_request_and_takes_its_urgency():
    left, right = Connection(), Connection()
    left.send_request(PING)
    left.send_request(Message({}, urgent=True))
    exchange(left, right)
    right.send_reply(2, Message({}, b"second"))
    right.send_reply(1, Message({"a": "b"}, b"first", urgent=True, no_reply=True))
    told, _ = exchange(left, right)
    assert told == [
        ReplyReceived(2, Message({}, b"second", urgent=True)),
        ReplyReceived(1, Message({"a": "b"}, b"first")),
    ]


def test_an_empty_reply_is_a_single_zero():
    left, right = Connection(), Connection()
    left.send_request(PING)
    exchange(left, right)
    right.send_reply(1, Message({}))
    assert right.next_frame()[:-4] == b"\x01\x01\x00"


def test_both_sides_number_their_requests_apart():
    left, right = Connection(), Connection()
    left.send_request(PING)
    right.send_request(Message({"Profile": "pong"}))
    exchange(left, right)
    left.send_reply(1, Message({}, b"to right"))
    right.send_reply(1, Message({}, b"to left"))
    assert exchange(left, right) == (
        [ReplyReceived(1, Message({}, b"to left"))],
        [ReplyReceived(1, Message({}, b"to right"))],
    )


def test_messages_are_told_in_the_order_in_which_they_complete():
    left, right = Connection(), Connection()
    left.send_request(LARGE)
    left.send_request(PING)
    _, told = exchange(left, right)
    assert [event.number for event in told] == [2, 1]


@pytest.mark.behaviour("B13g")
def test_an_error_reply_carries_domain_code_and_text():
    left, right = Connection(), Connection()
    left.send_request(PING)
    exchange(left, right)
    right.send_error(1, "BLIP", 404, "no handler for message")
    told, _ = exchange(left, right)
    assert told == [ErrorReceived(1, "BLIP", 404, "no handler for message")]


@pytest.mark.parametrize(
    ("properties", "domain", "code"),
    [
        ({"Error-Code": "501"}, "BLIP", 501),
        ({"Error-Domain": "HTTP", "Error-Code": "409"}, "HTTP", 409),
        ({"Error-Domain": "LiteCore", "Error-Code": "-1"}, "LiteCore", -1),
    ],
)
def test_error_replies_of_others_are_understood(properties, domain, code):
    connection = Connection()
    connection.send_request(PING)
    all_frames(connection)
    frame = HandMadePeer().message(1, frames.ERROR, Message(properties, b"\xffoops"))
    assert connection.receive_frame(frame) == [ErrorReceived(1, domain, code, "\ufffdoops")]


def test_of_an_error_as_much_is_told_as_people_read():
    connection = Connection()
    connection.send_request(Message({}))
    assert connection.next_frame()
    properties = {"Error-Code": "500", "Error-Domain": "\x1b[2J" + "x" * 50_000}
    frame = HandMadePeer().message(1, frames.ERROR, Message(properties, b"no\n" * 50_000))
    [error] = connection.receive_frame(frame)
    assert len(error.text) == len(error.domain) == limits.HEARSAY_CHARACTERS_MAX
    assert error.text.isprintable()
    assert error.domain.isprintable()


@pytest.mark.parametrize("code", ["", "x", "4 4", "1_0", "+1", "٣", "9" * 11])
def test_an_error_reply_without_a_numeric_code_is_refused(code):
    connection = Connection()
    connection.send_request(PING)
    all_frames(connection)
    frame = HandMadePeer().message(1, frames.ERROR, Message({"Error-Code": code}))
    with pytest.raises(RemoteProtocolError, match="numeric code"):
        connection.receive_frame(frame)


def test_only_a_request_that_waits_for_it_can_be_answered():
    left, right = Connection(), Connection()
    left.send_request(PING)
    left.send_request(Message({}, no_reply=True))
    exchange(left, right)
    right.send_reply(1, Message({}))
    for number in (1, 2, 3):
        with pytest.raises(LocalProtocolError, match="awaits no reply"):
            right.send_reply(number, Message({}))
        with pytest.raises(LocalProtocolError, match="awaits no reply"):
            right.send_error(number, "BLIP", 501)


def test_a_message_that_cannot_be_sent_uses_up_no_number_and_answers_nothing():
    left, right = Connection(), Connection()
    with pytest.raises(LocalProtocolError):
        left.send_request(Message({"a": "\0"}))
    assert left.send_request(PING) == 1
    exchange(left, right)
    with pytest.raises(LocalProtocolError):
        right.send_reply(1, Message({"a": "\0"}))
    right.send_error(1, "BLIP", 501)
    assert exchange(left, right) == ([ErrorReceived(1, "BLIP", 501, "")], [])


# --- Frames we send ------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_no_frame_exceeds_its_size_and_only_the_last_has_nothing_to_follow(compressed):
    left, right = Connection(), Connection()
    left.send_request(Message({}, LARGE.body[:100_000], compressed=compressed))
    sent = all_frames(left)
    assert max(map(len, sent)) <= limits.FRAME_BYTES_MAX
    assert [bool(flags_of(frame) & frames.MORE_COMING) for frame in sent] == [True] * 6 + [False]
    assert len(receive_all(right, sent)) == 1


def test_level_0_compresses_nothing_but_still_inflates():
    plain, other = Connection(compression_level=0), Connection()
    text = Message({}, b"text " * 100, compressed=True)
    plain.send_request(text)
    other.send_request(text)
    told_plain, told_other = exchange(plain, other)
    assert told_plain == [RequestReceived(1, text)]
    assert told_other == [RequestReceived(1, Message({}, text.body))]


def test_unsent_bytes_fall_to_nothing_as_frames_leave():
    connection = Connection()
    connection.send_request(Message({}, bytes(50_000)))
    before = connection.unsent_bytes
    assert before == 50_001
    connection.next_frame()
    assert 0 < connection.unsent_bytes < before
    all_frames(connection)
    assert connection.unsent_bytes == 0


# --- Flow control --------------------------------------------------------------------------------


@pytest.mark.behaviour("B13b")
def test_a_sender_stops_at_a_full_window():
    left, right = Connection(), Connection()
    left.send_request(LARGE)
    sent = all_frames(left)
    payload_bytes = sum(len(frame) - 2 for frame in sent)
    assert 0 <= payload_bytes - limits.UNACKNOWLEDGED_BYTES_MAX < limits.FRAME_BYTES_MAX
    assert receive_all(right, sent) == []
    receive_all(left, all_frames(right))
    assert left.next_frame() is not None


@pytest.mark.behaviour("B13a")
def test_a_receiver_acknowledges_each_50_000_bytes_of_a_message():
    connection, peer = Connection(), HandMadePeer()
    piece = bytes(9_996)  # With its checksum, 10,000 bytes to count.
    totals = []
    for count in range(1, 13):
        flags = frames.REQUEST | frames.MORE_COMING
        connection.receive_frame(peer.frame(1, flags, piece if count > 1 else b"\0" + piece[1:]))
        totals += [(count, frame.hex()) for frame in all_frames(connection)]
    assert totals == [
        (5, "0134" + varint.encode(50_000).hex()),
        (10, "0134" + varint.encode(100_000).hex()),
    ]


def test_acknowledgements_go_first_and_only_the_newest_of_a_message():
    connection, peer = Connection(), HandMadePeer()
    connection.send_request(PING)
    for _ in range(12):
        flags = frames.REQUEST | frames.MORE_COMING
        connection.receive_frame(peer.frame(1, flags, bytes(9_996)))
    first, second = all_frames(connection)
    assert first == frames.encode_acknowledgement(1, 100_000, of_reply=False)
    assert flags_of(second) == frames.REQUEST


def test_a_complete_message_is_not_acknowledged_any_more():
    connection, peer = Connection(), HandMadePeer()
    connection.receive_frame(peer.frame(1, frames.MORE_COMING, bytes(60_000)))
    connection.receive_frame(peer.frame(1, frames.REQUEST, bytes(60_000)))
    assert connection.next_frame() is None


def test_acknowledgements_touch_neither_checksum_nor_deflate_stream():
    left, right = Connection(), Connection()
    left.send_request(Message({}, LARGE.body, compressed=True))
    right.send_request(Message({}, LARGE.body, compressed=True))
    told_left, told_right = exchange(left, right)
    assert told_left == told_right
    assert len(told_left) == 1


def test_a_reply_is_acknowledged_as_a_reply():
    left, right = Connection(), Connection()
    left.send_request(PING)
    exchange(left, right)
    right.send_reply(1, LARGE)
    receive_all(left, all_frames(right))
    assert flags_of(left.next_frame()) == frames.ACK_REPLY | frames.URGENT | frames.NO_REPLY


def test_an_acknowledgement_of_an_unknown_message_is_ignored():
    connection = Connection()
    for of_reply in (True, False):
        frame = frames.encode_acknowledgement(9, 50_000, of_reply=of_reply)
        assert connection.receive_frame(frame) == []


def test_an_acknowledgement_without_a_count_is_refused():
    with pytest.raises(RemoteProtocolError):
        Connection().receive_frame(b"\x01\x34")


# --- What peers may and may not do ---------------------------------------------------------------


@pytest.mark.behaviour("B13f")
def test_larger_frames_than_ours_are_accepted():
    frame = HandMadePeer().message(1, frames.REQUEST, LARGE)
    assert Connection().receive_frame(frame) == [RequestReceived(1, LARGE)]


def test_properties_may_go_on_in_later_frames():
    connection, peer = Connection(), HandMadePeer()
    message = Message({"Profile": "x" * 300}, b"body")
    *early, last = [bytes((byte,)) for byte in encode_data(message)]
    for piece in early:
        assert connection.receive_frame(peer.frame(1, frames.MORE_COMING, piece)) == []
    assert connection.receive_frame(peer.frame(1, 0, last)) == [RequestReceived(1, message)]


def test_compression_is_decided_frame_by_frame():
    connection, peer = Connection(), HandMadePeer()
    data = encode_data(PING)
    connection.receive_frame(peer.frame(1, frames.MORE_COMING | frames.COMPRESSED, data[:3]))
    connection.receive_frame(peer.frame(1, frames.MORE_COMING, data[3:6]))
    (event,) = connection.receive_frame(peer.frame(1, frames.COMPRESSED, data[6:]))
    assert event.message.properties == PING.properties


@pytest.mark.behaviour("B13e")
def test_a_compressed_frame_without_bytes_may_end_a_message():
    connection, peer = Connection(), HandMadePeer()
    whole = peer.frame(1, frames.COMPRESSED | frames.MORE_COMING, encode_data(PING))
    connection.receive_frame(whole)
    empty = frames.encode_header(1, frames.COMPRESSED) + whole[-4:]
    assert [event.number for event in connection.receive_frame(empty)] == [1]
    (event,) = connection.receive_frame(peer.message(2, frames.COMPRESSED))
    assert event.message.properties == PING.properties


@pytest.mark.parametrize("kind", [3, 6, 7])
def test_frames_of_unknown_types_are_ignored_whole(kind):
    connection, peer = Connection(), HandMadePeer()
    assert connection.receive_frame(frames.encode_header(99, kind) + b"whatever") == []
    assert connection.receive_frame(peer.message(1, 0)) == [RequestReceived(1, PING)]


def test_unknown_flags_are_ignored():
    frame = HandMadePeer().message(1, frames.REQUEST | 0x3F80)
    assert Connection().receive_frame(frame) == [RequestReceived(1, PING)]


@pytest.mark.behaviour("B13c")
@pytest.mark.parametrize("number", [0, 2, 3, 2**64 - 1])
def test_a_first_request_with_another_number_than_1_is_refused(number):
    with pytest.raises(RemoteProtocolError, match="out of order"):
        Connection().receive_frame(HandMadePeer().message(number, frames.REQUEST))


@pytest.mark.behaviour("B13c")
def test_a_request_number_that_was_used_is_refused():
    connection, peer = Connection(), HandMadePeer()
    connection.receive_frame(peer.message(1, frames.REQUEST))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        connection.receive_frame(peer.message(1, frames.REQUEST))


@pytest.mark.behaviour("B13d")
@pytest.mark.parametrize("kind", [frames.REPLY, frames.ERROR])
def test_a_reply_to_no_request_is_refused(kind):
    with pytest.raises(RemoteProtocolError, match="no request of ours"):
        Connection().receive_frame(HandMadePeer().message(1, kind))


def test_a_reply_to_a_request_without_reply_is_refused():
    connection = Connection()
    connection.send_request(Message({}, no_reply=True))
    all_frames(connection)
    with pytest.raises(RemoteProtocolError, match="no request of ours"):
        connection.receive_frame(HandMadePeer().message(1, frames.REPLY))


def test_a_reply_before_the_request_is_sent_whole_is_refused():
    connection = Connection()
    connection.send_request(LARGE)
    connection.next_frame()
    with pytest.raises(RemoteProtocolError, match="no request of ours"):
        connection.receive_frame(HandMadePeer().message(1, frames.REPLY))


@pytest.mark.behaviour("B13d")
def test_a_second_reply_is_refused():
    connection, peer = Connection(), HandMadePeer()
    connection.send_request(PING)
    all_frames(connection)
    connection.receive_frame(peer.message(1, frames.REPLY))
    with pytest.raises(RemoteProtocolError, match="no request of ours"):
        connection.receive_frame(peer.message(1, frames.REPLY))


def test_a_message_that_ends_inside_its_properties_is_refused():
    with pytest.raises(RemoteProtocolError, match="inside its properties"):
        Connection().receive_frame(HandMadePeer().frame(1, frames.REQUEST, b"\x05a"))


def test_after_a_fault_of_the_peer_every_frame_is_refused():
    connection, peer = Connection(), HandMadePeer()
    good = peer.message(1, frames.REQUEST)
    with pytest.raises(RemoteProtocolError, match="checksum"):
        connection.receive_frame(good[:-1] + bytes((good[-1] ^ 1,)))
    with pytest.raises(RemoteProtocolError, match="has failed"):
        connection.receive_frame(good)


def test_a_frame_larger_than_a_transport_message_is_refused():
    with pytest.raises(RemoteProtocolError, match="too large"):
        Connection().receive_frame(bytes(limits.TRANSPORT_MESSAGE_BYTES_MAX + 1))


def test_too_many_messages_at_once_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "INCOMPLETE_MESSAGES_MAX", 3)
    connection, peer = Connection(), HandMadePeer()
    for number in (1, 2, 3):
        connection.receive_frame(peer.frame(number, frames.MORE_COMING, b"\0"))
    (event,) = connection.receive_frame(peer.message(4, frames.REQUEST))
    assert event.number == 4
    with pytest.raises(RemoteProtocolError, match="too many messages"):
        connection.receive_frame(peer.frame(5, frames.MORE_COMING, b"\0"))


@pytest.mark.parametrize("compressed", [0, frames.COMPRESSED])
def test_incomplete_messages_together_have_a_limit(monkeypatch, compressed):
    monkeypatch.setattr(limits, "INCOMPLETE_BYTES_MAX", 1_000)
    connection, peer = Connection(), HandMadePeer()
    flags = frames.MORE_COMING | compressed
    connection.receive_frame(peer.frame(1, flags, bytes(600)))
    connection.receive_frame(peer.frame(1, compressed, bytes(400)))
    connection.receive_frame(peer.frame(2, flags, bytes(600)))
    with pytest.raises(RemoteProtocolError, match="too large"):
        connection.receive_frame(peer.frame(3, flags, bytes(401)))


@pytest.mark.parametrize("compressed", [0, frames.COMPRESSED])
@pytest.mark.parametrize("pieces", [[1_001], [600, 401]])
def test_one_message_has_a_limit_after_inflating(monkeypatch, compressed, pieces):
    monkeypatch.setattr(limits, "MESSAGE_BYTES_MAX", 1_000)
    connection, peer = Connection(), HandMadePeer()
    *early, last = pieces
    for size in early:
        connection.receive_frame(peer.frame(1, compressed | frames.MORE_COMING, bytes(size)))
    with pytest.raises(RemoteProtocolError, match="too large"):
        connection.receive_frame(peer.frame(1, compressed, bytes(last)))


# --- Closing -------------------------------------------------------------------------------------


@pytest.mark.behaviour("B8")
def test_closing_tells_which_requests_have_no_reply_and_forgets_everything():
    left, right = Connection(), Connection()
    left.send_request(PING)
    left.send_request(PING)
    left.send_request(Message({}, no_reply=True))
    exchange(left, right)
    right.send_reply(1, Message({}))
    exchange(left, right)
    left.send_request(LARGE)
    assert left.close() == [2, 4]
    assert left.next_frame() is None
    assert left.unsent_bytes == 0
    assert left.close() == []


def test_a_closed_connection_ignores_frames_and_takes_no_messages():
    left, right = Connection(), Connection()
    left.send_request(LARGE)
    right.send_request(PING)
    sent = all_frames(left)
    exchange_frame = right.next_frame()
    left.receive_frame(exchange_frame)
    receive_all(right, sent)
    left.close()
    assert receive_all(left, all_frames(right)) == []
    assert left.next_frame() is None
    with pytest.raises(LocalProtocolError, match="closed"):
        left.send_request(PING)
    with pytest.raises(LocalProtocolError, match="awaits no reply"):
        left.send_reply(1, Message({}))


# --- Whatever the bytes --------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_arbitrary_frames_raise_nothing_but_the_protocol_error(garbage):
    connection = Connection()
    connection.send_request(PING)
    all_frames(connection)
    for frame in garbage:
        try:
            connection.receive_frame(frame)
        except RemoteProtocolError:
            return


@given(st.data())
def test_damaged_frames_raise_nothing_but_the_protocol_error(data):
    peer = HandMadePeer()
    flags = data.draw(st.integers(0, 0x7F))
    properties = data.draw(st.sampled_from([{}, {"Error-Code": "404"}, {"Profile": "rev"}]))
    good = peer.message(1, flags, Message(properties, b"body " * 20))
    place = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:place] + data.draw(st.binary(max_size=3)) + good[place + 1 :]
    connection = Connection()
    connection.send_request(PING)
    all_frames(connection)
    try:
        events = connection.receive_frame(damaged)
    except RemoteProtocolError:
        return
    assert len(events) <= 1


@given(st.integers(0, 0x7F), st.binary(min_size=1, max_size=60))
def test_any_payload_with_a_right_checksum_raises_nothing_but_the_protocol_error(flags, payload):
    connection = Connection()
    connection.send_request(PING)
    all_frames(connection)
    try:
        connection.receive_frame(HandMadePeer().frame(1, flags, payload))
    except RemoteProtocolError:
        return
