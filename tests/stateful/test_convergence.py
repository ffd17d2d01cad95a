"""Whole peers that write, exchange, lose connections and crash, in any order, end up equal."""

import shutil
import tempfile
from contextlib import ExitStack, suppress
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from trio_p2p.errors import StoreClosedError
from trio_p2p.testing.driver import TrioDriver
from trio_p2p.testing.histories import RESOLVERS
from trio_p2p.testing.peers import Fleet, Node, scripted_delays
from trio_p2p.testing.witness import Witness
from trio_p2p.transport.memory import Faults

NODES_MAX = 4
SKEW_S_MAX = 50
DOCUMENTS = "abcd"

nodes = st.integers(0, NODES_MAX - 1)
# Two nodes that differ: one, and how far from it the other is.
pairs = st.tuples(nodes, st.integers(1, 2))
documents = st.sampled_from(DOCUMENTS)
skews = st.integers(-SKEW_S_MAX, SKEW_S_MAX)
directions = st.sampled_from(
    ({"push": True, "pull": True}, {"push": True, "pull": False}, {"push": False, "pull": True})
)
seconds = st.sampled_from((0.0, 0.3, 2.0))
seeds = st.integers(0, 1_000)
# What happens as the message of this number is about to be sent, the first being 0.
accidents = st.dictionaries(
    st.integers(0, 15),
    st.sampled_from(("crash active", "crash passive", "edit active", "edit passive")),
    max_size=2,
)
cuts = st.none() | st.integers(0, 15)


@pytest.mark.behaviour("X1", "X2b")
class Convergence(RuleBasedStateMachine):
    """Commits check the checkpoints, undisturbed exchanges that they left nothing undone."""

    def __init__(self):
        super().__init__()
        self.cleanup = ExitStack()
        directory = tempfile.mkdtemp(prefix="convergence-")
        self.cleanup.callback(shutil.rmtree, directory)
        self.directory = Path(directory)
        self.witness = Witness()
        self.cleanup.enter_context(self.witness.watching())
        self.driver = TrioDriver()
        self.cleanup.callback(self.driver.close)
        self.edits = 0
        self.broken = False

    @initialize(
        skews=st.lists(skews, min_size=3, max_size=NODES_MAX),
        commits_s=st.tuples(*[seconds] * NODES_MAX),
        resolver=st.sampled_from(RESOLVERS),
    )
    def open_nodes(self, skews, commits_s, resolver):
        opened = [Node(n, self.directory / str(n), skew_s) for n, skew_s in enumerate(skews)]
        self.fleet = Fleet(opened, resolver, self.witness)
        for node, commit_s in zip(opened, commits_s, strict=False):
            node.commit_s = commit_s
            self.driver.nursery.start_soon(node.run)
            self.run(node.wait_open)

    @rule(node=nodes, document=documents)
    def put(self, node, document):
        self.run(self.edit, self.node(node), document)

    @rule(node=nodes, document=documents)
    def delete(self, node, document):
        self.run(self.fleet.delete, self.node(node), document)

    @rule(node=nodes)
    def put_all(self, node):
        for document in DOCUMENTS:
            self.run(self.edit, self.node(node), document)

    @rule(pair=pairs, document=documents)
    def put_at_both(self, pair, document):
        for node in self.pair(pair):
            self.run(self.edit, node, document)

    @rule(pair=pairs, document=documents)
    def delete_at_one_and_put_at_another(self, pair, document):
        node, other = self.pair(pair)
        self.run(self.fleet.delete, node, document)
        self.run(self.edit, other, document)

    @rule(node=nodes, skew_s=skews, seconds=st.integers(0, 60))
    def set_clock(self, node, skew_s, seconds):
        self.run(trio.sleep, seconds)
        self.node(node).skew_s = skew_s

    @rule(pair=pairs, direction=directions)
    def exchange(self, pair, direction):
        undisturbed = not self.fleet.exchanges
        exchange = self.fleet.connect(*self.pair(pair), **direction)
        run = self.fleet.run_undisturbed if undisturbed else self.fleet.run
        self.run(run, exchange)

    @rule(
        pair=pairs,
        direction=directions,
        cut=cuts,
        torn=st.booleans(),
        seed=seeds,
        accidents=accidents,
        document=documents,
    )
    def exchange_with_accidents(self, pair, direction, cut, torn, seed, accidents, document):
        active, passive = self.pair(pair)
        faults = self.faults(active, passive, cut, torn, seed, accidents, document)
        exchange = self.fleet.connect(active, passive, faults=faults, **direction)
        self.run(self.fleet.run, exchange)

    @rule(pair=pairs, direction=directions, seed=seeds)
    def open_link(self, pair, direction, seed):
        active, passive = self.pair(pair)
        if any((link.active, link.passive) == (active, passive) for link in self.fleet.exchanges):
            # Of many that share one checkpoint, one may never get to save it.
            return
        faults = self.faults(active, passive, None, False, seed, {}, "a")
        exchange = self.fleet.connect(active, passive, continuous=True, faults=faults, **direction)
        self.driver.nursery.start_soon(self.fleet.run, exchange)

    @precondition(lambda self: self.fleet.exchanges)
    @rule(index=st.integers(0, 10), gracefully=st.booleans())
    def close_link(self, index, gracefully):
        link = self.fleet.exchanges[index % len(self.fleet.exchanges)]
        if gracefully:
            link.stop()
        else:
            link.cut()
        self.run(link.ended.wait)

    @rule(seconds=seconds)
    def let_links_run(self, seconds):
        self.run(trio.sleep, seconds)

    @rule(node=nodes)
    def crash(self, node):
        self.fleet.crash(self.node(node))
        self.run(self.node(node).wait_open)

    @rule(order=st.permutations(range(NODES_MAX)), chained=st.booleans())
    def settle(self, order, chained):
        while self.fleet.exchanges:
            self.close_link(0, gracefully=True)
        ordered = [self.fleet.nodes[n] for n in order if n < len(self.fleet.nodes)]
        links = pairwise(ordered) if chained else combinations(ordered, 2)
        self.run(self.fleet.settle, links)

    def teardown(self):
        with self.cleanup:
            if self.broken:
                return
            self.settle(range(NODES_MAX), chained=False)
            tasks = self.driver.nursery.child_tasks
            assert len(tasks) == len(self.fleet.nodes), tasks

    def run(self, function, *args):
        """Run it in the loop. After a failure there is nothing left to settle."""
        try:
            self.driver.run(function, *args)
        except BaseException:
            self.broken = True
            raise

    def node(self, number):
        return self.fleet.nodes[number % len(self.fleet.nodes)]

    def pair(self, pair):
        number, distance = pair
        number %= len(self.fleet.nodes)
        return self.node(number), self.node(number + distance)

    def faults(self, active, passive, cut, torn, seed, accidents, document):
        happenings = {
            "crash active": lambda: self.fleet.crash(active),
            "crash passive": lambda: self.fleet.crash(passive),
            "edit active": lambda: self.edit_meanwhile(active, document),
            "edit passive": lambda: self.edit_meanwhile(passive, document),
        }
        events = {number: happenings[accident] for number, accident in accidents.items()}
        delay_s = scripted_delays(seed, events)
        return Faults(delay_s=delay_s, cut_after_messages=cut, torn=torn)

    def edit_meanwhile(self, node, document):
        self.driver.nursery.start_soon(self.edit, node, document)

    async def edit(self, node, document):
        self.edits += 1
        # A crash may come between: then the edit was not acknowledged.
        with suppress(StoreClosedError):
            await self.fleet.put(node, document, {str(node.number): self.edits})


TestConvergence = Convergence.TestCase
TestConvergence.settings = settings(stateful_step_count=25)
