"""TLS over in-memory streams, and once over a socket."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from trio.testing import check_two_way_stream, memory_stream_pair, wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import (
    AuthError,
    ConnectionLostError,
    HandshakeError,
    PeerUnreachableError,
    TrustError,
)
from trio_p2p.security.identity import CLIENT_AUTH, SERVER_AUTH, TLSIdentity
from trio_p2p.security.tls import open_client_tls, open_server_tls, refusal
from trio_p2p.security.tls_stream import TLSStream
from trio_p2p.security.trust import ClientTrust, Trust, fingerprint
from trio_p2p.testing.certificates import Authority
from trio_p2p.transport.websocket import Accept, open_client_websocket, open_server_websocket

NOW = datetime.now(UTC)
IDENTITY = TLSIdentity.create("till", now=NOW)
AUTHORITY = Authority(NOW)
ISSUED = AUTHORITY.issue("till", dns=["till.example"])
SELF_SIGNED = Trust(only_self_signed=True)


async def connect(
    ours,
    theirs,
    *,
    trust=SELF_SIGNED,
    identity=IDENTITY,
    host="till.example",
    shown=None,
    clients=None,
    now=NOW,
):
    """Client and server of a handshake over two joined streams.

    `shown` is the client's identity, `clients` which ones the server accepts.
    """
    ends = {}

    async def serve():
        ends["server"] = await open_server_tls(theirs, identity, clients=clients, now=now)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        ends["client"] = await open_client_tls(
            ours, host=host, trust=trust, now=now, identity=shown
        )
    return ends["client"], ends["server"]


async def alert_for(shown, clients):
    """The alert by which a server refuses a client's certificate, after the client's handshake."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            with pytest.raises(HandshakeError, match="handshake failed"):
                await open_server_tls(theirs, IDENTITY, clients=clients, now=NOW)

        client = await open_client_tls(
            ours, host="till.example", trust=SELF_SIGNED, now=NOW, identity=shown
        )
        # What a client of TLS 1.3 sends before it can know does not keep it from reading the alert.
        await client.send_all(b"request")
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        await client.aclose()
    error = refusal(client)
    assert isinstance(error, AuthError)
    assert not error.retryable
    return client.alert


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


async def test_roots_of_ones_own_take_the_place_of_the_systems():
    roots = Trust(roots=(ISSUED.certificates[1],))
    await connect(*memory_stream_pair(), trust=roots, identity=ISSUED)
    error = await refused(trust=roots, identity=ISSUED, host="other.example")
    assert "another host" in str(error)
    error = await refused(trust=roots, identity=IDENTITY)
    assert "no certificate authority" in str(error)
    error = await refused(trust=Trust(roots=IDENTITY.certificates), identity=ISSUED)
    assert "no certificate authority" in str(error)


async def test_a_self_signed_certificate_given_as_root_vouches_for_itself():
    named = TLSIdentity.create("till", attributes={"dNSName": "till.example"}, now=NOW)
    await connect(*memory_stream_pair(), trust=Trust(roots=named.certificates), identity=named)


async def test_an_intermediate_authority_given_as_root_is_enough():
    below = Authority(NOW, common_name="below", issuer=AUTHORITY)
    identity = below.issue("till", dns=["till.example"])
    trust = Trust(roots=(below.certificate,))
    await connect(*memory_stream_pair(), trust=trust, identity=identity)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ends": NOW - timedelta(hours=1)}, "expired"),
        ({"starts": NOW + timedelta(hours=1)}, "not valid yet"),
        ({"usages": [CLIENT_AUTH]}, "another use"),
    ],
)
async def test_roots_do_not_make_up_for_a_bad_certificate(settings, words):
    identity = AUTHORITY.issue("till", dns=["till.example"], **settings)
    error = await refused(trust=Trust(roots=(AUTHORITY.certificate,)), identity=identity)
    assert words in str(error)


async def test_an_authority_that_may_not_sign_is_none():
    powerless = Authority(NOW, common_name="powerless", issuer=AUTHORITY, may_sign=False)
    identity = powerless.issue("till", dns=["till.example"])
    error = await refused(trust=Trust(roots=(AUTHORITY.certificate,)), identity=identity)
    assert "may not sign" in str(error)


async def test_the_time_that_counts_is_the_one_given():
    """Databases have a clock of their own, which tests set."""
    identity = AUTHORITY.issue("till", dns=["till.example"])
    trust = Trust(roots=(AUTHORITY.certificate,))
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            with pytest.raises(HandshakeError):
                await open_server_tls(theirs, identity)

        with pytest.raises(TrustError, match="expired"):
            await open_client_tls(
                ours, host="till.example", trust=trust, now=NOW + timedelta(days=99)
            )


# --- Client certificates -------------------------------------------------------------------------


async def test_a_client_is_asked_for_a_certificate_only_where_one_is_wanted():
    ends = await connect(*memory_stream_pair(), shown=ISSUED)
    assert ends[1].peer_certificates == ()
    ends = await connect(*memory_stream_pair(), shown=ISSUED, clients=ClientTrust())
    assert ends[1].peer_certificates == ISSUED.certificates


async def test_roots_admit_those_they_vouch_for_and_themselves():
    by_root = ClientTrust((AUTHORITY.certificate,))
    client = AUTHORITY.issue("client", usages=[CLIENT_AUTH])
    ends = await connect(*memory_stream_pair(), shown=client, clients=by_root)
    assert ends[1].peer_certificates == client.certificates
    ends = await connect(
        *memory_stream_pair(), shown=IDENTITY, clients=ClientTrust(IDENTITY.certificates)
    )
    assert ends[1].peer_certificates == IDENTITY.certificates


@pytest.mark.parametrize(
    ("shown", "alert"),
    [
        (None, "certificate required"),
        (IDENTITY, "unknown ca"),
        (AUTHORITY.issue("old", ends=NOW - timedelta(hours=1)), "certificate expired"),
        (AUTHORITY.issue("early", starts=NOW + timedelta(hours=1)), "bad certificate"),
        (AUTHORITY.issue("server", usages=[SERVER_AUTH]), "unsupported certificate"),
        # Another authority of the same name.
        (Authority(NOW).issue("client"), "decrypt error"),
    ],
)
async def test_a_client_that_is_refused_learns_why(shown, alert):
    assert await alert_for(shown, ClientTrust((AUTHORITY.certificate,))) == alert


async def test_any_certificate_will_do_where_somebody_else_decides():
    old = AUTHORITY.issue("old", ends=NOW - timedelta(hours=1), usages=[SERVER_AUTH])
    ends = await connect(*memory_stream_pair(), shown=old, clients=ClientTrust())
    assert ends[1].peer_certificates == old.certificates
    assert await alert_for(None, ClientTrust()) == "certificate required"


async def test_a_client_shows_nothing_to_a_server_it_does_not_trust():
    ours, theirs = memory_stream_pair()
    sent = bytearray()
    deliver = ours.send_stream.send_all_hook

    async def note():
        sent.extend(ours.send_stream._outgoing._data)
        await deliver()

    ours.send_stream.send_all_hook = note
    seen = []

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            context = SSL.Context(SSL.TLS_METHOD)
            context.set_max_proto_version(SSL.TLS1_2_VERSION)  # Nothing is hidden from us in it.
            IDENTITY.install(context)
            context.set_verify(SSL.VERIFY_PEER, lambda *args: seen.append(args) or True)
            connection = SSL.Connection(context)
            connection.set_accept_state()
            with pytest.raises(SSL.Error):
                await TLSStream(theirs, connection).handshake()

        with pytest.raises(TrustError):
            await open_client_tls(
                ours, host="till.example", trust=Trust(), now=NOW, identity=ISSUED
            )
    assert seen == []
    assert ISSUED.certificates[0].public_bytes(Encoding.DER) not in sent


# --- Limits --------------------------------------------------------------------------------------


async def test_a_handshake_that_does_not_end_is_cut_off():
    ours, theirs = memory_stream_pair()
    # Records of a handshake message that claims to have 16 MiB.
    record = b"\x16\x03\x01\x40\x00" + b"\x0b\xff\xff\xff" + bytes(16_380)

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send():
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for _ in range(100):
                    await ours.send_all(record)
            await ours.aclose()

        with pytest.raises((HandshakeError, ConnectionLostError)):
            await open_server_tls(theirs, IDENTITY)


async def test_the_bytes_of_a_handshake_are_limited(monkeypatch):
    monkeypatch.setattr(limits, "TLS_HANDSHAKE_BYTES_MAX", 100)
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            with pytest.raises(ConnectionLostError):
                await open_server_tls(theirs, IDENTITY)

        with pytest.raises(ConnectionLostError):
            await open_client_tls(ours, host="x", trust=SELF_SIGNED, now=NOW)


async def test_after_an_alert_a_connection_is_kept_for_a_short_time_only(autojump_clock):
    ours, theirs = memory_stream_pair()
    await ours.send_all(b"GET / HTTP/1.1\r\n\r\n")
    started = trio.current_time()
    with pytest.raises(HandshakeError):
        await open_server_tls(theirs, IDENTITY)
    assert trio.current_time() - started == limits.LINGER_S

    ours, theirs = memory_stream_pair()
    await ours.send_all(b"GET / HTTP/1.1\r\n\r\n" + bytes(2 * limits.LINGER_BYTES_MAX))
    started = trio.current_time()
    with pytest.raises(HandshakeError):
        await open_server_tls(theirs, IDENTITY)
    assert trio.current_time() == started


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_a_session_is_never_resumed(version):
    """Else a client could come back after its certificate was withdrawn."""
    asked = []
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(version)
    # A client that resumes a session has no certificate to verify.
    context.set_verify(SSL.VERIFY_PEER, lambda *args: asked.append(args) or True)
    session = None
    for _ in range(2):
        asked.clear()
        client = SSL.Connection(context)
        client.set_connect_state()
        if session is not None:
            client.set_session(session)
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def serve(theirs=theirs):
                server = await open_server_tls(theirs, IDENTITY)
                await server.send_all(b"x")
                # OpenSSL forgets sessions that do not end with a goodbye.
                await server.receive_some()
                await server.aclose()

            stream = TLSStream(ours, client)
            await stream.handshake()
            await stream.receive_some()
            session = client.get_session()
            await stream.aclose()
        assert asked


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


async def test_a_peer_that_speaks_something_else_is_a_failed_handshake(autojump_clock):
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x28"):
        ours, theirs = memory_stream_pair()
        await theirs.send_all(answer)
        with pytest.raises(HandshakeError):
            await open_client_tls(ours, host="x", trust=SELF_SIGNED, now=NOW)
    ours, theirs = memory_stream_pair()
    await ours.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(HandshakeError):
        await open_server_tls(theirs, IDENTITY)


async def test_a_client_that_speaks_no_tls_is_told_so():
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve():
            with pytest.raises(HandshakeError):
                await open_server_tls(theirs, IDENTITY)

        with pytest.raises(HandshakeError, match="use wss://") as info:
            async with open_client_websocket(ours, host="x", resource="/db", subprotocols=["a"]):
                pass
    assert info.value.status == 400


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
