"""A listener's connections: how they begin, what is told of them, and how they end."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import ifaddr
import pytest
import trio
from pairs import Pair, open_pair
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

import trio_p2p
from trio_p2p import ActivityLevel, limits
from trio_p2p.blip import Message
from trio_p2p.errors import ConnectionLostError
from trio_p2p.peer import Peer
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.network import MemoryNetwork, open_network
from trio_p2p.transport.memory import MemoryTransport, memory_transport_pair

OFFLINE, IDLE, STOPPED = ActivityLevel.OFFLINE, ActivityLevel.IDLE, ActivityLevel.STOPPED


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path) as pair:
        yield pair


def loopback(database: trio_p2p.Database, **settings: Any) -> trio_p2p.URLEndpointListener:
    """A listener on loopback, without TLS unless told otherwise."""
    defaults = {
        "collections": [database.default_collection],
        "network_interface": "127.0.0.1",
        "disable_tls": True,
    }
    return trio_p2p.URLEndpointListener(
        trio_p2p.URLEndpointListenerConfiguration(**(defaults | settings))
    )


def dialling(listener: trio_p2p.URLEndpointListener) -> Callable[[], Awaitable[trio.abc.Stream]]:
    """A target that connects to a listener by TCP."""

    async def connect() -> trio.abc.Stream:
        assert listener.port is not None
        return await trio.open_tcp_stream("127.0.0.1", listener.port)

    return connect


# --- Connections of one's own ---------------------------------------------------------------------


async def test_a_message_transport_is_served_as_a_stream_is(
    pair: Pair, nursery: trio.Nursery
) -> None:
    async def connect() -> MemoryTransport:
        near, far = memory_transport_pair()
        nursery.start_soon(pair.network.listener.handle, far)
        await trio.lowlevel.checkpoint()
        return near

    await pair.shop.default_collection.put("apple", {})
    await pair.till.default_collection.put("pear", {})
    result = await trio_p2p.replicate(pair.configuration(target=connect, continuous=False))
    assert (result.documents_pushed, result.documents_pulled) == (1, 1)


async def test_who_comes_by_a_message_transport_takes_a_place_as_others_do(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async with open_pair(tmp_path, connections_max=1) as pair:
        listener = pair.network.listener

        async def connect() -> MemoryTransport:
            near, far = memory_transport_pair()
            nursery.start_soon(listener.handle, far)
            await trio.lowlevel.checkpoint()
            return near

        pull = trio_p2p.ReplicatorType.PULL
        config = pair.configuration(target=connect)
        other = pair.configuration(target=connect, replicator_type=pull)
        by_stream = pair.configuration(replicator_type=pull)
        async with trio_p2p.open_replicator(config) as seated:
            await seated.wait_for(IDLE)
            for settings, code in ((other, 4001), (by_stream, 503)):
                async with trio_p2p.open_replicator(settings) as second:
                    status = await second.wait_for(OFFLINE, IDLE)
                    assert isinstance(status.error, trio_p2p.ReplicationError)
                    assert status.error.status == code
                    assert listener.status.connection_count == 1
        async with trio_p2p.open_replicator(other) as second:
            await second.wait_for(IDLE)


async def test_nobody_can_be_authenticated_on_a_message_transport(tmp_path: Path) -> None:
    authenticator = trio_p2p.ListenerPasswordAuthenticator(lambda user, password: True)
    async with open_pair(tmp_path, authenticator=authenticator) as pair:
        _, far = memory_transport_pair()
        with pytest.raises(trio_p2p.ConfigurationError):
            await pair.network.listener.handle(far)


async def test_a_stream_of_ones_own_has_no_tls_beside_those_that_are_accepted_with_it(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    async with open_pair(tmp_path) as pair:
        keys = trio_p2p.MemoryKeyStore()
        listener = loopback(pair.shop, disable_tls=False, key_store=keys)
        await nursery.start(listener.serve)

        async def connect() -> trio.abc.Stream:
            # A socket too, as those that are accepted are.
            near, far = trio.socket.socketpair()
            nursery.start_soon(listener.handle, trio.SocketStream(far))
            await trio.lowlevel.checkpoint()
            return trio.SocketStream(near)

        await pair.till.default_collection.put("pear", {})
        result = await trio_p2p.replicate(pair.configuration(target=connect, continuous=False))
        assert result.documents_pushed == 1
        await listener.stop()


@pytest.mark.parametrize("way", ["stop", "close"])
async def test_connections_of_ones_own_end_with_a_goodbye(
    tmp_path: Path, autojump_clock: Any, way: str
) -> None:
    async with (
        open_pair(tmp_path) as pair,
        open_test_database(tmp_path / "other.p2p") as other,
        open_network([other.default_collection]) as network,
    ):
        config = pair.configuration(target=network.connect, target_id="other")
        async with trio_p2p.open_replicator(config) as replicator:
            await replicator.wait_for(IDLE)
            if way == "stop":
                await network.listener.stop()
            else:
                await other.services.stop()
            status = await replicator.wait_for(OFFLINE)
            assert isinstance(status.error, trio_p2p.ReplicationError)
            assert status.error.status == 4001
            assert network.listener.status.connection_count == 0


async def test_how_it_says_goodbye_can_be_told(pair: Pair, autojump_clock: Any) -> None:
    async with trio_p2p.open_replicator(pair.configuration()) as replicator:
        await replicator.wait_for(IDLE)
        await pair.network.listener.stop(code=4002)
        status = await replicator.wait_for(STOPPED)
        assert isinstance(status.error, trio_p2p.ReplicationError)
        assert status.error.status == 4002


@pytest.mark.parametrize("code", [-1, 999, 1004, 1005, 1006, 1015, 2999, 5000, 70_000, "4001"])
async def test_a_goodbye_that_no_peer_would_take_is_refused(
    pair: Pair, autojump_clock: Any, code: Any
) -> None:
    async with trio_p2p.open_replicator(pair.configuration()) as replicator:
        await replicator.wait_for(IDLE)
        with pytest.raises(trio_p2p.ConfigurationError):
            await pair.network.listener.stop(code)
        await trio.sleep(1)
        assert replicator.status.activity is IDLE


async def test_one_that_is_not_let_in_yet_is_cut(
    pair: Pair, nursery: trio.Nursery, autojump_clock: Any
) -> None:
    near, far = memory_stream_pair()
    nursery.start_soon(pair.network.listener.handle, far)
    await wait_all_tasks_blocked()
    before = trio.current_time()
    await pair.network.listener.stop()
    assert trio.current_time() - before < 1
    assert await near.receive_some() == b""


async def test_after_a_stop_others_may_be_served(pair: Pair, autojump_clock: Any) -> None:
    for _ in range(3):
        async with trio_p2p.open_replicator(pair.configuration()) as replicator:
            await replicator.wait_for(IDLE)
            await pair.network.listener.stop()


async def test_on_a_closed_database_nobody_is_served(tmp_path: Path) -> None:
    async with open_test_database(tmp_path / "other.p2p") as other:
        listener = loopback(other)
    near, far = memory_stream_pair()
    with pytest.raises(trio_p2p.StoreClosedError):
        await listener.handle(far)
    assert await near.receive_some() == b""
    with pytest.raises(trio_p2p.StoreClosedError):
        await listener.serve()


class UnclosableStream(trio.abc.Stream):
    """A line that is broken, and says so also to whoever closes it."""

    async def send_all(self, data: object) -> None:
        raise OSError("broken")

    async def wait_send_all_might_not_block(self) -> None:
        raise OSError("broken")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        raise OSError("broken")

    async def aclose(self) -> None:
        raise OSError("broken")


class UnclosableTransport:
    """The same for whole messages."""

    async def send(self, message: bytes) -> None:
        raise OSError("broken")

    async def send_all(self, messages: object) -> None:
        raise OSError("broken")

    async def receive(self) -> bytes:
        raise OSError("broken")

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        raise OSError("broken")

    def abort(self) -> None:
        raise OSError("broken")


@pytest.mark.parametrize("connection", [UnclosableStream(), UnclosableTransport(), None])
async def test_who_serves_connections_hears_nothing_of_one_that_cannot_be_closed(
    pair: Pair, caplog: pytest.LogCaptureFixture, connection: Any
) -> None:
    await pair.network.listener.handle(connection, peer_address="there")
    assert any("there could not be closed" in each.getMessage() for each in caplog.records)
    assert pair.network.listener.status.connection_count == 0


# --- Stopping and starting again ------------------------------------------------------------------


async def test_it_can_be_started_and_stopped_over_and_over(
    pair: Pair, nursery: trio.Nursery
) -> None:
    listener = loopback(pair.shop)
    await listener.stop()
    for _ in range(3):
        await nursery.start(listener.serve)
        with pytest.raises(trio_p2p.ConfigurationError):
            await listener.serve()
        config = pair.configuration(target=dialling(listener), continuous=False)
        await trio_p2p.replicate(config)
        await listener.stop()
        await listener.stop()
        assert (listener.port, listener.urls, listener.tls_identity) == (None, [], None)


async def test_a_stop_is_meant_for_one_that_is_about_to_listen_too(pair: Pair) -> None:
    listener = loopback(pair.shop)
    for _ in range(20):  # Trio lets tasks run in any order.
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.serve)
                await listener.stop()
                assert listener.port is None


async def test_one_that_could_not_listen_may_be_started_again(
    pair: Pair, nursery: trio.Nursery
) -> None:
    taken = loopback(pair.shop)
    await nursery.start(taken.serve)
    listener = loopback(pair.shop, port=taken.port)
    for _ in range(2):
        with pytest.raises(trio_p2p.ListenError):
            await listener.serve()
        assert listener.port is None
    await taken.stop()
    await nursery.start(listener.serve)
    assert listener.port is not None
    await listener.stop()


async def test_a_peer_that_hears_no_goodbye_holds_up_the_stop_no_longer_than_allowed(
    pair: Pair, autojump_clock: Any
) -> None:
    async with trio_p2p.open_replicator(pair.configuration()) as replicator:
        await replicator.wait_for(IDLE)
        pair.network.freeze()
        before = trio.current_time()
        await pair.network.listener.stop()
        assert trio.current_time() - before < limits.STOP_TIMEOUT_S + limits.CUT_TIMEOUT_S + 1
        assert pair.network.listener.status.connection_count == 0


UPGRADE = b"""\
GET /_blipsync HTTP/1.1\r
Host: localhost\r
Connection: Upgrade\r
Upgrade: websocket\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r
Sec-WebSocket-Protocol: BLIP_3+CBMobile_4\r
\r
"""


async def come_in(listener: trio_p2p.URLEndpointListener) -> trio.SocketStream:
    """Connect, get in, and say and hear nothing more."""
    assert listener.port is not None
    stream = await trio.open_tcp_stream("127.0.0.1", listener.port)
    await stream.send_all(UPGRADE)
    assert b"101" in await stream.receive_some()
    await wait_all_tasks_blocked()  # The other side has to get on, too.
    return stream


async def test_it_tells_of_no_place_to_connect_to_while_its_last_connections_end(
    pair: Pair, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = trio.Event()

    async def linger(session: PassiveSession) -> None:
        await may_end.wait()

    monkeypatch.setattr(PassiveSession, "run", linger)
    listener = loopback(pair.shop)
    await nursery.start(listener.serve)
    async with await come_in(listener):
        nursery.start_soon(listener.stop)
        await wait_all_tasks_blocked()
        assert listener.status.connection_count == 1
        assert (listener.port, listener.urls, listener.tls_identity) == (None, [], None)
        may_end.set()


# --- Collections that are deleted -----------------------------------------------------------------


async def sync_notes(pair: Pair, network: MemoryNetwork, **settings: Any) -> None:
    """Replicate the default collection and the notes of the till."""
    collections = [pair.till.default_collection, pair.till.collection("notes")]
    defaults = {"target": network.connect, "collections": collections, "continuous": False}
    await trio_p2p.replicate(pair.configuration(**(defaults | settings)))


@pytest.mark.parametrize("made_again", [False, True])
async def test_a_collection_that_was_deleted_is_not_found_by_peers(
    pair: Pair, autojump_clock: Any, made_again: bool
) -> None:
    await pair.till.create_collection("notes")
    notes = await pair.shop.create_collection("notes")
    async with open_network([pair.shop.default_collection, notes]) as network:
        await pair.shop.delete_collection("notes")
        if made_again:
            # Another one of that name, which nobody said is to be served.
            await pair.shop.create_collection("notes")
        with pytest.raises(trio_p2p.ReplicationError, match="collection not found") as caught:
            await sync_notes(pair, network)
        assert caught.value.status == 404
        assert len(network.attempted_at) == 1
        # All others are served.
        await pair.till.default_collection.put("pear", {})
        await sync_notes(pair, network, collections=[pair.till.default_collection])
        assert pair.shop.default_collection.count == 1


@pytest.mark.parametrize(
    ("kind", "edits"),
    # One that pulls is told at once, one that only pushes when it does so.
    [(trio_p2p.ReplicatorType.PULL, False), (trio_p2p.ReplicatorType.PUSH, True)],
)
async def test_a_peer_is_told_goodbye_when_a_collection_is_deleted_and_comes_back_to_404(
    pair: Pair, autojump_clock: Any, kind: trio_p2p.ReplicatorType, edits: bool
) -> None:
    mine = [pair.till.default_collection, await pair.till.create_collection("notes")]
    notes = await pair.shop.create_collection("notes")
    async with open_network([pair.shop.default_collection, notes]) as network:
        config = pair.configuration(
            target=network.connect, collections=mine, replicator_type=kind, continuous=True
        )
        async with trio_p2p.open_replicator(config) as replicator:
            await replicator.wait_for(IDLE)
            await pair.shop.delete_collection("notes")
            if edits:
                await mine[1].put("milk", {})
            for level, code in ((OFFLINE, 4001), (STOPPED, 404)):
                status = await replicator.wait_for(level)
                assert isinstance(status.error, trio_p2p.ReplicationError)
                assert status.error.status == code
        assert len(network.attempted_at) == 2


async def test_it_does_not_begin_to_serve_a_collection_that_was_deleted(pair: Pair) -> None:
    notes = await pair.shop.create_collection("notes")
    listener = loopback(pair.shop, collections=[pair.shop.default_collection, notes])
    await pair.shop.delete_collection("notes")
    with pytest.raises(trio_p2p.CollectionNotFoundError, match="notes"):
        async with trio_p2p.open_listener(listener.configuration):
            pass
    with pytest.raises(trio_p2p.CollectionNotFoundError, match="notes"):
        await listener.serve()
    assert listener.port is None


# --- Several of them, and apart from each other ---------------------------------------------------


async def test_several_serve_one_database_beside_a_replicator_of_it(
    tmp_path: Path, autojump_clock: Any
) -> None:
    """What one peer pushes goes on through the database to the others."""
    async with (
        open_pair(tmp_path) as pair,
        open_test_database(tmp_path / "desk.p2p") as desk,
        open_network([pair.shop.default_collection]) as second,
        open_network([pair.till.default_collection]) as third,
    ):
        from_desk = trio_p2p.ReplicatorConfiguration(
            target=second.connect, collections=[desk.default_collection], continuous=True
        )
        between = trio_p2p.ReplicatorConfiguration(
            target=third.connect, collections=[pair.shop.default_collection], continuous=True
        )
        async with (
            trio_p2p.open_replicator(pair.configuration()) as first,
            trio_p2p.open_replicator(from_desk),
            trio_p2p.open_replicator(between),
        ):
            await first.wait_for(IDLE)
            await desk.default_collection.put("plum", {})
            await pair.till.default_collection.put("pear", {})
            await trio.sleep(5)
            for database in (desk, pair.shop, pair.till):
                assert database.default_collection.count == 2


async def test_a_stalled_peer_holds_up_no_other_and_is_let_go(
    pair: Pair, nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """It asks for everything and answers nothing."""
    async with pair.shop.default_collection.batch() as batch:
        for number in range(500):
            batch.put(f"doc-{number}", {"text": "x" * 1_000})
    near, far = memory_transport_pair()
    nursery.start_soon(pair.network.listener.handle, far)
    stalled = Peer(near)

    async def run() -> None:
        with pytest.raises(ConnectionLostError):
            await stalled.run(lambda number, message: None)

    nursery.start_soon(run)
    names = b'{"collections":["_default"],"checkpoint_ids":["cp"]}'
    await stalled.request(Message({"Profile": "getCollections"}, names))
    properties = {"Profile": "subChanges", "collection": "0", "continuous": "true"}
    await stalled.request(Message(properties))
    await wait_all_tasks_blocked()
    assert pair.network.listener.status.active_connection_count == 1
    result = await trio_p2p.replicate(pair.configuration(continuous=False))
    assert result.documents_pulled == 500
    await trio.sleep(1.5 * limits.SILENCE_TIMEOUT_S)
    assert pair.network.listener.status.connection_count == 0


async def test_what_one_connection_does_wrong_ends_that_one_alone(
    pair: Pair, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> bytes:
        raise LookupError("a transport that breaks its rules")

    async with trio_p2p.open_replicator(pair.configuration()) as replicator:
        await replicator.wait_for(IDLE)
        _, far = memory_transport_pair()
        far.receive = fail  # type: ignore[method-assign]
        await pair.network.listener.handle(far)
        assert "breaks its rules" in caplog.text
        await pair.till.default_collection.put("pear", {})
        await trio.sleep(5)
        assert pair.shop.default_collection.count == 1
        assert replicator.status.activity is IDLE


# --- What it tells --------------------------------------------------------------------------------


async def test_it_tells_who_is_connected_and_how_busy(tmp_path: Path, autojump_clock: Any) -> None:
    def is_right(user: str, password: str) -> bool:
        return password == "s3cret"

    authenticator = trio_p2p.ListenerPasswordAuthenticator(is_right)
    async with open_pair(tmp_path, authenticator=authenticator) as pair:
        listener = pair.network.listener
        assert listener.connections() == []
        config = pair.configuration(authenticator=trio_p2p.BasicAuthenticator("ann", "s3cret"))
        async with trio_p2p.open_replicator(config) as replicator:
            await replicator.wait_for(IDLE)
            [connection] = listener.connections()
            assert connection.user == "ann"
            assert connection.activity is IDLE
            assert not connection.active
            assert listener.status == trio_p2p.ListenerStatus(1, 0)
        await wait_all_tasks_blocked()
        assert listener.connections() == []


async def test_its_connections_are_told_in_the_order_in_which_they_came(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    now = 1_800_000_000 * 10**9
    async with open_test_database(tmp_path / "shop.p2p", clock=lambda: now) as shop:
        listener = loopback(shop)
        await nursery.start(listener.serve)
        came = []
        for _ in range(3):
            came.append(await come_in(listener))
            # Somebody sets the clock back.
            now -= 3600 * 10**9
        told = [connection.peer_address for connection in listener.connections()]
        ours = [stream.socket.getsockname() for stream in came]
        assert told == [f"{host}:{port}" for host, port in ours]
        for stream in came:
            stream.socket.close()
        await listener.stop()


@pytest.mark.parametrize("name", ["_shop", "a b", "Müsli & Söhne", "50%"])
async def test_its_urls_name_the_database_whatever_it_is_called(
    tmp_path: Path, nursery: trio.Nursery, name: str
) -> None:
    async with open_pair(tmp_path) as pair, open_test_database(tmp_path / f"{name}.p2p") as other:
        listener = loopback(other)
        await nursery.start(listener.serve)
        [url] = listener.urls
        assert url.startswith(f"ws://127.0.0.1:{listener.port}/")
        await pair.till.default_collection.put("pear", {})
        config = trio_p2p.ReplicatorConfiguration(
            target=url, collections=[pair.till.default_collection]
        )
        assert (await trio_p2p.replicate(config)).documents_pushed == 1
        await listener.stop()


async def test_its_urls_tell_where_it_listens_whatever_becomes_of_the_interface(
    pair: Pair, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    [name] = [a.name for a in ifaddr.get_adapters() for ip in a.ips if ip.ip == "127.0.0.1"]
    listener = loopback(pair.shop, network_interface=name)
    await nursery.start(listener.serve)
    told = listener.urls
    other = ifaddr.IP("192.0.2.1", 24, name)
    for adapters in ([], [ifaddr.Adapter(name, name, [other])]):
        monkeypatch.setattr(ifaddr, "get_adapters", lambda adapters=adapters: adapters)
        assert listener.urls == told
    await listener.stop()


# --- Silence --------------------------------------------------------------------------------------


async def test_each_side_notices_by_missing_pongs_that_the_other_is_gone(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with open_pair(tmp_path, heartbeat=60) as pair:
        config = pair.configuration(heartbeat=30, max_attempt_wait=10)
        async with trio_p2p.open_replicator(config) as replicator:
            await replicator.wait_for(IDLE)
            await trio.sleep(1_000)
            # Nothing to say is no reason to go.
            assert replicator.statistics().connections == 1
            pair.network.freeze()
            frozen_at = trio.current_time()
            status = await replicator.wait_for(OFFLINE)
            assert isinstance(status.error, trio_p2p.ReplicationError)
            assert status.error.status == 1006
            assert trio.current_time() - frozen_at < 30 + limits.PONG_TIMEOUT_S + 1
            await trio.sleep(60 + limits.PONG_TIMEOUT_S)
            assert pair.network.listener.status.connection_count == 0
            pair.network.thaw()
            await pair.till.default_collection.put("pear", {})
            await replicator.wait_for(IDLE)
            assert pair.shop.default_collection.count == 1
