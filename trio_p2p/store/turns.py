"""Turns for what one task at a time may work on, whichever replicator it belongs to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class Turns:
    """A turn for each thing; it costs nothing while nobody has it."""

    def __init__(self) -> None:
        self._taken: dict[Hashable, trio.Event] = {}

    @asynccontextmanager
    async def take(self, thing: Hashable) -> AsyncIterator[None]:
        """Have the turn while the block runs, after whoever has it. Cancelling: safe."""
        await trio.lowlevel.checkpoint()
        while (ended := self._taken.get(thing)) is not None:
            await ended.wait()
        ended = self._taken[thing] = trio.Event()
        try:
            yield
        finally:
            del self._taken[thing]
            ended.set()
