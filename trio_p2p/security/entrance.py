"""How a client comes in: a place, TLS, the request for a WebSocket, the authenticator's verdict.

Whoever is refused learns no more than it must: without the right to come in, not even which
databases there are.

Browsers let any page open a WebSocket to any host they can reach, and tell which page it was in a
header, Origin. Peers have none, so nobody comes in who has one: else a page somewhere could use the
browser of somebody in this network.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote

import trio
from cryptography import x509

from trio_p2p import limits
from trio_p2p.errors import CallbackError, ConnectionLostError, HandshakeError
from trio_p2p.security.attempts import Attempts
from trio_p2p.security.auth import Admitted, Client, Denied, ListenerAuthenticator
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.places import Place, Places, address_of
from trio_p2p.security.tls import ServerTLS
from trio_p2p.security.tls_stream import TLSStream
from trio_p2p.transport.base import CLOSE_TRANSIENT, MessageTransport
from trio_p2p.transport.websocket import Accept, Refuse, UpgradeRequest, open_server_websocket

logger = logging.getLogger(__name__)

STATUS_BAD_REQUEST = 400
STATUS_FORBIDDEN = 403
STATUS_NOT_FOUND = 404
STATUS_FAILED = 500
STATUS_LATER = 503
NO_SEAT = "too many connections"


class IdentitySource(Protocol):
    """Tells which identity to show."""

    async def current(self, now: datetime) -> TLSIdentity:
        """The identity to show now (aware)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a client must ask for, and who decides on it.

    `paths` are the paths served, decoded, and `subprotocols` those spoken, best first. `now` reads
    the wall clock (aware).
    """

    paths: Collection[str]
    subprotocols: Collection[str]
    authenticator: ListenerAuthenticator | None
    connections_max: int
    heartbeat_s: float
    now: Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Guest:
    """A peer that was let in. `settle` is to be called once it has asked for something."""

    transport: MessageTransport
    user: str | None = None
    certificate: x509.Certificate | None = None
    settle: Callable[[], None] = lambda: None


class Entrance:
    """Lets clients in to one listener."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.places = Places(
            seats_max=rules.connections_max, waiting_max=limits.LISTENER_WAITING_MAX
        )
        self._attempts = Attempts(trio.current_time)
        self._tls: ServerTLS | None = None

    @asynccontextmanager
    async def admit(
        self, stream: trio.abc.Stream, peer_address: str, identity: TLSIdentity | None
    ) -> AsyncIterator[Guest]:
        """Let a client in that connected by this stream; with TLS if there is an identity to show.

        Leaving the block ends the connection. When it has to give way to another, the block is
        cancelled, and left without an error.

        Raises: HandshakeError if the client was refused; ConnectionLostError if it hung up, took
        too long, or had to give way before it was in.
        """
        is_in = False
        with self.places.open_place(address_of(peer_address)) as place:
            certificates: tuple[x509.Certificate, ...] = ()
            if identity is not None:
                stream = tls = await self._shake_hands(stream, identity)
                certificates = tls.peer_certificates
            admitted = Admitted()

            async def decide(request: UpgradeRequest) -> Accept | Refuse:
                nonlocal admitted
                if request.header("origin") is not None:
                    return Refuse(STATUS_FORBIDDEN, "web pages are not served")
                client = Client(request.header("authorization"), certificates)
                verdict = await self._decide(client, place)
                if isinstance(verdict, Refuse):
                    return verdict
                admitted = verdict
                return self._answer(request, place)

            async with open_server_websocket(
                stream, decide, heartbeat_s=self._rules.heartbeat_s
            ) as transport:
                is_in = True
                certificate = certificates[0] if certificates else None
                yield Guest(transport, admitted.user, certificate, place.settle)
        if not is_in:
            raise ConnectionLostError("the connection gave way to others")

    @asynccontextmanager
    async def seat(self, transport: MessageTransport, peer_address: str) -> AsyncIterator[Guest]:
        """Let in a peer on a transport that needs no handshake; otherwise as `admit`.

        Raises: HandshakeError if there is no seat for it, which it is told; ConnectionLostError if
        it had to give way meanwhile.
        """
        is_in = False
        with self.places.open_place(address_of(peer_address)) as place:
            if not place.take_seat():
                with trio.move_on_after(limits.CUT_TIMEOUT_S):
                    await transport.aclose(CLOSE_TRANSIENT, NO_SEAT)
                raise HandshakeError(f"refused a peer: {NO_SEAT}")
            is_in = True
            yield Guest(transport, settle=place.settle)
        if not is_in:
            raise ConnectionLostError("the connection gave way to others")

    async def _shake_hands(self, stream: trio.abc.Stream, identity: TLSIdentity) -> TLSStream:
        if self._tls is None or self._tls.identity is not identity:
            authenticator = self._rules.authenticator
            clients = None if authenticator is None else authenticator.clients
            self._tls = ServerTLS(identity, clients)
        return await self._tls.open(stream, self._rules.now())

    async def _decide(self, client: Client, place: Place) -> Admitted | Refuse:
        """Ask the authenticator, if there is one."""
        authenticator = self._rules.authenticator
        if authenticator is None:
            await trio.lowlevel.checkpoint()
            return Admitted()
        if not authenticator.recognises(client):
            await trio.sleep(self._attempts.wait_s(place.address))
        with trio.move_on_after(limits.AUTHENTICATOR_TIMEOUT_S):
            try:
                verdict = await authenticator.admit(client)
            except CallbackError:
                logger.exception("the authenticator failed")
                return Refuse(STATUS_FAILED, "the authenticator failed")
            if isinstance(verdict, Admitted):
                return verdict
            return self._denied(verdict, place)
        logger.warning("the authenticator does not answer")
        return Refuse(STATUS_LATER, "the authenticator does not answer")

    def _denied(self, denied: Denied, place: Place) -> Refuse:
        if denied.wrong:
            self._attempts.failed(place.address)
        challenge = denied.challenge
        headers = () if challenge is None else (("WWW-Authenticate", challenge),)
        return Refuse(denied.status, denied.reason, headers)

    def _answer(self, request: UpgradeRequest, place: Place) -> Accept | Refuse:
        """Whether a client that may come in asks for something there is, and there is a seat."""
        if unquote(request.path) not in self._rules.paths:
            return Refuse(STATUS_NOT_FOUND, "there is no such database here")
        spoken = [each for each in self._rules.subprotocols if each in request.subprotocols]
        if not spoken:
            names = " and ".join(self._rules.subprotocols)
            return Refuse(STATUS_BAD_REQUEST, f"only {names} is spoken here")
        if not place.take_seat():
            return Refuse(STATUS_LATER, NO_SEAT)
        return Accept(spoken[0])
