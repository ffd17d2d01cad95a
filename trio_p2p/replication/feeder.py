"""Offers the changes of one collection to a peer that subscribed to them."""

from __future__ import annotations

import logging
import re

import trio

from trio_p2p import limits
from trio_p2p.ids import Sequence
from trio_p2p.replication.link import Link
from trio_p2p.replication.messages import (
    OfferedChange,
    RevisionOutcome,
    SentRevision,
    SubscribeChanges,
)
from trio_p2p.replication.profile import PendingAnswers
from trio_p2p.replication.sender import Promise, Sender
from trio_p2p.replication.status import Direction
from trio_p2p.store import changes
from trio_p2p.store.records import ChangeRow

logger = logging.getLogger(__name__)

_SEQUENCE = re.compile(r"[0-9]{1,19}", re.ASCII)


class Feeder:
    """The passive side's sending half for one collection: follows its change feed."""

    def __init__(self, link: Link, request: SubscribeChanges) -> None:
        self._link = link
        self._continuous = request.continuous
        # Who begins with an empty database wants no tombstones from before; later ones tell of
        # deletions of what it has by then.
        self._live_until = link.collection.last_sequence if request.active_only else 0
        self._document_ids = None if request.document_ids is None else set(request.document_ids)
        self._batch = min(
            request.batch or limits.CHANGES_PER_MESSAGE_MAX, limits.CHANGES_PER_MESSAGE_MAX
        )
        # Only sequences that we gave ourselves come back; anything else means from the beginning.
        since = request.since or ""
        self._cursor = Sequence(int(since) if _SEQUENCE.fullmatch(since) else 0)
        if self._cursor > link.collection.last_sequence:
            logger.warning(
                "%s has %d changes in %s, and a peer got %d: it was rolled back, and starts over",
                link.engine.path,
                link.collection.last_sequence,
                link.collection.full_name,
                self._cursor,
            )
            self._cursor = Sequence(0)
        self._sender = Sender(link)
        self._offering = 0
        self._caught_up = False
        self.ended = trio.Event()

    @property
    def held_bytes(self) -> int:
        """How many bytes the documents take that it is restricted to."""
        names = self._document_ids or ()
        return sum(map(len, names)) + len(names) * limits.SUBSCRIBED_DOCUMENT_BYTES

    @property
    def is_through(self) -> bool:
        """Whether it will offer nothing more; what is wanted may still be on its way."""
        return self._caught_up and not self._continuous

    @property
    def busy(self) -> bool:
        """Whether offers or revisions are on their way."""
        return bool(self._offering or self._sender.unanswered)

    async def run(self) -> None:
        """Offer everything since the cursor, and in a continuous subscription what follows."""
        in_flight = trio.Semaphore(limits.CHANGES_MESSAGES_IN_FLIGHT_MAX)
        async with trio.open_nursery() as nursery:
            while True:
                await in_flight.acquire()
                offered = await self._next_offers()
                if offered:
                    # Queued here, not in the task: "caught up" must come after it.
                    answers = self._link.profile.offer(self._link.index, offered)
                    self._offering += 1
                    nursery.start_soon(self._follow, offered, answers, in_flight)
                    continue
                in_flight.release()
                if not self._caught_up:
                    # Once, so that beside it a fetch can tell of its own end.
                    self._caught_up = True
                    self._link.profile.tell_caught_up(self._link.index)
                if not self._continuous:
                    break
                await self._link.engine.wait_change(self._link.number, self._cursor)
        self.ended.set()

    async def _next_offers(self) -> list[OfferedChange]:
        rows = await self._next_rows()
        self._link.journal.offered(len(rows))
        return [
            OfferedChange(
                str(row.sequence), row.document_id, row.revision_id, row.deleted, row.body_bytes
            )
            for row in rows
        ]

    async def _next_rows(self) -> list[ChangeRow]:
        """The next changes to offer; none once the feed is read to its end."""
        await trio.lowlevel.checkpoint()
        collection = self._link.collection
        while self._cursor < collection.last_sequence:
            with self._link.engine.read() as txn:
                rows, self._cursor = changes.read_since(
                    txn, collection.number, self._cursor, self._batch
                )
            chosen = [row for row in rows if self._is_wanted(row)]
            if chosen:
                return chosen
            # A peer may want one document of a million.
            await trio.lowlevel.checkpoint()
        return []

    def _is_wanted(self, row: ChangeRow) -> bool:
        if row.deleted and row.sequence <= self._live_until:
            return False
        return self._document_ids is None or row.document_id in self._document_ids

    async def _follow(
        self, offered: list[OfferedChange], pending: PendingAnswers, in_flight: trio.Semaphore
    ) -> None:
        """Wait for the answers to an offer and send what is wanted."""
        answers = await pending.wait()
        in_flight.release()
        promises = [
            Promise(change.document_id, change.revision_id, change.sequence, answer.ancestors)
            for change, answer in zip(offered, answers, strict=True)
            if answer is not None
        ]
        self._link.journal.settled(len(offered) - len(promises))
        await self._sender.send(promises, self._settled)
        self._offering -= 1

    def _settled(
        self, promise: Promise, sent: SentRevision | None, outcome: RevisionOutcome
    ) -> None:
        journal, collection = self._link.journal, self._link.collection
        if sent is not None and outcome.failed:
            journal.failed(Direction.PUSH, collection, promise.document_id, outcome.error())
        elif sent is None or outcome.status:
            journal.settled()
        else:
            deleted = sent.revision.deleted
            journal.stored(Direction.PUSH, collection, promise.document_id, deleted)
