"""The active peer: keeps sessions to one remote going until the work is done.

What it does is told by its activity; `docs/topics/life-cycle.md` has the table of its states.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

import trio
from cryptography import x509

from trio_p2p import ids, limits
from trio_p2p.errors import (
    CollectionNotFoundError,
    ConfigurationError,
    ReplicationError,
    TrioP2PError,
)
from trio_p2p.model.sequence_set import SequenceSet
from trio_p2p.replication.backoff import attempt_wait_s
from trio_p2p.replication.connector import (
    Access,
    Connected,
    Endpoint,
    open_target,
)
from trio_p2p.replication.failure import replication_error
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.link import Pulse
from trio_p2p.replication.pending import Pending
from trio_p2p.replication.session import (
    ActiveSession,
    NamingRefusedError,
    Plan,
)
from trio_p2p.replication.status import (
    ActivityLevel,
    ReplicatorResult,
    ReplicatorStatistics,
    ReplicatorStatus,
)
from trio_p2p.replication.watching import DocumentReplications, StatusChanges
from trio_p2p.replicator_configuration import ReplicatorConfiguration, ReplicatorType
from trio_p2p.store import remotes
from trio_p2p.store.collection import Collection, check_undeleted
from trio_p2p.store.services import Service
from trio_p2p.transport.base import MessageTransport, open_services

logger = logging.getLogger(__name__)


class Replicator:
    """One replication with one peer. `open_replicator` runs it; so does `run` in a nursery."""

    def __init__(
        self, configuration: ReplicatorConfiguration, *, reset_checkpoint: bool = False
    ) -> None:
        """`reset_checkpoint` starts from the beginning; what both sides have is not sent again."""
        self.configuration = configuration
        self._reset_checkpoint = reset_checkpoint
        self._pulse = Pulse()
        self._journal = Journal(self._note_progress)
        self._activity = ActivityLevel.STOPPED
        self._error: ReplicationError | None = None
        self._published = 0
        self._progress_changed = False
        self._begun = False
        self._suspended = False
        # Whether it was suspended and resumed since the last attempt began, however quickly.
        self._resumed = False
        self._stopping = False
        self._stopped = trio.Event()
        self._done = False
        self._service: Service | None = None
        self._attempt_scope: trio.CancelScope | None = None
        self._session: ActiveSession | None = None
        self._peer_key: str | None = None
        # What was done at that peer when the last connection ended, by the numbers of collections:
        # nothing else tells it if nothing names the peer.
        self._done_there: dict[int, SequenceSet] = {}
        self._healthy = False
        self._names_collections = True
        self._may_change_naming = True
        self._server_certificate: x509.Certificate | None = None

    # --- What it tells ---------------------------------------------------------------------------

    @property
    def status(self) -> ReplicatorStatus:
        """What it is doing now."""
        error: TrioP2PError | None = self._error
        if error is None and self._activity in (ActivityLevel.IDLE, ActivityLevel.BUSY):
            error = self._journal.clock_skew
        return ReplicatorStatus(self._activity, self._journal.progress(), error)

    @property
    def is_done(self) -> bool:
        """Whether a one-shot replication has done all it was to do."""
        return self._done

    @property
    def published(self) -> int:
        """How often the status has changed; tells two statuses apart."""
        return self._published

    @property
    def server_certificate(self) -> x509.Certificate | None:
        """What the peer presented last, trusted or not; None before, and without TLS."""
        return self._server_certificate

    def statistics(self) -> ReplicatorStatistics:
        """Counters since it was made."""
        return self._journal.statistics()

    def result(self) -> ReplicatorResult:
        """What was done so far."""
        statistics = self.statistics()
        return ReplicatorResult(
            statistics.documents_pushed,
            statistics.documents_pulled,
            statistics.documents_failed,
            tuple(self._journal.failures),
            statistics,
        )

    def pending_document_ids(self, collection: Collection) -> frozenset[str]:
        """The documents of a collection that are yet to be pushed, those refused among them.

        It works before the start, while running and afterwards, also without a connection. Before
        the peer was met for the first time, all are pending that a filter or document IDs do not
        hold back; what an async filter says is not asked. A target that is a function, without a
        `target_id`, does not tell who was met there before: this replicator must meet its peer.

        Raises: ConfigurationError if it does not push, CollectionNotFoundError if the collection is
        not replicated or was deleted, StoreClosedError.
        """
        return self._pending(collection).document_ids()

    def is_document_pending(self, collection: Collection, document_id: str) -> bool:
        """Whether a document is yet to be pushed; as `pending_document_ids`.

        Raises: InvalidDocumentError; otherwise as that does.
        """
        return self._pending(collection).has(ids.document_id(document_id))

    def status_changes(self) -> StatusChanges:
        """Iterate over what it is doing, from now until it stops.

        An activity change comes at once, mere progress at most every 200 ms; a slow consumer gets
        the latest status only. Cancelling: safe.
        """
        return StatusChanges(self, self._pulse)

    def document_replications(self) -> DocumentReplications:
        """Iterate over the documents replicated, from the start of the run until it stops.

        The latest 10,000 are kept for who comes late; `missed` of the iterator counts the others.
        Cancelling: safe.
        """
        return DocumentReplications(self._journal, self._pulse, self._stopped.is_set)

    async def wait_for(self, *levels: ActivityLevel) -> ReplicatorStatus:
        """Wait until it is at one of these levels, having begun to run.

        It also ends, with the status of one that has stopped, when a one-shot is done or a stop was
        asked for.

        Raises: ReplicationError if it stops by itself first; ConfigurationError for what is no
        level, which would never be reached.
        Cancelling: safe.
        """
        for level in levels:
            if not isinstance(level, ActivityLevel):
                raise ConfigurationError("only activity levels can be waited for", got=repr(level))
        wanted = {*levels, ActivityLevel.STOPPED}
        await self._pulse.until(lambda: self._begun and self._activity in wanted)
        status = self.status
        if status.activity not in levels and not (self._done or self._stopping):
            reason = self._error
            raise ReplicationError(
                "the replicator stopped" + (f": {reason.message}" if reason else ""),
                status=reason.status if reason else None,
            ) from reason
        return status

    # --- Running ---------------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[Replicator] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Replicate until done, stopped or failed for good; what failed it is in `status`.

        Closing the database stops it.

        Raises: ConfigurationError if it has run before, or another one with the same peer,
        collections and direction is running; StoreClosedError if the database is closed. A
        run that is refused is its one run all the same.
        Cancelling: ends the connection without a goodbye; `stop` ends it gracefully.
        """
        if self._begun:
            raise ConfigurationError("a replicator runs once: make another")
        self._begun = True
        try:
            with self.configuration.database.services.running(self.request_stop) as self._service:
                self._claim_target()
                self._publish(ActivityLevel.CONNECTING)
                task_status.started(self)
                async with open_services() as services:
                    services.start_soon(self._publish_progress)
                    await self._supervise()
        except TrioP2PError as exc:  # It may not run; who waits for it is told, too.
            self._error = replication_error(exc)
            self._error.__cause__ = exc
            raise
        finally:
            self._stopped.set()
            self._publish(ActivityLevel.STOPPED, self._error)

    def request_stop(self) -> None:
        """Ask it to end as `stop` does. Does not wait."""
        if not self._stopped.is_set():  # Else it has stopped by itself, and that remains so.
            self._stopping = True
        self._end_attempt()

    async def stop(self) -> None:
        """End gracefully: resolve the conflicts at hand, save the checkpoint, say goodbye.

        What takes longer than STOP_TIMEOUT_S is cut off. Does nothing if it does not run.

        Cancelling: cuts it off at once.
        """
        self.request_stop()
        await trio.lowlevel.checkpoint()
        if not self._begun:
            return
        try:
            with trio.move_on_after(limits.STOP_TIMEOUT_S + limits.CUT_TIMEOUT_S):
                await self._stopped.wait()
        finally:
            if self._attempt_scope is not None:
                self._attempt_scope.cancel()

    def suspend(self) -> None:
        """Disconnect gracefully and stay OFFLINE until `resume`. Does not wait.

        May be called before it runs. Has no effect on one that stops or has stopped.
        """
        if not self._stopping:
            self._suspended = True
            self._end_attempt()

    def resume(self) -> None:
        """Connect again at once if it was suspended; as many attempts may fail as at the start."""
        if self._suspended:
            self._suspended = False
            self._resumed = True
            self._pulse.notify()

    def _end_attempt(self) -> None:
        """Let the connection there is end soon, at once if it is only being made."""
        if self._session is not None and self._attempt_scope is not None:
            self._session.request_stop()
            self._publish(ActivityLevel.BUSY)
            cut_at = trio.current_time() + limits.STOP_TIMEOUT_S
            self._attempt_scope.deadline = min(self._attempt_scope.deadline, cut_at)
        elif self._attempt_scope is not None:
            self._attempt_scope.cancel()
        self._pulse.notify()

    @property
    def _ending(self) -> bool:
        return self._stopping or self._suspended

    def _pending(self, collection: Collection) -> Pending:
        configuration = self.configuration
        if configuration.replicator_type is ReplicatorType.PULL:
            raise ConfigurationError("this replicator does not push: nothing is pending")
        for plan in configuration.plans():
            if plan.collection is collection:
                break
        else:
            raise CollectionNotFoundError("the collection is not replicated", name=str(collection))
        done = None if self._session is None else self._session.done(collection)
        peer_key = self._expected_peer()
        if done is None and peer_key is None:
            done = self._done_there.get(collection.number)
        return Pending(plan, peer_key, done)

    async def _supervise(self) -> None:
        failures = 0
        while not self._stopping:
            if self._suspended:
                self._publish(ActivityLevel.OFFLINE, self._error)
                await self._pulse.until(lambda: self._stopping or not self._suspended)
                continue
            if self._resumed:
                failures = 0
                self._resumed = False
            self._publish(ActivityLevel.CONNECTING, self._error)
            self._healthy = False
            try:
                self._done = await self._attempt()
            except ReplicationError as exc:
                self._error = exc
            else:
                self._error = None
                if self._done:
                    return
                continue
            if isinstance(self._error, NamingRefusedError) and self._may_change_naming:
                # Once, at once: a peer that refuses both ways has another reason.
                self._names_collections = not self._names_collections
                self._may_change_naming = False
                continue
            if self._ending or self._resumed:
                continue  # It was to end: how it did says nothing of the next attempt.
            failures = 1 if self._healthy else failures + 1
            if not self._error.retryable or failures >= self._attempts_max:
                return
            await self._back_off(failures)

    async def _back_off(self, failures: int) -> None:
        """Stay offline for a while, unless something else is asked for."""
        self._publish(ActivityLevel.OFFLINE, self._error)
        wait_s = attempt_wait_s(
            failures,
            wait_s_max=self.configuration.max_attempt_wait,
            jitter=random.random,  # noqa: TID251  # Here chance enters.
        )
        with trio.move_on_after(wait_s):
            await self._pulse.until(lambda: self._ending or self._resumed)

    @property
    def _attempts_max(self) -> float:
        configured = self.configuration.max_attempts
        if configured is not None:
            return configured
        return float("inf") if self.configuration.continuous else limits.ATTEMPTS_ONE_SHOT

    async def _attempt(self) -> bool:
        """One connection, from dialling to the goodbye; returns whether all was done.

        Raises: ReplicationError.
        """
        done = False
        try:
            check_undeleted(self.configuration.collections)
            with trio.CancelScope() as self._attempt_scope:
                async with self._connect() as connected:
                    self._session = self._make_session(connected.transport)
                    done = await self._session.run()
        except ReplicationError:
            raise
        except TrioP2PError as exc:
            raise replication_error(exc, continuous=self.configuration.continuous) from exc
        except Exception as exc:  # The guard around a session: transports may be the user's.
            logger.exception("a replication failed in an unexpected way")
            raise ReplicationError(f"the replication failed unexpectedly: {exc!r}") from exc
        finally:
            if self._session is not None:
                self._remember_done(self._session)
            self._session = None
            self._attempt_scope = None
        return done

    def _remember_done(self, session: ActiveSession) -> None:
        """Keep what a session knows to be done, unless it has not met the peer."""
        for collection in self.configuration.collections:
            done = session.done(collection)
            if done is not None:
                self._done_there[collection.number] = done

    def _connect(self) -> AbstractAsyncContextManager[Connected]:
        configuration = self.configuration
        target = configuration.target
        access = Access(
            trust=configuration.trust(),
            authenticator=configuration.authenticator,
            headers=configuration.headers,
            heartbeat_s=configuration.heartbeat,
            now=self._now,
            note_certificate=self._note_certificate,
            network_interface=configuration.network_interface,
        )
        return open_target(Endpoint.parse(target) if isinstance(target, str) else target, access)

    def _make_session(self, transport: MessageTransport) -> ActiveSession:
        configuration = self.configuration
        kind = configuration.replicator_type
        plan = Plan(
            target=configuration.peer_name,
            collections=configuration.plans(),
            push=kind is not ReplicatorType.PULL,
            pull=kind is not ReplicatorType.PUSH,
            continuous=configuration.continuous,
            reset_checkpoint=self._reset_checkpoint,
            compression=configuration.compression,
            deltas=configuration.enable_delta_sync and configuration.database.delta_sync,
            names_collections=self._names_collections,
        )
        return ActiveSession(
            transport,
            plan,
            self._journal,
            on_activity=self._note_activity,
            on_healthy=self._note_healthy,
            on_peer=self._note_peer,
            now_s=lambda: int(self._now().timestamp()),
        )

    def _expected_peer(self) -> str | None:
        """What names the peer that was met at the target last; its own name before that.

        Who was met at a target without a name is not written down: only this replicator knows.
        """
        name = self.configuration.peer_name
        if name is None:
            return self._peer_key
        with self.configuration.database.engine.read() as txn:
            return remotes.peer_at(txn, name) or name

    def _claim_target(self) -> None:
        """Claim what names the target for the whole run, and whom it is expected to lead to."""
        if self.configuration.peer_name is not None:
            self._claim(self.configuration.peer_name)
        self._note_peer(self._expected_peer())

    def _note_peer(self, peer_key: str | None) -> None:
        """This is the peer from now on, None if nothing names it; others may have the one before.

        It is still claimed when the connection ends, for the next one is likely to lead there too.
        Raises ConfigurationError.
        """
        if peer_key is not None:
            self._claim(peer_key)
        self._done_there.clear()
        before, self._peer_key = self._peer_key, peer_key
        if before is not None and before not in (peer_key, self.configuration.peer_name):
            assert self._service is not None
            self._service.release(self._kind(before))

    def _claim(self, peer_key: str) -> None:
        """Be the only replicator of its kind with this peer. Raises ConfigurationError."""
        assert self._service is not None
        if not self._service.claim(self._kind(peer_key)):
            raise ConfigurationError(
                "a replicator of these collections with this peer is running already, "
                "in the same direction",
                peer=peer_key,
            )

    def _kind(self, peer_key: str) -> Hashable:
        """What only one replicator with this peer may be."""
        configuration = self.configuration
        collections = frozenset(collection.number for collection in configuration.collections)
        return "replicator", peer_key, collections, configuration.replicator_type

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.configuration.database.engine.now_ns() / 10**9, UTC)

    # --- Being told ------------------------------------------------------------------------------

    def _note_activity(self, busy: bool) -> None:
        # Whoever is ending has something to do until it has ended.
        self._publish(ActivityLevel.BUSY if busy or self._ending else ActivityLevel.IDLE)

    def _note_healthy(self) -> None:
        """Saved checkpoints cover what was done: the peer works, and a reset has taken effect."""
        self._healthy = True
        self._reset_checkpoint = False
        self._may_change_naming = True

    def _note_certificate(self, certificate: x509.Certificate) -> None:
        self._server_certificate = certificate

    def _note_progress(self) -> None:
        if not self._progress_changed:
            self._progress_changed = True
            self._pulse.notify()

    def _publish(self, activity: ActivityLevel, error: ReplicationError | None = None) -> None:
        self._activity = activity
        self._error = error
        self._published += 1
        self._pulse.notify()

    async def _publish_progress(self) -> None:
        while True:
            await self._pulse.until(lambda: self._progress_changed)
            self._progress_changed = False
            self._published += 1
            self._pulse.notify()
            await trio.sleep(limits.PROGRESS_INTERVAL_S)


@asynccontextmanager
async def open_replicator(
    configuration: ReplicatorConfiguration, *, reset_checkpoint: bool = False
) -> AsyncIterator[Replicator]:
    """Run a replicator in the background; leaving the block stops it gracefully.

    It never raises the replication's own failure, which is in `status`; what the body raises
    leaves as it was.

    Raises: ConfigurationError if another one with the same peer, collections and direction is
    running; StoreClosedError if the database is closed.
    Cancelling: cuts the connection at once, as `Replicator.run` does; what no checkpoint covers is
    offered again next time.
    """
    replicator = Replicator(configuration, reset_checkpoint=reset_checkpoint)
    async with open_services() as services:
        await services.start(replicator.run)
        try:
            yield replicator
        finally:
            with trio.CancelScope(shield=True):  # Bounded: `stop` has a deadline.
                await replicator.stop()


async def replicate(
    configuration: ReplicatorConfiguration, *, reset_checkpoint: bool = False
) -> ReplicatorResult:
    """Run a one-shot replication to its end and tell what it did.

    Raises: ReplicationError if it failed for good, used up its attempts, or was stopped because the
    database is being closed; ConfigurationError if it is continuous, or another one with the same
    peer, collections and direction is running; StoreClosedError if the database is closed.
    Cancelling: ends it without a goodbye; what the last checkpoint did not cover is offered again.
    """
    if configuration.continuous:
        raise ConfigurationError("a continuous replication has no end: use open_replicator")
    replicator = Replicator(configuration, reset_checkpoint=reset_checkpoint)
    await replicator.run()
    error = replicator.status.error
    if isinstance(error, ReplicationError):
        raise ReplicationError(error.message, status=error.status, retryable=error.retryable) from (
            error
        )
    if not replicator.is_done:
        raise ReplicationError("the replication was stopped before it was done", retryable=True)
    return replicator.result()
