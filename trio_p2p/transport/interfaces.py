"""Which addresses a listener serves."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Collection, Sequence
from contextlib import ExitStack

import ifaddr
import trio

from trio_p2p import limits
from trio_p2p.errors import ListenError

EVERY_IPV6 = "::"
# What a system answers that knows of IPv6 and does not use it.
_NO_IPV6 = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def interface_addresses(interface: str) -> list[Address]:
    """The addresses of a network interface given by name, or the one address given.

    Those that are not link-local come first; none at all if this machine has no such interface.
    """
    try:
        return [ipaddress.ip_address(interface)]
    except ValueError:
        pass
    for adapter in ifaddr.get_adapters():
        if interface in (adapter.name, adapter.nice_name):
            return sorted(_addresses(adapter), key=lambda address: address.is_link_local)
    return []


def addresses_of(interface: str) -> list[Address]:
    """Where to listen on a network interface: at its first address, or the one address given.

    Raises: ListenError if this machine has no such interface.
    """
    found = interface_addresses(interface)
    if not found:
        raise ListenError("this machine has no such network interface", interface=interface)
    return found[:1]


def own_addresses(versions: Collection[int] = (4, 6)) -> list[Address]:
    """The addresses others may reach this machine at; loopback where there is nothing else.

    `versions` are those of the Internet Protocol that count.
    """
    adapters = ifaddr.get_adapters()
    found = [a for adapter in adapters for a in _addresses(adapter) if a.version in versions]
    outward = [a for a in found if not (a.is_loopback or a.is_link_local)]
    return sorted(outward or [a for a in found if a.is_loopback], key=lambda a: (a.version, a))


def addresses_served(bound: Sequence[Address]) -> list[Address]:
    """The addresses at which others reach who listens at these.

    Who listens at all of this machine does so at those, too, that it gets meanwhile.
    """
    versions = {address.version for address in bound if address.is_unspecified}
    return own_addresses(versions) if versions else list(bound)


def url_host(address: Address) -> str:
    """An address as the host of a URL. Source of the zone's form: RFC 6874."""
    return f"[{str(address).replace('%', '%25')}]" if address.version == 6 else str(address)


async def open_listeners(addresses: Sequence[Address], port: int) -> list[trio.SocketListener]:
    """Listen at these addresses, at all if there are none; on one port for all of them.

    Raises: ListenError. Cancelling: none is left open.
    """
    hosts = [str(address) for address in addresses] or _wildcards()
    for _ in range(limits.LISTEN_ATTEMPTS_MAX - 1):
        try:
            return await _open_listeners(hosts, port)
        except ListenError as exc:
            # The port that the system chose for one address may be taken at another.
            if port or not exc.facts["port"]:
                raise
    return await _open_listeners(hosts, port)


async def _open_listeners(hosts: Sequence[str], port: int) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    with ExitStack() as unless_all:
        for host in hosts:
            try:
                [listener] = await trio.open_tcp_listeners(port, host=host)
            except OSError as exc:
                if listeners and host == EVERY_IPV6 and exc.errno in _NO_IPV6:
                    break
                reason = exc.strerror or str(exc)
                raise ListenError(f"cannot listen: {reason}", host=host, port=port) from exc
            unless_all.callback(listener.socket.close)
            listeners.append(listener)
            # Asked for any port, the system chooses one for the first address: the others follow.
            port = port_of(listener)
        unless_all.pop_all()
    return listeners


def port_of(listener: trio.SocketListener) -> int:
    """The port it listens on."""
    port: int = listener.socket.getsockname()[1]
    return port


def address_at(listener: trio.SocketListener) -> Address:
    """The address it listens at."""
    host, _, *rest = listener.socket.getsockname()
    return _address((host, *rest)) if rest else _address(host)


def _wildcards() -> list[str]:
    # Where no interface is named, all of them are meant.
    every = "0.0.0.0"  # noqa: S104
    return [every, EVERY_IPV6] if socket.has_dualstack_ipv6() else [every]


def _addresses(adapter: ifaddr.Adapter) -> list[Address]:
    return [_address(ip.ip) for ip in adapter.ips]


def _address(told: str | tuple[str, int, int]) -> Address:
    """An IPv4 address is told as text, an IPv6 one with flow label and scope."""
    if isinstance(told, str):
        return ipaddress.ip_address(told)
    text, _, scope = told
    # The system may tell the scope of an address by its name, too.
    address = ipaddress.ip_address(text.partition("%")[0])
    # Every interface has link-local addresses of the same network: they are of use only with it.
    if not (scope and address.is_link_local):
        return address
    return ipaddress.ip_address(f"{address}%{scope}")
