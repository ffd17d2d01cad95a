"""Where a peer listens, and which failures to connect are told apart."""

import socket
from datetime import UTC, datetime
from importlib.metadata import version

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from trio_p2p.errors import ConfigurationError, ConnectError, PeerUnreachableError
from trio_p2p.replication.connector import Access, Endpoint, open_endpoint, open_websocket
from trio_p2p.security.trust import Trust
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
    ],
)
def test_the_host_header_names_the_port_unless_it_is_the_default_one(url, header):
    assert Endpoint.parse(url).host_header == header


@pytest.mark.behaviour("W4c")
@given(
    st.builds(
        Endpoint,
        st.booleans(),
        st.sampled_from(["host", "a.b.example", "10.0.0.1", "::1", "fe80::1"]),
        st.integers(1, 65535),
        st.sampled_from(["/db", "/a/b", "/%20"]),
    )
)
def test_an_endpoint_is_written_as_the_url_it_is_read_from(endpoint):
    assert Endpoint.parse(str(endpoint)) == endpoint


# --- Failures to connect --------------------------------------------------------------------------


async def failure_of(host, port=80):
    """What connecting to this address raises."""
    access = Access(trust=Trust(), headers={}, heartbeat_s=300, now=lambda: None)
    with pytest.raises(ConnectError) as caught:
        async with open_endpoint(Endpoint(False, host, port, "/db"), access):
            pass
    return caught.value


class Names(trio.abc.HostnameResolver):
    """Fails to look up any name, with this error."""

    def __init__(self, error):
        self._error = error

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        raise self._error

    async def getnameinfo(self, sockaddr, flags):
        raise self._error


@pytest.fixture
async def lookup_fails_with():
    def set_error(error):
        trio.socket.set_custom_hostname_resolver(Names(error))

    yield set_error
    trio.socket.set_custom_hostname_resolver(None)


@pytest.mark.behaviour("R5")
async def test_a_name_that_nobody_has_is_an_error_for_good(lookup_fails_with):
    lookup_fails_with(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    error = await failure_of("nobody.invalid")
    assert type(error) is ConnectError
    assert not error.retryable


async def test_a_name_server_that_does_not_answer_may_answer_later(lookup_fails_with):
    lookup_fails_with(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    assert type(await failure_of("host.example")) is PeerUnreachableError


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_a_name_that_nobody_can_have_is_an_error_for_good(host):
    assert type(await failure_of(host)) is ConnectError


async def test_a_port_where_nobody_listens_is_told_with_the_reason(free_port):
    error = await failure_of("127.0.0.1", free_port)
    assert type(error) is PeerUnreachableError
    assert "refused" in str(error)


async def test_a_peer_that_does_not_answer_is_given_up_in_time(lookup_hangs, autojump_clock):
    assert type(await failure_of("host.example")) is PeerUnreachableError


@pytest.fixture
def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        # Bound and not listening: nobody else can take it, and connecting to it is refused.
        yield held.getsockname()[1]


@pytest.fixture
async def lookup_hangs():
    class Hanging(Names):
        async def getaddrinfo(self, *args, **kwargs):
            await trio.sleep_forever()

    trio.socket.set_custom_hostname_resolver(Hanging(None))
    yield
    trio.socket.set_custom_hostname_resolver(None)


@pytest.mark.behaviour("W3a", "W6")
@pytest.mark.parametrize("given", [{}, {"User-Agent": "till/3"}, {"USER-AGENT": "till/3"}])
async def test_the_request_names_us_and_holds_the_users_headers(given):
    ours, theirs = memory_stream_pair()
    requests = []

    async def decide(request):
        await trio.lowlevel.checkpoint()
        requests.append(request)
        return Accept(request.subprotocols[0])

    async def serve():
        async with open_server_websocket(theirs, decide):
            await trio.sleep_forever()

    access = Access(
        trust=Trust(),
        headers={"X-Till": "3", **given},
        heartbeat_s=300.0,
        now=lambda: datetime.now(UTC),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_websocket(ours, Endpoint(False, "host", 80, "/db"), access):
            pass
        nursery.cancel_scope.cancel()
    [request] = requests
    agents = [value for name, value in request.headers if name.lower() == "user-agent"]
    assert agents == ["till/3" if given else f"trio-p2p/{version('trio-p2p')}"]
    assert request.header("x-till") == "3"
