"""Which sequences are done: a set with a low-water mark.

Kept as sorted, disjoint, half-open ranges; beginning at 0, which stands for "before the first
change" and is always done, so the first range ends right after the low-water mark.

Source: Couchbase Lite's checkpoint format, whose `localCompleted` lists start and length of ranges.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Self


class SequenceSet:
    """A mutable set of sequences (integers from 0)."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges` are half-open (start, end) pairs in any order."""
        self._starts = [0]
        self._ends = [1]
        for start, end in ranges:
            self.add_range(start, end)

    def __contains__(self, sequence: int) -> bool:
        at = bisect_right(self._starts, sequence) - 1
        return at >= 0 and sequence < self._ends[at]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SequenceSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # Mutable.

    def __repr__(self) -> str:
        return f"SequenceSet({self.ranges()})"

    @property
    def low_water(self) -> int:
        """The last sequence up to which all are done."""
        return self._ends[0] - 1

    @property
    def last(self) -> int:
        """The greatest sequence that is done."""
        return self._ends[-1] - 1

    def ranges(self) -> list[tuple[int, int]]:
        """The half-open ranges, ascending."""
        return list(zip(self._starts, self._ends, strict=True))

    def add(self, sequence: int) -> None:
        """Mark one sequence as done."""
        self.add_range(sequence, sequence + 1)

    def add_range(self, start: int, end: int) -> None:
        """Mark `start` to `end - 1` as done."""
        if start >= end:
            return
        # Ranges from `first` to before `after` overlap or touch the new one and merge with it.
        first = bisect_right(self._ends, start - 1)
        after = bisect_right(self._starts, end)
        if first < after:
            start = min(start, self._starts[first])
            end = max(end, self._ends[after - 1])
        self._starts[first:after] = [start]
        self._ends[first:after] = [end]

    def remove(self, sequence: int) -> None:
        """Mark one sequence as not done; 0 always is."""
        at = bisect_right(self._starts, sequence) - 1
        if sequence <= 0 or at < 0 or sequence >= self._ends[at]:
            return
        start, end = self._starts[at], self._ends[at]
        pieces = [(s, e) for s, e in ((start, sequence), (sequence + 1, end)) if s < e]
        self._starts[at : at + 1] = [s for s, _ in pieces]
        self._ends[at : at + 1] = [e for _, e in pieces]

    def intersection(self, other: SequenceSet) -> SequenceSet:
        """What is done in both."""
        shared = SequenceSet()
        mine, theirs = self.ranges(), other.ranges()
        i = j = 0
        while i < len(mine) and j < len(theirs):
            shared.add_range(max(mine[i][0], theirs[j][0]), min(mine[i][1], theirs[j][1]))
            if mine[i][1] < theirs[j][1]:
                i += 1
            else:
                j += 1
        return shared

    def copy(self) -> SequenceSet:
        """An independent copy."""
        return SequenceSet(self.ranges())

    def to_pairs(self) -> list[int]:
        """The flat list start, length, start, length … of a checkpoint."""
        return [number for start, end in self.ranges() for number in (start, end - start)]

    @classmethod
    def from_pairs(cls, pairs: Iterable[object]) -> Self:
        """Read what `to_pairs` wrote. Raises ValueError for anything else."""
        numbers = list(pairs)
        if len(numbers) % 2 or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError("completed sequences are pairs of start and length")
        flat: list[int] = numbers  # type: ignore[assignment]  # Checked right above.
        starts, lengths = flat[::2], flat[1::2]
        return cls((s, s + length) for s, length in zip(starts, lengths, strict=True))
