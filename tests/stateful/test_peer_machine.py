"""Two peers on one transport: every request gets its own answer, whatever is cancelled or cut."""

import math
from functools import partial
from unittest import mock

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import ConnectionLostError, PeerError, RemoteProtocolError
from trio_p2p.peer import Peer
from trio_p2p.testing.driver import TrioDriver
from trio_p2p.testing.exchanges import scripted_delays
from trio_p2p.transport.memory import Faults, memory_transport_pair

sides = st.integers(0, 1)
sizes = st.integers(0, 100) | st.integers(0, 100_000)
choices = st.tuples(st.booleans(), st.booleans())


class Call:
    """A request that somebody waits for."""

    def __init__(self):
        self.scope = trio.CancelScope()
        self.outcome = None

    async def run(self, peer, message):
        with self.scope:
            try:
                self.outcome = await peer.request(message)
            except (PeerError, ConnectionLostError) as exc:
                self.outcome = exc


class Peers(RuleBasedStateMachine):
    """Each side collects the other's requests, and answers them later, in any order."""

    def __init__(self):
        super().__init__()
        # Whoever is asked here may take his time.
        self.patience = mock.patch.object(limits, "SILENCE_TIMEOUT_S", math.inf)
        self.patience.start()
        self.driver = TrioDriver()
        self.numbers = iter(range(10**9))

    @initialize(
        seed=st.integers(0, 1_000),
        cut=st.none() | st.integers(0, 300),
        torn=st.booleans(),
        compressions=st.tuples(st.booleans(), st.booleans()),
    )
    def connect(self, seed, cut, torn, compressions):
        faults = Faults(delay_s=scripted_delays(seed, {}), cut_after_messages=cut, torn=torn)
        self.transports = memory_transport_pair(faults=faults)
        self.peers = [
            Peer(transport, compression=compression)
            for transport, compression in zip(self.transports, compressions, strict=True)
        ]
        # What each side was asked, by its name; and what it answered.
        self.asked = ({}, {})
        # Of requests that are yet to arrive.
        self.bodies = {}
        self.may_be_lost = cut is not None
        self.answers = {}
        self.calls = {}
        self.callbacks = {}
        self.ended = []
        for side in (0, 1):
            self.driver.nursery.start_soon(self.serve, side)

    async def serve(self, side):
        try:
            await self.peers[side].run(partial(self.note_request, side))
        except (ConnectionLostError, RemoteProtocolError) as exc:
            self.ended.append(exc)

    def note_request(self, side, number, message):
        name = message.properties["name"]
        assert message.body == self.bodies.pop(name)
        assert name not in self.asked[side]
        if not message.no_reply:
            self.asked[side][name] = number

    @rule(side=sides, size=sizes, choices=choices)
    def request(self, side, size, choices):
        name, message = self.message(size, *choices)
        call = self.calls[name] = Call()
        self.driver.nursery.start_soon(call.run, self.peers[side], message)

    @rule(side=sides, size=sizes, choices=choices)
    def send(self, side, size, choices):
        name, message = self.message(size, *choices)
        self.callbacks[name] = []
        self.peers[side].send(message, self.callbacks[name].append)

    @rule(side=sides, size=sizes, choices=choices)
    def send_without_reply(self, side, size, choices):
        _, message = self.message(size, *choices, no_reply=True)
        self.peers[side].send(message)

    def message(self, size, urgent, compressed, *, no_reply=False):
        name = str(next(self.numbers))
        body = (name.encode() * 20_000)[:size]
        self.bodies[name] = body
        return name, Message({"name": name}, body, urgent, compressed, no_reply)

    @precondition(lambda self: any(self.asked))
    @rule(data=st.data(), size=sizes, code=st.none() | st.integers(400, 599))
    def answer(self, data, size, code):
        side = data.draw(st.sampled_from([side for side in (0, 1) if self.asked[side]]))
        name = data.draw(st.sampled_from(sorted(self.asked[side])))
        number = self.asked[side].pop(name)
        if code is None:
            self.answers[name] = Message({"to": name}, (name.encode() * 20_000)[:size])
            self.peers[side].reply(number, self.answers[name])
        else:
            self.answers[name] = code
            self.peers[side].refuse(number, "HTTP", code, name)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data):
        """Whoever waits no longer leaves the connection as it was."""
        name = data.draw(st.sampled_from(sorted(self.calls)))
        self.calls[name].scope.cancel()

    @rule(seconds=st.sampled_from((0.0, 0.1, 1.0, 5.0)))
    def let_it_run(self, seconds):
        self.driver.run(trio.sleep, seconds)

    @rule(side=sides)
    def flush(self, side):
        self.driver.run(self.peers[side].flush)

    @rule(side=sides, how=st.sampled_from(("cut", "abort")))
    @precondition(lambda self: len(self.calls) > 8)
    def end(self, side, how):
        self.may_be_lost = True
        getattr(self.transports[side], how)()

    def teardown(self):
        try:
            if hasattr(self, "peers"):
                self.finish()
        finally:
            self.driver.close()
            self.patience.stop()

    def finish(self):
        self.driver.run(trio.sleep, 10_000)
        for side in (0, 1):
            for name, number in sorted(self.asked[side].items()):
                self.answers[name] = Message({"to": name})
                self.peers[side].reply(number, self.answers[name])
        self.driver.run(trio.sleep, 10_000)
        lost = bool(self.ended)
        assert self.may_be_lost or not lost, self.ended
        cancelled = {name for name, call in self.calls.items() if call.scope.cancelled_caught}
        assert lost or self.bodies.keys() <= cancelled
        for name, call in self.calls.items():
            if name not in cancelled:
                self.check(name, call.outcome, lost)
        self.transports[0].cut()
        self.driver.run(trio.sleep, 10_000)
        assert len(self.ended) == 2
        assert all(isinstance(exc, ConnectionLostError) for exc in self.ended)
        for name, outcomes in self.callbacks.items():
            (outcome,) = outcomes
            self.check(name, outcome, lost)
        assert not self.driver.nursery.child_tasks

    def check(self, name, outcome, lost):
        """It is the answer that was given, or the connection was lost first."""
        if isinstance(outcome, ConnectionLostError):
            assert lost
            return
        answer = self.answers[name]
        if isinstance(outcome, PeerError):
            assert (outcome.domain, outcome.code, outcome.text) == ("HTTP", answer, name)
        else:
            assert (outcome.properties, outcome.body) == (answer.properties, answer.body)


TestPeers = Peers.TestCase
TestPeers.settings = settings(stateful_step_count=40)
