"""Which addresses a listener serves."""

import errno
import ipaddress
import os
import socket
from types import SimpleNamespace

import ifaddr
import pytest
import trio

from trio_p2p.errors import ListenError
from trio_p2p.transport import interfaces
from trio_p2p.transport.interfaces import (
    address_at,
    addresses_of,
    addresses_served,
    open_listeners,
    own_addresses,
    port_of,
    url_host,
)

LOOPBACK = ipaddress.ip_address("127.0.0.1")


def adapter(name, *ips, nice_name=None):
    """A network interface as `ifaddr` tells of it."""
    described = [ifaddr.IP(ip if "." in ip else (ip, 0, 0), 24, nice_name or name) for ip in ips]
    return ifaddr.Adapter(name, nice_name or name, described)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine have these network interfaces."""

    def has(*adapters):
        monkeypatch.setattr(interfaces.ifaddr, "get_adapters", lambda: adapters)

    return has


def texts(addresses):
    return [str(address) for address in addresses]


# --- Addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "10.1.2.3", "2001:db8::1"])
def test_an_address_stands_for_itself(text):
    assert texts(addresses_of(text)) == [text]


@pytest.mark.parametrize("name", ["foo", "", "1.1.1.256", "1.1.1", "::1::", "localhost", "lo:9"])
def test_what_is_no_interface_of_this_machine_cannot_be_served(name):
    with pytest.raises(ListenError):
        addresses_of(name)


def test_of_a_named_interface_the_first_address_is_served(machine):
    machine(adapter("lo", "127.0.0.1"), adapter("eth0", "10.0.0.5", "2001:db8::5"))
    assert texts(addresses_of("eth0")) == ["10.0.0.5"]


def test_an_interface_may_be_named_as_people_call_it(machine):
    machine(adapter("{93123211}", "10.0.0.5", nice_name="Ethernet 2"))
    assert texts(addresses_of("Ethernet 2")) == ["10.0.0.5"]


def test_link_local_addresses_are_left_out_where_there_are_others(machine):
    machine(adapter("eth0", "fe80::5", "169.254.1.1", "2001:db8::5"), adapter("eth1", "fe80::6"))
    assert texts(addresses_of("eth0")) == ["2001:db8::5"]
    assert texts(addresses_of("eth1")) == ["fe80::6"]


def test_an_interface_without_addresses_cannot_be_served(machine):
    machine(adapter("eth0"))
    with pytest.raises(ListenError):
        addresses_of("eth0")


def test_the_loopback_interface_of_this_machine_is_found():
    [name] = [a.name for a in ifaddr.get_adapters() for ip in a.ips if ip.ip == str(LOOPBACK)]
    assert addresses_of(name)[0].is_loopback


def test_others_reach_this_machine_at_some_address():
    assert own_addresses()


def test_own_addresses_are_those_that_lead_outward_ipv4_first(machine):
    machine(
        adapter("lo", "127.0.0.1", "::1"),
        adapter("eth0", "2001:db8::5", "fe80::5", "10.0.0.9"),
        adapter("wlan0", "10.0.0.5", "169.254.1.1"),
    )
    assert texts(own_addresses()) == ["10.0.0.5", "10.0.0.9", "2001:db8::5"]


def test_a_machine_without_a_network_reaches_itself(machine):
    machine(adapter("lo", "::1", "127.0.0.1"), adapter("eth0", "fe80::5"))
    assert texts(own_addresses()) == ["127.0.0.1", "::1"]


def test_a_link_local_address_comes_with_its_zone(machine):
    ip = ifaddr.IP(("fe80::5", 0, 4), 64, "eth0")
    machine(ifaddr.Adapter("eth0", "eth0", [ip]))
    assert texts(addresses_of("eth0")) == ["fe80::5%4"]


@pytest.mark.parametrize(
    ("bound", "served"),
    [
        (["0.0.0.0", "::"], ["10.0.0.5", "2001:db8::5"]),
        (["0.0.0.0"], ["10.0.0.5"]),
        (["::"], ["2001:db8::5"]),
        (["127.0.0.1"], ["127.0.0.1"]),
        # One that its interface has no more.
        (["10.0.0.6"], ["10.0.0.6"]),
    ],
)
def test_others_are_told_where_the_listener_is(machine, bound, served):
    machine(adapter("lo", "127.0.0.1", "::1"), adapter("eth0", "10.0.0.5", "2001:db8::5"))
    assert texts(addresses_served([ipaddress.ip_address(text) for text in bound])) == served


def test_who_listens_at_one_version_is_reached_at_it_though_another_leads_outward(machine):
    machine(adapter("lo", "127.0.0.1", "::1"), adapter("eth0", "2001:db8::5"))
    assert texts(addresses_served([ipaddress.ip_address("0.0.0.0")])) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.5", "10.0.0.5"), ("2001:db8::5", "[2001:db8::5]"), ("fe80::5%4", "[fe80::5%254]")],
)
def test_an_address_is_written_as_the_host_of_a_url(address, host):
    assert url_host(ipaddress.ip_address(address)) == host


# --- Listening ------------------------------------------------------------------------------------


@pytest.fixture
async def listen():
    opened = []

    async def listen(addresses=(LOOPBACK,), port=0):
        listeners = await open_listeners(addresses, port)
        opened.extend(listeners)
        return listeners

    yield listen
    for listener in opened:
        await listener.aclose()


async def test_an_address_is_listened_at(listen):
    [listener] = await listen()
    assert address_at(listener) == LOOPBACK
    async with await trio.open_tcp_stream("127.0.0.1", port_of(listener)):
        pass


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1"),
        (("::", 80, 0, 0), "::"),
        (("fe80::1%eth0", 80, 0, 2), "fe80::1%2"),
    ],
)
def test_the_address_of_a_listener_is_that_of_its_socket(name, text):
    listener = SimpleNamespace(socket=SimpleNamespace(getsockname=lambda: name))
    assert str(address_at(listener)) == text


async def test_a_given_port_is_taken(listen):
    [listener] = await listen()
    port = port_of(listener)
    await listener.aclose()
    [again] = await listen(port=port)
    assert port_of(again) == port


async def test_a_port_in_use_cannot_be_taken(listen):
    [listener] = await listen()
    with pytest.raises(ListenError) as caught:
        await listen(port=port_of(listener))
    assert caught.value.facts["port"] == port_of(listener)


async def test_an_address_of_another_machine_cannot_be_taken(listen):
    with pytest.raises(ListenError):
        await listen([ipaddress.ip_address("192.0.2.1")])


async def test_when_one_address_cannot_be_taken_none_stays_taken(listen):
    [listener] = await listen()
    port = port_of(listener)
    await listener.aclose()
    with pytest.raises(ListenError):
        await listen([LOOPBACK, ipaddress.ip_address("192.0.2.1")], port)
    assert await listen(port=port)


async def test_without_an_address_all_are_listened_at_on_one_port(listen):
    listeners = await listen([])
    families = {listener.socket.family for listener in listeners}
    expected = {socket.AF_INET} | ({socket.AF_INET6} if socket.has_dualstack_ipv6() else set())
    assert families == expected
    assert len({port_of(listener) for listener in listeners}) == 1
    async with await trio.open_tcp_stream("127.0.0.1", port_of(listeners[0])):
        pass


class Refusing:
    """Trio's way to listen, but some addresses are refused."""

    def __init__(self, monkeypatch, refuse):
        self.asked = []
        self._listen = trio.open_tcp_listeners
        self._refuse = refuse
        monkeypatch.setattr(trio, "open_tcp_listeners", self)

    async def __call__(self, port, *, host):
        self.asked.append(host)
        if code := self._refuse(host, len(self.asked)):
            raise OSError(code, os.strerror(code))
        return await self._listen(port, host=host)


OTHER_LOOPBACK = ipaddress.ip_address("127.0.0.2")


async def test_where_a_chosen_port_is_taken_at_another_address_another_one_is_chosen(
    listen, monkeypatch
):
    def refuse(host, asked):
        return errno.EADDRINUSE if host == str(OTHER_LOOPBACK) and asked < 6 else None

    refusing = Refusing(monkeypatch, refuse)
    listeners = await listen([LOOPBACK, OTHER_LOOPBACK])
    assert len(listeners) == 2
    assert len({port_of(listener) for listener in listeners}) == 1
    assert refusing.asked == [str(LOOPBACK), str(OTHER_LOOPBACK)] * 3


async def test_a_port_that_was_asked_for_is_the_only_one_tried(listen, monkeypatch):
    [listener] = await listen()
    port = port_of(listener)
    await listener.aclose()
    refusing = Refusing(
        monkeypatch, lambda host, _: errno.EADDRINUSE if host == str(OTHER_LOOPBACK) else None
    )
    with pytest.raises(ListenError):
        await listen([LOOPBACK, OTHER_LOOPBACK], port)
    assert len(refusing.asked) == 2


async def test_who_is_cancelled_between_two_addresses_leaves_no_socket_open(listen, monkeypatch):
    [listener] = await listen()
    port = port_of(listener)
    await listener.aclose()
    with trio.CancelScope() as scope, monkeypatch.context() as patch:

        def refuse(host, asked):
            if asked == 2:
                scope.cancel()

        Refusing(patch, refuse)
        await listen([LOOPBACK, OTHER_LOOPBACK], port)
    assert scope.cancelled_caught
    assert await listen(port=port)


async def test_a_system_that_does_not_use_ipv6_is_listened_at_without(listen, monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: True)
    refusing = Refusing(monkeypatch, lambda host, _: errno.EADDRNOTAVAIL if host == "::" else None)
    [listener] = await listen([])
    assert refusing.asked == ["0.0.0.0", "::"]
    assert listener.socket.family == socket.AF_INET
