"""The engine: one task writes, anyone reads.

Writers hand the engine a job, a function of a write transaction. The writer task takes all jobs
that wait, runs them in one transaction in a thread and commits once: a durable commit costs the
same for one job as for a hundred. Where several share a commit each runs in a child transaction,
so that one that raises takes back its own changes only.

Reads are synchronous, on the caller's side, from a snapshot. What a live consumer needs beside
them is a cursor of its own and `wait_change`: nothing is queued for it, so it may be slow.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

import lmdb
import trio

from trio_p2p import limits
from trio_p2p.errors import (
    CollectionNotFoundError,
    StoreClosedError,
    StoreError,
    StoreFailedError,
)
from trio_p2p.ids import DatabaseID, Sequence, SourceID
from trio_p2p.store import files
from trio_p2p.store.backup import make_backup
from trio_p2p.store.blob_files import BlobFiles
from trio_p2p.store.blobs import Blobs
from trio_p2p.store.committer import Committer, States
from trio_p2p.store.deferred import Holder, State
from trio_p2p.store.environment import DATA_FILE, Environment, open_environment
from trio_p2p.store.janitor import Janitor
from trio_p2p.store.jobs import Job, Waiting
from trio_p2p.store.records import CollectionState
from trio_p2p.store.syncer import Syncer
from trio_p2p.store.transaction import ReadTransaction, WriteTransaction, store_error
from trio_p2p.store.usage import Usage

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

logger = logging.getLogger(__name__)

# A backup takes long, and a sync must not wait for it.
_ASIDE_THREADS_MAX: Final = 4


class RunSync(Protocol):
    """How the engine runs what blocks: in a thread, or where time is mocked, in place."""

    def __call__(self, function: Callable[..., T], *args: Any) -> Awaitable[T]: ...


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """`commits` and `jobs` count since opening; the rest is what there is now."""

    commits: int
    jobs: int
    conflicts: int
    expirations: int
    bytes_used: int
    bytes_max: int
    file_bytes: int


class Engine:
    """An open store; `open_engine` makes one."""

    def __init__(
        self,
        environment: Environment,
        *,
        clock: Callable[[], int],
        run_sync: RunSync,
        run_aside: RunSync,
    ) -> None:
        self.path: Path = environment.path
        self.now_ns = clock
        """Reads the wall clock: nanoseconds since 1970."""
        self._environment = environment
        self._collections = environment.collections
        self.blob_files = BlobFiles(environment.path, clock)
        """What holds blobs; its methods block."""
        self._committer = Committer(environment, self.blob_files, clock)
        self._identity = environment.identity
        self._run_sync = run_sync
        self.run_aside = run_aside
        """Calls what blocks on files other than LMDB's."""
        self.blobs = Blobs(self)
        self.copying = trio.Lock()
        """Held by whoever copies the files of the database, or removes any beside LMDB's."""
        self._send, self._receive = trio.open_memory_channel[Waiting[Any]](
            limits.WRITER_QUEUE_JOBS_MAX
        )
        self._closed = False
        self._failure: StoreFailedError | None = None
        self._closing_failure: StoreError | None = None
        self._usage = Usage()
        self._janitor = Janitor(self)
        self._syncer = Syncer(self)
        self._syncing = trio.Lock()
        self._ended = trio.Event()
        self._watchers: dict[int, trio.lowlevel.ParkingLot] = {}

    @property
    def id(self) -> DatabaseID:
        """The database's UUID."""
        return self._identity.id

    @property
    def source(self) -> SourceID:
        """The author of the versions made here."""
        return self._identity.source

    @property
    def collections(self) -> Mapping[int, CollectionState]:
        """The collections by number, as committed. Not to be changed."""
        return self._collections

    def collection(self, number: int) -> CollectionState:
        """One of them. Raises CollectionNotFoundError if it was deleted."""
        state = self._collections.get(number)
        if state is None:
            raise CollectionNotFoundError("the collection was deleted")
        return state

    @property
    def closed(self) -> bool:
        """Whether the store takes no more reads and writes."""
        return self._closed

    def check_open(self) -> None:
        """Raises StoreClosedError if the store takes no more reads and writes."""
        if self._closed:
            raise self._closed_error()

    def read(self) -> ReadTransaction:
        """A snapshot, for a `with` statement without an await in it. Raises StoreClosedError."""
        self.check_open()
        try:
            raw = self._environment.env.begin(buffers=True)
        except lmdb.Error as exc:
            raise store_error(exc) from exc
        return ReadTransaction(raw, self._environment.tables, self.now_ns)

    def fetch(self, collection: int, key: bytes) -> bytes | None:
        """The record of one document, by its key, in a snapshot of its own.

        Raises: StoreClosedError, CollectionNotFoundError.
        """
        if self._closed or collection not in self._collections:
            self.check_open()
            self.collection(collection)
        try:
            with self._environment.env.begin() as raw:
                return raw.get(key, None, self._environment.tables.documents)
        except lmdb.Error as exc:
            raise store_error(exc) from exc

    async def write(self, job: Job[T]) -> T:
        """Run a job in a write transaction; when this returns, its changes are durable.

        Raises: what the job raises, with nothing changed; StoreFullError; StoreClosedError.
        Cancelling: while the job waits for a place in the queue, leaves no trace; later it has no
        effect, and the job's fate is waited for.
        """
        try:
            return await self._submit(job)
        finally:
            self._syncer.note_write()

    async def _submit(self, job: Job[T], *, looks_only: bool = False) -> T:
        waiting = Waiting(job, looks_only=looks_only)
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

        Raises: StoreClosedError, CollectionNotFoundError, also when it is closed or deleted
        meanwhile.
        Cancelling: safe.
        """
        await trio.lowlevel.checkpoint()
        while True:
            self.check_open()
            if self.collection(collection).last_sequence > after:
                return
            await self._watchers.setdefault(collection, trio.lowlevel.ParkingLot()).park()

    async def backup(self, target: Path) -> None:
        """Make a backup, without holding up the writer. Raises: as `make_backup`.

        Cancelling: once it was begun, has no effect.
        """
        async with self.copying:
            self.check_open()
            await self.run_aside(self._back_up, target)

    def ask_committed(self, question: Callable[[lmdb.Transaction[Any]], T]) -> list[T]:
        """For a job: the answers of each state that was committed and that a restart may find."""
        with self._environment.env.begin() as newest:
            answers = [question(newest)]
        if self._environment.holder is not None:
            answers += self._environment.holder.ask(question)
        return answers

    async def tidy(self) -> None:
        """Do now what the janitor has yet to do. Cancelling: it is done later."""
        await self._janitor.finish()

    def tidy_soon(self) -> None:
        """Let the janitor look for something to tidy: it expires earlier, or was deleted."""
        self._janitor.wake()

    async def sync(self) -> None:
        """Make durable what was committed before; nothing to do where every commit is.

        Raises: StoreError, StoreClosedError; StoreFailedError if the disk failed, so that the
        store was closed.
        Cancelling: safe.
        """
        holder = self._environment.holder
        if holder is None:
            await trio.lowlevel.checkpoint()
            return
        async with self._syncing:
            # As a job, since no commit may come between its steps.
            state = await self._submit(lambda _: holder.capture(), looks_only=True)
            try:
                await self.run_aside(self._hold, holder, state)
            except StoreFailedError as exc:
                self._fail(exc)
                self._closing_failure = exc
                raise

    def statistics(self) -> EngineStatistics:
        """Counters and sizes. Raises StoreClosedError."""
        with self.read() as txn:
            conflicts = txn.raw.stat(txn.tables.conflicts)["entries"]
            expirations = txn.raw.stat(txn.tables.expirations)["entries"]
            bytes_used = txn.tables.bytes_used(txn.raw)
        return EngineStatistics(
            commits=self._committer.commits,
            jobs=self._committer.jobs,
            conflicts=conflicts,
            expirations=expirations,
            bytes_used=bytes_used,
            bytes_max=self._environment.size_max,
            file_bytes=self._file_bytes(),
        )

    def _file_bytes(self) -> int:
        try:
            return (self.path / DATA_FILE).stat().st_size
        except OSError as exc:
            raise files.failure("the data file cannot be found", self.path, exc) from exc

    def stop(self) -> None:
        """Take no more reads and writes; the writer finishes what waits, then closes."""
        self._closed = True
        self._send.close()
        self._janitor.wake()
        self._syncer.stop()
        for lot in self._watchers.values():
            lot.unpark_all()

    def abort(self) -> None:
        """Close now, as a crash would: what waits fails with StoreClosedError.

        A commit or backup that is running is waited for.
        """
        self._drop_waiting()
        self._usage.close(self._environment.abandon)

    def _fail(self, failure: StoreFailedError) -> None:
        """Take no more reads and writes: the disk failed. What waits fails too."""
        logger.error("%s", failure)
        self._failure = failure
        self._drop_waiting()

    def _drop_waiting(self) -> None:
        self.stop()
        for waiting in self._take_waiting(limits.WRITER_QUEUE_JOBS_MAX):
            waiting.fail(self._closed_error())
            waiting.done.set()

    async def wait_closed(self) -> None:
        """Wait until the files are closed.

        Raises: StoreError if what was committed could not be made durable.
        Cancelling: safe.
        """
        await self._ended.wait()
        if self._closing_failure is not None:
            raise self._closing_failure

    async def run(self) -> None:
        """Write, tidy and sync until `stop` or `abort`, then close.

        Cancelling: has no effect; `stop` ends it.
        """
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._janitor.run)
                    if self._environment.holder is not None:
                        nursery.start_soon(self._syncer.run)
                    await self._write_all()
                # Not here but in a thread: it waits for a backup.
                close = self._environment.abandon if self._failure else self._environment.close
                try:
                    await self.run_aside(self._usage.close, close)
                except StoreError as exc:
                    self._closing_failure = exc
        finally:
            self.abort()
            self._ended.set()

    async def _write_all(self) -> None:
        async for first in self._receive:
            batch = [first, *self._take_waiting(limits.COMMIT_JOBS_MAX - 1)]
            try:
                self._publish(await self._run_sync(self._commit, batch))
                if self._committer.failure is not None:
                    self._fail(self._committer.failure)
            finally:
                for waiting in batch:
                    waiting.done.set()

    def _closed_error(self) -> StoreClosedError:
        if self._failure is not None:
            return self._failure.again()
        return StoreClosedError("the database was closed", path=str(self.path))

    def _take_waiting(self, count_max: int) -> list[Waiting[Any]]:
        taken: list[Waiting[Any]] = []
        try:
            while len(taken) < count_max:
                taken.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        return taken

    def _publish(self, changed: States) -> None:
        """Make what was committed visible and wake those who wait for it."""
        self._identity = self._committer.identity
        for number, state in changed.items():
            if state is None:
                self._collections.pop(number, None)
            else:
                self._collections[number] = state
            if lot := self._watchers.get(number):
                lot.unpark_all()

    def _hold(self, holder: Holder, state: State) -> None:
        with self._usage.using():
            holder.hold(state)

    def _back_up(self, target: Path) -> None:
        with self._usage.using():
            make_backup(self._environment, self.blob_files, target)

    def _commit(self, batch: list[Waiting[Any]]) -> States:
        """In the thread: run and commit a batch. Returns the collections that changed."""
        with suppress(StoreClosedError), self._usage.using():
            return self._committer.commit(batch)
        return {}


@asynccontextmanager
async def open_engine(
    path: str | PathLike[str],
    *,
    create: bool = True,
    map_size_max: int = limits.MAP_SIZE_BYTES_DEFAULT,
    clock: Callable[[], int],
    run_sync: RunSync | None = None,
    durable: bool = True,
    sync: bool = True,
) -> AsyncIterator[Engine]:
    """Open a store and run its writer until the block is left.

    `clock` reads the wall clock in nanoseconds since 1970. Leaving the block writes what waits,
    then closes. What the body raises leaves as it was.

    Raises: the errors of `open_environment`; on leaving, StoreError if what was committed could not
    be made durable.
    Cancelling: safe; what was admitted is still written.
    """
    run = run_sync or _threaded(1)
    opening = partial(
        open_environment,
        Path(path),
        create=create,
        size_max=map_size_max,
        durable=durable,
        sync=sync,
    )
    environment = await run(opening)
    run_aside = run_sync or _threaded(_ASIDE_THREADS_MAX)
    engine = Engine(environment, clock=clock, run_sync=run, run_aside=run_aside)
    body = _Held()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with body:
            yield engine
        engine.stop()
        # Not left to the nursery: cancelled there, it would raise in place of the body.
        with body, trio.CancelScope(shield=True):
            await engine.wait_closed()
    body.release()


class _Held:
    """Holds back what the first of its blocks to raise does, to leave a nursery as no group."""

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._error = self._error or error
        return True

    def release(self) -> None:
        """Raise it."""
        error, self._error = self._error, None
        if error is not None:
            raise error


def _threaded(threads_max: int) -> RunSync:
    """A runner of threads, so many at a time."""
    limiter = trio.CapacityLimiter(threads_max)

    async def run_sync(function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=limiter)

    return run_sync
