"""What the machines over whole peers share: a loop, a fleet, how routes and faults are drawn."""

import shutil
import tempfile
from contextlib import ExitStack, suppress
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

import trio
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trio_p2p.errors import StoreClosedError
from trio_p2p.ids import DocumentID
from trio_p2p.model.resolvers import local_wins, remote_wins
from trio_p2p.testing.driver import TrioDriver
from trio_p2p.testing.exchanges import Route, scripted_delays
from trio_p2p.testing.histories import RESOLVERS
from trio_p2p.testing.nodes import DEFAULT, Name, Node, repeatable_identities
from trio_p2p.testing.peers import SKEW_S_MAX, Fleet
from trio_p2p.testing.tally import Tally
from trio_p2p.testing.witness import Witness
from trio_p2p.transport.memory import Faults

NODES_MAX = 6
STEPS = 25
NOTES = "notes"
# Long enough that a change of something else in the body goes as a delta.
TEXT = "a text that nobody edits, " * 10
NAMES = (
    *(Name(DEFAULT, DocumentID(document)) for document in "abcd"),
    *(Name(NOTES, DocumentID(document)) for document in "ab"),
)

nodes = st.integers(0, NODES_MAX - 1)
# Two nodes that differ: one, and how far from it the other is.
pairs = st.tuples(nodes, st.integers(1, NODES_MAX - 1))
names = st.sampled_from(NAMES)
skews = st.integers(-SKEW_S_MAX, SKEW_S_MAX)
SECONDS_MAX = 2.0
seconds = st.sampled_from((0.0, 0.3, SECONDS_MAX))
seeds = st.integers(0, 1_000)
# One of the routes that there are for good, or none of them.
edges = st.none() | st.integers(0, 30)
shapes = st.sampled_from(("chain", "star", "ring", "mesh"))
directions = st.sampled_from(
    ({"push": True, "pull": True}, {"push": True, "pull": False}, {"push": False, "pull": True})
)
# What a blob is to hold that an edit puts into a document, or b"" to take out what there is.
contents = st.none() | st.sampled_from((b"", b"small", b"two parts " * 3_000, b"many " * 40_000))
# Which messages a fault may hit, the first being 0; few exchanges have more.
moments = st.integers(0, 40)
# What happens as the message of this number is about to be sent.
accidents = st.just({}) | st.dictionaries(
    st.integers(0, 12),
    st.sampled_from(("crash active", "crash passive", "edit active", "edit passive")),
    min_size=1,
    max_size=2,
)


SOME = tuple(DocumentID(document) for document in "ab")
# How two peers are joined for good, with the first one active: by one exchange, or by two. Most
# carry everything both ways.
JOINTS = (
    [{}],
    [{}],
    [{}],
    [{"push": False}, {"pull": False}],
    [{"push": False}],
    [{"pull": False}],
    [{"document_ids": SOME}],
    [{"push_filter": frozenset(SOME)}],
    [{"pull_filter": frozenset(SOME)}],
    [{"push_filter": frozenset(SOME[:1]), "pull_filter": frozenset(SOME)}],
    [{"collections": (NOTES,)}],
    "mutual pulls",
)
# These settle a conflict differently on each side.
SIDED = (local_wins, remote_wins)
resolvers = st.sampled_from(RESOLVERS) | st.sampled_from(SIDED)


def shaped(shape, members):
    """The pairs of members that are joined."""
    match shape:
        case "chain":
            return list(pairwise(members))
        case "star":
            return [(members[0], other) for other in members[1:]]
        case "ring" if len(members) > 2:
            return [*pairwise(members), (members[-1], members[0])]
        case _:
            return list(combinations(members, 2))


class FleetMachine(RuleBasedStateMachine):
    """Commits check the checkpoints, undisturbed exchanges that they left nothing undone."""

    tally = Tally()
    """What all runs of all machines went through."""

    def __init__(self):
        super().__init__()
        self.cleanup = ExitStack()
        directory = tempfile.mkdtemp(prefix="convergence-")
        self.cleanup.callback(shutil.rmtree, directory)
        self.directory = Path(directory)
        self.witness = Witness()
        self.cleanup.enter_context(self.witness.watching())
        self.cleanup.enter_context(repeatable_identities())
        self.cleanup.enter_context(self.tally.watching())
        self.tally_before = self.tally.copy()
        self.driver = TrioDriver()
        self.cleanup.callback(self.driver.close)
        self.edits = 0
        self.broken = False

    def open_fleet(self, skews, resolver):
        opened = [
            Node(number, self.directory / str(number), skew_s, collections=(NOTES,))
            for number, skew_s in enumerate(skews)
        ]
        self.fleet = Fleet(opened, resolver, self.witness)
        # Where each side prefers its own, one node must never resolve: the centre of a star.
        self.centre = opened[0] if resolver in SIDED else None
        self.fleet.on_end = self.tally.note_end
        self.witness.on_merge = lambda: self.tally.update(["merge stored"])
        for node in opened:
            self.driver.nursery.start_soon(node.run)
            self.run(node.wait_open)

    def drawn_routes(self, shape, draw):
        """Routes that there are for good, which join all nodes in this shape."""
        routes = []
        for pair in shaped("star" if self.centre else shape, self.fleet.nodes):
            first, second = self.turned(pair, draw(st.booleans()))
            joint = draw(st.sampled_from(JOINTS[:-1] if self.centre else JOINTS))
            if joint == "mutual pulls":
                routes.append(route(first, second, push=False))
                routes.append(route(second, first, push=False))
            else:
                routes += [route(first, second, **settings) for settings in joint]
        return routes

    def turned(self, pair, turn):
        """The two, the other way round if told so; a centre is always the passive one."""
        first, second = pair
        if self.centre:
            turn = first is self.centre
        return (second, first) if turn else (first, second)

    @rule(node=nodes, name=names, content=contents)
    def put(self, node, name, content):
        self.run(self.edit, self.node(node), name, content)

    @rule(node=nodes, name=names)
    def delete(self, node, name):
        self.run(self.fleet.delete, self.node(node), name)

    @rule(pair=pairs, name=names, content=contents)
    def put_at_both(self, pair, name, content):
        for node in self.pair(pair):
            self.run(self.edit, node, name, content)

    @rule(node=nodes, permitted=st.booleans())
    def permit_deltas(self, node, permitted):
        self.node(node).permits_deltas = permitted

    def teardown(self):
        with self.cleanup:
            if self.broken:
                return
            self.finish()
            self.wait(10 * SECONDS_MAX)  # For edits that were begun meanwhile.
            for reached in self.tally - self.tally_before:
                event(reached)
            tasks = self.driver.nursery.child_tasks
            assert len(tasks) == len(self.fleet.nodes), tasks

    def finish(self):
        """The last step, after which nothing must be running."""
        raise NotImplementedError

    def run(self, function, *args):
        """Run it in the loop. After a failure there is nothing left to settle."""
        try:
            return self.driver.run(function, *args)
        except BaseException:
            self.broken = True
            raise

    def wait(self, seconds):
        """Let time pass, by the clock that jumps."""
        self.run(trio.sleep, seconds)

    def node(self, number):
        return self.fleet.nodes[number % len(self.fleet.nodes)]

    def pair(self, pair):
        number, distance = pair
        count = len(self.fleet.nodes)
        number %= count
        return self.node(number), self.node(number + 1 + distance % (count - 1))

    def faults(self, route, cut, torn, seed, accidents, name):
        happenings = {
            "crash active": lambda: self.fleet.crash(route.active),
            "crash passive": lambda: self.fleet.crash(route.passive),
            "edit active": lambda: self.edit_meanwhile(route.active, name),
            "edit passive": lambda: self.edit_meanwhile(route.passive, name),
        }

        def happen(accident):
            self.tally[f"{accident} meanwhile"] += 1
            happenings[accident]()

        events = {number: partial(happen, accident) for number, accident in accidents.items()}
        delay_s = scripted_delays(seed, events)
        return Faults(delay_s=delay_s, cut_after_messages=cut, torn=torn)

    def edit_meanwhile(self, node, name):
        self.driver.nursery.start_soon(self.edit, node, name)

    async def edit(self, node, name, content=None):
        self.edits += 1
        fields = {"text": TEXT, str(node.number): self.edits}
        # A crash may come between: then the edit was not acknowledged.
        with suppress(StoreClosedError):
            if content is not None:
                fields["blob"] = await node.database.save_blob(content) if content else None
            await self.fleet.edit(node, name, fields)


class ExchangeMachine(FleetMachine):
    """Sessions one by one, over `routes` that there are for good, or beside them."""

    def __init__(self):
        super().__init__()
        self.routes = []

    @precondition(lambda self: self.fleet.exchanges)
    @rule(index=st.integers(0, 10), gracefully=st.booleans())
    def close_a_link(self, index, gracefully):
        self.close_link(index, gracefully)

    @rule(seconds=seconds)
    def let_links_run(self, seconds):
        self.wait(seconds)

    @rule(node=nodes)
    def crash(self, node):
        self.fleet.crash(self.node(node))
        self.run(self.node(node).wait_open)

    @rule(data=st.data())
    def settle(self, data):
        self.close_links()
        self.run(self.fleet.settle, data.draw(st.permutations(self.routes)))

    @rule(seconds=seconds)
    def stand(self, seconds):
        """All routes stand until nothing moves; at first with clocks as they are."""
        for taken in self.routes:
            self.open_link(taken, 0)
        # Some things may be refused, and must be tried again.
        self.wait(seconds)
        self.run(self.fleet.calm, self.routes)

    def choose(self, edge, pair, direction):
        """A route for good, or between any two that meet once."""
        if edge is not None:
            return self.routes[edge % len(self.routes)]
        return route(*self.pair(pair), **direction)

    def open_link(self, route, seed):
        """Open a standing exchange, unless there is such a one: replicators refuse to be two."""
        if any(link.route == route and not link.is_ending for link in self.fleet.exchanges):
            return
        faults = self.faults(route, None, False, seed, {}, NAMES[0])
        exchange = self.fleet.connect(route, continuous=True, faults=faults)
        self.driver.nursery.start_soon(self.fleet.run, exchange)

    def close_link(self, index, gracefully):
        link = self.fleet.exchanges[index % len(self.fleet.exchanges)]
        if gracefully:
            link.stop()
        else:
            link.cut()
        self.run(link.ended.wait)

    def close_links(self):
        while self.fleet.exchanges:
            self.close_link(0, gracefully=True)


def run_machine(machine, *, examples, reaching):
    """Run it, more often where the profile says so; it must have reached all that is named."""
    machine.tally.clear()
    examples = max(examples, settings.default.max_examples)
    chosen = settings(max_examples=examples, stateful_step_count=STEPS)
    run_state_machine_as_test(machine, settings=chosen)
    unreached = [name for name in reaching if not machine.tally[name]]
    assert not unreached, (unreached, machine.tally)


def route(active, passive, **settings):
    return Route(active, passive, **{"collections": (DEFAULT, NOTES)} | settings)
