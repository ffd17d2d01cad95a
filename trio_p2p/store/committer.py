"""The writer's side in its thread: jobs become one transaction, or where that fails several.

Where several jobs share a commit each runs in a child transaction, so that one that raises takes
back its own changes only.
"""

from __future__ import annotations

import errno
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lmdb

from trio_p2p.errors import StoreError, StoreFailedError, StoreFullError
from trio_p2p.model.clock import HybridClock
from trio_p2p.store import files, keys, records, schema
from trio_p2p.store.blob_files import BlobFiles
from trio_p2p.store.environment import DATA_FILE, Environment
from trio_p2p.store.jobs import Waiting
from trio_p2p.store.records import CollectionState, Identity
from trio_p2p.store.transaction import WriteTransaction, store_error, system_code

States = dict[int, CollectionState | None]
"""Collections by number; None stands for one that was deleted."""


@dataclass(slots=True)
class _Progress:
    """What the jobs of a transaction that were kept have come to."""

    identity: Identity
    before: States
    changed: States = field(default_factory=dict)
    grew: int = 0
    kept: int = 0

    def keep(self, txn: WriteTransaction) -> None:
        self.identity = txn.identity
        self.changed.update(txn.changed)
        self.grew += txn.grew
        self.kept += 1


class Committer:
    """Runs and commits batches of jobs. Only one thread at a time may use it."""

    def __init__(
        self, environment: Environment, blob_files: BlobFiles, now_ns: Callable[[], int]
    ) -> None:
        self.identity = environment.identity
        """As committed; so are the counters."""
        self.commits = 0
        self.jobs = 0
        self.failure: StoreFailedError | None = None
        """Why nothing more may be committed, if so."""
        self._env = environment.env
        self._tables = environment.tables
        self._holder = environment.holder
        self._data_file = environment.path / DATA_FILE
        self._blob_files = blob_files
        self._bytes_max = environment.size_max
        self._page_bytes = environment.env.stat()["psize"]
        self._now_ns = now_ns
        self._clock = HybridClock(now_ns, last=environment.clock_last)
        self._clock_saved = environment.clock_last
        self._states: States = dict(environment.collections)

    def commit(self, batch: list[Waiting[Any]]) -> States:
        """Run and commit a batch. Returns the collections that changed."""
        if self.failure is None:
            try:
                return self._transact(batch)
            except (lmdb.Error, StoreFullError) as exc:
                error = self._judge(exc)
                if len(batch) == 1:
                    return self._commit_after(exc, error, batch[0])
        # Most likely for space that one job wants: now each by itself.
        changed: States = {}
        for waiting in batch:
            if self.failure is None:
                changed |= self.commit([waiting])
            else:
                waiting.fail(self.failure.again())
        return changed

    def _commit_after(
        self, cause: lmdb.Error | StoreFullError, error: StoreError, waiting: Waiting[Any]
    ) -> States:
        """Commit a job again if that may help, else let it fail."""
        if isinstance(cause, lmdb.MapFullError) and self._holder is not None:
            try:
                # The state that was held may take what room there is.
                self._holder.hold(self._holder.capture())
                return self._transact([waiting])
            except (lmdb.Error, StoreError) as exc:
                second = self._judge(exc)
                # That no newer state could be held matters less than why one was to be.
                error = second if isinstance(exc, lmdb.Error) or self.failure else error
        waiting.fail(error)
        return {}

    def _judge(self, error: lmdb.Error | StoreError) -> StoreError:
        """Our error for what failed. Notes if nothing may be committed any more.

        Where a page or the sync of all pages failed, the transaction has left nothing, and LMDB
        would go on. But after an error of the disk it is safer to begin anew with what is on it.
        Where the meta page failed, LMDB itself refuses to go on, and nobody knows what is there.
        """
        if isinstance(error, StoreFailedError):
            self.failure = error
        if isinstance(error, StoreError):
            return error
        if self._is_panicked() or self._is_of_disk(error):
            self.failure = StoreFailedError(
                "the disk failed, so the database was closed: open it again, which shows whether "
                "this was written",
                path=str(self._data_file.parent),
                reason=str(error),
            )
            self.failure.__cause__ = error
            return self.failure.again()
        ours = store_error(error)
        if system_code(error) == errno.EIO:
            ours = StoreFullError("the disk is full: make room on it", reason=str(error))
        ours.__cause__ = error
        return ours

    def _is_panicked(self) -> bool:
        """Whether LMDB refuses to go on."""
        try:
            self._env.begin().abort()
        except lmdb.PanicError:
            return True
        except lmdb.Error:
            return False
        return False

    def _is_of_disk(self, error: lmdb.Error) -> bool:
        """Whether LMDB passed on an error of the operating system that is not for lack of room."""
        code = system_code(error)
        if code in (0, errno.ENOMEM) or files.is_for_room(code):
            return False
        # LMDB tells the same of a page that could be written in part only, as on a full disk.
        return code != errno.EIO or files.can_grow(self._data_file)

    def _transact(self, batch: list[Waiting[Any]]) -> States:
        progress = _Progress(self.identity, self._states)
        raw = self._env.begin(write=True, buffers=True)
        try:
            if len(batch) == 1:
                self._run_job(batch[0], raw, progress)
                if not progress.kept:
                    return {}
            else:
                for waiting in batch:
                    self._run_nested(waiting, raw, progress)
            self._save(raw, progress.changed)
            self._check_size(raw, progress)
            raw.commit()
        finally:
            raw.abort()
        self.identity = progress.identity
        self._states |= progress.changed
        self._clock_saved = self._clock.last
        self.commits += 1
        self.jobs += len(batch)
        return progress.changed

    def _run_nested(
        self, waiting: Waiting[Any], parent: lmdb.Transaction[memoryview], progress: _Progress
    ) -> None:
        child = self._env.begin(parent=parent, write=True, buffers=True)
        try:
            kept = progress.kept
            self._run_job(waiting, child, progress)
            if progress.kept > kept:
                child.commit()
        finally:
            child.abort()

    def _run_job(
        self, waiting: Waiting[Any], raw: lmdb.Transaction[memoryview], progress: _Progress
    ) -> None:
        """Run a job on what those before it left."""
        txn = WriteTransaction(
            raw,
            self._tables,
            self._now_ns,
            self._clock,
            progress.identity,
            ChainMap(progress.changed, progress.before),
            self._blob_files,
        )
        if waiting.run(txn):
            progress.keep(txn)

    def _save(self, raw: lmdb.Transaction[memoryview], changed: States) -> None:
        """Write what is kept in memory beside the records."""
        for number, state in changed.items():
            if state is not None:
                key = keys.collection(number)
                raw.put(key, records.pack_collection(state, key), db=self._tables.collections)
        if self._clock.last != self._clock_saved:
            raw.put(schema.META_CLOCK, keys.number(self._clock.last), db=self._tables.meta)

    def _check_size(self, raw: lmdb.Transaction[memoryview], progress: _Progress) -> None:
        """Raises StoreFullError if jobs let the database grow beyond its limit.

        What only makes room or keeps checkpoints may use the reserve.
        """
        if not progress.grew:
            return
        # Measuring takes as long as a few puts: only where the file is about as large as allowed.
        file_bytes = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        if file_bytes + progress.grew <= self._bytes_max:
            return
        with self._env.begin() as committed:
            before = self._tables.bytes_used(committed)
        used = self._tables.bytes_used(raw)
        if used > self._bytes_max and used > before:
            raise StoreFullError(
                "the database has reached its size limit: delete something, or open it with more",
                bytes_max=self._bytes_max,
            )
