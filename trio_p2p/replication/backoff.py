"""How long to wait before connecting again."""

from __future__ import annotations

from collections.abc import Callable

# 2**30 s is beyond any cap; larger powers would only be larger integers.
_DOUBLINGS_MAX = 30


def attempt_wait_s(failures: int, *, wait_s_max: float, jitter: Callable[[], float]) -> float:
    """The pause after so many failed attempts in a row: 2, 4, 8 … seconds, at most `wait_s_max`.

    `jitter` returns a number from 0 to 1. The pause is shortened by up to half of itself by it, so
    that the clients of a restarted listener do not all come back in the same instant.

    Source: Couchbase Lite's retryDelay; jitter as in RFC 6455, section 7.2.3.
    """
    assert failures >= 1, failures
    longest = min(2.0 ** min(failures, _DOUBLINGS_MAX), wait_s_max)
    return longest * (1 - jitter() / 2)
