"""The pause before connecting again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.replication.backoff import attempt_wait_s


def longest_wait_s(failures: int, wait_s_max: float = limits.ATTEMPT_WAIT_S_MAX) -> float:
    return attempt_wait_s(failures, wait_s_max=wait_s_max, jitter=lambda: 0.0)


def test_the_pause_doubles_from_two_seconds_up_to_the_cap():
    waits = [longest_wait_s(failures) for failures in range(1, 11)]
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@pytest.mark.parametrize("failures", [31, 1_100, 10**100])
def test_any_number_of_failures_is_answered_with_the_cap(failures):
    assert longest_wait_s(failures) == limits.ATTEMPT_WAIT_S_MAX


def test_a_cap_below_the_first_pause_holds():
    assert longest_wait_s(1, wait_s_max=0.5) == 0.5


@given(st.integers(1, 2_000), st.floats(0, 1), st.floats(0.1, 1e6))
def test_jitter_shortens_the_pause_by_at_most_half(failures, chance, wait_s_max):
    wait_s = attempt_wait_s(failures, wait_s_max=wait_s_max, jitter=lambda: chance)
    longest = longest_wait_s(failures, wait_s_max)
    assert longest / 2 <= wait_s <= longest


def test_before_any_failure_there_is_no_pause_to_ask_for():
    with pytest.raises(AssertionError):
        longest_wait_s(0)
