"""TLS as a Trio stream, on pyOpenSSL over memory buffers.

The standard library's `ssl` cannot leave the verdict on a certificate to us; pyOpenSSL asks a
callback in the middle of the handshake, so that a refused peer gets an alert and nothing else.

OpenSSL does no I/O here: it leaves ciphertext in a buffer. After the handshake only the sender
takes it out. A reader that sent something could block while its peer's reader does the same, and
neither would read again. What OpenSSL wants to say on its own is the answer to a key update, which
must go out before our next data and need not before (RFC 8446, section 4.6.3), so it waits for the
sender. Renegotiation, where readers would have to write, is switched off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import trio
from cryptography import x509
from OpenSSL import SSL

from trio_p2p import limits
from trio_p2p.errors import (
    ConnectionLostError,
    HandshakeError,
    PeerUnreachableError,
    TrustError,
)
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.trust import UNREADABLE, Trust, judge, parse_address

# The most plaintext a record holds (RFC 8446, section 5.1), and so the most one `recv` gives.
RECORD_BYTES_MAX = 16_384

_HANDSHAKE_FAILURES = (
    SSL.Error,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


class TLSStream(trio.abc.Stream):
    """A TLS connection on another stream, which it closes with itself.

    An end of the stream underneath without TLS's own goodbye counts as the end of this one: the
    layer above knows whether more was to come.
    """

    def __init__(self, transport: trio.abc.Stream, connection: SSL.Connection) -> None:
        self._transport = transport
        self._tls = connection
        self._sending = trio.Lock()
        self._receiving = trio.Lock()
        self._is_torn = False
        self._is_closed = False
        self._at_end = False
        self.peer_certificates: tuple[x509.Certificate, ...] = ()

    async def handshake(self) -> None:
        """Shake hands; called once by the functions below.

        Raises: SSL.Error, trio.BrokenResourceError. Cancelling: the stream is of no use then.
        """
        while (outcome := self._try_handshake()) is not None:
            await self._flush()  # Our next step, or the alert that tells the peer what is wrong.
            if not isinstance(outcome, SSL.WantReadError):
                raise outcome
            await self._read()
            if self._at_end:
                raise trio.BrokenResourceError("the peer hung up during the handshake")
        await self._flush()
        self.peer_certificates = _presented(self._tls)

    def _try_handshake(self) -> SSL.Error | None:
        try:
            self._tls.do_handshake()
        except SSL.Error as exc:
            return exc
        return None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything. Cancelling: part may be out; the stream is broken if it was midway."""
        with _exclusively(self._sending):
            if self._is_closed:
                raise trio.ClosedResourceError("the stream was closed")
            await trio.lowlevel.checkpoint()
            view = memoryview(data)
            for start in range(0, len(view), limits.TRANSPORT_READ_BYTES):
                self._encrypt(view[start : start + limits.TRANSPORT_READ_BYTES])
                await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Up to 256 KiB, b"" at the end. Cancelling: safe."""
        with _exclusively(self._receiving):
            if self._is_closed:
                raise trio.ClosedResourceError("the stream was closed")
            await trio.lowlevel.checkpoint_if_cancelled()
            data = self._decrypt(max_bytes)
            if data or self._at_end:
                await trio.lowlevel.cancel_shielded_checkpoint()
            while not data and not self._at_end:
                await self._read()
                data = self._decrypt(max_bytes)
            return data

    async def aclose(self) -> None:
        """Say goodbye if that is possible at once, then close the stream underneath. Idempotent."""
        try:
            if not self._is_closed:
                self._is_closed = True
                await self._say_goodbye()
        finally:
            await self._transport.aclose()

    async def _say_goodbye(self) -> None:
        if self._is_torn or self._sending.locked():
            return  # Somebody was, or is, in the middle of a record.
        with trio.move_on_after(limits.CLOSE_TIMEOUT_S):
            try:
                self._tls.shutdown()
                await self._flush()
            except (SSL.Error, trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    def _encrypt(self, data: memoryview) -> None:
        try:
            self._tls.sendall(data)
        except SSL.Error as exc:
            raise trio.BrokenResourceError(f"TLS failed: {_explain(exc)}") from exc

    def _decrypt(self, max_bytes: int | None) -> bytes:
        """Everything that can be decrypted without reading more; notes the peer's goodbye."""
        bytes_left = limits.TRANSPORT_READ_BYTES if max_bytes is None else max_bytes
        if bytes_left < 1:
            raise ValueError("max_bytes must be positive")
        pieces: list[bytes] = []
        try:
            while bytes_left > 0:
                piece = self._tls.recv(min(RECORD_BYTES_MAX, bytes_left))
                pieces.append(piece)
                bytes_left -= len(piece)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self._at_end = True
        except SSL.Error as exc:
            raise trio.BrokenResourceError(f"TLS failed: {_explain(exc)}") from exc
        return b"".join(pieces)

    async def _read(self) -> None:
        received = await self._transport.receive_some(limits.TRANSPORT_READ_BYTES)
        if received:
            self._tls.bio_write(received)
        else:
            self._at_end = True

    async def _flush(self) -> None:
        """Send what OpenSSL wants sent, until there is no more."""
        if self._is_torn:
            raise trio.BrokenResourceError("an earlier send was interrupted")
        while ciphertext := self._take_ciphertext():
            self._is_torn = True  # Until every byte is out: OpenSSL will not give it again.
            await self._transport.send_all(ciphertext)
            self._is_torn = False

    def _take_ciphertext(self) -> bytes:
        try:
            return self._tls.bio_read(limits.TRANSPORT_READ_BYTES)
        except SSL.WantReadError:
            return b""


async def open_client_tls(
    stream: trio.abc.Stream, *, host: str, trust: Trust, now: datetime
) -> TLSStream:
    """Shake hands as the client. `host` is the name or address asked for, `now` is aware.

    Raises: TrustError, which carries the peer's certificates, if `trust` refuses them;
    HandshakeError if the peer does not speak TLS 1.2 or newer, or refuses us; PeerUnreachableError
    if this takes longer than HANDSHAKE_TIMEOUT_S; ConnectionLostError if the peer hangs up.
    The stream is closed then, and when this is cancelled.
    """
    connection = SSL.Connection(_client_context(trust))
    refusals: list[TrustError] = []

    def verify(tls: SSL.Connection, _leaf: object, _error: int, _depth: int, ok: int) -> bool:
        # OpenSSL asks once or more for each certificate; a single no ends the handshake.
        try:
            judge(trust, _presented(tls), now=now, openssl_verified=bool(ok), host=host)
        except TrustError as exc:
            refusals.append(exc)
        except UNREADABLE as exc:
            refusals.append(TrustError(f"the peer's certificate cannot be read ({exc})"))
        return not refusals

    connection.set_verify(SSL.VERIFY_PEER, verify)
    connection.set_connect_state()
    if parse_address(host) is None:
        connection.set_tlsext_host_name(host.encode("idna"))
    try:
        return await _shake_hands(stream, connection)
    except _HANDSHAKE_FAILURES as exc:
        if refusals:
            raise refusals[0] from None
        if isinstance(exc, trio.TooSlowError):
            raise PeerUnreachableError("the peer does not answer the TLS handshake") from exc
        raise _handshake_error(exc) from exc


async def open_server_tls(stream: trio.abc.Stream, identity: TLSIdentity) -> TLSStream:
    """Shake hands as the server, with this identity.

    Raises: HandshakeError if the client refuses our certificate or does not speak TLS 1.2 or newer;
    ConnectionLostError if it hangs up, or takes longer than HANDSHAKE_TIMEOUT_S. The stream is
    closed then, and when this is cancelled.
    """
    connection = SSL.Connection(_server_context(identity))
    connection.set_accept_state()
    try:
        return await _shake_hands(stream, connection)
    except _HANDSHAKE_FAILURES as exc:
        raise _handshake_error(exc) from exc


async def _shake_hands(stream: trio.abc.Stream, connection: SSL.Connection) -> TLSStream:
    tls = TLSStream(stream, connection)
    try:
        with trio.fail_after(limits.HANDSHAKE_TIMEOUT_S):
            await tls.handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return tls


def _handshake_error(exc: Exception) -> HandshakeError | ConnectionLostError:
    if isinstance(exc, SSL.Error):
        return HandshakeError(f"the TLS handshake failed: {_explain(exc)}")
    return ConnectionLostError("the peer did not complete the TLS handshake")


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_RENEGOTIATION)
    return context


def _client_context(trust: Trust) -> SSL.Context:
    context = _context()
    if trust.pinned is None and not trust.only_self_signed:
        context.set_default_verify_paths()
    return context


def _server_context(identity: TLSIdentity) -> SSL.Context:
    """Made for each connection: that takes a third of a millisecond, the handshake several."""
    context = _context()
    leaf, *others = identity.certificates
    context.use_certificate(leaf)
    for certificate in others:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(identity.private_key)
    return context


def _presented(connection: SSL.Connection) -> tuple[x509.Certificate, ...]:
    """What the peer presented, leaf first."""
    return tuple(connection.get_peer_cert_chain(as_cryptography=True) or ())


def _explain(exc: SSL.Error) -> str:
    """OpenSSL's own words: its errors are lists of (library, function, reason)."""
    queue = exc.args[0] if exc.args else ()
    if isinstance(queue, list):
        return "; ".join(str(entry[-1]) for entry in queue) or "no reason given"
    return str(exc)


@contextmanager
def _exclusively(lock: trio.Lock) -> Iterator[None]:
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        raise trio.BusyResourceError("another task is using the stream") from None
    try:
        yield
    finally:
        lock.release()
