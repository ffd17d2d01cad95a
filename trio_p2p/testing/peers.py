"""Whole peers in one Trio loop: real databases, real sessions, links in memory that fail.

A fleet is some nodes and the exchanges among them. It checks what must hold at each commit, after
each exchange that nothing disturbed, and when nothing moves any more.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from trio_p2p import limits
from trio_p2p.errors import DocumentNotFoundError
from trio_p2p.model.blob import digests
from trio_p2p.model.conflict import ConflictResolver
from trio_p2p.model.document import Document, Revision
from trio_p2p.model.version import Order, Version
from trio_p2p.replication.checkpoint import Checkpoint
from trio_p2p.store import checkpoints, schema
from trio_p2p.store.expirations import microseconds, moment
from trio_p2p.store.records import ChangeRow
from trio_p2p.testing.exchanges import Exchange, Route
from trio_p2p.testing.nodes import Name, Node
from trio_p2p.testing.promises import Delivery, deliveries, groups
from trio_p2p.testing.witness import Witness
from trio_p2p.transport.memory import Faults

# By how much a clock may be wrong while two of them still accept each other's versions.
SKEW_S_MAX: Final = 50
_SECOND_NS: Final = 10**9
# Far longer than standing exchanges without delays take to pass everything on along any chain, once
# what was refused while clocks were wrong was tried again.
_QUIET_S: Final = 100 + limits.RETRY_DOCUMENTS_S_MAX


class Fleet:
    """Some nodes, the exchanges among them, and what must hold."""

    def __init__(self, nodes: list[Node], resolver: ConflictResolver, witness: Witness) -> None:
        self.nodes = nodes
        for node in nodes:
            node.on_commit = partial(self._note_commit, node)
        self.exchanges: list[Exchange] = []
        self.standing: list[Route] = []
        """Routes that something else than exchanges runs over; their checkpoints hold too."""
        self.on_end: Callable[[Exchange], None] = lambda exchange: None
        """Called with each exchange that has ended."""
        self.witness = witness
        self._resolver = resolver
        self._written: list[_Written] = []
        # Where documents were forgotten that checkpoints say are there.
        self._forgotten: dict[Name, set[Node]] = defaultdict(set)

    # --- Edits -----------------------------------------------------------------------------------

    async def put(self, node: Node, name: Name, body: Mapping[str, Any]) -> None:
        """Write a document. Raises StoreClosedError if the node crashes before it is durable."""
        collection = node.database.collection(name.collection)
        self._note(node, await collection.put(name.document, body))

    async def edit(self, node: Node, name: Name, fields: Mapping[str, Any]) -> None:
        """Set some fields of a document, which may be absent. Raises as `put`."""
        current = node.database.collection(name.collection).get(name.document)
        await self.put(node, name, (current.body if current else {}) | dict(fields))

    async def delete(self, node: Node, name: Name) -> None:
        """Delete a document if there is one."""
        collection = node.database.collection(name.collection)
        # An exchange may delete it first.
        with suppress(DocumentNotFoundError):
            self._note(node, await collection.delete(name.document))

    # --- Exchanges -------------------------------------------------------------------------------

    def connect(
        self, route: Route, *, continuous: bool = False, faults: Faults | None = None
    ) -> Exchange:
        """Make an exchange, for `run`."""
        exchange = Exchange(route, self._resolver, continuous=continuous, faults=faults or Faults())
        self.exchanges.append(exchange)
        return exchange

    async def run(self, exchange: Exchange) -> None:
        """Run an exchange to its end, and until both nodes are open."""
        try:
            await exchange.run()
            await self._wait_open(exchange.route.active, exchange.route.passive)
        finally:
            self.exchanges.remove(exchange)
            self.on_end(exchange)
            exchange.ended.set()

    async def run_undisturbed(self, exchange: Exchange) -> None:
        """Run an exchange while nothing else happens, and check that it did all it was to do."""
        route = exchange.route
        nodes = (route.active, route.passive)
        before = {node: node.revisions() for node in nodes}
        clocks = {node: node.clock() for node in nodes}
        await self.run(exchange)
        for name in {name for revisions in before.values() for name in revisions}:
            if self._forgotten[name]:
                continue
            for delivery in deliveries([route], name):
                source, target, _ = delivery
                revision, theirs = before[source].get(name), before[target].get(name)
                ahead = revision.version.time - clocks[target] if revision else 0
                if revision is None or ahead > limits.CLOCK_SKEW_NS_MAX:
                    continue
                # Conflicts are decided by pulling.
                conflicting = theirs and theirs.compare(revision) is Order.CONFLICTING
                if delivery.resolving or route.pulls(name) or not conflicting:
                    self._check_covers(target, name, revision.version)

    async def _wait_open(self, *nodes: Node) -> None:
        """Wait until all are open at once: one may crash while another is waited for."""
        while not all(node.is_open for node in nodes):
            for node in nodes:
                await node.wait_open()

    # --- What befalls nodes ----------------------------------------------------------------------

    def crash(self, node: Node) -> None:
        """Let a node crash: its connections are cut, and it opens again."""
        self._cut(node)
        node.crash()

    async def purge(self, node: Node, name: Name) -> None:
        """Let a node forget a document: what it says it has, it has no longer."""
        self._forgotten[name].add(node)
        await node.database.collection(name.collection).purge(name.document)
        self._note_loss(node)

    async def expire(self, node: Node, name: Name, seconds: float) -> None:
        """Let a node purge a document, if there is one, after some time by its own clock."""
        collection = node.database.collection(name.collection)
        when_us = node.clock() // 1_000 + round(seconds * 10**6)
        # What is due may not be set anew.
        with suppress(DocumentNotFoundError):
            await collection.set_expiration(name.document, moment(when_us))
            self._forgotten[name].add(node)

    async def renew_identity(self, node: Node) -> None:
        """Let a node take another identity while it is in use; its exchanges are cut then."""
        for exchange in self._exchanges_of(node):
            exchange.excuse()
        await node.database.renew_identity()
        await self._end_exchanges(node)

    async def recreate_collection(self, node: Node, full_name: str) -> None:
        """Delete a collection and make it anew, empty; exchanges of the node are cut then."""
        for exchange in self._exchanges_of(node):
            exchange.excuse()
        await node.database.delete_collection(full_name)
        await node.database.create_collection(full_name)
        self._note_loss(node)
        await self._end_exchanges(node)

    async def replace(self, node: Node, copy: Path) -> None:
        """Let a node go on with an earlier copy of its directory."""
        last = self._clock_last(node)
        self._cut(node)
        node.replace(copy)
        await node.wait_open()
        self.witness.forget_sequences(node.database.engine.source)
        # A rolled back clock would give the same versions again within what it had run ahead.
        await trio.sleep(max(0, (last - node.clock()) / _SECOND_NS) + 1)
        self._note_loss(node)

    async def _end_exchanges(self, node: Node) -> None:
        for exchange in self._exchanges_of(node):
            exchange.cut()
            await exchange.ended.wait()

    def add(self, origin: Node, backup: Path) -> None:
        """Let another node begin with a backup of one. It is yet to be run."""
        path = backup.with_name(str(len(self.nodes)))
        node = Node(len(self.nodes), path, origin.skew_s, backup=backup)
        node.on_commit = partial(self._note_commit, node)
        self.nodes.append(node)
        # What the origin was to forget it may have.
        for nodes in self._forgotten.values():
            if origin in nodes:
                nodes.add(node)

    def _cut(self, node: Node) -> None:
        for exchange in self._exchanges_of(node):
            exchange.cut()

    def _exchanges_of(self, node: Node) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.concerns(node)]

    def _note_loss(self, node: Node) -> None:
        """What a node lost may be with others; if not, nobody can be asked for it."""
        kept: list[_Written] = []
        for written in self._written:
            _, name, version = written
            if written.at in (node, None) and not self._covers([node], name, version):
                if self._covers(self.nodes, name, version):
                    kept.append(_Written(None, name, version))
            else:
                kept.append(written)
        self._written = kept

    @staticmethod
    def _clock_last(node: Node) -> int:
        """The latest timestamp that a node made or saw, as far as it is stored."""
        with node.database.engine.read() as txn:
            return schema.counter(txn.raw, txn.tables.meta, schema.META_CLOCK)

    # --- Settling --------------------------------------------------------------------------------

    async def set_clocks_right(self) -> None:
        """Let clocks be wrong by no more than is harmless, until all versions are accepted."""
        for node in self.nodes:
            node.skew_s = max(-SKEW_S_MAX, min(node.skew_s, SKEW_S_MAX))
        latest = max(map(self._clock_last, self.nodes))
        ahead = latest - min(node.clock() for node in self.nodes) - limits.CLOCK_SKEW_NS_MAX
        # A second more, for what is stamped meanwhile.
        await trio.sleep(max(0, math.ceil(ahead / _SECOND_NS) + 1))

    async def settle(self, routes: Iterable[Route]) -> None:
        """Exchange over these routes, in this order, until nothing moves; check the promises."""
        routes = list(routes)
        await self.set_clocks_right()
        for _ in range(4 * len(self.nodes) + 8):
            moved = 0
            for route in routes:
                exchange = self.connect(route)
                await self.run_undisturbed(exchange)
                moved += exchange.moved
            if not moved:
                break
        else:
            raise AssertionError("the nodes do not settle")
        self._check_promises(routes)

    async def calm(self, routes: Iterable[Route]) -> None:
        """Wait until nothing moves on standing exchanges over these routes; check the promises."""
        await self.set_clocks_right()
        await trio.sleep(_QUIET_S)
        for exchange in self.exchanges:
            assert not exchange.is_busy, exchange
        self._check_promises(list(routes))

    async def refresh(self, routes: Iterable[Route]) -> None:
        """Settle, write anew what was forgotten somewhere, and settle: all is promised then."""
        routes = list(routes)
        await self.settle(routes)
        # A clock that was set is noticed after some time only.
        pause_s = limits.TIDY_INTERVAL_S + max(map(self._longest_expiration_s, self.nodes))
        await trio.sleep(pause_s)
        for node in self.nodes:
            self._note_loss(node)
        for name in [name for name, nodes in self._forgotten.items() if nodes]:
            for group in groups(self.nodes, routes, name):
                # Who forgot it knows least of what others have.
                forgetful = [node for node in group if node in self._forgotten[name]]
                await self.put((forgetful or group)[0], name, {"refreshed": 1})
        await self.settle(routes)
        self._forgotten.clear()
        self._check_promises(routes)

    @staticmethod
    def _longest_expiration_s(node: Node) -> float:
        """How long until nothing will expire any more."""
        found = [
            node.database.collection(name.collection).expiration(name.document)
            for name in node.revisions()
        ]
        dues_us = [microseconds(when) or 0 for when in found if when is not None]
        return max(0.0, max(dues_us, default=0) / 10**6 - node.clock() / 10**9 + 1)

    # --- Checks ----------------------------------------------------------------------------------

    def _note_commit(self, node: Node) -> None:
        self._check_checkpoints(node)
        if node.commits_left is not None:
            node.commits_left -= 1
            if node.commits_left < 0:
                node.commits_left = None
                self.crash(node)

    def _check_checkpoints(self, node: Node) -> None:
        routes = [*self.standing, *(exchange.route for exchange in self.exchanges)]
        for route in routes:
            pair = (route.active, route.passive)
            if node in pair and all(other.is_open for other in pair):
                self._check_route(route)

    def _check_route(self, route: Route) -> None:
        """What checkpoints say is done is committed on the other side, or decided against."""
        active, passive = route.active, route.passive
        for full_name in route.collections:
            ours, theirs = active.find(full_name), passive.find(full_name)
            if ours is None or theirs is None:
                continue
            agreed = self._agreed(route, full_name)
            for row in active.feed(ours):
                name = Name(full_name, row.document_id)
                if row.sequence in agreed.local and route.pushes(name):
                    self._check_covers(passive, name, _version(row))
            for row in passive.feed(theirs):
                name = Name(full_name, row.document_id)
                if row.sequence <= int(agreed.remote or 0) and route.pulls(name):
                    self._check_covers(active, name, _version(row))

    def _agreed(self, route: Route, full_name: str) -> Checkpoint:
        """What the checkpoints that both sides of a route have of a collection agree on."""
        active, passive = route.active.database.engine, route.passive.database.engine
        plan = route.collection_plan(full_name, self._resolver)
        client = plan.checkpoint_id(str(passive.id))
        with active.read() as txn:
            ours = checkpoints.local(txn, client)
        with passive.read() as txn:
            theirs = checkpoints.peer(txn, client)
        if ours is None or theirs is None:
            return Checkpoint()
        return Checkpoint.from_json(ours).agreed(Checkpoint.from_json(theirs.body))

    def _check_covers(self, node: Node, name: Name, version: Version) -> None:
        if node not in self._forgotten[name]:
            assert self._covers([node], name, version), (node, name, version, node.held(name))

    def _check_promises(self, routes: list[Route]) -> None:
        found = {node: node.revisions() for node in self.nodes}
        for name in {name for revisions in found.values() for name in revisions}:
            if self._forgotten[name]:
                continue
            for group in groups(self.nodes, routes, name):
                self._check_same(name, {node: found[node].get(name) for node in group})
            for delivery in deliveries(routes, name):
                self._check_delivery(name, delivery)
        for at, name, version in self._written:
            nodes = self.nodes if at is None else [at]
            if not self._forgotten[name]:
                assert self._covers(nodes, name, version), (nodes, name, version)
        for node in self.nodes:
            self._check_blobs(node)
            self._check_at_rest(node)

    @staticmethod
    def _check_blobs(node: Node) -> None:
        """Every blob that a revision names is there, whole."""
        held = [revision for name in node.revisions() for revision in node.held(name)]
        for sha1 in {sha1 for revision in held for sha1 in digests(revision.body)}:
            assert hashlib.sha1(node.read_blob(sha1), usedforsecurity=False).digest() == sha1, (
                node,
                sha1,
            )

    @staticmethod
    def _check_same(name: Name, found: dict[Node, Revision | None]) -> None:
        faces = {_face(revision) for revision in found.values()}
        assert len(faces) == 1, (name, found)

    def _check_delivery(self, name: Name, delivery: Delivery) -> None:
        source, target, resolving = delivery
        ours, theirs = source.revision(name), target.revision(name)
        if ours is None:
            return
        if resolving:
            # Where nobody resolves any more, what waits may stay; but it must be of no matter.
            assert not target.waiting(name), (target, name)
        elif theirs is not None and theirs.compare(ours) is Order.CONFLICTING:
            return
        self._check_covers(target, name, ours.version)

    @staticmethod
    def _check_at_rest(node: Node) -> None:
        """No transaction is open."""
        readers = node.database.engine._environment.env.readers()
        # A line for each thread that ever read; "-" in the last column while it does not.
        assert all(line.endswith(" -") for line in readers.splitlines()[1:]), (node, readers)

    def _covers(self, nodes: Iterable[Node], name: Name, version: Version) -> bool:
        held = [revision for node in nodes for revision in node.held(name)]
        return self.witness.covers(name, held, version)

    def _note(self, node: Node, document: Document) -> None:
        name = Name(document.collection.full_name, document.id)
        self._written.append(_Written(node, name, document.version))


class _Written(NamedTuple):
    """A write that was acknowledged at a node; None once others have it and that node lost it."""

    at: Node | None
    name: Name
    version: Version


def _version(row: ChangeRow) -> Version:
    assert isinstance(row.revision_id, Version)
    return row.revision_id


def _face(revision: Revision | None) -> tuple[Version, bytes, bool] | None:
    """What peers must agree on; their vectors may differ where a merge was trivial."""
    return None if revision is None else (revision.version, revision.body, revision.deleted)
