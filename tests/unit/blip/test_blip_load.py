"""What a peer makes us hold and do, and how much of it is too much."""

from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.blip.load import Budget, Inflation, Progress

MIB = limits.MIB


def test_what_deflates_as_documents_do_is_never_waited_for():
    inflation = Inflation(0.0)
    for _ in range(10_000):
        assert inflation.wait_s(0.0, 10_000, 10_000 * limits.INFLATION_RATIO) == 0


def test_a_few_documents_that_deflate_to_nothing_pass_at_once():
    inflation = Inflation(0.0)
    assert inflation.wait_s(0.0, 20_000, 20 * MIB) == 0
    assert inflation.wait_s(0.0, 20_000, 20 * MIB) == 0


def test_what_inflates_without_end_is_inflated_at_a_bounded_rate():
    inflation, now_s, inflated = Inflation(0.0), 0.0, 0
    while now_s < 1_000:
        now_s += inflation.wait_s(now_s, 1_000, MIB)
        inflated += MIB
    assert inflated / now_s < 1.2 * limits.INFLATION_BYTES_PER_S


def test_time_fills_the_allowance_up_but_not_over():
    inflation = Inflation(0.0)
    assert inflation.wait_s(1_000_000.0, 0, limits.INFLATION_BYTES_MAX) == 0
    assert inflation.wait_s(1_000_000.0, 0, MIB) > 0


def test_a_message_that_stands_still_is_found_however_much_others_move():
    progress = Progress()
    for second in range(100):
        stalled_s = progress.stalled_s(float(second), {(False, 1): 500, (False, 2): second})
        assert stalled_s == second
    assert progress.stalled_s(100.0, {(False, 1): 501}) == 0
    assert progress.stalled_s(110.0, {}) == 0
    assert progress.stalled_s(120.0, {(False, 1): 501}) == 0


class Holder:
    def __init__(self):
        self.ended = 0

    def end(self):
        self.ended += 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 100)), max_size=60))
def test_all_together_never_hold_more_than_they_may(steps):
    budget = Budget(150)
    holders = [Holder() for _ in range(5)]
    held = dict.fromkeys(range(5), 0)
    for place, size in steps:
        held[place] = size
        before = [holder.ended for holder in holders]
        budget.note(holders[place].end, size)
        for other, holder in enumerate(holders):
            if holder.ended > before[other]:
                assert held[other] == max(held.values())
                held[other] = 0
        assert budget.total == sum(held.values()) <= 150


def test_who_leaves_holds_nothing():
    budget, holder = Budget(10), Holder()
    budget.note(holder.end, 8)
    budget.leave(holder.end)
    budget.leave(holder.end)
    assert budget.total == 0
    assert holder.ended == 0


def test_of_the_address_that_holds_most_the_one_that_holds_most_goes():
    """A crowd that holds little each does not drive out one that holds more than each of them."""
    budget = Budget(100)
    honest, crowd = Holder(), [Holder() for _ in range(9)]
    share = budget.of("honest")
    share.note(honest.end, 30)
    for number, holder in enumerate(crowd):
        budget.of("crowd").note(holder.end, 6 + number)
    assert honest.ended == 0
    # The last but one would have been too much, and then the last.
    assert [holder.ended for holder in crowd] == [0] * 7 + [1, 1]
    assert budget.total == 30 + sum(range(6, 13))
    share.leave(honest.end)
    assert budget.total == sum(range(6, 13))
