"""The passive peer: accepts connections, authenticates them, and serves each apart from others.

`docs/topics/life-cycle.md` tells how it and its connections end.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

import trio
from cryptography import x509

from trio_p2p import limits
from trio_p2p.blip.load import Budget
from trio_p2p.errors import ConfigurationError, StoreClosedError, TrioP2PError
from trio_p2p.listener_configuration import URLEndpointListenerConfiguration
from trio_p2p.replication.connector import SYNC_PATH, url_name
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.profiles.couchbase import SUBPROTOCOL
from trio_p2p.replication.status import ActivityLevel, ReplicatorStatistics
from trio_p2p.security.anonymous import LISTENER_LABEL, AnonymousIdentity
from trio_p2p.security.entrance import Entrance, Guest, IdentitySource, Rules
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.places import address_of
from trio_p2p.store.collection import check_undeleted
from trio_p2p.transport.accepting import accept_all
from trio_p2p.transport.base import CLOSE_CODES, CLOSE_TRANSIENT, MessageTransport, open_services
from trio_p2p.transport.interfaces import (
    Address,
    address_at,
    addresses_of,
    addresses_served,
    open_listeners,
    port_of,
    url_host,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """How many peers are connected, and how many of them replicate something just now."""

    connection_count: int
    active_connection_count: int


@dataclass(frozen=True, slots=True)
class ListenerConnection:
    """One connected peer.

    `peer_address` is `host:port`, or what `handle` was given. `user` is None where no password is
    asked for, `certificate` where no certificate is. `since` is aware; `active` tells whether it
    replicates something just now.
    """

    peer_address: str
    user: str | None
    since: datetime
    active: bool
    certificate: x509.Certificate | None = None

    @property
    def activity(self) -> ActivityLevel:
        """BUSY while it replicates something, else IDLE."""
        return ActivityLevel.BUSY if self.active else ActivityLevel.IDLE


class _Connection:
    """A connection from its beginning: `session` and `told` are there once its peer is let in."""

    def __init__(self, peer_address: str) -> None:
        self.peer_address = peer_address
        self.scope = trio.CancelScope()
        self.session: PassiveSession | None = None
        self.told: ListenerConnection | None = None
        self._leaving = trio.Event()
        self._close_code = CLOSE_TRANSIENT

    @property
    def active(self) -> bool:
        return self.session is not None and self.session.busy

    def request_stop(self, code: int = CLOSE_TRANSIENT) -> None:
        """End it soon, with a goodbye if the peer was let in."""
        if self.session is None:
            self.scope.cancel()
            return
        self._close_code = code
        self._leaving.set()
        cut_at = trio.current_time() + limits.STOP_TIMEOUT_S
        self.scope.deadline = min(self.scope.deadline, cut_at)

    async def serve(self, session: PassiveSession, guest: Guest, since: datetime) -> None:
        """Serve the peer that was let in, until it leaves or is to."""
        self.session = session
        self.told = ListenerConnection(
            self.peer_address, guest.user, since, False, guest.certificate
        )
        async with open_services() as services:
            services.start_soon(self._say_goodbye, guest.transport)
            await session.run()

    async def _say_goodbye(self, transport: MessageTransport) -> None:
        await self._leaving.wait()
        await transport.aclose(self._close_code, "the listener stops")


class URLEndpointListener:
    """Serves the collections of one database. `open_listener` runs it; so does `serve`."""

    def __init__(self, configuration: URLEndpointListenerConfiguration) -> None:
        self.configuration = configuration
        self._journal = Journal(events_max=0)  # It has counters to tell, no events.
        self._port: int | None = None
        self._bound: list[Address] = []
        self._identities = _identity_source(configuration)
        self._identity: TLSIdentity | None = None
        self._entrance = Entrance(
            Rules(
                # On a transport of one's own there is no URL, and so no database to name.
                paths=(f"/{url_name(configuration.database.name)}{SYNC_PATH}", SYNC_PATH),
                subprotocols=(SUBPROTOCOL,),
                authenticator=configuration.authenticator,
                connections_max=configuration.connections_max,
                heartbeat_s=configuration.heartbeat,
                now=self._now,
            )
        )
        # In the order in which they came.
        self._connections: dict[_Connection, None] = {}
        self._connection_ended = trio.Event()
        self._close_code = CLOSE_TRANSIENT
        self._budget = Budget(limits.LISTENER_BYTES_MAX)
        self._stop_requested = trio.Event()
        self._stopped = trio.Event()
        self._stopped.set()

    # --- What it tells ---------------------------------------------------------------------------

    @property
    def port(self) -> int | None:
        """The port it listens on, None while it does not."""
        return self._port

    @property
    def urls(self) -> list[str]:
        """One URL for each address served; empty while it does not listen."""
        if self._port is None:
            return []
        scheme = "ws" if self.configuration.disable_tls else "wss"
        name = quote(url_name(self.configuration.database.name), safe="")
        hosts = map(url_host, addresses_served(self._bound))
        return [f"{scheme}://{host}:{self._port}/{name}" for host in hosts]

    @property
    def tls_identity(self) -> TLSIdentity | None:
        """The identity in use; None while it does not listen, and without TLS."""
        return None if self._port is None else self._identity

    @property
    def status(self) -> ListenerStatus:
        """How many peers are connected and active."""
        served = [connection for connection in self._connections if connection.session is not None]
        return ListenerStatus(len(served), sum(connection.active for connection in served))

    def connections(self) -> list[ListenerConnection]:
        """The peers that are connected, in the order in which they came."""
        return [
            replace(connection.told, active=connection.active)
            for connection in self._connections
            if connection.told is not None
        ]

    def statistics(self) -> ReplicatorStatistics:
        """Counters over all its connections since it was made."""
        return self._journal.statistics()

    # --- Running ---------------------------------------------------------------------------------

    async def serve(
        self, *, task_status: trio.TaskStatus[URLEndpointListener] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until stopped; reports itself as started once it does.

        Closing the database stops it. A collection that is deleted meanwhile is one that peers do
        not find, also when another one of its name is made; the others are served.

        Raises: ListenError if it cannot listen where it was told to; ConfigurationError if it does
        already; CollectionNotFoundError if a collection was deleted; StoreClosedError if the
        database is closed.
        Cancelling: cuts all connections, which their peers take for a passing failure.
        """
        if not self._stopped.is_set():
            raise ConfigurationError("the listener runs already")
        with self.configuration.database.services.running(self.request_stop):
            check_undeleted(self.configuration.collections)
            self._stop_requested, self._stopped = trio.Event(), trio.Event()
            try:
                listeners = await self._listen()
                task_status.started(self)
                async with trio.open_nursery() as connections:
                    await self._accept(listeners, connections)
                    # Those that there are end by themselves now, or are cut off.
                    self._end_connections()
            finally:
                self._stopped.set()

    async def _listen(self) -> list[trio.SocketListener]:
        configuration = self.configuration
        interface = configuration.network_interface
        addresses = [] if interface is None else addresses_of(interface)
        identity = None
        if self._identities is not None:
            identity = await self._identities.current(self._now())
        listeners = await open_listeners(addresses, configuration.port or 0)
        self._port, self._identity = port_of(listeners[0]), identity
        self._bound = [address_at(listener) for listener in listeners]
        return listeners

    def request_stop(self, code: int = CLOSE_TRANSIENT) -> None:
        """Ask it to end as `stop` does. Does not wait."""
        if code not in CLOSE_CODES:
            raise ConfigurationError("no goodbye can carry this code", code=code)
        self._close_code = code
        self._stop_requested.set()
        self._end_connections()

    async def stop(self, code: int = CLOSE_TRANSIENT) -> None:
        """Take no more connections, say goodbye to the connected peers, and end.

        `code` is the WebSocket close code: unless told otherwise, replicators come back later. What
        takes longer than STOP_TIMEOUT_S is cut off. Connections that `handle` serves end too, also
        where it does not listen. It may listen again afterwards. A `serve` that was to begin at the
        same moment is stopped too; later ones are not.

        Raises: ConfigurationError for what is no such code: 1000 to 1003, 1007 to 1013, or 3000 to
        4999. Cancelling: it still ends.
        """
        self.request_stop(code)
        # A task that was just started for `serve` has its first turn with this one's next, perhaps
        # after it. So it has begun by the second.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        self.request_stop(code)
        with trio.move_on_after(limits.STOP_TIMEOUT_S + limits.CUT_TIMEOUT_S):
            await self._stopped.wait()
            while self._connections:
                await self._connection_ended.wait()

    def _end_connections(self) -> None:
        for connection in self._connections:
            connection.request_stop(self._close_code)

    async def handle(
        self, stream: trio.abc.Stream | MessageTransport, *, peer_address: str = ""
    ) -> None:
        """Serve a peer on a connection of yours until it leaves, whether or not it listens.

        On a stream WebSocket is spoken, and the authenticator asked as on any other; there is no
        TLS on it but what you put there. On a message transport nobody can be authenticated. The
        connection is closed. What goes wrong is logged and stays with it. `stop` and closing the
        database end it with a goodbye.

        Raises: StoreClosedError; ConfigurationError for a message transport where there is an
        authenticator. Cancelling: cuts the connection.
        """
        serve: Callable[[_Connection], Awaitable[None]]
        if isinstance(stream, trio.abc.Stream):
            serve = partial(self._serve_stream, stream, None)
        elif self.configuration.authenticator is None:
            serve = partial(self._serve_transport, stream)
        else:
            raise ConfigurationError("on a message transport nobody can be authenticated")
        try:
            await self._handle(peer_address, serve)
        finally:
            try:
                if isinstance(stream, trio.abc.Stream):
                    await trio.aclose_forcefully(stream)
                else:
                    stream.abort()
            except Exception as exc:  # The guard, also around the end of it.
                logger.warning(
                    "a connection from %s could not be closed: %r", peer_address or "a peer", exc
                )

    async def _handle(
        self, peer_address: str, serve: Callable[[_Connection], Awaitable[None]]
    ) -> None:
        connection = _Connection(peer_address)
        services = self.configuration.database.services
        with services.running(connection.request_stop):
            self._connections[connection] = None
            try:
                with connection.scope:
                    await serve(connection)
            except TrioP2PError as exc:
                logger.info("a connection from %s ended: %s", peer_address or "a peer", exc)
            except Exception:  # The guard around a connection: the others must go on.
                logger.exception("a connection from %s failed", peer_address or "a peer")
            finally:
                del self._connections[connection]
                self._connection_ended.set()
                self._connection_ended = trio.Event()

    async def _serve_stream(
        self, stream: trio.abc.Stream, identities: IdentitySource | None, connection: _Connection
    ) -> None:
        identity = None
        if identities is not None:
            # It may have been renewed since the last connection.
            identity = self._identity = await identities.current(self._now())
        async with self._entrance.admit(stream, connection.peer_address, identity) as guest:
            await self._serve_guest(guest, connection)

    async def _serve_transport(self, transport: MessageTransport, connection: _Connection) -> None:
        async with self._entrance.seat(transport, connection.peer_address) as guest:
            await self._serve_guest(guest, connection)

    async def _serve_guest(self, guest: Guest, connection: _Connection) -> None:
        configuration = self.configuration
        session = PassiveSession(
            guest.transport,
            configuration.collections,
            self._journal,
            self._budget.of(address_of(connection.peer_address)),
            on_asked=guest.settle,
            deltas=configuration.enable_delta_sync and configuration.database.delta_sync,
            read_only=configuration.read_only,
        )
        await connection.serve(session, guest, self._now())

    async def _accept(
        self, listeners: Sequence[trio.SocketListener], connections: trio.Nursery
    ) -> None:
        """Accept connections until asked to stop; what is told of listening ends with it."""
        try:
            async with trio.open_nursery() as accepting:
                make_room = self._entrance.places.make_room
                for listener in listeners:
                    accepting.start_soon(
                        accept_all, listener, self._handle_socket, connections, make_room
                    )
                await self._stop_requested.wait()
                accepting.cancel_scope.cancel()
        finally:
            self._port = None

    async def _handle_socket(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # It is gone already.
            await trio.aclose_forcefully(stream)
            return
        peer_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            await self._handle(peer_address, partial(self._serve_stream, stream, self._identities))
        except StoreClosedError:
            logger.info("%s came when the database was about to be closed", peer_address)
        finally:
            await trio.aclose_forcefully(stream)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.configuration.database.engine.now_ns() / 10**9, UTC)


@dataclass(frozen=True, slots=True)
class _Given:
    """The identity that the configuration gives, for ever."""

    identity: TLSIdentity

    async def current(self, now: datetime) -> TLSIdentity:
        await trio.lowlevel.checkpoint()
        return self.identity


def _identity_source(configuration: URLEndpointListenerConfiguration) -> IdentitySource | None:
    if configuration.disable_tls:
        return None
    if configuration.tls_identity is not None:
        return _Given(configuration.tls_identity)
    return AnonymousIdentity(LISTENER_LABEL, configuration.key_store)


@asynccontextmanager
async def open_listener(
    configuration: URLEndpointListenerConfiguration,
) -> AsyncIterator[URLEndpointListener]:
    """Listen in the background; leaving the block stops gracefully.

    Raises: ListenError if it cannot listen where it was told to; ConfigurationError, KeyStoreError
    if its identity cannot be found or made; CollectionNotFoundError if a collection was deleted;
    StoreClosedError. What the body raises leaves as it was.
    Cancelling: as `URLEndpointListener.serve`.
    """
    listener = URLEndpointListener(configuration)
    async with open_services() as services:
        await services.start(listener.serve)
        try:
            yield listener
        finally:
            with trio.CancelScope(shield=True):  # Bounded: `stop` has a deadline.
                await listener.stop()
