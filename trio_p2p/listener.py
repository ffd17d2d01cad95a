"""The passive peer: accepts connections, authenticates them, and serves each apart from others."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

import trio
from cryptography import x509

from trio_p2p import limits
from trio_p2p.blip.load import Budget
from trio_p2p.errors import ConfigurationError, TrioP2PError
from trio_p2p.listener_configuration import URLEndpointListenerConfiguration
from trio_p2p.replication.connector import SYNC_PATH, url_name
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.profiles.couchbase import SUBPROTOCOL
from trio_p2p.replication.status import ReplicatorStatistics
from trio_p2p.security.anonymous import LISTENER_LABEL, AnonymousIdentity
from trio_p2p.security.entrance import Entrance, Guest, IdentitySource, Rules
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.transport.accepting import accept_all
from trio_p2p.transport.base import CLOSE_TRANSIENT, open_services
from trio_p2p.transport.interfaces import (
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

    `user` is None where no password is asked for, `certificate` where no certificate is.
    """

    peer_address: str
    user: str | None
    since: datetime
    active: bool
    certificate: x509.Certificate | None = None


@dataclass(slots=True)
class _Served:
    """A connection being served."""

    guest: Guest
    session: PassiveSession
    peer_address: str
    since: datetime


class URLEndpointListener:
    """Serves the collections of one database. `open_listener` runs it; so does `serve`."""

    def __init__(self, configuration: URLEndpointListenerConfiguration) -> None:
        self.configuration = configuration
        self._journal = Journal()
        self._listeners: list[trio.SocketListener] = []
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
        self._served: dict[int, _Served] = {}
        self._budget = Budget(limits.LISTENER_BYTES_MAX)
        self._stop_requested = trio.Event()
        self._stopped = trio.Event()
        self._stopped.set()

    # --- What it tells ---------------------------------------------------------------------------

    @property
    def port(self) -> int | None:
        """The port it listens on, None while it does not."""
        return port_of(self._listeners[0]) if self._listeners else None

    @property
    def urls(self) -> list[str]:
        """One URL for each address served; empty while it does not listen."""
        port = self.port
        if port is None:
            return []
        scheme = "ws" if self.configuration.disable_tls else "wss"
        name = quote(url_name(self.configuration.database.name), safe="")
        addresses = addresses_served(self.configuration.network_interface)
        return [f"{scheme}://{url_host(address)}:{port}/{name}" for address in addresses]

    @property
    def tls_identity(self) -> TLSIdentity | None:
        """The identity in use; None while it does not listen, and without TLS."""
        return self._identity

    @property
    def status(self) -> ListenerStatus:
        """How many peers are connected and active."""
        active = sum(served.session.busy for served in self._served.values())
        return ListenerStatus(len(self._served), active)

    def connections(self) -> list[ListenerConnection]:
        """The peers that are connected."""
        return [
            ListenerConnection(
                s.peer_address, s.guest.user, s.since, s.session.busy, s.guest.certificate
            )
            for s in self._served.values()
        ]

    def statistics(self) -> ReplicatorStatistics:
        """Counters over all its connections since it was made."""
        return self._journal.statistics()

    # --- Running ---------------------------------------------------------------------------------

    async def serve(
        self, *, task_status: trio.TaskStatus[URLEndpointListener] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until stopped; reports itself as started once it does.

        Closing the database stops it.

        Raises: ListenError if it cannot listen where it was told to; ConfigurationError if it does
        already; StoreClosedError if the database is closed.
        Cancelling: cuts all connections, which their peers take for a passing failure.
        """
        if not self._stopped.is_set():
            raise ConfigurationError("the listener runs already")
        with self.configuration.database.services.running(self.request_stop):
            self._stop_requested, self._stopped = trio.Event(), trio.Event()
            try:
                await self._listen()
                task_status.started(self)
                async with open_services() as connections:
                    await self._accept(connections)
                    await self._say_goodbye()
            finally:
                self._listeners = []
                self._identity = None
                self._stopped.set()

    async def _listen(self) -> None:
        configuration = self.configuration
        interface = configuration.network_interface
        addresses = [] if interface is None else addresses_of(interface)
        identity = None
        if self._identities is not None:
            identity = await self._identities.current(self._now())
        self._listeners = await open_listeners(addresses, configuration.port or 0)
        self._identity = identity

    def request_stop(self) -> None:
        """Ask it to end. Does not wait; nothing if it does not listen."""
        self._stop_requested.set()

    async def stop(self) -> None:
        """Take no more connections, tell the connected peers to come back later, and end.

        It may listen again afterwards. Nothing if it does not listen. Cancelling: it still ends.
        """
        self.request_stop()
        await self._stopped.wait()

    async def handle(self, stream: trio.abc.Stream, *, peer_address: str = "") -> None:
        """Serve a peer on a connected stream of yours, by WebSocket, until it leaves.

        There is no TLS on it but what you put there. The stream is closed. What goes wrong is
        logged and stays with this connection. Closing the database ends it.

        Raises: StoreClosedError. Cancelling: cuts the connection.
        """
        services = self.configuration.database.services
        with services.running(lambda: service.scope.cancel()) as service:
            await self._handle(stream, peer_address, None)

    async def _handle(
        self, stream: trio.abc.Stream, peer_address: str, identities: IdentitySource | None
    ) -> None:
        try:
            identity = None
            if identities is not None:
                # It may have been renewed since the last connection.
                identity = self._identity = await identities.current(self._now())
            await self._serve_guest(stream, peer_address, identity)
        except TrioP2PError as exc:
            logger.info("a connection from %s ended: %s", peer_address or "a peer", exc)
        except Exception:  # The guard around a connection: the others must go on.
            logger.exception("a connection from %s failed", peer_address or "a peer")
        finally:
            await trio.aclose_forcefully(stream)

    async def _accept(self, connections: trio.Nursery) -> None:
        async with trio.open_nursery() as accepting:
            make_room = self._entrance.places.make_room
            for listener in self._listeners:
                accepting.start_soon(
                    accept_all, listener, self._handle_socket, connections, make_room
                )
            await self._stop_requested.wait()
            accepting.cancel_scope.cancel()

    async def _handle_socket(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # It is gone already.
            await trio.aclose_forcefully(stream)
            return
        peer_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        await self._handle(stream, peer_address, self._identities)

    async def _serve_guest(
        self, stream: trio.abc.Stream, peer_address: str, identity: TLSIdentity | None
    ) -> None:
        async with self._entrance.admit(stream, peer_address, identity) as guest:
            configuration = self.configuration
            session = PassiveSession(
                guest.transport,
                configuration.collections,
                self._journal,
                self._budget,
                deltas=configuration.enable_delta_sync and configuration.database.delta_sync,
                read_only=configuration.read_only,
            )
            served = _Served(guest, session, peer_address, self._now())
            self._served[id(served)] = served
            try:
                await session.run()
            finally:
                del self._served[id(served)]

    async def _say_goodbye(self) -> None:
        with trio.move_on_after(limits.CLOSE_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for served in list(self._served.values()):
                    nursery.start_soon(
                        served.guest.transport.aclose, CLOSE_TRANSIENT, "the listener stops"
                    )

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

    Raises: ListenError. What the body raises leaves as it was.
    Cancelling: as `URLEndpointListener.serve`.
    """
    listener = URLEndpointListener(configuration)
    async with open_services() as services:
        await services.start(listener.serve)
        try:
            yield listener
        finally:
            # Bounded: each goodbye has a deadline.
            with trio.move_on_after(limits.STOP_TIMEOUT_S, shield=True):
                await listener.stop()
