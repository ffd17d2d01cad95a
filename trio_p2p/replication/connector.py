"""Connects to a peer: by its URL (TCP, TLS, WebSocket), or by a function of the user's."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.metadata import version
from urllib.parse import urlsplit

import trio
from cryptography import x509

from trio_p2p import limits
from trio_p2p.callbacks import failure_of
from trio_p2p.errors import (
    CallbackError,
    ConfigurationError,
    ConnectionLostError,
    HandshakeError,
    PeerUnreachableError,
    TrioP2PError,
    TrustError,
)
from trio_p2p.replication.profiles.couchbase import SUBPROTOCOL
from trio_p2p.security.auth import BasicAuthenticator, ClientCertificateAuthenticator
from trio_p2p.security.tls import open_client_tls, refusal
from trio_p2p.security.tls_stream import TLSStream
from trio_p2p.security.trust import Trust
from trio_p2p.transport.base import MessageTransport
from trio_p2p.transport.tcp import connect_error, open_tcp
from trio_p2p.transport.websocket import open_client_websocket

DEFAULT_PORTS = {"ws": 80, "wss": 443}
SYNC_PATH = "/_blipsync"

_URL_CHARACTERS = re.compile("[!-~]*")
# Control characters, what separates names, and what no text has but names of files may.
_UNNAMEABLE = re.compile("[\x00-\x1f\x7f-\x9f/\ud800-\udfff]")
# RFC 9110, sections 5.1 and 5.5; what is not ASCII means different things to different servers.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[!-~]([ \t!-~]*[!-~])?")
# What the handshake itself says, and how its end is found.
_HANDSHAKE_HEADERS = frozenset(
    {"host", "connection", "upgrade", "content-length", "transfer-encoding", "te", "trailer"}
)


def url_name(database_name: str) -> str:
    """What a database is called in URLs, before percent-encoding.

    Source: Couchbase Lite's listener, whose clients cannot name others.
    """
    name = _UNNAMEABLE.sub("-", database_name)
    if name.startswith("_"):
        name = "-" + name[1:]
    if set(name) == {"."}:  # These mean a place relative to another.
        name = "-" * len(name)
    return name.encode()[: limits.URL_NAME_BYTES_MAX].decode(errors="ignore") or "db"


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
        # The zone of a link-local address: it is of this machine only. RFC 6874, section 2.
        host = parts.hostname.replace("%25", "%", 1) if ":" in parts.hostname else parts.hostname
        return cls(parts.scheme == "wss", host, port or DEFAULT_PORTS[parts.scheme], f"/{path}")

    @property
    def host_header(self) -> str:
        """The Host header: with the port unless it is the default one."""
        return self._authority(self.host.partition("%")[0])

    def __str__(self) -> str:
        scheme = "wss" if self.secure else "ws"
        host = self.host.replace("%", "%25") if ":" in self.host else self.host
        return f"{scheme}://{self._authority(host)}{self.path}"

    def _authority(self, host: str) -> str:
        bracketed = f"[{host}]" if ":" in host else host
        default = DEFAULT_PORTS["wss" if self.secure else "ws"]
        return bracketed if self.port == default else f"{bracketed}:{self.port}"


UNNAMED_ENDPOINT = Endpoint(False, "localhost", DEFAULT_PORTS["ws"], "")
"""For streams that were connected in another way: the peer serves one database, unnamed."""


Dial = Callable[[], Awaitable[MessageTransport | trio.abc.Stream]]
"""Makes a connection of the user's own: a stream, which WebSocket is spoken on, or a transport."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to connect: from where, whom to trust, and as whom to appear."""

    trust: Trust
    authenticator: BasicAuthenticator | ClientCertificateAuthenticator | None = None
    headers: Mapping[str, str] = field(repr=False)
    heartbeat_s: float
    now: Callable[[], datetime]
    note_certificate: Callable[[x509.Certificate], None] = lambda certificate: None
    """Told what the peer presented, whether or not it is trusted."""
    network_interface: str | None = None


@dataclass(frozen=True, slots=True)
class Connected:
    """A transport to the peer."""

    transport: MessageTransport


def check_headers(headers: Mapping[str, str], *, authenticated: bool = False) -> None:
    """Check the headers that a user adds to the handshake. Raises ConfigurationError.

    They may not say what the handshake says itself, nor, where the peer is `authenticated` to,
    what the authenticator does.
    """
    for name, value in headers.items():
        # A value may be a secret: the error does not repeat it.
        if not (isinstance(name, str) and _HEADER_NAME.fullmatch(name)):
            raise ConfigurationError("not the name of a header", name=name)
        if not (isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
            raise ConfigurationError(
                "the value of a header is visible ASCII, with spaces only inside", name=name
            )
        lower = name.lower()
        if lower in _HANDSHAKE_HEADERS or lower.startswith("sec-websocket-"):
            raise ConfigurationError("the handshake sets this header itself", name=name)
        if authenticated and lower == "authorization":
            raise ConfigurationError("the authenticator sets this header", name=name)


@asynccontextmanager
async def open_target(target: Endpoint | Dial, access: Access) -> AsyncIterator[Connected]:
    """Connect; leaving the block ends the connection.

    Raises: PeerUnreachableError, also if all this takes longer than CONNECT_TIMEOUT_S;
    NetworkUnavailableError, ConnectError, TrustError, AuthError, HandshakeError,
    ConnectionLostError; ConfigurationError if our own certificate cannot be found or made;
    CallbackError if a function of the user's raised.
    Cancelling: safe.
    """
    if isinstance(target, Endpoint):
        opening = open_endpoint(target, access)
    else:
        opening = _open_dialled(target, access)
    with trio.move_on_after(limits.CONNECT_TIMEOUT_S) as scope:
        async with opening as connected:
            scope.deadline = math.inf
            yield connected
    if scope.cancelled_caught:
        raise PeerUnreachableError("the peer does not answer", seconds=limits.CONNECT_TIMEOUT_S)


@asynccontextmanager
async def open_endpoint(endpoint: Endpoint, access: Access) -> AsyncIterator[Connected]:
    """Connect to a URL; leaving the block ends the connection. As `open_target`."""
    stream: trio.abc.Stream = await open_tcp(
        endpoint.host, endpoint.port, network_interface=access.network_interface
    )
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


@asynccontextmanager
async def _open_dialled(dial: Dial, access: Access) -> AsyncIterator[Connected]:
    made = await _dial(dial)
    if isinstance(made, trio.abc.Stream):
        async with open_websocket(made, UNNAMED_ENDPOINT, access) as transport:
            yield Connected(transport)
        return
    try:
        yield Connected(made)
    finally:
        made.abort()


async def _dial(dial: Dial) -> MessageTransport | trio.abc.Stream:
    """Call a function of the user's, whose failures mean what those of the system's would."""
    try:
        return _checked(await dial())
    except (Exception, BaseExceptionGroup) as exc:  # The guard around a function of the user's.
        failure = failure_of(exc)
        if failure is None:
            raise
    # Raised out here, a member of a group does not become the effect of its own group.
    raise _meaning(failure)


def _checked(made: MessageTransport | trio.abc.Stream) -> MessageTransport | trio.abc.Stream:
    if not isinstance(made, trio.abc.Stream) and not hasattr(made, "abort"):
        raise CallbackError(
            "the function that connects to the peer returned neither stream nor transport",
            got=type(made).__name__,
        )
    return made


def _meaning(raised: Exception) -> TrioP2PError:
    """Our error for what such a function raised, also from within nurseries of its own.

    Of several failures a bug counts most, then the most hopeful one.
    """
    error: TrioP2PError
    match raised:
        case TrioP2PError():
            return raised
        case ExceptionGroup():
            return max(map(_meaning, raised.exceptions), key=_weight)
        case OSError():
            return connect_error(raised)
        case trio.BrokenResourceError() | trio.ClosedResourceError() | trio.TooSlowError():
            error = PeerUnreachableError("no connection could be made")
        case _:
            error = CallbackError("the function that connects to the peer raised")
    error.__cause__ = raised
    return error


def _weight(error: TrioP2PError) -> tuple[bool, bool, bool]:
    return isinstance(error, CallbackError), error.retryable, error.network_dependent
