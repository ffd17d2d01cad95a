"""Connections between peers in memory, and what each is to carry."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

import trio

from trio_p2p.errors import (
    CollectionNotFoundError,
    ConnectionLostError,
    ReplicationError,
    StoreClosedError,
)
from trio_p2p.ids import DocumentID
from trio_p2p.model.conflict import ConflictResolver
from trio_p2p.replication.filters import ReplicationFilter
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.session import ActiveSession, CollectionPlan, Plan
from trio_p2p.testing.nodes import DEFAULT, Name, Node
from trio_p2p.transport.memory import Faults, memory_transport_pair

_SECOND_NS: Final = 10**9
# Longer than any exchange here takes: only one that hangs gets here.
_HANG_S: Final = 10_000


@dataclass(frozen=True, slots=True)
class Route:
    """Who connects to whom, and what is carried between them."""

    active: Node
    passive: Node
    push: bool = True
    pull: bool = True
    collections: tuple[str, ...] = (DEFAULT,)
    document_ids: tuple[DocumentID, ...] | None = None
    """Restricts it to these documents, if given; so do filters that let these pass."""
    push_filter: frozenset[DocumentID] | None = None
    pull_filter: frozenset[DocumentID] | None = None

    def pushes(self, name: Name) -> bool:
        """Whether it carries a document to the passive node."""
        return self.push and self._takes(name) and _passes(self.push_filter, name)

    def pulls(self, name: Name) -> bool:
        """Whether it carries a document to the active node."""
        return self.pull and self._takes(name) and _passes(self.pull_filter, name)

    def _takes(self, name: Name) -> bool:
        if name.collection not in self.collections:
            return False
        return self.document_ids is None or name.document in self.document_ids

    def plan(self, resolver: ConflictResolver, *, continuous: bool) -> Plan:
        """What the active node is to do. Raises CollectionNotFoundError."""
        return Plan(
            f"memory:{self.passive.number}",
            tuple(self.collection_plan(full_name, resolver) for full_name in self.collections),
            push=self.push,
            pull=self.pull,
            continuous=continuous,
            deltas=self.active.permits_deltas,
        )

    def collection_plan(self, full_name: str, resolver: ConflictResolver) -> CollectionPlan:
        """What it is to do with one collection. Raises CollectionNotFoundError."""
        return CollectionPlan(
            self.active.database.collection(full_name),
            resolver,
            self.document_ids,
            _filter(self.push_filter),
            _filter(self.pull_filter),
        )


def _passes(documents: frozenset[DocumentID] | None, name: Name) -> bool:
    return documents is None or name.document in documents


def _filter(documents: frozenset[DocumentID] | None) -> ReplicationFilter | None:
    if documents is None:
        return None
    return lambda document, flags: document.id in documents


class Exchange:
    """One connection: an active session at one node, a passive one at another."""

    def __init__(
        self, route: Route, resolver: ConflictResolver, *, continuous: bool, faults: Faults
    ) -> None:
        self.route = route
        self.continuous = continuous
        self.journal = Journal()
        self.failures: list[ReplicationError] = []
        self.ended = trio.Event()
        self.is_ending = False
        """Whether it was stopped or cut."""
        self._may_fail = faults.cut_after_messages is not None
        self._is_working = True
        self._transport, other_end = memory_transport_pair(faults=faults)
        active, passive = route.active, route.passive
        self._session = ActiveSession(
            self._transport,
            route.plan(resolver, continuous=continuous),
            self.journal,
            on_activity=self._note_activity,
            on_healthy=lambda: None,
            now_s=lambda: active.clock() // _SECOND_NS,
        )
        self._served = PassiveSession(
            other_end, passive.collections, Journal(), deltas=passive.permits_deltas
        )

    def __repr__(self) -> str:
        return f"<Exchange {self.route}>"

    @property
    def moved(self) -> int:
        """Documents pushed, pulled and resolved."""
        done = self.journal.statistics()
        return done.documents_pushed + done.documents_pulled + done.conflicts_resolved

    @property
    def is_busy(self) -> bool:
        """Whether either side has anything left to do."""
        return self._is_working or self._served.busy

    def concerns(self, node: Node) -> bool:
        """Whether the node is at either end."""
        return node in (self.route.active, self.route.passive)

    async def run(self) -> None:
        """Run both sessions to their end; what they fail with is kept in `failures`."""
        with trio.fail_after(math.inf if self.continuous else _HANG_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_failure, self._session.run)
                nursery.start_soon(self._keep_failure, self._served.run)
        for failure in self.failures:
            assert self._may_fail, failure
            assert _is_of_a_cut(failure), failure

    async def _keep_failure(self, run: Callable[[], Awaitable[object]]) -> None:
        try:
            await run()
        except ReplicationError as exc:
            self.failures.append(exc)

    def _note_activity(self, busy: bool) -> None:
        self._is_working = busy

    def stop(self) -> None:
        """Ask the active side to end in peace."""
        self.is_ending = True
        self._session.request_stop()

    def cut(self) -> None:
        """Cut the connection."""
        self.is_ending = True
        self.excuse()
        self._transport.cut()

    def excuse(self) -> None:
        """From now on it may fail: something is done to one of its nodes."""
        self._may_fail = True


def _is_of_a_cut(failure: ReplicationError) -> bool:
    """Whether a session failed as its connection was cut, or what it works on was gone.

    404 is how a peer tells that it has deleted a collection.
    """
    if failure.status == 404:
        return True
    causes: list[BaseException | None] = [failure]
    while causes:
        cause = causes.pop()
        if isinstance(cause, ConnectionLostError | StoreClosedError | CollectionNotFoundError):
            return True
        if isinstance(cause, BaseExceptionGroup):
            causes += cause.exceptions
        elif cause is not None:
            causes.append(cause.__cause__)
    return False


def scripted_delays(seed: int, events: Mapping[int, Callable[[], None]]) -> Callable[[], float]:
    """For `Faults.delay_s`: pauses that depend on the seed (none for 0), and events.

    An event happens as the message of its number, from 0, is about to be sent.
    """
    random = Random(seed)
    sent = iter(range(10**9))

    def delay_s() -> float:
        event = events.get(next(sent))
        if event is not None:
            event()
        return random.choice((0.0, 0.0, 0.2, 1.5)) if seed else 0.0

    return delay_s
