"""Random histories of peers that write and sync, played on pure values.

A history is a few peers with clocks that disagree, a few documents, local writes, and syncs whose
connection may be cut before any message. Then the peers settle: they sync without loss until
nothing changes any more. What must hold:

* a revision includes those it was made from, and its current version is the greatest in its vector;
* all peers end with the same version, body and deletion of every document;
* every local write is included in, or was decided against by, what all peers ended with.

The verdicts are those of `trio_p2p.model.conflict`; this module does around them what the inserter,
the pusher and the resolver task do, without I/O. A seed replays its history exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from random import Random
from typing import Any, TypeVar

from trio_p2p import limits
from trio_p2p.errors import ClockSkewError, ConnectionLostError
from trio_p2p.ids import DocumentID, Sequence, SourceID
from trio_p2p.model import conflict as rules
from trio_p2p.model.clock import HybridClock
from trio_p2p.model.codec import decode_body, encode_body
from trio_p2p.model.conflict import (
    Arrival,
    Conflict,
    ConflictResolver,
    ProposalStatus,
    default_conflict_resolver,
)
from trio_p2p.model.document import EMPTY_BODY, Document, Revision, Stored
from trio_p2p.model.resolvers import merge_fields
from trio_p2p.model.version import RevisionID, TreeRevisionID, Version, VersionVector

T = TypeVar("T")

_SECOND_NS = 10**9
_START_NS = 1_700_000_000 * _SECOND_NS
# Two clocks that are wrong by this much in opposite directions still accept each other's versions.
_SKEW_S_MAX = 50


# --- Resolvers that depend on the two revisions only ----------------------------------------------


def union_resolver(conflict: Conflict) -> dict[str, Any] | Document | None:
    """All fields of both; a live document beats a deletion."""
    if conflict.local is None or conflict.remote is None:
        return conflict.local or conflict.remote
    both = conflict.local.body, conflict.remote.body
    return {
        key: max((body[key] for body in both if key in body), key=_rank)
        for key in sorted({*both[0], *both[1]})
    }


def hash_resolver(conflict: Conflict) -> Document | None:
    """The body with the greater checksum, or a deletion."""
    sides = [side for side in (conflict.local, conflict.remote) if side]
    total = sum(_checksum(side) for side in sides)
    return None if total % 4 == 0 else max(sides, key=lambda side: (_checksum(side), side.version))


def older_resolver(conflict: Conflict) -> Document | None:
    """The older side; a live document beats a deletion."""
    if conflict.local is None or conflict.remote is None:
        return conflict.local or conflict.remote
    return min(conflict.local, conflict.remote, key=lambda document: document.version)


RESOLVERS: tuple[ConflictResolver, ...] = (
    default_conflict_resolver,
    merge_fields,
    union_resolver,
    hash_resolver,
    older_resolver,
)


def _rank(value: object) -> bytes:
    return encode_body({"": value})


def _checksum(document: Document) -> int:
    return zlib.crc32(document.revision.body)


# --- Peers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _NoCollection:
    name: str = "_default"
    scope: str = "_default"
    full_name: str = "_default"

    def make_blob(self, properties: Mapping[str, Any]) -> Any:
        return properties


_COLLECTION = _NoCollection()


@dataclass(slots=True, eq=False)
class _Peer:
    number: int
    source: SourceID
    clock: HybridClock
    docs: dict[DocumentID, Revision] = field(default_factory=dict)
    # What each other peer was last known to hold, by its number and the document.
    known: dict[tuple[int, DocumentID], RevisionID] = field(default_factory=dict)
    # What stood here before, as far as it was kept.
    bases: dict[DocumentID, list[Revision]] = field(default_factory=dict)
    # How often in a row it merged merges of a document.
    merges: dict[DocumentID, int] = field(default_factory=dict)

    def stamp(self) -> Version:
        return Version(self.clock.now(), self.source)


class History:
    """One history; `steps` tells afterwards what happened in it."""

    def __init__(self, random: Random, resolver: ConflictResolver | None = None) -> None:
        self._random = random
        self._resolver = resolver or random.choice(RESOLVERS)
        self._wall_ns = _START_NS
        self._loss = random.choice((0.0, 0.05, 0.2))
        self._skews_s: list[int] = []
        self._peers = [self._new_peer(number) for number in range(random.randint(2, 5))]
        self._ids = [DocumentID(name) for name in "abc"[: random.randint(1, 3)]]
        self._stores = 0
        self._written: list[tuple[DocumentID, Version]] = []
        # Every vector stored anywhere: they show which write was decided against by which.
        self._vectors: dict[DocumentID, list[VersionVector]] = {doc: [] for doc in self._ids}
        self.steps: list[tuple[object, ...]] = [
            (len(self._peers), "peers", self._resolver.__name__, *self._skews_s)
        ]

    def run(self) -> None:
        """Play it. Raises AssertionError if a property does not hold."""
        if self._random.random() < 0.2:
            self._begin_with_legacy()
        actions = (self._write, self._write, self._sync, self._sync, self._change_clock)
        for _ in range(self._random.randint(3, 25)):
            self._random.choice(actions)()
        self._settle()
        self._check_same_everywhere()
        self._check_nothing_lost()

    # --- Steps ---

    def _new_peer(self, number: int) -> _Peer:
        self._skews_s.append(self._random.randint(-_SKEW_S_MAX, _SKEW_S_MAX))
        clock = HybridClock(lambda: self._wall_ns + self._skews_s[number] * _SECOND_NS)
        return _Peer(number, SourceID(bytes([number + 1]) * 16), clock)

    def _begin_with_legacy(self) -> None:
        """Some peers were upgraded from tree revisions, in agreement or in conflict."""
        parent, *leaves = (TreeRevisionID(*tree) for tree in ((1, b"\1"), (2, b"\1"), (2, b"\2")))
        tombstone = self._random.choice((None, *leaves))
        for peer in self._peers:
            tree = self._random.choice(leaves)
            trees = self._random.choice(((tree, parent), (tree,), (parent,), ()))
            if trees:
                deleted = trees[0] == tombstone
                body = EMPTY_BODY if deleted else encode_body({str(trees[0]): 1})
                self._store(peer, self._ids[0], Revision.from_tree(trees, body, deleted=deleted))
        self.steps.append(("legacy", *(peer.docs.get(self._ids[0]) for peer in self._peers)))

    def _write(self) -> None:
        self._write_at(self._random.choice(self._peers), self._random.choice(self._ids))

    def _write_at(self, peer: _Peer, doc: DocumentID) -> None:
        current = peer.docs.get(doc)
        version = peer.stamp()
        deleted = current is not None and not current.deleted and self._random.random() < 0.3
        body = EMPTY_BODY if deleted else self._new_body(peer, current)
        if current is None:
            revision = Revision(VersionVector(version), body, deleted)
        else:
            revision = current.edited(version, body, deleted=deleted)
        self.steps.append(("delete" if deleted else "put", peer.number, doc, str(version)))
        self._written.append((doc, version))
        self._store(peer, doc, revision, *([current] if current else []))

    def _new_body(self, peer: _Peer, current: Revision | None) -> bytes:
        """Another field, or that field changed, or removed and another one in its place."""
        body = {} if current is None else decode_body(current.body)
        if self._random.random() < 0.3 and body:
            del body[self._random.choice(sorted(body))]
        return encode_body(body | {str(peer.number): len(self._written)})

    def _change_clock(self) -> None:
        """Time passes, or does not; one clock is set anew, perhaps backwards."""
        self._wall_ns += self._random.choice((0, 1 << 16, _SECOND_NS, 60 * _SECOND_NS))
        number = self._random.randrange(len(self._peers))
        self._skews_s[number] = self._random.randint(-_SKEW_S_MAX, _SKEW_S_MAX)
        self.steps.append(("clock", self._wall_ns, number, self._skews_s[number]))

    def _sync(self) -> None:
        active, passive = self._random.sample(self._peers, 2)
        how = self._random.choice(("push", "pull", "both", "crossed"))
        self.steps.append((how, active.number, passive.number))
        if self._random.random() < 0.05:
            active.known.clear()
        # Both peers may be active towards each other; then each offers what it held before.
        offers = [(active, passive, [*passive.docs.items()])]
        if how == "crossed":
            offers.append((passive, active, [*active.docs.items()]))
        for puller, offerer, offered in offers:
            with suppress(ConnectionLostError):
                if how != "push":
                    self._pull(puller, offerer, self._shuffled(offered))
                if how != "pull":
                    self._push(puller, offerer)

    # --- One connection ---

    def _carry(self) -> None:
        """One message crosses, or the connection is cut."""
        if self._random.random() < self._loss:
            self.steps.append(("cut",))
            raise ConnectionLostError("cut")

    def _pull(
        self, active: _Peer, passive: _Peer, offered: Iterable[tuple[DocumentID, Revision]]
    ) -> None:
        for doc, remote in offered:
            self._carry()
            local = active.docs.get(doc)
            if local is None or not local.has(remote.id):
                self._carry()
                if not self._see(active, remote):
                    continue
                self._insert_pulled(active, doc, local, remote)
            active.known[passive.number, doc] = remote.id

    def _insert_pulled(
        self, active: _Peer, doc: DocumentID, local: Revision | None, remote: Revision
    ) -> None:
        verdict = rules.judge_arrival(local, remote)
        if verdict is Arrival.STORE:
            self._supersede(active, doc, local, remote)
        elif verdict is Arrival.CONFLICT:
            assert local is not None
            settled = rules.settle_alone(local, remote, active.stamp)
            outcome = settled or self._resolve(active, doc, local, remote)
            self._store(active, doc, outcome, local, remote)

    def _resolve(
        self, active: _Peer, doc: DocumentID, local: Revision, remote: Revision
    ) -> Revision:
        base = next(
            (old for old in reversed(active.bases.get(doc, [])) if remote.has(old.id)), None
        )
        conflict = Conflict(
            doc,
            _document(doc, local),
            _document(doc, remote),
            None if base is None else _document(doc, base),
        )
        merges = active.merges.get(doc, 0) + 1 if rules.merges_merges(local, remote) else 0
        active.merges[doc] = merges
        is_enough = merges > limits.MERGES_OF_MERGES_MAX
        resolution: Any = (default_conflict_resolver if is_enough else self._resolver)(conflict)
        deleted = resolution is None
        if isinstance(resolution, Document):
            body = resolution.revision.body
        else:
            body = EMPTY_BODY if deleted else encode_body(resolution)
        return rules.carry_out(local, remote, body, deleted, active.stamp)

    def _push(self, active: _Peer, passive: _Peer) -> None:
        for doc, revision in self._shuffled(active.docs.items()):
            known = active.known.get((passive.number, doc))
            if known != revision.id and self._propose(active, passive, doc, revision, known):
                active.known[passive.number, doc] = revision.id

    def _propose(
        self,
        active: _Peer,
        passive: _Peer,
        doc: DocumentID,
        revision: Revision,
        parent: RevisionID | None,
    ) -> bool:
        """Whether the passive peer ends up with the revision."""
        for _ in range(limits.PROPOSE_ATTEMPTS_MAX):
            self._carry()
            current = passive.docs.get(doc)
            status = rules.judge_proposal(current, revision.id, parent)
            self._carry()
            if status is ProposalStatus.HELD:
                return True
            if status is ProposalStatus.WANTED:
                return self._send(passive, doc, revision, parent)
            assert current is not None
            if not revision.has(current.id):
                return False
            parent = current.id
        return False

    def _send(
        self, passive: _Peer, doc: DocumentID, revision: Revision, parent: RevisionID | None
    ) -> bool:
        if self._loss and self._random.random() < 0.05:
            self._write_at(passive, doc)
        self._carry()
        stored = self._see(passive, revision) and self._insert_pushed(
            passive, doc, revision, parent
        )
        self._carry()
        return stored

    def _insert_pushed(
        self, passive: _Peer, doc: DocumentID, arrived: Revision, parent: RevisionID | None
    ) -> bool:
        current = passive.docs.get(doc)
        verdict = rules.judge_arrival(current, arrived)
        if verdict is Arrival.STORE:
            self._supersede(passive, doc, current, arrived)
        elif verdict is Arrival.CONFLICT:
            assert current is not None
            if not rules.revives(current, arrived.id, parent):
                return False
            revived = rules.keep(arrived, current, passive.stamp)
            self._store(passive, doc, revived, current, arrived)
        return True

    def _see(self, peer: _Peer, revision: Revision) -> bool:
        """Whether the peer's clock accepts the revision; if not it is refused for now."""
        try:
            peer.clock.see(revision.vector.greatest().time)
        except ClockSkewError:
            return False
        return True

    def _supersede(
        self, peer: _Peer, doc: DocumentID, current: Revision | None, arrived: Revision
    ) -> None:
        assert current is None or arrived.has(current.id), ("overwritten", current, arrived)
        self._store(peer, doc, rules.supersede(current, arrived))

    def _store(
        self, peer: _Peer, doc: DocumentID, revision: Revision, *made_from: Revision
    ) -> None:
        assert revision.version == revision.vector.greatest(), ("not the greatest", revision)
        for old in made_from:
            assert revision.has(old.id), ("does not include", old, revision)
        self._stores += 1
        self._vectors[doc].append(revision.vector)
        if doc in peer.docs and self._random.random() < 0.7:
            peer.bases.setdefault(doc, []).append(peer.docs[doc])
        peer.docs[doc] = revision

    def _shuffled(self, items: Iterable[T]) -> list[T]:
        shuffled = list(items)
        self._random.shuffle(shuffled)
        return shuffled

    # --- The end ---

    def _settle(self) -> None:
        """Sync without loss, over all links or along a chain, until nothing changes."""
        self.steps.append(("settle",))
        self._loss = 0.0
        self._wall_ns += 1_000 * _SECOND_NS
        chain = zip(self._peers, self._peers[1:], strict=False)
        links = list(self._random.choice((combinations(self._peers, 2), chain)))
        for _ in range(4 * len(self._peers) + 8):
            before = self._stores
            for link in self._shuffled(links):
                active, passive = self._shuffled(link)
                self._pull(active, passive, [*passive.docs.items()])
                self._push(active, passive)
            if self._stores == before:
                return
        raise AssertionError("the peers do not settle")

    def _check_same_everywhere(self) -> None:
        first = self._peers[0].docs
        for peer in self._peers[1:]:
            assert peer.docs.keys() == first.keys(), ("documents differ", first, peer.docs)
            for doc, revision in peer.docs.items():
                other = first[doc]
                same = (revision.id, revision.body, revision.deleted) == (
                    other.id,
                    other.body,
                    other.deleted,
                )
                assert same, ("revisions differ", doc, other, revision)

    def _check_nothing_lost(self) -> None:
        final = self._peers[0].docs
        for doc, version in self._written:
            held = final[doc].has(version)
            assert held or self._superseded(version, doc), ("lost", doc, str(version))

    def _superseded(self, version: Version, doc: DocumentID) -> bool:
        """Whether the version is in the vector of some version that is in the final one, and so on.

        A join adds what it decided against to the vector of one peer alone, as the winner keeps its
        version; so the final vectors need not name it.
        """
        covered: dict[SourceID, int] = {}
        found, waiting = [self._peers[0].docs[doc].vector], self._vectors[doc]
        while found:
            for time, source in (v for vector in found for v in vector):
                covered[source] = max(time, covered.get(source, 0))
            found = [v for v in waiting if v.current.time <= covered.get(v.current.source, 0)]
            waiting = [v for v in waiting if v.current.time > covered.get(v.current.source, 0)]
        return version.time <= covered.get(version.source, 0)


def run_history(seed: int, resolver: ConflictResolver | None = None) -> None:
    """Play the history of this seed, with this resolver or one of `RESOLVERS`.

    Raises: AssertionError naming the seed; a note on it tells the steps.
    """
    history = History(Random(seed), resolver)
    try:
        history.run()
    except AssertionError as exc:
        failure = AssertionError(f"history {seed}: {exc}")
        failure.add_note("\n".join(" ".join(map(str, step)) for step in history.steps))
        raise failure from exc


def run_histories(seeds: range) -> None:
    """Play one history after another. Raises AssertionError at the first that fails."""
    for seed in seeds:
        run_history(seed)


def _document(doc: DocumentID, revision: Revision) -> Document | None:
    return None if revision.deleted else Document(doc, Stored(revision, Sequence(0)), _COLLECTION)
