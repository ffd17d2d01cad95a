"""Histories that once went wrong, each as short as it could be made."""

from dataclasses import replace

import pytest
import trio

from trio_p2p.ids import DocumentID
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.testing.exchanges import Route
from trio_p2p.testing.histories import union_resolver
from trio_p2p.testing.nodes import DEFAULT, Name, Node, repeatable_identities
from trio_p2p.testing.peers import Fleet
from trio_p2p.testing.witness import Witness

A, B = (Name(DEFAULT, DocumentID(document)) for document in "ab")
NOTE = Name("notes", DocumentID("a"))
BOTH = (DEFAULT, "notes")


@pytest.fixture
async def fleet(tmp_path, nursery):
    nodes = [
        Node(number, tmp_path / str(number), skew_s=0, collections=("notes",))
        for number in range(3)
    ]
    witness = Witness()
    with witness.watching(), repeatable_identities():
        for node in nodes:
            nursery.start_soon(node.run)
            await node.wait_open()
        yield Fleet(nodes, union_resolver, witness)
        nursery.cancel_scope.cancel()


async def test_a_deletion_from_before_the_first_pull_still_reaches_the_document(
    fleet, autojump_clock
):
    """An empty node pulls; what was deleted there comes to it, alive, from a third node."""
    node, origin, deleter = fleet.nodes
    await fleet.put(origin, A, {"x": 1})
    await fleet.run(fleet.connect(Route(deleter, origin)))
    await fleet.delete(deleter, A)
    await fleet.put(deleter, B, {"x": 1})
    await fleet.run(fleet.connect(Route(node, deleter, push=False)))
    await fleet.run(fleet.connect(Route(node, origin, push=False)))
    await fleet.run(fleet.connect(Route(node, deleter)))
    assert node.collection.get("a") is None


async def test_a_peer_that_wants_no_tombstones_learns_of_later_deletions(
    fleet, monkeypatch, autojump_clock
):
    """Couchbase Lite asks so when it begins with an empty database, and means the past only."""
    subscribe = CouchbaseProfile.subscribe

    async def subscribe_to_live_ones(self, request):
        await subscribe(self, replace(request, active_only=True))

    monkeypatch.setattr(CouchbaseProfile, "subscribe", subscribe_to_live_ones)
    node, other, _ = fleet.nodes
    await fleet.put(other, A, {"x": 1})
    async with trio.open_nursery() as nursery:
        link = fleet.connect(Route(node, other, push=False), continuous=True)
        nursery.start_soon(fleet.run, link)
        await trio.sleep(1)
        assert node.collection.get("a") is not None
        await fleet.delete(other, A)
        await trio.sleep(1)
        link.stop()
    assert node.collection.get("a") is None


async def test_many_replications_between_two_nodes_save_their_checkpoints(fleet, autojump_clock):
    """They share one checkpoint, and each may find that another one saved it just now."""
    node, other, _ = fleet.nodes
    await fleet.put(node, A, {"x": 1})
    await fleet.put(other, A, {"x": 2})
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(fleet.run, fleet.connect(Route(node, other)))
    await fleet.settle([Route(node, other), Route(node, fleet.nodes[2])])


async def test_a_collection_made_anew_gets_back_what_its_peer_had_from_it(fleet, autojump_clock):
    """The peer remembers from whom it has the document, and need not send it back: it must."""
    node, other, _ = fleet.nodes
    await fleet.put(other, NOTE, {"x": 1})
    await fleet.run(fleet.connect(Route(node, other, collections=BOTH)))
    await fleet.recreate_collection(other, "notes")
    await fleet.run(fleet.connect(Route(node, other, collections=BOTH)))
    assert other.database.collection("notes").get("a") is not None


async def test_a_database_rolled_back_gets_back_what_its_peer_had_from_it(fleet, autojump_clock):
    """As above, for a directory that was replaced by an earlier copy."""
    node, other, _ = fleet.nodes
    copy = other.copy()
    await fleet.put(other, A, {"x": 1})
    await fleet.run(fleet.connect(Route(node, other)))
    await fleet.replace(other, copy)
    await fleet.run(fleet.connect(Route(node, other)))
    assert other.collection.get("a") is not None


async def test_a_rollback_behind_a_pull_without_a_checkpoint_is_noticed(fleet, autojump_clock):
    """Nothing but what the peer remembers of single documents was ahead of the copy."""
    node, other, _ = fleet.nodes
    await fleet.put(other, B, {"x": 1})
    await fleet.run(fleet.connect(Route(node, other)))
    copy = other.copy()
    await fleet.put(other, A, {"x": 1})
    async with trio.open_nursery() as nursery:
        link = fleet.connect(Route(node, other, push=False), continuous=True)
        nursery.start_soon(fleet.run, link)
        async for _ in node.collection.changes(since=node.collection.last_sequence):
            link.cut()
            break
    await fleet.replace(other, copy)
    await fleet.run(fleet.connect(Route(node, other)))
    assert other.collection.get("a") is not None


async def test_a_pull_after_a_rollback_does_not_vouch_for_what_was_not_proposed(
    fleet, autojump_clock
):
    """Its checkpoint says what was pulled; what the peer was known to have is still doubtful."""
    node, other, _ = fleet.nodes
    copy = other.copy()
    await fleet.put(other, A, {"x": 1})
    await fleet.run(fleet.connect(Route(node, other)))
    await fleet.replace(other, copy)
    await fleet.put(other, B, {"x": 1})
    await fleet.run(fleet.connect(Route(node, other, push=False)))
    await fleet.run(fleet.connect(Route(node, other)))
    assert other.collection.get("a") is not None
