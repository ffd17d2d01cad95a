"""Filters, read-only listeners and pending documents."""

import json

import pytest
import trio
import trio.testing
from loopback import PULL, PUSH, ids, open_pair, put_many
from raw import RawClient, RawServer

from trio_p2p import (
    ActivityLevel,
    CallbackError,
    CollectionConfiguration,
    CollectionNotFoundError,
    ConfigurationError,
    DocumentFlags,
    Replicator,
    ReplicatorType,
    URLEndpointListener,
    URLEndpointListenerConfiguration,
    limits,
)
from trio_p2p.testing.databases import open_test_database


def filtering(pair, **settings):
    """The configuration of the default collection alone."""
    return {"collections": {pair.mine: CollectionConfiguration(**settings)}}


def is_even(document, flags):
    assert flags is (DocumentFlags.DELETED if document.deleted else DocumentFlags.NONE)
    return document.deleted or document["n"] % 2 == 0


async def is_even_later(document, flags):
    await trio.sleep(1)
    return is_even(document, flags)


@pytest.fixture(params=[is_even, is_even_later], ids=["sync", "async"])
def even(request):
    return request.param


async def put_numbers(collection, count):
    async with collection.batch() as batch:
        for name, number in zip(ids(*range(count)), range(count), strict=True):
            batch.put(name, {"n": number})


@pytest.mark.behaviour("P20")
async def test_what_the_push_filter_holds_back_is_neither_sent_nor_failed_nor_pending(
    pair, even, autojump_clock
):
    await put_numbers(pair.mine, 10)
    replicator = Replicator(pair.configuration(PUSH, **filtering(pair, push_filter=even)))
    if even is is_even:
        assert replicator.pending_document_ids(pair.mine) == set(ids(0, 2, 4, 6, 8))
    await replicator.run()
    assert replicator.status.error is None
    assert replicator.result().documents_pushed == 5
    assert replicator.result().errors == ()
    assert replicator.pending_document_ids(pair.mine) == frozenset()
    assert pair.theirs.count == 5
    run = await pair.replicate(PUSH, **filtering(pair, push_filter=even))
    assert (run.counts, run.offered) == ((0, 0), 0)


@pytest.mark.behaviour("U7")
async def test_what_the_pull_filter_rejects_fails_alone_and_is_not_asked_for_again(
    pair, even, autojump_clock
):
    await put_numbers(pair.theirs, 10)
    run = await pair.replicate(PULL, **filtering(pair, pull_filter=even))
    assert run.error is None
    assert run.counts == (0, 5)
    codes = {name: error.code for name, error in run.pull_errors.items()}
    assert codes == dict.fromkeys(ids(1, 3, 5, 7, 9), 403)
    assert pair.mine.count == 5
    run = await pair.replicate(PULL, **filtering(pair, pull_filter=even))
    assert (run.counts, run.offered) == ((0, 0), 0)


async def test_a_filter_means_another_checkpoint(pair, autojump_clock):
    await put_numbers(pair.mine, 4)
    await pair.replicate(PUSH, **filtering(pair, push_filter=is_even))
    run = await pair.replicate(PUSH)
    assert run.counts == (2, 0)
    await pair.assert_equal()


async def never(document, flags):
    if document["n"] == 1:
        await trio.sleep_forever()
    return True


def raising(document, flags):
    if document["n"] == 1:
        raise LookupError("mine")
    return True


@pytest.mark.parametrize("function", [raising, never], ids=["raises", "never returns"])
@pytest.mark.parametrize("direction", ["push", "pull"])
async def test_a_filter_that_fails_holds_up_its_document_alone(
    pair, function, direction, autojump_clock
):
    source = pair.mine if direction == "push" else pair.theirs
    await put_numbers(source, 3)
    replicator = Replicator(
        pair.configuration(**filtering(pair, **{f"{direction}_filter": function}))
    )
    await replicator.run()
    result = replicator.result()
    assert result.documents_pushed + result.documents_pulled == 2
    [event] = result.errors
    assert event.document_id == ids(1)[0]
    assert isinstance(event.error, CallbackError)
    # It is asked again.
    run = await pair.replicate(**filtering(pair, **{f"{direction}_filter": lambda d, f: True}))
    assert sum(run.counts) == 1
    await pair.assert_equal()


async def test_a_filter_that_never_returns_does_not_keep_a_replicator_from_stopping(
    pair, autojump_clock
):
    await put_numbers(pair.mine, 3)
    configuration = pair.configuration(continuous=True, **filtering(pair, push_filter=never))
    replicator = Replicator(configuration)
    async with trio.open_nursery() as nursery:
        await nursery.start(replicator.run)
        await trio.sleep(1)
        with trio.fail_after(limits.STOP_TIMEOUT_S + 1):
            await replicator.stop()
    assert replicator.status.activity is ActivityLevel.STOPPED


@pytest.mark.behaviour("U8")
async def test_channels_are_passed_through(pair, autojump_clock):
    async with trio.open_nursery() as nursery:
        server = RawServer(nursery)
        settings = filtering(pair, channels=["a", "b"], document_ids=["x"])
        await pair.replicate(PULL, target=server.connect, **settings)
        [message] = server.told("subChanges")
        assert message.properties["filter"] == "sync_gateway/bychannel"
        assert message.properties["channels"] == "a,b"
        assert json.loads(message.body) == {"docIDs": ["x"]}
        nursery.cancel_scope.cancel()


@pytest.mark.behaviour("L15", "S8")
@pytest.mark.parametrize("kind", [ReplicatorType.PUSH_AND_PULL, PUSH])
@pytest.mark.parametrize("continuous", [False, True])
async def test_a_read_only_listener_refuses_pushes_and_writes_nothing(
    tmp_path, kind, continuous, autojump_clock
):
    async with open_pair(tmp_path, read_only=True) as pair:
        await put_many(pair.mine, ["a"])
        await put_many(pair.theirs, ["b"])
        replicator = Replicator(pair.configuration(kind, continuous=continuous, max_attempts=None))
        await replicator.run()
        assert replicator.status.activity is ActivityLevel.STOPPED
        assert replicator.status.error.status == 403
        assert not replicator.status.error.retryable
        assert (pair.theirs.get("a"), pair.theirs.count) == (None, 1)


@pytest.mark.behaviour("L15")
async def test_a_read_only_listener_is_pulled_from(tmp_path, autojump_clock):
    async with open_pair(tmp_path, read_only=True) as pair:
        await put_many(pair.theirs, ["b"])
        run = await pair.replicate(PULL)
        assert (run.error, run.counts) == (None, (0, 1))


@pytest.mark.behaviour("P22")
async def test_pending_documents_are_those_the_peer_lacks(pair, autojump_clock):
    await put_many(pair.mine, ids(*range(100)))
    whole = Replicator(pair.configuration(PUSH))
    some = Replicator(pair.configuration(PUSH, **filtering(pair, document_ids=ids(1, 2, 999))))
    assert len(whole.pending_document_ids(pair.mine)) == 100
    assert some.pending_document_ids(pair.mine) == set(ids(1, 2))
    assert some.is_document_pending(pair.mine, ids(1)[0])
    assert not some.is_document_pending(pair.mine, ids(3)[0])
    await whole.run()
    assert whole.pending_document_ids(pair.mine) == frozenset()
    assert not whole.is_document_pending(pair.mine, ids(1)[0])
    # Later, without a connection, and by another replicator of the same kind.
    await pair.mine.put(ids(5)[0], {"edited": True})
    await pair.mine.delete(ids(6)[0])
    await pair.mine.put("purged", {})
    await pair.mine.purge("purged")
    after = Replicator(pair.configuration(PUSH))
    assert after.pending_document_ids(pair.mine) == set(ids(5, 6))


async def test_what_was_refused_with_409_is_pending(pair, autojump_clock):
    await pair.theirs.put("a", {"by": "them"})
    await pair.mine.put("a", {"by": "us"})
    replicator = Replicator(pair.configuration(PUSH))
    await replicator.run()
    assert replicator.pending_document_ids(pair.mine) == {"a"}


async def test_what_was_pulled_is_not_pending(pair, autojump_clock):
    await put_many(pair.theirs, ["a", "b"])
    replicator = Replicator(pair.configuration(continuous=True))
    async with trio.open_nursery() as nursery:
        await nursery.start(replicator.run)
        await replicator.wait_for(ActivityLevel.IDLE)
        assert replicator.pending_document_ids(pair.mine) == frozenset()
        await replicator.stop()
    assert replicator.pending_document_ids(pair.mine) == frozenset()


async def test_pending_documents_of_what_is_not_pushed_are_an_error(pair, autojump_clock):
    with pytest.raises(ConfigurationError):
        Replicator(pair.configuration(PULL)).pending_document_ids(pair.mine)
    other = await pair.here.create_collection("other")
    with pytest.raises(CollectionNotFoundError):
        Replicator(pair.configuration(PUSH)).pending_document_ids(other)


@pytest.mark.behaviour("K5c")
async def test_each_collection_has_its_own_filter(pair, autojump_clock):
    settings = {}
    for name, least in (("one", 1), ("two", 2)):
        await pair.there.create_collection(name)
        collection = await pair.here.create_collection(name)
        await put_numbers(collection, 3)
        settings[collection] = CollectionConfiguration(
            push_filter=lambda document, flags, least=least: document["n"] >= least
        )
    run = await pair.replicate(PUSH, collections=settings)
    assert run.counts == (3, 0)
    assert [pair.there.collection(name).count for name in ("one", "two")] == [2, 1]


@pytest.mark.behaviour("R16")
async def test_a_filter_may_ask_for_the_status_and_stop_the_replicator(pair, autojump_clock):
    asked = []

    def stop(document, flags):
        asked.append(replicator.status.activity)
        replicator.request_stop()
        return True

    await put_numbers(pair.mine, 3)
    configuration = pair.configuration(continuous=True, **filtering(pair, push_filter=stop))
    replicator = Replicator(configuration)
    with trio.fail_after(limits.STOP_TIMEOUT_S + 1):
        await replicator.run()
    assert asked[0] is ActivityLevel.BUSY
    assert replicator.status.activity is ActivityLevel.STOPPED


@pytest.mark.behaviour("L17", "W8")
async def test_closing_a_database_stops_its_listeners_and_ends_the_sessions_of_their_peers(
    tmp_path, autojump_clock
):
    async with open_pair(tmp_path) as pair, trio.open_nursery() as nursery:
        async with open_test_database(tmp_path / "third") as third:
            settings = {"collections": [third.default_collection], "disable_tls": True}
            configuration = URLEndpointListenerConfiguration(
                network_interface="127.0.0.1", **settings
            )
            listener = URLEndpointListener(configuration)
            await nursery.start(listener.serve)

            async def connect():
                near, far = trio.testing.memory_stream_pair()
                nursery.start_soon(listener.handle, far)
                return near

            replicator = Replicator(pair.configuration(target=connect, continuous=True))
            await nursery.start(replicator.run)
            await replicator.wait_for(ActivityLevel.IDLE)
            closed_at = trio.current_time()
        # Nothing had to be cut off.
        assert trio.current_time() - closed_at < 1
        assert (listener.port, listener.urls) == (None, [])
        # It has one attempt, or it would come back.
        await trio.testing.wait_all_tasks_blocked()
        assert replicator.status.error.status == 4001
        nursery.cancel_scope.cancel()


@pytest.mark.behaviour("P22")
async def test_pending_documents_are_those_of_a_collection_that_is_pushed(pair):
    for database in (pair.here, pair.there):
        await database.create_collection("guitars")
        await database.create_collection("roses")
    guitars, roses = pair.here.collection("guitars"), pair.here.collection("roses")
    await put_many(guitars, ids(1, 2, 3))
    await put_many(roses, ids(1, 2))
    replicator = Replicator(pair.configuration(PUSH, collections=[guitars, roses]))
    assert sorted(replicator.pending_document_ids(guitars)) == ids(1, 2, 3)
    assert sorted(replicator.pending_document_ids(roses)) == ids(1, 2)
    with pytest.raises(CollectionNotFoundError):
        replicator.pending_document_ids(pair.mine)
    puller = Replicator(pair.configuration(PULL, collections=[guitars]))
    with pytest.raises(ConfigurationError):
        puller.pending_document_ids(guitars)
    with pytest.raises(ConfigurationError):
        puller.is_document_pending(guitars, "0000001")
    await pair.replicate(PUSH, collections=[guitars])
    # Another replicator of both has the same checkpoint of each.
    assert list(replicator.pending_document_ids(guitars)) == []
    assert sorted(replicator.pending_document_ids(roses)) == ids(1, 2)


@pytest.mark.behaviour("R16")
@pytest.mark.parametrize("where", ["push filter", "pull filter", "events"])
async def test_a_callback_may_ask_the_replicator_for_its_status_and_stop_it(
    pair, nursery, autojump_clock, where
):
    await put_many(pair.mine, ids(*range(1, 11)))
    await put_many(pair.theirs, ids(*range(11, 21)))
    seen = []

    def stop(*_):
        seen.append((replicator.status.activity, replicator.statistics().documents_offered))
        replicator.request_stop()
        return True

    settings = {}
    if where == "push filter":
        settings = filtering(pair, push_filter=stop)
    elif where == "pull filter":
        settings = filtering(pair, pull_filter=stop)
    replicator = Replicator(pair.configuration(continuous=True, **settings))
    await nursery.start(replicator.run)
    if where == "events":
        async for _ in replicator.document_replications():
            stop()
    await replicator.wait_for(ActivityLevel.STOPPED)
    assert seen
    assert replicator.status.error is None
    # Nothing is lost by it.
    run = await pair.replicate()
    assert run.error is None
    await pair.assert_equal()


@pytest.mark.behaviour("S8", "L15")
async def test_a_read_only_peer_takes_nothing_message_by_message(pair, nursery):
    client = RawClient(nursery, pair.there, read_only=True)
    await client.open()
    later = f"{pair.there.engine.now_ns():x}@BobBobBobBobBobBobBobA"
    assert await client.propose(["a", later, ""]) in (403, [403])
    assert await client.send_revision("a", later, {}) == 403
    assert await client.ask("subChanges", versioning="version-vectors") is None
    await trio.testing.wait_all_tasks_blocked()
    assert pair.theirs.last_sequence == 0
    nursery.cancel_scope.cancel()
