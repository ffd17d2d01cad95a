"""The hybrid logical clock that stamps versions.

A timestamp is 64 bits: the wall clock in nanoseconds since 1970 with its low 16 bits cleared, and
a counter in those bits. It never runs backwards and always exceeds every timestamp seen, so a
version made here is later than everything it was made from.

Source: Kulkarni et al., "Logical Physical Clocks" (2014), in the layout of Couchbase Lite 4.
"""

from __future__ import annotations

from collections.abc import Callable

from trio_p2p import limits
from trio_p2p.errors import ClockSkewError

# Couchbase Lite takes smaller or larger values for damage. The smallest valid one is what a tree
# revision ID of generation 1 encodes to.
TIME_MIN = 0x100_0000_0000
TIME_MAX = 0x7FFF_FFFF_FFFF_FFFF

_COUNTER_MASK = 0xFFFF


class HybridClock:
    """Timestamps for one database; `last` is its whole state and must be persisted."""

    def __init__(self, now_ns: Callable[[], int], *, last: int = TIME_MIN) -> None:
        """`now_ns` reads the wall clock: nanoseconds since 1970."""
        self._now_ns = now_ns
        self._last = max(last, TIME_MIN)

    @property
    def last(self) -> int:
        """The greatest timestamp made or seen."""
        return self._last

    def now(self) -> int:
        """A new timestamp, greater than all before. Raises ClockSkewError at the end of time."""
        wall = self._now_ns() & ~_COUNTER_MASK
        time = wall if wall > self._last else self._last + 1
        if time > TIME_MAX:
            raise ClockSkewError("the clock has run past the last valid timestamp", time=time)
        self._last = time
        return time

    def see(self, time: int) -> None:
        """Take note of a timestamp made elsewhere, so that `now` exceeds it.

        Raises: ClockSkewError if it is outside the valid range or lies further ahead of the wall
        clock than peers accept; the clock does not move then.
        """
        if time <= self._last:
            if time < TIME_MIN:
                raise ClockSkewError("a version's time is below the valid range", time=time)
            return
        if time > TIME_MAX:
            raise ClockSkewError("a version's time is above the valid range", time=time)
        ahead = time - self._now_ns()
        if ahead > limits.CLOCK_SKEW_NS_MAX:
            raise ClockSkewError(
                "a version is too far ahead of this machine's clock", seconds=ahead // 10**9
            )
        self._last = time
