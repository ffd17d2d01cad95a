"""Accepting connections: many at once, and when the system has no files for them."""

import errno
import socket

import pytest
import trio

from trio_p2p import limits
from trio_p2p.transport.accepting import _accept_more, accept_all


class Door:
    """A listener on loopback, the connections it took, and whether it can make room."""

    def __init__(self, listener):
        self.listener = listener
        self.address = listener.socket.getsockname()
        self.streams = []
        self.wanted = trio.Event(), 0
        self.room = 0
        self.asked = 0

    async def handle(self, stream):
        await trio.lowlevel.checkpoint()
        self.streams.append(stream)
        event, count = self.wanted
        if len(self.streams) >= count:
            event.set()

    def make_room(self):
        self.asked += 1
        return self.room > 0

    async def wait_for(self, count):
        self.wanted = trio.Event(), count
        if len(self.streams) < count:
            await self.wanted[0].wait()


async def never(stream):
    pytest.fail("nobody connected")


@pytest.fixture
async def door(nursery):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    door = Door(listener)
    nursery.start_soon(accept_all, listener, door.handle, nursery, door.make_room)
    yield door
    nursery.cancel_scope.cancel()
    for stream in door.streams:
        stream.socket.close()


async def test_all_that_connect_are_taken_in_order(door):
    count = 3 * limits.ACCEPT_AT_ONCE_MAX
    with trio.fail_after(20):
        clients = [await trio.open_tcp_stream(*door.address[:2]) for _ in range(count)]
        await door.wait_for(count)
    ours = [client.socket.getsockname() for client in clients]
    assert [stream.socket.getpeername() for stream in door.streams] == ours
    for client in clients:
        client.socket.close()


async def test_others_have_their_turn_between_so_many_at_once(monkeypatch):
    monkeypatch.setattr(limits, "ACCEPT_AT_ONCE_MAX", 2)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        address = listener.socket.getsockname()
        clients = [await trio.open_tcp_stream(*address) for _ in range(5)]
        with socket.socket(fileno=socket.dup(listener.socket.fileno())) as nowait:
            taken = [_accept_more(nowait) for _ in range(4)]
        assert list(map(len, taken)) == [2, 2, 1, 0]
    for stream in [*clients, *taken[0], *taken[1], *taken[2]]:
        stream.socket.close()


async def test_streams_work_both_ways_whichever_way_they_were_taken(door):
    with trio.fail_after(20):
        clients = [await trio.open_tcp_stream(*door.address[:2]) for _ in range(5)]
        await door.wait_for(5)
        for client, stream in zip(clients, door.streams, strict=True):
            await client.send_all(b"ping")
            assert await stream.receive_some() == b"ping"
            await stream.send_all(b"pong")
            assert await client.receive_some() == b"pong"
            await client.aclose()


async def test_other_tasks_go_on_whatever_timeout_the_program_sets_for_its_sockets(door):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with trio.fail_after(20):
            client = await trio.open_tcp_stream(*door.address[:2])
            await door.wait_for(1)
    finally:
        socket.setdefaulttimeout(before)
    client.socket.close()


@pytest.mark.parametrize("room", [0, 1])
async def test_without_files_it_makes_room_and_goes_on(door, monkeypatch, caplog, room):
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3
    plain = door.listener.accept

    async def accept():
        if failures:
            await trio.lowlevel.checkpoint()
            raise failures.pop()
        return await plain()

    monkeypatch.setattr(door.listener, "accept", accept)
    door.room = room
    with trio.fail_after(20):
        # It waits in the plain one at first.
        clients = [await trio.open_tcp_stream(*door.address[:2])]
        await door.wait_for(1)
        clients.append(await trio.open_tcp_stream(*door.address[:2]))
        await door.wait_for(2)
    assert door.asked == 3
    assert ("Too many open files" in caplog.text) == (not room)
    for client in clients:
        client.socket.close()


async def test_other_failures_are_raised_and_the_listener_is_closed():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def accept():
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EINVAL, "Invalid argument")

    listener.accept = accept
    async with trio.open_nursery() as nursery:
        with pytest.raises(OSError, match="Invalid argument"):
            await accept_all(listener, never, nursery, lambda: False)
    assert listener.socket.fileno() == -1


async def test_a_cancelled_one_leaves_no_socket_open():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_all, listener, never, nursery, lambda: False)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with socket.socket() as again:
        again.bind(address)
