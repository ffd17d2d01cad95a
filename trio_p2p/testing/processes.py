"""What the operating system says of this process (Linux)."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path


def anonymous_bytes(pid: int | None = None) -> int:
    """Memory of this process, or another one, that no file stands behind: without mapped pages.

    Raises: OSError if there is no such process.
    """
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell RssAnon")


def held_bytes() -> int:
    """Memory that this process holds: of `anonymous_bytes`, what is not free.

    What was freed first goes back to the system, which the C library would put off: after some
    minutes of sessions it keeps several MiB for later.
    """
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # The GNU C library has it.
    if give_back is not None:
        give_back(0)
    return anonymous_bytes()


def open_descriptors() -> dict[str, str]:
    """What is open, by descriptor: a path, or `socket:[…]` and the like."""
    found: dict[str, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # The one that listed them.
    return found
