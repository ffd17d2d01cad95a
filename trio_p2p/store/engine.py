"""The engine: one task writes, anyone reads.

Writers hand the engine a job, a function of a write transaction. The writer task takes all jobs
that wait, runs them in one transaction in a thread and commits once: a durable commit costs the
same for one job as for a hundred. Where several share a commit each runs in a child transaction,
so that one that raises takes back its own changes only.

Reads are synchronous, on the caller's side, from a snapshot. What a live consumer needs beside
them is a cursor of its own and `wait_change`: nothing is queued for it, so it may be slow.
"""

from __future__ import annotations

import threading
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import lmdb
import trio

from trio_p2p import limits
from trio_p2p.errors import StoreClosedError
from trio_p2p.ids import DatabaseID, Sequence, SourceID
from trio_p2p.model.clock import HybridClock
from trio_p2p.store import keys, records, schema
from trio_p2p.store.environment import Environment, open_environment
from trio_p2p.store.records import CollectionState
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction, store_error

__all__ = [
    "Engine",
    "EngineStatistics",
    "Job",
    "ReadTransaction",
    "RunSync",
    "WriteTransaction",
    "open_engine",
]

T = TypeVar("T")
Job = Callable[[WriteTransaction], T]
"""Runs in the writer's thread. It must leave no trace outside its transaction but its result: when
a commit fails that it shared with others, it runs once more by itself."""


class RunSync(Protocol):
    """How the engine runs what blocks: in a thread, or where time is mocked, in place."""

    def __call__(self, function: Callable[..., T], *args: Any) -> Awaitable[T]: ...


class _Waiting(Generic[T]):
    """A job in the queue, and what came of it."""

    __slots__ = ("_error", "_job", "_values", "done")

    def __init__(self, job: Job[T]) -> None:
        self.done = trio.Event()
        self._job = job
        self._values: list[T] = []
        self._error: BaseException | None = None

    def run(self, txn: WriteTransaction) -> bool:
        """Run it; whether its changes are to be kept."""
        self._values, self._error = [], None
        try:
            self._values.append(self._job(txn))
        except Exception as exc:  # A guard: a job's failure is its caller's, not the writer's.
            self._error = exc
            if isinstance(exc, lmdb.Error):
                self.fail(exc)
        return self._error is None

    def fail(self, cause: lmdb.Error) -> None:
        """Note that LMDB failed; the cause is chained."""
        self._error = store_error(cause)
        self._error.__cause__ = cause

    def result(self) -> T:
        """What it returned; raises what it raised, StoreClosedError if it never ran."""
        if self._error is not None:
            raise self._error
        if not self._values:
            raise StoreClosedError("the database was closed before this was written")
        return self._values[0]


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """`commits` and `jobs` count since opening; `bytes_used` is what the data file holds."""

    commits: int
    jobs: int
    bytes_used: int


class Engine:
    """An open store; `open_engine` makes one."""

    def __init__(
        self, environment: Environment, *, clock: Callable[[], int], run_sync: RunSync
    ) -> None:
        self.path: Path = environment.path
        self.id: DatabaseID = environment.id
        self.source: SourceID = environment.source
        self.now_ns = clock
        """Reads the wall clock: nanoseconds since 1970."""
        self._environment = environment
        self._env = environment.env
        self._tables = environment.tables
        self._collections = environment.collections
        # Only jobs use the clock, so only one thread at a time does.
        self._clock = HybridClock(clock, last=environment.clock_last)
        self._clock_saved = environment.clock_last
        self._run_sync = run_sync
        self._send, self._receive = trio.open_memory_channel[_Waiting[Any]](
            limits.WRITER_QUEUE_JOBS_MAX
        )
        self._closed = False
        self._files_open = True
        # Held during a commit: closing the environment under one would crash the process.
        self._committing = threading.Lock()
        self._writer_ended = trio.Event()
        self._watchers: dict[int, trio.lowlevel.ParkingLot] = {}
        self._commits = 0
        self._jobs = 0

    @property
    def collections(self) -> Mapping[int, CollectionState]:
        """The collections by number, as committed. Not to be changed."""
        return self._collections

    @property
    def closed(self) -> bool:
        """Whether the store takes no more reads and writes."""
        return self._closed

    def read(self) -> ReadTransaction:
        """A snapshot, for a `with` statement without an await in it. Raises StoreClosedError."""
        self._check_open()
        return ReadTransaction(self._env.begin(buffers=True), self._tables)

    async def write(self, job: Job[T]) -> T:
        """Run a job in a write transaction; when this returns, its changes are durable.

        Raises: what the job raises, with nothing changed; StoreFullError; StoreClosedError.
        Cancelling: while the job waits for a place in the queue, leaves no trace; later it has no
        effect, and the job's fate is waited for.
        """
        waiting = _Waiting(job)
        try:
            await self._send.send(waiting)
        except trio.ClosedResourceError as exc:
            raise self._closed_error() from exc
        # Without a deadline: the writer always ends, and the caller must not have to guess.
        with trio.CancelScope(shield=True):
            await waiting.done.wait()
        return waiting.result()

    async def wait_change(self, collection: int, after: Sequence) -> None:
        """Wait until the collection has a sequence greater than `after`.

        Raises: StoreClosedError, also when the database is closed meanwhile.
        Cancelling: safe.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._collections[collection].last_sequence > after:
                return
            await self._watchers.setdefault(collection, trio.lowlevel.ParkingLot()).park()

    def statistics(self) -> EngineStatistics:
        """Counters and sizes. Raises StoreClosedError."""
        self._check_open()
        used = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        return EngineStatistics(self._commits, self._jobs, used)

    def stop(self) -> None:
        """Take no more reads and writes; the writer finishes what waits, then closes."""
        self._closed = True
        self._send.close()
        for lot in self._watchers.values():
            lot.unpark_all()

    def abort(self) -> None:
        """Close now, as a crash would: what waits fails with StoreClosedError.

        A commit that is running is waited for.
        """
        self.stop()
        for waiting in self._take_waiting(limits.WRITER_QUEUE_JOBS_MAX):
            waiting.done.set()
        with self._committing:
            if self._files_open:
                self._files_open = False
                self._environment.close()

    async def wait_closed(self) -> None:
        """Wait until the writer has ended and the files are closed. Cancelling: safe."""
        await self._writer_ended.wait()

    async def run_writer(self) -> None:
        """Write until `stop` or `abort`. Cancelling: has no effect; `stop` ends it."""
        try:
            with trio.CancelScope(shield=True):
                async for first in self._receive:
                    batch = [first, *self._take_waiting(limits.COMMIT_JOBS_MAX - 1)]
                    try:
                        self._publish(await self._run_sync(self._commit, batch))
                    finally:
                        for waiting in batch:
                            waiting.done.set()
        finally:
            self.abort()
            self._writer_ended.set()

    def _closed_error(self) -> StoreClosedError:
        return StoreClosedError("the database was closed", path=str(self.path))

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _take_waiting(self, count_max: int) -> list[_Waiting[Any]]:
        taken: list[_Waiting[Any]] = []
        try:
            while len(taken) < count_max:
                taken.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        return taken

    def _publish(self, changed: Mapping[int, CollectionState]) -> None:
        """Make committed counters visible and wake those who wait for them."""
        self._collections.update(changed)
        for collection in changed:
            if lot := self._watchers.get(collection):
                lot.unpark_all()

    def _commit(self, batch: list[_Waiting[Any]]) -> dict[int, CollectionState]:
        """In the thread: run and commit a batch. Returns the collections that changed."""
        committed: dict[int, CollectionState] = {}
        with self._committing:
            if self._files_open:
                self._commit_open(batch, committed)
        return committed

    def _commit_open(
        self, batch: list[_Waiting[Any]], committed: dict[int, CollectionState]
    ) -> None:
        try:
            committed |= self._transact(batch, committed)
        except lmdb.Error as exc:
            if len(batch) == 1:
                batch[0].fail(exc)
                return
            # Most likely for space that one job wants: now each by itself.
            for waiting in batch:
                self._commit_open([waiting], committed)

    def _transact(
        self, batch: list[_Waiting[Any]], committed: dict[int, CollectionState]
    ) -> dict[int, CollectionState]:
        changed: dict[int, CollectionState] = {}
        states = ChainMap(changed, committed, self._collections)
        raw = self._env.begin(write=True, buffers=True)
        try:
            if len(batch) == 1:
                if not self._run_job(batch[0], raw, states):
                    return {}
            else:
                for waiting in batch:
                    self._run_nested(waiting, raw, states)
            self._save(raw, changed)
            raw.commit()
        finally:
            raw.abort()
        self._clock_saved = self._clock.last
        self._commits += 1
        self._jobs += len(batch)
        return changed

    def _run_nested(
        self,
        waiting: _Waiting[Any],
        parent: lmdb.Transaction[memoryview],
        states: MutableMapping[int, CollectionState],
    ) -> None:
        child = self._env.begin(parent=parent, write=True, buffers=True)
        try:
            if self._run_job(waiting, child, states):
                child.commit()
        finally:
            child.abort()

    def _run_job(
        self,
        waiting: _Waiting[Any],
        raw: lmdb.Transaction[memoryview],
        states: MutableMapping[int, CollectionState],
    ) -> bool:
        """Run a job on what those before it left; whether its changes are to be kept."""
        txn = WriteTransaction(raw, self._tables, self._clock, self.source, states)
        kept = waiting.run(txn)
        if kept:
            states.update(txn.changed)
        return kept

    def _save(
        self, raw: lmdb.Transaction[memoryview], changed: Mapping[int, CollectionState]
    ) -> None:
        """Write what is kept in memory beside the records."""
        for number, state in changed.items():
            raw.put(
                keys.collection(number),
                records.pack_collection(state),
                db=self._tables.collections,
            )
        if self._clock.last != self._clock_saved:
            raw.put(schema.META_CLOCK, keys.number(self._clock.last), db=self._tables.meta)


@asynccontextmanager
async def open_engine(
    path: str | PathLike[str],
    *,
    create: bool = True,
    map_size_max: int = limits.MAP_SIZE_BYTES_DEFAULT,
    clock: Callable[[], int],
    run_sync: RunSync | None = None,
    sync: bool = True,
) -> AsyncIterator[Engine]:
    """Open a store and run its writer until the block is left.

    `clock` reads the wall clock in nanoseconds since 1970. Leaving the block writes what waits,
    then closes. What the body raises leaves as it was.

    Raises: the errors of `open_environment`.
    Cancelling: safe; what was admitted is still written.
    """
    run = run_sync or _threaded()
    environment = await run(
        partial(open_environment, Path(path), create=create, map_size=map_size_max, sync=sync)
    )
    engine = Engine(environment, clock=clock, run_sync=run)
    body = _Held()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run_writer)
        with body:
            yield engine
        engine.stop()
        # Not left to the nursery: cancelled there, it would raise in place of the body.
        with trio.CancelScope(shield=True):
            await engine.wait_closed()
    body.release()


class _Held:
    """Holds back what its block raises, so that it leaves a nursery without being in a group."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._error = error
        return True

    def release(self) -> None:
        """Raise it."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def _threaded() -> RunSync:
    """A runner of threads, one at a time."""
    limiter = trio.CapacityLimiter(1)

    async def run_sync(function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=limiter)

    return run_sync
