"""Turns for what one task at a time may work on, whichever replicator it belongs to."""

from __future__ import annotations

import math
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


class LosableTurn:
    """A turn that is lost to one that waits for it, if whoever has it gets no further."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._scope = trio.CancelScope()
        self._moved_at = math.inf

    @asynccontextmanager
    async def take(self, patience_s: float) -> AsyncIterator[None]:
        """Have the turn while the block runs, once whoever has it is done, or stuck for so long.

        The block is cut off when the turn is lost: it ends there, as one of `trio.move_on_after`.

        Cancelling: safe.
        """
        await self._acquire(patience_s)
        self._scope = scope = trio.CancelScope()
        try:
            with scope:
                yield
        finally:
            self._moved_at = math.inf
            self._lock.release()

    def move(self) -> None:
        """Whoever has the turn got further. Before the first time it cannot be lost."""
        self._moved_at = trio.current_time()

    async def _acquire(self, patience_s: float) -> None:
        while True:
            # Of one that cannot lose it yet, look again later.
            moved_at = min(self._moved_at, trio.current_time())
            with trio.move_on_at(moved_at + patience_s):
                await self._lock.acquire()
                return
            if self._moved_at + patience_s <= trio.current_time():
                # In line again before the other one ends, and so ahead of it. It may take its time.
                self._moved_at = math.inf
                self._scope.cancel()
