"""Pushing: what a passive peer has after an active one pushed to it."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
import trio
from loopback import PULL, PUSH, bodies, ids, only, put_many
from raw import RawServer, Refusal

from trio_p2p import ActivityLevel
from trio_p2p.store import checkpoints, recent
from trio_p2p.testing.databases import open_test_database


@pytest.mark.behaviour("P1")
async def test_pushing_an_empty_database_says_nothing_and_saves_no_checkpoint(pair):
    run = await pair.replicate(PUSH)
    assert (run.counts, run.offered, run.error) == ((0, 0), 0, None)
    assert pair.checkpoints() == []


@pytest.mark.behaviour("P2")
async def test_a_hundred_documents_arrive_and_both_checkpoints_say_so(pair):
    await put_many(pair.mine, ids(*range(1, 101)))
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors, run.error) == ((100, 0), {}, None)
    assert run.progress.document_count == 100
    assert pair.checkpoints() == [{"local": 100}]
    await pair.assert_equal()


@pytest.mark.behaviour("P3")
async def test_documents_with_empty_bodies_arrive(pair):
    for name in "abc":
        await pair.mine.put(name, {})
    assert (await pair.replicate(PUSH)).counts == (3, 0)
    assert await bodies(pair.theirs) == {"a": {}, "b": {}, "c": {}}
    assert pair.checkpoints() == [{"local": 3}]


@pytest.mark.behaviour("P4", "U1")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_documents_of_hundreds_of_kilobytes_arrive(pair, kind):
    source = pair.mine if kind is PUSH else pair.theirs
    random = Random(1)
    for name in "abcdefgh":
        # What does not deflate takes the whole window, and more than one frame.
        await source.put(name, {"text": random.randbytes(200_000).hex()})
    run = await pair.replicate(kind)
    assert sum(run.counts) == 8
    assert run.error is None
    await pair.assert_equal()


@pytest.mark.behaviour("P4", "U1")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_thousands_of_documents_arrive(pair, kind):
    source = pair.mine if kind is PUSH else pair.theirs
    # More than are offered, requested and on their way at once.
    await put_many(source, ids(*range(1, 2_501)))
    run = await pair.replicate(kind)
    assert sum(run.counts) == 2_500
    assert pair.checkpoints() == [{"local" if kind is PUSH else "remote": 2_500}]
    await pair.assert_equal()


@pytest.mark.behaviour("P5")
async def test_a_deletion_arrives_as_a_tombstone_also_where_the_document_never_was(pair):
    await put_many(pair.mine, ["known", "unknown"])
    await pair.replicate(PUSH, collections={pair.mine: only("known")})
    await pair.mine.delete("known")
    await pair.mine.delete("unknown")
    run = await pair.replicate(PUSH)
    assert run.counts == (2, 0)
    assert pair.theirs.get("unknown") is None
    assert pair.theirs.get("unknown", deleted=True).deleted
    await pair.assert_equal()


@pytest.mark.behaviour("P6", "G1")
async def test_a_later_push_sends_what_is_new_or_changed_and_moves_the_checkpoint(pair):
    await put_many(pair.mine, ids(*range(1, 101)))
    await pair.replicate(PUSH)
    await put_many(pair.mine, ["new1", "new2"])
    await pair.mine.put("0000001", {"changed": True})
    run = await pair.replicate(PUSH)
    assert (run.offered, run.counts) == (3, (3, 0))
    assert pair.checkpoints() == [{"local": 103}]
    await pair.assert_equal()


@pytest.mark.behaviour("P8")
async def test_a_copy_of_a_database_pushes_as_a_peer_of_its_own(pair, tmp_path):
    """The original is in sync; the copy pushes only what it wrote, though it knows of no peer."""
    await put_many(pair.mine, ids(*range(1, 11)))
    await pair.replicate(PUSH)
    await pair.here.backup(tmp_path / "copy")
    async with open_test_database(tmp_path / "copy", clock=pair.clock) as copy:
        assert copy.source_id != pair.here.source_id
        await copy.default_collection.put("0000001", {"by": "copy"})
        original, pair.here = pair.here, copy
        run = await pair.replicate(PUSH)
        assert (run.counts, run.push_errors) == ((1, 0), {})
        await pair.assert_equal()
    pair.here = original
    run = await pair.replicate()
    assert run.counts == (0, 1)
    await pair.assert_equal()


@pytest.mark.behaviour("P10")
async def test_an_expired_document_is_not_pushed(pair, autojump_clock):
    await put_many(pair.mine, ["expires", "later", "stays"])
    now = datetime.fromtimestamp(pair.here.engine.now_ns() / 10**9, UTC)
    await pair.mine.set_expiration("expires", now + timedelta(seconds=10))
    await pair.mine.set_expiration("later", now + timedelta(seconds=1_000))
    await trio.sleep(10)
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors) == ((2, 0), {})
    assert sorted(await bodies(pair.theirs)) == ["later", "stays"]
    # What expires later is forgotten here only.
    await trio.sleep(1_000)
    assert (await pair.replicate(PUSH)).offered == 0
    assert pair.mine.get("later") is None
    assert pair.theirs.get("later") is not None


@pytest.mark.behaviour("P11", "G2a")
async def test_a_peer_whose_database_was_erased_gets_everything_again(pair, tmp_path):
    await put_many(pair.mine, ids(*range(1, 21)))
    await pair.replicate(PUSH)
    async with open_test_database(tmp_path / "anew", clock=pair.clock) as anew:
        pair.there = anew
        run = await pair.replicate(PUSH)
        assert run.counts == (20, 0)
        await pair.assert_equal()


@pytest.mark.behaviour("P12", "U9")
async def test_two_peers_are_remembered_apart(pair, tmp_path):
    await put_many(pair.mine, ids(*range(1, 11)))
    await pair.replicate(PUSH)
    async with open_test_database(tmp_path / "other", clock=pair.clock) as other:
        first, pair.there = pair.there, other
        assert (await pair.replicate(PUSH)).counts == (10, 0)
        await pair.mine.put("0000001", {"changed": True})
        for peer in (other, first):
            pair.there = peer
            run = await pair.replicate(PUSH)
            assert (run.offered, run.counts) == (1, (1, 0))
            await pair.assert_equal()


@pytest.mark.behaviour("P13a")
@pytest.mark.parametrize("kind", [PUSH, PULL])
async def test_many_edits_offline_are_no_conflict(pair, kind):
    await pair.mine.put("a", {"n": 0})
    await pair.replicate()
    source = pair.mine if kind is PUSH else pair.theirs
    for number in range(1, 61):
        await source.put("a", {"n": number})
    run = await pair.replicate(kind)
    assert (sum(run.counts), run.push_errors, run.pull_errors) == (1, {}, {})
    assert run.statistics.conflicts_resolved == 0
    await pair.assert_equal()


def lose_local_checkpoints(database):
    return database.engine.write(lambda txn: recent.clear(txn, checkpoints.LOCAL))


@pytest.mark.behaviour("P14", "G2a")
async def test_without_the_local_checkpoint_everything_is_offered_and_nothing_sent(pair):
    await put_many(pair.mine, ids(*range(1, 11)))
    await pair.replicate(PUSH)
    await lose_local_checkpoints(pair.here)
    run = await pair.replicate(PUSH)
    # What it knows of the peer it still knows, and needs not even to offer.
    assert run.counts == (0, 0)
    assert pair.checkpoints() == [{"local": 10}]


@pytest.mark.behaviour("P15")
async def test_without_the_local_checkpoint_a_deletion_still_arrives(pair):
    await put_many(pair.mine, ids(1, 2))
    await pair.replicate(PUSH)
    await pair.mine.delete("0000001")
    await lose_local_checkpoints(pair.here)
    assert (await pair.replicate(PUSH)).counts == (1, 0)
    assert pair.theirs.get("0000001") is None
    await pair.assert_equal()


@pytest.mark.behaviour("P16a")
async def test_what_the_peer_refuses_fails_alone_and_the_checkpoint_passes_it(pair, nursery):
    refused = ids(17, 31, 53, 97)

    def refuse_some(message):
        return Refusal(403, "not this one") if message.properties["id"] in refused else None

    server = RawServer(nursery, rev=refuse_some)
    await put_many(pair.mine, ids(*range(1, 101)))
    run = await pair.replicate(PUSH, target=server.connect)
    assert run.counts == (96, 0)
    assert {name: error.code for name, error in run.push_errors.items()} == dict.fromkeys(
        refused, 403
    )
    assert run.error is None
    assert server.checkpoint() == {"local": 100}
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("P18")
async def test_in_a_continuous_push_a_proposal_names_what_the_push_before_it_brought(
    pair, nursery, autojump_clock
):
    server = RawServer(nursery)
    versions = []
    async with pair.replicating(PUSH, target=server.connect):
        for number in range(4):
            versions.append(str((await pair.mine.put("a", {"n": number})).version))
            await trio.sleep(1)
    rows = [row for row in server.proposed() if row[0] == "a"]
    assert [(rev, parent) for _, rev, parent, _ in rows] == list(
        zip(versions, ["", *versions], strict=False)
    )
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("P19a")
async def test_a_continuous_push_follows_from_an_empty_start(pair, autojump_clock):
    async with pair.replicating(PUSH) as replicator:
        await replicator.wait_for(ActivityLevel.IDLE)
        for number in range(1, 201):
            await put_many(pair.mine, ids(2 * number, 2 * number + 1), n=number)
            if number % 7 == 0:
                await trio.sleep(0.1)
        await trio.sleep(10)
        await pair.assert_equal()
        assert pair.theirs.count == 400
    assert replicator.statistics().documents_pushed == 400
    assert pair.checkpoints() == [{"local": 400}]


@pytest.mark.behaviour("P19b")
async def test_a_document_purged_before_it_is_sent_is_left_out_in_silence(pair, nursery):
    """It is proposed, wanted, and gone when it is to be sent."""

    async def answer_late(message):
        await pair.mine.purge("gone")

    server = RawServer(nursery, proposeChanges=answer_late)
    await put_many(pair.mine, ["gone", "kept"])
    run = await pair.replicate(PUSH, target=server.connect)
    assert [message.properties["id"] for message in server.told("rev")] == ["kept"]
    assert (run.counts, run.push_errors, run.error) == ((1, 0), {}, None)
    assert server.checkpoint() == {"local": 2}
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("P21")
async def test_with_document_ids_only_those_are_pushed_and_pulled_and_unknown_ones_do_no_harm(pair):
    await put_many(pair.mine, ids(*range(1, 11)))
    await put_many(pair.theirs, ["b1", "b2"])
    settings = only("0000001", "0000007", "b1", "nobody has it")
    run = await pair.replicate(collections={pair.mine: settings})
    assert (run.counts, run.error) == ((2, 1), None)
    assert sorted(await bodies(pair.theirs)) == ["0000001", "0000007", "b1", "b2"]
    assert sorted(await bodies(pair.mine)) == [*ids(*range(1, 11)), "b1"]
