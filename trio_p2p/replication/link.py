"""What the parts of a session share for one collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from trio_p2p import limits
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.profile import Profile
from trio_p2p.store.database import Collection
from trio_p2p.store.engine import Engine


class Pulse:
    """Wakes everyone who waits for the state of something to change.

    What changes in a part changes the `whole`, too, but not the other way round: a session may have
    a thousand collections, and each a dozen tasks that wait.
    """

    def __init__(self, whole: Pulse | None = None) -> None:
        self._whole = whole
        self._changed = trio.Event()

    def notify(self) -> None:
        """Something changed."""
        self._changed.set()
        self._changed = trio.Event()
        if self._whole is not None:
            self._whole.notify()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. It is asked at once and after every change."""
        if condition():
            await trio.lowlevel.checkpoint()
            return
        while not condition():
            await self._changed.wait()


@dataclass(slots=True)
class Window:
    """Revisions sent on one connection and not answered yet, of all collections together.

    A peer may subscribe to as many collections as there are, and then read nothing.
    """

    revisions: int = 0
    body_bytes: int = 0
    pulse: Pulse = field(default_factory=Pulse)
    """Wakes those who wait for room."""

    @property
    def has_room(self) -> bool:
        """Whether more may be sent."""
        return (
            self.revisions < limits.REVISIONS_UNANSWERED_MAX
            and self.body_bytes < limits.REVISION_BYTES_UNANSWERED_MAX
        )


@dataclass(frozen=True, slots=True)
class Link:
    """One collection of one session."""

    collection: Collection
    index: int
    """Where the collection stands in the list that opened the session."""
    profile: Profile
    journal: Journal
    pulse: Pulse
    """Of this collection alone."""
    window: Window = field(default_factory=Window)
    readable: frozenset[int] = frozenset()
    """The numbers of all collections of the session: what the peer may read."""

    @property
    def engine(self) -> Engine:
        return self.collection.database.engine

    @property
    def number(self) -> int:
        """The collection's number in the store."""
        return self.collection.number
