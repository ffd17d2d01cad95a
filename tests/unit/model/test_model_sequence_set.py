from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trio_p2p.model.sequence_set import SequenceSet

numbers = st.integers(0, 40)
range_lists = st.lists(st.tuples(numbers, numbers))


def members(sequences: SequenceSet) -> set[int]:
    return {n for start, end in sequences.ranges() for n in range(start, end)}


class SequenceSetMachine(RuleBasedStateMachine):
    """A SequenceSet and a Python set that are told the same."""

    def __init__(self) -> None:
        super().__init__()
        self.actual = SequenceSet()
        self.expected = {0}

    @rule(sequence=numbers)
    def add(self, sequence):
        self.actual.add(sequence)
        self.expected.add(sequence)

    @rule(start=numbers, end=numbers)
    def add_range(self, start, end):
        self.actual.add_range(start, end)
        self.expected.update(range(start, end))

    @rule(sequence=numbers)
    def remove(self, sequence):
        self.actual.remove(sequence)
        self.expected -= {sequence} - {0}

    @rule(ranges=range_lists)
    def intersect(self, ranges):
        other = SequenceSet(ranges)
        self.actual = self.actual.intersection(other)
        self.expected &= members(other)

    @invariant()
    def the_members_are_the_same(self):
        assert members(self.actual) == self.expected
        assert {n for n in range(-1, 45) if n in self.actual} == self.expected

    @invariant()
    def the_ranges_are_sorted_and_do_not_touch(self):
        ranges = self.actual.ranges()
        assert ranges[0][0] == 0
        assert all(start < end for start, end in ranges)
        assert all(a[1] < b[0] for a, b in pairwise(ranges))

    @invariant()
    def the_ends_are_told(self):
        assert self.actual.last == max(self.expected)
        assert self.actual.low_water == next(n for n in range(50) if n + 1 not in self.expected)

    @invariant()
    def pairs_and_copies_are_equal(self):
        assert SequenceSet.from_pairs(self.actual.to_pairs()) == self.actual
        copy = self.actual.copy()
        assert copy == self.actual
        copy.add(copy.last + 1)
        assert copy != self.actual


TestSequenceSetMachine = SequenceSetMachine.TestCase


@given(range_lists, range_lists)
def test_intersection_is_symmetric_and_leaves_its_operands(first_ranges, second_ranges):
    first, second = SequenceSet(first_ranges), SequenceSet(second_ranges)
    assert first.intersection(second) == second.intersection(first)
    assert first == SequenceSet(first_ranges)
    assert members(first.intersection(second)) == members(first) & members(second)


@given(range_lists)
def test_the_order_of_the_ranges_does_not_matter(ranges):
    assert SequenceSet(ranges) == SequenceSet(reversed(ranges))


def test_an_empty_set_has_done_nothing_but_the_beginning():
    empty = SequenceSet()
    assert (empty.low_water, empty.last) == (0, 0)
    assert 0 in empty
    assert 1 not in empty
    assert empty.to_pairs() == [0, 1]
    assert repr(empty) == "SequenceSet([(0, 1)])"


def test_pairs_are_start_and_length():
    done = SequenceSet([(1, 4), (7, 9)])
    assert done.to_pairs() == [0, 4, 7, 2]
    assert done.low_water == 3
    assert SequenceSet.from_pairs([7, 2, 1, 3]) == done


@pytest.mark.parametrize(
    "pairs", [[0], [0, 1, 2], [-1, 2], [0, "1"], [0, True], [0, 1.0], [0, 2**63]]
)
def test_other_pairs_are_refused(pairs):
    with pytest.raises(ValueError, match="pairs"):
        SequenceSet.from_pairs(pairs)


def test_a_set_is_mutable_and_so_has_no_hash():
    with pytest.raises(TypeError):
        hash(SequenceSet())
    assert SequenceSet() != {0}
