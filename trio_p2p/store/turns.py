"""Turns for what one task at a time may work on, whichever replicator it belongs to."""

from __future__ import annotations

import math
from collections import deque
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
    """A turn that is lost to those that wait for it, if whoever has it gets further too slowly.

    They have it in the order in which they came.
    """

    def __init__(self, rate_min: float) -> None:
        """`rate_min`: by how much whoever has the turn gets further in a second, at least."""
        self._rate_min = rate_min
        self._is_taken = False
        self._line: deque[trio.Event] = deque()
        self._scope = trio.CancelScope()
        # When whoever has it would be where it is, at the least rate since it last kept up.
        self._on_time_at = math.inf

    @asynccontextmanager
    async def take(self, patience_s: float) -> AsyncIterator[None]:
        """Have the turn while the block runs, once whoever has it is done or so much behind.

        The block is cut off when the turn is lost: it ends there, as one of `trio.move_on_after`.

        Cancelling: safe.
        """
        await trio.lowlevel.checkpoint()
        if self._is_taken:
            await self._wait(patience_s)
        self._is_taken = True
        self._scope = scope = trio.CancelScope()
        try:
            with scope:
                yield
        finally:
            self._pass_on()

    def move(self, amount: float) -> None:
        """Whoever has the turn got further by so much. Before the first time it cannot be lost.

        Being faster than it must is no reserve for later.
        """
        on_time_at = self._on_time_at + amount / self._rate_min
        self._on_time_at = min(on_time_at, trio.current_time())

    async def _wait(self, patience_s: float) -> None:
        mine = trio.Event()
        self._line.append(mine)
        try:
            while not mine.is_set():
                # Of one that cannot lose it yet, look again later.
                on_time_at = min(self._on_time_at, trio.current_time())
                with trio.move_on_at(on_time_at + patience_s):
                    await mine.wait()
                if self._on_time_at + patience_s <= trio.current_time():
                    self._on_time_at = math.inf
                    self._scope.cancel()
        except trio.Cancelled:
            if mine.is_set():
                self._pass_on()
            else:
                self._line.remove(mine)
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next one in line, if there is any."""
        self._on_time_at = math.inf
        self._is_taken = bool(self._line)
        if self._line:
            self._line.popleft().set()
