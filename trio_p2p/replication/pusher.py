"""The active side's sending half for one collection."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Iterable
from itertools import islice

import trio

from trio_p2p import limits
from trio_p2p.errors import CallbackError, PeerError
from trio_p2p.ids import DocumentID, Sequence
from trio_p2p.model.document import Stored
from trio_p2p.model.version import RevisionID, VersionVector
from trio_p2p.replication.checkpointer import Checkpointer
from trio_p2p.replication.filters import Filter
from trio_p2p.replication.knowledge import RemoteKnowledge
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import (
    Proposal,
    ProposalAnswer,
    RevisionOutcome,
    SentRevision,
)
from trio_p2p.replication.sender import Promise, Sender
from trio_p2p.replication.status import Direction
from trio_p2p.store import changes, conflicts, documents
from trio_p2p.store.records import ChangeRow
from trio_p2p.store.transaction import ReadTransaction

_Row = tuple[ChangeRow, RevisionID | None]
"""A change to propose, and the revision that the peer is known to have."""


class Pusher:
    """Follows the change feed, proposes what the peer lacks and sends what it wants.

    A sequence is marked as done in `done` once the peer has its revision, or need not have it. A
    document has one revision on its way at most: a newer one waits, so that it is proposed on top
    of the one before.
    """

    def __init__(
        self,
        link: Link,
        knowledge: RemoteKnowledge,
        checkpointer: Checkpointer,
        *,
        pulling: bool,
        document_ids: frozenset[str] | None,
        push_filter: Filter | None = None,
    ) -> None:
        self._filter = push_filter
        self._link = link
        self._knowledge = knowledge
        self._checkpointer = checkpointer
        self._done = done = checkpointer.checkpoint.local
        self._started_at = link.collection.last_sequence
        self._pulling = pulling
        self._document_ids = document_ids
        self._tasks: trio.Nursery | None = None
        # What was read from the feed and waits for the filter; how many documents an async one is
        # being asked about, and what their bodies take; the sequences of revisions that it let
        # pass and that are not proposed yet.
        self._unfiltered: deque[ChangeRow] = deque()
        self._judging = 0
        self._judging_bytes = 0
        self._passed: dict[DocumentID, int] = {}
        # What takes the place of a revision has not passed the filter.
        self._sender = Sender(link, may_replace=push_filter is None)
        self._cursor = Sequence(done.low_water)
        # Sequences at hand: proposed, being sent, or waiting for an earlier one of the document.
        self._on_the_way: dict[DocumentID, int] = {}
        self._next: dict[DocumentID, ChangeRow] = {}
        self._again: list[ChangeRow] = []
        # Refused with 409, or sure to be: done once the conflict is resolved.
        self._refused: dict[DocumentID, int] = {}
        # Those of them whose revision at the peer the pull may not bring. A dict keeps the order.
        self._unfetched: dict[DocumentID, None] = {}
        self._fetched: set[tuple[DocumentID, int]] = set()
        # Failed for now, to be proposed again later.
        self._failed: dict[DocumentID, ChangeRow] = {}
        # Refused with 403 once: Couchbase Lite, too, tries these a second time.
        self._forbidden: set[tuple[DocumentID, int]] = set()
        self._said_anything = False
        self._limit: int | None = None

    @property
    def busy(self) -> bool:
        """Whether there is anything to propose or waiting to be answered."""
        return self._unread or bool(self._on_the_way or self._again)

    @property
    def _unread(self) -> bool:
        last = self._link.collection.last_sequence
        return self._cursor < (last if self._limit is None else min(last, self._limit))

    @property
    def _may_read(self) -> bool:
        """Whether to read on in the feed: not while the filter is behind."""
        return self._unread and not self._unfiltered

    @property
    def _may_filter(self) -> bool:
        """Whether to put more to the filter: not while it has much to do."""
        return (
            bool(self._unfiltered)
            and self._judging < limits.FILTERED_AT_ONCE_MAX
            and self._judging_bytes < limits.FILTERED_BYTES_MAX
        )

    @property
    def _may_go_on(self) -> bool:
        """Whether there is anything to filter, to read or to propose."""
        return self._may_filter or self._may_read or bool(self._again)

    @property
    def _is_silent(self) -> bool:
        """Whether there is nothing to say, and nothing was said so far."""
        return not (self._said_anything or self._refused or self.busy)

    @property
    def has_unfetched(self) -> bool:
        """Whether the peer has revisions of refused documents that are yet to be fetched."""
        return bool(self._unfetched)

    def take_unfetched(self) -> list[DocumentID]:
        """Some documents whose revisions at the peer are to be fetched, each once."""
        some = list(islice(self._unfetched, limits.FETCHED_DOCUMENTS_MAX))
        for document_id in some:
            del self._unfetched[document_id]
        with self._link.engine.read() as txn:
            taken = [
                document_id
                for document_id in some
                if document_id in self._refused
                and documents.head(txn, self._link.number, document_id)
                and not conflicts.heads(txn, self._link.number, document_id)
            ]
        self._fetched.update((document_id, self._refused[document_id]) for document_id in taken)
        return taken

    @property
    def has_failed(self) -> bool:
        """Whether there is anything for `retry_failed`."""
        return bool(self._failed)

    async def retry_failed(self) -> None:
        """Propose once more what failed for now, and wait for what becomes of it."""
        retried = {(row.document_id, row.sequence) for row in self._failed.values()}
        self._again += self._failed.values()
        self._failed.clear()
        self._link.pulse.notify()
        await self._link.pulse.until(
            lambda: (
                retried.isdisjoint(self._on_the_way.items())
                and retried.isdisjoint((row.document_id, row.sequence) for row in self._again)
            )
        )

    def go_on_with(self, document_ids: Iterable[DocumentID]) -> None:
        """Go on with documents whose revisions at the peer were fetched.

        What was made on top of those is proposed once more, and what came of them is pushed even
        by a run that is to end.
        """
        with self._link.engine.read() as txn:
            for document_id in document_ids:
                stored = documents.head(txn, self._link.number, document_id)
                if stored is None:
                    continue
                known = self._knowledge.of(txn, document_id)
                if self._refused.get(document_id) != stored.sequence:
                    if self._is_beyond(stored.sequence):
                        self._again.append(_row(document_id, stored))
                elif known is not None and stored.revision.has(known):
                    del self._refused[document_id]
                    self._again.append(_row(document_id, stored))
        self._link.pulse.notify()

    def _is_beyond(self, sequence: int) -> bool:
        """Whether the next run is to push this change, and not this one."""
        return self._limit is not None and sequence > self._limit

    def stop_at(self, sequence: int) -> None:
        """Push nothing that is written after this sequence: a one-shot run must end."""
        if self._limit is None:
            self._limit = sequence

    async def run(self) -> None:
        """Push until cancelled. Raises ConnectionLostError, or PeerError if nothing is taken."""
        in_flight = trio.Semaphore(limits.CHANGES_MESSAGES_IN_FLIGHT_MAX)
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            nursery.start_soon(self._watch)
            while True:
                await in_flight.acquire()
                rows = await self._next_rows()
                nursery.start_soon(self._push, rows, in_flight)

    async def _watch(self) -> None:
        """Wake who waits for changes of the collection when documents are written."""
        while True:
            await self._link.engine.wait_change(
                self._link.number, self._link.collection.last_sequence
            )
            self._link.pulse.notify()

    async def _next_rows(self) -> list[_Row]:
        """The next changes to propose, each with its parent; waits until there are any."""
        while True:
            while self._may_filter:
                self._filter_slice()
                await trio.lowlevel.checkpoint()
            rows = self._read_rows()
            if rows:
                self._said_anything = True
                return rows
            if self._may_go_on:
                await trio.lowlevel.checkpoint()
                continue
            if self._is_silent:
                self._link.profile.tell_caught_up(self._link.index)
                self._said_anything = True
            self._link.pulse.notify()
            await self._link.pulse.until(lambda: self._may_go_on or self._is_silent)

    def _read_rows(self) -> list[_Row]:
        """One slice of the feed, less what need not be proposed, or not before it is filtered."""
        with self._link.engine.read() as txn:
            chosen = []
            for row in self._take_again() or self._read_feed(txn):
                parent = self._knowledge.of(txn, row.document_id)
                if self._is_due(row, parent) and not self._is_conflicting(txn, row, parent):
                    self._on_the_way[row.document_id] = row.sequence
                    if self._has_passed(row):
                        chosen.append((row, parent))
                    else:
                        self._unfiltered.append(row)
        self._link.journal.offered(len(chosen))
        return chosen

    def _take_again(self) -> list[ChangeRow]:
        """What was read from the feed before."""
        taken = self._again[: limits.CHANGES_PER_MESSAGE_MAX]
        del self._again[: len(taken)]
        return taken

    def _read_feed(self, txn: ReadTransaction) -> list[ChangeRow]:
        if not self._may_read:
            return []
        rows, end = changes.read_since(
            txn, self._link.number, self._cursor, limits.CHANGES_PER_MESSAGE_MAX
        )
        if self._is_beyond(end):
            assert self._limit is not None
            end = Sequence(self._limit)
            rows = [row for row in rows if not self._is_beyond(row.sequence)]
        # Sequences that are missing from the feed were superseded by later ones of their document.
        start = self._cursor + 1
        for row in rows:
            self._done.add_range(start, row.sequence)
            start = row.sequence + 1
        self._done.add_range(start, end + 1)
        self._cursor = end
        return rows

    def _is_due(self, row: ChangeRow, known: RevisionID | None) -> bool:
        """Whether to propose this change now. Marks as done what need not be proposed at all."""
        superseded = self._refused.get(row.document_id)
        failed = self._failed.get(row.document_id)
        if row == failed or row.sequence in (self._on_the_way.get(row.document_id), superseded):
            return False
        if superseded is not None:
            self._done.add(superseded)
            del self._refused[row.document_id]
        if failed is not None:
            self._done.add(failed.sequence)
            del self._failed[row.document_id]
        if row.sequence in self._done:
            return False
        if self._document_ids is not None and row.document_id not in self._document_ids:
            self._done.add(row.sequence)
            return False
        if self._is_echo(row, known):
            self._done.add(row.sequence)
            return False
        if row.document_id in self._on_the_way:
            earlier = self._next.get(row.document_id)
            if earlier is not None:
                self._done.add(earlier.sequence)
            self._next[row.document_id] = row
            return False
        return True

    def _is_conflicting(
        self, txn: ReadTransaction, row: ChangeRow, known: RevisionID | None
    ) -> bool:
        """Whether the peer's revision waits for our resolver: ours is sure to be refused."""
        if not self._pulling or known is None:
            return False
        if not conflicts.heads(txn, self._link.number, row.document_id):
            return False
        stored = documents.head(txn, self._link.number, row.document_id)
        if stored is None or stored.revision.has(known):
            return False
        self._refused[row.document_id] = row.sequence
        return True

    def _is_echo(self, row: ChangeRow, known: RevisionID | None) -> bool:
        """Whether the peer has this very revision: recognised by version, never by document.

        What an earlier session learned counts as far as the peer's checkpoint vouches for it: the
        peer may have lost what it had after that. What it learned of a revision that is stored anew
        was forgotten then.
        """
        if known != row.revision_id:
            return False
        return (
            row.sequence <= self._checkpointer.seen
            or row.sequence > self._started_at
            or self._knowledge.is_fresh(row.document_id)
        )

    # --- The filter ------------------------------------------------------------------------------

    def _has_passed(self, row: ChangeRow) -> bool:
        """Whether the filter let this revision pass, if there is one. Asked once."""
        return self._filter is None or self._passed.pop(row.document_id, 0) == row.sequence

    def _filter_slice(self) -> None:
        """Put some of what was read to the filter; less if it is large, which takes it longer."""
        found: list[tuple[ChangeRow, Stored | None]] = []
        room_rows = min(limits.SCAN_SLICE_ROWS, limits.FILTERED_AT_ONCE_MAX - self._judging)
        room_bytes = limits.SCAN_SLICE_BYTES
        with self._link.engine.read() as txn:
            while self._unfiltered and room_rows > 0 and room_bytes > 0:
                row = self._unfiltered.popleft()
                stored = documents.get(txn, self._link.number, row.document_id)
                found.append((row, stored))
                room_rows -= 1
                room_bytes -= 0 if stored is None else len(stored.body)
        for row, stored in found:
            self._ask_filter(row, stored)

    def _ask_filter(self, row: ChangeRow, stored: Stored | None) -> None:
        assert self._filter is not None
        assert self._tasks is not None
        if stored is None or stored.sequence != row.sequence:
            # A newer revision has taken its place, with a sequence of its own.
            self._finish(row.document_id, row.sequence, done=True)
            return
        try:
            verdict = self._filter.ask(row.document_id, stored)
        except CallbackError as exc:
            self._judged(row, exc)
            return
        if isinstance(verdict, bool):
            self._judged(row, verdict)
        else:
            body_bytes = len(stored.body)
            self._judging += 1
            self._judging_bytes += body_bytes
            self._tasks.start_soon(self._await_verdict, row, verdict, body_bytes)

    async def _await_verdict(
        self, row: ChangeRow, verdict: Awaitable[bool], body_bytes: int
    ) -> None:
        judged: bool | CallbackError
        try:
            judged = await verdict
        except CallbackError as exc:
            judged = exc
        self._judging -= 1
        self._judging_bytes -= body_bytes
        self._judged(row, judged)
        if self._may_filter and self._judging <= limits.FILTERED_AT_ONCE_MAX // 2:
            self._link.pulse.notify()

    def _judged(self, row: ChangeRow, verdict: bool | CallbackError) -> None:
        document_id = row.document_id
        match verdict:
            case True:
                # To be proposed, unless a newer one has been read meanwhile.
                self._passed[document_id] = row.sequence
                self._next.setdefault(document_id, row)
                self._finish(document_id, row.sequence, done=False)
            case False:
                self._finish(document_id, row.sequence, done=True)
            case error:
                collection = self._link.collection
                self._link.journal.failed(
                    Direction.PUSH, collection, document_id, error, deleted=row.deleted
                )
                self._failed[document_id] = row
                self._finish(document_id, row.sequence, done=False)

    # --- Proposing and sending -------------------------------------------------------------------

    async def _push(self, rows: Iterable[_Row], in_flight: trio.Semaphore) -> None:
        """Propose a batch and send what is wanted of it."""
        wanted: list[Promise] = []
        for _ in range(limits.PROPOSE_ATTEMPTS_MAX):
            proposals = [_proposal(row, parent) for row, parent in rows]
            answers = await self._link.profile.propose(self._link.index, proposals)
            again: list[_Row] = []
            for (row, parent), answer in zip(rows, answers, strict=True):
                if answer.status == 0:
                    held = () if parent is None else (parent,)
                    promise = Promise(row.document_id, row.revision_id, str(row.sequence), held)
                    wanted.append(promise)
                elif (better := self._better_parent(row, answer)) is not None:
                    again.append((row, better))
                else:
                    self._answered(row, answer)
            rows = again
            if not rows:
                break
        for row, _ in rows:
            self._answered(row, ProposalAnswer(409))
        in_flight.release()
        await self._sender.send(wanted, self._settled)
        self._link.pulse.notify()

    def _better_parent(self, row: ChangeRow, answer: ProposalAnswer) -> RevisionID | None:
        """After a conflict: the peer's revision, if ours was made on top of it after all."""
        if answer.status != 409 or answer.current is None:
            return None
        current = answer.current
        theirs = current.current if isinstance(current, VersionVector) else current
        with self._link.engine.read() as txn:
            stored = documents.head(txn, self._link.number, row.document_id)
        if stored is None or stored.sequence != row.sequence:
            return None
        if not stored.revision.has(theirs):
            return None
        self._knowledge.note(row.document_id, theirs)
        return theirs

    def _answered(self, row: ChangeRow, answer: ProposalAnswer) -> None:
        """Nothing is to be sent for this proposal."""
        journal = self._link.journal
        if answer.status == 304:
            self._knowledge.note(row.document_id, row.revision_id)
            journal.settled()
            self._finish(row.document_id, row.sequence, done=True)
            return
        if answer.status == 409:
            self._refuse(row.document_id, row.sequence)
            if self._pulling:
                # The pull brings what it conflicts with, and the resolver decides.
                journal.settled()
                self._finish(row.document_id, row.sequence, done=False)
                return
        error = PeerError("HTTP", answer.status, "the proposed revision was refused")
        collection = self._link.collection
        journal.failed(Direction.PUSH, collection, row.document_id, error, deleted=row.deleted)
        if error.retryable:
            self._failed[row.document_id] = row
        self._finish(
            row.document_id, row.sequence, done=answer.status != 409 and not error.retryable
        )

    def _settled(
        self, promise: Promise, sent: SentRevision | None, outcome: RevisionOutcome
    ) -> None:
        """The fate of a revision the peer wanted is known."""
        journal, collection = self._link.journal, self._link.collection
        document_id, sequence = promise.document_id, int(promise.sequence)
        if sent is None:
            # Its document changed meanwhile: the newer revision has a sequence of its own.
            journal.settled()
            self._finish(document_id, sequence, done=True)
        elif outcome.failed:
            if self._may_try_again(document_id, sequence, outcome):
                journal.settled()
                self._finish(document_id, sequence, done=False)
                self._again.append(_row(document_id, Stored(sent.revision, Sequence(sequence))))
                return
            waits = outcome.status == 409
            if waits:
                self._refuse(document_id, sequence)
            if outcome.retryable:
                stored = Stored(sent.revision, Sequence(sequence))
                self._failed[document_id] = _row(document_id, stored)
            if waits and self._pulling:
                # As of a proposal that was answered so: the resolver decides.
                journal.settled()
            else:
                error, deleted = outcome.error(), sent.revision.deleted
                journal.failed(Direction.PUSH, collection, document_id, error, deleted=deleted)
            self._finish(document_id, sequence, done=not (waits or outcome.retryable))
        else:
            self._knowledge.note(document_id, sent.revision.id)
            if outcome.status:
                journal.settled()
            else:
                journal.stored(Direction.PUSH, collection, document_id, sent.revision.deleted)
            self._finish(document_id, sequence, done=True)

    def _may_try_again(
        self, document_id: DocumentID, sequence: int, outcome: RevisionOutcome
    ) -> bool:
        """Whether to send a revision a second time after it was refused with 403."""
        place = (document_id, sequence)
        if outcome.status != 403 or place in self._forbidden:
            self._forbidden.discard(place)
            return False
        self._forbidden.add(place)
        return True

    def _refuse(self, document_id: DocumentID, sequence: int) -> None:
        """The peer has a revision that this one conflicts with."""
        place = (document_id, sequence)
        if self._pulling and place not in self._fetched and not self._is_beyond(sequence):
            self._unfetched[document_id] = None
        self._refused[document_id] = sequence

    def _finish(self, document_id: DocumentID, sequence: int, *, done: bool) -> None:
        """This revision is not on its way any more; a newer one of its document may go."""
        if not done and self._is_superseded(document_id, sequence):
            # The change that took its place was read before the refusal came.
            self._refused.pop(document_id, None)
            self._failed.pop(document_id, None)
            done = True
        if done:
            self._done.add(sequence)
        self._on_the_way.pop(document_id, None)
        following = self._next.pop(document_id, None)
        if following is not None:
            self._again.append(following)
        if following is not None or not self._on_the_way:
            self._link.pulse.notify()

    def _is_superseded(self, document_id: DocumentID, sequence: int) -> bool:
        with self._link.engine.read() as txn:
            stored = documents.head(txn, self._link.number, document_id)
        return stored is None or stored.sequence != sequence


def _row(document_id: DocumentID, stored: Stored) -> ChangeRow:
    revision = stored.revision
    return ChangeRow(
        stored.sequence, document_id, revision.id, revision.deleted, len(revision.body)
    )


def _proposal(row: ChangeRow, parent: RevisionID | None) -> Proposal:
    return Proposal(
        row.document_id, row.revision_id, parent, None if row.deleted else row.body_bytes
    )
