"""Accepts connections as fast as they come.

Trio accepts one each time every other task has had its turn. Where a thousand hostile connections
come at once, those few of honest peers behind them in the queue of the system would wait as many
turns; so what is there is accepted together.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from trio_p2p import limits

logger = logging.getLogger(__name__)

# The system has no more of something that connections need.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


async def accept_all(
    listener: trio.SocketListener,
    handler: Callable[[trio.SocketStream], Awaitable[object]],
    nursery: trio.Nursery,
    make_room: Callable[[], bool],
) -> NoReturn:
    """Start the handler, which must not raise, in the nursery for each connection that comes.

    When the system has no more files for connections, `make_room` is asked to end one, and tells
    whether there was any. Closes the listener when it is cancelled.
    """
    async with listener:
        # The same socket, to be asked without waiting.
        with socket.socket(fileno=socket.dup(listener.socket.fileno())) as nowait:
            # Or it would have the timeout that the program may have set for all new sockets.
            nowait.setblocking(False)
            while True:
                try:
                    streams = [await listener.accept(), *_accept_more(nowait)]
                except OSError as exc:
                    if exc.errno not in _EXHAUSTED:
                        raise
                    if not make_room():
                        logger.warning("no connection can be accepted: %s", exc.strerror)
                    await trio.sleep(limits.ACCEPT_PAUSE_S)
                    continue
                for stream in streams:
                    nursery.start_soon(handler, stream)


def _accept_more(nowait: socket.socket) -> list[trio.SocketStream]:
    """The connections that are there already, up to some."""
    streams: list[trio.SocketStream] = []
    while len(streams) < limits.ACCEPT_AT_ONCE_MAX:
        try:
            accepted, _ = nowait.accept()
        except OSError:
            # None is there; or one that is gone already, or whatever `listener.accept` will tell.
            break
        streams.append(trio.SocketStream(trio.socket.from_stdlib_socket(accepted)))
    return streams
