"""Connects to a peer by its URL: TCP, then TLS, then WebSocket."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import version
from urllib.parse import urlsplit

import trio
from cryptography import x509

from trio_p2p import limits
from trio_p2p.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    HandshakeError,
    PeerUnreachableError,
    TrustError,
)
from trio_p2p.replication.profiles.couchbase import SUBPROTOCOL
from trio_p2p.security.auth import BasicAuthenticator, ClientCertificateAuthenticator
from trio_p2p.security.tls import open_client_tls, refusal
from trio_p2p.security.tls_stream import TLSStream
from trio_p2p.security.trust import Trust
from trio_p2p.transport.base import MessageTransport
from trio_p2p.transport.websocket import open_client_websocket

DEFAULT_PORTS = {"ws": 80, "wss": 443}
SYNC_PATH = "/_blipsync"

_URL_CHARACTERS = re.compile("[!-~]*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer listens, read from a URL."""

    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read `ws://host[:port]/database` or `wss://…`. Raises ConfigurationError."""
        # An error repeats the URL only where it is sure to hold no password.
        if not _URL_CHARACTERS.fullmatch(url):
            raise ConfigurationError(
                "a URL is written in visible ASCII characters, all others percent-encoded"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ConfigurationError(f"not a URL: {exc}") from exc
        if "@" in parts.netloc:
            raise ConfigurationError(
                "a peer's URL holds no user name or password: use an authenticator"
            )
        if parts.scheme not in DEFAULT_PORTS:
            raise ConfigurationError("a peer's URL begins with ws:// or wss://", url=url)
        if not parts.hostname or parts.query or parts.fragment:
            raise ConfigurationError("a peer's URL is ws[s]://host[:port]/database", url=url)
        path = parts.path.strip("/")
        if not path:
            raise ConfigurationError("a peer's URL names its database: …/database", url=url)
        if port == 0:
            raise ConfigurationError("port 0 cannot be connected to", url=url)
        return cls(
            parts.scheme == "wss", parts.hostname, port or DEFAULT_PORTS[parts.scheme], f"/{path}"
        )

    @property
    def host_header(self) -> str:
        """The Host header: with the port unless it is the default one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = DEFAULT_PORTS["wss" if self.secure else "ws"]
        return host if self.port == default else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{self.host_header}{self.path}"


UNNAMED_ENDPOINT = Endpoint(False, "localhost", DEFAULT_PORTS["ws"], "")
"""For streams that were connected in another way: the peer serves one database, unnamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to connect: whom to trust, and as whom to appear."""

    trust: Trust
    authenticator: BasicAuthenticator | ClientCertificateAuthenticator | None = None
    headers: Mapping[str, str] = field(repr=False)
    heartbeat_s: float
    now: Callable[[], datetime]
    note_certificate: Callable[[x509.Certificate], None] = lambda certificate: None
    """Told what the peer presented, whether or not it is trusted."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A transport to the peer."""

    transport: MessageTransport


@asynccontextmanager
async def open_endpoint(endpoint: Endpoint, access: Access) -> AsyncIterator[Connected]:
    """Connect; leaving the block ends the connection.

    Raises: PeerUnreachableError, ConnectError, TrustError, AuthError, HandshakeError,
    ConnectionLostError; ConfigurationError if our own certificate cannot be found or made.
    Cancelling: safe.
    """
    stream: trio.abc.Stream = await _open_tcp(endpoint)
    tls: TLSStream | None = None
    is_open = False
    try:
        if endpoint.secure:
            stream = tls = await _open_tls(stream, endpoint, access)
        async with open_websocket(stream, endpoint, access) as transport:
            is_open = True
            yield Connected(transport)
    except (ConnectionLostError, HandshakeError) as exc:
        refused = None if tls is None or is_open else refusal(tls)
        if refused is not None:
            raise refused from exc
        raise
    finally:
        await trio.aclose_forcefully(stream)


async def _open_tls(stream: trio.abc.Stream, endpoint: Endpoint, access: Access) -> TLSStream:
    now = access.now()
    identity = None
    try:
        if isinstance(access.authenticator, ClientCertificateAuthenticator):
            identity = await access.authenticator.identity(now)
        tls = await open_client_tls(
            stream, host=endpoint.host, trust=access.trust, now=now, identity=identity
        )
    except TrustError as exc:
        if exc.certificates:
            access.note_certificate(exc.certificates[0])
        raise
    access.note_certificate(tls.peer_certificates[0])
    return tls


@asynccontextmanager
async def open_websocket(
    stream: trio.abc.Stream, endpoint: Endpoint, access: Access
) -> AsyncIterator[MessageTransport]:
    """Speak WebSocket on a connected stream, which is closed when the block is left."""
    headers = list(access.headers.items())
    if not any(name.lower() == "user-agent" for name in access.headers):
        headers.append(("User-Agent", _user_agent()))
    if isinstance(access.authenticator, BasicAuthenticator):
        headers.append(access.authenticator.header())
    async with open_client_websocket(
        stream,
        host=endpoint.host_header,
        resource=endpoint.path + SYNC_PATH,
        subprotocols=[SUBPROTOCOL],
        headers=headers,
        heartbeat_s=access.heartbeat_s,
    ) as transport:
        yield transport


@cache
def _user_agent() -> str:
    """What we call ourselves, as Couchbase Lite does: name and version."""
    return f"trio-p2p/{version('trio-p2p')}"


async def _open_tcp(endpoint: Endpoint) -> trio.SocketStream:
    try:
        with trio.fail_after(limits.CONNECT_TIMEOUT_S):
            return await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except trio.TooSlowError as exc:
        raise PeerUnreachableError("the peer does not answer", url=str(endpoint)) from exc
    except socket.gaierror as exc:
        if exc.errno == socket.EAI_NONAME:
            # Looked up and not there; a name server that cannot be reached is another error.
            raise ConnectError("there is no host of this name", url=str(endpoint)) from exc
        raise PeerUnreachableError(f"the host cannot be looked up: {exc}") from exc
    except UnicodeError as exc:
        raise ConnectError("no host can have this name", url=str(endpoint)) from exc
    except OSError as exc:
        raise PeerUnreachableError(f"no connection: {_reason(exc)}", url=str(endpoint)) from exc


def _reason(error: OSError) -> str:
    """What the system said; Trio puts the failures of several addresses into a group."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    text = cause.strerror if isinstance(cause, OSError) else None
    return text or str(error)
