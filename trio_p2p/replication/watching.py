"""Iterators over what a replicator does. Not generators: one may be dropped half-way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

from trio_p2p.replication.journal import Journal
from trio_p2p.replication.link import Pulse
from trio_p2p.replication.status import ActivityLevel, DocumentReplication, ReplicatorStatus


class Watched(Protocol):
    """What has a status that changes."""

    @property
    def status(self) -> ReplicatorStatus: ...
    @property
    def published(self) -> int: ...


class StatusChanges:
    """The statuses of a replicator, until it has stopped."""

    def __init__(self, watched: Watched, pulse: Pulse) -> None:
        self._watched = watched
        self._pulse = pulse
        self._seen = 0  # Nothing is published before it runs.
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReplicatorStatus:
        if self._ended:
            raise StopAsyncIteration
        await self._pulse.until(lambda: self._watched.published != self._seen)
        self._seen = self._watched.published
        status = self._watched.status
        self._ended = status.activity is ActivityLevel.STOPPED
        return status


class DocumentReplications:
    """The document events of a replicator, until it has stopped and all are told."""

    def __init__(self, journal: Journal, pulse: Pulse, is_over: Callable[[], bool]) -> None:
        self._journal = journal
        self._pulse = pulse
        self._is_over = is_over
        self._told = 0
        self.missed = 0
        """Events that were dropped before they could be told."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DocumentReplication:
        journal = self._journal
        await self._pulse.until(lambda: journal.event_count > self._told or self._is_over())
        if journal.event_count == self._told:
            raise StopAsyncIteration
        oldest = journal.event_count - len(journal.events)
        if self._told < oldest:
            self.missed += oldest - self._told
            self._told = oldest
        event = journal.events[self._told - oldest]
        self._told += 1
        return event
