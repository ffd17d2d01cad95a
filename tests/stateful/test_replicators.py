"""Replicators and listeners as users run them, over a network in memory that fails.

The machines beside this one run one session at a time; here the replicators connect again by
themselves, are suspended and resumed, and find out alone that nobody answers.
"""

import logging
from dataclasses import replace

from fleet_machine import (
    NODES_MAX,
    FleetMachine,
    route,
    run_machine,
    shaped,
    shapes,
    skews,
)
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

import trio_p2p
from trio_p2p.errors import ConnectionLostError
from trio_p2p.testing.histories import RESOLVERS
from trio_p2p.testing.network import MemoryNetwork

HEARTBEAT_S = 30.0
ATTEMPT_WAIT_S = 20.0
# Until a replicator has noticed that nobody answers and come back, and all is passed on.
CALM_S = 3 * (HEARTBEAT_S + ATTEMPT_WAIT_S)

links = st.integers(0, 20)
pauses = st.sampled_from((0.0, 0.01, 1.0, 10.0, 100.0))


class Link:
    """A replicator that is to run for ever, and its network."""

    def __init__(self, taken, resolver, nursery, tally):
        self.route = taken
        self.tally = tally
        passive, active = taken.passive, taken.active
        listening = trio_p2p.URLEndpointListenerConfiguration(
            collections=passive.collections,
            disable_tls=True,
            heartbeat=HEARTBEAT_S,
            enable_delta_sync=True,
        )
        listener = trio_p2p.URLEndpointListener(listening)
        self.network = MemoryNetwork(nursery, listener)
        self.configuration = trio_p2p.ReplicatorConfiguration(
            target=self.network.connect,
            target_id=str(passive.number),
            collections={
                collection: trio_p2p.CollectionConfiguration(conflict_resolver=resolver)
                for collection in active.collections
            },
            continuous=True,
            heartbeat=HEARTBEAT_S,
            max_attempt_wait=ATTEMPT_WAIT_S,
        )
        self.replicator = None
        self._nursery = nursery

    async def start(self):
        deltas = self.route.active.permits_deltas
        configuration = replace(self.configuration, enable_delta_sync=deltas)
        self.replicator = trio_p2p.Replicator(configuration)
        await self._nursery.start(self.replicator.run)

    async def stop(self):
        await self.replicator.stop()
        await self.replicator.wait_for(trio_p2p.ActivityLevel.STOPPED)
        done = self.replicator.statistics()
        self.tally["connected again"] += done.connections > 1
        self.tally.note(done)
        self.replicator = None

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
    """All peers are joined both ways; no connection is left alone for long."""

    def __init__(self):
        super().__init__()
        self.errors = Errors()
        logger = logging.getLogger("trio_p2p")
        logger.addHandler(self.errors)
        self.cleanup.callback(logger.removeHandler, self.errors)
        self.links = []

    @initialize(
        skews=st.lists(skews, min_size=2, max_size=4),
        resolver=st.sampled_from(RESOLVERS),
        shape=shapes,
        turned=st.lists(st.booleans(), min_size=NODES_MAX, max_size=NODES_MAX),
    )
    def open_nodes(self, skews, resolver, shape, turned):
        self.open_fleet(skews, resolver)
        joints = shaped(shape, self.fleet.nodes)
        self.fleet.standing = [
            route(*(pair[::-1] if turn else pair))
            for pair, turn in zip(joints, turned, strict=False)
        ]
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

    @rule()
    def calm(self):
        for link in self.links:
            link.mend()
        self.wait(CALM_S)
        for link in self.links:
            status = link.replicator.status
            assert status.activity is trio_p2p.ActivityLevel.IDLE, status
            for collection in link.route.active.collections:
                assert link.replicator.pending_document_ids(collection) == frozenset()
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
        examples=50,
        reaching=[
            "connected again",
            "conflict resolved",
            "delta pushed",
            "blob pulled",
            "proposal answered 0",
            "proposal answered 409",
            "merge stored",
        ],
    )
