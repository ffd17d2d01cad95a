"""A network in memory between replicators and a listener."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
import trio.testing

from trio_p2p.listener import URLEndpointListener
from trio_p2p.listener_configuration import URLEndpointListenerConfiguration
from trio_p2p.store.database import Collection
from trio_p2p.transport.base import open_services


class MemoryNetwork:
    """Connects to a listener by streams in memory: `connect` is a replicator's target.

    While `failure` is set, connecting raises it. While `silent`, nobody answers who connects. What
    is sent arrives after `latency_s`.
    """

    def __init__(self, nursery: trio.Nursery, listener: URLEndpointListener) -> None:
        """Connections are served in `nursery`, until it ends."""
        self._nursery = nursery
        self.listener = listener
        self.failure: Exception | None = None
        self.silent = False
        self.latency_s = 0.0
        self.attempted_at: list[float] = []
        """When it was asked to connect, by Trio's clock."""
        self._streams: list[trio.abc.Stream] = []
        self._flows = trio.Event()
        self._flows.set()

    async def connect(self) -> trio.abc.Stream:
        """A new connection. Raises: `failure`. Cancelling: safe."""
        self.attempted_at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        client, near = trio.testing.memory_stream_pair()
        far, server = trio.testing.memory_stream_pair()
        self._streams += near, far
        self._nursery.start_soon(self._forward, near, far)
        self._nursery.start_soon(self._forward, far, near)
        if not self.silent:
            self._nursery.start_soon(self.listener.handle, server)
        return client

    async def cut(self) -> None:
        """Cut all connections."""
        streams, self._streams = self._streams, []
        for stream in streams:
            await trio.aclose_forcefully(stream)

    def freeze(self) -> None:
        """Let nothing through any more, and tell nobody."""
        if self._flows.is_set():
            self._flows = trio.Event()

    def thaw(self) -> None:
        """Let everything through again, also what was on its way."""
        self._flows.set()

    async def _forward(self, source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        sent, arriving = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        self._nursery.start_soon(self._deliver, arriving, sink)
        with sent, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await self._flows.wait()
                sent.send_nowait((trio.current_time() + self.latency_s, bytes(data)))
            await self._flows.wait()

    async def _deliver(
        self, arriving: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.abc.Stream
    ) -> None:
        try:
            with arriving, suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for arrives_at, data in arriving:
                    await trio.sleep_until(arrives_at)
                    await self._flows.wait()
                    await sink.send_all(data)
        finally:
            await trio.aclose_forcefully(sink)


@asynccontextmanager
async def open_network(
    collections: Sequence[Collection], **settings: Any
) -> AsyncIterator[MemoryNetwork]:
    """A network to a listener that serves these collections; leaving the block cuts everything.

    `settings` are those of URLEndpointListenerConfiguration.
    """
    configuration = URLEndpointListenerConfiguration(
        collections=collections, disable_tls=True, **settings
    )
    async with open_services() as services:
        yield MemoryNetwork(services, URLEndpointListener(configuration))
