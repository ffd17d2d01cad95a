"""The user's filters: which documents go over."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

import trio

from trio_p2p import limits
from trio_p2p.callbacks import failure_of
from trio_p2p.errors import CallbackError
from trio_p2p.ids import DocumentID
from trio_p2p.model.document import Document, StoredRevision
from trio_p2p.replication.status import DocumentFlags
from trio_p2p.store.database import Collection

ReplicationFilter = Callable[[Document, DocumentFlags], bool | Awaitable[bool]]
"""Whether a document goes over; sync or async. For a tombstone, the document's body is empty."""


class Filter:
    """A filter of one collection, with a guard around the user's function."""

    def __init__(self, function: ReplicationFilter, collection: Collection) -> None:
        self._function = function
        self._collection = collection

    def ask(self, document_id: DocumentID, stored: StoredRevision) -> bool | Awaitable[bool]:
        """Whether a revision goes over, or if the function is async, what tells that.

        What tells it raises CallbackError if the function raises or takes longer than a minute.

        Raises: CallbackError.
        """
        verdict = self._call(document_id, stored)
        if inspect.isawaitable(verdict):
            return _awaited(verdict, document_id)
        return bool(verdict)

    def ask_now(self, document_id: DocumentID, stored: StoredRevision) -> bool | None:
        """Whether a revision goes over; None if only waiting could tell. Raises: CallbackError."""
        verdict = self._call(document_id, stored)
        if not inspect.isawaitable(verdict):
            return bool(verdict)
        if inspect.iscoroutine(verdict):
            verdict.close()  # Or Python would complain that nobody awaited it.
        return None

    def _call(self, document_id: DocumentID, stored: StoredRevision) -> bool | Awaitable[bool]:
        document = Document(document_id, stored, self._collection)
        flags = DocumentFlags.DELETED if stored.deleted else DocumentFlags.NONE
        try:
            return self._function(document, flags)
        except Exception as exc:  # The guard around the user's function.
            raise _failure(document_id) from exc


async def _awaited(verdict: Awaitable[bool], document_id: DocumentID) -> bool:
    try:
        with trio.fail_after(limits.FILTER_TIMEOUT_S):
            return bool(await verdict)
    except (Exception, BaseExceptionGroup) as exc:  # The guard around the user's function.
        failure = failure_of(exc)
        if failure is None:
            raise
        raise _failure(document_id) from failure


def _failure(document_id: DocumentID) -> CallbackError:
    """What fails a document for now: it is asked about again."""
    error = CallbackError("a filter failed", document_id=document_id)
    error.retryable = True
    return error
