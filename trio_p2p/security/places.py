"""Places at a listener: how many connections there may be, and who gives way when there are more.

A connection waits until its peer is let in; those that wait have places of their own. When these
are all taken the newcomer gets one all the same, and of the address that has most the connection
gives way that has waited longest. So connections that say nothing never use up the places of peers
that do, not even of those behind the same address.

Who is let in takes a seat. It settles there by asking for something; when all seats are taken, of
those that have not yet done so gives way who came in first. Who has settled keeps its seat as a
rule: but a newcomer whose address has fewer than another by two gets a seat of that other one. So
an address may have them all as long as nobody else wants one, and no two of them end up further
apart than they must.
"""

from __future__ import annotations

import ipaddress
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

    def settle(self) -> None:
        """The peer, which has a seat, does what it came for."""
        self._places.settle(self)

    def give_way(self) -> None:
        """Make room for another connection: what runs in the scope is cancelled."""
        self.gave_way = True
        self.scope.cancel()


class _Row:
    """Places of one kind, by address, in the order of coming."""

    def __init__(self) -> None:
        # Dicts are sets that keep their order.
        self._places: dict[str, dict[Place, None]] = {}
        self.size = 0

    def __contains__(self, place: Place) -> bool:
        return place in self._places.get(place.address, ())

    def add(self, place: Place) -> None:
        self._places.setdefault(place.address, {})[place] = None
        self.size += 1

    def discard(self, place: Place) -> None:
        places = self._places.get(place.address, {})
        if place in places:
            del places[place]
            self.size -= 1
            if not places:
                del self._places[place.address]

    def count(self, address: str) -> int:
        return len(self._places.get(address, ()))

    def most_crowded(self) -> dict[Place, None]:
        """The places of the address that has most."""
        return max(self._places.values(), key=len)


class Places:
    """All places of one listener."""

    def __init__(self, *, seats_max: int, waiting_max: int) -> None:
        self._seats_max = seats_max
        self._waiting_max = waiting_max
        self._waiting = _Row()
        self._unsettled = _Row()
        self._settled = _Row()
        self.gave_way = 0
        """How many connections gave way to others."""

    @property
    def waiting(self) -> int:
        """How many connections wait to be let in."""
        return self._waiting.size

    @property
    def seated(self) -> int:
        """How many are in."""
        return self._unsettled.size + self._settled.size

    @contextmanager
    def open_place(self, address: str) -> Iterator[Place]:
        """A place for a new connection while the block runs, which is cancelled if it gives way."""
        if self._waiting.size >= self._waiting_max:
            self.make_room()
        place = Place(self, address)
        self._waiting.add(place)
        try:
            with place.scope:
                yield place
        finally:
            self._discard(place)

    def make_room(self) -> bool:
        """Let one that waits give way; tells whether there was one."""
        return self._remove_oldest(self._waiting)

    def seat(self, place: Place) -> bool:
        """See `Place.take_seat`."""
        if place not in self._waiting:
            return False
        if self.seated >= self._seats_max and not self._free_seat(place.address):
            return False
        self._waiting.discard(place)
        self._unsettled.add(place)
        return True

    def settle(self, place: Place) -> None:
        """See `Place.settle`."""
        if place in self._unsettled:
            self._unsettled.discard(place)
            self._settled.add(place)

    def _free_seat(self, address: str) -> bool:
        """Let one that is seated give way to a newcomer, if there is one that has to."""
        if self._remove_oldest(self._unsettled):
            return True
        crowd = self._settled.most_crowded()
        if self._settled.count(address) + 1 >= len(crowd):
            return False
        # The latest to come had least time to do anything.
        self._remove(next(reversed(crowd)))
        return True

    def _remove_oldest(self, row: _Row) -> bool:
        """Of the address that has most, the place that is there longest; False if there is none."""
        if not row.size:
            return False
        self._remove(next(iter(row.most_crowded())))
        return True

    def _remove(self, place: Place) -> None:
        self.gave_way += 1
        self._discard(place)
        place.give_way()

    def _discard(self, place: Place) -> None:
        for row in (self._waiting, self._unsettled, self._settled):
            row.discard(place)


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
