"""Two whole peers joined in memory, and everything that can be compared after they replicated.

A replicator and a listener, WebSocket between them, no network: after each run the tests look at
what was counted, which documents failed, the checkpoints at both ends, and the whole databases.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing

from trio_p2p import (
    Collection,
    CollectionConfiguration,
    Database,
    Direction,
    Replicator,
    ReplicatorConfiguration,
    ReplicatorType,
    URLEndpointListener,
    URLEndpointListenerConfiguration,
)
from trio_p2p.store import checkpoints, recent, records
from trio_p2p.testing.databases import open_test_database

PUSH, PULL = ReplicatorType.PUSH, ReplicatorType.PULL
SECOND_NS = 10**9
START_NS = 1_700_000_000 * SECOND_NS
# Of the mocked clock, so it passes at once.
STALL_S = 10_000


class Clock:
    """A wall clock that follows Trio's, ahead of it by so much."""

    ahead_s = 0.0

    def __call__(self) -> int:
        return START_NS + round((trio.current_time() + self.ahead_s) * SECOND_NS)


class Run:
    """What a replicator did."""

    def __init__(self, replicator: Replicator) -> None:
        self._replicator = replicator
        self.error = replicator.status.error
        self.statistics = replicator.statistics()
        self.progress = replicator.status.progress

    @property
    def counts(self) -> tuple[int, int]:
        """Documents pushed and pulled."""
        return self.statistics.documents_pushed, self.statistics.documents_pulled

    @property
    def offered(self) -> int:
        """Revisions that either side offered."""
        return self.statistics.documents_offered

    @property
    def push_errors(self) -> dict[str, object]:
        """The documents that could not be pushed, and why."""
        return self._errors(Direction.PUSH)

    @property
    def pull_errors(self) -> dict[str, object]:
        """The documents that could not be pulled or resolved, and why."""
        return self._errors(Direction.PULL)

    def _errors(self, direction: Direction) -> dict[str, object]:
        told = self._replicator.result().errors
        return {event.document_id: event.error for event in told if event.direction is direction}


class Pair:
    """An active peer `here` and a passive one `there`; `clock` is that of the passive one."""

    def __init__(
        self, nursery: trio.Nursery, here: Database, there: Database, clock: Clock, **listening: Any
    ) -> None:
        self.here = here
        self.there = there
        self.clock = clock
        self.attempts = 0
        self.nursery = nursery
        self._listening = listening

    @property
    def mine(self) -> Collection:
        """The default collection here."""
        return self.here.default_collection

    @property
    def theirs(self) -> Collection:
        """The default collection there."""
        return self.there.default_collection

    def listener(self) -> URLEndpointListener:
        """A listener of all that is there."""
        defaults = {"collections": self.there.collections(), "disable_tls": True}
        return URLEndpointListener(URLEndpointListenerConfiguration(**defaults | self._listening))

    async def connect(self) -> trio.abc.Stream:
        """A stream to a listener there."""
        self.attempts += 1
        near, far = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.listener().handle, far)
        await trio.lowlevel.checkpoint()
        return near

    def configuration(self, kind=ReplicatorType.PUSH_AND_PULL, **settings):
        """Replicate all that both have, or as told."""
        names = {collection.full_name for collection in self.there.collections()}
        defaults = {
            "target": self.connect,
            "target_id": str(self.there.path),
            "collections": [c for c in self.here.collections() if c.full_name in names],
            "replicator_type": kind,
            "max_attempts": 1,
            "enable_delta_sync": self.here.delta_sync,
        }
        return ReplicatorConfiguration(**defaults | settings)

    async def replicate(self, kind=ReplicatorType.PUSH_AND_PULL, *, reset=False, **settings) -> Run:
        """Run a replicator to its end."""
        replicator = Replicator(self.configuration(kind, **settings), reset_checkpoint=reset)
        with trio.fail_after(STALL_S):
            await replicator.run()
        return Run(replicator)

    @asynccontextmanager
    async def replicating(self, kind=ReplicatorType.PUSH_AND_PULL, **settings):
        """Run a continuous replicator while the block runs."""
        configuration = self.configuration(kind, continuous=True, **settings)
        replicator = Replicator(configuration)
        with trio.fail_after(STALL_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(replicator.run)
                yield replicator
                await replicator.stop()

    def checkpoints(self) -> list[dict[str, object]]:
        """The one checkpoint of each pair of collections; both ends must have kept the same."""
        with self.here.engine.read() as txn:
            kept = recent.entries(txn, checkpoints.LOCAL)
            ours = {e.key: records.unpack_local_checkpoint(e.content).body for e in kept}
        with self.there.engine.read() as txn:
            kept = recent.entries(txn, checkpoints.PEERS)
            theirs = {e.key: records.unpack_peer_checkpoint(e.content)[3] for e in kept}
        assert ours == theirs
        found = [json.loads(body) for body in ours.values()]
        assert all(type(body.pop("time")) is int for body in found)
        return found

    async def assert_equal(self, name: str = "_default") -> None:
        """Both hold the same documents and tombstones, with their versions and bodies."""
        here, there = self.here.collection(name), self.there.collection(name)
        assert await contents(here) == await contents(there)


async def contents(collection: Collection) -> dict[str, tuple[str, bool, object]]:
    """All documents and tombstones: version, whether it is one, and body."""
    return {
        document.id: (str(document.version), document.deleted, document.body)
        async for document in collection.documents(include_deleted=True)
    }


async def bodies(collection: Collection) -> dict[str, object]:
    """The live documents."""
    return {document.id: document.body async for document in collection.documents()}


def only(*document_ids: str) -> CollectionConfiguration:
    """Only these documents."""
    return CollectionConfiguration(document_ids=document_ids)


def ids(*numbers: int) -> list[str]:
    """Document IDs of seven digits."""
    return [f"{number:07}" for number in numbers]


async def put_many(collection: Collection, names: list[str], **body: object) -> None:
    """Put one document of each ID, in one transaction."""
    async with collection.batch() as batch:
        for name in names:
            batch.put(name, {"name": name, **body})


@asynccontextmanager
async def open_pair(
    path: Path, *, delta_sync: bool = False, **listening: Any
) -> AsyncIterator[Pair]:
    """Open both databases below this directory; `delta_sync` permits and enables deltas."""
    clock = Clock()
    async with (
        open_test_database(path / "here", clock=Clock(), delta_sync=delta_sync) as here,
        open_test_database(path / "there", clock=clock, delta_sync=delta_sync) as there,
        trio.open_nursery() as nursery,
    ):
        yield Pair(nursery, here, there, clock, enable_delta_sync=delta_sync, **listening)
        nursery.cancel_scope.cancel()
