"""Places at a listener: how many connections there may be, and who gives way when there are more.

A connection waits until its peer is let in; those that wait have places of their own. When these
are all taken the newcomer gets one all the same, and of the address that has most the connection
gives way that has waited longest. So connections that say nothing never use up the places of peers
that do, not even of those behind the same address.

Who is let in takes a seat, and keeps it as a rule. When all are taken, a newcomer whose address has
fewer than another by two gets a seat of that other one: an address may have them all as long as
nobody else wants one, and no two of them end up further apart than they must.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

_IPV6_HOST_BITS = 64


class Place:
    """The place of one connection."""

    def __init__(self, places: Places, address: str) -> None:
        self._places = places
        self.address = address
        self.scope = trio.CancelScope()
        self.gave_way = False

    def take_seat(self) -> bool:
        """The peer is let in, if there is a seat for it; tells whether there was."""
        return self._places.seat(self)

    def give_way(self) -> None:
        """Make room for another connection: what runs in the scope is cancelled."""
        self.gave_way = True
        self.scope.cancel()


class Places:
    """All places of one listener."""

    def __init__(self, *, seats_max: int, waiting_max: int) -> None:
        self._seats_max = seats_max
        self._waiting_max = waiting_max
        # In the order of coming: a dict is a set that keeps it.
        self._waiting: dict[Place, None] = {}
        self._seated: dict[Place, None] = {}
        self.gave_way = 0
        """How many connections gave way to others."""

    @property
    def waiting(self) -> int:
        """How many connections wait to be let in."""
        return len(self._waiting)

    @property
    def seated(self) -> int:
        """How many are in."""
        return len(self._seated)

    @contextmanager
    def open_place(self, address: str) -> Iterator[Place]:
        """A place for a new connection while the block runs, which is cancelled if it gives way."""
        if len(self._waiting) >= self._waiting_max:
            crowded = _most_frequent(self._waiting)
            self._remove(next(each for each in self._waiting if each.address == crowded))
        place = Place(self, address)
        self._waiting[place] = None
        try:
            with place.scope:
                yield place
        finally:
            self._waiting.pop(place, None)
            self._seated.pop(place, None)

    def seat(self, place: Place) -> bool:
        """See `Place.take_seat`."""
        if place not in self._waiting:
            return False
        if len(self._seated) >= self._seats_max:
            counts = Counter(each.address for each in self._seated)
            crowded = _most_frequent(self._seated)
            if counts[place.address] + 1 >= counts[crowded]:
                return False
            self._remove(next(each for each in reversed(self._seated) if each.address == crowded))
        del self._waiting[place]
        self._seated[place] = None
        return True

    def _remove(self, place: Place) -> None:
        self.gave_way += 1
        self._waiting.pop(place, None)
        self._seated.pop(place, None)
        place.give_way()


def _most_frequent(places: dict[Place, None]) -> str:
    return Counter(each.address for each in places).most_common(1)[0][0]


def address_of(peer_address: str) -> str:
    """What counts as one address of `host:port`: of IPv6, the network a host chooses its own in."""
    host = peer_address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer_address
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is not None:
            return str(mapped)
        return str(ipaddress.ip_network((address, _IPV6_HOST_BITS), strict=False))
    return str(address)
