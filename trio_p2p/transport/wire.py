"""What lies between a stream and trio-websocket: limits that neither of them has.

`Wire` is the stream as trio-websocket sees it, `Frames` the WebSocket protocol as it does. Both
measure: a peer may take as long as it likes between two messages, but not in the middle of one, and
not for taking what we send.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import Event, Message
from wsproto.utilities import RemoteProtocolError as WSRemoteProtocolError

from trio_p2p import limits


class Wire(trio.abc.Stream):
    """A stream: what was read ahead comes first."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        # Pongs and goodbyes come at any time, from other tasks than the sender's.
        self._send_lock = trio.StrictFIFOLock()
        self._is_torn = False
        self._waiting_since: float | None = None
        self._waited_s = 0.0
        self._gathered: bytearray | None = None
        self.read_ahead = b""
        self.bytes_left: float = limits.HANDSHAKE_BYTES_MAX

    @property
    def silent_since(self) -> float:
        """When we began to listen without hearing anything; now, while we do not listen."""
        since = self._waiting_since
        return trio.current_time() if since is None else since

    @property
    def waited_s(self) -> float:
        """How long we have waited for the peer altogether, ourselves not being busy."""
        return self._waited_s + trio.current_time() - self.silent_since

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.read_ahead:
            data, self.read_ahead = self.read_ahead[:max_bytes], self.read_ahead[max_bytes:]
            await trio.lowlevel.checkpoint()
            return data
        self._waiting_since = trio.current_time()
        try:
            received = await self._stream.receive_some(max_bytes)
        finally:
            self._waited_s += trio.current_time() - self._waiting_since
            self._waiting_since = None
        self.bytes_left -= len(received)
        if self.bytes_left < 0:
            raise trio.BrokenResourceError("the answer to the handshake is too long")
        return received

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._gathered is None:
            await self._send(data)
        else:
            self._gathered += data
            await trio.lowlevel.cancel_shielded_checkpoint()

    @asynccontextmanager
    async def gathered(self) -> AsyncIterator[None]:
        """Keep what is sent in the block, and send it in one piece when the block is left."""
        self._gathered = bytearray()
        try:
            yield
        finally:
            data, self._gathered = self._gathered, None
        await self._send(data)

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        async with self._send_lock:
            if self._is_torn:
                raise trio.BrokenResourceError("an earlier send was interrupted")
            self._is_torn = True  # Until every byte is out.
            with trio.move_on_after(limits.SEND_TIMEOUT_S) as deadline:
                await self._stream.send_all(data)
                self._is_torn = False
            if deadline.cancelled_caught:
                raise trio.BrokenResourceError("the peer does not take what we send")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Frames(WSConnection):
    """The WebSocket protocol, with limits on how one message comes.

    wsproto gives a piece of a message for whatever of a frame is there, and trio-websocket keeps
    them in a list: a peer that sends empty frames, or single bytes, could fill the memory with
    messages that have no length.
    """

    def __init__(self, kind: ConnectionType, wire: Wire) -> None:
        super().__init__(kind)
        self._wire = wire
        self._pieces = 0
        self._begun_at_s = 0.0
        self.message_begun = trio.Event()
        """Set when a message has begun; a new one is there once it has ended."""

    @property
    def message_waited_s(self) -> float:
        """How long we have waited for the rest of a message that has begun; 0 if none has."""
        return self._wire.waited_s - self._begun_at_s if self._pieces else 0.0

    def events(self) -> Generator[Event, None, None]:
        """See WSConnection. Raises: wsproto's RemoteProtocolError for too many pieces."""
        for event in super().events():
            if isinstance(event, Message):
                self._count(event)
            yield event

    def _count(self, event: Message[Any]) -> None:
        if event.message_finished:
            if self._pieces:
                self._pieces = 0
                self.message_begun = trio.Event()
            return
        if not self._pieces:
            self._begun_at_s = self._wire.waited_s
            self.message_begun.set()
        self._pieces += 1
        if self._pieces > limits.MESSAGE_PIECES_MAX:
            raise WSRemoteProtocolError("a message comes in too many pieces")
