"""One connection of an active peer, from the first message to the goodbye. Never restarted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import trio

from trio_p2p import limits
from trio_p2p.errors import (
    DuplicateDatabaseError,
    PeerError,
    ReplicationError,
    StoreFullError,
    TrioP2PError,
)
from trio_p2p.model.conflict import ConflictResolver
from trio_p2p.model.sequence_set import SequenceSet
from trio_p2p.peer import Peer
from trio_p2p.replication.blob_server import BlobServer
from trio_p2p.replication.checkpoint import checkpoint_id
from trio_p2p.replication.checkpointer import Checkpointer
from trio_p2p.replication.failure import replication_error
from trio_p2p.replication.filters import Filter, ReplicationFilter
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.knowledge import NoKnowledge, RemoteKnowledge
from trio_p2p.replication.link import Link, Pulse, Window
from trio_p2p.replication.messages import (
    Accepted,
    CollectionsReply,
    GetAttachment,
    GetCollections,
    HeldCheckpoint,
    NoRevision,
    OfferChanges,
    ProveAttachment,
    Refusal,
    Request,
    Respond,
    SendRevisions,
)
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.replication.puller import Puller
from trio_p2p.replication.pusher import Pusher
from trio_p2p.replication.resolver import Resolver
from trio_p2p.store import remotes
from trio_p2p.store.database import Collection
from trio_p2p.store.transaction import WriteTransaction
from trio_p2p.transport.base import (
    CLOSE_NORMAL,
    CLOSE_PERMANENT,
    CLOSE_TRANSIENT,
    MessageTransport,
)

DEFAULT_COLLECTION = "_default"
# What stands for a peer without a name in the names of checkpoints.
UNNAMED_PEER = "custom:"
# How a peer refuses a session that names collections, if it does not, or the other way round.
# Source: Couchbase Lite 3.2 and 4.1, as recorded; 404 from before 3.1, where nothing names them.
_NAMING_REFUSALS = frozenset({("HTTP", 400), ("BLIP", 404)})


class NamingRefusedError(ReplicationError):
    """The peer understands nothing that we say, perhaps because it names collections or does not.

    Raised only where a session that does the other may work: for the default collection alone.
    """


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """How one collection is replicated."""

    collection: Collection
    resolver: ConflictResolver
    document_ids: tuple[str, ...] | None = None
    push_filter: ReplicationFilter | None = None
    pull_filter: ReplicationFilter | None = None
    channels: tuple[str, ...] | None = None

    def checkpoint_id(self, peer_key: str) -> str:
        """What the checkpoint with this peer is called."""
        filters = {"push": self.push_filter, "pull": self.pull_filter}
        return checkpoint_id(
            self.collection.database.id,
            peer_key,
            self.collection.full_name,
            self.document_ids,
            channels=self.channels,
            filtered=[direction for direction, function in filters.items() if function],
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What an active peer is to do.

    `target` names the peer as long as its database's UUID is not known: its URL, mostly. Where
    neither is known, only checkpoints are remembered: both sides must agree on them.
    `deltas` enables them, if the peer does so too. `names_collections`: False speaks as Couchbase
    Lite does up to 3.3 where it replicates nothing but the default collection.
    """

    target: str | None
    collections: tuple[CollectionPlan, ...]
    push: bool = True
    pull: bool = True
    continuous: bool = False
    reset_checkpoint: bool = False
    compression: bool = True
    deltas: bool = False
    names_collections: bool = True


@dataclass(slots=True)
class _Part:
    """What works on one collection."""

    link: Link
    plan: CollectionPlan
    checkpointer: Checkpointer
    resolver: Resolver
    pusher: Pusher | None
    puller: Puller | None
    fetching: bool = False
    """Whether what refused documents conflict with is being fetched."""

    @property
    def busy(self) -> bool:
        return bool(
            self.fetching
            or (self.pusher and (self.pusher.busy or self.pusher.has_unfetched))
            or (self.puller and self.puller.busy)
            or self.resolver.busy
        )

    @property
    def pulling(self) -> bool:
        """Whether more may come from the peer or its conflicts."""
        return bool((self.puller and self.puller.busy) or self.resolver.busy)


class ActiveSession:
    """Replicates as planned over one transport."""

    def __init__(
        self,
        transport: MessageTransport,
        plan: Plan,
        journal: Journal,
        *,
        on_activity: Callable[[bool], None],
        on_healthy: Callable[[], None],
        now_s: Callable[[], int],
        on_peer: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """`on_activity` is told whether there is work at hand.

        `on_healthy` is told when nothing is left that a saved checkpoint does not cover, `on_peer`
        what names the peer, None if nothing does, before anything is replicated; it may refuse it
        by a TrioP2PError. `now_s` is the wall clock in whole seconds. No callback may block.
        """
        self._transport = transport
        self._plan = plan
        self._journal = journal
        self._on_activity = on_activity
        self._on_healthy = on_healthy
        self._on_peer = on_peer
        self._now_s = now_s
        self._engine = plan.collections[0].collection.database.engine
        self._pulse = Pulse()
        self._window = Window()
        self._peer = Peer(transport, compression=plan.compression)
        self._profile = CouchbaseProfile(
            self._peer,
            self._handle,
            active=True,
            deltas=plan.deltas,
            names_collections=plan.names_collections,
            run_aside=self._engine.run_aside,
        )
        self._readable = frozenset(each.collection.number for each in plan.collections)
        self._blob_server = BlobServer(
            self._engine, self._profile, journal, self._readable if plan.push else frozenset()
        )
        self._services: trio.Nursery | None = None
        self._parts: list[_Part] = []
        self._opening = trio.CancelScope()
        self._stopping = False
        self._replicated = False
        self._finished = False

    def request_stop(self) -> None:
        """End soon: resolve the conflicts at hand, save the checkpoint, say goodbye."""
        self._stopping = True
        self._opening.cancel()
        self._pulse.notify()

    def done(self, collection: Collection) -> SequenceSet | None:
        """Which sequences of a collection are done; None before the peer was met."""
        for part in self._parts:
            if part.plan.collection is collection:
                return part.checkpointer.checkpoint.local
        return None

    async def run(self) -> bool:
        """Replicate until done (one-shot), asked to stop, or failed; returns whether all was done.

        Raises: ReplicationError, with what ended it as its cause; NamingRefusedError.
        Cancelling: ends the connection without a goodbye; what was stored stays, and what the last
        checkpoint did not cover is offered again next time.
        """
        failure: BaseExceptionGroup[TrioP2PError] | None = None
        lost: BaseExceptionGroup[TrioP2PError] | None = None
        try:
            async with trio.open_nursery() as services:
                self._services = services
                services.start_soon(self._profile.run)
                services.start_soon(
                    self._peer.run,
                    self._profile.on_request,
                    self._profile.prepare,
                    self._waits_for_peer,
                )
                try:
                    await self._replicate()
                except* TrioP2PError as group:
                    failure = group
                await self._say_goodbye(failure)
                services.cancel_scope.cancel()
        except* TrioP2PError as group:
            lost = group
        finally:
            self._transport.abort()
            self._journal.moved(self._peer.bytes_sent, self._peer.bytes_received)
        if failure is not None:
            raise self._error(failure) from failure
        if lost is not None and not self._finished:
            raise self._error(lost) from lost
        return not self._stopping

    def _error(self, failure: BaseExceptionGroup[TrioP2PError]) -> ReplicationError:
        error = replication_error(failure, continuous=self._plan.continuous)
        names = [plan.collection.full_name for plan in self._plan.collections]
        if self._profile.is_understood or names != [DEFAULT_COLLECTION]:
            return error
        if failure.split(_refuses_naming)[0] is None:
            return error
        return NamingRefusedError(error.message, status=error.status)

    async def _say_goodbye(self, failure: BaseExceptionGroup[TrioP2PError] | None) -> None:
        """Close with the code that Couchbase Lite would.

        What the peer refused is its own doing, and a full disk is not passing soon.
        """
        if failure is None:
            await self._peer.flush()
            # From here on, that the connection ends is no failure.
            self._finished = True
            await self._transport.aclose(CLOSE_NORMAL)
        elif failure.split((PeerError, StoreFullError))[0] is None:
            await self._transport.aclose(CLOSE_NORMAL)
        else:
            retryable = self._error(failure).retryable
            await self._transport.aclose(CLOSE_TRANSIENT if retryable else CLOSE_PERMANENT)

    async def _replicate(self) -> None:
        with self._opening:
            self._parts = await self._open()
        if self._opening.cancelled_caught:
            return
        self._journal.connected()
        async with trio.open_nursery() as saver:
            # It outlives the others: a save that is cut off would be refused when it is repeated.
            saver.start_soon(self._save_checkpoints)
            async with trio.open_nursery() as deciders:
                deciders.start_soon(self._report_activity)
                async with trio.open_nursery() as movers:
                    for part in self._parts:
                        self._start_part(part, movers, deciders)
                    await self._pulse.until(self._may_end)
                    movers.cancel_scope.cancel()
                await self._finish_resolving()
                deciders.cancel_scope.cancel()
            self._replicated = True
            self._pulse.notify()

    def _start_part(self, part: _Part, movers: trio.Nursery, deciders: trio.Nursery) -> None:
        if part.puller is not None:
            part.resolver.find_existing()
            deciders.start_soon(part.resolver.run)
            movers.start_soon(part.puller.run_inserter)
            movers.start_soon(part.puller.run, self._plan.continuous, part.plan.document_ids)
        if part.pusher is not None:
            movers.start_soon(part.pusher.run)
        if part.pusher is not None and part.puller is not None:
            movers.start_soon(self._fetch_refused, part, part.pusher, part.puller)
        for worker in (part.pusher, part.puller):
            if self._plan.continuous and worker is not None:
                movers.start_soon(self._retry_failed, worker, part.link.pulse)

    async def _fetch_refused(self, part: _Part, pusher: Pusher, puller: Puller) -> None:
        """Fetch what a refused document conflicts with, where the pull did not bring it."""
        pulse = part.link.pulse
        while True:
            await pulse.until(lambda: pusher.has_unfetched and puller.caught_up)
            # The pull may still bring it; but other documents may keep us busy for ever.
            with trio.move_on_after(limits.FETCH_PAUSE_S):
                await pulse.until(lambda: not (pusher.busy or part.pulling))
            document_ids = pusher.take_unfetched()
            part.fetching = True
            fetched = await puller.fetch(document_ids)
            if fetched and not self._plan.continuous:
                # It pushes what the resolver makes of them, too, and then ends.
                await pulse.until(lambda: not part.pulling)
            pusher.go_on_with(fetched)
            part.fetching = False
            pulse.notify()

    async def _retry_failed(self, worker: Pusher | Puller, pulse: Pulse) -> None:
        """Try again what failed for now, after pauses that grow until nothing fails."""
        pause_s = limits.RETRY_DOCUMENTS_S
        while True:
            if not worker.has_failed:
                pause_s = limits.RETRY_DOCUMENTS_S
            await pulse.until(lambda: worker.has_failed)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, limits.RETRY_DOCUMENTS_S_MAX)
            await worker.retry_failed()

    async def _finish_resolving(self) -> None:
        """When asked to stop: resolve what waits, unless that takes long."""
        with trio.move_on_after(limits.RESOLVING_TIMEOUT_S):
            await self._pulse.until(lambda: not any(part.resolver.busy for part in self._parts))

    def _may_end(self) -> bool:
        if self._stopping:
            return True
        if self._plan.continuous:
            return False
        for part in self._parts:
            # Whatever is written from now on is for the next run, or this one might never end.
            if part.pusher is not None and not part.pulling:
                part.pusher.stop_at(part.link.collection.last_sequence)
        return not self._busy()

    def _busy(self) -> bool:
        return any(part.busy for part in self._parts)

    def _waits_for_peer(self) -> bool:
        pullers = (part.puller for part in self._parts)
        return any(puller is not None and puller.waits_for_peer for puller in pullers)

    async def _report_activity(self) -> None:
        def is_active() -> bool:
            # Idle means that nothing would be lost with the connection, not even what is known.
            return self._busy() or self._unsaved() > 0

        while True:
            active = is_active()
            self._on_activity(active)
            if not active:
                self._on_healthy()
            await self._pulse.until(lambda active=active: is_active() != active)  # type: ignore[misc]

    async def _save_checkpoints(self) -> None:
        """Save what changed: soon, or at once when there is much of it or nothing else to do.

        Returns once all is replicated and saved.
        """
        while not self._replicated or self._unsaved():
            await self._pulse.until(lambda: self._replicated or self._unsaved() > 0)
            with trio.move_on_after(limits.CHECKPOINT_INTERVAL_S):
                await self._pulse.until(self._may_save)
            saved = False
            for part in self._parts:
                if part.checkpointer.unsaved:
                    await part.checkpointer.save()
                    saved = True
            if saved:
                self._on_healthy()
            self._pulse.notify()

    def _may_save(self) -> bool:
        """Whether to wait no longer for more to save with it."""
        enough = self._unsaved() >= limits.CHECKPOINT_DOCUMENTS
        return enough or self._replicated or not self._busy()

    def _unsaved(self) -> int:
        return sum(part.checkpointer.unsaved for part in self._parts)

    # --- Opening ---------------------------------------------------------------------------------

    async def _open(self) -> list[_Part]:
        """Learn who the peer is and where both sides left off."""
        plans, target = self._plan.collections, self._plan.target
        peer_key = target
        if target is not None:
            with self._engine.read() as txn:
                peer_key = remotes.peer_at(txn, target) or target
        ids = self._checkpoint_ids(peer_key or UNNAMED_PEER)
        names = tuple(plan.collection.full_name for plan in plans)
        if self._plan.names_collections:
            reply = await self._get_collections(GetCollections(names, ids, self._engine.id))
        else:
            reply = CollectionsReply(tuple(await self._get_checkpoints(ids)), None)
        missing = [n for n, c in zip(names, reply.checkpoints, strict=True) if c is None]
        if missing:
            text = f"collection not found on remote: {', '.join(missing)}"
            raise ReplicationError(text, status=404)
        held = [checkpoint for checkpoint in reply.checkpoints if checkpoint is not None]
        known_key = self._peer_key(reply)
        self._on_peer(known_key)
        remote = None
        if known_key is not None:
            if known_key != peer_key:
                ids = self._checkpoint_ids(known_key)
                held = await self._get_checkpoints(ids)
            remote = await self._remember(known_key)
        return [
            self._part(index, plan, remote, ids[index], held[index])
            for index, plan in enumerate(plans)
        ]

    def _peer_key(self, reply: CollectionsReply) -> str | None:
        """What names the peer, if anything does. Whom we met at its target before does not count.

        A name that others may have too must not count either: what one of them has would be taken
        for held by all.
        """
        if reply.database_id is None:
            return self._plan.target
        self._check_identity(reply.database_id)
        return str(reply.database_id)

    async def _get_collections(self, request: GetCollections) -> CollectionsReply:
        try:
            return await self._profile.get_collections(request)
        except PeerError as exc:
            if (exc.domain, exc.code) == ("HTTP", 409):
                raise self._duplicate() from exc
            raise

    async def _get_checkpoints(self, ids: Sequence[str]) -> list[HeldCheckpoint]:
        held = []
        for index, client in enumerate(ids):
            found = await self._profile.get_checkpoint(index, client)
            held.append(found or HeldCheckpoint("", b"{}"))
        return held

    def _checkpoint_ids(self, peer_key: str) -> tuple[str, ...]:
        return tuple(plan.checkpoint_id(peer_key) for plan in self._plan.collections)

    def _check_identity(self, theirs: UUID) -> None:
        if theirs == self._engine.id:
            raise self._duplicate()

    def _duplicate(self) -> DuplicateDatabaseError:
        return DuplicateDatabaseError(
            "both peers hold copies of the same database; give one of them a new identity",
            id=str(self._engine.id),
        )

    async def _remember(self, peer_key: str) -> int:
        """Note which peer answers at the target; returns its number in the store."""

        def job(txn: WriteTransaction) -> int:
            if self._plan.target is not None:
                remotes.set_peer_at(txn, self._plan.target, peer_key)
            return remotes.number(txn, peer_key)

        return await self._engine.write(job)

    def _part(
        self,
        index: int,
        plan: CollectionPlan,
        remote: int | None,
        client: str,
        held: HeldCheckpoint,
    ) -> _Part:
        link = Link(
            plan.collection,
            index,
            self._profile,
            self._journal,
            Pulse(self._pulse),
            self._window,
            self._readable,
        )
        number = plan.collection.number
        knowledge = NoKnowledge() if remote is None else RemoteKnowledge(remote, number)
        checkpointer = Checkpointer(link, client, held, knowledge, now_s=self._now_s)
        if self._plan.reset_checkpoint:
            checkpointer.forget()
        resolver = Resolver(link, plan.resolver, remote=knowledge.remote)
        pusher = puller = None
        if self._plan.push:
            pusher = Pusher(
                link,
                knowledge,
                checkpointer,
                pulling=self._plan.pull,
                document_ids=None if plan.document_ids is None else frozenset(plan.document_ids),
                push_filter=_filter(plan.push_filter, plan.collection),
            )
        if self._plan.pull:
            puller = Puller(
                link,
                knowledge,
                checkpointer.sequences,
                resolver,
                pull_filter=_filter(plan.pull_filter, plan.collection),
                channels=plan.channels,
            )
        return _Part(link, plan, checkpointer, resolver, pusher, puller)

    # --- Being asked -----------------------------------------------------------------------------

    def _handle(self, request: Request, respond: Respond) -> None:
        match request:
            case GetAttachment():
                self._start(self._blob_server.send, request, respond)
                return
            case ProveAttachment():
                self._start(self._blob_server.prove, request, respond)
                return
            case OfferChanges(collection) | SendRevisions(collection) | NoRevision(collection):
                puller = self._puller(collection)
                if puller is None:
                    respond(Refusal(400, "this collection is not being pulled"))
                    return
            case _:
                respond(Refusal(404, "no handler for message", "BLIP"))
                return
        match request:
            case OfferChanges():
                puller.offered(request, respond)
            case SendRevisions():
                puller.arrived(request, respond)
            case NoRevision():
                puller.withheld(request)
                respond(Accepted())

    def _start(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        assert self._services is not None
        self._services.start_soon(function, *args)

    def _puller(self, collection: int) -> Puller | None:
        return self._parts[collection].puller if collection < len(self._parts) else None


def _refuses_naming(error: BaseException) -> bool:
    return isinstance(error, PeerError) and (error.domain, error.code) in _NAMING_REFUSALS


def _filter(function: ReplicationFilter | None, collection: Collection) -> Filter | None:
    return None if function is None else Filter(function, collection)
