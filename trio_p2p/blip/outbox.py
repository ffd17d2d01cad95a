"""What waits to be sent: whose turn it is, and who must wait for acknowledgements.

Messages take turns, one frame each, so that a large one does not hold up the others. Urgent ones
go ahead, but leave every other turn to a normal one. A message of which too much is unacknowledged
leaves the queue until the receiver has caught up. Source: LiteCore's BLIPConnection.cc.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from trio_p2p import limits
from trio_p2p.blip.compress import DEFLATE_OVERHEAD_BYTES
from trio_p2p.blip.frames import (
    CHECKSUM_BYTES,
    HEADER_BYTES_MAX,
    NO_REPLY,
    REQUEST,
    TYPE_MASK,
    URGENT,
)

FRAME_OVERHEAD_BYTES: Final = HEADER_BYTES_MAX + CHECKSUM_BYTES + DEFLATE_OVERHEAD_BYTES


@dataclass(slots=True, eq=False)
class Outgoing:
    """A message on its way out: `offset` bytes of `data` are framed already.

    Unless it is `whole`, more of it will be fed. `sent_bytes` and `acknowledged_bytes` count as
    receivers do: payloads as they are on the wire, checksums included.
    """

    number: int
    flags: int
    data: bytes
    whole: bool = True
    begun: bool = False
    starved: bool = False
    offset: int = 0
    sent_bytes: int = 0
    acknowledged_bytes: int = 0
    stalled: bool = False

    @property
    def key(self) -> tuple[bool, int]:
        """What acknowledgements name it by: whether it is a reply, and its number."""
        return self.flags & TYPE_MASK != REQUEST, self.number

    @property
    def is_unbounded(self) -> bool:
        """Whether there may be any number of messages like this one, waiting to be sent."""
        return self.flags & TYPE_MASK != REQUEST or bool(self.flags & NO_REPLY)

    @property
    def unsent_bytes(self) -> int:
        """How much of it is there and not framed yet."""
        return len(self.data) - self.offset

    @property
    def window_full(self) -> bool:
        """Whether the receiver must acknowledge before more of it may be sent."""
        return self.sent_bytes - self.acknowledged_bytes >= limits.UNACKNOWLEDGED_BYTES_MAX


class Outbox:
    """The queue of outgoing messages; `unsent_bytes` of them are not framed yet.

    `unbounded_bytes` is what those messages take that no window of ours bounds: replies, of which
    the peer asks for as many as it likes, and requests that want no answer.
    """

    def __init__(self) -> None:
        self.unsent_bytes = 0
        self.unbounded_bytes = 0
        self._queue: deque[Outgoing] = deque()
        self._begun: dict[tuple[bool, int], Outgoing] = {}

    @property
    def has_work(self) -> bool:
        """Whether there is anything to send, now or once it is acknowledged what was sent."""
        return bool(self._queue) or self.unsent_bytes > 0

    def add(self, message: Outgoing) -> None:
        """Queue a new message."""
        self._count(message, len(message.data))
        if message.is_unbounded:
            self.unbounded_bytes += limits.OUTGOING_BYTES
        self._enqueue(message)

    def take(self) -> tuple[Outgoing, bytes | memoryview] | None:
        """Take the next message off the queue, with the piece of it that the next frame carries.

        `sent` must follow before anything else is done with the outbox.
        """
        if not self._queue:
            return None
        message = self._queue.popleft()
        bytes_max = self._frame_bytes_max(message) - FRAME_OVERHEAD_BYTES
        if not message.begun and len(message.data) <= bytes_max:
            return message, message.data
        return message, memoryview(message.data)[message.offset : message.offset + bytes_max]

    def sent(self, message: Outgoing, piece_bytes: int, wire_bytes: int) -> None:
        """Note that a piece was framed; the message queues again if there is more of it."""
        self._count(message, -piece_bytes)
        message.offset += piece_bytes
        message.sent_bytes += wire_bytes
        message.begun = True
        if message.whole and not message.unsent_bytes:
            self._begun.pop(message.key, None)
            if message.is_unbounded:
                self.unbounded_bytes -= limits.OUTGOING_BYTES
            return
        self._begun[message.key] = message
        self._queue_again(message)

    def feed(self, message: Outgoing, data: bytes, *, last: bool) -> None:
        """Add to a message that is not whole yet."""
        message.data = message.data[message.offset :] + data
        message.offset = 0
        message.whole = last
        self._count(message, len(data))
        if message.starved:
            self._queue_again(message)

    def acknowledge(self, key: tuple[bool, int], bytes_received: int) -> None:
        """Note how much of a message has arrived; one that waited for it queues again.

        An acknowledgement of a message that is not under way comes late and says nothing.
        """
        message = self._begun.get(key)
        if message is None:
            return
        # A peer that claims more than was sent must not get an endless window.
        received = min(bytes_received, message.sent_bytes)
        message.acknowledged_bytes = max(message.acknowledged_bytes, received)
        if message.stalled:
            self._queue_again(message)

    def clear(self) -> None:
        """Forget every message."""
        self.unsent_bytes = self.unbounded_bytes = 0
        self._queue.clear()
        self._begun.clear()

    def _count(self, message: Outgoing, size: int) -> None:
        self.unsent_bytes += size
        if message.is_unbounded:
            self.unbounded_bytes += size

    def _queue_again(self, message: Outgoing) -> None:
        """Queue a message that was begun, unless there is none of it or its window is full."""
        message.starved = not message.whole and not message.unsent_bytes
        message.stalled = not message.starved and message.window_full
        if not message.starved and not message.stalled:
            self._enqueue(message)

    def _frame_bytes_max(self, message: Outgoing) -> int:
        urgent_waits = self._queue and self._queue[0].flags & URGENT
        if urgent_waits and not message.flags & URGENT:
            return limits.FRAME_BYTES_WHEN_URGENT_WAITS
        return limits.FRAME_BYTES_MAX

    def _enqueue(self, message: Outgoing) -> None:
        if message.flags & URGENT:
            self._queue.insert(self._urgent_place(message), message)
        else:
            self._queue.append(message)

    def _urgent_place(self, message: Outgoing) -> int:
        """Find the place of an urgent message in the queue.

        It goes behind the last urgent one with a normal one between, else behind the first. A new
        message stays behind every other new one: requests must begin in the order of their numbers.
        """
        place = len(self._queue)
        for waiting in reversed(self._queue):
            if waiting.flags & URGENT:
                return place + 1
            if not message.begun and not waiting.begun:
                return place
            place -= 1
        return 1
