"""Peers that forget, are restored from copies and take new identities still end up equal."""

from dataclasses import replace

from fleet_machine import (
    NAMES,
    NODES_MAX,
    NOTES,
    ExchangeMachine,
    accidents,
    directions,
    edges,
    moments,
    names,
    nodes,
    pairs,
    route,
    run_machine,
    seeds,
    shaped,
    shapes,
    skews,
)
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from trio_p2p.testing.histories import RESOLVERS

WRONG_S_MAX = 600


class Upheavals(ExchangeMachine):
    """All peers are joined both ways; what was purged anywhere is promised once it is edited."""

    @initialize(
        skews=st.lists(skews, min_size=2, max_size=4),
        resolver=st.sampled_from(RESOLVERS),
        shape=shapes,
        turned=st.lists(st.booleans(), min_size=NODES_MAX, max_size=NODES_MAX),
        copied=nodes,
    )
    def open_nodes(self, skews, resolver, shape, turned, copied):
        self.open_fleet(skews, resolver)
        # If both of two peers are rolled back, each to another time, what their checkpoints agree
        # on may never have been true. So this one alone is.
        self.copied = self.node(copied)
        joints = shaped(shape, self.fleet.nodes)
        self.routes = [
            route(*(pair[::-1] if turn else pair))
            for pair, turn in zip(joints, turned, strict=False)
        ]
        # Of each node, with the node.
        self.copies = []

    @rule(
        edge=edges,
        pair=pairs,
        direction=directions,
        cut=st.none() | moments,
        seed=seeds,
        accidents=accidents,
        name=names,
    )
    def exchange(self, edge, pair, direction, cut, seed, accidents, name):
        taken = self.choose(edge, pair, direction)
        faults = self.faults(taken, cut, False, seed, accidents, name)
        self.run(self.fleet.run, self.fleet.connect(taken, faults=faults))

    @rule(index=st.integers(0, 20), seed=seeds)
    def leave_a_link_open(self, index, seed):
        self.open_link(self.routes[index % len(self.routes)], seed)

    # --- Upheavals -------------------------------------------------------------------------------

    @rule(node=nodes, name=names)
    def purge(self, node, name):
        self.run(self.fleet.purge, self.node(node), name)

    @rule(node=nodes, name=names)
    def purge_and_put(self, node, name):
        self.run(self.fleet.purge, self.node(node), name)
        self.run(self.edit, self.node(node), name)

    @rule(node=nodes, name=names, seconds=st.integers(0, 60))
    def expire(self, node, name, seconds):
        self.run(self.fleet.expire, self.node(node), name, seconds)

    @rule(node=nodes)
    def back_up(self, node):
        self.copies.append((self.node(node), self.run(self.node(node).back_up)))

    @rule()
    def copy_by_hand(self):
        self.copies.append((self.copied, self.copied.copy()))

    @precondition(lambda self: self.copies)
    @rule(index=st.integers(0, 10))
    def restore(self, index):
        self.run(self.fleet.replace, *self.copies[index % len(self.copies)])

    @rule(
        node=st.none() | nodes,
        name=names,
        index=st.integers(0, 20),
        direction=directions,
        edits=st.integers(0, 3),
    )
    def lose_what_was_exchanged(self, node, name, index, direction, edits):
        """All settle, one of them is as it was before, goes on from there, and meets a peer.

        With some edits it has given as many sequences as it had before, but to other documents.
        """
        victim = self.copied if node is None else self.node(node)
        copy = victim.copy() if node is None else self.run(victim.back_up)
        concerned = [each for each in self.routes if victim in (each.active, each.passive)]
        taken = concerned[index % len(concerned)]
        peer = taken.passive if taken.active is victim else taken.active
        self.run(self.edit, peer, name)
        self.close_links()
        self.run(self.fleet.settle, self.routes)
        self.run(self.fleet.replace, victim, copy)
        for number in range(edits):
            self.run(self.edit, victim, NAMES[(index + number) % len(NAMES)])
        self.run(self.fleet.run, self.fleet.connect(replace(taken, **direction)))

    @precondition(lambda self: len(self.fleet.nodes) < NODES_MAX)
    @rule(node=nodes)
    def start_another_from_a_backup(self, node):
        origin = self.node(node)
        self.fleet.add(origin, self.run(origin.back_up))
        self.driver.nursery.start_soon(self.fleet.nodes[-1].run)
        self.run(self.fleet.nodes[-1].wait_open)
        self.routes.append(route(self.fleet.nodes[-1], origin))

    @rule(node=nodes)
    def renew_identity(self, node):
        self.run(self.fleet.renew_identity, self.node(node))

    @rule(node=nodes)
    def recreate_a_collection(self, node):
        self.run(self.fleet.recreate_collection, self.node(node), NOTES)

    @rule(node=nodes, skew_s=st.integers(-WRONG_S_MAX, WRONG_S_MAX))
    def set_clock(self, node, skew_s):
        self.node(node).skew_s = skew_s

    @rule(index=st.integers(0, 20), name=names, of_active=st.booleans())
    def wait_for_a_clock_to_be_right(self, index, name, of_active):
        """What is refused on a standing link comes once it is acceptable."""
        self.close_links()
        taken = self.routes[index % len(self.routes)]
        node = taken.active if of_active else taken.passive
        node.skew_s = WRONG_S_MAX
        self.run(self.edit, node, name)
        self.stand(seconds=2.0)

    def finish(self):
        self.close_links()
        self.run(self.fleet.refresh, self.routes)


def test_peers_converge_whatever_they_lose():
    run_machine(
        Upheavals,
        examples=200,
        reaching=[
            "conflict resolved",
            "merge stored",
            "delta pushed",
            "delta pulled",
            "blob pushed",
            "blob pulled",
            "proposal answered 409",
            "refused with HTTP 409",
            "refused with HTTP 429",
            "session failed with 1006",
        ],
    )
