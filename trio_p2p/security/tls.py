"""TLS handshakes, whose verdict on the peer's certificate is ours.

The standard library's `ssl` cannot leave the verdict to us; pyOpenSSL asks a callback in the middle
of the handshake, so that a refused peer gets an alert and nothing else. No session of a connection
can be resumed in another: that would let a client in without asking for a certificate again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import trio
from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags

from trio_p2p import limits
from trio_p2p.errors import (
    AuthError,
    ConnectionLostError,
    HandshakeError,
    PeerUnreachableError,
    TrustError,
)
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.tls_stream import TLSStream, explain, presented
from trio_p2p.security.trust import UNREADABLE, VERIFIED, ClientTrust, Trust, judge, parse_address

# Forward secrecy and authenticated encryption only, also where the peer speaks no more than 1.2.
CIPHERS_TLS_1_2 = b"ECDHE+AESGCM:ECDHE+CHACHA20"

# The alerts by which a peer tells that it does not like our certificate, or misses one.
CERTIFICATE_ALERTS = frozenset(
    {
        "bad certificate",
        "unsupported certificate",
        "certificate revoked",
        "certificate expired",
        "certificate unknown",
        "unknown ca",
        "access denied",
        "certificate required",
        # Its signature is not that of the authority it names.
        "decrypt error",
    }
)

# What OpenSSL says of a client that begins with "GET ".
PLAIN_HTTP = "http request"
PLAIN_HTTP_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 32\r\n"
    b"Connection: close\r\n\r\nthis port speaks TLS: use wss://"
)

_HANDSHAKE_FAILURES = (
    SSL.Error,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


async def open_client_tls(
    stream: trio.abc.Stream,
    *,
    host: str,
    trust: Trust,
    now: datetime,
    identity: TLSIdentity | None = None,
) -> TLSStream:
    """Shake hands as the client. `host` is the name or address asked for, `now` is aware.

    `identity` is presented if the server asks for one, and only once it is trusted.

    Raises: TrustError, which carries the peer's certificates, if `trust` refuses them; AuthError
    if the peer refuses ours; HandshakeError if it does not speak TLS 1.2 or newer;
    PeerUnreachableError if this takes longer than HANDSHAKE_TIMEOUT_S; ConnectionLostError if the
    peer hangs up. The stream is closed then, and when this is cancelled.
    """
    connection = SSL.Connection(_client_context(trust, identity, now))
    refusals: list[TrustError] = []

    def verify(tls: SSL.Connection, _leaf: object, code: int, _depth: int, ok: int) -> bool:
        # OpenSSL asks once or more for each certificate; a single no ends the handshake.
        try:
            code = VERIFIED if ok else code
            judge(trust, presented(tls), now=now, openssl_code=code, host=host)
        except TrustError as exc:
            refusals.append(exc)
        except UNREADABLE as exc:
            refusals.append(TrustError(f"the peer's certificate cannot be read ({exc})"))
        return not refusals

    connection.set_verify(SSL.VERIFY_PEER, verify)
    connection.set_connect_state()
    if parse_address(host) is None:
        connection.set_tlsext_host_name(host.encode("idna"))
    tls = TLSStream(stream, connection)
    try:
        await _shake_hands(stream, tls)
    except _HANDSHAKE_FAILURES as exc:
        if refusals:
            raise refusals[0] from None
        if isinstance(exc, trio.TooSlowError):
            raise PeerUnreachableError("the peer does not answer the TLS handshake") from exc
        raise refusal(tls) or _handshake_error(exc) from exc
    return tls


def refusal(tls: TLSStream) -> AuthError | None:
    """The error to raise if the peer ended the connection because of our certificate.

    With TLS 1.3 it may do so after the handshake, as far as the client can see.
    """
    if tls.alert not in CERTIFICATE_ALERTS:
        return None
    if tls.alert == "certificate required":
        return AuthError("the peer asks for a client certificate")
    return AuthError(f"the peer refused our certificate: {tls.alert}")


class ServerTLS:
    """A server's side: the identity it shows, and which clients it accepts.

    With `clients` a client must present a certificate that they accept; else it is not asked for
    one. What it shakes hands with is made once: that takes longer than what is done for each
    connection before the client has said anything.
    """

    def __init__(self, identity: TLSIdentity, clients: ClientTrust | None = None) -> None:
        self.identity = identity
        self._context = _server_context(identity, clients)

    async def open(self, stream: trio.abc.Stream, now: datetime | None = None) -> TLSStream:
        """Shake hands. `now` is aware; None for the system's clock.

        Raises: HandshakeError if the client refuses our certificate, we refuse its, or it does not
        speak TLS 1.2 or newer; ConnectionLostError if it hangs up, or takes longer than
        HANDSHAKE_TIMEOUT_S. The stream is closed then, and when this is cancelled.
        """
        _set_time(self._context, now)
        connection = SSL.Connection(self._context)
        connection.set_accept_state()
        tls = TLSStream(stream, connection)
        try:
            await _shake_hands(stream, tls, as_server=True)
        except _HANDSHAKE_FAILURES as exc:
            raise _handshake_error(exc) from exc
        return tls


async def open_server_tls(
    stream: trio.abc.Stream,
    identity: TLSIdentity,
    *,
    clients: ClientTrust | None = None,
    now: datetime | None = None,
) -> TLSStream:
    """Shake hands as the server, once. As `ServerTLS`."""
    return await ServerTLS(identity, clients).open(stream, now)


async def _shake_hands(stream: trio.abc.Stream, tls: TLSStream, *, as_server: bool = False) -> None:
    failure: SSL.Error | None = None
    try:
        with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
            try:
                await tls.handshake()
            except SSL.Error as exc:
                failure = exc
        if failure is not None and as_server:
            await _explain_and_linger(stream, explain(failure))
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    if failure is not None:
        await trio.aclose_forcefully(stream)
        raise failure


async def _explain_and_linger(stream: trio.abc.Stream, reason: str) -> None:
    """Wait for the peer to hang up, so that it gets to read our alert.

    Closing a socket while something unread is in it throws away what the peer has not read yet: a
    client of TLS 1.3 sends its request before we have looked at its certificate. One that speaks no
    TLS at all understands no alert, and is answered in its own language.
    """
    bytes_left = limits.LINGER_BYTES_MAX
    with trio.move_on_after(limits.LINGER_S):
        try:
            if reason == PLAIN_HTTP:
                await stream.send_all(PLAIN_HTTP_ANSWER)
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            while bytes_left > 0 and (received := await stream.receive_some(bytes_left)):
                bytes_left -= len(received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


def _handshake_error(exc: Exception) -> HandshakeError | ConnectionLostError:
    if isinstance(exc, SSL.Error):
        return HandshakeError(f"the TLS handshake failed: {explain(exc)}")
    return ConnectionLostError("the peer did not complete the TLS handshake")


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS_TLS_1_2)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    return context


def _client_context(trust: Trust, identity: TLSIdentity | None, now: datetime) -> SSL.Context:
    context = _context()
    if trust.asks_openssl:
        if trust.roots is None:
            context.set_default_verify_paths()
        _believe(context, trust.roots or ())
        _set_time(context, now)
    if identity is not None:
        identity.install(context)
    return context


def _server_context(identity: TLSIdentity, clients: ClientTrust | None) -> SSL.Context:
    context = _context()
    identity.install(context)
    if clients is None:
        return context
    _believe(context, clients.roots or ())
    for root in clients.roots or ():
        context.add_client_ca(root)

    def verify(tls: SSL.Connection, _leaf: object, _code: int, _depth: int, ok: int) -> bool:
        try:
            presented(tls)
        except UNREADABLE:
            return False
        return bool(ok) or clients.roots is None

    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
    return context


def _believe(context: SSL.Context, roots: Sequence[x509.Certificate]) -> None:
    """Trust these certificates too, whether or not they signed themselves."""
    store = context.get_cert_store()
    assert store is not None
    for root in roots:
        store.add_cert(X509.from_cryptography(root))
    if roots:
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)


def _set_time(context: SSL.Context, now: datetime | None) -> None:
    """Judge certificates by this time."""
    store = context.get_cert_store()
    assert store is not None
    if now is not None:
        store.set_time(now)
