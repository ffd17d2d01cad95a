"""Messages over a WebSocket on any stream: one binary WebSocket message each.

trio-websocket does the work. Its reader is a task that raises what the peer did wrong, and whoever
waits for it waits forever if it dies. So it runs under a guard (`_Link`) that keeps its failures,
wakes who waits, and closes the stream when it ends. Every limit is set here: its own defaults read
4 KiB at a time. Compression is off, as BLIP deflates already.

The stream belongs to the transport: it is closed when the block is left, politely if `aclose` was
called, else without a goodbye.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import h11
import orjson
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
    wrap_server_stream,
)
from wsproto import ConnectionType, WSConnection
from wsproto.events import RejectConnection, RejectData, Request
from wsproto.utilities import ProtocolError as WSProtocolError
from wsproto.utilities import RemoteProtocolError as WSRemoteProtocolError

from trio_p2p import limits
from trio_p2p.errors import (
    AuthError,
    ConnectionLostError,
    HandshakeError,
    LocalProtocolError,
    PeerUnreachableError,
    RemoteProtocolError,
)
from trio_p2p.hearsay import repeatable
from trio_p2p.transport.base import (
    CLOSE_ABNORMAL,
    CLOSE_NORMAL,
    CLOSE_UNSUPPORTED_DATA,
    open_services,
)
from trio_p2p.transport.wire import Frames, Wire

HTTP_UNAUTHORIZED = 401
HTTP_UPGRADE_REQUIRED = 426
HTTP_HEADERS_TOO_LARGE = 431
# An explanation longer than this is cut.
REASON_CHARACTERS_MAX = 200

# What the libraries below raise when a peer does not speak HTTP or WebSocket. UnicodeError: wsproto
# decodes header values before it looks at them.
_GARBLED = (WSProtocolError, h11.ProtocolError, UnicodeError)


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A client's request to open a WebSocket. Header values are decoded as Latin-1."""

    path: str
    headers: tuple[tuple[str, str], ...]
    subprotocols: tuple[str, ...]

    def header(self, name: str) -> str | None:
        """The value of the first header of this name, in whatever case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)


@dataclass(frozen=True, slots=True)
class Accept:
    """The answer that opens the WebSocket, with one of the subprotocols offered."""

    subprotocol: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The answer that does not: an HTTP status, and a reason for people."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


_NO_UPGRADE = Refuse(
    HTTP_UPGRADE_REQUIRED, "only WebSocket is spoken here", (("Upgrade", "websocket"),)
)


# What trio-websocket calls for frames of which one read may bring tens of thousands, all of them
# handled without a look at other tasks: pongs, which nobody asked for, and pieces of messages.
_EVER_SO_MANY = ("_handle_pong_event", "_handle_message_event")


def _in_turn(handle: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """The same, after all other tasks have had their turn."""

    async def handle_in_turn(event: Any) -> None:
        await trio.lowlevel.checkpoint()
        await handle(event)

    return handle_in_turn


class _Link:
    """Runs trio-websocket's reader on a stream, in place of the nursery it asks for."""

    def __init__(self, nursery: trio.Nursery, stream: trio.abc.Stream) -> None:
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._waiter: trio.CancelScope | None = None
        self.wire = Wire(stream)
        self.frames: Frames | None = None
        self.failure: Exception | None = None
        self.has_ended = False

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Called by trio-websocket, with its reader.

        That is a method of the connection, which gets our own WebSocket protocol before it runs.
        """
        connection = cast(Any, reader).__self__
        kind = ConnectionType.CLIENT if connection.is_client else ConnectionType.SERVER
        assert type(connection._wsproto) is WSConnection
        connection._wsproto = self.frames = Frames(kind, self.wire)
        for name in _EVER_SO_MANY:
            setattr(connection, name, _in_turn(getattr(connection, name)))
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            with self._scope:
                await reader()
        except (ConnectionRejected, *_GARBLED) as exc:
            self.failure = exc
        finally:
            self.has_ended = True
            if self._waiter is not None:
                self._waiter.cancel()
            await trio.aclose_forcefully(self.wire)

    def cancel(self) -> None:
        """End the reader; the stream is closed without a goodbye."""
        self._scope.cancel()

    @contextmanager
    def while_running(self, timeout_s: float) -> Iterator[None]:
        """Leave the block after this long, or when the reader ends: nothing else would wake it."""
        with trio.move_on_after(timeout_s) as self._waiter:
            if self.has_ended:
                self._waiter.cancel()
            yield
        self._waiter = None


class WebSocketTransport:
    """Messages over an open WebSocket; implements `MessageTransport`."""

    def __init__(self, connection: WebSocketConnection, link: _Link) -> None:
        self._connection = connection
        self._link = link
        self._sending = False
        self._aborted = False
        self._why_lost = "the connection is closed"

    @property
    def subprotocol(self) -> str:
        """The subprotocol both sides agreed on."""
        return cast(str, self._connection.subprotocol)

    async def send(self, message: bytes) -> None:
        """See `MessageTransport.send`. Raises LocalProtocolError for a message over 1 MiB."""
        await self.send_all((message,))

    async def send_all(self, messages: Sequence[bytes]) -> None:
        """See `MessageTransport.send_all`."""
        longest = max(map(len, messages), default=0)
        if longest > limits.TRANSPORT_MESSAGE_BYTES_MAX:
            raise LocalProtocolError("the message is too long for a peer", bytes=longest)
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        if self._aborted:
            raise self._lost(None)
        self._sending = True
        try:
            async with self._link.wire.gathered():
                for message in messages:
                    await self._connection.send_message(message)
        except ConnectionClosed as exc:
            raise self._lost(exc) from None
        except (WSProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(None) from exc
        except trio.Cancelled:
            # Part of a frame may be out: whatever followed would be read as its rest.
            self._why_lost = "an earlier send was interrupted"
            self.abort()
            raise
        finally:
            self._sending = False

    async def receive(self) -> bytes:
        """See `MessageTransport.receive`."""
        try:
            message = await self._connection.get_message()
        except ConnectionClosed as exc:
            raise self._lost(exc) from self._link.failure
        if isinstance(message, str):
            await self.aclose(CLOSE_UNSUPPORTED_DATA, "binary messages only")
            raise RemoteProtocolError("the peer sent a text message")
        return message

    async def aclose(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """See `MessageTransport.aclose`."""
        try:
            if not self._aborted:
                with self._link.while_running(limits.CLOSE_TIMEOUT_S):
                    await self._connection.aclose(code, reason)
        except WSProtocolError:
            pass  # The peer began to close at the same moment.
        finally:
            self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """See `MessageTransport.abort`."""
        self._aborted = True
        self._link.cancel()

    async def keep_alive(self, heartbeat_s: float) -> None:
        """Ping after this long without a byte; abort when the pong does not come in time.

        Source of the pong's deadline: LiteCore's WebSocketImpl.
        """
        pong_timeout_s = min(limits.PONG_TIMEOUT_S, max(heartbeat_s - 1, heartbeat_s / 2))
        while not self._link.has_ended:
            due = self._link.wire.silent_since + heartbeat_s
            if trio.current_time() < due:
                await trio.sleep_until(due)
                continue
            with trio.move_on_after(pong_timeout_s) as deadline:
                try:
                    await self._connection.ping()
                except (ConnectionClosed, WSProtocolError):
                    return
            if deadline.cancelled_caught:
                self._why_lost = "the peer does not answer"
                self.abort()
                return

    async def end_when_stalled(self) -> None:
        """Abort when a message that has begun does not go on for MESSAGE_TIMEOUT_S."""
        assert self._link.frames is not None
        while not self._link.has_ended:
            await self._link.frames.message_begun.wait()
            await trio.sleep(limits.MESSAGE_TIMEOUT_S / 4)
            if self._link.frames.message_waited_s > limits.MESSAGE_TIMEOUT_S:
                self._why_lost = "the peer does not finish a message"
                self.abort()

    def _lost(self, closed: ConnectionClosed | None) -> ConnectionLostError:
        reason = None if closed is None else closed.reason
        if reason is None:
            return ConnectionLostError(self._why_lost, code=CLOSE_ABNORMAL)
        return ConnectionLostError(
            self._why_lost, code=int(reason.code), reason=(reason.reason or "")
        )


_LIBRARY_LIMITS: dict[str, Any] = {
    "message_queue_size": limits.TRANSPORT_QUEUE_MESSAGES_MAX,
    "max_message_size": limits.TRANSPORT_MESSAGE_BYTES_MAX,
    "receive_buffer_size": limits.TRANSPORT_READ_BYTES,
}


@asynccontextmanager
async def open_client_websocket(
    stream: trio.abc.Stream,
    *,
    host: str,
    resource: str,
    subprotocols: Sequence[str],
    headers: Sequence[tuple[str, str]] = (),
    heartbeat_s: float = limits.HEARTBEAT_S,
) -> AsyncIterator[WebSocketTransport]:
    """Open a WebSocket as its client, on a connected stream.

    `host` goes into the Host header, with the port unless it is the default one; `resource` is
    path and query. `subprotocols` are offered in this order; the server picks one.

    Raises: AuthError (401) or HandshakeError if the server refuses or does not speak WebSocket;
    PeerUnreachableError if it says nothing within HANDSHAKE_TIMEOUT_S; ConnectionLostError if it
    hangs up meanwhile.
    """
    async with _open_link(stream) as link:
        connection = None
        with link.while_running(limits.HANDSHAKE_TIMEOUT_S):
            connection = await wrap_client_stream(
                cast(trio.Nursery, link),
                cast(Any, link.wire),  # Annotated as a socket, but any stream will do.
                host,
                resource,
                subprotocols=subprotocols,
                extra_headers=[(name.encode(), value.encode()) for name, value in headers],
                **_LIBRARY_LIMITS,
            )
        if connection is None:
            raise _client_failure(link)
        if connection.subprotocol is None:
            raise HandshakeError("the peer accepted none of the protocols offered")
        async with _run(connection, link, heartbeat_s) as transport:
            yield transport


@asynccontextmanager
async def open_server_websocket(
    stream: trio.abc.Stream,
    decide: Callable[[UpgradeRequest], Awaitable[Accept | Refuse]],
    *,
    heartbeat_s: float = limits.HEARTBEAT_S,
) -> AsyncIterator[WebSocketTransport]:
    """Read a client's request, ask `decide`, answer, and open the WebSocket.

    Raises: HandshakeError with the status of the answer if the request was refused (426: it did
    not ask for a WebSocket); ConnectionLostError if the client hung up, or all this took longer
    than HANDSHAKE_TIMEOUT_S; whatever `decide` raises.
    """
    async with _open_link(stream) as link:
        connection = None
        with link.while_running(limits.HANDSHAKE_TIMEOUT_S):
            verdict = await _consider(link.wire, decide)
            try:
                request = await wrap_server_stream(
                    cast(trio.Nursery, link), link.wire, **_LIBRARY_LIMITS
                )
                connection = await request.accept(subprotocol=verdict.subprotocol)
            except ConnectionClosed as exc:
                raise ConnectionLostError("the client hung up during the handshake") from exc
        if connection is None:
            raise ConnectionLostError("the client did not complete its handshake")
        async with _run(connection, link, heartbeat_s) as transport:
            yield transport


@asynccontextmanager
async def _open_link(stream: trio.abc.Stream) -> AsyncIterator[_Link]:
    try:
        async with open_services() as nursery:
            yield _Link(nursery, stream)
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def _run(
    connection: WebSocketConnection, link: _Link, heartbeat_s: float
) -> AsyncIterator[WebSocketTransport]:
    link.wire.bytes_left = float("inf")
    transport = WebSocketTransport(connection, link)
    async with open_services() as nursery:
        nursery.start_soon(transport.keep_alive, heartbeat_s)
        nursery.start_soon(transport.end_when_stalled)
        yield transport


def _client_failure(link: _Link) -> Exception:
    failure = link.failure
    if isinstance(failure, ConnectionRejected):
        status = failure.status_code
        kind = AuthError if status == HTTP_UNAUTHORIZED else HandshakeError
        reason = _rejection_reason(failure)
        return kind("the peer refused" + (f": {reason}" if reason else ""), status=status)
    if failure is not None:
        error: Exception = HandshakeError(f"the peer does not speak WebSocket: {failure}")
        error.__cause__ = failure
        return error
    if link.has_ended:
        return ConnectionLostError("the peer hung up during the handshake")
    return PeerUnreachableError("the peer does not answer the handshake")


def _rejection_reason(rejected: ConnectionRejected) -> str:
    """What the server says about its refusal: plain text, or `reason` in JSON."""
    headers = {name.lower(): value for name, value in rejected.headers}
    content_type = headers.get(b"content-type", b"").lower()
    body = rejected.body or b""
    reason: object = ""
    if content_type.startswith(b"text/plain"):
        reason = body.decode(errors="replace")
    elif content_type.startswith(b"application/json"):
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        reason = answer.get("reason") if isinstance(answer, dict) else None
    return repeatable(reason.strip(), REASON_CHARACTERS_MAX) if isinstance(reason, str) else ""


async def _consider(
    wire: Wire, decide: Callable[[UpgradeRequest], Awaitable[Accept | Refuse]]
) -> Accept:
    """Read the request and decide on it; leave it in `wire.read_ahead` for trio-websocket.

    trio-websocket would answer 400 to a request that is no upgrade, and tell nobody. So it gets to
    see only those that will be accepted; a parser of our own reads and refuses the others.
    """
    parser = WSConnection(ConnectionType.SERVER)
    try:
        request = await _read_request(wire, parser)
        verdict = request if isinstance(request, Refuse) else await decide(request)
        if isinstance(verdict, Refuse):
            await wire.send_all(_refusal(parser, verdict))
            await wire.aclose()
            raise HandshakeError(f"refused a client: {verdict.reason}", status=verdict.status)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise ConnectionLostError("the client hung up during the handshake") from exc
    assert isinstance(request, UpgradeRequest)
    if verdict.subprotocol not in request.subprotocols:
        raise LocalProtocolError("the client did not offer this", subprotocol=verdict.subprotocol)
    return verdict


async def _read_request(wire: Wire, parser: WSConnection) -> UpgradeRequest | Refuse:
    """The request, or what to answer if it is no upgrade to WebSocket."""
    head = b""
    while True:
        data = await wire.receive_some(limits.REQUEST_HEAD_BYTES_MAX)
        if not data:
            raise trio.BrokenResourceError("the client hung up")
        head += data
        if len(head) > limits.REQUEST_HEAD_BYTES_MAX:
            return Refuse(HTTP_HEADERS_TOO_LARGE, "the request is too long")
        try:
            parser.receive_data(bytes(data))
        except (WSRemoteProtocolError, UnicodeError):
            return _NO_UPGRADE
        for event in parser.events():
            assert isinstance(event, Request)
            wire.read_ahead = head
            return _upgrade_request(event)


def _upgrade_request(event: Request) -> UpgradeRequest:
    headers = [
        (bytes(n).decode("latin-1"), bytes(v).decode("latin-1")) for n, v in event.extra_headers
    ]
    return UpgradeRequest(
        path=event.target,
        headers=(("host", event.host), *headers),
        subprotocols=tuple(event.subprotocols),
    )


def _refusal(parser: WSConnection, refuse: Refuse) -> bytes:
    body = refuse.reason.encode()
    headers = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", str(len(body)).encode()),
        (b"Connection", b"close"),
        *((name.encode(), value.encode()) for name, value in refuse.headers),
    ]
    answer = RejectConnection(status_code=refuse.status, headers=headers, has_body=True)
    return parser.send(answer) + parser.send(RejectData(data=body))
