"""A peer: BLIP over one transport, with one reader and one writer.

The reader only parses and hands on; it never waits for anything but the transport, or two busy
peers could each wait for the other to read. The writer alone encodes and sends frames, because
encoding a frame changes the state of the connection and must happen once, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Hashable, Iterator, Mapping
from typing import NoReturn, Protocol, TypeVar

import trio

from trio_p2p import limits
from trio_p2p.blip import (
    Connection,
    ErrorReceived,
    Message,
    Outgoing,
    PartReceived,
    ReplyReceived,
    RequestReceived,
)
from trio_p2p.blip.load import Budget, Inflation, Progress, Share
from trio_p2p.errors import ConnectionLostError, PeerError, RemoteProtocolError
from trio_p2p.transport.base import MessageTransport

COMPRESSION_LEVEL = 6
"""What LiteCore uses."""

OnRequest = Callable[[int, Message], None]
Prepare = Callable[[Message], Callable[[int], None]]
OnReply = Callable[[Message | PeerError | ConnectionLostError], None]


T = TypeVar("T")


class RunSync(Protocol):
    """Calls a function that may take long, and returns what it does."""

    def __call__(self, function: Callable[..., T], *args: object) -> Awaitable[T]: ...


class Pending:
    """A request whose reply is awaited."""

    def __init__(self) -> None:
        self._settled = trio.Event()
        self._reply: Message | PeerError | ConnectionLostError | None = None

    def settle(self, reply: Message | PeerError | ConnectionLostError) -> None:
        """The reply, or what came in its place, is there."""
        self._reply = reply
        self._settled.set()

    async def wait(self) -> Message:
        """Wait for the reply. Raises PeerError, ConnectionLostError. Cancelling: safe."""
        await self._settled.wait()
        match self._reply:
            case Message() as reply:
                return reply
            case PeerError() as error:
                raise error
            case lost:
                assert lost is not None
                raise _again(lost) from lost


class PartialReply:
    """A reply that comes in parts. Leave it by `abandon` if it is not read to its end."""

    def __init__(self, consumed: Callable[[PartReceived], None]) -> None:
        self.properties: Mapping[str, str] = {}
        """Those of the reply, once its first part was received."""
        self._consumed = consumed
        self._parts: deque[PartReceived] = deque()
        self._failure: PeerError | ConnectionLostError | None = None
        self._ended = False
        self._abandoned = False
        self._changed = trio.Event()

    async def receive(self) -> bytes:
        """What has come and was not received yet; empty at the end.

        What is received lets the peer send more, so that no more than a window of it is ever held.

        Raises: PeerError if the peer answered with an error, ConnectionLostError.
        Cancelling: safe.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if data := self._take():
                return data
            if self._failure is not None:
                raise _again(self._failure) from self._failure
            if self._ended:
                return b""
            await self._changed.wait()

    def abandon(self) -> None:
        """Drop the rest of it, which still comes."""
        self._abandoned = True
        self._take()

    def add(self, part: PartReceived) -> None:
        """A part came. Called by the reader."""
        if part.properties is not None:
            self.properties = part.properties
        self._parts.append(part)
        self._ended = part.last
        if self._abandoned:
            self._take()
        self._wake()

    def fail(self, failure: PeerError | ConnectionLostError) -> None:
        """No more will come. Called by the reader."""
        if not self._ended:
            self._failure = failure
            self._wake()

    def _take(self) -> bytes:
        taken = list(self._parts)
        self._parts.clear()
        for part in taken:
            self._consumed(part)
        return b"".join([part.data for part in taken])

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Peer:
    """The other side of one connection.

    `run` must be running for anything to move; everything else may be called at any time before
    the connection ends.
    """

    def __init__(
        self,
        transport: MessageTransport,
        *,
        compression: bool = True,
        budget: Budget | Share | None = None,
        run_sync: RunSync | None = None,
    ) -> None:
        """`budget` is shared with others; `run_sync` calls what takes long, None: in a thread."""
        self._transport = transport
        self._budget = budget
        self._run_sync = run_sync or trio.to_thread.run_sync
        # What is held for the peer's requests until they are answered, by their number, and for
        # what it makes us do beyond that.
        self._held: dict[Hashable, int] = {}
        self._held_bytes = 0
        self._overdrawn = False
        self._incomplete = trio.Event()
        self._blip = Connection(compression_level=COMPRESSION_LEVEL if compression else 0)
        self._waiting: dict[int, OnReply] = {}
        self._partial: dict[int, PartialReply] = {}
        self._moved = trio.Event()
        self._work = trio.Event()
        self._drained = trio.Event()
        self._lost: ConnectionLostError | None = None
        self.bytes_sent = 0
        self.bytes_received = 0

    @property
    def held_bytes(self) -> int:
        """How many bytes the peer makes us hold: requests it awaits a reply to, and what it has not
        finished or not taken yet.
        """
        return self._held_bytes + self._blip.held_bytes

    async def run(
        self,
        on_request: OnRequest,
        prepare: Prepare | None = None,
        is_owed: Callable[[], bool] = lambda: False,
    ) -> NoReturn:
        """Move messages until the connection ends, then raise what ended it.

        `on_request` is called for each request, in order, from the reader: it must not block, and
        answers now or later with `reply` or `refuse`. For a large one `prepare` is called instead,
        in a thread, and then what it returns, with the request's number: so reading it does not
        hold up others. A peer that owes a reply or an acknowledgement and is silent for long is not
        waited for; `is_owed` tells whether it owes anything else.

        Raises: ConnectionLostError (code 1000 after a polite goodbye), RemoteProtocolError.
        Cancelling: ends the connection without a goodbye; close the transport first for one.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._watch_silence, is_owed)
                await self._read(on_request, prepare)
        except* (ConnectionLostError, RemoteProtocolError) as group:
            error = _first(group)
            self._lost = (
                error
                if isinstance(error, ConnectionLostError)
                else ConnectionLostError("the peer broke the protocol", code=1002)
            )
            raise error from group
        finally:
            self._fail_waiting()
        raise AssertionError("the reader ends by raising")

    async def request(self, message: Message) -> Message:
        """Send a request and wait for its reply.

        Raises: PeerError if the peer answered with an error; ConnectionLostError.
        Cancelling: safe; the request may still reach the peer, a late reply is dropped.
        """
        return await self.begin(message).wait()

    def begin(self, message: Message) -> Pending:
        """Queue a request now, to wait for its reply later."""
        pending = Pending()
        self.send(message, pending.settle)
        return pending

    def send(self, message: Message, on_reply: OnReply | None = None) -> None:
        """Queue a request. `on_reply` is called once, with the reply or what came in its place.

        It is called from the reader: it must not block nor raise.
        """
        if self._lost is not None:
            if on_reply is not None:
                on_reply(self._lost)
            return
        number = self._blip.send_request(message)
        if on_reply is not None:
            self._waiting[number] = on_reply
        self._work.set()

    def request_in_parts(self, message: Message) -> PartialReply:
        """Queue a request whose reply may be of any size, and is received in parts."""
        reply = PartialReply(self._part_consumed)
        if self._lost is not None:
            reply.fail(self._lost)
            return reply
        number = self._blip.send_request(message, in_parts=True)
        self._partial[number] = reply
        self._waiting[number] = lambda failure: self._fail_partial(number, failure)
        self._work.set()
        return reply

    async def reply_in_parts(
        self, number: int, message: Message, parts: AsyncIterable[bytes]
    ) -> bool:
        """Send the reply to the peer's request of this number, as fast as the peer takes it.

        What `parts` gives follows the body of `message`. If it raises, the reply ends early.
        Returns whether all of it was given to the transport: not if the connection ended first.

        Raises: what `parts` raises. Cancelling: as if it raised.
        """
        await trio.lowlevel.checkpoint()
        if self._lost is not None:
            return False
        self.release(number)
        reply = self._blip.begin_reply(number, message)
        # A part is queued once the next one is there, so that the last one is known as such.
        waiting = b""
        try:
            async for part in parts:
                self._feed(reply, waiting, last=False)
                waiting = part
                if not await self._all_moved(reply):
                    return False
        finally:
            self._feed(reply, waiting, last=True)
        return await self._all_moved(reply)

    async def _all_moved(self, reply: Outgoing) -> bool:
        """Wait until all that a reply was fed is given to the transport; False if it may not be."""
        while reply.unsent_bytes and self._lost is None:
            await self._moved.wait()
        return self._lost is None

    def reply(self, number: int, message: Message) -> None:
        """Queue the reply to the peer's request of this number."""
        self.release(number)
        if self._lost is None:
            self._blip.send_reply(number, message)
            self._work.set()

    def refuse(self, number: int, domain: str, code: int, text: str = "") -> None:
        """Queue an error in place of a reply."""
        self.release(number)
        if self._lost is None:
            self._blip.send_error(number, domain, code, text)
            self._work.set()

    def hold(self, what: Hashable, size: int) -> None:
        """Count these bytes more as held for the peer until `release`.

        `what` is the number of one of its requests, whose reply releases it, or anything else.
        """
        self._held[what] = self._held.get(what, 0) + size
        self._held_bytes += size

    def release(self, what: Hashable) -> None:
        """Nothing is held for this any more."""
        self._held_bytes -= self._held.pop(what, 0)

    def unfinished_requests(self) -> Iterator[tuple[int, bytes]]:
        """As `Connection.unfinished_requests`."""
        return self._blip.unfinished_requests()

    async def flush(self) -> None:
        """Wait until everything queued has been given to the transport, or the connection ended.

        Cancelling: safe.
        """
        # What the window of a message holds back is not with the writer, but queued all the same.
        while self._lost is None and (self._work.is_set() or self._blip.has_work):
            await self._drained.wait()

    async def _read(self, on_request: OnRequest, prepare: Prepare | None) -> NoReturn:
        inflation = Inflation(trio.current_time())
        while True:
            frame = await self._receive()
            self.bytes_received += len(frame)
            inflated_bytes, deflated_bytes = self._blip.inflated_bytes, self._blip.deflated_bytes
            for event in self._blip.receive_frame(frame):
                match event:
                    case RequestReceived(number, message):
                        if not message.no_reply:
                            self.hold(number, message.held_bytes)
                        if prepare is not None and len(message.body) > limits.READ_ASIDE_BYTES:
                            handle = await self._run_sync(prepare, message)
                            handle(number)
                        else:
                            on_request(number, message)
                    case ReplyReceived(number, message):
                        self._settle(number, message)
                    case PartReceived(number):
                        self._receive_part(number, event)
                    case ErrorReceived(number, domain, code, text):
                        self._settle(number, PeerError(domain, code, text))
            # An acknowledgement may have become due, or one of theirs may have opened a window.
            if self._blip.has_work:
                self._work.set()
            self._check_load()
            if self._blip.inflated_bytes > inflated_bytes:
                wait_s = inflation.wait_s(
                    trio.current_time(),
                    self._blip.deflated_bytes - deflated_bytes,
                    self._blip.inflated_bytes - inflated_bytes,
                )
                if wait_s > 0:
                    await trio.sleep(wait_s)

    async def _receive(self) -> bytes:
        try:
            return await self._transport.receive()
        except ConnectionLostError as exc:
            if self._overdrawn:
                raise RemoteProtocolError("the peer makes us hold too much") from exc
            raise

    def _check_load(self) -> None:
        if self._blip.has_incomplete:
            self._incomplete.set()
        held_bytes = self.held_bytes
        if held_bytes > limits.CONNECTION_BYTES_MAX:
            raise RemoteProtocolError("the peer makes us hold too much", bytes=held_bytes)
        if self._budget is not None:
            self._budget.note(self._overdraw, held_bytes)

    def _overdraw(self) -> None:
        """All peers together hold too much, and this one most of it."""
        self._overdrawn = True
        self._transport.abort()

    async def _watch(self) -> NoReturn:
        """End the connection when the peer does not go on with a message that it has begun."""
        while True:
            await self._incomplete.wait()
            progress = Progress()
            while incomplete := self._blip.incomplete():
                stalled_s = progress.stalled_s(trio.current_time(), incomplete)
                if stalled_s > limits.MESSAGE_STALL_S:
                    # Not its fault, perhaps: a network that swallows everything looks the same.
                    raise ConnectionLostError("the peer does not finish a message")
                await trio.sleep(limits.MESSAGE_STALL_S / 4)
            self._incomplete = trio.Event()

    async def _watch_silence(self, is_owed: Callable[[], bool]) -> NoReturn:
        """End the connection when the peer owes us something and nothing comes of it."""
        silent_since, bytes_received = trio.current_time(), self.bytes_received
        while True:
            await trio.sleep(limits.SILENCE_TIMEOUT_S / 4)
            owed = bool(self._waiting) or self._blip.unsent_bytes > 0 or is_owed()
            if not owed or self.bytes_received != bytes_received:
                silent_since, bytes_received = trio.current_time(), self.bytes_received
            elif trio.current_time() - silent_since >= limits.SILENCE_TIMEOUT_S:
                raise ConnectionLostError("the peer owes us something, and says nothing")

    async def _write(self) -> NoReturn:
        while True:
            await self._work.wait()
            while frames := self._next_frames():
                with trio.move_on_after(limits.WRITE_TIMEOUT_S) as deadline:
                    await self._transport.send_all(frames)
                if deadline.cancelled_caught:
                    raise ConnectionLostError("the peer does not take what is sent to it")
                self._moved.set()
                self._moved = trio.Event()
            self._work = trio.Event()
            self._drained.set()
            self._drained = trio.Event()

    def _next_frames(self) -> list[bytes]:
        """The frames to send next: as many as are worth one write to the transport."""
        frames: list[bytes] = []
        size = 0
        while (
            size < limits.TRANSPORT_WRITE_BYTES and (frame := self._blip.next_frame()) is not None
        ):
            frames.append(frame)
            size += len(frame)
        self.bytes_sent += size
        return frames

    def _feed(self, reply: Outgoing, data: bytes, *, last: bool) -> None:
        self._blip.feed(reply, data, last=last)
        self._work.set()

    def _receive_part(self, number: int, part: PartReceived) -> None:
        self._partial[number].add(part)
        if part.last:
            del self._partial[number], self._waiting[number]

    def _part_consumed(self, part: PartReceived) -> None:
        self._blip.consumed(part)
        if self._blip.has_work:
            self._work.set()

    def _fail_partial(
        self, number: int, failure: Message | PeerError | ConnectionLostError
    ) -> None:
        assert not isinstance(failure, Message)
        self._partial.pop(number).fail(failure)

    def _settle(self, number: int, reply: Message | PeerError | ConnectionLostError) -> None:
        on_reply = self._waiting.pop(number, None)
        if on_reply is not None:
            on_reply(reply)

    def _fail_waiting(self) -> None:
        if self._lost is None:
            self._lost = ConnectionLostError("the connection was ended here", code=1000)
        self._blip.close()
        if self._budget is not None:
            self._budget.leave(self._overdraw)
        self._drained.set()
        self._moved.set()
        for number in list(self._waiting):
            self._settle(number, self._lost)


def _again(error: PeerError | ConnectionLostError) -> PeerError | ConnectionLostError:
    """Several requests may fail by one loss, and an exception is raised only once."""
    if isinstance(error, PeerError):
        return PeerError(error.domain, error.code, error.text)
    return ConnectionLostError(error.message, code=error.code)


def _first(group: BaseExceptionGroup[BaseException]) -> ConnectionLostError | RemoteProtocolError:
    """The error that tells most: a broken protocol explains the loss that follows it."""
    protocol, rest = group.split(RemoteProtocolError)
    chosen: BaseException = protocol or rest or group
    while isinstance(chosen, BaseExceptionGroup):
        chosen = chosen.exceptions[0]
    if isinstance(chosen, RemoteProtocolError):
        return RemoteProtocolError(chosen.message, **chosen.facts)
    assert isinstance(chosen, ConnectionLostError)
    return ConnectionLostError(chosen.message, code=chosen.code, reason=chosen.reason)
