"""Revisions that go as what changed since another revision, which the receiver holds.

A receiver that cannot make the body of a revision from a delta, because it does not hold the base
any more or the outcome is no body, says so; the sender then sends the body, without another offer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from trio_p2p import limits
from trio_p2p.errors import DeltaError
from trio_p2p.model.codec import body_to_json
from trio_p2p.model.delta import body_delta, patch_body
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.version import RevisionID
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import Delta, RevisionOutcome, SentRevision
from trio_p2p.store import bases
from trio_p2p.store.transaction import ReadTransaction

STATUS_UNPROCESSABLE: Final = 422
"""The answer to a delta that does not yield a body: the body is to be sent."""

_ATTACHMENTS_JSON: Final = b'"_attachments"'

OnRestored = Callable[[SentRevision, RevisionOutcome | None], None]
"""Told once: the revision with its body, or as it came and what failed. It must not block."""


def find_base(
    txn: ReadTransaction, link: Link, sent: SentRevision, held: Iterable[RevisionID]
) -> Revision | None:
    """What a delta can start from: the first of those `held` by the receiver that is here too."""
    if sent.revision.deleted or not link.profile.deltas_wanted:
        return None
    for revision_id in held:
        if revision_id == sent.revision.id:
            # Who wants what it says to have does not have it.
            continue
        base = bases.get(txn, link.number, sent.document_id, revision_id)
        if base is not None and not base.deleted and base.body != EMPTY_BODY:
            return base
    return None


def make(base: Revision, revision: Revision) -> Delta | None:
    """The delta from one revision to the other, if it is worth sending. Fit for another thread."""
    whole_bytes = len(body_to_json(revision.body))
    if whole_bytes < limits.DELTA_BODY_BYTES_MIN:
        return None
    content = body_delta(base.body, revision.body)
    if _ATTACHMENTS_JSON in content:
        # Peers that know only these have lists in them that are no part of the document.
        return None
    saved = whole_bytes - len(content)
    return Delta(base.id, content, saved) if saved > 0 else None


class Restorer:
    """Makes the bodies of revisions that came with deltas, for one collection of one session."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: deque[tuple[SentRevision, Delta, OnRestored]] = deque()
        self._working = False
        self._held_bytes = 0

    @property
    def backlog(self) -> int:
        """Revisions that are yet to get their bodies."""
        return len(self._waiting) + self._working

    def restore(self, sent: SentRevision, delta: Delta, on_restored: OnRestored) -> None:
        """Make the body of a revision: now, or later in another thread if that may take long.

        The body is held until `release` is called.
        """
        try:
            base = self._base(sent, delta)
            is_large = len(base.body) + len(delta.content) > limits.DELTA_BYTES_IN_PLACE_MAX
            if is_large or self.backlog or not self._has_room():
                # Without the base, which is read again: small deltas may start from large ones.
                self._waiting.append((sent, delta, on_restored))
                self._link.pulse.notify()
                return
            restored = _restored(sent, delta, base)
        except DeltaError as exc:
            on_restored(sent, _failure(exc))
        else:
            self._hold(restored, on_restored)

    def release(self, restored: SentRevision) -> None:
        """A revision that was restored is stored, or failed to be."""
        self._held_bytes -= len(restored.revision.body)
        if self._waiting:
            self._link.pulse.notify()

    async def run(self) -> None:
        """Make those that wait, one by one, for ever. Cancelling: safe."""
        while True:
            await self._link.pulse.until(lambda: bool(self._waiting) and self._has_room())
            sent, delta, on_restored = self._waiting.popleft()
            self._working = True
            try:
                base = self._base(sent, delta)
                restored = await self._link.engine.run_aside(_restored, sent, delta, base)
            except DeltaError as exc:
                self._working = False
                on_restored(sent, _failure(exc))
            else:
                self._working = False
                self._hold(restored, on_restored)

    def _has_room(self) -> bool:
        return self._held_bytes < limits.DELTA_BODIES_BYTES_MAX

    def _hold(self, restored: SentRevision, on_restored: OnRestored) -> None:
        self._held_bytes += len(restored.revision.body)
        on_restored(restored, None)

    def _base(self, sent: SentRevision, delta: Delta) -> Revision:
        if not self._link.profile.deltas_taken:
            raise DeltaError("deltas were not announced")
        with self._link.engine.read() as txn:
            base = bases.get(txn, self._link.number, sent.document_id, delta.base)
        if base is None or base.deleted:
            raise DeltaError("the base of a delta is not held", base=str(delta.base))
        return base


def _restored(sent: SentRevision, delta: Delta, base: Revision) -> SentRevision:
    body = patch_body(base.body, delta.content)
    saved = len(body_to_json(body)) - len(delta.content)
    return replace(
        sent,
        revision=replace(sent.revision, body=body),
        delta=replace(delta, bytes_saved=saved),
    )


def _failure(error: DeltaError) -> RevisionOutcome:
    return RevisionOutcome(STATUS_UNPROCESSABLE, str(error))
