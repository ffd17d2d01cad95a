"""Whole peers that write, exchange, lose connections and crash, in any order, end up equal."""

from dataclasses import replace

import pytest
from fleet_machine import (
    NAMES,
    NODES_MAX,
    ExchangeMachine,
    accidents,
    directions,
    edges,
    moments,
    names,
    nodes,
    pairs,
    resolvers,
    route,
    run_machine,
    seconds,
    seeds,
    shapes,
    skews,
)
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule


class Convergence(ExchangeMachine):
    """Peers in any topology; where it joins them both ways they end up equal."""

    @initialize(
        skews=st.lists(skews, min_size=2, max_size=NODES_MAX),
        commits_s=st.tuples(*[seconds] * NODES_MAX),
        resolver=resolvers,
        shape=shapes,
        data=st.data(),
    )
    def open_nodes(self, skews, commits_s, resolver, shape, data):
        self.open_fleet(skews, resolver)
        for node, commit_s in zip(self.fleet.nodes, commits_s, strict=False):
            node.commit_s = commit_s
        self.routes = self.drawn_routes(shape, data.draw)

    @rule(node=nodes)
    def put_all(self, node):
        for name in NAMES:
            self.run(self.edit, self.node(node), name)

    @rule(pair=pairs, name=names)
    def delete_at_one_and_put_at_another(self, pair, name):
        node, other = self.pair(pair)
        self.run(self.fleet.delete, node, name)
        self.run(self.edit, other, name)

    @rule(node=nodes, skew_s=skews, seconds=st.integers(0, 60))
    def set_clock(self, node, skew_s, seconds):
        self.wait(seconds)
        self.node(node).skew_s = skew_s

    @rule(edge=edges, pair=pairs, direction=directions)
    def exchange(self, edge, pair, direction):
        self.exchange_over(self.choose(edge, pair, direction))

    def exchange_over(self, taken):
        undisturbed = not self.fleet.exchanges
        run = self.fleet.run_undisturbed if undisturbed else self.fleet.run
        self.run(run, self.fleet.connect(taken))

    @precondition(lambda self: len(self.fleet.nodes) > 2 and not self.centre)
    @rule(node=nodes, name=names)
    def learn_from_a_third_one(self, node, name):
        """An edit that others passed on, and the next one meets it where another was known."""
        ours, theirs, third = (self.node(node + distance) for distance in range(3))
        self.run(self.edit, ours, name)
        for taken in (route(ours, theirs), route(third, theirs)):
            self.run(self.fleet.run, self.fleet.connect(taken))
        self.run(self.edit, third, name)
        for taken in (route(third, theirs), route(ours, third)):
            self.run(self.fleet.run, self.fleet.connect(taken))
        self.run(self.edit, ours, name)
        self.exchange_over(route(ours, theirs, pull=False))

    @rule(
        edge=edges,
        pair=pairs,
        direction=directions,
        cut=st.none() | moments,
        torn=st.booleans(),
        seed=seeds,
        accidents=accidents,
        commits=st.none() | st.integers(0, 5),
        name=names,
        conflicting=st.booleans(),
    )
    def exchange_with_accidents(
        self, edge, pair, direction, cut, torn, seed, accidents, commits, name, conflicting
    ):
        taken = self.choose(edge, pair, direction)
        if conflicting:
            self.run(self.edit, taken.active, name)
            self.run(self.edit, taken.passive, name)
        taken.active.commits_left = commits
        faults = self.faults(taken, cut, torn, seed, accidents, name)
        self.run(self.fleet.run, self.fleet.connect(taken, faults=faults))
        taken.active.commits_left = None

    @rule(edge=edges, pair=pairs, direction=directions, seed=seeds)
    def leave_a_link_open(self, edge, pair, direction, seed):
        self.open_link(self.choose(edge, pair, direction), seed)

    def choose(self, edge, pair, direction):
        taken = super().choose(edge, pair, direction)
        if self.centre and edge is None:
            other = taken.passive if taken.active is self.centre else taken.active
            taken = replace(taken, active=other, passive=self.centre)
        return taken

    def finish(self):
        self.close_links()
        self.run(self.fleet.settle, self.routes)


@pytest.mark.behaviour("X1", "X2b")
def test_peers_converge_whatever_happens():
    run_machine(
        Convergence,
        examples=200,
        reaching=[
            "document pushed",
            "document pulled",
            "conflict resolved",
            "merge stored",
            "delta pushed",
            "delta pulled",
            "blob pushed",
            "blob pulled",
            "proposal answered 0",
            "proposal answered 304",
            "proposal answered 409",
            "refused with HTTP 409",
            "cut before it began",
            "session failed with 1006",
            "crash active meanwhile",
            "crash passive meanwhile",
            "edit active meanwhile",
            "edit passive meanwhile",
        ],
    )
