"""What peers get back, and get done, after something went wrong."""

import shutil

import pytest
import trio
from loopback import PUSH, Pair, bodies, open_pair, put_many
from raw import RawServer, Refusal

from trio_p2p import ActivityLevel, ClockSkewError, Replicator, limits


@pytest.mark.behaviour("G2a", "P11")
async def test_a_peer_whose_collection_was_made_anew_gets_back_what_came_from_it(
    pair, autojump_clock
):
    for database in (pair.here, pair.there):
        await database.create_collection("shop")
    await put_many(pair.there.collection("shop"), ["a", "b"])
    await pair.replicate()
    await pair.there.delete_collection("shop")
    await pair.there.create_collection("shop")
    await pair.replicate()
    await pair.assert_equal("shop")
    assert pair.there.collection("shop").count == 2


@pytest.mark.behaviour("G2a")
@pytest.mark.parametrize("saved", [True, False], ids=["checkpoint saved", "cut before"])
async def test_a_peer_that_was_rolled_back_gets_back_what_came_from_it(
    tmp_path, autojump_clock, saved
):
    """A directory that was copied by hand and put back: the peer forgot what it had sent."""
    kept = tmp_path / "kept"
    async with open_pair(tmp_path) as pair:
        await put_many(pair.theirs, ["a"])
        await pair.replicate()
    shutil.copytree(tmp_path / "there", kept)
    async with open_pair(tmp_path) as pair:
        await put_many(pair.theirs, ["b"])
        if saved:
            await pair.replicate()
        else:
            await pull_without_checkpoint(pair)
        assert set(await bodies(pair.mine)) == {"a", "b"}
    shutil.rmtree(tmp_path / "there")
    kept.rename(tmp_path / "there")
    async with open_pair(tmp_path) as pair:
        await pair.replicate()
        assert set(await bodies(pair.theirs)) == {"a", "b"}


async def pull_without_checkpoint(pair: Pair) -> None:
    """Pull until all is here, then cut the connection before anything is saved."""
    replicator = Replicator(pair.configuration(continuous=True))
    async with trio.open_nursery() as nursery:
        await nursery.start(replicator.run)
        while pair.mine.count < 2:
            await pair.here.engine.wait_change(pair.mine.number, pair.mine.last_sequence)
        nursery.cancel_scope.cancel()


@pytest.mark.behaviour("O7")
@pytest.mark.parametrize("continuous", [False, True])
async def test_a_document_purged_and_written_anew_is_settled_with_what_the_peer_has(
    pair, autojump_clock, continuous
):
    """The pull does not bring what it conflicts with, so that is fetched by its ID."""
    await pair.theirs.put("a", {"n": 1})
    await pair.theirs.put("b", {"n": 1})
    await pair.replicate()
    await pair.mine.purge("a")
    await pair.mine.put("a", {"n": 2})
    if continuous:
        async with pair.replicating() as replicator:
            await replicator.wait_for(ActivityLevel.IDLE)
    else:
        run = await pair.replicate()
        assert run.push_errors == {}
        assert run.statistics.conflicts_resolved == 1
    await pair.assert_equal()
    assert pair.theirs.get("a").body == {"n": 2}
    assert (await pair.replicate()).offered == 0


@pytest.mark.behaviour("O8", "C2")
async def test_a_refused_document_stays_refused_where_nothing_is_pulled(pair, autojump_clock):
    await pair.theirs.put("a", {"n": 1})
    await pair.replicate()
    await pair.mine.purge("a")
    await pair.mine.put("a", {"n": 2})
    run = await pair.replicate(PUSH)
    assert run.push_errors["a"].code == 409
    assert pair.theirs.get("a").body == {"n": 1}


@pytest.mark.behaviour("X4")
async def test_what_was_ahead_of_the_clock_is_asked_for_again_while_connected(pair, autojump_clock):
    """Both ways, without another connection, once the clock was set right."""
    pair.clock.ahead_s = 1000
    await pair.theirs.put("a", {"ahead": True})
    await pair.mine.put("b", {})
    async with pair.replicating() as replicator:
        await replicator.wait_for(ActivityLevel.IDLE)
        assert pair.mine.get("a") is None
        event = next(e for e in replicator.result().errors if e.document_id == "a")
        assert isinstance(event.error, ClockSkewError)
        assert replicator.status.error is event.error
        await trio.sleep(1000)
        await pair.here.engine.write(lambda txn: None)
        with trio.fail_after(limits.RETRY_DOCUMENTS_S_MAX + 1):
            while pair.mine.get("a") is None:
                await pair.here.engine.wait_change(pair.mine.number, pair.mine.last_sequence)
        await replicator.wait_for(ActivityLevel.IDLE)
        assert replicator.status.error is None
    assert pair.attempts == 1
    await pair.assert_equal()
    assert (await pair.replicate()).offered == 0


@pytest.mark.behaviour("X4")
async def test_what_the_peer_refused_for_its_clock_is_proposed_again_while_connected(
    pair, autojump_clock
):
    pair.clock.ahead_s = -1000
    await pair.mine.put("a", {"ahead": True})
    async with pair.replicating() as replicator:
        await replicator.wait_for(ActivityLevel.IDLE)
        assert pair.theirs.get("a") is None
        pair.clock.ahead_s = 0
        with trio.fail_after(limits.RETRY_DOCUMENTS_S_MAX + 1):
            while pair.theirs.get("a") is None:
                await pair.there.engine.wait_change(pair.theirs.number, pair.theirs.last_sequence)
    assert pair.attempts == 1
    await pair.assert_equal()


@pytest.mark.behaviour("P16b", "P16a")
async def test_a_document_refused_with_403_is_tried_once_more(pair, autojump_clock):
    """And no more: it failed, and its sequence is done."""
    async with trio.open_nursery() as nursery:
        server = RawServer(nursery, rev=lambda message: Refusal(403, "not allowed"))
        await put_many(pair.mine, ["a", "b"])
        run = await pair.replicate(PUSH, target=server.connect, target_id="raw")
        sent = [message.properties["id"] for message in server.told("rev")]
        assert sorted(sent) == ["a", "a", "b", "b"]
        assert {name: error.code for name, error in run.push_errors.items()} == {"a": 403, "b": 403}
        assert run.statistics.documents_failed == 2
        await pair.replicate(PUSH, target=server.connect, target_id="raw")
        assert len(server.told("rev")) == 4
        nursery.cancel_scope.cancel()


async def test_what_the_peer_could_not_take_for_now_stays_pending(pair, autojump_clock):
    answers = [Refusal(503, "later"), None]
    async with trio.open_nursery() as nursery:
        server = RawServer(nursery, rev=lambda message: answers.pop(0))
        await put_many(pair.mine, ["a"])
        run = await pair.replicate(PUSH, target=server.connect, target_id="raw")
        assert run.push_errors["a"].code == 503
        run = await pair.replicate(PUSH, target=server.connect, target_id="raw")
        assert run.push_errors == {}
        assert run.counts == (1, 0)
        nursery.cancel_scope.cancel()
