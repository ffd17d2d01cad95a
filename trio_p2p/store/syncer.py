"""Where commits do not wait for the disk: lets a newer state be safe every now and then."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from trio_p2p import limits
from trio_p2p.errors import StoreClosedError, StoreError

if TYPE_CHECKING:
    from trio_p2p.store.engine import Engine

logger = logging.getLogger(__name__)


class Syncer:
    """Syncs a store a while after it was written to."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._written = trio.Event()
        self._stopped = trio.Event()

    def note_write(self) -> None:
        """There is something to sync."""
        self._written.set()

    def stop(self) -> None:
        """End; closing syncs the rest."""
        self._written.set()
        self._stopped.set()

    async def run(self) -> None:
        """Sync until `stop`. Cancelling: safe."""
        while not self._engine.closed:
            await self._written.wait()
            with trio.move_on_after(limits.SYNC_INTERVAL_S):
                await self._stopped.wait()
            self._written = trio.Event()
            try:
                await self._engine.sync()
            except StoreClosedError:
                return
            except StoreError as exc:
                # The state before is still held: nothing is lost by trying again.
                logger.warning("syncing %s failed: %s", self._engine.path, exc)
                self._written.set()
