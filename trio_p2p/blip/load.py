"""What a peer makes us hold and do, and how much of it is too much.

Values and sums only: who measures gives the time, and acts on the verdict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from trio_p2p import limits


class Inflation:
    """How long to wait before more is inflated for a peer.

    A megabyte of zeros deflates to a kilobyte, so a few bytes a second could keep a machine busy.
    What inflates to more than INFLATION_RATIO times its size is drawn from an allowance that
    time fills up again. Documents that really are like that pass; they only take longer.
    """

    def __init__(self, now_s: float) -> None:
        self._allowance = float(limits.INFLATION_BYTES_MAX)
        self._at_s = now_s

    def wait_s(self, now_s: float, wire_bytes: int, inflated_bytes: int) -> float:
        """Note what came and what it inflated to; returns how long to wait, 0 mostly."""
        refilled = self._allowance + (now_s - self._at_s) * limits.INFLATION_BYTES_PER_S
        self._at_s = now_s
        excess = max(0, inflated_bytes - wire_bytes * limits.INFLATION_RATIO)
        self._allowance = min(refilled, limits.INFLATION_BYTES_MAX) - excess
        return max(0.0, -self._allowance / limits.INFLATION_BYTES_PER_S)


@dataclass(slots=True)
class _Seen:
    wire_bytes: int
    since_s: float


MessageKey = tuple[bool, int]
"""Whether a message is a reply, and its number."""


class Progress:
    """Since when each incomplete message has not gone on."""

    def __init__(self) -> None:
        self._seen: dict[MessageKey, _Seen] = {}

    def stalled_s(self, now_s: float, incomplete: Mapping[MessageKey, int]) -> float:
        """Look at how much of each has come; returns how long one has stood still at most."""
        seen = {}
        for key, wire_bytes in incomplete.items():
            before = self._seen.get(key)
            if before is None or before.wire_bytes != wire_bytes:
                before = _Seen(wire_bytes, now_s)
            seen[key] = before
        self._seen = seen
        return max((now_s - each.since_s for each in seen.values()), default=0.0)


class Budget:
    """What several peers together may make us hold. When it is used up somebody has to go: of the
    address whose peers hold most, the one that holds most. So many that each hold little do not
    drive out one of elsewhere that holds more, such as a large document.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held: dict[Callable[[], None], _Holding] = {}
        self.total = 0
        """How many bytes all of them hold."""

    def of(self, address: str) -> Share:
        """The budget, for a peer at this address."""
        return Share(self, address)

    def note(self, end: Callable[[], None], held_bytes: int, address: str = "") -> None:
        """Note what a peer makes us hold now. `end` stands for it, and is called if it has to go.

        That may be any of them.
        """
        before = self._held.get(end)
        self.total += held_bytes - (before.held_bytes if before else 0)
        self._held[end] = _Holding(address, held_bytes)
        while self.total > self._bytes_max:
            greatest = self._greatest()
            self.leave(greatest)
            greatest()

    def leave(self, end: Callable[[], None]) -> None:
        """A peer is gone, and with it all that it made us hold."""
        holding = self._held.pop(end, None)
        if holding is not None:
            self.total -= holding.held_bytes

    def _greatest(self) -> Callable[[], None]:
        totals: Counter[str] = Counter()
        for holding in self._held.values():
            totals[holding.address] += holding.held_bytes
        address = max(totals, key=totals.__getitem__)
        ends = (end for end, holding in self._held.items() if holding.address == address)
        return max(ends, key=lambda end: self._held[end].held_bytes)


@dataclass(frozen=True, slots=True)
class Share:
    """A budget, as a peer at one address sees it."""

    budget: Budget
    address: str

    def note(self, end: Callable[[], None], held_bytes: int) -> None:
        """See `Budget.note`."""
        self.budget.note(end, held_bytes, self.address)

    def leave(self, end: Callable[[], None]) -> None:
        """See `Budget.leave`."""
        self.budget.leave(end)


class _Holding(NamedTuple):
    address: str
    held_bytes: int
