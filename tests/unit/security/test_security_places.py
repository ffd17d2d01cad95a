"""Places at a listener, and who gives way."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.security.places import Places, address_of


def settle(place):
    """Take a seat, and ask for something."""
    taken = place.take_seat()
    place.settle()
    return taken


def make(*, seats_max=3, waiting_max=3):
    return Places(seats_max=seats_max, waiting_max=waiting_max)


async def test_the_oldest_that_waits_gives_way_to_a_newcomer():
    places = make()
    with ExitStack() as stack:
        opened = [stack.enter_context(places.open_place("a")) for _ in range(5)]
        assert [place.gave_way for place in opened] == [True, True, False, False, False]
        assert places.waiting == 3
        assert places.gave_way == 2
        # One that gave way gets no seat, even if its task has not noticed yet.
        assert not opened[0].take_seat()
    assert places.waiting == 0


async def test_one_of_the_most_crowded_address_gives_way():
    places = make()
    with ExitStack() as stack:
        honest = stack.enter_context(places.open_place("honest"))
        crowd = [stack.enter_context(places.open_place("crowd")) for _ in range(10)]
        assert not honest.gave_way
        assert sum(place.gave_way for place in crowd) == 8
        assert honest.take_seat()


async def test_who_has_a_seat_makes_room_for_others_that_wait():
    places = make(waiting_max=1)
    with ExitStack() as stack:
        for _ in range(3):
            assert stack.enter_context(places.open_place("a")).take_seat()
        assert (places.waiting, places.seated) == (0, 3)


async def test_a_full_house_takes_nobody_more_of_the_same_address():
    places = make()
    with ExitStack() as stack:
        for _ in range(3):
            assert settle(stack.enter_context(places.open_place("a")))
        refused = stack.enter_context(places.open_place("a"))
        assert not settle(refused)
        assert not refused.gave_way
    assert places.seated == 0


async def test_an_address_that_has_most_seats_gives_one_to_another():
    places = make(seats_max=4, waiting_max=4)
    with ExitStack() as stack:
        crowd = [stack.enter_context(places.open_place("crowd")) for _ in range(4)]
        assert all(settle(place) for place in crowd)
        others = [stack.enter_context(places.open_place("other")) for _ in range(3)]
        assert [settle(place) for place in others] == [True, True, False]
        # The latest to come had least time to do anything.
        assert [place.gave_way for place in crowd] == [False, False, True, True]


async def test_who_has_asked_for_nothing_gives_way_when_seats_are_short():
    """Else who is silent would keep others of its own address out."""
    places = make(seats_max=4, waiting_max=4)
    with ExitStack() as stack:
        seated = [stack.enter_context(places.open_place("a")) for _ in range(4)]
        assert all(place.take_seat() for place in seated)
        for place in (seated[0], seated[3]):
            place.settle()
        others = [stack.enter_context(places.open_place("a")) for _ in range(3)]
        assert [settle(place) for place in others] == [True, True, False]
        assert [place.gave_way for place in seated] == [False, True, True, False]
        # One that gave way settles nowhere, even if its task has not noticed yet.
        seated[1].settle()
        assert places.seated == 4


async def test_who_settles_without_a_seat_stays_where_it_is():
    places = make()
    with places.open_place("a") as place:
        place.settle()
        assert (places.waiting, places.seated) == (1, 0)


async def test_what_gives_way_is_cancelled_and_nothing_else():
    places = make(waiting_max=1)
    with places.open_place("a") as first, places.open_place("a") as second:
        assert first.scope.cancel_called
        assert not second.scope.cancel_called


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=40))
async def test_there_are_never_more_than_there_may_be(arrivals):
    places = make(seats_max=4, waiting_max=3)
    with ExitStack() as stack:
        for address, steps in arrivals:
            place = stack.enter_context(places.open_place(address))
            if steps > 0:
                place.take_seat()
            if steps > 1:
                place.settle()
            assert not place.gave_way
            assert places.waiting <= 3
            assert places.seated <= 4
    assert (places.waiting, places.seated) == (0, 0)


@pytest.mark.parametrize(
    ("peer_address", "address"),
    [
        ("192.0.2.7:5000", "192.0.2.7"),
        ("[2001:db8:1:2:3:4:5:6]:5000", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:5000", "fe80::/64"),
        ("[::ffff:192.0.2.7]:5000", "192.0.2.7"),
        ("", ""),
        ("serial", "serial"),
    ],
)
def test_an_ipv6_network_counts_as_one_address(peer_address, address):
    assert address_of(peer_address) == address
