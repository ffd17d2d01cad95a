"""What every transport does: move whole binary messages between two peers.

Above this line nobody knows of WebSockets or TLS. One task sends and one receives; a message
arrives whole or not at all, and in the order it was sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import trio

# WebSocket close codes (RFC 6455, section 7.4.1), which other transports borrow.
CLOSE_NORMAL = 1000
CLOSE_GOING_AWAY = 1001
CLOSE_UNSUPPORTED_DATA = 1003
CLOSE_ABNORMAL = 1006
# Couchbase Lite's codes for "come back later" and "do not come back".
CLOSE_TRANSIENT = 4001
CLOSE_PERMANENT = 4002
# What a goodbye may carry. Of the codes below 3000 the others are not given out, or tell that there
# was no goodbye; a peer that receives one takes it for a broken protocol.
CLOSE_CODES = frozenset((*range(1000, 1004), *range(1007, 1014), *range(3000, 5000)))


class MessageTransport(Protocol):
    """Moves whole binary messages between two peers."""

    async def send(self, message: bytes) -> None:
        """Send one message; returns once the layer below has taken it.

        Only one task may send at a time (trio.BusyResourceError).
        Raises: ConnectionLostError once the connection is gone.
        Cancelling: breaks the connection, as part of the message may be out: see `abort`.
        """

    async def send_all(self, messages: Sequence[bytes]) -> None:
        """Send messages in this order, with as few writes as the layer below allows. As `send`."""

    async def receive(self) -> bytes:
        """Wait for the next message.

        Raises: ConnectionLostError at the end, with the code and reason of the peer's goodbye, or
        1006 if there was none; RemoteProtocolError if the peer broke the rules.
        Cancelling: safe, no message is lost.
        """

    async def aclose(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """Say goodbye, wait at most CLOSE_TIMEOUT_S for the echo, then be gone. Idempotent.

        Never raises for a connection that is dead. Cancelling: closes at once.
        """

    def abort(self) -> None:
        """Be gone at once, without a goodbye: the peer sees 1006. Idempotent."""


@asynccontextmanager
async def open_services() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that serve the block: they are cancelled when it is left.

    What the block raises leaves as it was raised, not wrapped in a group. The tasks must deal with
    their own failures: whatever one raises is a bug and leaves in a group.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                failure = exc
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # One failure, and the block was not merely cancelled for a service's: it is the block's.
        if len(group.exceptions) > 1 or failure is None or _is_cancellation(failure):
            raise
    if failure is not None:
        raise failure


def _is_cancellation(failure: BaseException) -> bool:
    """Whether nothing but cancellation left the block; a nursery within it makes a group of it."""
    if isinstance(failure, BaseExceptionGroup):
        return failure.split(trio.Cancelled)[1] is None
    return isinstance(failure, trio.Cancelled)
