"""Replicators and listeners as users run them, over a network in memory that fails.

The machines beside this one run one session at a time; here the replicators connect again by
themselves, are suspended and resumed, and find out alone that nobody answers.
"""

import logging

import trio
from fleet_machine import (
    NAMES,
    NODES_MAX,
    FleetMachine,
    nodes,
    resolvers,
    run_machine,
    shapes,
    skews,
)
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

import trio_p2p
from trio_p2p.errors import ConnectionLostError
from trio_p2p.testing.network import MemoryNetwork

HEARTBEAT_S = 30.0
ATTEMPT_WAIT_S = 20.0
# Until a replicator has noticed that nobody answers and come back, and all is passed on.
CALM_S = 3 * (HEARTBEAT_S + ATTEMPT_WAIT_S)

links = st.integers(0, 20)
pauses = st.sampled_from((0.0, 0.01, 1.0, 10.0, 100.0))
TYPES = {
    (True, True): trio_p2p.ReplicatorType.PUSH_AND_PULL,
    (True, False): trio_p2p.ReplicatorType.PUSH,
    (False, True): trio_p2p.ReplicatorType.PULL,
}


def listener_of(node):
    return trio_p2p.URLEndpointListener(
        trio_p2p.URLEndpointListenerConfiguration(
            collections=node.collections,
            disable_tls=True,
            heartbeat=HEARTBEAT_S,
            enable_delta_sync=True,
        )
    )


class Link:
    """A replicator that is to run for ever, and its network."""

    def __init__(self, taken, resolver, nursery, tally):
        self.route = taken
        self.tally = tally
        self.network = MemoryNetwork(nursery, listener_of(taken.passive))
        self.replicator = None
        self._resolver = resolver
        self._nursery = nursery
        self._scope = None

    @property
    def configuration(self):
        plan = self.route.plan(self._resolver, continuous=True)
        return trio_p2p.ReplicatorConfiguration(
            target=self.network.connect,
            target_id=str(self.route.passive.number),
            collections={
                each.collection: trio_p2p.CollectionConfiguration(
                    push_filter=each.push_filter,
                    pull_filter=each.pull_filter,
                    document_ids=each.document_ids,
                    conflict_resolver=each.resolver,
                )
                for each in plan.collections
            },
            replicator_type=TYPES[plan.push, plan.pull],
            continuous=plan.continuous,
            enable_delta_sync=plan.deltas,
            heartbeat=HEARTBEAT_S,
            max_attempt_wait=ATTEMPT_WAIT_S,
        )

    @property
    def must_be_done(self):
        """Whether nothing may be pending once all is calm: what comes back settles conflicts."""
        names = [name for name in NAMES if self.route.pushes(name)]
        return bool(names) and all(map(self.route.pulls, names))

    @property
    def has_pending(self):
        """Whether it says that it is yet to push anything."""
        configuration = self.replicator.configuration
        return self.route.push and any(
            self.replicator.pending_document_ids(plan.collection) for plan in configuration.plans()
        )

    async def start(self):
        self.replicator = trio_p2p.Replicator(self.configuration)
        await self._nursery.start(self._run)

    async def _run(self, *, task_status):
        with trio.CancelScope() as self._scope:
            await self.replicator.run(task_status=task_status)

    async def stop(self):
        await self.replicator.stop()
        await self.ended()

    async def ended(self):
        await self.replicator.wait_for(trio_p2p.ActivityLevel.STOPPED)
        done = self.replicator.statistics()
        self.tally["connected again"] += done.connections > 1
        self.tally.note(done)
        self.replicator = None

    async def lose(self, node):
        """The process of one of its ends is no more."""
        if node is self.route.active:
            self._scope.cancel()
            await self.ended()
        else:
            self.network.failure = ConnectionLostError("nobody is there")
        await self.network.cut()

    async def find(self, node):
        """The process has been started again."""
        if node is self.route.active:
            await self.start()
        else:
            self.network.listener = listener_of(node)
            self.network.failure = None

    def mend(self):
        self.network.failure = None
        self.network.silent = False
        self.network.thaw()
        self.replicator.resume()


class Errors(logging.Handler):
    """What is logged as an error: a guard caught what must not be."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.records = []

    def emit(self, record):
        self.records.append(self.format(record))


class Replicators(FleetMachine):
    """Peers in any topology, by replicators that run all the time and are seldom left alone."""

    def __init__(self):
        super().__init__()
        self.errors = Errors()
        logger = logging.getLogger("trio_p2p")
        logger.addHandler(self.errors)
        self.cleanup.callback(logger.removeHandler, self.errors)
        self.links = []

    @initialize(
        skews=st.lists(skews, min_size=2, max_size=NODES_MAX),
        resolver=resolvers,
        shape=shapes,
        data=st.data(),
    )
    def open_nodes(self, skews, resolver, shape, data):
        self.open_fleet(skews, resolver)
        self.fleet.standing = self.drawn_routes(shape, data.draw)
        nursery = self.driver.nursery
        self.links = [Link(each, resolver, nursery, self.tally) for each in self.fleet.standing]
        for link in self.links:
            self.run(link.start)

    @rule(seconds=pauses)
    def let_time_pass(self, seconds):
        self.wait(seconds)

    @rule(index=links)
    def cut(self, index):
        self.run(self.link(index).network.cut)

    @rule(index=links, seconds=pauses)
    def refuse_connections(self, index, seconds):
        network = self.link(index).network
        network.failure = ConnectionLostError("refused")
        self.run(network.cut)
        self.wait(seconds)

    @rule(index=links, seconds=pauses)
    def answer_nothing(self, index, seconds):
        network = self.link(index).network
        network.silent = True
        self.run(network.cut)
        self.wait(seconds)

    @rule(index=links, seconds=pauses)
    def freeze(self, index, seconds):
        self.link(index).network.freeze()
        self.wait(seconds)

    @rule(index=links)
    def mend(self, index):
        self.link(index).mend()

    @rule(index=links, seconds=pauses)
    def suspend(self, index, seconds):
        self.link(index).replicator.suspend()
        self.wait(seconds)

    @rule(index=links)
    def start_again(self, index):
        self.run(self.link(index).stop)
        self.run(self.link(index).start)

    @rule(node=nodes)
    def crash(self, node):
        crashed = self.node(node)
        joined = [link for link in self.links if crashed in (link.route.active, link.route.passive)]
        for link in joined:
            self.run(link.lose, crashed)
        self.fleet.crash(crashed)
        self.run(crashed.wait_open)
        for link in joined:
            self.run(link.find, crashed)
        self.tally["crashed"] += 1

    @rule()
    def calm(self):
        for link in self.links:
            link.mend()
        self.wait(CALM_S)
        # What was refused, where nothing can tell that it would be taken now, is proposed again at
        # the next start.
        for link in self.links:
            if link.has_pending:
                assert not link.must_be_done
                self.run(link.stop)
                self.run(link.start)
        self.wait(CALM_S)
        for link in self.links:
            status = link.replicator.status
            assert status.activity is trio_p2p.ActivityLevel.IDLE, status
        self.run(self.fleet.calm, self.fleet.standing)

    @invariant()
    def nothing_fails_that_is_a_bug(self):
        assert self.errors.records == []

    def link(self, index):
        return self.links[index % len(self.links)]

    def finish(self):
        self.calm()
        for link in self.links:
            self.run(link.stop)
        # Until the listeners have seen the goodbyes.
        self.wait(HEARTBEAT_S)
        self.nothing_fails_that_is_a_bug()


def test_replicators_come_back_whatever_the_network_does():
    run_machine(
        Replicators,
        examples=200,
        reaching=[
            "connected again",
            "crashed",
            "conflict resolved",
            "delta pushed",
            "blob pulled",
            "proposal answered 0",
            "proposal answered 409",
            "merge stored",
        ],
    )
