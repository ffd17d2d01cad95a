"""A TCP proxy that does to connections what networks do: at random, from a seed."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import suppress
from random import Random
from typing import Final

import trio

_READ_BYTES: Final = 64 * 1024
# Longest hold-up of a piece, in seconds; most pieces pass at once.
_DELAY_S_MAX: Final = 0.2
# Closing a socket with this option set resets the connection.
_RESET: Final = struct.pack("ii", 1, 0)
# In turn, so that each comes soon.
_FATES: Final = ("cut", "reset", "half-close", "hold-up")


class FaultProxy:
    """Forwards connections to a port of this machine, and disturbs them.

    Each lives for `life_s` seconds on average; then it is cut (both sides see the end), reset,
    closed in one direction, or held up until one of its ends gives up. While it lives its bytes
    come in other pieces than they were sent in, some of them late. `faults` counts what was done.

    The first connection has the same life and fate whenever the seed is the same, so does the
    second one, and so on.
    """

    def __init__(self, port: int, *, seed: int, life_s: float) -> None:
        self._port = port
        self._seed = seed
        self._life_s = life_s
        self._pieces = Random(seed)
        self._disturbs = True
        self._calm = trio.Event()
        self.faults: Counter[str] = Counter()

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; reports the port once it does. Cancelling: cuts everything."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._forward, [listener])
            task_status.started(port)

    def calm_down(self) -> None:
        """Disturb nothing any more; connections that are held up go on."""
        self._disturbs = False
        self._calm.set()

    async def _forward(self, client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self._port)
        except OSError:
            self.faults["refused"] += 1
            await trio.aclose_forcefully(client)
            return
        self.faults["connection"] += 1
        number = self.faults["connection"]
        random = Random(f"{self._seed} {number}")
        pair = _Pair(client, server)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(
                self._doom, pair, _FATES[number % len(_FATES)], random, nursery.cancel_scope
            )
            async with trio.open_nursery() as pumps:
                pumps.start_soon(self._pump, client, server, pair)
                pumps.start_soon(self._pump, server, client, pair)
            nursery.cancel_scope.cancel()

    async def _doom(self, pair: _Pair, fate: str, random: Random, scope: trio.CancelScope) -> None:
        """Let a connection live for a while, then end it in some way."""
        with trio.move_on_after(random.expovariate(1 / self._life_s)):
            await self._calm.wait()
        if not self._disturbs:
            return
        self.faults[fate] += 1
        one = random.choice((pair.client, pair.server))
        match fate:
            case "cut":
                scope.cancel()
            case "reset":
                for stream in (pair.client, pair.server):
                    with suppress(OSError):  # A pump may have closed it.
                        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                scope.cancel()
            case "half-close":
                pair.closed_towards = one
                with suppress(OSError):
                    one.socket.shutdown(socket.SHUT_WR)
            case "hold-up":
                pair.flows = self._calm

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, pair: _Pair
    ) -> None:
        try:
            while data := await source.receive_some(self._pieces.randrange(1, _READ_BYTES)):
                if self._disturbs and self._pieces.random() < 0.05:
                    await trio.sleep(self._pieces.uniform(0, _DELAY_S_MAX))
                if pair.flows is not None:
                    await pair.flows.wait()
                if pair.closed_towards is target:
                    break
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # One end is gone: so is the connection, in both directions.
            await trio.aclose_forcefully(source)
            await trio.aclose_forcefully(target)


class _Pair:
    """The two halves of a connection, and what is wrong with it."""

    def __init__(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        self.client = client
        self.server = server
        self.closed_towards: trio.SocketStream | None = None
        self.flows: trio.Event | None = None
        """What to wait for before anything more gets through."""
