"""Two connections, frames under way between them, and any order of events.

Every frame is also read by a reader written from the specification alone, and the order of frames
is told in advance. The limits are so small here that a few messages fill windows and take many
frames.
"""

import random
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest import mock

import pytest
from blip_reference import (
    ACK_REPLY,
    ACK_REQUEST,
    COMPRESSED,
    ERROR,
    MORE,
    NO_REPLY,
    REPLY,
    REQUEST,
    URGENT,
    Reader,
    Writer,
    encode,
    to_uvarint,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trio_p2p import limits
from trio_p2p.blip import (
    Connection,
    ErrorReceived,
    Message,
    ReplyReceived,
    RequestReceived,
)
from trio_p2p.errors import LocalProtocolError, RemoteProtocolError

LIMITS = {
    "FRAME_BYTES_MAX": 150,
    "FRAME_BYTES_WHEN_URGENT_WAITS": 70,
    "ACK_INTERVAL_BYTES": 150,
    "UNACKNOWLEDGED_BYTES_MAX": 400,
    # Whatever is not given back when a message is complete runs out soon.
    "INCOMPLETE_BYTES_MAX": 12_000,
    "INCOMPLETE_MESSAGES_MAX": 12,
}
MESSAGE_BYTES = 2_000
SOURCES = {
    "random": random.Random(0).randbytes(MESSAGE_BYTES),
    "text": b'{"type":"note","text":"hello"}' * (MESSAGE_BYTES // 30),
}

sizes = st.sampled_from((10, 200, 700, MESSAGE_BYTES)) | st.integers(0, MESSAGE_BYTES)
sources = st.sampled_from(sorted(SOURCES))
sides = st.integers(0, 1)
properties = st.sampled_from(({}, {"Profile": "rev"}, {"a": "\N{SNOWMAN}" * 100, "": ""}))


@dataclass
class Sent:
    """A message on its way: what it is, and how much of it was seen on the wire."""

    data: bytes = field(repr=False)
    flags: int
    # Whether all of it is queued, and whether its receiver takes it in parts.
    whole: bool = True
    in_parts: bool = False
    seen: bytes = field(default=b"", repr=False)
    begun: bool = False
    # Why it has no turn though it is not done: nothing of it is there, or its window is full.
    starved: bool = False
    stalled: bool = False
    payload_bytes: int = 0
    # How much of it was taken, is to be acknowledged, and was.
    received_bytes: int = 0
    due_bytes: int = 0
    told_bytes: int = 0
    # What the sender takes for true of that.
    acknowledged_bytes: int = 0
    parts: list = field(default_factory=list, repr=False)

    @property
    def unsent(self):
        return len(self.data) - len(self.seen)

    @property
    def done(self):
        return self.whole and not self.unsent

    def take(self, count):
        """So many bytes were taken: received, or consumed if it comes in parts."""
        self.received_bytes += count
        if self.received_bytes - self.due_bytes >= LIMITS["ACK_INTERVAL_BYTES"]:
            self.due_bytes = self.received_bytes


class Side:
    """One end, and what is known of it from outside."""

    def __init__(self, level):
        self.level = level
        self.connection = Connection(compression_level=level)
        self.reader = Reader()
        # Frames that it sent and the other has not received: as they are, and as they were read.
        self.wire = deque()
        # Messages queued and not yet whole on the wire, and in which order they have their turns.
        self.outgoing = {}
        self.queue = []
        # Messages on their way, until the other has them whole.
        self.arriving = {}
        self.requests = 0
        self.begun = 0
        # Requests of the other that it may answer: number to whether that is urgent.
        self.unanswered = {}
        # Its own requests that want a reply, and those of them that want it in parts.
        self.awaiting = set()
        self.in_parts = set()
        # Its replies that are not whole yet, by number.
        self.feeding = {}
        # Parts of replies that it has and still works on, with the message they are of.
        self.unconsumed = []

    def add(self, key, sent):
        """A message was queued."""
        self.outgoing[key] = sent
        self.enqueue(key)

    def enqueue(self, key):
        """Urgent ones have every other turn, but requests begin in the order of their numbers."""
        sent = self.outgoing[key]
        place = len(self.queue)
        if sent.flags & URGENT:
            waiting = [self.outgoing[other] for other in self.queue]
            urgent = [at for at, other in enumerate(waiting) if other.flags & URGENT]
            new = [at for at, other in enumerate(waiting) if not other.begun]
            place = urgent[-1] + 2 if urgent else 1
            if new and not sent.begun:
                place = max(place, new[-1] + 1)
        self.queue.insert(place, key)

    def go_on(self, key):
        """A message that was begun has its next turn, if it can."""
        sent = self.outgoing[key]
        sent.starved = not sent.whole and not sent.unsent
        window = sent.payload_bytes - sent.acknowledged_bytes
        sent.stalled = not sent.starved and window >= LIMITS["UNACKNOWLEDGED_BYTES_MAX"]
        if not sent.starved and not sent.stalled:
            self.enqueue(key)

    def acknowledge(self, key, count):
        """The other has received so much of a message, or says so."""
        sent = self.outgoing.get(key)
        if sent is None or not sent.begun:
            return
        sent.acknowledged_bytes = max(sent.acknowledged_bytes, min(count, sent.payload_bytes))
        if sent.stalled:
            self.go_on(key)


class Mux(RuleBasedStateMachine):
    """`sides[n]` sends to the other; everything on the wire is checked."""

    def __init__(self):
        super().__init__()
        self.cleanup = ExitStack()
        self.cleanup.enter_context(mock.patch.multiple(limits, **LIMITS))
        self.sides = ()
        self.end = self.drain

    @initialize(
        levels=st.tuples(st.sampled_from([6, 1, 0]), st.sampled_from([6, 1, 0])),
        end=st.sampled_from(("drain", "drain", "close", "break_")),
        damage=st.integers(0, 4),
    )
    def connect(self, levels, end, damage):
        self.sides = tuple(map(Side, levels))
        self.end = getattr(self, end)
        self.damage = damage

    # --- Queueing --------------------------------------------------------------------------------

    @precondition(lambda self: self._has_room())
    @rule(
        side=sides,
        properties=properties,
        source=sources,
        size=sizes,
        urgent=st.booleans(),
        compressed=st.booleans(),
        no_reply=st.booleans(),
        in_parts=st.booleans(),
    )
    def send_request(self, side, properties, source, size, urgent, compressed, no_reply, in_parts):
        message = Message(properties, SOURCES[source][:size], urgent, compressed, no_reply)
        self._request(self.sides[side], message, in_parts=in_parts)

    @precondition(lambda self: any(side.unanswered for side in self.sides))
    @rule(
        data=st.data(),
        properties=properties,
        source=sources,
        size=sizes,
        compressed=st.booleans(),
        whole=st.booleans(),
    )
    def reply(self, data, properties, source, size, compressed, whole):
        side, number = self._draw_unanswered(data)
        message = Message(properties, SOURCES[source][:size], compressed=compressed)
        self._reply(side, number, message, whole=whole)

    @precondition(lambda self: any(side.feeding for side in self.sides))
    @rule(data=st.data(), source=sources, size=sizes, last=st.booleans())
    def feed(self, data, source, size, last):
        side = data.draw(st.sampled_from([n for n in (0, 1) if self.sides[n].feeding]))
        number = data.draw(st.sampled_from(sorted(self.sides[side].feeding)))
        self._feed(self.sides[side], number, SOURCES[source][:size], last=last)

    @precondition(lambda self: any(side.unconsumed for side in self.sides))
    @rule(data=st.data(), count=st.integers(1, 10))
    def consume(self, data, count):
        side = data.draw(st.sampled_from([n for n in (0, 1) if self.sides[n].unconsumed]))
        for _ in range(min(count, len(self.sides[side].unconsumed))):
            self._consume(self.sides[side])

    @precondition(lambda self: any(side.unanswered for side in self.sides))
    @rule(data=st.data(), code=st.integers(-99, 999), text=st.sampled_from(("", "no", "x" * 300)))
    def send_error(self, data, code, text):
        side, number = self._draw_unanswered(data)
        self._refuse(side, number, code, text)

    def _draw_unanswered(self, data):
        side = data.draw(st.sampled_from([n for n in (0, 1) if self.sides[n].unanswered]))
        return side, data.draw(st.sampled_from(sorted(self.sides[side].unanswered)))

    def _draw_unanswered(self, data):
        side = data.draw(st.sampled_from([n for n in (0, 1) if self.sides[n].unanswered]))
        return side, data.draw(st.sampled_from(sorted(self.sides[side].unanswered)))

    @rule(side=sides, number=st.integers(0, 30))
    def answer_what_awaits_no_reply(self, side, number):
        if number not in self.sides[side].unanswered:
            self._check_unanswerable(self.sides[side].connection, number)

    def _has_room(self):
        """Whether the limits allow for another message in each direction."""
        return all(
            len({*side.outgoing, *side.arriving}) < LIMITS["INCOMPLETE_MESSAGES_MAX"] // 2
            for side in self.sides
        )

    def _request(self, sender, message, *, in_parts=False):
        number = sender.connection.send_request(message, in_parts=in_parts)
        sender.requests += 1
        assert number == sender.requests
        if not message.no_reply:
            sender.awaiting.add(number)
            if in_parts:
                sender.in_parts.add(number)
        self._queue(sender, (False, number), message, REQUEST, urgent=message.urgent)

    def _reply(self, side, number, message, *, whole):
        answerer = self.sides[side]
        key, urgent = (True, number), answerer.unanswered.pop(number)
        if whole:
            answerer.connection.send_reply(number, message)
        else:
            answerer.feeding[number] = answerer.connection.begin_reply(number, message)
        in_parts = number in self.sides[1 - side].in_parts
        self._queue(answerer, key, message, REPLY, urgent=urgent, whole=whole, in_parts=in_parts)
        self._check_unanswerable(answerer.connection, number)

    def _feed(self, answerer, number, piece, *, last):
        key, reply = (True, number), answerer.feeding[number]
        answerer.connection.feed(reply, piece, last=last)
        sent = answerer.outgoing[key]
        sent.data += piece
        sent.whole = last
        if sent.starved:
            answerer.go_on(key)
        if last:
            del answerer.feeding[number]

    def _consume(self, receiver):
        arriving, part = receiver.unconsumed.pop(0)
        receiver.connection.consumed(part)
        arriving.take(part.wire_bytes)

    def _refuse(self, side, number, code, text):
        answerer = self.sides[side]
        answerer.connection.send_error(number, "HTTP", code, text)
        urgent = answerer.unanswered.pop(number)
        properties = {"Error-Domain": "HTTP", "Error-Code": str(code)}
        self._queue(
            answerer, (True, number), Message(properties, text.encode()), ERROR, urgent=urgent
        )

    def _check_unanswerable(self, connection, number):
        with pytest.raises(LocalProtocolError):
            connection.send_reply(number, Message({}))
        with pytest.raises(LocalProtocolError):
            connection.send_error(number, "HTTP", 500)

    def _queue(self, sender, key, message, kind, *, urgent, whole=True, in_parts=False):
        flags = kind
        flags |= URGENT if urgent else 0
        flags |= COMPRESSED if message.compressed and sender.level else 0
        flags |= NO_REPLY if message.no_reply else 0
        sender.add(key, Sent(encode(message), flags, whole, in_parts))

    # --- Moving ----------------------------------------------------------------------------------

    @rule(side=sides, count=st.integers(1, 30))
    def send_frames(self, side, count):
        for _ in range(count):
            if not self._send_frame(side):
                return

    @rule(rounds=st.integers(1, 30))
    def move_frames(self, rounds):
        """Both sides send and receive, as they do most of the time."""
        for _ in range(rounds):
            for side in (0, 1):
                self._send_frame(side)
                self._receive_frame(side)

    @rule(side=sides, count=st.integers(1, 30))
    def receive_frames(self, side, count):
        for _ in range(count):
            if not self._receive_frame(side):
                return

    @rule(
        side=sides,
        data=st.data(),
        count=st.sampled_from((0, 2**64 - 1)) | st.integers(0, 2 * MESSAGE_BYTES),
    )
    def repeat_or_invent_an_acknowledgement(self, side, data, count):
        """What is late says nothing; what is untrue opens no window wider than what was sent."""
        sender = self.sides[side]
        begun = [key for key, sent in sender.outgoing.items() if sent.begun]
        of_reply, number = data.draw(st.sampled_from(begun or [(False, 1), (True, 1_000)]))
        flags = (ACK_REPLY if of_reply else ACK_REQUEST) | URGENT | NO_REPLY
        raw = to_uvarint(number) + to_uvarint(flags) + to_uvarint(count)
        assert sender.connection.receive_frame(raw) == []
        sender.acknowledge((of_reply, number), count)

    @rule(side=sides, kind=st.sampled_from((3, 6, 7)), number=st.integers(0, 30))
    def do_what_has_no_effect(self, side, kind, number):
        """A frame of a type yet to be invented, and an answer that is not awaited."""
        connection = self.sides[side].connection
        assert connection.receive_frame(to_uvarint(number) + to_uvarint(kind) + b"?") == []
        if number not in self.sides[side].unanswered:
            self._check_unanswerable(connection, number)

    def _send_frame(self, side):
        sender = self.sides[side]
        raw = sender.connection.next_frame()
        if raw is None:
            # Everything is sent, or waits for acknowledgements.
            assert not sender.queue
            return False
        frame = sender.reader.read(raw)
        sender.wire.append((raw, frame))
        if frame.kind in (ACK_REQUEST, ACK_REPLY):
            self._check_acknowledgement(side, frame)
        else:
            self._check_frame(sender, frame)
        return True

    def _check_acknowledgement(self, side, frame):
        """It tells how much had arrived when it became due."""
        arriving = self.sides[1 - side].arriving[frame.key]
        assert frame.acknowledged == arriving.due_bytes > arriving.told_bytes
        arriving.told_bytes = frame.acknowledged

    def _check_frame(self, sender, frame):
        assert frame.key == sender.queue.pop(0)
        sent = sender.outgoing[frame.key]
        bytes_max = LIMITS["FRAME_BYTES_MAX"]
        urgent_waits = sender.queue and sender.outgoing[sender.queue[0]].flags & URGENT
        if urgent_waits and not sent.flags & URGENT:
            bytes_max = LIMITS["FRAME_BYTES_WHEN_URGENT_WAITS"]
        assert frame.size <= bytes_max
        if not sent.begun:
            sent.begun = True
            sender.arriving[frame.key] = sent
            if frame.kind == REQUEST:
                sender.begun += 1
                assert frame.number == sender.begun, "requests begin in the order of their numbers"
        sent.seen += frame.piece
        sent.payload_bytes += frame.payload_bytes
        assert sent.data.startswith(sent.seen)
        flags = sent.flags if frame.piece else sent.flags & ~COMPRESSED
        assert frame.flags == flags | (0 if sent.done else MORE)
        if sent.done:
            del sender.outgoing[frame.key]
        else:
            sender.go_on(frame.key)

    def _receive_frame(self, side):
        """Let `side` receive the next frame that the other sent."""
        receiver, sender = self.sides[side], self.sides[1 - side]
        if not sender.wire:
            return False
        raw, frame = sender.wire.popleft()
        events = receiver.connection.receive_frame(raw)
        if frame.kind in (ACK_REQUEST, ACK_REPLY):
            assert events == []
            receiver.acknowledge(frame.key, frame.acknowledged)
            return True
        arriving = sender.arriving[frame.key]
        last = not frame.flags & MORE
        if last:
            # Nothing of it can be under way any more.
            del sender.arriving[frame.key]
        if arriving.in_parts and frame.kind == REPLY:
            self._check_parts(receiver, frame, arriving, events)
        elif last:
            (event,) = events
            self._check_event(receiver, frame, arriving, event)
        else:
            assert events == []
            arriving.take(frame.payload_bytes)
        if last and frame.kind != REQUEST:
            receiver.awaiting.remove(frame.number)
        return True

    def _check_parts(self, receiver, frame, arriving, events):
        """Each part is handed on once the properties are there."""
        assert len(events) <= 1
        for event in events:
            assert (event.number, event.last) == (frame.number, not frame.flags & MORE)
            assert (event.properties is None) == bool(arriving.parts)
            arriving.parts.append(event)
            receiver.unconsumed.append((arriving, event))
        if frame.flags & MORE:
            return
        body = b"".join(part.data for part in arriving.parts)
        assert encode(Message(arriving.parts[0].properties, body)) == arriving.data
        assert sum(part.wire_bytes for part in arriving.parts) == arriving.payload_bytes

    def _check_event(self, receiver, frame, arriving, event):
        assert event.number == frame.number
        if isinstance(event, ErrorReceived):
            assert frame.kind == ERROR
            properties = {"Error-Domain": event.domain, "Error-Code": str(event.code)}
            assert encode(Message(properties, event.text.encode())) == arriving.data
        else:
            message = event.message
            assert isinstance(event, RequestReceived if frame.kind == REQUEST else ReplyReceived)
            assert encode(message) == arriving.data
            flags = frame.kind
            flags |= COMPRESSED if message.compressed else 0
            flags |= URGENT if message.urgent else 0
            flags |= NO_REPLY if message.no_reply else 0
            assert flags == arriving.flags
        if frame.kind == REQUEST and not frame.flags & NO_REPLY:
            receiver.unanswered[frame.number] = bool(frame.flags & URGENT)

    # --- What must hold --------------------------------------------------------------------------

    @invariant()
    def acknowledgements_are_sent_in_time(self):
        for receiver, sender in self._directions():
            if not receiver.connection.has_work:
                for sent in sender.arriving.values():
                    assert sent.told_bytes == sent.due_bytes

    @invariant()
    def what_is_unsent_is_counted(self):
        for side, _ in self._directions():
            unsent = sum(sent.unsent for sent in side.outgoing.values())
            assert side.connection.unsent_bytes == unsent

    def _directions(self):
        return (self.sides, self.sides[::-1]) if self.sides else ()

    # --- Ends ------------------------------------------------------------------------------------

    def teardown(self):
        with self.cleanup:
            self.end()

    def drain(self):
        """Everything arrives in the end, also what is answered then, and nothing is kept of it."""
        self._move_everything()
        for side, answerer in enumerate(self.sides):
            for number in sorted(answerer.feeding):
                self._feed(answerer, number, b"", last=True)
            for number in sorted(answerer.unanswered):
                self._refuse(side, number, 404, "not here")
        for sender in self.sides:
            for _ in range(2 * LIMITS["INCOMPLETE_MESSAGES_MAX"]):
                self._request(sender, Message({}, SOURCES["random"][:1_000], no_reply=True))
                self._move_everything()
        for side, _ in self._directions():
            assert not side.outgoing
            assert not side.arriving
            assert not side.awaiting
            assert not side.connection.has_work
            assert side.begun == side.requests
            assert side.connection.close() == []

    def close(self):
        """Whoever closes learns what stays unanswered, and takes and sends nothing more."""
        for side, other in self._directions():
            assert side.connection.close() == sorted(side.awaiting)
            assert not side.connection.has_work
            assert side.connection.next_frame() is None
            with pytest.raises(LocalProtocolError):
                side.connection.send_request(Message({}))
            for raw, _ in other.wire:
                assert side.connection.receive_frame(raw) == []

    def break_(self):
        """A damaged frame, or one that is out of order, is the end, whatever follows."""
        for turn, (receiver, sender) in enumerate(self._directions()):
            self._request(sender, Message({}, SOURCES["text"][:100]))
            raw, frame = self._next_piece(self.sides.index(sender))
            following = to_uvarint(sender.begun + 2) + raw[1:]
            damages = (
                raw[:-1] + bytes((raw[-1] ^ 1,)),
                raw[:2],
                following if frame.kind == REQUEST and frame.number < 0x80 else b"",
                to_uvarint(receiver.requests + 1) + to_uvarint(REPLY) + raw[2:],
                b"",
            )
            with pytest.raises(RemoteProtocolError):
                receiver.connection.receive_frame(damages[self.damage - turn])
            with pytest.raises(RemoteProtocolError):
                receiver.connection.receive_frame(raw)

    def _next_piece(self, side):
        """The next frame of a message to be received; what comes before it is."""
        while True:
            while not self.sides[side].wire:
                # It may have to wait for acknowledgements.
                if not self._send_frame(side):
                    while self.sides[1 - side].unconsumed:
                        self._consume(self.sides[1 - side])
                    self._send_frame(1 - side)
                    self._receive_frame(side)
            raw, frame = self.sides[side].wire[0]
            if frame.kind < ACK_REQUEST:
                return raw, frame
            self._receive_frame(1 - side)

    def _move_everything(self):
        while any([self._send_frame(side) or self._receive_frame(side) for side in (0, 1)]):
            for side in self.sides:
                while side.unconsumed:
                    self._consume(side)


def test_whatever_the_order_all_messages_arrive_whole_and_in_turns():
    run_state_machine_as_test(Mux, settings=settings(stateful_step_count=60))


# --- Messages of another implementation -----------------------------------------------------------

foreign_messages = st.builds(
    lambda properties, source, size, flags: (
        Message(properties, SOURCES[source][:size]),
        flags,
    ),
    properties,
    sources,
    st.integers(0, 1_500),
    st.sampled_from((0, URGENT, NO_REPLY, URGENT | NO_REPLY)),
)


def receive_foreign_messages(sent, data):
    """Cut anywhere, also inside the properties and into nothing, and mixed in any way."""
    with mock.patch.multiple(limits, **LIMITS):
        receiver, writer = Connection(), Writer()
        left = {number: encode(message) for number, (message, _) in enumerate(sent, start=1)}
        begun, arrived, received_bytes = 0, {}, dict.fromkeys(left, 0)
        while left:
            number = data.draw(st.sampled_from([n for n in left if n <= begun + 1]))
            begun = max(begun, number)
            size = data.draw(st.sampled_from((len(left[number]), 150, 20, 1, 0)))
            piece, left[number] = left[number][:size], left[number][size:]
            flags = sent[number - 1][1] | data.draw(st.sampled_from((0, COMPRESSED)))
            if left[number]:
                flags |= MORE
            else:
                del left[number]
            raw = writer.write(number, flags, piece)
            received_bytes[number] += len(raw) - 2
            for event in receiver.receive_frame(raw):
                arrived[event.number] = event.message
            while (acknowledgement := receiver.next_frame()) is not None:
                frame = Reader().read(acknowledgement)
                assert frame.key == (False, number)
                assert frame.acknowledged == received_bytes[number]
        assert {n: encode(message) for n, message in arrived.items()} == {
            n: encode(message) for n, (message, _) in enumerate(sent, start=1)
        }
        for number, (_, flags) in enumerate(sent, start=1):
            assert arrived[number].urgent == bool(flags & URGENT)
            assert arrived[number].no_reply == bool(flags & NO_REPLY)


@given(sent=st.lists(foreign_messages, max_size=8), data=st.data())
def test_a_peer_may_cut_and_mix_its_messages_in_any_way(sent, data):
    receive_foreign_messages(sent, data)
