"""What works on a database in the background, so that closing it can end that first.

The store knows nothing of replicators and listeners: to it a service is what can be asked to end,
and is cut off if it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import trio

from trio_p2p import limits
from trio_p2p.errors import StoreClosedError
from trio_p2p.store.engine import Engine


class Service:
    """One service, for as long as it runs."""

    def __init__(self, request_stop: Callable[[], None], names: dict[Hashable, Service]) -> None:
        self.request_stop = request_stop
        self.scope = trio.CancelScope()
        self._names = names

    def claim(self, name: Hashable) -> bool:
        """Take a name that only one service at a time may have; whether it is this one's now."""
        return self._names.setdefault(name, self) is self

    def release(self, name: Hashable) -> None:
        """Let others take a name; has no effect on one that is not this service's."""
        if self._names.get(name) is self:
            del self._names[name]


class Services:
    """The services of one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: set[Service] = set()
        self._names: dict[Hashable, Service] = {}
        self._closing = False
        self._ended = trio.Event()

    @contextmanager
    def running(self, request_stop: Callable[[], None]) -> Iterator[Service]:
        """Be a service while the block runs.

        `request_stop` is called when the database is about to be closed: it must not block, and the
        block should end soon. If it does not end within STOP_TIMEOUT_S it is cancelled, and left as
        if it had ended. What the service claimed is free again then.

        Raises: StoreClosedError if the database is closed or about to be.
        """
        if self._closing or self._engine.closed:
            raise StoreClosedError("the database was closed", path=str(self._engine.path))
        service = Service(request_stop, self._names)
        self._running.add(service)
        try:
            with service.scope:
                yield service
        finally:
            self._running.discard(service)
            for name in list(self._names):
                service.release(name)
            self._ended.set()
            self._ended = trio.Event()

    async def stop(self) -> None:
        """Ask all to end and wait for that, within a deadline; begin no more.

        Cancelling: has no effect; there are deadlines.
        """
        self._closing = True
        for service in list(self._running):
            service.request_stop()
        with trio.move_on_after(limits.STOP_TIMEOUT_S, shield=True):
            await self._wait_idle()
        for service in self._running:
            service.scope.cancel()
        with trio.move_on_after(limits.CUT_TIMEOUT_S, shield=True):
            await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._running:
            await self._ended.wait()
