"""Peers that stop in the middle of a message, and peers that do not take what we send."""

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import memory_stream_pair
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, Pong, Request

from trio_p2p import limits
from trio_p2p.errors import ConnectionLostError
from trio_p2p.transport.websocket import Accept, open_server_websocket

REQUEST = Request(host="x", target="/db", subprotocols=["a"])


async def accept(request):
    await trio.lowlevel.checkpoint()
    return Accept("a")


@asynccontextmanager
async def served():
    """A server's transport, and the stream and protocol of a client that we play by hand."""
    ours, theirs = memory_stream_pair()
    protocol = WSConnection(ConnectionType.CLIENT)
    await ours.send_all(protocol.send(REQUEST))
    async with open_server_websocket(theirs, accept) as transport:
        protocol.receive_data(await ours.receive_some())
        assert list(protocol.events())
        yield transport, ours, protocol


async def send_slowly(stream, data, pause_s):
    with trio.move_on_after(10_000):
        for byte in data:
            await trio.sleep(pause_s)
            await stream.send_all(bytes([byte]))


async def test_a_message_that_comes_byte_by_byte_is_not_waited_for_for_ever(autojump_clock):
    async with served() as (transport, stream, protocol), trio.open_nursery() as nursery:
        frame = protocol.send(BytesMessage(data=bytes(1_000)))
        nursery.start_soon(send_slowly, stream, frame, 1)
        started = trio.current_time()
        with pytest.raises(ConnectionLostError, match="does not finish") as info:
            await transport.receive()
        assert info.value.code == 1006
        took_s = trio.current_time() - started
        assert limits.MESSAGE_TIMEOUT_S < took_s < 1.5 * limits.MESSAGE_TIMEOUT_S
        nursery.cancel_scope.cancel()


async def test_a_slow_peer_that_finishes_its_messages_in_time_is_kept(autojump_clock):
    async with served() as (transport, stream, protocol), trio.open_nursery() as nursery:
        frames = [protocol.send(BytesMessage(data=bytes(80))) for _ in range(20)]
        nursery.start_soon(send_slowly, stream, b"".join(frames), 1)
        for _ in frames:
            assert await transport.receive() == bytes(80)


async def test_time_that_we_take_ourselves_does_not_count(autojump_clock):
    async with served() as (transport, stream, protocol):
        count = limits.TRANSPORT_QUEUE_MESSAGES_MAX + 3
        frames = b"".join(protocol.send(BytesMessage(data=b"x")) for _ in range(count))
        last = protocol.send(BytesMessage(data=b"last"))
        await stream.send_all(frames + last[:-1])
        await trio.sleep(10 * limits.MESSAGE_TIMEOUT_S)
        for _ in range(count):
            assert await transport.receive() == b"x"
        await stream.send_all(last[-1:])
        assert await transport.receive() == b"last"


async def test_a_peer_that_is_silent_between_messages_is_kept_as_long_as_it_answers(
    autojump_clock,
):
    async with served() as (transport, stream, protocol):
        await trio.sleep(limits.HEARTBEAT_S - 1)
        await stream.send_all(protocol.send(BytesMessage(data=b"still there")))
        assert await transport.receive() == b"still there"


@pytest.mark.parametrize("data", [b"", b"x"])
async def test_a_message_in_endless_pieces_ends_the_connection(data):
    async with served() as (transport, stream, protocol):
        piece = protocol.send(BytesMessage(data=data, message_finished=False))
        first, rest = piece, b"\x00" + piece[1:]  # A continuation frame.
        await stream.send_all(first + rest * limits.MESSAGE_PIECES_MAX)
        with trio.fail_after(20), pytest.raises(ConnectionLostError) as info:
            await transport.receive()
        assert info.value.code == 1006


@pytest.mark.parametrize("kind", ["pongs", "pieces"])
async def test_others_have_their_turns_among_frames_that_nobody_waits_for(kind):
    """One read may bring tens of thousands of them."""
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    count = limits.MESSAGE_PIECES_MAX // 2
    async with served() as (transport, stream, protocol), trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        piece = protocol.send(BytesMessage(data=b"", message_finished=False))
        message = protocol.send(BytesMessage(data=b"x"))
        if kind == "pongs":
            data = protocol.send(Pong()) * count + b"\x82" + message[1:]
        else:
            data = piece + (b"\x00" + piece[1:]) * (count - 1) + message
        await stream.send_all(data)
        before = turns
        assert await transport.receive() == b"x"
        assert turns - before >= count
        nursery.cancel_scope.cancel()


async def test_a_message_in_many_pieces_is_whole():
    async with served() as (transport, stream, protocol):
        count = limits.MESSAGE_PIECES_MAX
        first = protocol.send(BytesMessage(data=b"x", message_finished=False))
        last = protocol.send(BytesMessage(data=b"x"))
        await stream.send_all(first + (b"\x00" + first[1:]) * (count - 2) + b"\x80" + last[1:])
        assert await transport.receive() == b"x" * count


async def test_a_peer_that_does_not_read_is_not_waited_for_for_ever(autojump_clock):
    async with served() as (transport, _, _):
        transport._link.wire._stream.send_stream.send_all_hook = trio.sleep_forever
        started = trio.current_time()
        for _ in range(2):
            with pytest.raises(ConnectionLostError):
                await transport.send(b"x")
        assert trio.current_time() - started == limits.SEND_TIMEOUT_S
