"""Asks the user's resolver what becomes of conflicts: active side only, off the receiving path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import trio

from trio_p2p import limits
from trio_p2p.callbacks import failure_of
from trio_p2p.errors import (
    BlobNotFoundError,
    CallbackError,
    ConflictError,
    InvalidDocumentError,
    TrioP2PError,
)
from trio_p2p.ids import DocumentID
from trio_p2p.model.blob import ATTACHMENTS
from trio_p2p.model.codec import RESERVED_KEYS, encode_body
from trio_p2p.model.conflict import (
    Arrival,
    Conflict,
    ConflictResolver,
    Resolution,
    carry_out,
    default_conflict_resolver,
    judge_arrival,
    keep,
    merges_merges,
    supersede,
    winner_alone,
)
from trio_p2p.model.document import EMPTY_BODY, Document, Revision, Stored
from trio_p2p.model.version import Version
from trio_p2p.replication.link import Link
from trio_p2p.store import bases, conflicts, documents, remotes
from trio_p2p.store.transaction import WriteTransaction

# What came from older peers names blobs there.
_RESERVED = RESERVED_KEYS - {ATTACHMENTS}

Outcome = Callable[[Callable[[], Version]], Revision | None]
"""Given a stamp for new versions, the revision to store, or None if there is nothing to."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A document and a revision of the peer that conflicts with it, as they were when read."""

    document_id: DocumentID
    local: Stored | None
    remote: Revision
    base: Revision | None
    merges: int
    """How often in a row merges of the document were merged here."""


class Resolver:
    """Resolves the conflicts of one collection, several documents at once.

    A document is in one resolver's hands at a time, whatever replicators there are. A conflict
    whose resolver fails stays in the store and is asked about at the next start.
    """

    def __init__(self, link: Link, resolver: ConflictResolver, *, remote: int = 0) -> None:
        """`remote` is the number of the peer that the conflicts are added from."""
        self._link = link
        self._resolver = resolver
        self._remote = remote
        # A dict keeps the order, and each document once.
        self._waiting: dict[DocumentID, None] = {}
        self._working: set[DocumentID] = set()
        # Those that this peer has sent a revision of, not an earlier session's.
        self._added: set[DocumentID] = set()
        # Those that stand in the store behind this one are yet to be found; None: all of them.
        self._after: DocumentID | None = None
        self._is_looking = False
        # Not to be asked about again: document and version of the revision that waits.
        self._failed: set[tuple[DocumentID, Version]] = set()

    @property
    def busy(self) -> bool:
        """Whether conflicts are still to be resolved."""
        return bool(self._working or self._waiting or self._is_looking)

    def add(self, document_id: DocumentID) -> None:
        """A conflict of this document was stored."""
        if len(self._waiting) < limits.SCAN_SLICE_ROWS:
            self._waiting[document_id] = None
            self._added.add(document_id)
        else:
            # They stand in the store: memory need not hold them all.
            self.find_existing()
        self._link.pulse.notify()

    def find_existing(self) -> None:
        """Resolve what stands in the store, such as what an earlier run left."""
        self._after, self._is_looking = None, True

    async def run(self) -> None:
        """Resolve for ever. Cancelling: a conflict not yet resolved stays in the store."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._link.pulse.until(self._may_begin)
                document_id = self._take()
                if document_id is None:
                    self._look()
                    self._link.pulse.notify()
                else:
                    self._working.add(document_id)
                    nursery.start_soon(self._work, document_id)

    def _may_begin(self) -> bool:
        if len(self._working) >= limits.RESOLVED_DOCUMENTS_MAX:
            return False
        return self._is_looking or not self._waiting.keys() <= self._working

    def _take(self) -> DocumentID | None:
        """The next document that nobody here works on."""
        for document_id in self._waiting:
            if document_id not in self._working:
                del self._waiting[document_id]
                return document_id
        return None

    def _look(self) -> None:
        """Find the next documents in the store, if all those found before are taken."""
        if not self._is_looking:
            return
        with self._link.engine.read() as txn:
            found = conflicts.documents(txn, self._link.number, self._after, limits.SCAN_SLICE_ROWS)
        self._waiting.update(dict.fromkeys(found))
        if found:
            self._after = found[-1]
        else:
            self._is_looking = False

    async def _work(self, document_id: DocumentID) -> None:
        try:
            turn = (self._link.number, document_id)
            async with self._link.collection.database.resolving.take(turn):
                await self._resolve(document_id)
        finally:
            self._working.discard(document_id)
            self._added.discard(document_id)
            self._link.pulse.notify()

    async def _resolve(self, document_id: DocumentID) -> None:
        """Resolve every conflict of one document, again where it changed meanwhile."""
        attempts = 0
        while (case := self._next_case(document_id)) is not None:
            attempts += 1
            try:
                if attempts > limits.RESOLVE_ATTEMPTS_MAX:
                    raise ConflictError(
                        "the document kept changing while its conflict was resolved",
                        expected=None,
                        current=None,
                        document_id=document_id,
                    )
                if await self._resolve_one(case):
                    attempts = 0
            except TrioP2PError as exc:
                self._failed.add((document_id, case.remote.version))
                attempts = 0
                self._link.journal.unresolved(
                    self._link.collection, document_id, exc, deleted=case.remote.deleted
                )

    def _next_case(self, document_id: DocumentID) -> _Case | None:
        """The next conflict of a document that did not fail already."""
        number = self._link.number
        with self._link.engine.read() as txn:
            for head in conflicts.heads(txn, number, document_id):
                if (document_id, head.version) in self._failed:
                    continue
                remote = conflicts.get(txn, number, document_id, head.version)
                assert remote is not None
                local = documents.get(txn, number, document_id)
                base = None
                if local is not None:
                    base = bases.common(txn, number, document_id, local.revision, remote)
                merges = conflicts.merges(txn, number, document_id)
                return _Case(document_id, local, remote, base, merges)
        return None

    async def _resolve_one(self, case: _Case) -> bool:
        """Decide and store what becomes of a conflict; whether it was as it is no more."""
        outcome = await self._outcome(case)
        number, document_id, version = self._link.number, case.document_id, case.remote.version
        sender = self._remote if document_id in self._added else 0

        def job(txn: WriteTransaction) -> bool:
            current = documents.head(txn, number, document_id)
            if (current and current.sequence) != (case.local and case.local.sequence):
                return False
            if not conflicts.is_waiting(txn, number, document_id, version):
                return False
            conflicts.remove(txn, number, document_id, version)
            conflicts.set_merges(txn, number, document_id, _merges_after(case))
            revision = outcome(txn.stamp)
            if revision is not None:
                documents.put_revision(txn, number, document_id, revision)
                remotes.forget_revision(txn, number, document_id, revision.id, but_of=sender)
            bases.keep_merged(txn, number, document_id, case.remote)
            bases.drop_unneeded(txn, number, document_id)
            return True

        try:
            done = await self._link.engine.write(job)
        except BlobNotFoundError as exc:
            raise _no_valid_body(case.document_id) from exc
        if done:
            self._link.journal.resolved(
                self._link.collection, document_id, deleted=case.remote.deleted
            )
        return done

    async def _outcome(self, case: _Case) -> Outcome:
        remote = case.remote
        ours = case.local.revision if case.local else None
        match judge_arrival(ours, remote):
            case Arrival.STORE:
                return lambda _: supersede(ours, remote)
            case Arrival.HELD:
                return lambda _: None
        assert case.local is not None
        assert ours is not None
        winner = winner_alone(ours, remote)
        if winner is not None:
            kept, other = (ours, remote) if winner is ours else (remote, ours)
            return lambda stamp: keep(kept, other, stamp)
        conflict = self._conflict(case, case.local)
        if _merges_after(case) > limits.MERGES_OF_MERGES_MAX:
            resolution = default_conflict_resolver(conflict)
            assert not inspect.isawaitable(resolution)
        else:
            resolution = await self._ask(conflict)
        body, deleted = self._decided(conflict, resolution)
        return lambda stamp: carry_out(ours, remote, body, deleted, stamp)

    def _conflict(self, case: _Case, local: Stored) -> Conflict:
        def side(revision: Revision | None) -> Document | None:
            if revision is None or revision.deleted:
                return None
            stored = Stored(revision, local.sequence)
            return Document(case.document_id, stored, self._link.collection)

        return Conflict(case.document_id, side(local.revision), side(case.remote), side(case.base))

    async def _ask(self, conflict: Conflict) -> Resolution:
        try:
            resolution = self._resolver(conflict)
            if inspect.isawaitable(resolution):
                resolution = await resolution
        except (Exception, BaseExceptionGroup) as exc:  # The guard around the user's function.
            failure = failure_of(exc)
            if failure is None:
                raise
            raise CallbackError(
                "the conflict resolver failed", document_id=conflict.document_id
            ) from failure
        return resolution

    def _decided(self, conflict: Conflict, resolution: Resolution) -> tuple[bytes, bool]:
        """The body that was decided on, and whether it is a deletion. Raises CallbackError."""
        if resolution is None:
            return EMPTY_BODY, True
        if isinstance(resolution, Document):
            if resolution.id != conflict.document_id:
                raise CallbackError(
                    "the conflict resolver returned another document",
                    document_id=conflict.document_id,
                    returned=resolution.id,
                )
            if resolution.collection is not self._link.collection:
                raise CallbackError(
                    "the conflict resolver returned a document of another collection",
                    document_id=conflict.document_id,
                    returned=resolution.collection.full_name,
                )
            return resolution.revision.body, resolution.deleted
        try:
            return encode_body(resolution, reserved=_RESERVED), False
        except (InvalidDocumentError, BlobNotFoundError) as exc:
            raise _no_valid_body(conflict.document_id) from exc


def _merges_after(case: _Case) -> int:
    """How often in a row merges of the document were merged, once this conflict is resolved."""
    if case.local is None or not merges_merges(case.local.revision, case.remote):
        return 0
    return case.merges + 1


def _no_valid_body(document_id: DocumentID) -> CallbackError:
    return CallbackError("the conflict resolver returned no valid body", document_id=document_id)
