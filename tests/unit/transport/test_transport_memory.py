"""The in-memory transport: order, bounds, goodbyes, faults."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_p2p.errors import ConnectionLostError
from trio_p2p.transport.memory import Faults, MemoryTransport, memory_transport_pair


async def send_all(transport: MemoryTransport, messages: list[bytes]) -> None:
    for message in messages:
        await transport.send(message)


async def received(transport: MemoryTransport) -> tuple[list[bytes], int]:
    """Everything until the end, and the code it ended with."""
    messages = []
    while True:
        try:
            messages.append(await transport.receive())
        except ConnectionLostError as exc:
            return messages, exc.code


@given(
    messages=st.lists(st.binary(max_size=8)),
    delays=st.lists(st.floats(0, 10), min_size=1),
)
def test_messages_arrive_whole_and_in_order_whatever_the_delays(messages, delays):
    async def main():
        waits = iter(delays * (len(messages) + 1))
        here, there = memory_transport_pair(faults=Faults(delay_s=lambda: next(waits)))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def sender():
                await send_all(here, messages)
                await here.aclose()

            assert await received(there) == (messages, 1000)

    trio.run(main, clock=MockClock(autojump_threshold=0))


@given(cut_after=st.integers(0, 12), turns=st.lists(st.booleans(), max_size=20), torn=st.booleans())
def test_a_cut_lets_exactly_the_messages_before_it_through(cut_after, turns, torn):
    async def main():
        faults = Faults(cut_after_messages=cut_after, torn=torn)
        ends = memory_transport_pair(faults=faults)
        for number, turn in enumerate(turns[:cut_after]):
            await ends[turn].send(bytes([number]))
            assert await ends[not turn].receive() == bytes([number])
        if len(turns) <= cut_after:
            return
        if torn:
            await ends[0].send(b"lost")
        else:
            with pytest.raises(ConnectionLostError):
                await ends[0].send(b"lost")
        for end in ends:
            assert await received(end) == ([], 1006)

    trio.run(main)


async def test_a_sender_waits_when_nobody_receives():
    here, there = memory_transport_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, here, [b"x"] * 100)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await here.send(b"y")
        for _ in range(100):
            await there.receive()


async def test_a_goodbye_is_seen_behind_what_was_sent_before_it():
    here, there = memory_transport_pair()
    await here.send(b"last")
    await here.aclose(4001, "restart")
    await here.aclose()
    assert await there.receive() == b"last"
    with pytest.raises(ConnectionLostError) as info:
        await there.receive()
    assert (info.value.code, info.value.reason) == (4001, "restart")
    with pytest.raises(ConnectionLostError):
        await there.send(b"too late")
    with pytest.raises(ConnectionLostError):
        await here.receive()


async def test_an_abort_is_seen_as_1006():
    here, there = memory_transport_pair()
    here.abort()
    here.abort()
    assert await received(there) == ([], 1006)
    assert await received(here) == ([], 1006)


async def test_a_cut_wakes_a_waiting_sender():
    here, there = memory_transport_pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def sender():
            with pytest.raises(ConnectionLostError):
                await send_all(here, [b"x"] * 100)

        await wait_all_tasks_blocked()
        there.cut()


async def test_a_cancelled_send_breaks_the_link(autojump_clock):
    here, there = memory_transport_pair(faults=Faults(delay_s=lambda: 5))
    with trio.move_on_after(1):
        await here.send(b"x")
    with pytest.raises(ConnectionLostError):
        await here.send(b"y")
    assert await received(there) == ([], 1006)
