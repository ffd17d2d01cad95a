"""Who uses the files of an open database, so that nobody closes them meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trio_p2p.errors import StoreClosedError


class Usage:
    """Counts the threads that use the files. Closing LMDB under one would crash the process."""

    def __init__(self) -> None:
        self._users = 0
        self._open = True
        self._changed = threading.Condition()

    @contextmanager
    def using(self) -> Iterator[None]:
        """Hold the files open for the block. Raises StoreClosedError."""
        with self._changed:
            if not self._open:
                raise StoreClosedError("the database was closed")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def close(self, close: Callable[[], None]) -> None:
        """Let nobody in any more, wait for those inside, then call `close`; only the first time.

        Blocks as long as the longest use does.
        """
        with self._changed:
            if not self._open:
                return
            self._open = False
            self._changed.wait_for(lambda: self._users == 0)
            close()
