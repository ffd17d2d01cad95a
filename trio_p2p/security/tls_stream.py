"""TLS as a Trio stream, on pyOpenSSL over memory buffers.

OpenSSL does no I/O here: it leaves ciphertext in a buffer. After the handshake only the sender
takes it out. A reader that sent something could block while its peer's reader does the same, and
neither would read again. What OpenSSL wants to say on its own is the answer to a key update, which
must go out before our next data and need not before (RFC 8446, section 4.6.3), so it waits for the
sender. Nothing makes a peer stop asking for such answers, so how many may wait is limited.
Renegotiation, where readers would have to write, is switched off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio
from cryptography import x509
from OpenSSL import SSL

from trio_p2p import limits

# The most plaintext a record holds (RFC 8446, section 5.1), and so the most one `recv` gives.
RECORD_BYTES_MAX = 16_384

# How OpenSSL tells an alert of the peer: "tlsv1 alert unknown ca", "ssl/tls alert access denied".
_ALERT = re.compile(r"\balert (.+)")


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
        # Ciphertext that the reader found in OpenSSL's buffer, and how much of it OpenSSL made on
        # its own.
        self._found = bytearray()
        self._answer_bytes = 0
        self.peer_certificates: tuple[x509.Certificate, ...] = ()
        """What the peer presented, leaf first."""
        self.alert: str | None = None
        """The alert by which the peer ended the connection, in OpenSSL's words."""

    async def handshake(self) -> None:
        """Shake hands; called once by the functions below.

        Raises: SSL.Error, trio.BrokenResourceError. Cancelling: the stream is of no use then.
        """
        bytes_left = limits.TLS_HANDSHAKE_BYTES_MAX
        while (outcome := self._try_handshake()) is not None:
            await self._flush()  # Our next step, or the alert that tells the peer what is wrong.
            if not isinstance(outcome, SSL.WantReadError):
                raise outcome
            bytes_left -= await self._read(RECORD_BYTES_MAX)
            if self._at_end:
                raise trio.BrokenResourceError("the peer hung up during the handshake")
            if bytes_left < 0:
                raise trio.BrokenResourceError("the peer's handshake does not end")
        await self._flush()
        self.peer_certificates = presented(self._tls)

    def _try_handshake(self) -> SSL.Error | None:
        try:
            self._tls.do_handshake()
        except SSL.Error as exc:
            self._note_alert(exc)
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
                await self._read(limits.TRANSPORT_READ_BYTES)
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
            raise trio.BrokenResourceError(f"TLS failed: {explain(exc)}") from exc

    def _decrypt(self, max_bytes: int | None) -> bytes:
        """Everything that can be decrypted without reading more; notes the peer's goodbye."""
        bytes_left = limits.TRANSPORT_READ_BYTES if max_bytes is None else max_bytes
        if bytes_left < 1:
            raise ValueError("max_bytes must be positive")
        self._find_ciphertext()  # What the sender has still to send.
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
            self._note_alert(exc)
            raise trio.BrokenResourceError(f"TLS failed: {explain(exc)}") from exc
        self._answer_bytes += self._find_ciphertext()
        if self._answer_bytes > limits.TLS_ANSWER_BYTES_MAX:
            raise trio.BrokenResourceError("the peer asks for new keys again and again")
        return b"".join(pieces)

    def _find_ciphertext(self) -> int:
        """Take over what OpenSSL wants sent; tells how much that was."""
        before = len(self._found)
        with suppress(SSL.WantReadError):
            while True:
                self._found += self._tls.bio_read(limits.TRANSPORT_READ_BYTES)
        return len(self._found) - before

    async def _read(self, bytes_max: int) -> int:
        received = await self._transport.receive_some(bytes_max)
        if received:
            self._tls.bio_write(received)
        else:
            self._at_end = True
        return len(received)

    async def _flush(self) -> None:
        """Send what OpenSSL wants sent, until there is no more."""
        if self._is_torn:
            raise trio.BrokenResourceError("an earlier send was interrupted")
        while ciphertext := self._take_ciphertext():
            self._is_torn = True  # Until every byte is out: OpenSSL will not give it again.
            await self._transport.send_all(ciphertext)
            self._is_torn = False
        self._answer_bytes = 0

    def _take_ciphertext(self) -> bytes:
        if self._found:
            found, self._found = bytes(self._found), bytearray()
            return found
        try:
            return self._tls.bio_read(limits.TRANSPORT_READ_BYTES)
        except SSL.WantReadError:
            return b""

    def _note_alert(self, exc: SSL.Error) -> None:
        told = _ALERT.search(explain(exc))
        if told is not None:
            self.alert = told[1]


def presented(connection: SSL.Connection) -> tuple[x509.Certificate, ...]:
    """What the peer presented, leaf first. Raises what `trust.UNREADABLE` lists."""
    chain = tuple(connection.get_peer_cert_chain(as_cryptography=True) or ())
    leaf = connection.get_peer_certificate(as_cryptography=True)
    # For a server, OpenSSL leaves the leaf out of the chain.
    return chain if leaf is None or chain[:1] == (leaf,) else (leaf, *chain)


def explain(exc: SSL.Error) -> str:
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
