"""TCP connections, and which failures to make one are told apart."""

import errno
import ipaddress
import os
import socket

import ifaddr
import pytest
import trio

from trio_p2p.errors import ConnectError, NetworkUnavailableError, PeerUnreachableError
from trio_p2p.retry import RETRY, Retry
from trio_p2p.transport.tcp import connect_error, open_tcp


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


@pytest.fixture
def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        # Bound and not listening: nobody else can take it, and connecting to it is refused.
        yield held.getsockname()[1]


@pytest.fixture
async def listening():
    """A listener at 127.0.0.1."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener


async def failure_of(host, port=80, **options):
    with pytest.raises(ConnectError) as caught:
        await open_tcp(host, port, **options)
    return caught.value


# --- Looking up ----------------------------------------------------------------------------------


@pytest.mark.behaviour("R5")
async def test_a_name_that_nobody_has_may_be_had_in_another_network(lookup_fails_with):
    lookup_fails_with(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    error = await failure_of("nobody.invalid")
    assert type(error) is NetworkUnavailableError
    assert (error.retryable, error.network_dependent) == (False, True)


async def test_a_name_server_that_does_not_answer_may_answer_later(lookup_fails_with):
    lookup_fails_with(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    error = await failure_of("host.example")
    assert type(error) is PeerUnreachableError
    assert error.retryable


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_a_name_that_nobody_can_have_is_an_error_for_good(host):
    assert type(await failure_of(host)) is ConnectError


# --- Connecting ----------------------------------------------------------------------------------


async def test_a_port_where_nobody_listens_is_told_with_the_reason(free_port):
    error = await failure_of("127.0.0.1", free_port)
    assert type(error) is PeerUnreachableError
    assert "refused" in str(error)


@pytest.mark.parametrize(
    ("domain", "code"), [key for key in RETRY if key[0] == "POSIX"] + [("POSIX", errno.EACCES)]
)
def test_what_the_system_says_decides_what_kind_of_error_it_is(domain, code):
    kinds = {
        Retry.ALWAYS: PeerUnreachableError,
        Retry.CONTINUOUS: NetworkUnavailableError,
        None: ConnectError,
    }
    error = connect_error(OSError(code, os.strerror(code)))
    assert type(error) is kinds[RETRY.get((domain, code))]
    assert os.strerror(code) in str(error)


def test_of_several_addresses_the_most_hopeful_failure_counts():
    def failed(*codes):
        errors = [OSError(code, os.strerror(code)) for code in codes]
        failure = OSError("all attempts failed")
        failure.__cause__ = ExceptionGroup("", errors)
        return failure

    down, refused, denied = errno.ENETUNREACH, errno.ECONNREFUSED, errno.EACCES
    assert type(connect_error(failed(denied, down, refused))) is PeerUnreachableError
    assert type(connect_error(failed(denied, down))) is NetworkUnavailableError
    assert type(connect_error(failed(denied), failed(down))) is NetworkUnavailableError
    assert type(connect_error(failed(denied))) is ConnectError


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (TimeoutError("no carrier"), PeerUnreachableError),
        (ConnectionRefusedError(), PeerUnreachableError),
        (ConnectionResetError("reset"), PeerUnreachableError),
        (ConnectionAbortedError(), PeerUnreachableError),
        (BrokenPipeError(), NetworkUnavailableError),
        (PermissionError("denied"), ConnectError),
        (OSError("no carrier"), ConnectError),
    ],
)
def test_a_failure_without_a_code_is_what_its_class_says(raised, kind):
    error = connect_error(raised)
    assert type(error) is kind
    assert str(raised) in str(error)


def test_a_failure_that_something_else_caused_is_told_by_itself():
    failure = OSError("no carrier")
    failure.__cause__ = ExceptionGroup("", [LookupError("no modem")])
    assert str(connect_error(failure)) == "no connection: no carrier"


# --- From where ----------------------------------------------------------------------------------


async def accepted_from(listening, **options):
    """The address that a connection comes from."""
    port = listening.socket.getsockname()[1]
    async with await open_tcp("127.0.0.1", port, **options):
        accepted = await listening.accept()
        async with accepted:
            return accepted.socket.getpeername()[0]


def loopback_name():
    for adapter in ifaddr.get_adapters():
        if any(ip.is_IPv4 and ipaddress.ip_address(ip.ip).is_loopback for ip in adapter.ips):
            return adapter.nice_name
    raise AssertionError("this machine has no loopback interface")


@pytest.mark.behaviour("T9")
@pytest.mark.behaviour("T9")
async def test_a_connection_comes_from_the_address_it_is_told_to(listening):
    assert await accepted_from(listening, network_interface="127.0.0.1") == "127.0.0.1"


@pytest.mark.behaviour("T9")
@pytest.mark.behaviour("T9")
async def test_a_connection_comes_from_an_interface_given_by_name(listening):
    assert await accepted_from(listening, network_interface=loopback_name()) == "127.0.0.1"


@pytest.mark.behaviour("T9")
@pytest.mark.behaviour("T9")
@pytest.mark.parametrize("interface", ["no-such-interface", "1.1.1.256", "192.0.2.250", "::1"])
async def test_an_interface_that_leads_nowhere_may_do_so_later(listening, interface):
    """It is not there, not ours, or knows the peer's family of addresses no more."""
    port = listening.socket.getsockname()[1]
    error = await failure_of("127.0.0.1", port, network_interface=interface)
    assert type(error) is NetworkUnavailableError
