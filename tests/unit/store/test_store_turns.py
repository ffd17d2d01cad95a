"""One task at a time has the turn for a thing."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p.store.turns import Turns


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
