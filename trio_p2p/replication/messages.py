"""What peers say to each other, as values: independent of how a profile writes it.

A *request* is answered by its *reply* or by a `Refusal`. Collections are named by their index in
the list that opened the session. Sequences of the other side are opaque JSON texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from trio_p2p.errors import PeerError
from trio_p2p.ids import DocumentID
from trio_p2p.model.document import Revision
from trio_p2p.model.version import RevisionID, VersionVector

RemoteSequence = str


@dataclass(frozen=True, slots=True)
class HeldCheckpoint:
    """A checkpoint that the passive side holds for us: its revision there, and a JSON object."""

    revision: str
    body: bytes


@dataclass(frozen=True, slots=True)
class GetCollections:
    """Opens a session: the collections to replicate and the checkpoint kept for each."""

    names: tuple[str, ...]
    checkpoint_ids: tuple[str, ...]
    database_id: UUID | None


@dataclass(frozen=True, slots=True)
class CollectionsReply:
    """For each collection its checkpoint (revision "" if none), or None where it is unknown."""

    checkpoints: tuple[HeldCheckpoint | None, ...]
    database_id: UUID | None


@dataclass(frozen=True, slots=True)
class GetCheckpoint:
    """Asks for a checkpoint; the reply is a HeldCheckpoint, or a refusal with 404."""

    collection: int
    client: str


@dataclass(frozen=True, slots=True)
class SetCheckpoint:
    """Replaces the checkpoint of this revision; the reply is CheckpointSaved, or 409."""

    collection: int
    client: str
    revision: str
    body: bytes


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """The revision the checkpoint has now."""

    revision: str


@dataclass(frozen=True, slots=True)
class SubscribeChanges:
    """Asks the passive side to offer its changes; answered by Accepted."""

    collection: int
    since: RemoteSequence | None
    continuous: bool
    batch: int
    active_only: bool
    document_ids: tuple[str, ...] | None
    channels: tuple[str, ...] | None = None
    """Sync Gateway's: only what is in one of them."""
    filter: str | None = None
    """The name of a filter that is asked for."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The empty reply."""


@dataclass(frozen=True, slots=True)
class OfferedChange:
    """A change in the feed of the passive side."""

    sequence: RemoteSequence
    document_id: DocumentID
    revision_id: RevisionID
    deleted: bool = False
    body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class OfferChanges:
    """The passive side offers changes; none at all tells that it has caught up.

    None among them stands for one of a document that cannot be stored here: no such ID is valid.
    """

    collection: int
    changes: tuple[OfferedChange | None, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answer "send it": with the revisions of the document that are held already."""

    ancestors: tuple[RevisionID, ...] = ()


@dataclass(frozen=True, slots=True)
class OffersReply:
    """For each offered change: Wanted, or None where it is not."""

    answers: tuple[Wanted | None, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A revision the active side wants to send; `parent` is what it thinks the other side has."""

    document_id: DocumentID
    revision_id: RevisionID
    parent: RevisionID | None
    body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ProposeChanges:
    """The active side proposes revisions."""

    collection: int
    proposals: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class ProposalAnswer:
    """0 send it, 304 held already, 409 conflict (with the current revision), others refused.

    `current` is told as a vector where there is room for it; what is read of it is its ID.
    """

    status: int
    current: VersionVector | RevisionID | None = None


@dataclass(frozen=True, slots=True)
class ProposalsReply:
    """One answer for each proposal, in order."""

    answers: tuple[ProposalAnswer, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """A body told as what changed since a base: another revision, which the receiver holds.

    `content` is in the profile's form, and by `bytes_saved` shorter than the body would be.
    """

    base: RevisionID
    content: bytes
    bytes_saved: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class SentRevision:
    """A revision on its way. `replaced` names the promised one that it stands in for.

    What arrives with a `delta` is without its body until that is made from it.
    """

    document_id: DocumentID
    sequence: RemoteSequence
    revision: Revision
    replaced: RevisionID | None = None
    delta: Delta | None = None


@dataclass(frozen=True, slots=True)
class SendRevisions:
    """Revisions that were wanted."""

    collection: int
    revisions: tuple[SentRevision, ...]


@dataclass(frozen=True, slots=True)
class RevisionOutcome:
    """What became of one sent revision: stored (0), held already (304), or an error status."""

    status: int = 0
    text: str = ""
    retryable: bool = False

    @property
    def failed(self) -> bool:
        return self.status not in (0, 304)

    def error(self, *, ours: bool = False) -> PeerError:
        """For its user: whether it is tried again is told by the outcome, not by its status.

        `ours`: it is of a revision that came from the peer.
        """
        error = PeerError("HTTP", self.status, self.text, ours=ours)
        error.retryable = error.network_dependent = self.retryable
        return error


@dataclass(frozen=True, slots=True)
class RevisionsReply:
    """One outcome for each revision, in order."""

    outcomes: tuple[RevisionOutcome, ...]


@dataclass(frozen=True, slots=True)
class NoRevision:
    """A promised revision will not come. Not answered."""

    collection: int
    document_id: DocumentID
    revision_id: RevisionID | None
    sequence: RemoteSequence
    status: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class GetAttachment:
    """Asks for a blob, from a place in it on; the reply is its content, in parts.

    `document_id` is that of a document which names it. `compress`: it is worth compressing.
    `answer_to` is what the profile knows this request by.
    """

    collection: int
    sha1: bytes
    document_id: str
    compress: bool = False
    start: int = 0
    answer_to: int = 0


@dataclass(frozen=True, slots=True)
class ProveAttachment:
    """Asks to prove that a blob is held; the reply is an AttachmentProof."""

    collection: int
    sha1: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class AttachmentProof:
    """The SHA-1 of the nonce's length, the nonce and the content, as a digest."""

    digest: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in place of a reply."""

    status: int
    text: str = ""
    domain: str = "HTTP"


Request = (
    GetCollections
    | GetCheckpoint
    | SetCheckpoint
    | SubscribeChanges
    | OfferChanges
    | ProposeChanges
    | SendRevisions
    | NoRevision
    | GetAttachment
    | ProveAttachment
)
Reply = (
    CollectionsReply
    | HeldCheckpoint
    | CheckpointSaved
    | Accepted
    | OffersReply
    | ProposalsReply
    | RevisionsReply
    | AttachmentProof
    | Refusal
)
Respond = Callable[[Reply], None]
"""Answers one request; call it once, at any time. It does not block."""

Handler = Callable[[Request, Respond], None]
OnOutcome = Callable[[SentRevision, RevisionOutcome], None]
