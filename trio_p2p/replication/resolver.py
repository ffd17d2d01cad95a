"""Asks the user's resolver what becomes of conflicts: active side only, off the receiving path."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from trio_p2p import limits
from trio_p2p.errors import (
    BlobNotFoundError,
    CallbackError,
    ConflictError,
    InvalidDocumentError,
    TrioP2PError,
)
from trio_p2p.ids import DocumentID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import (
    Arrival,
    Conflict,
    ConflictResolver,
    Resolution,
    judge_arrival,
    keep,
    merge_revisions,
    supersede,
    winner_alone,
)
from trio_p2p.model.document import EMPTY_BODY, Document, Revision, Stored
from trio_p2p.model.version import Version
from trio_p2p.replication.link import Link
from trio_p2p.replication.status import Direction
from trio_p2p.store import bases, conflicts, documents
from trio_p2p.store.transaction import WriteTransaction

Outcome = Callable[[Callable[[], Version]], Revision | None]
"""Given a stamp for new versions, the revision to store, or None if there is nothing to."""


class Resolver:
    """Resolves the conflicts of one collection, one document at a time.

    A conflict whose resolver fails stays in the store and is asked about at the next start.
    """

    def __init__(self, link: Link, resolver: ConflictResolver) -> None:
        self._link = link
        self._resolver = resolver
        # A dict keeps the order, and each document once.
        self._waiting: dict[DocumentID, None] = {}
        self._working = False

    @property
    def busy(self) -> bool:
        """Whether conflicts are still to be resolved."""
        return self._working or bool(self._waiting)

    def add(self, document_id: DocumentID) -> None:
        """A conflict of this document was stored."""
        self._waiting[document_id] = None
        self._link.pulse.notify()

    def find_existing(self) -> None:
        """Queue the conflicts that an earlier run left."""
        after: DocumentID | None = None
        while True:
            with self._link.engine.read() as txn:
                found = conflicts.documents(txn, self._link.number, after, limits.SCAN_SLICE_ROWS)
            if not found:
                return
            self._waiting.update(dict.fromkeys(found))
            after = found[-1]

    async def run(self) -> None:
        """Resolve for ever. Cancelling: a conflict not yet resolved stays in the store."""
        while True:
            await self._link.pulse.until(lambda: bool(self._waiting))
            document_id = next(iter(self._waiting))
            del self._waiting[document_id]
            self._working = True
            try:
                await self._resolve(document_id)
            except TrioP2PError as exc:
                self._link.journal.failed(Direction.PULL, self._link.collection, document_id, exc)
            finally:
                self._working = False
                self._link.pulse.notify()

    async def _resolve(self, document_id: DocumentID) -> None:
        """Resolve every conflict of one document, again where it changed meanwhile."""
        for _ in range(limits.RESOLVE_ATTEMPTS_MAX):
            with self._link.engine.read() as txn:
                local = documents.get(txn, self._link.number, document_id)
                remotes = conflicts.of_document(txn, self._link.number, document_id)
            if not remotes:
                return
            await self._resolve_one(document_id, local, remotes[0])
        raise ConflictError(
            "the document kept changing while its conflict was resolved",
            expected=None,
            current=None,
            document_id=document_id,
        )

    async def _resolve_one(
        self, document_id: DocumentID, local: Stored | None, remote: Revision
    ) -> None:
        outcome = await self._outcome(document_id, local, remote)

        def job(txn: WriteTransaction) -> bool:
            current = documents.head(txn, self._link.number, document_id)
            if (current and current.sequence) != (local and local.sequence):
                return False
            conflicts.remove(txn, self._link.number, document_id, remote.version)
            revision = outcome(txn.stamp)
            if revision is not None:
                documents.put_revision(txn, self._link.number, document_id, revision)
            bases.keep_merged(txn, self._link.number, document_id, remote)
            bases.drop_unneeded(txn, self._link.number, document_id)
            return True

        if await self._link.engine.write(job):
            self._link.journal.resolved()

    async def _outcome(
        self, document_id: DocumentID, local: Stored | None, remote: Revision
    ) -> Outcome:
        match judge_arrival(local.revision if local else None, remote):
            case Arrival.STORE:
                return lambda _: supersede(local.revision if local else None, remote)
            case Arrival.HELD:
                return lambda _: None
        assert local is not None
        ours = local.revision
        winner = winner_alone(ours, remote)
        if winner is None:
            conflict = self._conflict(document_id, local, remote)
            body, deleted = _encoded(conflict, await self._ask(conflict))
            same = [r for r in (ours, remote) if _says(r, body, deleted)]
            if not same:
                return lambda stamp: merge_revisions(ours, remote, body, deleted, stamp())
            winner = max(same, key=lambda revision: revision.version)
        kept, other = (ours, remote) if winner is ours else (remote, ours)
        return lambda stamp: keep(kept, other, stamp)

    def _conflict(self, document_id: DocumentID, local: Stored, remote: Revision) -> Conflict:
        collection = self._link.collection
        with self._link.engine.read() as txn:
            base = bases.common(txn, self._link.number, document_id, local.revision, remote)

        def side(revision: Revision | None) -> Document | None:
            if revision is None or revision.deleted:
                return None
            return Document(document_id, Stored(revision, local.sequence), collection)

        return Conflict(document_id, side(local.revision), side(remote), side(base))

    async def _ask(self, conflict: Conflict) -> Resolution:
        try:
            resolution = self._resolver(conflict)
            if inspect.isawaitable(resolution):
                resolution = await resolution
        except Exception as exc:  # The guard around the user's function.
            raise CallbackError(
                "the conflict resolver failed", document_id=conflict.document_id
            ) from exc
        return resolution


def _encoded(conflict: Conflict, resolution: Resolution) -> tuple[bytes, bool]:
    """The body that was decided on, and whether it is a deletion. Raises CallbackError."""
    if resolution is None:
        return EMPTY_BODY, True
    if isinstance(resolution, Document):
        return resolution.revision.body, resolution.deleted
    try:
        return encode_body(resolution), False
    except (InvalidDocumentError, BlobNotFoundError) as exc:
        raise CallbackError(
            "the conflict resolver returned no valid body", document_id=conflict.document_id
        ) from exc


def _says(revision: Revision, body: bytes, deleted: bool) -> bool:
    """Whether the revision already says what was decided, so that it can be kept."""
    return revision.deleted == deleted and (deleted or revision.body == body)
