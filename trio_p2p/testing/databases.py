"""Databases for tests that mock the clock of Trio.

Such a clock jumps while a thread runs, so the store runs its commits in place here. It does not
wait for the disk either: what is committed survives `engine.abort()`, but not a power cut.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from os import PathLike
from typing import Any, TypeVar

import trio

from trio_p2p import limits
from trio_p2p.store.database import Database, open_facade
from trio_p2p.store.engine import open_engine

T = TypeVar("T")


@asynccontextmanager
async def open_test_database(
    path: str | PathLike[str],
    *,
    create: bool = True,
    map_size_max: int = limits.MAP_SIZE_BYTES_DEFAULT,
    delta_sync: bool = False,
    clock: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Database]:
    """As `open_database`, without threads and without waiting for the disk."""
    opening = open_engine(
        path,
        create=create,
        map_size_max=map_size_max,
        clock=clock,
        run_sync=run_in_place,
        sync=False,
    )
    async with opening as engine, open_facade(engine, delta_sync=delta_sync) as database:
        yield database


async def run_in_place(function: Callable[..., T], *args: Any) -> T:
    """Call a function that blocks as if in a thread, but in this task."""
    await trio.lowlevel.cancel_shielded_checkpoint()
    return function(*args)
