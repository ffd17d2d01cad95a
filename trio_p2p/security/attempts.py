"""How often a password was wrong, and how long its address waits before the next is looked at.

The wait is short and bounded, so that nobody is locked out by what others do from behind the same
address, and yet guessing one password after the other is slow. Attempts side by side wait side by
side: as many as there are places for connections that wait to be let in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from trio_p2p import limits


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last_at: float = 0.0


class Attempts:
    """The failed attempts of each address: as many addresses as LOGIN_ADDRESSES_MAX."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        """`now_s` is a clock that runs evenly, in seconds."""
        self._now_s = now_s
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def wait_s(self, address: str) -> float:
        """How long this address should wait now: 0, or up to LOGIN_WAIT_S_MAX."""
        failures = self._failures.get(address)
        if failures is None or self._now_s() - failures.last_at > limits.LOGIN_MEMORY_S:
            return 0.0
        doubled: float = limits.LOGIN_WAIT_S * 2.0 ** min(failures.count - 1, 30)
        return min(doubled, limits.LOGIN_WAIT_S_MAX)

    def failed(self, address: str) -> None:
        """An attempt failed. One that succeeds changes nothing: a guesser may have a password."""
        now_s = self._now_s()
        failures = self._failures.setdefault(address, _Failures())
        if now_s - failures.last_at > limits.LOGIN_MEMORY_S:
            failures.count = 0
        failures.count += 1
        failures.last_at = now_s
        self._failures.move_to_end(address)
        if len(self._failures) > limits.LOGIN_ADDRESSES_MAX:
            self._failures.popitem(last=False)
