"""The WebSocket transport over in-memory streams, with a real peer or a hand-written one."""

from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import wrap_server_stream

from trio_p2p import limits
from trio_p2p.errors import (
    AuthError,
    ConnectionLostError,
    HandshakeError,
    LocalProtocolError,
    PeerUnreachableError,
    RemoteProtocolError,
)
from trio_p2p.transport.websocket import (
    Accept,
    Refuse,
    UpgradeRequest,
    open_client_websocket,
    open_server_websocket,
)

PROTOCOLS = ("BLIP_3+New_1", "BLIP_3+CBMobile_4")

REQUEST = (
    b"GET /db/_blipsync HTTP/1.1\r\nHost: tills.example:4984\r\n"
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def client(stream, **options):
    defaults = {"host": "localhost", "resource": "/db/_blipsync", "subprotocols": PROTOCOLS}
    return open_client_websocket(stream, **(defaults | options))


async def accept_last(request: UpgradeRequest) -> Accept:
    await trio.lowlevel.checkpoint()
    return Accept(request.subprotocols[-1])


async def refuse(request: UpgradeRequest) -> Refuse:
    await trio.lowlevel.checkpoint()
    return Refuse(403, "no")


@asynccontextmanager
async def connected(**options):
    """A client's and a server's transport, joined."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        accepted, server_ready = trio.Event(), []

        @nursery.start_soon
        async def serve():
            async with open_server_websocket(theirs, accept_last, **options) as transport:
                server_ready.append(transport)
                accepted.set()
                await trio.sleep_forever()

        async with client(ours, **options) as transport:
            await accepted.wait()
            yield transport, server_ready[0]
            nursery.cancel_scope.cancel()


async def answer_of_server(request: bytes, decide=accept_last) -> tuple[bytes, Exception | None]:
    """What a raw client gets for this request, and what the server's side raises."""
    ours, theirs = memory_stream_pair()
    await ours.send_all(request)
    error = None
    try:
        async with open_server_websocket(theirs, decide):
            pass
    except (HandshakeError, ConnectionLostError) as exc:
        error = exc
    return b"".join([bytes(piece) async for piece in ours]), error


async def error_of_client(answer: bytes, *, hang_up: bool = False) -> Exception:
    """What a client raises when a raw server answers this to its request."""
    ours, theirs = memory_stream_pair()
    await theirs.send_all(answer)
    if hang_up:
        await theirs.send_stream.aclose()
    with pytest.raises((HandshakeError, ConnectionLostError, PeerUnreachableError)) as info:
        async with client(ours):
            pass
    return info.value


# --- Messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 125, 126, 65_535, 65_536, limits.TRANSPORT_MESSAGE_BYTES_MAX]
)
async def test_a_message_of_any_size_passes_in_both_directions(size):
    async with connected() as (here, there):
        message = bytes(size)
        for one, other in ((here, there), (there, here)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.send, message)
                assert await other.receive() == message


async def test_messages_stay_in_order_while_both_sides_send():
    messages = [bytes([number]) * number * 500 for number in range(100)]

    async def send(transport):
        for message in messages:
            await transport.send(message)

    async def receive(transport):
        assert [await transport.receive() for _ in messages] == messages

    async with connected() as ends, trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(send, end)
            nursery.start_soon(receive, end)


async def test_a_message_over_the_limit_is_not_sent():
    async with connected() as (here, there):
        with pytest.raises(LocalProtocolError):
            await here.send(bytes(limits.TRANSPORT_MESSAGE_BYTES_MAX + 1))
        await here.send(b"still fine")
        assert await there.receive() == b"still fine"


async def test_a_message_over_the_limit_ends_the_connection_of_its_receiver():
    async with connected() as (here, there):
        await here._connection.send_message(bytes(limits.TRANSPORT_MESSAGE_BYTES_MAX + 1))
        with pytest.raises(ConnectionLostError) as info:
            await there.receive()
        assert info.value.code == 1009


async def test_a_text_message_breaks_the_rules():
    async with connected() as (here, there):
        await here._connection.send_message("text")
        with pytest.raises(RemoteProtocolError):
            await there.receive()
        with pytest.raises(ConnectionLostError) as info:
            await here.receive()
        assert info.value.code == 1003


async def test_only_one_task_may_send_at_a_time():
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_nothing, theirs)
        async with client(ours) as transport, trio.open_nursery() as senders:
            ours.send_stream.send_all_hook = trio.sleep_forever
            senders.start_soon(transport.send, b"stuck")
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await transport.send(b"second")
            senders.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


async def serve_nothing(stream):
    async with open_server_websocket(stream, accept_last):
        await trio.sleep_forever()


@asynccontextmanager
async def stuck_for_a_while():
    """A transport whose first send waits until the gate is opened, and its peer's."""
    ours, theirs = memory_stream_pair()
    gate = trio.Event()
    async with trio.open_nursery() as nursery:
        served = []

        @nursery.start_soon
        async def serve():
            async with open_server_websocket(theirs, accept_last, heartbeat_s=10) as transport:
                served.append(transport)
                await trio.sleep_forever()

        async with client(ours) as transport, trio.open_nursery() as senders:
            deliver = ours.send_stream.send_all_hook

            async def deliver_later():
                await gate.wait()
                await deliver()

            ours.send_stream.send_all_hook = deliver_later
            senders.start_soon(transport.send, b"stuck")
            await wait_all_tasks_blocked()
            yield transport, served[0], gate
        nursery.cancel_scope.cancel()


async def test_a_ping_is_answered_though_a_send_is_waiting(autojump_clock):
    async with stuck_for_a_while() as (_, other, gate):
        await trio.sleep(12)  # The other side has pinged.
        gate.set()
        assert await other.receive() == b"stuck"
        await trio.sleep(100)
        await other.send(b"still there")


async def test_a_goodbye_waits_for_a_send_that_is_waiting(autojump_clock):
    async with stuck_for_a_while() as (transport, other, gate), trio.open_nursery() as nursery:
        nursery.start_soon(transport.aclose, 4001, "bye")
        await wait_all_tasks_blocked()
        gate.set()
        assert await other.receive() == b"stuck"
        with pytest.raises(ConnectionLostError) as info:
            await other.receive()
        assert (info.value.code, info.value.reason) == (4001, "bye")


async def test_a_goodbye_does_not_wait_for_ever_for_a_send(autojump_clock):
    async with stuck_for_a_while() as (transport, other, gate):
        started = trio.current_time()
        await transport.aclose()
        assert trio.current_time() - started == limits.CLOSE_TIMEOUT_S
        gate.set()
        with pytest.raises(ConnectionLostError):
            await receive_to_the_end(other)


async def test_a_cancelled_send_breaks_the_connection(autojump_clock):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        lost = trio.Event()

        @nursery.start_soon
        async def serve():
            async with open_server_websocket(theirs, accept_last) as transport:
                # The stream underneath took all of it before it blocked.
                assert await transport.receive() == b"half"
                with pytest.raises(ConnectionLostError) as info:
                    await transport.receive()
                assert info.value.code == 1006
                lost.set()

        async with client(ours) as transport:
            deliver = ours.send_stream.send_all_hook

            async def deliver_and_block():
                await deliver()
                await trio.sleep_forever()

            ours.send_stream.send_all_hook = deliver_and_block
            with trio.move_on_after(1):
                await transport.send(b"half")
            with pytest.raises(ConnectionLostError, match="interrupted"):
                await transport.send(b"more")
            await lost.wait()
            await transport.aclose()


# --- The end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_server", [False, True])
async def test_a_polite_close_tells_the_other_side_code_and_reason(by_server):
    async with connected() as ends:
        here, there = ends if not by_server else ends[::-1]
        await here.send(b"last")
        await here.aclose(4001, "restarting")
        await here.aclose()
        assert await there.receive() == b"last"
        with pytest.raises(ConnectionLostError) as info:
            await there.receive()
        assert (info.value.code, info.value.reason) == (4001, "restarting")
        assert info.value.retryable
        await there.aclose()
        for end in ends:
            with pytest.raises(ConnectionLostError):
                await end.send(b"too late")


@pytest.mark.parametrize("by_server", [False, True])
async def test_an_abort_is_seen_as_1006(by_server):
    async with connected() as ends:
        here, there = ends if not by_server else ends[::-1]
        here.abort()
        here.abort()
        with pytest.raises(ConnectionLostError):
            await here.send(b"too late")
        for end in (here, there):
            with pytest.raises(ConnectionLostError) as info:
                await end.receive()
            assert info.value.code == 1006


async def test_a_goodbye_to_a_silent_peer_takes_a_bounded_time(autojump_clock):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_nothing, theirs)
        async with client(ours) as transport:
            theirs.send_stream.send_all_hook = trio.sleep_forever
            started = trio.current_time()
            await transport.aclose()
            assert trio.current_time() - started == limits.CLOSE_TIMEOUT_S
        nursery.cancel_scope.cancel()


async def test_leaving_the_block_closes_the_stream():
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_nothing, theirs)
        async with client(ours):
            pass
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"x")
        nursery.cancel_scope.cancel()


async def test_what_the_block_raises_leaves_as_it_was():
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_nothing, theirs)
        with pytest.raises(ValueError, match="mine"):
            await fail_inside(client(ours))
        nursery.cancel_scope.cancel()


async def fail_inside(context):
    async with context:
        raise ValueError("mine")


async def test_garbage_in_place_of_frames_ends_the_connection():
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_nothing, theirs)
        async with client(ours) as transport:
            await theirs.send_all(b"\xff" * 50)
            with pytest.raises(ConnectionLostError) as info:
                await transport.receive()
            assert info.value.code == 1002
            await transport.aclose()
        nursery.cancel_scope.cancel()


# --- Heartbeat -----------------------------------------------------------------------------------


@pytest.mark.behaviour("B12b")
async def test_a_quiet_peer_that_answers_pings_is_kept(autojump_clock):
    async with connected(heartbeat_s=30) as (here, there):
        await trio.sleep(1000)
        await here.send(b"still there")
        assert await there.receive() == b"still there"


@pytest.mark.behaviour("R18")
async def test_a_peer_that_does_not_answer_a_ping_is_lost(autojump_clock):
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_nothing, theirs)
        async with client(ours, heartbeat_s=30) as transport:
            theirs.send_stream.send_all_hook = trio.sleep_forever
            started = trio.current_time()
            with pytest.raises(ConnectionLostError, match="does not answer") as info:
                await transport.receive()
            assert info.value.code == 1006
            assert trio.current_time() - started == 30 + limits.PONG_TIMEOUT_S
        nursery.cancel_scope.cancel()


# --- The server's handshake ------------------------------------------------------------


@pytest.mark.behaviour("B10a")
@pytest.mark.parametrize("offer", [b"a,b", b"a, b"])
async def test_the_server_sees_the_offer_in_either_spelling(offer):
    seen = []

    async def decide(request):
        await trio.lowlevel.checkpoint()
        seen.append(request)
        return Accept("b")

    request = REQUEST + b"Authorization: Basic eDp5\r\nSec-WebSocket-Protocol: " + offer
    answer, error = await answer_of_server(request + b"\r\n\r\n", decide)
    assert error is None
    assert seen[0].subprotocols == ("a", "b")
    assert seen[0].path == "/db/_blipsync"
    assert seen[0].header("AUTHORIZATION") == "Basic eDp5"
    assert seen[0].header("Host") == "tills.example:4984"
    assert seen[0].header("Cookie") is None
    lines = answer.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    # Couchbase Lite compares these values exactly, and refuses headers without a value.
    headers = dict(line.lower().split(":", 1) for line in lines[1:] if line)
    assert "Upgrade: websocket" in lines
    assert headers["connection"].strip() == "upgrade"
    assert headers["sec-websocket-protocol"].strip() == "b"
    assert all(value.strip() for value in headers.values())


@pytest.mark.behaviour("B11a")
@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_is_an_http_answer_with_its_reason(status):
    async def decide(request):
        await trio.lowlevel.checkpoint()
        return Refuse(status, "not you", (("WWW-Authenticate", "Basic"),))

    answer, error = await answer_of_server(REQUEST + b"\r\n", decide)
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: 7" in head
    assert b"WWW-Authenticate: Basic" in head
    assert body == b"not you"
    assert isinstance(error, HandshakeError)
    assert error.status == status


@pytest.mark.behaviour("W1")
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /db/_blipsync HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 garbage \r\n\r\n",
        REQUEST + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
    ],
)
async def test_what_is_no_upgrade_is_answered_426(request_bytes):
    answer, error = await answer_of_server(request_bytes)
    assert answer.startswith(b"HTTP/1.1 426 ")
    assert isinstance(error, HandshakeError)
    assert error.status == 426


@pytest.mark.parametrize("in_line", [True, False])
async def test_a_request_that_is_too_long_is_answered_431(in_line):
    filler = b"x" * limits.REQUEST_HEAD_BYTES_MAX
    request = b"GET /" + filler if in_line else REQUEST + b"X: " + filler
    answer, error = await answer_of_server(request + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert error.status == 431


async def test_a_request_that_does_not_end_is_cut_off_by_its_length(autojump_clock):
    ours, theirs = memory_stream_pair()

    async def send():
        await ours.send_all(REQUEST)
        with suppress(trio.BrokenResourceError):
            for _ in range(limits.REQUEST_HEAD_BYTES_MAX):
                await ours.send_all(b"X")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with pytest.raises(HandshakeError) as info:
            async with open_server_websocket(theirs, accept_last):
                pass
        assert info.value.status == 431
        nursery.cancel_scope.cancel()


async def test_a_client_that_hangs_up_while_it_is_considered_is_lost():
    ours, theirs = memory_stream_pair()

    async def decide(request):
        await ours.aclose()
        return Accept("a")

    await ours.send_all(REQUEST + b"Sec-WebSocket-Protocol: a\r\n\r\n")
    with pytest.raises(ConnectionLostError):
        async with open_server_websocket(theirs, decide):
            pass


async def test_an_error_of_decide_comes_out_as_it_is():
    async def decide(request):
        await trio.lowlevel.checkpoint()
        raise LookupError("bug")

    with pytest.raises(LookupError):
        await answer_of_server(REQUEST + b"\r\n", decide)


async def test_a_protocol_that_was_not_offered_cannot_be_accepted():
    async def decide(request):
        await trio.lowlevel.checkpoint()
        return Accept("other")

    with pytest.raises(LocalProtocolError):
        await answer_of_server(REQUEST + b"\r\n", decide)


@pytest.mark.behaviour("X3")
@pytest.mark.parametrize("start", [b"", REQUEST])
async def test_a_client_that_stalls_does_not_hold_the_server(autojump_clock, start):
    started = trio.current_time()
    _, error = await answer_of_server(start)
    assert isinstance(error, ConnectionLostError)
    assert trio.current_time() - started == limits.HANDSHAKE_TIMEOUT_S


async def test_a_client_that_hangs_up_in_its_handshake_is_lost():
    ours, theirs = memory_stream_pair()
    await ours.send_all(REQUEST)
    await ours.aclose()
    with pytest.raises(ConnectionLostError):
        async with open_server_websocket(theirs, accept_last):
            pass


# --- The client's handshake ------------------------------------------------------------


async def test_the_client_sends_its_headers_and_learns_the_protocol_chosen():
    ours, theirs = memory_stream_pair()
    seen = []

    async def decide(request):
        await trio.lowlevel.checkpoint()
        seen.append(request)
        return Accept(PROTOCOLS[0])

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            async with open_server_websocket(theirs, decide) as transport:
                assert transport.subprotocol == PROTOCOLS[0]

        async with client(ours, headers=[("Cookie", "a=b")]) as transport:
            assert transport.subprotocol == PROTOCOLS[0]
    assert seen[0].subprotocols == PROTOCOLS
    assert seen[0].header("cookie") == "a=b"
    assert seen[0].header("host") == "localhost"


@pytest.mark.parametrize(
    ("status", "kind", "content_type", "body", "reason"),
    [
        (401, AuthError, b"text/plain", b"who?", "who?"),
        (403, HandshakeError, b"application/json", b'{"reason": "no"}', "no"),
        (404, HandshakeError, b"application/json", b"[]", "the peer refused"),
        (500, HandshakeError, b"application/json", b"{", "the peer refused"),
        (503, HandshakeError, b"text/html", b"<html>", "the peer refused"),
    ],
)
async def test_a_refused_client_learns_status_and_reason(status, kind, content_type, body, reason):
    error = await error_of_client(
        b"HTTP/1.1 %d Some\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (status, content_type, len(body), body)
    )
    assert type(error) is kind
    assert error.status == status
    assert reason in str(error)
    assert error.retryable == (status == 503)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.7\r\n\r\n",
        b"\x00" * 200_000,
    ],
)
async def test_a_server_that_speaks_something_else_is_a_failed_handshake(answer):
    assert isinstance(await error_of_client(answer), HandshakeError)


async def test_a_server_that_chooses_no_protocol_is_refused():
    ours, theirs = memory_stream_pair()

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            # The library accepts without a protocol; our own server never does.
            async with trio.open_nursery() as reader:
                request = await wrap_server_stream(reader, theirs)
                await request.accept()

        with pytest.raises(HandshakeError, match="none of the protocols"):
            async with client(ours):
                pass


async def test_a_server_that_says_nothing_is_unreachable(autojump_clock):
    assert isinstance(await error_of_client(b""), PeerUnreachableError)


async def test_a_server_that_hangs_up_is_lost():
    assert isinstance(await error_of_client(b"HTTP/1.1 1", hang_up=True), ConnectionLostError)


async def test_an_endless_refusal_is_cut_off():
    endless = b"HTTP/1.1 500 No\r\nContent-Length: 9999999\r\n\r\n"
    body = bytes(limits.HANDSHAKE_BYTES_MAX)
    assert isinstance(await error_of_client(endless + body), ConnectionLostError)


async def test_a_header_that_http_forbids_is_a_failed_handshake():
    ours, _theirs = memory_stream_pair()
    with pytest.raises(HandshakeError):
        async with client(ours, headers=[("X", "a\r\nb")]):
            pass


# --- Anything at all -----------------------------------------------------------------------------


@given(garbage=st.binary() | st.binary().map(lambda tail: REQUEST + tail))
def test_no_request_makes_the_server_raise_anything_else(garbage):
    async def main():
        ours, theirs = memory_stream_pair()
        await ours.send_all(garbage)
        await ours.send_stream.aclose()
        with pytest.raises((HandshakeError, ConnectionLostError)):
            async with open_server_websocket(theirs, refuse):
                pass

    trio.run(main)


@given(garbage=st.binary() | st.binary().map(lambda tail: b"HTTP/1.1 101 X\r\n" + tail))
def test_no_answer_makes_the_client_raise_anything_else(garbage):
    async def main():
        await error_of_client(garbage, hang_up=True)

    trio.run(main)


@given(garbage=st.binary(min_size=1))
def test_no_bytes_make_an_open_transport_raise_anything_else(garbage):
    async def main():
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_nothing, theirs)
            async with client(ours) as transport:
                await theirs.send_all(garbage)
                await theirs.send_stream.aclose()
                with pytest.raises((ConnectionLostError, RemoteProtocolError)):
                    await receive_to_the_end(transport)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def receive_to_the_end(transport):
    while True:
        await transport.receive()
