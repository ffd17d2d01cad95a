"""Counts what the sessions of a test go through: a machine that never gets there proves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from trio_p2p.peer import Peer
from trio_p2p.replication.messages import Proposal, ProposalAnswer
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.replication.status import ReplicatorStatistics
from trio_p2p.testing.exchanges import Exchange


class Tally(Counter[str]):
    """How often each thing happened, by its name."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what the sessions do in this block."""
        refuse, propose = Peer.refuse, CouchbaseProfile.propose

        def count_refusal(peer: Peer, number: int, domain: str, code: int, text: str = "") -> None:
            self[f"refused with {domain} {code}"] += 1
            refuse(peer, number, domain, code, text)

        async def count_proposals(
            profile: CouchbaseProfile, collection: int, proposals: Sequence[Proposal]
        ) -> Sequence[ProposalAnswer]:
            answers = await propose(profile, collection, proposals)
            for answer in answers:
                self[f"proposal answered {answer.status}"] += 1
            return answers

        with (
            mock.patch.object(Peer, "refuse", count_refusal),
            mock.patch.object(CouchbaseProfile, "propose", count_proposals),
        ):
            yield

    def note_end(self, exchange: Exchange) -> None:
        """Count what an exchange did that has ended."""
        self["exchange"] += 1
        self.note(exchange.journal.statistics())
        for failure in exchange.failures:
            self[f"session failed with {failure.status}"] += 1

    def note(self, done: ReplicatorStatistics) -> None:
        """Count what a replicator did."""
        if done.connections == 0:
            self["cut before it began"] += 1
        self["document pushed"] += done.documents_pushed
        self["document pulled"] += done.documents_pulled
        self["delta pushed"] += done.deltas_sent
        self["delta pulled"] += done.deltas_received
        self["blob pushed"] += done.blobs_sent
        self["blob pulled"] += done.blobs_received
        self["document failed"] += done.documents_failed
        self["conflict resolved"] += done.conflicts_resolved
