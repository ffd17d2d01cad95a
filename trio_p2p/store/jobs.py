"""Jobs: what writers hand to the engine, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import lmdb
import trio

from trio_p2p.errors import StoreClosedError, StoreError
from trio_p2p.store.transaction import UNREADABLE, WriteTransaction, store_error, unreadable

T = TypeVar("T")
Job = Callable[[WriteTransaction], T]
"""Runs in the writer's thread. It must leave no trace outside its transaction but its result: when
a commit fails that it shared with others, it runs once more by itself."""


class Waiting(Generic[T]):
    """A job in the queue, and what came of it."""

    __slots__ = ("_error", "_job", "_looks_only", "_values", "done")

    def __init__(self, job: Job[T], *, looks_only: bool = False) -> None:
        """One that `looks_only` changes nothing, so that no commit can fail under it."""
        self.done = trio.Event()
        self._job = job
        self._looks_only = looks_only
        self._values: list[T] = []
        self._error: BaseException | None = None

    def run(self, txn: WriteTransaction) -> bool:
        """Run it; whether its changes are to be kept. Raises lmdb.MapFullError."""
        self._values, self._error = [], None
        try:
            self._values.append(self._job(txn))
        except lmdb.MapFullError:
            # It may fit when it is run by itself.
            raise
        except Exception as exc:  # A guard: a job's failure is its caller's, not the writer's.
            self._error = exc
            if isinstance(exc, lmdb.Error):
                self._error = store_error(exc)
                self._error.__cause__ = exc
            elif isinstance(exc, UNREADABLE):
                self._error = unreadable(exc)
                self._error.__cause__ = exc
        return self._error is None and not self._looks_only

    def fail(self, error: StoreError) -> None:
        """Note that the commit failed."""
        self._error = error

    def result(self) -> T:
        """What it returned; raises what it raised, StoreClosedError if it never ran."""
        if self._error is not None:
            raise self._error
        if not self._values:
            raise StoreClosedError("the database was closed before this was written")
        return self._values[0]
