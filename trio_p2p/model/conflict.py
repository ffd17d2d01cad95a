"""What to do when revisions meet: the verdicts on an offer, an arrival and a conflict.

Everything here is a function of values, so that the same rules run in the store's transactions,
in the sessions and in the model that the convergence tests explore.

The invariant that makes peers converge: the current version of every revision made here is the
greatest (time, source) in its vector. A conflict may therefore be settled by joining the vectors
and keeping the winner's version only where that version is the greatest of both; any other outcome
is a new revision.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

from trio_p2p import limits
from trio_p2p.ids import DocumentID
from trio_p2p.model.document import Document, Revision
from trio_p2p.model.version import Order, RevisionID, Version, VersionVector, join, merge


class ProposalStatus(IntEnum):
    """A passive peer's answers to a proposed revision; the numbers stand on the wire."""

    WANTED = 0
    HELD = 304
    CONFLICT = 409


class Arrival(Enum):
    """What becomes of a revision that arrived."""

    STORE = "store"
    HELD = "held"
    CONFLICT = "conflict"


def judge_proposal(
    current: Revision | None, proposed: RevisionID, parent: RevisionID | None
) -> ProposalStatus:
    """A passive peer's verdict: `parent` is what the proposer believes to be current here."""
    if current is None:
        return ProposalStatus.WANTED
    if current.has(proposed):
        return ProposalStatus.HELD
    if parent == current.id or revives(current, proposed, parent):
        return ProposalStatus.WANTED
    return ProposalStatus.CONFLICT


def revives(current: Revision, proposed: RevisionID, parent: RevisionID | None) -> bool:
    """Whether a peer that never knew the document wrote it anew after it was deleted here."""
    return (
        current.deleted
        and parent is None
        and isinstance(proposed, Version)
        and proposed > current.version
    )


def judge_arrival(current: Revision | None, arrived: Revision) -> Arrival:
    """The verdict on a revision with its whole vector."""
    if current is None:
        return Arrival.STORE
    match current.compare(arrived):
        case Order.OLDER:
            return Arrival.STORE
        case Order.CONFLICTING:
            return Arrival.CONFLICT
        case _:
            return Arrival.HELD


def keep(winner: Revision, loser: Revision, stamp: Callable[[], Version]) -> Revision:
    """The revision that stands when one side of a conflict was chosen.

    `stamp` makes a new version, later than every one in both vectors.
    """
    greatest = max(winner.vector.greatest(), loser.vector.greatest())
    if winner.is_legacy or winner.version != greatest:
        return merge_revisions(winner, loser, winner.body, winner.deleted, stamp())
    vector = winner.vector if loser.is_legacy else join(winner.vector, loser.vector)
    return Revision(vector, winner.body, winner.deleted, _join_trees(winner, loser))


def supersede(current: Revision | None, arrived: Revision) -> Revision:
    """What is stored in place of `current` when a newer revision arrives.

    Where a conflict was settled here by keeping one side, the vector includes the other side too,
    of which the newer revision may not know: it would seem undecided again.
    """
    if current is None or current.is_legacy or arrived.is_legacy:
        return arrived
    if arrived.vector.includes(current.vector):
        return arrived
    if arrived.version != max(arrived.vector.greatest(), current.vector.greatest()):
        return arrived  # From a peer with other rules: a joined vector would break ours.
    vector = join(arrived.vector, current.vector)
    return Revision(vector, arrived.body, arrived.deleted, arrived.trees)


def merge_revisions(
    first: Revision, second: Revision, body: bytes, deleted: bool, version: Version
) -> Revision:
    """A new revision that includes both."""
    vectors = [r.vector for r in (first, second) if not r.is_legacy]
    if len(vectors) == 2:
        vector = merge(vectors[0], vectors[1], version)
    elif vectors:
        vector = vectors[0].edited(version)
    else:
        vector = VersionVector(version)
    return Revision(vector, body, deleted, _join_trees(first, second))


def carry_out(
    first: Revision, second: Revision, body: bytes, deleted: bool, stamp: Callable[[], Version]
) -> Revision:
    """The revision that a resolver's decision comes to.

    If a side says already what was decided it is kept, of two the one with the greater version.
    """
    said = [r for r in (first, second) if r.deleted == deleted and (deleted or r.body == body)]
    if not said:
        return merge_revisions(first, second, body, deleted, stamp())
    winner = max(said, key=lambda revision: revision.version)
    return keep(winner, second if winner is first else first, stamp)


def winner_alone(local: Revision, remote: Revision) -> Revision | None:
    """The winner of a conflict that nobody needs to be asked about, or None.

    Two deletions are one deletion. Two merges of the same two versions are not put to a resolver
    again, or two peers could go on merging each other's merges: the greater version wins.
    """
    same_merge = local.vector.merged and set(local.vector.merged) == set(remote.vector.merged)
    if not same_merge and not (local.deleted and remote.deleted):
        return None
    return max(local, remote, key=lambda revision: revision.version)


def merges_merges(local: Revision, remote: Revision) -> bool:
    """Whether a merge of these would be one of merges, of which a document has a limited number.

    Where resolvers do not agree, peers could go on merging each other's merges.
    """
    return bool(local.vector.merged and remote.vector.merged)


def settle_alone(
    local: Revision, remote: Revision, stamp: Callable[[], Version]
) -> Revision | None:
    """The outcome of a conflict that nobody needs to be asked about, or None."""
    winner = winner_alone(local, remote)
    if winner is None:
        return None
    return keep(winner, remote if winner is local else local, stamp)


def _join_trees(first: Revision, second: Revision) -> tuple[Any, ...]:
    more = tuple(tree for tree in second.trees if tree not in first.trees)
    return (first.trees + more)[: limits.TREE_REVISIONS_MAX]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A conflict put to a resolver. A side that was deleted is None; never both are.

    `local` is what this peer has, `remote` what came. `base` is the last revision that both sides
    had, None where it is not known, or was a deletion.
    """

    document_id: DocumentID
    local: Document | None
    remote: Document | None
    base: Document | None = None


Resolution = Document | Mapping[str, Any] | None
ConflictResolver = Callable[[Conflict], Resolution | Awaitable[Resolution]]
"""Returns `conflict.local` or `.remote` to keep it, a mapping as the merged body, None to delete.

Where two peers may resolve the same conflict it must be deterministic and depend on the two
revisions only, not on which of them is local.
"""


def default_conflict_resolver(conflict: Conflict) -> Resolution:
    """A deletion wins, then the later timestamp, then the larger source ID."""
    if conflict.local is None or conflict.remote is None:
        return None
    return max(conflict.local, conflict.remote, key=lambda document: document.version)
