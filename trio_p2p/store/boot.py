"""Which start of the machine this is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BOOT_ID_BYTES: Final = 36

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> bytes:
    """What differs after each start of the machine; blank where the system does not tell.

    There every opening after a process died counts as one after a power cut.
    """
    try:
        found = _BOOT_ID.read_bytes()
    except OSError:
        found = b""
    return found[:BOOT_ID_BYTES].ljust(BOOT_ID_BYTES)
