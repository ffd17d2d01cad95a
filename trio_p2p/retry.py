"""After which errors trying again may help: one table.

An error is a code in a domain: an HTTP status, a WebSocket close code, an error of the operating
system ("POSIX") or of looking up and reaching a host ("Network"). `docs/topics/errors-and-retry.md`
shows the table.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final


class Retry(Enum):
    """Whom trying the same thing again, unchanged, may help."""

    ALWAYS = "always"  # It may pass by itself.
    CONTINUOUS = "continuous"  # It passes when the network changes: who stays can wait for that.
    NEVER = "never"


def _table(
    always: Mapping[str, Iterable[int]], continuous: Mapping[str, Iterable[int]]
) -> dict[tuple[str, int], Retry]:
    """What is in both is in the first."""
    table = {
        (domain, code): Retry.CONTINUOUS for domain in continuous for code in continuous[domain]
    }
    return table | {(domain, code): Retry.ALWAYS for domain in always for code in always[domain]}


DNS_FAILURE: Final = 1
UNKNOWN_HOST: Final = 2
UNKNOWN_INTERFACE: Final = 27
"""Codes of Couchbase Lite's domain "Network"."""

RETRY: Final[Mapping[tuple[str, int], Retry]] = _table(
    always={
        "HTTP": (408, 429, 502, 503, 504),
        "WebSocket": (408, 429, 502, 503, 504, 1006, 4001),
        # Timeout, then a network or a connection that was reset, aborted or refused.
        "Network": (DNS_FAILURE, 3, 16, 17, 18, 19),
        "POSIX": (
            errno.ENETRESET,
            errno.ECONNABORTED,
            errno.ECONNRESET,
            errno.ETIMEDOUT,
            errno.ECONNREFUSED,
        ),
    },
    continuous={
        "Network": (DNS_FAILURE, UNKNOWN_HOST, UNKNOWN_INTERFACE),
        "POSIX": (
            errno.ENETDOWN,
            errno.ENETUNREACH,
            errno.ENOTCONN,
            errno.ETIMEDOUT,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.EADDRNOTAVAIL,
            errno.EPIPE,
        ),
    },
)
"""By domain and code; whatever is not here ends a replication for good.

Source: Couchbase Lite's mayBeTransient and mayBeNetworkDependent. Its codes for networks that are
down or lead nowhere are errors of the operating system here.
"""


def retry_after(domain: str, code: int) -> Retry:
    """Whom trying again may help after this error, named as Couchbase Lite does."""
    return RETRY.get((domain, code), Retry.NEVER)
