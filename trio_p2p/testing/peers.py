"""Whole peers in one Trio loop: real databases, real sessions, and links in memory that fail.

The wall clocks follow Trio's clock, each with an error of its own, so that under a mocked clock a
run is repeated exactly.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn, TypeVar

import trio

from trio_p2p.errors import ReplicationError
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.conflict import ConflictResolver
from trio_p2p.model.document import Document, Revision
from trio_p2p.model.version import Order, Version
from trio_p2p.replication.checkpoint import Checkpoint, checkpoint_id
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.session import ActiveSession, CollectionPlan, Plan
from trio_p2p.store import changes, checkpoints, conflicts, documents, schema
from trio_p2p.store.database import Collection, Database
from trio_p2p.store.engine import Engine, open_engine
from trio_p2p.store.records import ChangeRow
from trio_p2p.store.transaction import WriteTransaction
from trio_p2p.testing.databases import run_in_place
from trio_p2p.testing.witness import Witness
from trio_p2p.transport.memory import Faults, memory_transport_pair

T = TypeVar("T")

_SECOND_NS: Final = 10**9
_START_NS: Final = 1_700_000_000 * _SECOND_NS
_MAP_BYTES: Final = 2**26
# Longer than any exchange here takes: only one that hangs gets here.
_HANG_S: Final = 10_000
_FEED_ROWS: Final = 1_000


class Node:
    """A peer: a database that is opened again whenever it crashes.

    Its clock is wrong by `skew_s`, and each of its commits takes `commit_s`. `on_commit` is called
    after each.
    """

    database: Database

    def __init__(self, number: int, path: Path, skew_s: int) -> None:
        self.number = number
        self.skew_s = skew_s
        self.commit_s = 0.0
        self.on_commit: Callable[[], None] = lambda: None
        self._path = path
        self._crashed = trio.Event()
        self._opened = trio.Event()

    def __repr__(self) -> str:
        return f"<Node {self.number}>"

    @property
    def collection(self) -> Collection:
        """Where all its documents are."""
        return self.database.default_collection

    @property
    def is_open(self) -> bool:
        """Whether its database is open: not so for a moment after a crash."""
        return self._opened.is_set() and not self.database.engine.closed

    def clock(self) -> int:
        """Its wall clock in nanoseconds."""
        return _START_NS + round((trio.current_time() + self.skew_s) * _SECOND_NS)

    async def run(self) -> NoReturn:
        """Hold the database open. Cancelling: closes it."""
        await self._create()
        while True:
            async with self._open() as engine:
                self.database = Database(engine)
                self._opened.set()
                await self._crashed.wait()
            self._crashed = trio.Event()

    async def wait_open(self) -> None:
        """Wait until the database is open. Cancelling: safe."""
        await self._opened.wait()

    def crash(self) -> None:
        """Lose everything that was not committed; the database is opened again at once."""
        if not self.is_open:
            return
        self._opened = trio.Event()
        self.database.engine.abort()
        self._crashed.set()

    def feed(self) -> list[ChangeRow]:
        """The latest change of every document."""
        with self.database.engine.read() as txn:
            return changes.read_since(txn, self.collection.number, Sequence(0), _FEED_ROWS).rows

    def revision(self, document_id: DocumentID) -> Revision | None:
        """The document, or its tombstone."""
        with self.database.engine.read() as txn:
            stored = documents.get(txn, self.collection.number, document_id)
        return stored.revision if stored else None

    def revisions(self) -> dict[DocumentID, Revision]:
        """Every document, tombstones included."""
        found = {row.document_id: self.revision(row.document_id) for row in self.feed()}
        return {name: revision for name, revision in found.items() if revision is not None}

    def waiting(self, document_id: DocumentID) -> list[Revision]:
        """Its revisions that wait for a resolver."""
        with self.database.engine.read() as txn:
            return conflicts.of_document(txn, self.collection.number, document_id)

    async def _create(self) -> None:
        """Make the database with an identity that is the same in every run."""

        def job(txn: WriteTransaction) -> None:
            identity = bytes([self.number + 1]) * 16
            txn.raw.put(schema.META_DATABASE_ID, identity, db=txn.tables.meta)
            txn.raw.put(schema.META_SOURCE_ID, identity, db=txn.tables.meta)

        async with self._open() as engine:
            await engine.write(job)

    def _open(self) -> AbstractAsyncContextManager[Engine]:
        return open_engine(
            self._path,
            map_size_max=_MAP_BYTES,
            clock=self.clock,
            run_sync=self._run_slowly,
            sync=False,
        )

    async def _run_slowly(self, function: Callable[..., T], *args: Any) -> T:
        await trio.sleep(self.commit_s)
        result = await run_in_place(function, *args)
        if self.is_open:
            self.on_commit()
        return result


class Exchange:
    """One connection: an active session at one node, a passive one at another."""

    def __init__(self, active: Node, passive: Node, plan: Plan, faults: Faults) -> None:
        self.active = active
        self.passive = passive
        self.plan = plan
        self.journal = Journal()
        self.passive_journal = Journal()
        self.failures: list[ReplicationError] = []
        self._may_fail = faults.cut_after_messages is not None
        self.ended = trio.Event()
        self._transport, other_end = memory_transport_pair(faults=faults)
        self._session = ActiveSession(
            self._transport,
            plan,
            self.journal,
            on_activity=lambda busy: None,
            on_healthy=lambda: None,
            now_s=lambda: active.clock() // _SECOND_NS,
        )
        self._served = PassiveSession(other_end, [passive.collection], self.passive_journal)

    @property
    def moved(self) -> int:
        """Documents pushed, pulled and resolved."""
        done = self.journal.statistics()
        return done.documents_pushed + done.documents_pulled + done.conflicts_resolved

    async def run(self) -> None:
        """Run both sessions to their end; what they fail with is kept in `failures`."""
        with trio.fail_after(math.inf if self.plan.continuous else _HANG_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_failure, self._session.run)
                nursery.start_soon(self._keep_failure, self._served.run)
        assert self._may_fail or not self.failures, self.failures

    async def _keep_failure(self, run: Callable[[], Awaitable[object]]) -> None:
        try:
            await run()
        except ReplicationError as exc:
            self.failures.append(exc)

    def stop(self) -> None:
        """Ask the active side to end in peace."""
        self._session.request_stop()

    def cut(self) -> None:
        """Cut the connection."""
        self._may_fail = True
        self._transport.cut()


class Fleet:
    """Some nodes, the exchanges among them, and what must hold."""

    def __init__(self, nodes: list[Node], resolver: ConflictResolver, witness: Witness) -> None:
        self.nodes = nodes
        for node in nodes:
            node.on_commit = partial(self._check_checkpoints, node)
        self.exchanges: list[Exchange] = []
        self._resolver = resolver
        self._witness = witness
        self._written: list[tuple[DocumentID, Version]] = []

    # --- Steps ---

    async def put(self, node: Node, document_id: str, body: dict[str, int]) -> None:
        """Write a document. Raises StoreClosedError if the node crashes before it is durable."""
        self._note(await node.collection.put(document_id, body))

    async def delete(self, node: Node, document_id: str) -> None:
        """Delete a document if there is one."""
        if node.collection.get(document_id) is not None:
            self._note(await node.collection.delete(document_id))

    def crash(self, node: Node) -> None:
        """Let a node crash: its connections are cut, and it opens again."""
        for exchange in self.exchanges:
            if node in (exchange.active, exchange.passive):
                exchange.cut()
        node.crash()

    def connect(
        self,
        active: Node,
        passive: Node,
        *,
        push: bool = True,
        pull: bool = True,
        continuous: bool = False,
        faults: Faults | None = None,
    ) -> Exchange:
        """Make an exchange, for `run`."""
        plan = Plan(
            f"memory:{passive.number}",
            (CollectionPlan(active.collection, self._resolver),),
            push=push,
            pull=pull,
            continuous=continuous,
        )
        exchange = Exchange(active, passive, plan, faults or Faults())
        self.exchanges.append(exchange)
        return exchange

    async def run(self, exchange: Exchange) -> None:
        """Run an exchange to its end, and until both nodes are open."""
        try:
            await exchange.run()
            await self._wait_open(exchange.active, exchange.passive)
        finally:
            self.exchanges.remove(exchange)
            exchange.ended.set()

    async def run_undisturbed(self, exchange: Exchange) -> None:
        """Run an exchange while nothing else happens, and check that it did all it was to do."""
        active, passive = exchange.active, exchange.passive
        push, pull = exchange.plan.push, exchange.plan.pull
        ours, theirs = active.revisions(), passive.revisions()
        await self.run(exchange)
        for name, revision in ours.items() if push else ():
            # Conflicts are decided by pulling.
            if pull or name not in theirs or theirs[name].compare(revision) is Order.OLDER:
                self._check_covers(passive, name, revision.version)
        for name, revision in theirs.items() if pull else ():
            self._check_covers(active, name, revision.version)

    async def settle(self, links: Iterable[tuple[Node, Node]]) -> None:
        """Exchange over these links, active side first, until all nodes hold the same."""
        links = list(links)
        for _ in range(4 * len(self.nodes) + 8):
            moved = 0
            for active, passive in links:
                exchange = self.connect(active, passive)
                await self.run_undisturbed(exchange)
                moved += exchange.moved
            if not moved:
                break
        else:
            raise AssertionError("the nodes do not settle")
        self._check_settled({active for active, _ in links})

    async def _wait_open(self, *nodes: Node) -> None:
        """Wait until all are open at once: one may crash while another is waited for."""
        while not all(node.is_open for node in nodes):
            for node in nodes:
                await node.wait_open()

    # --- Checks ---

    def _check_checkpoints(self, node: Node) -> None:
        for exchange in self.exchanges:
            pair = (exchange.active, exchange.passive)
            if node in pair and all(other.is_open for other in pair):
                self._check_checkpoint(*pair)

    def _check_checkpoint(self, active: Node, passive: Node) -> None:
        """What a checkpoint says is done is committed on the other side, or decided against."""
        name = checkpoint_id(
            active.database.engine.id,
            str(passive.database.engine.id),
            active.collection.full_name,
            None,
        )
        with active.database.engine.read() as txn:
            ours = checkpoints.local(txn, name)
        with passive.database.engine.read() as txn:
            theirs = checkpoints.peer(txn, name)
        if ours is None or theirs is None:
            return
        agreed = Checkpoint.from_json(ours).agreed(Checkpoint.from_json(theirs.body))
        for row in active.feed():
            if row.sequence in agreed.local:
                self._check_covers(passive, row.document_id, _version(row))
        for row in passive.feed():
            if row.sequence <= int(agreed.remote or 0):
                self._check_covers(active, row.document_id, _version(row))

    def _check_covers(self, node: Node, document_id: DocumentID, version: Version) -> None:
        held = node.waiting(document_id)
        current = node.revision(document_id)
        held += [current] if current else []
        assert self._witness.covers(document_id, held, version), (node, document_id, version, held)

    def _check_same(self, node: Node) -> None:
        first = self.nodes[0]
        found, expected = node.revisions(), first.revisions()
        assert found.keys() == expected.keys(), (node, found, first, expected)
        for name, revision in found.items():
            assert _face(revision) == _face(expected[name]), (name, node, found, first, expected)

    def _check_settled(self, active: set[Node]) -> None:
        for node in self.nodes:
            self._check_same(node)
            for name, revision in node.revisions().items():
                # Where nobody resolves any more, what waits may stay; but it must be of no matter.
                waiting = node.waiting(name)
                assert not (waiting and node in active), (node, name)
                for other in waiting:
                    assert self._witness.covers(name, [revision], other.version), (node, other)
        for name, version in self._written:
            self._check_covers(self.nodes[0], name, version)

    def _note(self, document: Document) -> None:
        self._written.append((document.id, document.version))


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


def _version(row: ChangeRow) -> Version:
    assert isinstance(row.revision_id, Version)
    return row.revision_id


def _face(revision: Revision) -> tuple[Version, bytes, bool]:
    """What all peers must agree on; their vectors may differ where a merge was trivial."""
    return revision.version, revision.body, revision.deleted
