import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.errors import ClockSkewError
from trio_p2p.model.clock import TIME_MAX, TIME_MIN, HybridClock
from trio_p2p.model.version import TreeRevisionID

SECOND = 10**9
NOW = 1_700_000_000 * SECOND


class Wall:
    """A wall clock to be moved by hand."""

    def __init__(self, ns: int = NOW) -> None:
        self.ns = ns

    def __call__(self) -> int:
        return self.ns


def test_times_are_the_wall_clock_with_its_low_16_bits_cleared():
    assert HybridClock(Wall(NOW + 12345)).now() == (NOW + 12345) & ~0xFFFF


@pytest.mark.behaviour("V1")
def test_times_strictly_increase_while_the_wall_clock_stands_still_or_goes_back():
    wall = Wall()
    clock = HybridClock(wall)
    first, second = clock.now(), clock.now()
    wall.ns -= 3600 * SECOND
    assert first < second < clock.now() == clock.last


@pytest.mark.behaviour("V1")
@pytest.mark.parametrize("ahead", [-SECOND, 5 * SECOND, 120 * SECOND])
def test_a_time_seen_is_exceeded_by_the_next(ahead):
    clock = HybridClock(Wall())
    clock.see(NOW + ahead)
    assert clock.now() > NOW + ahead


@pytest.mark.behaviour("V1")
@pytest.mark.parametrize(
    "time", [NOW + 3600 * SECOND, NOW + 120 * SECOND + 1, 0xFF_FFFF_FFFF, 0, TIME_MAX + 1]
)
def test_a_time_too_far_ahead_or_out_of_range_is_refused_and_does_not_move_the_clock(time):
    clock = HybridClock(Wall())
    before = clock.now()
    with pytest.raises(ClockSkewError):
        clock.see(time)
    assert clock.last == before


def test_a_time_already_exceeded_is_accepted_however_far_ahead_of_the_wall_clock():
    wall = Wall()
    clock = HybridClock(wall)
    time = clock.now()
    wall.ns -= 3600 * SECOND
    clock.see(time)
    assert clock.last == time


@pytest.mark.behaviour("V1")
@pytest.mark.parametrize("text", ["1-00", "2-1111", "1000-ffffffffffff"])
def test_times_of_tree_revision_ids_are_accepted(text):
    HybridClock(Wall()).see(TreeRevisionID.parse(text).as_version().time)


def test_the_first_time_is_never_below_the_valid_range():
    assert HybridClock(Wall(0)).now() > TIME_MIN
    assert HybridClock(Wall(0), last=-5).last == TIME_MIN


@pytest.mark.behaviour("V1")
def test_a_restored_clock_goes_on_later_but_less_than_a_second_ahead():
    clock = HybridClock(Wall())
    before = clock.now()
    restored = HybridClock(Wall(), last=clock.last)
    assert before < restored.now() < before + SECOND


def test_a_clock_at_the_end_of_time_refuses_to_go_on():
    clock = HybridClock(Wall(), last=TIME_MAX)
    with pytest.raises(ClockSkewError):
        clock.now()
    assert clock.last == TIME_MAX


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["now", "see"]), st.integers(-300 * SECOND, 300 * SECOND), st.booleans()
        )
    )
)
def test_every_time_exceeds_all_made_and_all_seen(steps):
    wall = Wall()
    clock = HybridClock(wall)
    greatest = 0
    for step, offset, moves in steps:
        wall.ns += offset if moves else 0
        if step == "now":
            time = clock.now()
            assert greatest < time
            greatest = time
            continue
        try:
            clock.see(wall.ns + offset)
            greatest = max(greatest, wall.ns + offset)
        except ClockSkewError:
            assert offset > 120 * SECOND
        assert clock.last >= greatest
