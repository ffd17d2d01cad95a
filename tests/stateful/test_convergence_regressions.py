"""Histories that once went wrong, each as short as it could be made."""

from dataclasses import replace

import pytest
import trio

from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.testing.histories import union_resolver
from trio_p2p.testing.peers import Fleet, Node
from trio_p2p.testing.witness import Witness


@pytest.fixture
async def fleet(tmp_path, nursery):
    nodes = [Node(number, tmp_path / str(number), skew_s=0) for number in range(3)]
    witness = Witness()
    with witness.watching():
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
    await fleet.put(origin, "a", {"x": 1})
    await fleet.run(fleet.connect(deleter, origin))
    await fleet.delete(deleter, "a")
    await fleet.put(deleter, "b", {"x": 1})
    await fleet.run(fleet.connect(node, deleter, push=False))
    await fleet.run(fleet.connect(node, origin, push=False))
    await fleet.run(fleet.connect(node, deleter))
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
    await fleet.put(other, "a", {"x": 1})
    async with trio.open_nursery() as nursery:
        link = fleet.connect(node, other, push=False, continuous=True)
        nursery.start_soon(fleet.run, link)
        await trio.sleep(1)
        assert node.collection.get("a") is not None
        await fleet.delete(other, "a")
        await trio.sleep(1)
        link.stop()
    assert node.collection.get("a") is None


async def test_many_replications_between_two_nodes_save_their_checkpoints(fleet, autojump_clock):
    """They share one checkpoint, and each may find that another one saved it just now."""
    node, other, _ = fleet.nodes
    await fleet.put(node, "a", {"x": 1})
    await fleet.put(other, "a", {"x": 2})
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(fleet.run, fleet.connect(node, other))
    await fleet.settle([(node, other), (node, fleet.nodes[2])])
