"""The passive peer: accepts connections, authenticates them, and serves each apart from others."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote, unquote

import trio

from trio_p2p import limits
from trio_p2p.errors import CallbackError, TrioP2PError
from trio_p2p.listener_configuration import URLEndpointListenerConfiguration
from trio_p2p.replication.connector import SYNC_PATH
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.profiles.couchbase import SUBPROTOCOL
from trio_p2p.replication.status import ReplicatorStatistics
from trio_p2p.security.identity import TLSIdentity, anonymous_identity
from trio_p2p.security.keystore import default_key_store
from trio_p2p.security.tls import open_server_tls
from trio_p2p.transport.base import MessageTransport, open_services
from trio_p2p.transport.interfaces import addresses_of, open_listeners, own_addresses, port_of
from trio_p2p.transport.websocket import Accept, Refuse, UpgradeRequest, open_server_websocket

CLOSE_TRANSIENT = 4001
"""Couchbase Lite's code for "come back": replicators treat it as a passing failure."""

ANONYMOUS_LABEL = "listener"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """How many peers are connected, and how many of them replicate something just now."""

    connection_count: int
    active_connection_count: int


@dataclass(frozen=True, slots=True)
class ListenerConnection:
    """One connected peer. `user` is None where no password is asked for."""

    peer_address: str
    user: str | None
    since: datetime
    active: bool


@dataclass(slots=True)
class _Served:
    """A connection being served."""

    transport: MessageTransport
    session: PassiveSession
    peer_address: str
    user: str | None
    since: datetime


class URLEndpointListener:
    """Serves the collections of one database. `open_listener` runs it; so does `serve`."""

    def __init__(self, configuration: URLEndpointListenerConfiguration) -> None:
        self.configuration = configuration
        self._journal = Journal()
        self._listeners: list[trio.SocketListener] = []
        self._identity: TLSIdentity | None = None
        self._connected = 0
        self._served: dict[int, _Served] = {}
        self._stop_requested = trio.Event()
        self._stopped = trio.Event()

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
        interface = self.configuration.network_interface
        addresses = own_addresses() if interface is None else addresses_of(interface)
        scheme = "ws" if self.configuration.disable_tls else "wss"
        name = quote(self.configuration.database.name)
        hosts = [f"[{a}]" if a.version == 6 else str(a) for a in addresses if not a.is_unspecified]
        return [f"{scheme}://{host}:{port}/{name}" for host in hosts]

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
            ListenerConnection(s.peer_address, s.user, s.since, s.session.busy)
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

        Raises: ListenError if it cannot listen where it was told to.
        Cancelling: cuts all connections, which their peers take for a passing failure.
        """
        configuration = self.configuration
        interface = configuration.network_interface
        addresses = [] if interface is None else addresses_of(interface)
        identity = None if configuration.disable_tls else self._find_identity()
        self._listeners = await open_listeners(addresses, configuration.port or 0)
        self._identity = identity
        try:
            task_status.started(self)
            async with open_services() as connections:
                await self._accept(connections)
                await self._say_goodbye()
        finally:
            self._listeners = []
            self._identity = None
            self._stopped.set()

    def request_stop(self) -> None:
        """Ask it to end. Does not wait."""
        self._stop_requested.set()

    async def stop(self) -> None:
        """Take no more connections, tell the connected peers to come back later, and end."""
        self.request_stop()
        await self._stopped.wait()

    async def handle(self, stream: trio.abc.Stream, *, peer_address: str = "") -> None:
        """Serve a peer on a connected stream of yours, by WebSocket, until it leaves.

        The stream is closed. What goes wrong is logged and stays with this connection.
        Cancelling: cuts the connection.
        """
        self._connected += 1
        try:
            await self._serve_websocket(stream, peer_address)
        except TrioP2PError as exc:
            logger.info("a connection from %s ended: %s", peer_address or "a peer", exc)
        except Exception:  # The guard around a connection: the others must go on.
            logger.exception("a connection from %s failed", peer_address or "a peer")
        finally:
            self._connected -= 1
            await trio.aclose_forcefully(stream)

    async def _accept(self, connections: trio.Nursery) -> None:
        async with trio.open_nursery() as accepting:
            accept = partial(trio.serve_listeners, handler_nursery=connections)
            accepting.start_soon(accept, self._handle_socket, self._listeners)
            await self._stop_requested.wait()
            accepting.cancel_scope.cancel()

    async def _handle_socket(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:  # It is gone already.
            await trio.aclose_forcefully(stream)
            return
        peer_address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        await self.handle(stream, peer_address=peer_address)

    async def _serve_websocket(self, stream: trio.abc.Stream, peer_address: str) -> None:
        if self._identity is not None and isinstance(stream, trio.SocketStream):
            stream = await open_server_tls(stream, self._identity)
        user: list[str] = []

        async def decide(request: UpgradeRequest) -> Accept | Refuse:
            return await self._decide(request, user.append)

        async with open_server_websocket(
            stream, decide, heartbeat_s=self.configuration.heartbeat
        ) as transport:
            await self._serve_session(transport, peer_address, user[0] if user else None)

    async def _serve_session(
        self, transport: MessageTransport, peer_address: str, user: str | None
    ) -> None:
        session = PassiveSession(transport, self.configuration.collections, self._journal)
        since = datetime.fromtimestamp(self.configuration.database.engine.now_ns() / 10**9, UTC)
        served = _Served(transport, session, peer_address, user, since)
        self._served[id(served)] = served
        try:
            await session.run()
        finally:
            del self._served[id(served)]

    async def _decide(
        self, request: UpgradeRequest, note_user: Callable[[str], None]
    ) -> Accept | Refuse:
        """Whether to let a client in. Who is refused learns no more than it must."""
        if self._connected > self.configuration.connections_max:
            return Refuse(503, "too many connections")
        authenticator = self.configuration.authenticator
        if authenticator is not None:
            try:
                user = await authenticator.authenticate(request.header("authorization"))
            except CallbackError:
                logger.exception("the authenticator failed")
                return Refuse(500, "the authenticator failed")
            if user is None:
                challenge = ("WWW-Authenticate", 'Basic realm="trio_p2p", charset="UTF-8"')
                return Refuse(401, "wrong user name or password", (challenge,))
            note_user(user)
        # On a transport of one's own there is no URL, and so no database to name.
        if unquote(request.path) not in (
            f"/{self.configuration.database.name}{SYNC_PATH}",
            SYNC_PATH,
        ):
            return Refuse(404, "there is no such database here")
        if SUBPROTOCOL not in request.subprotocols:
            return Refuse(400, f"only {SUBPROTOCOL} is spoken here")
        return Accept(SUBPROTOCOL)

    async def _say_goodbye(self) -> None:
        with trio.move_on_after(limits.CLOSE_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for served in list(self._served.values()):
                    nursery.start_soon(
                        served.transport.aclose, CLOSE_TRANSIENT, "the listener stops"
                    )

    def _find_identity(self) -> TLSIdentity:
        configuration = self.configuration
        if configuration.tls_identity is not None:
            return configuration.tls_identity
        now = datetime.fromtimestamp(configuration.database.engine.now_ns() / 10**9, UTC)
        key_store = configuration.key_store or default_key_store()
        return anonymous_identity(ANONYMOUS_LABEL, key_store, now)


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
