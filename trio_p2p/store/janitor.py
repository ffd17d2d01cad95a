"""What is tidied beside the users' work.

Documents that expire, what deleted collections held, old revisions that no peer has any more, and
what was known of peers that are forgotten.

Each transaction does a bounded part. What a crash interrupts goes on at the next opening.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trio_p2p import limits
from trio_p2p.errors import StoreClosedError, StoreError
from trio_p2p.store import bases, catalogue, expirations, purging, remotes
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction

if TYPE_CHECKING:
    from trio_p2p.store.engine import Engine

# Shorter waits might not move a clock that counts in floating point.
_WAIT_S_MIN: Final = 0.001

logger = logging.getLogger(__name__)


class Janitor:
    """Tidies one store. `wake` tells it that there may be something to do earlier than it knew."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._woken = trio.Event()

    def wake(self) -> None:
        """Let it look again, or end if the store was closed."""
        self._woken.set()

    async def run(self) -> None:
        """Tidy until the store is closed. Cancelling: safe."""
        while not self._engine.closed:
            try:
                await self._tidy()
            except StoreClosedError:
                return
            except StoreError as exc:
                logger.error("tidying %s failed: %s", self._engine.path, exc)
                await self._wait(limits.TIDY_INTERVAL_S)

    async def finish(self) -> None:
        """Do now all that is to be done. Raises StoreError. Cancelling: the rest is done later."""
        await trio.lowlevel.checkpoint()
        while True:
            with self._engine.read() as txn:
                is_busy = _is_busy(txn)
            if not is_busy:
                break
            await self._engine.write(_tidy_some)
        looked_at: bytes | None = b""
        while looked_at is not None:
            looked_at = await self._engine.write(
                partial(bases.drop_some_unneeded, after=looked_at, limit=limits.TIDY_RECORDS)
            )

    async def _tidy(self) -> None:
        """Do the next part of what is to be done, or wait until there is any."""
        self._woken = trio.Event()
        with self._engine.read() as txn:
            is_busy, first_us = _is_busy(txn), expirations.first(txn)
        if is_busy:
            await self._engine.write(_tidy_some)
        elif first_us is None:
            await self._woken.wait()
        else:
            await self._wait(first_us / 10**6 - self._engine.now_ns() / 10**9)

    async def _wait(self, seconds: float) -> None:
        # The wall clock may be set, or run on while the machine sleeps, and Trio's does not tell.
        with trio.move_on_after(max(min(seconds, limits.TIDY_INTERVAL_S), _WAIT_S_MIN)):
            await self._woken.wait()


def _is_busy(txn: ReadTransaction) -> bool:
    return (
        catalogue.is_any_dropped(txn)
        or expirations.is_any_due(txn)
        or bases.is_any_passed(txn)
        or remotes.is_any_forgotten(txn)
    )


def _tidy_some(txn: WriteTransaction) -> None:
    catalogue.erase(txn, limits.TIDY_RECORDS)
    purging.purge_due(txn, limits.TIDY_RECORDS)
    bases.drop_passed(txn, limits.TIDY_RECORDS)
    remotes.erase_forgotten(txn, limits.TIDY_RECORDS)
