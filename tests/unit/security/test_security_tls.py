"""TLS over in-memory streams, and once over a socket."""

from datetime import UTC, datetime

import pytest
import trio
from certificates import Authority
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from trio.testing import check_two_way_stream, memory_stream_pair, wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import ConnectionLostError, HandshakeError, PeerUnreachableError, TrustError
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.tls import TLSStream, open_client_tls, open_server_tls
from trio_p2p.security.trust import Trust, fingerprint
from trio_p2p.transport.websocket import Accept, open_client_websocket, open_server_websocket

NOW = datetime.now(UTC)
IDENTITY = TLSIdentity.create("till", now=NOW)
ISSUED = Authority(NOW).issue("till", dns="till.example")
SELF_SIGNED = Trust(only_self_signed=True)


async def connect(ours, theirs, *, trust=SELF_SIGNED, identity=IDENTITY, host="till.example"):
    """Client and server of a handshake over two joined streams."""
    ends = {}

    async def serve():
        ends["server"] = await open_server_tls(theirs, identity)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        ends["client"] = await open_client_tls(ours, host=host, trust=trust, now=NOW)
    return ends["client"], ends["server"]


def socket_stream_pair():
    """Streams with bounded buffers, so that a sender can be made to wait."""
    return tuple(map(trio.SocketStream, trio.socket.socketpair()))


async def connect_then_block():
    """A client whose peer has stopped reading."""
    ours, theirs = memory_stream_pair()
    client, _ = await connect(ours, theirs)
    ours.send_stream.send_all_hook = trio.sleep_forever
    return client


async def refused(*, trust, identity, host="till.example"):
    """What client and server raise when the client refuses the server."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            with pytest.raises(HandshakeError, match="alert"):
                await open_server_tls(theirs, identity)

        with pytest.raises(TrustError) as info:
            await open_client_tls(ours, host=host, trust=trust, now=NOW)
    return info.value


async def test_it_keeps_every_promise_of_a_trio_stream():
    async def make():
        return await connect(*memory_stream_pair())

    await check_two_way_stream(make, None)


async def test_large_data_passes_in_both_directions_at_once():
    data = bytes(range(256)) * 8192

    async def send(stream):
        await stream.send_all(data)

    async def receive(stream):
        received = bytearray()
        while len(received) < len(data):
            received += await stream.receive_some()
        assert received == data

    ends = await connect(*socket_stream_pair())
    async with ends[0], ends[1], trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(send, end)
            nursery.start_soon(receive, end)


async def test_a_small_read_leaves_the_rest_for_the_next():
    ours, theirs = await connect(*memory_stream_pair())
    await ours.send_all(b"abcdef")
    assert await theirs.receive_some(4) == b"abcd"
    assert await theirs.receive_some(4) == b"ef"
    with pytest.raises(ValueError, match="positive"):
        await theirs.receive_some(0)


async def test_a_goodbye_ends_the_stream_and_so_does_an_end_without_one():
    ours, theirs = await connect(*memory_stream_pair())
    await ours.send_all(b"last")
    await ours.aclose()
    await ours.aclose()
    assert await theirs.receive_some() == b"last"
    assert await theirs.receive_some() == b""
    assert await theirs.receive_some() == b""

    raw, other = memory_stream_pair()
    ours, theirs = await connect(raw, other)
    await ours.send_all(b"last")
    await raw.aclose()
    assert await theirs.receive_some() == b"last"
    assert await theirs.receive_some() == b""


async def test_a_closed_stream_refuses_to_work():
    ours, _ = await connect(*memory_stream_pair())
    await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive_some()


async def test_closing_while_a_sender_is_stuck_does_not_wait_for_it():
    ours, theirs = await connect(*socket_stream_pair())
    async with theirs, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send():
            with pytest.raises(trio.ClosedResourceError):
                await ours.send_all(bytes(10_000_000))

        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await ours.send_all(b"y")
        await ours.aclose()


async def test_a_peer_that_does_not_read_delays_closing_by_a_bounded_time(autojump_clock):
    ours = await connect_then_block()
    started = trio.current_time()
    await ours.aclose()
    assert trio.current_time() - started == limits.CLOSE_TIMEOUT_S


async def test_an_interrupted_send_breaks_the_stream(autojump_clock):
    ours = await connect_then_block()
    with trio.move_on_after(1):
        await ours.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"y")


async def test_tampered_bytes_break_the_stream():
    raw, other = memory_stream_pair()
    _, theirs = await connect(raw, other)
    await raw.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(trio.BrokenResourceError):
        await theirs.receive_some()


async def test_the_client_learns_the_chain_of_the_server():
    pin = Trust(pinned=fingerprint(ISSUED.certificates[1]))
    ours, theirs = await connect(*memory_stream_pair(), trust=pin, identity=ISSUED)
    assert ours.peer_certificates == ISSUED.certificates
    assert theirs.peer_certificates == ()


async def test_any_other_than_the_pinned_certificate_is_refused_with_an_alert():
    pin = Trust(pinned=fingerprint(ISSUED.certificates[0]))
    error = await refused(trust=pin, identity=IDENTITY)
    assert "pinned" in str(error)
    assert error.certificates == IDENTITY.certificates


@pytest.mark.behaviour("T2b")
async def test_self_signed_only_refuses_a_certificate_of_an_authority():
    error = await refused(trust=SELF_SIGNED, identity=ISSUED)
    assert "only self-signed certificates are accepted" in str(error)
    assert error.certificates == ISSUED.certificates


@pytest.mark.behaviour("T1b")
async def test_a_self_signed_certificate_is_unknown_to_the_system():
    error = await refused(trust=Trust(), identity=IDENTITY)
    assert "no certificate authority" in str(error)


async def test_a_root_of_the_system_vouches_for_its_hosts_only(tmp_path, monkeypatch):
    roots = tmp_path / "roots.pem"
    roots.write_bytes(ISSUED.certificates[1].public_bytes(Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    await connect(*memory_stream_pair(), trust=Trust(), identity=ISSUED)
    error = await refused(trust=Trust(), identity=ISSUED, host="10.0.0.7")
    assert "another host" in str(error)


@pytest.mark.behaviour("X3")
async def test_a_client_that_stalls_does_not_hold_the_server(autojump_clock):
    _ours, theirs = memory_stream_pair()
    started = trio.current_time()
    with pytest.raises(ConnectionLostError):
        await open_server_tls(theirs, IDENTITY)
    assert trio.current_time() - started == limits.HANDSHAKE_TIMEOUT_S
    with pytest.raises(trio.ClosedResourceError):
        await theirs.send_all(b"x")


async def test_a_server_that_says_nothing_is_unreachable(autojump_clock):
    ours, _theirs = memory_stream_pair()
    with pytest.raises(PeerUnreachableError):
        await open_client_tls(ours, host="x", trust=SELF_SIGNED, now=NOW)


async def test_a_peer_that_hangs_up_in_the_handshake_is_lost():
    ours, theirs = memory_stream_pair()
    await theirs.send_stream.aclose()
    with pytest.raises(ConnectionLostError):
        await open_client_tls(ours, host="x", trust=SELF_SIGNED, now=NOW)


async def test_a_peer_that_speaks_something_else_is_a_failed_handshake():
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x28"):
        ours, theirs = memory_stream_pair()
        await theirs.send_all(answer)
        with pytest.raises(HandshakeError):
            await open_client_tls(ours, host="x", trust=SELF_SIGNED, now=NOW)
    ours, theirs = memory_stream_pair()
    await ours.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(HandshakeError):
        await open_server_tls(theirs, IDENTITY)


async def test_a_client_of_an_old_version_is_refused():
    ours, theirs = memory_stream_pair()
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(SSL.TLS1_1_VERSION)
    connection = SSL.Connection(context)
    connection.set_connect_state()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            with pytest.raises((HandshakeError, ConnectionLostError)):
                await open_server_tls(theirs, IDENTITY)

        with pytest.raises(SSL.Error):
            await TLSStream(ours, connection).handshake()
        await ours.aclose()


async def test_websocket_messages_pass_over_tls_over_a_socket():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    pin = Trust(pinned=fingerprint(IDENTITY.certificates[0]))

    async def decide(request):
        await trio.lowlevel.checkpoint()
        return Accept(request.subprotocols[0])

    async def serve():
        tls = await open_server_tls(await listener.accept(), IDENTITY)
        async with open_server_websocket(tls, decide) as server:
            for _ in range(20):
                await server.send(await server.receive())
            with pytest.raises(ConnectionLostError) as info:
                await server.receive()
            assert info.value.code == 4001

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        tls = await open_client_tls(stream, host="127.0.0.1", trust=pin, now=NOW)
        options = {"host": "127.0.0.1", "resource": "/db", "subprotocols": ["a"]}
        async with open_client_websocket(tls, **options) as client:
            for number in range(20):
                message = bytes([number]) * (number * 50_000)
                await client.send(message)
                assert await client.receive() == message
            await client.aclose(4001)
