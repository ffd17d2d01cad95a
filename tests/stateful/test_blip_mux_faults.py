"""The machine over two BLIP connections finds what it is there to find: each fault, planted."""

import zlib
from dataclasses import replace

import pytest
from blip_reference import ACK_REPLY, ACK_REQUEST, MORE, REQUEST, TYPE, URGENT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from test_blip_mux_machine import Mux, foreign_messages, receive_foreign_messages

from trio_p2p import limits
from trio_p2p.blip import Connection, compress, connection, outbox
from trio_p2p.blip import message as messages
from trio_p2p.errors import TrioP2PError

# The failure is not shrunk; whatever the fault makes fail first shows it.
SEARCH = settings(
    max_examples=300,
    stateful_step_count=60,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
SHOWN = (
    AssertionError,
    TrioP2PError,
    LookupError,
    ValueError,
    ArithmeticError,
    zlib.error,
    pytest.fail.Exception,
)

FAULTS = {}


def search_machine():
    run_state_machine_as_test(Mux, settings=SEARCH)


def search_foreign_messages():
    receiving = given(sent=st.lists(foreign_messages, max_size=8), data=st.data())
    SEARCH(receiving(receive_foreign_messages))()


def fault(owner, name, search=search_machine):
    """Registers a replacement for a method, given the method, and what is to find it."""

    def register(make):
        FAULTS[make.__name__.replace("_", " ")] = (owner, name, make, search)
        return make

    return register


@fault(outbox.Outbox, "_urgent_place")
def an_urgent_request_overtakes_one_that_has_not_begun(original):
    return lambda self, message: min(1, len(self._queue))


@fault(outbox.Outbox, "_urgent_place")
def urgent_messages_leave_no_turn_to_others(original):
    def place(self, message):
        urgent = [i for i, other in enumerate(self._queue) if other.flags & URGENT]
        return max([original(self, message) - 1, *(i + 1 for i in urgent[-1:])])

    return place


@fault(outbox.Outbox, "_enqueue")
def urgent_messages_wait_like_others(original):
    return lambda self, message: self._queue.append(message)


@fault(outbox.Outbox, "_frame_bytes_max")
def frames_stay_large_though_urgent_ones_wait(original):
    return lambda self, message: limits.FRAME_BYTES_MAX


@fault(outbox.Outbox, "_frame_bytes_max")
def frames_are_too_large(original):
    return lambda self, message: original(self, message) + 40


@fault(outbox.Outbox, "sent")
def a_message_keeps_its_turn(original):
    def sent(self, message, piece_bytes, wire_bytes):
        original(self, message, piece_bytes, wire_bytes)
        if message in self._queue and message.offset < 1_000:
            self._queue.remove(message)
            self._queue.appendleft(message)

    return sent


@fault(outbox.Outgoing, "window_full")
def windows_never_fill(original):
    return property(lambda self: False)


@fault(outbox.Outbox, "acknowledge")
def a_window_never_opens_again(original):
    return lambda self, key, bytes_received: None


@fault(outbox.Outbox, "acknowledge")
def more_is_acknowledged_than_was_sent(original):
    def acknowledge(self, key, bytes_received):
        original(self, key, bytes_received)
        if key in self._begun:
            self._begun[key].acknowledged_bytes = bytes_received

    return acknowledge


@fault(outbox.Outbox, "acknowledge")
def a_late_acknowledgement_counts_backwards(original):
    def acknowledge(self, key, bytes_received):
        original(self, key, bytes_received)
        if key in self._begun:
            message = self._begun[key]
            message.acknowledged_bytes = min(bytes_received, message.acknowledged_bytes)

    return acknowledge


@fault(Connection, "_acknowledge")
def nothing_is_acknowledged(original):
    return lambda self, key, incoming, wire_bytes: None


@fault(Connection, "_acknowledge")
def acknowledgements_count_what_was_inflated(original):
    def acknowledge(self, key, incoming, wire_bytes):
        original(self, key, incoming, len(incoming.data) or wire_bytes)

    return acknowledge


@fault(Connection, "_acknowledge")
def acknowledgements_come_late(original):
    def acknowledge(self, key, incoming, wire_bytes):
        if wire_bytes - incoming.acknowledged_bytes >= 2 * limits.ACK_INTERVAL_BYTES:
            original(self, key, incoming, wire_bytes)

    return acknowledge


@fault(Connection, "_next_acknowledgement")
def requests_and_replies_are_confused_in_acknowledgements(original):
    def next_acknowledgement(self):
        frame = bytearray(original(self))
        frame[1] ^= ACK_REQUEST ^ ACK_REPLY
        return bytes(frame)

    return next_acknowledgement


@fault(Connection, "_complete")
def a_complete_message_is_acknowledged_once_more(original):
    def complete(self, number, flags, data):
        if len(data) > limits.FRAME_BYTES_MAX:
            self._acknowledgements[flags & TYPE != REQUEST, number] = len(data)
        return original(self, number, flags, data)

    return complete


@fault(compress, "CHECKSUM_BYTES")
def checksums_are_shorter(original):
    return 3


@fault(compress.Deflater, "encode")
def checksums_begin_anew_with_each_message(original):
    def encode(self, header, piece, *, compressed):
        self._checksum = 0
        return original(self, header, piece, compressed=compressed)

    return encode


@fault(compress.Inflater, "decode")
def checksums_are_not_checked(original):
    def decode(self, frame, start, *, compressed, bytes_max):
        payload = frame[start:-4]
        if compressed and payload:
            payload = self._inflate(payload, bytes_max)
        self._checksum = zlib.crc32(payload, self._checksum)
        return payload

    return decode


@fault(compress.Deflater, "_deflate")
def the_tail_of_a_flush_is_sent(original):
    return lambda self, piece: original(self, piece) + compress.SYNC_FLUSH_TAIL


@fault(compress.Inflater, "_inflate")
def each_frame_is_inflated_by_itself(original):
    def inflate(self, payload, bytes_max):
        self._stream = zlib.decompressobj(-15)
        return original(self, payload, bytes_max)

    return inflate


@fault(compress.Inflater, "decode", search_foreign_messages)
def a_frame_of_no_bytes_is_inflated(original):
    def decode(self, frame, start, *, compressed, bytes_max):
        if compressed and len(frame) == start + 4:
            self._stream.decompress(compress.SYNC_FLUSH_TAIL)
        return original(self, frame, start, compressed=compressed, bytes_max=bytes_max)

    return decode


@fault(Connection, "_answer")
def a_reply_is_never_urgent(original):
    def answer(self, number, kind, message, *, whole=True):
        if number in self._unanswered:
            self._unanswered[number] = False
        return original(self, number, kind, message, whole=whole)

    return answer


@fault(Connection, "_answer")
def a_request_may_be_answered_twice(original):
    def answer(self, number, kind, message, *, whole=True):
        urgent = self._unanswered.get(number)
        queued = original(self, number, kind, message, whole=whole)
        self._unanswered[number] = urgent
        return queued

    return answer


@fault(Connection, "send_request")
def a_reply_is_awaited_to_what_wants_none(original):
    def send_request(self, message, *, in_parts=False):
        number = original(self, message, in_parts=in_parts)
        self._awaiting.setdefault(number, False)
        return number

    return send_request


@fault(Connection, "_complete")
def bytes_of_complete_messages_stay_counted(original):
    def complete(self, number, flags, data):
        self._incomplete_bytes += len(data)
        return original(self, number, flags, data)

    return complete


@fault(Connection, "_check_first")
def requests_may_begin_out_of_order(original):
    def check_first(self, key):
        is_reply, number = key
        if is_reply:
            original(self, key)
        else:
            self._requests_begun = number

    return check_first


@fault(Connection, "_check_first")
def a_reply_to_nothing_is_taken(original):
    def check_first(self, key):
        if not key[0]:
            original(self, key)
        else:
            self._awaiting.setdefault(key[1], True)

    return check_first


@fault(Connection, "receive_frame")
def a_failed_connection_goes_on(original):
    def receive_frame(self, data):
        self._failure = None
        return original(self, data)

    return receive_frame


@fault(Connection, "close")
def a_closed_connection_goes_on(original):
    def close(self):
        awaiting = original(self)
        self._closed = False
        return awaiting

    return close


@fault(Connection, "next_frame")
def more_is_always_coming(original):
    def next_frame(self):
        frame = original(self)
        if frame is not None and self._outbox.unsent_bytes and len(frame) < 100:
            return frame[:1] + bytes((frame[1] ^ MORE,)) + frame[2:]
        return frame

    return next_frame


@fault(messages, "decode_data")
def properties_must_be_in_one_piece(original):
    def decode_data(data):
        decoded, body = original(data)
        return decoded, body if len(decoded) < 2 else body[1:]

    return decode_data


@fault(connection, "_error")
def an_error_loses_its_domain(original):
    return lambda number, properties, body: original(
        number, {**properties, "Error-Domain": "?"}, body
    )


@fault(Connection, "consumed")
def what_is_consumed_opens_no_window(original):
    return lambda self, part: None


@fault(Connection, "_part")
def parts_are_acknowledged_before_they_are_consumed(original):
    def part(self, key, incoming, wire_bytes, *, last):
        self._acknowledge(key, incoming, incoming.wire_bytes)
        return original(self, key, incoming, wire_bytes, last=last)

    return part


@fault(Connection, "_part")
def properties_are_not_counted_as_a_part(original):
    def part(self, key, incoming, wire_bytes, *, last):
        events = original(self, key, incoming, wire_bytes, last=last)
        return [replace(event, wire_bytes=wire_bytes) for event in events]

    return part


@fault(outbox.Outbox, "feed")
def what_is_fed_has_no_turn(original):
    def feed(self, message, data, *, last):
        message.starved = False
        original(self, message, data, last=last)

    return feed


@fault(outbox.Outbox, "feed")
def what_is_fed_ignores_the_window(original):
    def feed(self, message, data, *, last):
        if message.stalled:
            message.stalled, message.starved = False, True
        original(self, message, data, last=last)
        if message.stalled:
            message.stalled = False
            self._enqueue(message)

    return feed


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, monkeypatch):
    owner, attribute, make, search = FAULTS[name]
    monkeypatch.setattr(owner, attribute, make(getattr(owner, attribute)))
    with pytest.raises(SHOWN):
        search()
