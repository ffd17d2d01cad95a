"""Peers that lose what they had, that others use at the same time, or that come and go."""

import pytest
import trio
from loopback import PULL, PUSH, Pair, bodies, ids, put_many
from raw import RawServer, Refusal

from trio_p2p import Replicator
from trio_p2p.replication.checkpoint import checkpoint_id
from trio_p2p.testing.databases import open_test_database


@pytest.mark.behaviour("G2a", "U10")
@pytest.mark.parametrize("table", ["local_checkpoints", "peer_checkpoints"])
async def test_a_side_that_lost_its_checkpoints_causes_offers_and_nothing_more(pair, table):
    await put_many(pair.mine, ids(*range(1, 11)))
    await put_many(pair.theirs, ids(*range(21, 31)))
    await pair.replicate()
    for database in (pair.here, pair.there):
        await database.engine.write(
            lambda txn: txn.raw.drop(getattr(txn.tables, table), delete=False)
        )
    await pair.mine.put("new", {})
    run = await pair.replicate()
    assert (run.counts, run.push_errors, run.pull_errors) == ((1, 0), {}, {})
    await pair.assert_equal()
    assert (await pair.replicate()).offered == 0


@pytest.mark.behaviour("G2a")
@pytest.mark.parametrize("rolled_back", ["here", "there"])
async def test_a_database_that_was_rolled_back_gets_what_it_lost(pair, tmp_path, rolled_back):
    """As from a backup: it has an identity of its own, and the others start over with it."""
    await put_many(pair.mine, ids(*range(1, 11)))
    await put_many(pair.theirs, ids(*range(21, 31)))
    await pair.replicate()
    await getattr(pair, rolled_back).backup(tmp_path / "backup")
    await put_many(pair.mine, ["late1"])
    await put_many(pair.theirs, ["late2"])
    await pair.replicate()
    async with open_test_database(tmp_path / "backup", clock=pair.clock) as restored:
        setattr(pair, rolled_back, restored)
        assert restored.default_collection.count == 20
        run = await pair.replicate()
        assert sum(run.counts) == 2
        assert restored.default_collection.count == 22
        await pair.assert_equal()


@pytest.mark.behaviour("G2b")
async def test_a_checkpoint_that_another_saved_meanwhile_is_read_again_and_saved(pair, nursery):
    """The peer answers 409 once: it has another revision than the one it told."""
    refused = []

    def refuse_once(message):
        if not refused:
            refused.append(message)
            return Refusal(409, "revision mismatch")
        return None

    server = RawServer(nursery, setCheckpoint=refuse_once)
    await pair.mine.put("a", {})
    run = await pair.replicate(PUSH, target=server.connect)
    assert (run.error, run.counts) == (None, (1, 0))
    assert len(server.told("getCheckpoint")) == 1
    assert server.checkpoint() == {"local": 1}
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("G2b")
async def test_two_replicators_of_one_database_share_the_checkpoint(pair, nursery, autojump_clock):
    """One pushes, the other pulls; neither undoes what the other saved."""
    async with pair.replicating(PUSH) as pusher, pair.replicating(PULL) as puller:
        for number in range(1, 21):
            await pair.mine.put(f"here{number}", {})
            await pair.theirs.put(f"there{number}", {})
            await trio.sleep(0.7)
        await trio.sleep(60)
        await pair.assert_equal()
    assert (pusher.status.error, puller.status.error) == (None, None)
    run = await pair.replicate()
    assert run.counts == (0, 0)


@pytest.mark.behaviour("G3")
async def test_the_checkpoint_is_saved_on_stopping_and_from_time_to_time(
    pair, nursery, autojump_clock
):
    server = RawServer(nursery)
    async with pair.replicating(PUSH, target=server.connect) as replicator:
        await put_many(pair.mine, ids(*range(1, 11)))
        await trio.sleep(10)
        assert server.checkpoint() == {"local": 10}
        # What is done when it stops is saved then.
        await put_many(pair.mine, ids(*range(11, 21)))
        while replicator.statistics().documents_pushed < 20:
            await trio.lowlevel.checkpoint()
        assert server.checkpoint() == {"local": 10}
    assert server.checkpoint() == {"local": 20}
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("G3", "X1")
async def test_a_checkpoint_is_saved_while_there_is_more_to_do(pair, nursery, autojump_clock):
    """A connection that is lost on the way costs what was done since the last one, no more."""
    one_by_one = trio.StrictFIFOLock()

    async def answer_slowly(message):
        async with one_by_one:
            await trio.sleep(0.01)

    server = RawServer(nursery, rev=answer_slowly)
    await put_many(pair.mine, ids(*range(1, 1_001)))
    replicator = Replicator(pair.configuration(PUSH, target=server.connect))
    with trio.move_on_after(5):
        await replicator.run()
    reached = server.checkpoint()["local"]
    done = replicator.statistics().documents_pushed
    assert 0 < reached <= done < 1_000
    server.answers.clear()
    run = await pair.replicate(PUSH, target=server.connect)
    assert run.offered <= 1_000 - reached
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("G4")
@pytest.mark.parametrize(
    ("one", "other"),
    [(("a", "b"), ("a,b",)), (("a", "b"), ("ab",)), (('a","b',), ("a", "b")), ((), None)],
)
async def test_names_of_checkpoints_do_not_collide(pair, one, other):
    names = {checkpoint_id(pair.here.id, "peer", "_default", ids) for ids in (one, other)}
    assert len(names) == 2


@pytest.mark.behaviour("G4")
async def test_a_database_that_was_moved_goes_on_where_it_was(pair, tmp_path):
    """The name of a database is that of its directory."""
    await put_many(pair.mine, ids(1, 2, 3))
    async with open_test_database(tmp_path / "one", clock=pair.clock) as other:
        first = Pair(pair.nursery, other, pair.there, pair.clock)
        await put_many(first.mine, ids(1, 2, 3))
        await first.replicate(PUSH)
    (tmp_path / "one").rename(tmp_path / "two")
    async with open_test_database(tmp_path / "two", clock=pair.clock) as other:
        again = Pair(pair.nursery, other, pair.there, pair.clock)
        assert (await again.replicate(PUSH)).offered == 0


@pytest.mark.behaviour("G8", "S6b")
async def test_keys_with_an_underscore_are_kept_where_they_are_not_reserved(pair):
    body = {"_mine": 1, "_": 2, "nested": {"_id": 3, "_rev": 4, "_deleted": False}}
    await pair.mine.put("a", body)
    await pair.replicate()
    assert (await bodies(pair.theirs)) == {"a": body}


@pytest.mark.behaviour("G7")
async def test_what_was_done_is_counted_on_both_sides(pair):
    await put_many(pair.mine, ids(1, 2, 3))
    await put_many(pair.theirs, ids(11, 12))
    await pair.mine.put("both", {"by": "here"})
    await pair.theirs.put("both", {"by": "there"})
    listener = pair.listener()

    async def connect():
        near, far = trio.testing.memory_stream_pair()
        pair.nursery.start_soon(listener.handle, far)
        await trio.lowlevel.checkpoint()
        return near

    run = await pair.replicate(target=connect)
    told = run.statistics
    # Whether the outcome of the conflict is pushed depends on who won.
    assert told.documents_pushed in (3, 4)
    assert (told.documents_pulled, told.conflicts_resolved) == (3, 1)
    assert (told.documents_failed, told.connections) == (0, 1)
    theirs = listener.statistics()
    assert theirs.documents_pulled == told.documents_pushed
    assert theirs.documents_pushed == told.documents_pulled
    assert run.progress.completed == run.progress.total
