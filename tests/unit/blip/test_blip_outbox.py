"""Turns and windows of outgoing messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.blip import frames
from trio_p2p.blip.outbox import FRAME_OVERHEAD_BYTES, Outbox, Outgoing

PIECE_BYTES = limits.FRAME_BYTES_MAX - FRAME_OVERHEAD_BYTES


def normal(number, size=10 * PIECE_BYTES):
    return Outgoing(number, frames.REQUEST, bytes(size))


def urgent(number, size=10 * PIECE_BYTES):
    return Outgoing(number, frames.REQUEST | frames.URGENT, bytes(size))


def send_one(outbox):
    message, piece = outbox.take()
    outbox.sent(message, len(piece), len(piece) + frames.CHECKSUM_BYTES)
    return message.number


def with_begun_normals(*numbers):
    outbox = Outbox()
    for number in numbers:
        outbox.add(normal(number))
    assert [send_one(outbox) for _ in numbers] == list(numbers)
    return outbox


def test_an_empty_outbox_has_nothing():
    assert Outbox().take() is None


@pytest.mark.behaviour("B6a")
def test_normal_messages_begin_in_order_and_take_turns():
    outbox = Outbox()
    for number in (1, 2, 3):
        outbox.add(normal(number))
    assert [send_one(outbox) for _ in range(6)] == [1, 2, 3, 1, 2, 3]


@pytest.mark.behaviour("B6a")
def test_short_messages_leave_in_order():
    outbox = Outbox()
    for number in (1, 2, 3):
        outbox.add(normal(number, size=10))
    assert [send_one(outbox) for _ in range(3)] == [1, 2, 3]
    assert outbox.take() is None


@pytest.mark.behaviour("B7")
def test_an_urgent_message_goes_behind_the_first_normal_one():
    outbox = with_begun_normals(1, 2, 3, 4, 5)
    outbox.add(urgent(6, size=10))
    assert [send_one(outbox) for _ in range(6)] == [1, 6, 2, 3, 4, 5]


@pytest.mark.behaviour("B7")
def test_urgent_messages_alternate_with_normal_ones():
    outbox = with_begun_normals(1, 2, 3, 4, 5)
    outbox.add(urgent(6, size=10))
    outbox.add(urgent(7, size=10))
    assert [send_one(outbox) for _ in range(7)] == [1, 6, 2, 7, 3, 4, 5]


def test_a_long_urgent_message_leaves_every_other_turn_to_normal_ones():
    outbox = with_begun_normals(1, 2)
    outbox.add(urgent(3))
    assert [send_one(outbox) for _ in range(8)] == [1, 3, 2, 3, 1, 3, 2, 3]


@pytest.mark.behaviour("B7")
def test_a_new_urgent_message_stays_behind_every_message_that_has_not_begun():
    outbox = with_begun_normals(1, 2)
    outbox.add(normal(3))
    outbox.add(urgent(4, size=10))
    assert [send_one(outbox) for _ in range(4)] == [1, 2, 3, 4]


def test_frames_are_small_only_where_a_normal_one_delays_an_urgent_one():
    outbox = with_begun_normals(1)
    outbox.add(urgent(2))
    sizes = []
    for _ in range(4):
        message, piece = outbox.take()
        sizes.append((message.number, len(piece) + FRAME_OVERHEAD_BYTES))
        outbox.sent(message, len(piece), len(piece))
    assert sizes == [
        (1, limits.FRAME_BYTES_WHEN_URGENT_WAITS),
        (2, limits.FRAME_BYTES_MAX),
        (1, limits.FRAME_BYTES_WHEN_URGENT_WAITS),
        (2, limits.FRAME_BYTES_MAX),
    ]


def send_until_stalled(outbox, message):
    while not message.stalled:
        send_one(outbox)
    return message.sent_bytes


@pytest.mark.behaviour("B13b")
def test_a_message_stops_at_a_full_window_and_goes_on_once_it_is_acknowledged():
    outbox, message = Outbox(), normal(1, size=300_000)
    outbox.add(message)
    sent = send_until_stalled(outbox, message)
    assert 0 <= sent - limits.UNACKNOWLEDGED_BYTES_MAX < limits.FRAME_BYTES_MAX
    assert outbox.take() is None
    outbox.acknowledge(message.key, sent - limits.UNACKNOWLEDGED_BYTES_MAX)
    assert outbox.take() is None
    outbox.acknowledge(message.key, sent - limits.UNACKNOWLEDGED_BYTES_MAX + 1)
    assert send_one(outbox) == 1


def test_a_stalled_message_does_not_hold_up_the_others():
    outbox, stalled = Outbox(), normal(1, size=300_000)
    outbox.add(stalled)
    send_until_stalled(outbox, stalled)
    outbox.add(normal(2, size=10))
    assert send_one(outbox) == 2


def test_acknowledging_a_reply_says_nothing_of_the_request_with_its_number():
    outbox = Outbox()
    request, reply = normal(1, size=300_000), Outgoing(1, frames.REPLY, bytes(300_000))
    outbox.add(request)
    send_until_stalled(outbox, request)
    outbox.add(reply)
    sent = send_until_stalled(outbox, reply)
    outbox.acknowledge(reply.key, sent)
    assert (request.stalled, reply.stalled) == (True, False)


def test_acknowledgements_that_come_late_or_twice_or_lie_change_nothing():
    outbox, message = Outbox(), normal(1, size=600_000)
    outbox.acknowledge(message.key, 50_000)
    outbox.add(message)
    sent = send_until_stalled(outbox, message)
    outbox.acknowledge(message.key, 2**60)
    assert message.acknowledged_bytes == sent
    outbox.acknowledge(message.key, 1)
    assert message.acknowledged_bytes == sent
    again = send_until_stalled(outbox, message)
    assert again - sent < limits.UNACKNOWLEDGED_BYTES_MAX + limits.FRAME_BYTES_MAX


@pytest.mark.behaviour("B8")
def test_clearing_forgets_queued_and_stalled_messages():
    outbox, stalled = Outbox(), normal(1, size=300_000)
    outbox.add(stalled)
    send_until_stalled(outbox, stalled)
    outbox.add(normal(2))
    outbox.clear()
    outbox.acknowledge(stalled.key, stalled.sent_bytes)
    assert outbox.take() is None
    assert outbox.unsent_bytes == 0


@pytest.mark.behaviour("B6a", "B7")
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60_000)), min_size=1, max_size=30))
def test_every_message_leaves_whole_and_begins_in_order(kinds):
    outbox, begun, sizes = Outbox(), [], {}
    for number, (is_urgent, size) in enumerate(kinds):
        outbox.add((urgent if is_urgent else normal)(number, size))
        if number % 3 == 2:
            take_turn(outbox, begun, sizes)
    while outbox.unsent_bytes:
        take_turn(outbox, begun, sizes)
    assert outbox.take() is None
    assert begun == list(range(len(kinds)))
    assert sizes == {number: size for number, (_, size) in enumerate(kinds)}


def take_turn(outbox, begun, sizes):
    message, piece = outbox.take()
    if not message.offset:
        begun.append(message.number)
    sizes[message.number] = sizes.get(message.number, 0) + len(piece)
    outbox.sent(message, len(piece), len(piece))
