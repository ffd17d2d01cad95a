"""One BLIP connection without I/O: frames in, events out; messages in, frames out.

Both sides use the same class. Requests are numbered as they are queued: a message never overtakes
one that has not begun, so these are the numbers in which they begin. Whatever the peer does wrong
is a RemoteProtocolError and the end of the connection: the deflate stream and the checksum cannot
be picked up again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from trio_p2p import limits
from trio_p2p.blip import frames, varint
from trio_p2p.blip import message as messages
from trio_p2p.blip.compress import Deflater, Inflater
from trio_p2p.blip.message import Message
from trio_p2p.blip.outbox import Outbox, Outgoing
from trio_p2p.errors import LocalProtocolError, RemoteProtocolError
from trio_p2p.hearsay import repeatable

ERROR_DOMAIN: Final = "Error-Domain"
ERROR_CODE: Final = "Error-Code"
ERROR_DOMAIN_DEFAULT: Final = "BLIP"
# Of one character.
UTF8_BYTES_MAX: Final = 4
# Enough for the properties that tell what a request is about.
_BEGINNING_BYTES: Final = 1024

_DECIMAL: Final = re.compile(r"-?[0-9]{1,10}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """The peer's request `number` is complete; unless `no_reply`, it must be answered."""

    number: int
    message: Message


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """The reply to our request `number` is complete."""

    number: int
    message: Message


@dataclass(frozen=True, slots=True)
class ErrorReceived:
    """The peer answered our request `number` with an error."""

    number: int
    domain: str
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class PartReceived:
    """A part of the reply to our request `number`, which was sent to get one in parts.

    The first one has the properties, the others None. Each must be given back to
    `Connection.consumed`: no more than a window of them comes before.
    """

    number: int
    properties: Mapping[str, str] | None
    data: bytes
    last: bool
    wire_bytes: int


Event = RequestReceived | ReplyReceived | ErrorReceived | PartReceived


@dataclass(slots=True, eq=False)
class _Incoming:
    """A message of which more is coming. `flags` are those of its first frame.

    One growing buffer: a list of pieces would let a peer that sends them in single bytes occupy
    many times what it sends.
    """

    flags: int
    in_parts: bool
    data: bytearray = field(default_factory=bytearray)
    has_properties: bool = False
    wire_bytes: int = 0
    consumed_wire_bytes: int = 0
    acknowledged_bytes: int = 0


class Connection:
    """The state of one connection; it belongs to one task at a time.

    `compression_level` is zlib's, 1 to 9; with 0 no outgoing message is compressed.
    """

    def __init__(self, *, compression_level: int = 6) -> None:
        self._compression = compression_level > 0
        self._deflater = Deflater(compression_level)
        self._inflater = Inflater()
        self._outbox = Outbox()
        # Messages of the peer whose progress it is to be told: only the newest count matters.
        self._acknowledgements: dict[tuple[bool, int], int] = {}
        self._requests_sent = 0
        # Our requests without a reply: number to whether they are sent whole.
        self._awaiting: dict[int, bool] = {}
        # Those of them whose reply is wanted in parts.
        self._in_parts: set[int] = set()
        self._requests_begun = 0
        # The peer's requests that it wants a reply to: number to whether that is urgent.
        self._unanswered: dict[int, bool] = {}
        self._incomplete: dict[tuple[bool, int], _Incoming] = {}
        self._incomplete_bytes = 0
        self.deflated_bytes = 0
        """How many bytes of payload came deflated."""
        self.inflated_bytes = 0
        """What they were inflated to."""
        self._failure: str | None = None
        self._closed = False

    @property
    def unsent_bytes(self) -> int:
        """How many bytes of queued messages are not framed yet, before compression."""
        return self._outbox.unsent_bytes

    @property
    def has_work(self) -> bool:
        """Whether `next_frame` may have something to send."""
        return bool(self._acknowledgements) or self._outbox.has_work

    @property
    def held_bytes(self) -> int:
        """How many bytes of messages are held that the peer has not finished or not taken yet."""
        return self._incomplete_bytes + self._outbox.unbounded_bytes

    @property
    def has_incomplete(self) -> bool:
        """Whether there are messages of which more is coming."""
        return bool(self._incomplete)

    def incomplete(self) -> dict[tuple[bool, int], int]:
        """How much of each incomplete message has come; not of those we hold back ourselves."""
        return {
            key: incoming.wire_bytes
            for key, incoming in self._incomplete.items()
            if not incoming.in_parts
        }

    def unfinished_requests(self) -> Iterator[tuple[int, bytes]]:
        """The numbers of the peer's requests that have begun and are not complete, ascending.

        With each comes how it begins: its properties, mostly.
        """
        for (is_reply, number), incoming in self._incomplete.items():
            if not is_reply:
                yield number, bytes(incoming.data[:_BEGINNING_BYTES])

    def send_request(self, message: Message, *, in_parts: bool = False) -> int:
        """Queue a request and return its number. Its reply may be wanted `in_parts`, as they come.

        Raises: LocalProtocolError if the message cannot be sent or the connection is closed.
        """
        if self._closed:
            raise LocalProtocolError("the connection is closed")
        flags = frames.REQUEST | (frames.NO_REPLY if message.no_reply else 0)
        self._queue(self._requests_sent + 1, flags, message, urgent=message.urgent)
        self._requests_sent += 1
        if not message.no_reply:
            self._awaiting[self._requests_sent] = False
            if in_parts:
                self._in_parts.add(self._requests_sent)
        return self._requests_sent

    def send_reply(self, number: int, message: Message) -> None:
        """Queue the reply to the peer's request `number`; it is urgent if the request was.

        Raises: LocalProtocolError if that request awaits no reply or the message cannot be sent.
        """
        self._answer(number, frames.REPLY, message)

    def begin_reply(self, number: int, message: Message) -> Outgoing:
        """Queue the beginning of a reply that `feed` adds to, until the last part.

        Raises: LocalProtocolError if that request awaits no reply or the message cannot be sent.
        """
        return self._answer(number, frames.REPLY, message, whole=False)

    def feed(self, reply: Outgoing, data: bytes, *, last: bool) -> None:
        """Queue more of a reply. A closed connection ignores it."""
        if not self._closed:
            self._outbox.feed(reply, data, last=last)

    def send_error(self, number: int, domain: str, code: int, text: str = "") -> None:
        """Queue an error as the reply to the peer's request `number`.

        Raises: LocalProtocolError if that request awaits no reply.
        """
        properties = {ERROR_DOMAIN: domain, ERROR_CODE: str(code)}
        self._answer(number, frames.ERROR, Message(properties, text.encode(errors="replace")))

    def next_frame(self) -> bytes | None:
        """Encode the next frame to transmit; None if there is nothing to send at the moment.

        Frames must be transmitted each once, in this order.
        """
        if self._acknowledgements:
            return self._next_acknowledgement()
        taken = self._outbox.take()
        if taken is None:
            return None
        message, piece = taken
        last = message.whole and len(piece) == message.unsent_bytes
        flags = message.flags if last else message.flags | frames.MORE_COMING
        if not piece:
            flags &= ~frames.COMPRESSED
        header = frames.encode_header(message.number, flags)
        frame = self._deflater.encode(header, piece, compressed=bool(flags & frames.COMPRESSED))
        self._outbox.sent(message, len(piece), len(frame) - len(header))
        # From now on a reply is in order. With any other type, `number` is a request of the peer.
        if last and not flags & (frames.TYPE_MASK | frames.NO_REPLY):
            self._awaiting[message.number] = True
        return frame

    def receive_frame(self, data: bytes) -> list[Event]:
        """Take a frame from the peer and return what it completes. A closed connection ignores it.

        Raises: RemoteProtocolError if the peer broke the protocol; then each further call does.
        """
        if self._closed:
            return []
        if self._failure is not None:
            raise RemoteProtocolError("the connection has failed", cause=self._failure)
        try:
            return self._receive(data)
        except RemoteProtocolError as exc:
            self._failure = exc.message
            raise

    def consumed(self, part: PartReceived) -> None:
        """Let the peer send more: a part of a reply was taken care of."""
        self._incomplete_bytes -= len(part.data)
        key = (True, part.number)
        incoming = self._incomplete.get(key)
        if incoming is not None:
            incoming.consumed_wire_bytes += part.wire_bytes
            self._acknowledge(key, incoming, incoming.consumed_wire_bytes)

    def close(self) -> list[int]:
        """Forget everything under way; return the numbers of our requests without a reply."""
        awaiting = list(self._awaiting)
        self._closed = True
        self._outbox.clear()
        self._acknowledgements.clear()
        self._awaiting.clear()
        self._in_parts.clear()
        self._unanswered.clear()
        self._incomplete.clear()
        return awaiting

    # --- Sending ---------------------------------------------------------------------------------

    def _answer(self, number: int, kind: int, message: Message, *, whole: bool = True) -> Outgoing:
        urgent = self._unanswered.get(number)
        if urgent is None:
            raise LocalProtocolError("this request awaits no reply", number=number)
        queued = self._queue(number, kind, message, urgent=urgent, whole=whole)
        del self._unanswered[number]
        return queued

    def _queue(
        self, number: int, flags: int, message: Message, *, urgent: bool, whole: bool = True
    ) -> Outgoing:
        if urgent:
            flags |= frames.URGENT
        if message.compressed and self._compression:
            flags |= frames.COMPRESSED
        queued = Outgoing(number, flags, messages.encode_data(message), whole)
        self._outbox.add(queued)
        return queued

    def _next_acknowledgement(self) -> bytes:
        key = next(iter(self._acknowledgements))
        of_reply, number = key
        bytes_received = self._acknowledgements.pop(key)
        return frames.encode_acknowledgement(number, bytes_received, of_reply=of_reply)

    # --- Receiving -------------------------------------------------------------------------------

    def _receive(self, frame: bytes) -> list[Event]:
        if len(frame) > limits.TRANSPORT_MESSAGE_BYTES_MAX:
            raise RemoteProtocolError("a frame is too large", bytes=len(frame))
        number, flags, start = frames.decode_header(frame)
        kind = flags & frames.TYPE_MASK
        if kind <= frames.ERROR:
            return self._receive_piece(frame, start, number, flags)
        if kind in (frames.ACK_REQUEST, frames.ACK_REPLY):
            bytes_received, _ = varint.decode(frame, start)
            self._outbox.acknowledge((kind == frames.ACK_REPLY, number), bytes_received)
        # Frames of types still to be invented are dropped whole. They touch neither the deflate
        # stream nor the checksum: so do LiteCore and go-blip, and whoever sends one must know.
        return []

    def _receive_piece(self, frame: bytes, start: int, number: int, flags: int) -> list[Event]:
        key = (flags & frames.TYPE_MASK != frames.REQUEST, number)
        incoming = self._incomplete.get(key)
        if incoming is None:
            self._check_first(key)
            in_parts = flags & frames.TYPE_MASK == frames.REPLY and number in self._in_parts
            if not flags & frames.MORE_COMING and not in_parts:
                data = self._decode(frame, start, flags, limits.MESSAGE_BYTES_MAX)
                return [self._complete(number, flags, data)]
            incoming = self._begin(key, flags, in_parts=in_parts)
        self._append(incoming, frame, start, flags)
        if incoming.in_parts:
            last = not flags & frames.MORE_COMING
            return self._part(key, incoming, len(frame) - start, last=last)
        if flags & frames.MORE_COMING:
            self._acknowledge(key, incoming, incoming.wire_bytes)
            return []
        del self._incomplete[key]
        self._acknowledgements.pop(key, None)
        self._incomplete_bytes -= len(incoming.data)
        return [self._complete(number, incoming.flags, bytes(incoming.data))]

    def _check_first(self, key: tuple[bool, int]) -> None:
        is_reply, number = key
        if is_reply:
            if not self._awaiting.get(number):
                raise RemoteProtocolError("a reply to no request of ours", number=number)
        elif number == self._requests_begun + 1:
            self._requests_begun = number
        else:
            expected = self._requests_begun + 1
            raise RemoteProtocolError("a request out of order", number=number, expected=expected)

    def _begin(self, key: tuple[bool, int], flags: int, *, in_parts: bool) -> _Incoming:
        if len(self._incomplete) >= limits.INCOMPLETE_MESSAGES_MAX:
            raise RemoteProtocolError("too many messages at once", messages=len(self._incomplete))
        incoming = self._incomplete[key] = _Incoming(flags, in_parts)
        return incoming

    def _append(self, incoming: _Incoming, frame: bytes, start: int, flags: int) -> None:
        bytes_left = min(
            limits.MESSAGE_BYTES_MAX - len(incoming.data),
            limits.INCOMPLETE_BYTES_MAX - self._incomplete_bytes,
        )
        piece = self._decode(frame, start, flags, bytes_left)
        incoming.data += piece
        incoming.wire_bytes += len(frame) - start
        self._incomplete_bytes += len(piece)

    def _decode(self, frame: bytes, start: int, flags: int, bytes_max: int) -> bytes:
        compressed = bool(flags & frames.COMPRESSED)
        piece = self._inflater.decode(frame, start, compressed=compressed, bytes_max=bytes_max)
        if compressed:
            self.deflated_bytes += len(frame) - start
            self.inflated_bytes += len(piece)
        return piece

    def _acknowledge(self, key: tuple[bool, int], incoming: _Incoming, wire_bytes: int) -> None:
        if wire_bytes - incoming.acknowledged_bytes >= limits.ACK_INTERVAL_BYTES:
            incoming.acknowledged_bytes = wire_bytes
            self._acknowledgements[key] = wire_bytes

    def _part(
        self, key: tuple[bool, int], incoming: _Incoming, wire_bytes: int, *, last: bool
    ) -> list[Event]:
        """Hand on what arrived of a message that is wanted in parts."""
        unconsumed = incoming.wire_bytes - incoming.consumed_wire_bytes
        if unconsumed > limits.UNACKNOWLEDGED_BYTES_MAX + limits.TRANSPORT_MESSAGE_BYTES_MAX:
            raise RemoteProtocolError("the window of a message was ignored", bytes=unconsumed)
        properties, body = None, bytes(incoming.data)
        if not incoming.has_properties:
            if not last and not messages.has_properties(body):
                return []
            arrived = len(body)
            properties, body = messages.decode_data(body)
            incoming.has_properties = True
            self._incomplete_bytes -= arrived - len(body)
            wire_bytes = incoming.wire_bytes
        incoming.data.clear()
        if last:
            del self._incomplete[key], self._awaiting[key[1]]
            self._in_parts.discard(key[1])
            self._acknowledgements.pop(key, None)
        return [PartReceived(key[1], properties, body, last, wire_bytes)]

    def _complete(self, number: int, flags: int, data: bytes) -> Event:
        properties, body = messages.decode_data(data)
        urgent = bool(flags & frames.URGENT)
        compressed = bool(flags & frames.COMPRESSED)
        kind = flags & frames.TYPE_MASK
        if kind == frames.REQUEST:
            no_reply = bool(flags & frames.NO_REPLY)
            if not no_reply:
                if len(self._unanswered) >= limits.REQUESTS_UNANSWERED_MAX:
                    raise RemoteProtocolError("too many requests at once", number=number)
                self._unanswered[number] = urgent
            return RequestReceived(number, Message(properties, body, urgent, compressed, no_reply))
        del self._awaiting[number]
        self._in_parts.discard(number)
        if kind == frames.ERROR:
            return _error(number, properties, body)
        return ReplyReceived(number, Message(properties, body, urgent, compressed))


def _error(number: int, properties: dict[str, str], body: bytes) -> ErrorReceived:
    code = properties.get(ERROR_CODE, "")
    if not _DECIMAL.fullmatch(code):
        raise RemoteProtocolError("an error without a numeric code", number=number, code=code)
    domain = repeatable(properties.get(ERROR_DOMAIN, ERROR_DOMAIN_DEFAULT))
    # The text is for people to read: better mangled than the end of the connection.
    text = body[: UTF8_BYTES_MAX * limits.HEARSAY_CHARACTERS_MAX].decode(errors="replace")
    return ErrorReceived(number, domain, int(code), repeatable(text))
