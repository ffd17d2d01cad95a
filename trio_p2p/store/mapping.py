"""How many addresses a database is mapped at.

Where addresses are free the whole size limit is mapped at opening, and a reserve beyond it. That
costs nothing, since only pages in use take memory. A 32-bit system has few addresses, and a limit
on those of a process (`ulimit -v`) may leave as few. There the size limit is lowered until its map
leaves as many for everything else. A map is never resized: that would have to wait until nobody
reads, backups included, and could at best double it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

from trio_p2p import limits


def map_bytes(size: int) -> int:
    """The addresses for a database of this size, with the reserve.

    Making room needs some first: what a transaction frees is used by later ones only.
    """
    reserve = max(size // limits.MAP_RESERVE_SHARE, limits.MAP_RESERVE_BYTES_MIN)
    total = size + reserve
    return total + -total % mmap.ALLOCATIONGRANULARITY


def sizes(size_max: int, length: int) -> Iterator[int]:
    """Sizes to map a database for, the best first: to be tried until one can be mapped.

    None is smaller than the file, whose length is given. That one comes last even if it leaves no
    addresses free: what is there can be read then.
    """
    size = max(size_max, length)
    yield size
    least = max(length, limits.MAP_RESERVE_BYTES_MIN)
    while size > least:
        size = max(size // 2, least)
        if are_free(2 * map_bytes(size)):
            yield size
            return
    if 0 < length < size_max:
        yield length


def are_free(count: int) -> bool:
    """Whether so many addresses in a row can be had."""
    try:
        # Not writable, lest the system count it as memory.
        probe = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except (OSError, OverflowError, ValueError):
        return False
    probe.close()
    return True
