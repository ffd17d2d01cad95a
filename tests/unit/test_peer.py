"""A peer: requests and replies over a transport, and what becomes of them when it ends."""

import threading
from contextlib import aclosing, asynccontextmanager
from unittest.mock import patch

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.blip import Connection, Message
from trio_p2p.blip.load import Budget
from trio_p2p.errors import ConnectionLostError, PeerError, RemoteProtocolError
from trio_p2p.peer import Peer
from trio_p2p.transport.memory import Faults, memory_transport_pair

LARGE = bytes(range(256)) * 4_000


class Side:
    """A peer that notes what it is asked and how its connection ended."""

    def __init__(self, transport, **options):
        self.transport = transport
        self.peer = Peer(transport, **options)
        self.asked = []
        self.answer = lambda number, message: None
        self.ended = None
        self.finished = trio.Event()

    async def run(self):
        try:
            await self.peer.run(self._on_request)
        except (ConnectionLostError, RemoteProtocolError) as exc:
            self.ended = exc
            self.finished.set()

    def _on_request(self, number, message):
        self.asked.append(message)
        self.answer(number, message)

    def echo(self):
        """Answer every request with its own body."""
        self.answer = lambda number, message: self.peer.reply(number, Message({}, message.body))


@asynccontextmanager
async def open_sides(faults=None, **options):
    sides = [Side(transport, **options) for transport in memory_transport_pair(faults=faults)]
    async with trio.open_nursery() as nursery:
        for side in sides:
            nursery.start_soon(side.run)
        yield sides
        nursery.cancel_scope.cancel()


@pytest.fixture
async def sides():
    async with open_sides() as sides:
        yield sides


@pytest.fixture
def ours(sides):
    return sides[0]


@pytest.fixture
def theirs(sides):
    return sides[1]


def asking(body=b"", **flags):
    return Message({"Profile": "echo"}, body, **flags)


async def outcome_of(request, *args):
    """What a request returns or raises."""
    try:
        return await request(*args)
    except (PeerError, ConnectionLostError) as exc:
        return exc


# --- Requests and replies -------------------------------------------------------------------------


@pytest.mark.behaviour("B12a")
async def test_a_request_arrives_as_it_was_sent_and_so_does_its_reply(ours, theirs):
    sent = Message({"Profile": "greet", "name": "Zoë"}, b"body", urgent=True, compressed=True)
    reply = Message({"kind": "wave"}, b"back", urgent=True, compressed=True)
    theirs.answer = lambda number, message: theirs.peer.reply(number, reply)
    assert await ours.peer.request(sent) == reply
    assert theirs.asked == [sent]


@pytest.mark.behaviour("B12a")
async def test_replies_find_their_requests_in_whatever_order_they_come(ours, theirs):
    numbers = []
    theirs.answer = lambda number, message: numbers.append((number, message.body))
    pending = [ours.peer.begin(asking(body)) for body in (b"a", b"b", b"c")]
    await wait_all_tasks_blocked()
    for number, body in reversed(numbers):
        theirs.peer.reply(number, Message({}, body.upper()))
        await wait_all_tasks_blocked()
    assert [(await one.wait()).body for one in pending] == [b"A", b"B", b"C"]


async def test_requests_arrive_in_the_order_in_which_they_were_queued(ours, theirs):
    for n in range(300):
        ours.peer.send(asking(b"%d" % n, urgent=n % 3 == 0))
    await wait_all_tasks_blocked()
    assert [message.body for message in theirs.asked] == [b"%d" % n for n in range(300)]


async def test_a_refusal_is_an_error(ours, theirs):
    theirs.answer = lambda number, _: theirs.peer.refuse(number, "HTTP", 503, "come back later")
    with pytest.raises(PeerError) as caught:
        await ours.peer.request(asking())
    error = caught.value
    assert (error.domain, error.code, error.text) == ("HTTP", 503, "come back later")
    assert error.retryable


async def test_a_request_that_wants_no_reply_arrives_all_the_same(ours, theirs):
    ours.peer.send(asking(no_reply=True))
    await wait_all_tasks_blocked()
    assert theirs.asked == [asking(no_reply=True)]


async def test_a_callback_gets_the_reply_or_what_came_in_its_place_once(ours, theirs):
    theirs.answer = lambda number, message: (
        theirs.peer.reply(number, message)
        if message.body == b"good"
        else theirs.peer.refuse(number, "HTTP", 404)
    )
    told = []
    for body in (b"good", b"bad"):
        ours.peer.send(asking(body), told.append)
    await wait_all_tasks_blocked()
    ours.transport.cut()
    await wait_all_tasks_blocked()
    reply, error = told
    assert reply.body == b"good"
    assert (error.domain, error.code) == ("HTTP", 404)


async def test_the_late_reply_to_a_cancelled_request_is_dropped(ours, theirs):
    numbers = []
    theirs.answer = lambda number, message: numbers.append(number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.peer.request, asking())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    theirs.peer.reply(numbers[0], Message({}, b"late"))
    theirs.echo()
    assert (await ours.peer.request(asking(b"next"))).body == b"next"


async def test_bytes_are_counted_on_both_sides(ours, theirs):
    theirs.echo()
    await ours.peer.request(asking(LARGE))
    await wait_all_tasks_blocked()
    assert ours.peer.bytes_sent == theirs.peer.bytes_received > len(LARGE)
    assert theirs.peer.bytes_sent == ours.peer.bytes_received > len(LARGE)


@pytest.mark.parametrize("compression", [True, False])
async def test_compression_can_be_turned_off(compression):
    async with open_sides(compression=compression) as (ours, theirs):
        theirs.echo()
        assert (await ours.peer.request(asking(LARGE, compressed=True))).body == LARGE
        assert (ours.peer.bytes_sent < len(LARGE)) == compression


async def test_two_busy_sides_never_wait_for_each_other():
    """Much more is under way in both directions than the channels between them hold."""
    answered = []

    async def ask(side, body):
        answered.append((await side.peer.request(asking(body))).body == body)

    async with open_sides() as sides:
        for side in sides:
            side.echo()
        async with trio.open_nursery() as nursery:
            for side in sides:
                for n in range(20):
                    nursery.start_soon(ask, side, LARGE[n : 100_000 * n])
    assert answered == [True] * 40


async def test_a_peer_that_answers_slowly_holds_up_nobody_else(ours, theirs):
    def answer(number, message):
        if message.body != b"slow":
            theirs.peer.reply(number, message)

    theirs.answer = answer
    slow = ours.peer.begin(asking(b"slow"))
    for _ in range(10):
        await ours.peer.request(asking(LARGE))
    ours.transport.cut()
    with pytest.raises(ConnectionLostError):
        await slow.wait()


# --- Flushing -------------------------------------------------------------------------------------


class Gate:
    """A transport whose sending side can be shut; of what it sends only the count matters."""

    def __init__(self):
        self.open = trio.Event()
        self.messages_sent = 0

    async def send_all(self, messages):
        await self.open.wait()
        self.messages_sent += len(messages)

    async def receive(self):
        await trio.sleep_forever()


async def flush(side, flushed):
    await side.peer.flush()
    flushed.append(side)


async def test_flushing_waits_until_the_transport_has_taken_everything(nursery):
    gate = Gate()
    side, flushed = Side(gate), []
    nursery.start_soon(side.run)
    for _ in range(3):
        side.peer.send(asking(b"body"))
    # Each of several tasks may wait for it.
    nursery.start_soon(flush, side, flushed)
    await wait_all_tasks_blocked()
    nursery.start_soon(flush, side, flushed)
    await wait_all_tasks_blocked()
    assert flushed == []
    gate.open.set()
    await wait_all_tasks_blocked()
    assert flushed == [side, side]
    assert gate.messages_sent == 3
    nursery.cancel_scope.cancel()


async def test_flushing_waits_for_what_the_window_of_a_message_holds_back(nursery):
    gate = Gate()
    gate.open.set()
    side, flushed = Side(gate), []
    nursery.start_soon(side.run)
    side.peer.send(asking(LARGE))
    nursery.start_soon(flush, side, flushed)
    await wait_all_tasks_blocked()
    assert side.peer.bytes_sent < 2 * limits.UNACKNOWLEDGED_BYTES_MAX < len(LARGE)
    assert flushed == []
    nursery.cancel_scope.cancel()


async def test_flushing_a_large_message_ends_once_all_of_it_is_out(ours, theirs):
    ours.peer.send(asking(LARGE))
    await ours.peer.flush()
    assert ours.peer.bytes_sent > len(LARGE)


async def test_there_is_nothing_to_flush_at_first(ours):
    await ours.peer.flush()


async def test_flushing_ends_with_the_connection(ours, theirs, nursery):
    flushed = []
    theirs.transport.cut()
    ours.peer.send(asking())
    nursery.start_soon(flush, ours, flushed)
    await wait_all_tasks_blocked()
    assert flushed == [ours]
    await ours.peer.flush()


# --- The end --------------------------------------------------------------------------------------


@pytest.mark.behaviour("B9")
async def test_the_end_of_the_connection_fails_each_request_with_an_error_of_its_own(ours, theirs):
    errors = []

    async def ask():
        errors.append(await outcome_of(ours.peer.request, asking()))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        await theirs.transport.aclose(4001, "restarting")
    assert [(type(error), error.code) for error in errors] == [(ConnectionLostError, 4001)] * 3
    assert len(set(map(id, errors))) == 3
    assert (ours.ended.code, ours.ended.reason) == (4001, "restarting")


@pytest.mark.parametrize("code", [1000, 1001, 4002])
async def test_a_goodbye_tells_its_code(ours, theirs, code):
    await theirs.transport.aclose(code)
    await wait_all_tasks_blocked()
    assert (type(ours.ended), ours.ended.code) == (ConnectionLostError, code)


async def test_whatever_is_asked_after_the_end_fails_at_once(ours, theirs):
    theirs.transport.cut()
    await wait_all_tasks_blocked()
    told = []
    ours.peer.send(asking(), told.append)
    assert [type(error) for error in told] == [ConnectionLostError]
    ours.peer.send(asking(no_reply=True))
    first = await outcome_of(ours.peer.request, asking())
    second = await outcome_of(ours.peer.request, asking())
    assert (first.code, second.code) == (1006, 1006)
    assert first is not second


async def test_an_answer_after_the_end_is_dropped(ours, theirs):
    numbers = []
    theirs.answer = lambda number, message: numbers.append(number)
    for _ in range(2):
        ours.peer.begin(asking())
    await wait_all_tasks_blocked()
    ours.transport.cut()
    await wait_all_tasks_blocked()
    theirs.peer.reply(numbers[0], Message({}))
    theirs.peer.refuse(numbers[1], "HTTP", 404)


async def test_ending_it_here_fails_the_requests(nursery):
    side = Side(memory_transport_pair()[0])
    pending = side.peer.begin(asking())
    with trio.CancelScope() as scope:
        nursery.start_soon(wait_and_cancel, scope)
        await side.run()
    with pytest.raises(ConnectionLostError):
        await pending.wait()
    assert side.ended is None


async def wait_and_cancel(scope):
    await wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.behaviour("B9")
async def test_a_link_that_is_cut_while_sending_ends_both_sides():
    async with open_sides(Faults(cut_after_messages=5)) as (ours, theirs):
        ours.peer.send(asking(LARGE))
        await wait_all_tasks_blocked()
        assert (ours.ended.code, theirs.ended.code) == (1006, 1006)


# --- Peers that do not go on ----------------------------------------------------------------------


async def test_a_peer_that_owes_a_reply_and_says_nothing_is_not_waited_for_forever(
    ours, theirs, autojump_clock
):
    error = await outcome_of(ours.peer.request, asking())
    assert (type(error), error.code) == (ConnectionLostError, 1006)
    assert limits.SILENCE_TIMEOUT_S <= trio.current_time() <= 1.5 * limits.SILENCE_TIMEOUT_S


async def test_a_peer_that_says_something_else_meanwhile_is_waited_for(
    ours, theirs, autojump_clock
):
    numbers = []
    theirs.answer = lambda number, _: numbers.append(number)
    ours.echo()
    pending = ours.peer.begin(asking())
    for _ in range(10):
        await trio.sleep(limits.SILENCE_TIMEOUT_S / 2)
        await theirs.peer.request(asking())
    theirs.peer.reply(numbers[0], Message({}, b"at last"))
    assert (await pending.wait()).body == b"at last"


async def test_a_peer_that_owes_nothing_may_be_silent(ours, theirs, autojump_clock):
    theirs.echo()
    await ours.peer.request(asking())
    await trio.sleep(10 * limits.SILENCE_TIMEOUT_S)
    assert ours.ended is None
    assert (await ours.peer.request(asking(b"still there"))).body == b"still there"


async def test_a_peer_may_owe_more_than_replies(nursery, autojump_clock):
    owed, ended = set(), []
    transport, _far_end = memory_transport_pair()
    side = Side(transport)

    async def run():
        with pytest.raises(ConnectionLostError):
            await side.peer.run(lambda number, message: None, None, lambda: bool(owed))
        ended.append(trio.current_time())

    nursery.start_soon(run)
    await trio.sleep(10 * limits.SILENCE_TIMEOUT_S)
    assert ended == []
    owed.add("a revision")
    await trio.sleep(1.5 * limits.SILENCE_TIMEOUT_S)
    assert len(ended) == 1


async def test_a_peer_that_does_not_take_what_is_sent_is_not_waited_for_forever(
    nursery, autojump_clock
):
    side = Side(Gate())
    nursery.start_soon(side.run)
    side.peer.send(asking(no_reply=True))
    await trio.sleep(limits.WRITE_TIMEOUT_S + 1)
    assert (type(side.ended), side.ended.code) == (ConnectionLostError, 1006)
    nursery.cancel_scope.cancel()


async def test_a_peer_that_acknowledges_nothing_is_not_waited_for_forever(nursery, autojump_clock):
    """It takes all frames, and says nothing."""
    gate = Gate()
    gate.open.set()
    side = Side(gate)
    nursery.start_soon(side.run)
    side.peer.send(asking(LARGE, no_reply=True))
    await trio.sleep(1.5 * limits.SILENCE_TIMEOUT_S)
    assert type(side.ended) is ConnectionLostError
    nursery.cancel_scope.cancel()


NONSENSE = {
    "an empty frame": b"",
    "no header": b"\x80",
    "a request out of order": b"\x07\x00\x00\x00\x00\x00\x00",
    "a reply to no request": b"\x09\x01\x00\x00\x00\x00\x00",
    "a wrong checksum": b"\x01\x00\x00\x01\x02\x03\x04",
}


@pytest.mark.parametrize("frame", NONSENSE.values(), ids=NONSENSE)
async def test_a_peer_that_breaks_the_protocol_ends_the_connection(nursery, frame):
    transport, far_end = memory_transport_pair()
    side = Side(transport)
    pending = side.peer.begin(asking())
    nursery.start_soon(side.run)
    await far_end.send(frame)
    await wait_all_tasks_blocked()
    assert type(side.ended) is RemoteProtocolError
    with pytest.raises(ConnectionLostError) as caught:
        await pending.wait()
    assert caught.value.code == 1002
    assert not caught.value.retryable


async def test_what_a_handler_raises_is_not_hidden():
    transport, far_end = memory_transport_pair()
    side, other = Side(transport), Side(far_end)

    def fail(number, message):
        raise KeyError("bug")

    side.answer = fail
    other.peer.send(asking())
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.run)
            nursery.start_soon(other.run)
    with pytest.raises(ConnectionLostError):
        await side.peer.request(asking())


# --- Replies in parts ----------------------------------------------------------------------------


async def in_parts(content, size=10_000):
    for start in range(0, len(content), size):
        await trio.lowlevel.checkpoint()
        yield content[start : start + size]


@pytest.fixture
async def giving(theirs):
    """Their side answers each request with its own content, in parts."""
    async with trio.open_nursery() as nursery:
        gave = []

        async def give(number, message):
            async with aclosing(in_parts(message.body)) as parts:
                await theirs.peer.reply_in_parts(number, Message({"a": "b"}), parts)
            gave.append(number)

        theirs.answer = lambda number, message: nursery.start_soon(give, number, message)
        yield gave
        nursery.cancel_scope.cancel()


async def received(reply):
    parts = []
    while part := await reply.receive():
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("content", [b"", b"x", LARGE], ids=["none", "one", "large"])
async def test_a_reply_in_parts_arrives_whole(ours, giving, content):
    reply = ours.peer.request_in_parts(asking(content))
    assert await received(reply) == content
    assert reply.properties == {"a": "b"}
    assert await reply.receive() == b""


async def test_a_reply_that_nobody_receives_holds_up_no_other_and_stays_small(ours, giving):
    idle = ours.peer.request_in_parts(asking(LARGE))
    await wait_all_tasks_blocked()
    assert giving == []
    assert await received(ours.peer.request_in_parts(asking(b"small"))) == b"small"
    idle.abandon()
    await wait_all_tasks_blocked()
    assert giving == [2, 1]


async def test_a_refusal_in_place_of_parts_is_raised(ours, theirs):
    theirs.answer = lambda number, message: theirs.peer.refuse(number, "HTTP", 404, "none")
    with pytest.raises(PeerError, match="404"):
        await ours.peer.request_in_parts(asking()).receive()


async def test_parts_end_with_the_connection_on_both_sides(ours, theirs, giving):
    reply = ours.peer.request_in_parts(asking(LARGE))
    await wait_all_tasks_blocked()
    ours.transport.abort()
    await wait_all_tasks_blocked()
    assert giving == [1]
    assert await reply.receive()  # What had come.
    for _ in range(2):
        with pytest.raises(ConnectionLostError):
            await reply.receive()
    with pytest.raises(ConnectionLostError):
        await ours.peer.request_in_parts(asking()).receive()


async def test_parts_that_fail_end_the_reply_early(ours, theirs):
    async def failing():
        yield b"some"
        raise OSError("disk")

    async with trio.open_nursery() as nursery:

        async def give(number):
            with pytest.raises(OSError, match="disk"):
                await theirs.peer.reply_in_parts(number, Message({}), failing())

        theirs.answer = lambda number, message: nursery.start_soon(give, number)
        assert await received(ours.peer.request_in_parts(asking())) == b"some"


async def test_receiving_that_was_cancelled_can_go_on(ours, giving, autojump_clock):
    reply = ours.peer.request_in_parts(asking(LARGE))
    with trio.move_on_after(0):
        await reply.receive()
    assert await received(reply) == LARGE


# --- Limits --------------------------------------------------------------------------------------


class Hostile:
    """The other end of a connection, played by hand: it sends what it likes and reads nothing.

    Neither does it wait for acknowledgements (see `open_attack`).
    """

    def __init__(self, transport):
        self.transport = transport
        self.blip = Connection()

    async def ask(self, message):
        self.blip.send_request(message)
        await self.send_frames()

    async def send_frames(self, count=10_000):
        for _ in range(count):
            frame = self.blip.next_frame()
            if frame is None:
                return
            try:
                await self.transport.send(frame)
            except ConnectionLostError:
                return


@asynccontextmanager
async def open_attack(**options):
    """A peer of ours, and a hostile one at the other end."""
    here, there = memory_transport_pair()
    side = Side(here, **options)

    async def run():
        await side.run()
        here.abort()

    with patch.object(limits, "UNACKNOWLEDGED_BYTES_MAX", 2**40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield side, Hostile(there)
            nursery.cancel_scope.cancel()


async def test_a_peer_that_asks_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(limits, "CONNECTION_BYTES_MAX", 100 * limits.REQUEST_BYTES)
    async with open_attack() as (side, hostile):
        for _ in range(100):
            await hostile.ask(asking())
        await wait_all_tasks_blocked()
        assert side.ended is None
        await hostile.ask(asking())
        await wait_all_tasks_blocked()
        assert "hold too much" in side.ended.message


async def test_a_peer_that_asks_with_long_properties_is_cut_off(monkeypatch):
    monkeypatch.setattr(limits, "CONNECTION_BYTES_MAX", 1_000_000)
    async with open_attack() as (side, hostile):
        for _ in range(11):
            await hostile.ask(Message({"x": "y" * 100_000}))
        await wait_all_tasks_blocked()
        assert "hold too much" in side.ended.message


async def test_the_number_of_open_requests_is_limited(monkeypatch):
    monkeypatch.setattr(limits, "REQUESTS_UNANSWERED_MAX", 10)
    async with open_attack() as (side, hostile):
        for _ in range(11):
            await hostile.ask(asking())
        await wait_all_tasks_blocked()
        assert "too many requests" in side.ended.message


async def test_what_was_answered_is_held_no_more(monkeypatch):
    monkeypatch.setattr(limits, "CONNECTION_BYTES_MAX", 10 * limits.REQUEST_BYTES)
    async with open_sides() as (ours, theirs):
        theirs.echo()
        for _ in range(300):
            await ours.peer.request(asking())
        theirs.answer = lambda number, message: theirs.peer.refuse(number, "HTTP", 400)
        for _ in range(300):
            await outcome_of(ours.peer.request, asking())
        assert theirs.ended is None
        assert theirs.peer.held_bytes == 0


async def test_replies_that_a_peer_does_not_take_are_held_for_it(monkeypatch):
    monkeypatch.setattr(limits, "CONNECTION_BYTES_MAX", 10 * len(LARGE))
    async with open_attack() as (side, hostile):
        side.answer = lambda number, message: side.peer.reply(number, Message({}, LARGE))
        for _ in range(8):
            await hostile.ask(asking())
        await wait_all_tasks_blocked()
        assert side.ended is None
        for _ in range(8):
            await hostile.ask(asking())
        await wait_all_tasks_blocked()
        assert "hold too much" in side.ended.message


@pytest.mark.parametrize("asks", [False, True])
async def test_the_smallest_messages_that_a_peer_does_not_take_are_held_for_it_too(
    monkeypatch, asks
):
    """Of a reply without a byte in it, or what is told to a peer without an answer."""
    monkeypatch.setattr(limits, "CONNECTION_BYTES_MAX", 100 * limits.OUTGOING_BYTES)
    monkeypatch.setattr(limits, "TRANSPORT_WRITE_BYTES", 1)
    async with open_attack() as (side, hostile):

        def answer(number, message):
            if asks:
                side.peer.send(asking(no_reply=True))
            else:
                side.peer.reply(number, Message({}))

        side.answer = answer
        for _ in range(90):
            await hostile.ask(asking(no_reply=asks))
        await wait_all_tasks_blocked()
        assert side.ended is None
        for _ in range(30):
            await hostile.ask(asking(no_reply=asks))
        await wait_all_tasks_blocked()
        assert "hold too much" in side.ended.message


async def test_messages_that_are_begun_and_not_finished_are_held_for_the_peer(monkeypatch):
    monkeypatch.setattr(limits, "CONNECTION_BYTES_MAX", len(LARGE))
    async with open_attack() as (side, hostile):
        for _ in range(200):
            hostile.blip.send_request(asking(LARGE))
        await hostile.send_frames(200)
        await wait_all_tasks_blocked()
        assert "hold too much" in side.ended.message


async def test_all_peers_together_hold_no_more_than_they_may():
    budget = Budget(20 * len(LARGE))
    async with open_attack(budget=budget) as one, open_attack(budget=budget) as other:
        for _ in range(6):
            await other[1].ask(asking(LARGE))
        for _ in range(18):
            await one[1].ask(asking(LARGE))
        await wait_all_tasks_blocked()
        assert "hold too much" in one[0].ended.message
        assert other[0].ended is None
        assert budget.total == other[0].peer.held_bytes
    assert budget.total == 0


async def test_a_message_that_does_not_go_on_ends_the_connection(autojump_clock):
    async with open_attack() as (side, hostile):
        side.echo()
        hostile.blip.send_request(asking(LARGE))
        await hostile.send_frames(1)
        started = trio.current_time()
        await side.finished.wait()
        assert "does not finish" in side.ended.message
        # A network that swallows the rest looks just the same.
        assert side.ended.retryable
        took_s = trio.current_time() - started
        assert limits.MESSAGE_STALL_S < took_s < 1.5 * limits.MESSAGE_STALL_S


async def test_a_message_that_comes_slowly_is_waited_for(autojump_clock):
    async with open_attack() as (side, hostile):
        hostile.blip.send_request(asking(LARGE[:80_000]))
        for _ in range(5):
            await hostile.send_frames(1)
            await trio.sleep(limits.MESSAGE_STALL_S - 1)
        assert side.ended is None
        assert len(side.asked) == 1


async def test_idle_peers_are_left_alone(autojump_clock):
    async with open_sides() as (ours, theirs):
        theirs.echo()
        await ours.peer.request(asking(LARGE))
        await trio.sleep(10 * limits.MESSAGE_STALL_S)
        assert (await ours.peer.request(asking(b"x"))).body == b"x"


async def test_bodies_that_inflate_to_much_more_are_read_at_a_bounded_rate(autojump_clock):
    bomb = asking(bytes(10 * limits.MIB), compressed=True)
    async with open_attack() as (side, hostile):
        all_read = trio.Event()

        def answer(number, message):
            side.peer.reply(number, Message({}))
            if len(side.asked) == 20:
                all_read.set()

        side.answer = answer
        started = trio.current_time()
        for _ in range(20):
            await hostile.ask(bomb)
        await all_read.wait()
        took_s = trio.current_time() - started
        waited_for = 200 * limits.MIB - limits.INFLATION_BYTES_MAX
        # Each byte on the wire is good for a hundred, which is part of them here.
        assert waited_for / took_s < 1.5 * limits.INFLATION_BYTES_PER_S


async def test_a_large_request_is_read_aside_and_still_in_order():
    read, aside = [], []

    def note(number, message):
        read.append((number, len(message.body)))

    def prepare(message):
        assert threading.current_thread() is not threading.main_thread()
        aside.append(len(message.body))
        return lambda number: note(number, message)

    here, there = memory_transport_pair()
    peer, hostile = Peer(here), Hostile(there)
    sizes = [10, limits.READ_ASIDE_BYTES + 1, 20, limits.READ_ASIDE_BYTES + 9, 30]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run, note, prepare)
        for size in sizes:
            await hostile.ask(asking(bytes(size)))
        while len(read) < len(sizes):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert read == list(enumerate(sizes, 1))
    assert aside == [sizes[1], sizes[3]]
