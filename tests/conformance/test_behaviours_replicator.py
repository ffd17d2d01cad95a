"""The life of a replicator: what it is doing, when it tries again, and when it ends."""

import dataclasses
import socket
from contextlib import suppress

import pytest
import trio
from loopback import PULL, PUSH, Pair, ids, open_pair, put_many
from raw import RawServer
from trio.testing import wait_all_tasks_blocked

from trio_p2p import (
    ActivityLevel,
    BasicAuthenticator,
    ConfigurationError,
    Direction,
    DocumentFlags,
    ListenerPasswordAuthenticator,
    PeerError,
    PeerUnreachableError,
    ReplicationError,
    Replicator,
    ReplicatorConfiguration,
    ReplicatorType,
)
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.testing.databases import open_test_database
from trio_p2p.transport.memory import memory_transport_pair

OFFLINE, CONNECTING = ActivityLevel.OFFLINE, ActivityLevel.CONNECTING
IDLE, BUSY, STOPPED = ActivityLevel.IDLE, ActivityLevel.BUSY, ActivityLevel.STOPPED


class Levels:
    """Notes every status of a replicator."""

    def __init__(self, replicator, nursery):
        self.statuses = []
        nursery.start_soon(self._watch, replicator)

    async def _watch(self, replicator):
        async for status in replicator.status_changes():
            self.statuses.append(status)

    @property
    def levels(self):
        """The activities, each change once."""
        found = [status.activity for status in self.statuses]
        return [level for n, level in enumerate(found) if n == 0 or found[n - 1] is not level]


@pytest.mark.behaviour("R1")
async def test_a_replicator_that_never_runs_has_no_error_and_needs_no_disposal(pair):
    replicator = Replicator(pair.configuration())
    assert replicator.status.activity is ActivityLevel.STOPPED
    assert replicator.status.error is None
    assert replicator.status.progress.total == 0
    assert replicator.result().errors == ()
    assert pair.attempts == 0


@pytest.mark.behaviour("R2")
async def test_no_collections_or_those_of_several_databases_are_refused(pair):
    for collections in ([], {}, [pair.mine, pair.theirs]):
        with pytest.raises(ConfigurationError, match="collection"):
            pair.configuration(collections=collections)


@pytest.mark.behaviour("R3")
async def test_a_configuration_is_kept_as_it_was_given_and_cannot_be_changed(pair):
    settings = {
        "target": "wss://shop.example:4984/db",
        "collections": (pair.mine,),
        "target_id": "shop",
        "replicator_type": PULL,
        "continuous": True,
        "authenticator": BasicAuthenticator("ann", "s3cret"),
        "headers": {"X-Till": "3"},
        "heartbeat": 30.0,
        "max_attempts": 7,
        "max_attempt_wait": 9.0,
        "compression": False,
    }
    given = {"collections": [pair.mine], "headers": {"X-Till": "3"}}
    replicator = Replicator(ReplicatorConfiguration(**settings | given))
    # What was given may be changed, but is not the configuration.
    given["collections"].clear()
    given["headers"].clear()
    for name, value in settings.items():
        assert getattr(replicator.configuration, name) == value
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(replicator.configuration, name, value)
    bare = ReplicatorConfiguration(target="wss://shop.example/db", collections=[pair.mine])
    assert (bare.authenticator, bare.headers, bare.max_attempts) == (None, {}, None)
    assert bare.replicator_type is ReplicatorType.PUSH_AND_PULL


@pytest.mark.behaviour("R4", "R12")
async def test_where_nobody_listens_it_goes_offline_before_each_further_attempt(
    pair, nursery, autojump_clock
):
    await pair.mine.put("a", {})

    async def refuse():
        await trio.sleep(1)
        raise PeerUnreachableError("connection refused")

    configuration = pair.configuration(target=refuse, max_attempts=4, max_attempt_wait=2)
    replicator = Replicator(configuration)
    watched = Levels(replicator, nursery)
    await replicator.run()
    await wait_all_tasks_blocked()
    assert watched.levels == [CONNECTING, OFFLINE, *[CONNECTING, OFFLINE] * 2, CONNECTING, STOPPED]
    assert "connection refused" in str(replicator.status.error)
    progress = replicator.status.progress
    assert (progress.completed, progress.total) == (0, 0)


class NoNames(trio.abc.HostnameResolver):
    """Knows no host."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr, flags):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.behaviour("R5")
async def test_an_unknown_host_ends_a_one_shot_replication_with_an_error_of_the_name(pair, nursery):
    trio.socket.set_custom_hostname_resolver(NoNames())
    try:
        replicator = Replicator(
            pair.configuration(target="ws://nobody.invalid/db", max_attempts=None)
        )
        watched = Levels(replicator, nursery)
        await replicator.run()
        await wait_all_tasks_blocked()
    finally:
        trio.socket.set_custom_hostname_resolver(None)
    assert watched.levels == [CONNECTING, STOPPED]
    assert "no host of this name" in str(replicator.status.error)
    assert not replicator.status.error.retryable


@pytest.mark.behaviour("R6")
async def test_any_number_of_attempts_is_taken_as_it_is(pair, autojump_clock):
    attempts = []

    async def refuse():
        await trio.lowlevel.checkpoint()
        attempts.append(trio.current_time())
        raise PeerUnreachableError("connection refused")

    configuration = pair.configuration(target=refuse, max_attempts=2**64, max_attempt_wait=1)
    with trio.move_on_after(1_000):
        await Replicator(configuration).run()
    assert len(attempts) >= 1_000


@pytest.mark.behaviour("R7a")
@pytest.mark.parametrize("stops", [1, 2])
@pytest.mark.parametrize("when", ["at once", "busy", "idle"])
async def test_stopping_ends_it_stopped_however_often_and_whenever(
    pair, nursery, autojump_clock, stops, when
):
    await put_many(pair.mine, ids(*range(1, 801)))
    replicator = Replicator(pair.configuration(PUSH, continuous=True))
    await nursery.start(replicator.run)
    if when != "at once":
        await replicator.wait_for(BUSY if when == "busy" else IDLE)
    for _ in range(stops):
        await replicator.stop()
    assert replicator.status.activity is STOPPED
    assert replicator.status.error is None
    # What was done before is kept in the checkpoint.
    rest = 800 - replicator.statistics().documents_pushed
    run = await pair.replicate(PUSH)
    assert run.counts == (rest, 0)
    await pair.assert_equal()


class Transport:
    """A transport that does something else where it is told to say goodbye."""

    def __init__(self, transport, aclose):
        self._transport = transport
        self._aclose = aclose

    def __getattr__(self, name):
        return getattr(self._transport, name)

    async def aclose(self, code=1000, reason=""):
        await self._aclose(self._transport)


@pytest.mark.behaviour("R9b", "R10")
@pytest.mark.parametrize("way", ["cut", "abort", "silence"])
async def test_after_our_own_goodbye_nothing_that_happens_is_an_error(pair, nursery, way):
    async def misbehave(transport):
        if way != "silence":
            getattr(transport, way)()
        await trio.lowlevel.checkpoint()

    server = RawServer(nursery)

    async def connect():
        return Transport(await server.connect(), misbehave)

    await pair.mine.put("a", {})
    run = await pair.replicate(target=connect, target_id="raw")
    assert (run.error, run.counts) == (None, (1, 0))
    # The peer goes on talking to a replicator that is no more.
    server.offer([[1, "b", "1@BobBobBobBobBobBobBobA"]])
    await wait_all_tasks_blocked()
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("R9a", "R9c")
@pytest.mark.parametrize(
    ("code", "level"),
    [(1006, OFFLINE), (4001, OFFLINE), (1000, STOPPED), (1001, OFFLINE), (4002, STOPPED)],
)
async def test_how_the_peer_ends_the_connection_decides_whether_it_is_tried_again(
    pair, nursery, autojump_clock, code, level
):
    far_ends = []

    async def serve(transport):
        with suppress(ReplicationError):
            await PassiveSession(transport, [pair.theirs], Journal()).run()

    async def connect():
        near, far = memory_transport_pair()
        far_ends.append(far)
        nursery.start_soon(serve, far)
        await trio.lowlevel.checkpoint()
        return near

    configuration = pair.configuration(target=connect, continuous=True, max_attempts=None)
    replicator = Replicator(configuration)
    await nursery.start(replicator.run)
    await replicator.wait_for(IDLE)
    await far_ends[0].aclose(code)
    status = await replicator.wait_for(OFFLINE, STOPPED)
    assert status.activity is level
    assert status.error.retryable == (level is OFFLINE)
    if level is OFFLINE:
        await pair.theirs.put("a", {})
        await replicator.wait_for(IDLE)
        assert pair.mine.get("a") is not None
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("R11")
async def test_an_error_stays_in_the_status_after_the_stop(pair, nursery, autojump_clock):
    async def refuse():
        await trio.lowlevel.checkpoint()
        raise PeerUnreachableError("connection refused")

    configuration = pair.configuration(target=refuse, continuous=True, max_attempts=None)
    replicator = Replicator(configuration)
    await nursery.start(replicator.run)
    await replicator.wait_for(OFFLINE)
    await replicator.stop()
    assert replicator.status.activity is STOPPED
    assert "connection refused" in str(replicator.status.error)


@pytest.mark.behaviour("R12")
async def test_a_continuous_one_is_busy_for_every_change_and_idle_in_between(
    pair, nursery, autojump_clock
):
    async with pair.replicating() as replicator:
        watched = Levels(replicator, nursery)
        await replicator.wait_for(IDLE)
        for number in range(3):
            await pair.mine.put("a", {"n": number})
            await replicator.wait_for(BUSY)
            await replicator.wait_for(IDLE)
            await trio.sleep(1)
            await pair.theirs.put("b", {"n": number})
            await replicator.wait_for(BUSY)
            await replicator.wait_for(IDLE)
            await trio.sleep(1)
    await trio.sleep(1)
    levels = watched.levels
    assert levels[0] is CONNECTING
    assert levels[-1] is STOPPED
    assert set(levels[1:-1]) == {BUSY, IDLE}
    assert levels.count(BUSY) >= 6
    done = [(s.progress.completed, s.progress.total) for s in watched.statuses]
    assert done == sorted(done)
    assert all(completed <= total for completed, total in done)
    assert done[-1] == (6, 6)


@pytest.mark.behaviour("R14a", "R15a")
async def test_every_document_is_told_once_with_all_about_it(pair):
    shop = await pair.here.create_collection("shop.sales")
    await pair.there.create_collection("shop.sales")
    await put_many(pair.mine, ids(*range(1, 101)))
    await put_many(pair.theirs, ids(*range(101, 201)))
    await shop.put("sold", {})
    await shop.delete("sold")
    replicator = Replicator(pair.configuration())
    await replicator.run()
    events = [event async for event in replicator.document_replications()]
    told = {
        (e.direction, e.collection.scope, e.collection.name, e.document_id, e.flags) for e in events
    }
    assert len(events) == len(told) == 201
    assert all(event.error is None for event in events)
    assert told == {
        (Direction.PUSH, "shop", "sales", "sold", DocumentFlags.DELETED),
        *(
            (Direction.PUSH, "_default", "_default", name, DocumentFlags.NONE)
            for name in ids(*range(1, 101))
        ),
        *(
            (Direction.PULL, "_default", "_default", name, DocumentFlags.NONE)
            for name in ids(*range(101, 201))
        ),
    }


@pytest.mark.behaviour("R14a", "R15a", "G7")
async def test_a_document_that_failed_is_told_with_its_error(pair):
    await pair.mine.put("a", {"by": "here"})
    await pair.theirs.put("a", {"by": "there"})
    replicator = Replicator(pair.configuration(PUSH))
    await replicator.run()
    (event,) = [event async for event in replicator.document_replications()]
    assert (event.direction, event.document_id) == (Direction.PUSH, "a")
    assert isinstance(event.error, PeerError)
    assert event.error.code == 409
    assert replicator.result().errors == (event,)
    assert replicator.statistics().documents_failed == 1
    assert replicator.status.progress.document_count == 0


@pytest.mark.behaviour("R18")
async def test_without_a_pong_in_time_the_connection_is_made_again(pair, nursery, autojump_clock):
    streams = []

    async def connect():
        stream = await pair.connect()
        streams.append(stream)
        return stream

    configuration = pair.configuration(
        target=connect, continuous=True, heartbeat=30.0, max_attempts=None
    )
    replicator = Replicator(configuration)
    await nursery.start(replicator.run)
    await replicator.wait_for(IDLE)
    await trio.sleep(300)
    assert (replicator.status.activity, len(streams)) == (IDLE, 1)
    # From now on nothing that is sent arrives.
    streams[0].send_stream.send_all_hook = None
    before = trio.current_time()
    status = await replicator.wait_for(OFFLINE)
    assert trio.current_time() - before <= 30 + 20
    assert status.error.status == 1006
    await pair.theirs.put("a", {})
    await replicator.wait_for(IDLE)
    assert pair.mine.get("a") is not None
    assert len(streams) == 2
    await replicator.stop()


@pytest.mark.behaviour("R19a")
async def test_a_peer_that_is_not_there_at_first_is_found_once_it_is(pair, nursery, autojump_clock):
    up_at = trio.current_time() + 100

    async def connect():
        await trio.lowlevel.checkpoint()
        if trio.current_time() < up_at:
            raise PeerUnreachableError("connection refused")
        return await pair.connect()

    await pair.mine.put("a", {})
    run = await pair.replicate(target=connect, max_attempts=None)
    assert (run.error, run.counts) == (None, (1, 0))
    # Attempts that are limited end before.
    up_at = trio.current_time() + 100
    await pair.mine.put("b", {})
    run = await pair.replicate(target=connect, max_attempts=3)
    assert "connection refused" in str(run.error)
    assert run.counts == (0, 0)


@pytest.mark.behaviour("R19b")
@pytest.mark.parametrize("continuous", [False, True])
async def test_refused_credentials_are_not_tried_again(tmp_path, autojump_clock, continuous):

    nobody = ListenerPasswordAuthenticator(lambda user, password: False)
    async with open_pair(tmp_path, authenticator=nobody) as pair:
        run = await pair.replicate(
            authenticator=BasicAuthenticator("ann", "guess"),
            max_attempts=None,
            continuous=continuous,
        )
        assert run.error.status == 401
        assert pair.attempts == 1


# --- Stopping, suspending and resuming ------------------------------------------------------------


@pytest.mark.behaviour("R7b")
@pytest.mark.parametrize(
    ("steps", "level"),
    [
        ("stop", STOPPED),
        ("suspend resume", IDLE),
        ("suspend resume suspend", OFFLINE),
        ("stop suspend", STOPPED),
        ("suspend stop", STOPPED),
        ("stop resume", STOPPED),
        ("suspend stop resume", STOPPED),
        ("stop stop", STOPPED),
        ("suspend suspend resume", IDLE),
        ("resume", IDLE),
    ],
)
@pytest.mark.parametrize("when", ["at once", "busy", "idle"])
async def test_the_last_word_counts_and_stopping_beats_suspending(
    pair, nursery, autojump_clock, steps, level, when
):
    await put_many(pair.mine, ids(*range(1, 301)))
    replicator = Replicator(pair.configuration(continuous=True))
    await nursery.start(replicator.run)
    if when != "at once":
        await replicator.wait_for(BUSY if when == "busy" else IDLE)
    do = {
        "stop": replicator.request_stop,
        "suspend": replicator.suspend,
        "resume": replicator.resume,
    }
    for step in steps.split():
        # Without waiting for one before the next.
        do[step]()
    await trio.sleep(60)
    assert replicator.status.activity is level
    assert replicator.status.error is None
    await replicator.stop()
    assert replicator.status.activity is STOPPED


@pytest.mark.behaviour("R13")
async def test_suspended_it_is_offline_and_resumed_it_goes_on(pair, nursery, autojump_clock):
    replicator = Replicator(pair.configuration(continuous=True))
    await nursery.start(replicator.run)
    await replicator.wait_for(IDLE)
    for number in range(3):
        replicator.suspend()
        await replicator.wait_for(OFFLINE)
        attempts = pair.attempts
        await pair.mine.put(f"here{number}", {})
        await pair.theirs.put(f"there{number}", {})
        await trio.sleep(1_000)
        assert (replicator.status.activity, pair.attempts) == (OFFLINE, attempts)
        assert pair.theirs.get(f"here{number}") is None
        replicator.resume()
        await replicator.wait_for(IDLE)
        await pair.assert_equal()
    assert replicator.statistics().connections == 4
    await replicator.stop()


# --- Closing the database -------------------------------------------------------------------------


@pytest.mark.behaviour("R20")
@pytest.mark.parametrize("when", ["busy", "idle", "offline"])
async def test_closing_the_database_stops_its_replicators(
    tmp_path, pair, nursery, autojump_clock, when
):
    async with open_test_database(tmp_path / "closed", clock=pair.clock) as database:
        await put_many(database.default_collection, ids(*range(1, 301)))
        other = Pair(nursery, database, pair.there, pair.clock)
        replicator = Replicator(other.configuration(continuous=True))
        await nursery.start(replicator.run)
        await replicator.wait_for({"busy": BUSY, "idle": IDLE, "offline": CONNECTING}[when])
        if when == "offline":
            replicator.suspend()
            await replicator.wait_for(OFFLINE)
        closed_at = trio.current_time()
    # It was not cut off.
    assert trio.current_time() - closed_at < 1
    assert replicator.status.activity is STOPPED
    assert replicator.status.error is None
    if when == "idle":
        assert pair.theirs.count == 300
