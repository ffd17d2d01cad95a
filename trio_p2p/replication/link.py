"""What the parts of a session share for one collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from trio_p2p.replication.journal import Journal
from trio_p2p.replication.profile import Profile
from trio_p2p.store.database import Collection
from trio_p2p.store.engine import Engine


class Pulse:
    """Wakes everyone who waits for the state of a session to change."""

    def __init__(self) -> None:
        self._changed = trio.Event()

    def notify(self) -> None:
        """Something changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. It is asked at once and after every change."""
        if condition():
            await trio.lowlevel.checkpoint()
            return
        while not condition():
            await self._changed.wait()


@dataclass(frozen=True, slots=True)
class Link:
    """One collection of one session."""

    collection: Collection
    index: int
    """Where the collection stands in the list that opened the session."""
    profile: Profile
    journal: Journal
    pulse: Pulse

    @property
    def engine(self) -> Engine:
        return self.collection.database.engine

    @property
    def number(self) -> int:
        """The collection's number in the store."""
        return self.collection.number
