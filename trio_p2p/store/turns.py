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
    """A turn that is lost to those that wait for it, if whoever has it gets no further.

    They have it in the order in which they came.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._line: deque[trio.Event] = deque()
        self._scope = trio.CancelScope()
        self._moved_at = math.inf

    @asynccontextmanager
    async def take(self, patience_s: float) -> AsyncIterator[None]:
        """Have the turn while the block runs, once whoever has it is done, or stuck for so long.

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

    def move(self) -> None:
        """Whoever has the turn got further. Before the first time it cannot be lost."""
        self._moved_at = trio.current_time()

    async def _wait(self, patience_s: float) -> None:
        mine = trio.Event()
        self._line.append(mine)
        try:
            while not mine.is_set():
                # Of one that cannot lose it yet, look again later.
                moved_at = min(self._moved_at, trio.current_time())
                with trio.move_on_at(moved_at + patience_s):
                    await mine.wait()
                if self._moved_at + patience_s <= trio.current_time():
                    self._moved_at = math.inf
                    self._scope.cancel()
        except trio.Cancelled:
            if mine.is_set():
                self._pass_on()
            else:
                self._line.remove(mine)
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next one in line, if there is any."""
        self._moved_at = math.inf
        self._is_taken = bool(self._line)
        if self._line:
            self._line.popleft().set()
