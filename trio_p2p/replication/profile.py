"""What a profile does: carry typed messages over a peer.

Pusher and Puller deal in batches of typed messages and never know how a profile writes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Hashable, Sequence
from typing import Protocol

from trio_p2p.model.version import RevisionID
from trio_p2p.replication.messages import (
    CollectionsReply,
    GetAttachment,
    GetCollections,
    HeldCheckpoint,
    NoRevision,
    OfferedChange,
    OnOutcome,
    Proposal,
    ProposalAnswer,
    SentRevision,
    SubscribeChanges,
    Wanted,
)


class PendingAnswers(Protocol):
    """The answers to an offer, on their way."""

    async def wait(self) -> Sequence[Wanted | None]: ...


class IncomingAttachment(Protocol):
    """A blob on its way."""

    @property
    def start(self) -> int:
        """Where in the blob it begins, once the first part was received."""
        ...

    async def receive(self) -> bytes:
        """What came since; empty at the end. Raises PeerError, ConnectionLostError."""
        ...

    def abandon(self) -> None:
        """Drop the rest, which may still come."""
        ...


class Profile(Protocol):
    """Asks the other side. Coroutines raise PeerError for a refusal and ConnectionLostError."""

    @property
    def replacements_wanted(self) -> bool:
        """Whether the peer takes a newer revision in place of the promised one."""
        ...

    @property
    def deltas_taken(self) -> bool:
        """Whether deltas are enabled on this side."""
        ...

    @property
    def deltas_wanted(self) -> bool:
        """Whether they are enabled on both sides, as far as the peer has told."""
        ...

    async def get_collections(self, request: GetCollections) -> CollectionsReply: ...

    async def get_checkpoint(self, collection: int, client: str) -> HeldCheckpoint | None: ...

    async def set_checkpoint(
        self, collection: int, client: str, revision: str, body: bytes
    ) -> str: ...

    async def subscribe(self, request: SubscribeChanges) -> None: ...

    def offer(self, collection: int, changes: Sequence[OfferedChange]) -> PendingAnswers:
        """Queue an offer now, before whatever is queued next; its answers are waited for later."""
        ...

    async def propose(
        self, collection: int, proposals: Sequence[Proposal]
    ) -> Sequence[ProposalAnswer]: ...

    def tell_caught_up(self, collection: int) -> None:
        """Say that there is nothing (more) to offer or propose."""
        ...

    def send_revisions(
        self, collection: int, revisions: Sequence[SentRevision], on_outcome: OnOutcome
    ) -> None:
        """Queue revisions; `on_outcome` is called for each of them, once, without blocking.

        It is not called for those that are unanswered when the connection is lost.
        """
        ...

    def send_no_revision(self, message: NoRevision) -> None: ...

    def get_attachment(self, request: GetAttachment) -> IncomingAttachment:
        """Ask for a blob, which comes in parts."""
        ...

    async def send_attachment(
        self, request: GetAttachment, start: int, content: AsyncIterable[bytes]
    ) -> bool:
        """Send the content of a blob, from a place in it on, as fast as the peer takes it.

        Returns whether it went, to its end.
        """
        ...

    def hold(self, what: Hashable, size: int) -> None:
        """Count these bytes more as held for the peer until `release`."""
        ...

    def release(self, what: Hashable) -> None:
        """Nothing is held for this any more."""
        ...


def describe(revision_id: RevisionID | None) -> str:
    """A revision ID, or the empty text where there is none, as it stands in messages."""
    return "" if revision_id is None else str(revision_id)
