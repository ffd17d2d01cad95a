"""Two connections, frames under way between them, and any order of events."""

import random
from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

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

SOURCES = {
    "random": random.Random(0).randbytes(300_000),
    "text": b'{"type":"note","text":"hello"}' * 10_000,
}

sizes = st.one_of(st.integers(0, 500), st.integers(0, 40_000), st.integers(0, 300_000))
sources = st.sampled_from(sorted(SOURCES))
sides = st.integers(0, 1)


class Mux(RuleBasedStateMachine):
    """`wire[side]` holds the frames that `side` has sent and the other has not received."""

    def __init__(self):
        super().__init__()
        self.wire = (deque(), deque())
        self.sent_requests = ({}, {})
        self.begun = ([], [])
        self.arrived = (set(), set())
        self.unanswered = ({}, {})
        self.expected_replies = ({}, {})
        self.payload_bytes = ({}, {})
        self.acknowledged_bytes = ({}, {})

    @initialize(levels=st.tuples(st.sampled_from([0, 1, 6]), st.sampled_from([0, 1, 6])))
    def connect(self, levels):
        self.levels = levels
        self.connections = tuple(Connection(compression_level=level) for level in levels)

    @rule(
        side=sides,
        source=sources,
        size=sizes,
        choices=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    )
    def send_request(self, side, source, size, choices):
        message = Message({"Profile": "x"}, SOURCES[source][:size], *choices)
        number = self.connections[side].send_request(message)
        assert number == len(self.sent_requests[side]) + 1
        self.sent_requests[side][number] = self._as_received(side, message)

    @rule(side=sides, data=st.data(), source=sources, size=sizes, compressed=st.booleans())
    def send_reply(self, side, data, source, size, compressed):
        request = self._take_unanswered(side, data)
        if request is None:
            return
        number, urgent = request
        message = Message({"a": "b"}, SOURCES[source][:size], urgent, compressed)
        self.connections[side].send_reply(number, message)
        received = ReplyReceived(number, self._as_received(side, message))
        self.expected_replies[1 - side][number] = received

    @rule(side=sides, data=st.data(), code=st.integers(0, 999), text=st.text(max_size=20))
    def send_error(self, side, data, code, text):
        request = self._take_unanswered(side, data)
        if request is None:
            return
        number, _ = request
        self.connections[side].send_error(number, "HTTP", code, text)
        self.expected_replies[1 - side][number] = ErrorReceived(number, "HTTP", code, text)

    @rule(side=sides, count=st.integers(1, 30))
    def send_frames(self, side, count):
        for _ in range(count):
            if not self._send_frame(side):
                return

    @rule(side=sides, count=st.integers(1, 30))
    def receive_frames(self, side, count):
        for _ in range(count):
            if not self._receive_frame(side):
                return

    @invariant()
    def unacknowledged_bytes_are_bounded(self):
        for sent, acknowledged in zip(self.payload_bytes, self.acknowledged_bytes, strict=True):
            for key, total in sent.items():
                in_window = total - acknowledged.get(key, 0)
                assert in_window < limits.UNACKNOWLEDGED_BYTES_MAX + limits.FRAME_BYTES_MAX

    @invariant()
    def requests_begin_in_order(self):
        for numbers in self.begun:
            assert numbers == list(range(1, len(numbers) + 1))

    def teardown(self):
        while any([self._send_frame(side) or self._receive_frame(side) for side in (0, 1)]):
            pass
        for side, connection in enumerate(self.connections):
            assert connection.unsent_bytes == 0
            assert self.arrived[1 - side] == set(self.sent_requests[side])
            assert self.expected_replies[side] == {}
            assert connection.close() == sorted(self.unanswered[1 - side])

    def _as_received(self, side, message):
        compressed = message.compressed and self.levels[side] > 0
        return Message(
            message.properties, message.body, message.urgent, compressed, message.no_reply
        )

    def _take_unanswered(self, side, data):
        waiting = self.unanswered[side]
        if not waiting:
            return None
        number = data.draw(st.sampled_from(sorted(waiting)))
        return number, waiting.pop(number)

    def _send_frame(self, side):
        frame = self.connections[side].next_frame()
        if frame is None:
            return False
        self.wire[side].append(frame)
        number, flags, start = frames.decode_header(frame)
        kind = flags & frames.TYPE_MASK
        if kind <= frames.ERROR:
            self._count_payload(side, (kind != frames.REQUEST, number), len(frame) - start)
        return True

    def _count_payload(self, side, key, payload_bytes):
        totals = self.payload_bytes[side]
        if key not in totals and key[0] is False:
            self.begun[side].append(key[1])
        totals[key] = totals.get(key, 0) + payload_bytes

    def _receive_frame(self, side):
        """Let `side` receive the next frame that the other sent."""
        if not self.wire[1 - side]:
            return False
        frame = self.wire[1 - side].popleft()
        number, flags, start = frames.decode_header(frame)
        kind = flags & frames.TYPE_MASK
        if kind > frames.ERROR:
            total, _ = varint.decode(frame, start)
            self.acknowledged_bytes[side][kind == frames.ACK_REPLY, number] = total
        for event in self.connections[side].receive_frame(frame):
            self._check(side, event)
        if kind <= frames.ERROR and not flags & frames.MORE_COMING:
            # Nothing of it can be under way any more.
            del self.payload_bytes[1 - side][kind != frames.REQUEST, number]
        return True

    def _check(self, side, event):
        if not isinstance(event, RequestReceived):
            assert event == self.expected_replies[side].pop(event.number)
            return
        assert event.message == self.sent_requests[1 - side][event.number]
        assert event.number not in self.arrived[side]
        self.arrived[side].add(event.number)
        if not event.message.no_reply:
            self.unanswered[side][event.number] = event.message.urgent


TestMux = Mux.TestCase
