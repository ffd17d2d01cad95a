"""A transport within one process, for tests and simulations: whole messages, faults on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from trio_p2p import limits
from trio_p2p.errors import ConnectionLostError
from trio_p2p.transport.base import CLOSE_ABNORMAL, CLOSE_NORMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong on a link.

    `delay_s` is asked before each message how many seconds sending it takes.
    `cut_after_messages` counts both directions: this many get through, and the link is cut when
    the next one is sent. `torn`: the sender of that message is told it was sent.
    """

    delay_s: Callable[[], float] | None = None
    cut_after_messages: int | None = None
    torn: bool = False


class _Link:
    """What both ends share: how many messages still get through, and how to cut everything."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        cut_after = faults.cut_after_messages
        self._messages_left = math.inf if cut_after is None else cut_after
        self.ends: list[MemoryTransport] = []

    def take_message(self) -> bool:
        """Whether one more message gets through; cuts the link if not."""
        if self._messages_left <= 0:
            self.cut()
            return False
        self._messages_left -= 1
        return True

    def cut(self) -> None:
        for end in self.ends:
            end._end(CLOSE_ABNORMAL, "")


class MemoryTransport:
    """One end of a link made by `memory_transport_pair`; implements `MessageTransport`.

    A message that was on its way when the link ended still arrives, unless the receiver ended it.
    """

    def __init__(
        self,
        link: _Link,
        outgoing: trio.MemorySendChannel[bytes],
        incoming: trio.MemoryReceiveChannel[bytes],
    ) -> None:
        self._link = link
        self._outgoing = outgoing
        self._incoming = incoming
        self._sending = False
        self._close: tuple[int, str] | None = None

    async def send(self, message: bytes) -> None:
        """See `MessageTransport.send`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        self._sending = True
        try:
            await self._delay()
            if self._close is not None:
                raise self._lost()
            if self._link.take_message():
                await self._outgoing.send(message)
            elif not self._link.faults.torn:
                raise self._lost()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._lost() from None
        except trio.Cancelled:
            self.cut()
            raise
        finally:
            self._sending = False

    async def send_all(self, messages: Sequence[bytes]) -> None:
        """See `MessageTransport.send_all`."""
        for message in messages:
            await self.send(message)

    async def _delay(self) -> None:
        delay_s = self._link.faults.delay_s
        await trio.sleep(0 if delay_s is None else delay_s())

    async def receive(self) -> bytes:
        """See `MessageTransport.receive`."""
        try:
            return await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._lost() from None

    async def aclose(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """See `MessageTransport.aclose`."""
        self._leave(code, reason)
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """See `MessageTransport.abort`."""
        self._leave(CLOSE_ABNORMAL, "")

    def cut(self) -> None:
        """Cut the link in both directions: each side sees 1006 behind what is on its way."""
        self._link.cut()

    def _leave(self, code: int, reason: str) -> None:
        for end in self._link.ends:
            end._end(code, reason)
        self._incoming.close()

    def _end(self, code: int, reason: str) -> None:
        if self._close is None:
            self._close = (code, reason)
        self._outgoing.close()

    def _lost(self) -> ConnectionLostError:
        code, reason = self._close or (CLOSE_ABNORMAL, "")
        return ConnectionLostError("the connection is closed", code=code, reason=reason)


def memory_transport_pair(
    *, faults: Faults | None = None
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two transports joined to each other; a few messages are on their way, then `send` waits."""
    there: tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]
    back: tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]
    there = trio.open_memory_channel(limits.TRANSPORT_QUEUE_MESSAGES_MAX)
    back = trio.open_memory_channel(limits.TRANSPORT_QUEUE_MESSAGES_MAX)
    link = _Link(faults or Faults())
    first = MemoryTransport(link, there[0], back[1])
    second = MemoryTransport(link, back[0], there[1])
    link.ends = [first, second]
    return first, second
