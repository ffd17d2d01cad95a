"""Where a peer listens, and which failures to connect are told apart."""

import errno
import socket
from importlib.metadata import version
from urllib.parse import quote, unquote

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from trio_p2p import limits
from trio_p2p.errors import (
    CallbackError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    NetworkUnavailableError,
    PeerUnreachableError,
    TrioP2PError,
)
from trio_p2p.replication.connector import (
    Access,
    Endpoint,
    check_headers,
    open_target,
    url_name,
)
from trio_p2p.replication.profiles.couchbase import SUBPROTOCOL
from trio_p2p.security.auth import BasicAuthenticator
from trio_p2p.security.trust import Trust
from trio_p2p.transport.memory import memory_transport_pair
from trio_p2p.transport.websocket import Accept, open_server_websocket

ENDPOINTS = {
    "ws://host/db": Endpoint(False, "host", 80, "/db"),
    "wss://host/db": Endpoint(True, "host", 443, "/db"),
    "WS://Host/DB": Endpoint(False, "host", 80, "/DB"),
    "ws://host:4984/db": Endpoint(False, "host", 4984, "/db"),
    "wss://host:80/db": Endpoint(True, "host", 80, "/db"),
    "ws://host:/db": Endpoint(False, "host", 80, "/db"),
    "ws://10.0.0.1:4984/db": Endpoint(False, "10.0.0.1", 4984, "/db"),
    "ws://[::1]/db": Endpoint(False, "::1", 80, "/db"),
    "wss://[2001:db8::1]:4984/db": Endpoint(True, "2001:db8::1", 4984, "/db"),
    "ws://host/db/": Endpoint(False, "host", 80, "/db"),
    "ws://host//db//": Endpoint(False, "host", 80, "/db"),
    "ws://host/some/where/db": Endpoint(False, "host", 80, "/some/where/db"),
    "ws://host/m%C3%BCsli%20shop": Endpoint(False, "host", 80, "/m%C3%BCsli%20shop"),
    "ws://[fe80::1%252]:4984/db": Endpoint(False, "fe80::1%2", 4984, "/db"),
    "ws://[fe80::1%25eth0]/db": Endpoint(False, "fe80::1%eth0", 80, "/db"),
}


@pytest.mark.behaviour("W4a")
@pytest.mark.parametrize(("url", "endpoint"), ENDPOINTS.items(), ids=ENDPOINTS)
def test_a_url_is_read(url, endpoint):
    assert Endpoint.parse(url) == endpoint


@pytest.mark.behaviour("W4b", "W5")
@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "host/db",
        "/db",
        "ws:",
        "ws://",
        "ws:host/db",
        "ws:///db",
        "ws://:4984/db",
        "http://host/db",
        "https://host/db",
        "blip://host/db",
        "ws+tls://host/db",
        "ws://host",
        "ws://host/",
        "ws://host//",
        "ws://host:4984",
        "ws://host:x/db",
        "ws://host:-1/db",
        "ws://host:0/db",
        "ws://host:65536/db",
        "ws://[::1/db",
        "ws://::1]/db",
        "ws://[nonsense]/db",
        "ws://user@host/db",
        "ws://user:secret@host/db",
        "ws://@host/db",
        "ws://host/db?query",
        "ws://host/db#fragment",
        "ws://host/a b",
        "ws://ho st/db",
        " ws://host/db",
        "ws://host/db ",
        "ws://host/a\nb",
        "ws://host/a\r\nX-Header: evil",
        "ws://host/a\x00b",
        "ws://host\x00/db",
        "ws://host/müsli",
        "ws://müsli.example/db",
    ],
)
def test_what_names_no_database_of_a_peer_is_refused(url):
    with pytest.raises(ConfigurationError):
        Endpoint.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "ws://user:secret@host/db",
        "http://user:secret@host/db",
        "ws://user:secret@host:x/db",
        "ws://user:secret@[::1/db",
        "ws://user:secret@host/ü",
    ],
)
def test_a_refused_password_is_not_repeated_in_the_error(url):
    with pytest.raises(ConfigurationError) as caught:
        Endpoint.parse(url)
    assert "secret" not in str(caught.value)


@given(st.text() | st.text(st.sampled_from("ws:/@[]?#%.-_0123456789 ah\n")).map("ws://".__add__))
def test_any_text_is_an_endpoint_or_refused(text):
    try:
        endpoint = Endpoint.parse(text)
    except ConfigurationError:
        return
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("url", "header"),
    [
        ("ws://host/db", "host"),
        ("ws://host:80/db", "host"),
        ("ws://host:443/db", "host:443"),
        ("wss://host:443/db", "host"),
        ("wss://host:80/db", "host:80"),
        ("ws://[::1]/db", "[::1]"),
        ("wss://[::1]:4984/db", "[::1]:4984"),
        # The zone means something to us alone.
        ("ws://[fe80::1%252]:4984/db", "[fe80::1]:4984"),
    ],
)
def test_the_host_header_names_the_port_unless_it_is_the_default_one(url, header):
    assert Endpoint.parse(url).host_header == header


@pytest.mark.behaviour("W4c")
@given(
    st.builds(
        Endpoint,
        st.booleans(),
        st.sampled_from(["host", "a.b.example", "10.0.0.1", "::1", "fe80::1", "fe80::1%2"]),
        st.integers(1, 65535),
        st.sampled_from(["/db", "/a/b", "/%20"]),
    )
)
def test_an_endpoint_is_written_as_the_url_it_is_read_from(endpoint):
    assert Endpoint.parse(str(endpoint)) == endpoint


# --- Names of databases ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("shop", "shop"),
        ("my.shop", "my.shop"),
        ("Müsli & Söhne", "Müsli & Söhne"),
        ("_shop_", "-shop_"),
        ("__shop", "-_shop"),
        ("a/b", "a-b"),
        ("a\nb\x7f\x85", "a-b--"),
        ("a\udcffb", "a-b"),
        ("", "db"),
        (".", "-"),
        ("..", "--"),
        ("x" * 250, "x" * 240),
        ("ü" * 130, "ü" * 120),
        ("x" + "ü" * 130, "x" + "ü" * 119),
    ],
)
def test_a_database_is_called_what_couchbase_lite_can_name(name, named):
    assert url_name(name) == named


@given(st.text(st.characters(codec=None)))
def test_any_name_can_stand_in_a_url(name):
    path = quote(url_name(name), safe="")
    assert Endpoint.parse(f"ws://host/{path}").path == f"/{path}"
    assert unquote(path) == url_name(name)


# --- Headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Till", "7"), ("Cookie", "a=b; c=d"), ("User-Agent", "shop/2 (linux)"), ("x", "!~\t!")],
)
def test_headers_of_ones_own_are_sent(name, value):
    check_headers({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "x"),
        ("a b", "x"),
        ("a:", "x"),
        ("a\n", "x"),
        ("ä", "x"),
        ("a", ""),
        ("a", " x"),
        ("a", "x "),
        ("a", "x\r\nb: y"),
        ("a", "x\x00"),
        ("a", "ä"),
        ("a", 1),
        (1, "a"),
    ],
)
def test_what_cannot_stand_in_a_header_is_refused(name, value):
    with pytest.raises(ConfigurationError):
        check_headers({name: value})


@pytest.mark.parametrize(
    "name",
    [
        "Host",
        "connection",
        "UPGRADE",
        "Sec-WebSocket-Key",
        "sec-websocket-protocol",
        "Sec-WebSocket-Extensions",
        "Content-Length",
        "Transfer-Encoding",
    ],
)
def test_the_handshake_cannot_be_spoken_over(name):
    with pytest.raises(ConfigurationError):
        check_headers({name: "x"})


def test_an_authenticator_is_not_spoken_over_either():
    check_headers({"Authorization": "Bearer x"})
    with pytest.raises(ConfigurationError):
        check_headers({"authorization": "Bearer x"}, authenticated=True)


def test_a_value_that_is_refused_is_not_repeated_in_the_error():
    with pytest.raises(ConfigurationError) as caught:
        check_headers({"X-Token": "secret\n"})
    assert "secret" not in str(caught.value)


# --- Connecting -----------------------------------------------------------------------------------


def accessing(**settings):
    defaults = {"trust": Trust(), "headers": {}, "heartbeat_s": 300, "now": lambda: None}
    return Access(**(defaults | settings))


async def failure_of(target, **settings):
    """What connecting to this target raises."""
    with pytest.raises(TrioP2PError) as caught:
        async with open_target(target, accessing(**settings)):
            pass
    return caught.value


async def request_to(server, access):
    """The request that a server of ours is sent."""
    requests = []

    async def decide(request):
        requests.append(request)
        return Accept(SUBPROTOCOL)

    async def serve():
        async with open_server_websocket(server[1], decide) as transport:
            with pytest.raises(ConnectionLostError):
                await transport.receive()

    async def dial():
        return server[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_target(dial, access) as connected:
            assert connected.transport is not None
    return requests[0]


async def test_the_handshake_says_who_asks_for_what():
    ann = BasicAuthenticator("ann", "s3cret")
    access = accessing(headers={"X-Till": "7"}, authenticator=ann)
    request = await request_to(memory_stream_pair(), access)
    assert request.path == "/_blipsync"
    assert request.header("x-till") == "7"
    assert request.header("authorization") == ann.header()[1]


def silent_stream(silence):
    async def dial():
        return memory_stream_pair()[0]

    async def never():
        await trio.sleep_forever()

    return {"dialling": never, "the handshake": dial}[silence]


@pytest.mark.parametrize("silence", ["dialling", "the handshake"])
async def test_a_peer_that_does_not_answer_is_given_up_in_time(silence, autojump_clock):
    error = await failure_of(silent_stream(silence))
    assert type(error) is PeerUnreachableError
    assert trio.current_time() == pytest.approx(limits.CONNECT_TIMEOUT_S)


async def test_all_steps_of_connecting_share_one_deadline(autojump_clock):
    async def dial_slowly():
        await trio.sleep(limits.CONNECT_TIMEOUT_S - 1)
        return memory_stream_pair()[0]

    assert type(await failure_of(dial_slowly)) is PeerUnreachableError
    assert trio.current_time() == pytest.approx(limits.CONNECT_TIMEOUT_S)


async def test_a_name_that_is_looked_up_for_ever_is_given_up_in_time(autojump_clock):
    class Hanging(trio.abc.HostnameResolver):
        async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
            await trio.sleep_forever()

        async def getnameinfo(self, sockaddr, flags):
            await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(Hanging())
    error = await failure_of(Endpoint(True, "host.example", 80, "/db"))
    trio.socket.set_custom_hostname_resolver(None)
    assert type(error) is PeerUnreachableError


async def test_a_connection_once_made_has_no_deadline(autojump_clock):
    near, _ = memory_transport_pair()

    async def dial():
        return near

    async with open_target(dial, accessing()) as connected:
        await trio.sleep(10 * limits.CONNECT_TIMEOUT_S)
        assert connected.transport is near


async def test_a_transport_of_ones_own_is_cut_when_the_block_is_left():
    near, far = memory_transport_pair()

    async def dial():
        return near

    async with open_target(dial, accessing()):
        pass
    with pytest.raises(ConnectionLostError):
        await far.receive()


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), PeerUnreachableError),
        (OSError(errno.ENETUNREACH, "unreachable"), NetworkUnavailableError),
        (PermissionError(errno.EACCES, "denied"), ConnectError),
        (TimeoutError("no carrier"), PeerUnreachableError),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), PeerUnreachableError),
        (socket.gaierror(socket.EAI_NONAME, "not known"), NetworkUnavailableError),
        (trio.BrokenResourceError(), PeerUnreachableError),
        (trio.TooSlowError(), PeerUnreachableError),
        (ConnectionLostError("gone"), ConnectionLostError),
        (LookupError("a bug"), CallbackError),
    ],
)
@pytest.mark.parametrize("nurseries", range(3))
async def test_what_a_function_that_connects_raises_is_understood(raised, error, nurseries):
    """Also out of a nursery of its own, which makes a group of it."""
    for _ in range(nurseries):
        raised = ExceptionGroup("", [raised])

    async def dial():
        raise raised

    assert type(await failure_of(dial)) is error


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        ([PermissionError(errno.EACCES, "denied"), TimeoutError()], PeerUnreachableError),
        ([trio.TooSlowError(), ConnectionLostError("gone")], PeerUnreachableError),
        ([PermissionError(errno.EACCES, "denied"), LookupError("a bug")], CallbackError),
        ([TimeoutError(), LookupError("a bug")], CallbackError),
    ],
)
async def test_of_several_failures_a_bug_counts_most_then_the_most_hopeful(raised, error):
    async def dial():
        raise ExceptionGroup("", raised)

    assert type(await failure_of(dial)) is error


def raising_when_cut(raised, nurseries):
    """A function that connects to nobody, and raises this from within nurseries when it is cut."""

    async def dial(depth=nurseries):
        if not depth:
            try:
                await trio.sleep_forever()
            finally:
                raise raised
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, depth - 1)
            await trio.sleep_forever()

    return dial


@pytest.mark.parametrize("nurseries", range(3))
@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (TimeoutError("no carrier"), PeerUnreachableError),
        (OSError(errno.ENETUNREACH, "unreachable"), NetworkUnavailableError),
        (LookupError("a bug"), CallbackError),
    ],
)
async def test_what_it_raises_when_its_time_is_up_means_the_same(
    raised, error, nurseries, autojump_clock
):
    assert type(await failure_of(raising_when_cut(raised, nurseries))) is error
    assert trio.current_time() == pytest.approx(limits.CONNECT_TIMEOUT_S)


@pytest.mark.parametrize("nurseries", range(3))
async def test_what_it_raises_when_connecting_is_called_off_means_the_same(nurseries):
    with trio.CancelScope() as scope:
        scope.cancel()
        dial = raising_when_cut(TimeoutError("no carrier"), nurseries)
        assert type(await failure_of(dial)) is PeerUnreachableError


@pytest.mark.parametrize("nurseries", range(3))
async def test_what_ends_the_program_is_no_failure_to_connect(nurseries, autojump_clock):
    dial = raising_when_cut(KeyboardInterrupt(), nurseries)
    with pytest.RaisesGroup(KeyboardInterrupt, allow_unwrapped=True, flatten_subgroups=True):
        await failure_of(dial)


@pytest.mark.parametrize("made", [None, b"", socket.socket])
async def test_a_function_that_connects_returns_a_stream_or_a_transport(made):
    async def dial():
        return made

    assert type(await failure_of(dial)) is CallbackError


async def test_a_function_that_connects_is_async():
    assert type(await failure_of(lambda: memory_stream_pair()[0])) is CallbackError


@pytest.mark.behaviour("T9")
async def test_the_network_interface_is_where_a_connection_comes_from(free_port):
    endpoint = Endpoint(False, "127.0.0.1", free_port, "/db")
    assert type(await failure_of(endpoint)) is PeerUnreachableError
    error = await failure_of(endpoint, network_interface="no-such-interface")
    assert type(error) is NetworkUnavailableError


@pytest.fixture
def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        # Bound and not listening: nobody else can take it, and connecting to it is refused.
        yield held.getsockname()[1]


@pytest.mark.behaviour("W3a", "W6")
@pytest.mark.parametrize("given", [{}, {"User-Agent": "till/3"}, {"USER-AGENT": "till/3"}])
async def test_the_request_names_us_and_holds_the_users_headers(given):
    request = await request_to(memory_stream_pair(), accessing(headers={"X-Till": "3", **given}))
    agents = [value for name, value in request.headers if name.lower() == "user-agent"]
    assert agents == ["till/3" if given else f"trio-p2p/{version('trio-p2p')}"]
    assert request.header("x-till") == "3"
