"""One task at a time has the turn for a thing."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p.store.turns import LosableTurn, Turns


@pytest.fixture
def holds(nursery):
    """Starts a task that takes the turn; its end is asked for by an event."""
    turns, order = Turns(), []

    def start(name, thing):
        ended = trio.Event()

        async def hold():
            async with turns.take(thing):
                order.append(name)
                await ended.wait()

        nursery.start_soon(hold)
        return ended

    start.order = order
    start.turns = turns
    return start


async def test_a_turn_is_taken_after_whoever_has_it(holds):
    first = holds("first", "a")
    await wait_all_tasks_blocked()
    holds("second", "a").set()
    await wait_all_tasks_blocked()
    assert holds.order == ["first"]
    first.set()
    await wait_all_tasks_blocked()
    assert holds.order == ["first", "second"]


async def test_turns_for_different_things_are_independent(holds):
    holds("first", "a")
    holds("second", "b")
    await wait_all_tasks_blocked()
    assert sorted(holds.order) == ["first", "second"]


async def test_only_one_of_many_that_wait_goes_on(holds):
    events = [holds(number, "a") for number in range(5)]
    for count in range(1, 6):
        await wait_all_tasks_blocked()
        assert len(holds.order) == count
        events[holds.order[-1]].set()


async def test_who_is_cancelled_or_fails_leaves_the_turn_to_others(holds):
    with trio.CancelScope() as scope:
        async with holds.turns.take("a"):
            scope.cancel()
            await trio.sleep_forever()
    with pytest.raises(ZeroDivisionError):
        async with holds.turns.take("a"):
            raise ZeroDivisionError
    with trio.fail_after(5):
        async with holds.turns.take("a"):
            pass


class Race:
    """Tasks that take a turn one after the other, and what became of each: when, and how."""

    def __init__(self, nursery):
        self.turn = LosableTurn(rate_min=10)
        self.told = []
        self._nursery = nursery

    async def enter(self, name, *, moves_s=(), amount=100, done_after_s=math.inf):
        """Start one, which gets further by so much at these times after it got the turn."""
        self._nursery.start_soon(self._hold, name, moves_s, amount, done_after_s)
        await wait_all_tasks_blocked()

    async def _hold(self, name, moves_s, amount, done_after_s):
        async with self.turn.take(5):
            self.told.append((name, "begins", trio.current_time()))
            begun_at = trio.current_time()
            for move_s in moves_s:
                await trio.sleep_until(begun_at + move_s)
                self.turn.move(amount)
            await trio.sleep_until(begun_at + done_after_s)
            self.told.append((name, "is done", trio.current_time()))


@pytest.fixture
def race(nursery):
    return Race(nursery)


async def test_who_gets_no_further_loses_the_turn_to_one_that_waits(race, autojump_clock):
    await race.enter("stuck", moves_s=[0, 3, 6])
    await race.enter("next", done_after_s=1)
    await trio.sleep(100)
    assert race.told == [("stuck", "begins", 0), ("next", "begins", 11), ("next", "is done", 12)]


async def test_one_that_waits_longer_than_its_patience_takes_the_turn_at_once(race, autojump_clock):
    await race.enter("stuck", moves_s=[0])
    await trio.sleep(50)
    await race.enter("next", done_after_s=1)
    await trio.sleep(100)
    assert race.told[1:] == [("next", "begins", 50), ("next", "is done", 51)]


async def test_who_begins_late_and_gets_no_further_loses_the_turn_too(race, autojump_clock):
    await race.enter("stuck", moves_s=[7])
    await race.enter("next")
    await trio.sleep(100)
    assert race.told[1:] == [("next", "begins", 12)]


@pytest.mark.parametrize("moves_s", [(), range(0, 100, 4)], ids=["not begun", "slow"])
async def test_who_gets_further_or_has_not_begun_to_keeps_the_turn(race, moves_s, autojump_clock):
    await race.enter("first", moves_s=moves_s, done_after_s=100)
    await race.enter("next")
    await trio.sleep(200)
    assert race.told[1:] == [("first", "is done", 100), ("next", "begins", 100)]


async def test_who_gets_further_slower_than_the_least_rate_loses_the_turn(race, autojump_clock):
    """It falls behind by nine tenths of the time, and by its patience after six seconds."""
    await race.enter("slow", moves_s=range(100), amount=1)
    await race.enter("next", done_after_s=1)
    await trio.sleep(100)
    (_, _, begun_at), _ = race.told[1:]
    assert 5 < begun_at <= 6


async def test_who_was_fast_at_first_has_no_more_time_later(race, autojump_clock):
    await race.enter("first", moves_s=[0, 3], amount=1_000_000)
    await race.enter("next")
    await trio.sleep(100)
    assert race.told[1:] == [("next", "begins", 8)]


@pytest.mark.parametrize("every_s", [1, 4])
async def test_who_gets_further_at_the_least_rate_keeps_the_turn(race, every_s, autojump_clock):
    await race.enter("first", moves_s=range(0, 100, every_s), amount=10 * every_s, done_after_s=100)
    await race.enter("next")
    await trio.sleep(200)
    assert race.told[1:] == [("first", "is done", 100), ("next", "begins", 100)]


@pytest.mark.parametrize("moves_s", [[0], range(1_000)], ids=["stuck", "slow"])
async def test_nobody_loses_a_turn_that_nobody_waits_for(race, moves_s, autojump_clock):
    await race.enter("first", moves_s=moves_s, amount=1, done_after_s=1_000)
    await trio.sleep(1_001)
    assert race.told[-1] == ("first", "is done", 1_000)


async def test_who_lost_the_turn_comes_after_who_waited(race, autojump_clock):
    order = []

    async def get_stuck_twice(name):
        for _ in range(2):
            async with race.turn.take(5):
                order.append(name)
                race.turn.move(1)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(get_stuck_twice, name)
            await wait_all_tasks_blocked()
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert order == ["a", "b", "a", "b"]


async def test_one_of_several_that_wait_has_its_turn_when_those_before_it_got_stuck(
    race, autojump_clock
):
    async def get_stuck_for_ever(name):
        patience_s = 5
        while True:
            async with race.turn.take(patience_s):
                race.turn.move(0)
                await trio.sleep_forever()
            patience_s *= 2

    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(get_stuck_for_ever, name)
            await wait_all_tasks_blocked()
        await race.enter("healthy", moves_s=[0], done_after_s=1)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    # It is third in line; each of the others had five seconds.
    assert race.told == [("healthy", "begins", 10), ("healthy", "is done", 11)]


async def test_who_gives_up_in_line_leaves_its_place_to_others(race, autojump_clock):
    await race.enter("first", done_after_s=10)
    with trio.move_on_after(5):
        async with race.turn.take(100):
            pytest.fail("it was taken")
    await race.enter("next", done_after_s=1)
    await trio.sleep(100)
    assert race.told[2:] == [("next", "begins", 10), ("next", "is done", 11)]


async def test_who_is_cancelled_as_it_gets_the_turn_passes_it_on(race, nursery, autojump_clock):
    scope = trio.CancelScope()

    async def take_first():
        async with race.turn.take(100):
            await trio.sleep(5)
            scope.cancel()

    async def take_and_be_cancelled():
        with scope:
            async with race.turn.take(100):
                pytest.fail("it was taken")

    for take in (take_first, take_and_be_cancelled):
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
    await race.enter("next", done_after_s=1)
    await trio.sleep(100)
    assert race.told == [("next", "begins", 5), ("next", "is done", 6)]


async def test_who_fails_with_a_turn_that_may_be_lost_leaves_it_to_others(race, autojump_clock):
    turn = race.turn
    with trio.move_on_after(1):
        async with turn.take(5):
            turn.move(1)
            await trio.sleep_forever()
    with pytest.raises(ZeroDivisionError):
        async with turn.take(5):
            raise ZeroDivisionError
    await trio.sleep(100)
    with trio.fail_after(1):
        async with turn.take(5):
            pass
