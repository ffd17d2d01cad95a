"""Pulling: what an active peer has after it pulled from a passive one."""

import json

import pytest
import trio
from loopback import PULL, PUSH, bodies, ids, only, put_many
from raw import RawServer

from trio_p2p import ActivityLevel, CollectionConfiguration
from trio_p2p.store import checkpoints, recent, records
from trio_p2p.store.records import LocalCheckpoint

SOURCE = "BobBobBobBobBobBobBobA"


def rev(time=1_700_000_000 * 10**9):
    return f"{time:x}@{SOURCE}"


@pytest.mark.behaviour("U1")
async def test_pulling_from_an_empty_database_says_nothing_and_saves_no_checkpoint(pair):
    run = await pair.replicate(PULL)
    assert (run.counts, run.offered, run.error) == ((0, 0), 0, None)
    assert pair.checkpoints() == []


@pytest.mark.behaviour("U1", "G1")
async def test_a_hundred_documents_come_then_what_is_new_or_changed(pair):
    await put_many(pair.theirs, ids(*range(1, 101)))
    run = await pair.replicate(PULL)
    assert (run.counts, run.pull_errors, run.error) == ((0, 100), {}, None)
    assert pair.checkpoints() == [{"remote": 100}]
    await pair.assert_equal()

    await put_many(pair.theirs, ["new1", "new2"])
    await pair.theirs.put("0000001", {"changed": True})
    await pair.theirs.delete("0000002")
    run = await pair.replicate(PULL)
    assert (run.offered, run.counts) == (4, (0, 4))
    assert pair.checkpoints() == [{"remote": 104}]
    await pair.assert_equal()


@pytest.mark.behaviour("U1")
async def test_a_continuous_pull_follows_from_an_empty_start(pair, autojump_clock):
    async with pair.replicating(PULL) as replicator:
        await replicator.wait_for(ActivityLevel.IDLE)
        for number in range(1, 101):
            await put_many(pair.theirs, ids(2 * number, 2 * number + 1), n=number)
            if number % 7 == 0:
                await trio.sleep(0.1)
        await trio.sleep(10)
        await pair.assert_equal()
    assert replicator.statistics().documents_pulled == 200
    assert pair.checkpoints() == [{"remote": 200}]


@pytest.mark.behaviour("U2", "G1")
async def test_purged_documents_come_back_only_after_a_reset(pair):
    await put_many(pair.theirs, ids(*range(1, 21)))
    assert (await pair.replicate(PULL)).counts == (0, 20)
    for name in ids(*range(1, 21)):
        await pair.mine.purge(name)
    assert (await pair.replicate(PULL)).counts == (0, 0)
    assert (await pair.replicate(PULL, reset=True)).counts == (0, 20)
    await pair.assert_equal()
    assert (await pair.replicate(PULL)).offered == 0


@pytest.mark.behaviour("U3a")
async def test_a_pull_into_an_empty_database_brings_the_tombstones_too(pair):
    await put_many(pair.theirs, ids(*range(1, 101)))
    for name in ids(*range(1, 51)):
        await pair.theirs.delete(name)
    run = await pair.replicate(PULL)
    assert run.counts == (0, 100)
    assert pair.mine.count == 50
    assert pair.checkpoints() == [{"remote": 150}]
    await pair.assert_equal()


@pytest.mark.behaviour("U4")
async def test_what_both_made_known_to_each_other_before_is_not_sent_again(pair, tmp_path):
    """The documents came by another way: a copy that both were made from."""
    await put_many(pair.theirs, ids(*range(1, 11)))
    await pair.replicate(PULL)
    await pair.here.renew_identity()
    run = await pair.replicate(PULL)
    assert (run.offered, run.counts) == (10, (0, 0))
    # They are proposed once, as no checkpoint told so far that the peer still has them.
    run = await pair.replicate(PUSH)
    assert (run.offered, run.counts) == (10, (0, 0))
    run = await pair.replicate(PUSH)
    assert (run.offered, run.counts) == (0, (0, 0))
    # An edit is made on top of what the peer has.
    await pair.mine.put("0000001", {"changed": True})
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors) == ((1, 0), {})
    await pair.assert_equal()


@pytest.mark.behaviour("U9")
async def test_other_document_ids_mean_another_checkpoint_and_nothing_is_sent_again(pair):
    await put_many(pair.theirs, ids(*range(1, 11)))
    await pair.replicate(PULL)
    settings = only("0000001", "0000002")
    run = await pair.replicate(PULL, collections={pair.mine: settings})
    assert (run.offered, run.counts) == (2, (0, 0))
    assert sorted(c["remote"] for c in pair.checkpoints()) == [2, 10]
    for other in (settings, only("0000002", "0000001")):
        run = await pair.replicate(PULL, collections={pair.mine: other})
        assert run.offered == 0


@pytest.mark.behaviour("U9")
async def test_a_filter_means_another_checkpoint_and_nothing_is_sent_again(pair):
    await put_many(pair.theirs, ids(*range(1, 11)))
    await pair.replicate(PULL)
    filtered = CollectionConfiguration(pull_filter=lambda document, flags: True)
    for offered in (10, 0):
        run = await pair.replicate(PULL, collections={pair.mine: filtered})
        assert (run.offered, run.counts) == (offered, (0, 0))
    assert (await pair.replicate(PULL)).offered == 0


def set_local(pair, body):
    """Replace what the one local checkpoint says."""

    def job(txn):
        (kept,) = recent.entries(txn, checkpoints.LOCAL)
        content = records.pack_local_checkpoint(LocalCheckpoint(1, 0, body))
        recent.put(txn, checkpoints.LOCAL, kept.key, content)

    return pair.here.engine.write(job)


@pytest.mark.behaviour("U10", "G2a")
@pytest.mark.parametrize(
    ("body", "offered"),
    [
        (b'{"remote":6}', 4),
        # Beyond what the peer's copy says: only what both say counts.
        (b'{"remote":99}', 0),
        (b'{"local":7}', 10),
        (b'{"remote":"6:7"}', 10),
        (b"{}", 10),
        (b"not even JSON", 10),
    ],
)
async def test_where_the_checkpoints_disagree_only_what_both_say_counts(pair, body, offered):
    await put_many(pair.theirs, ids(*range(1, 11)))
    await pair.replicate(PULL)
    await set_local(pair, body)
    run = await pair.replicate(PULL)
    assert (run.offered, run.counts, run.error) == (offered, (0, 0), None)
    await pair.theirs.put("new", {})
    assert (await pair.replicate(PULL)).counts == (0, 1)
    assert pair.checkpoints() == [{"remote": 11}]


@pytest.mark.behaviour("U11")
async def test_of_a_document_edited_many_times_the_last_revision_comes(pair):
    await pair.theirs.put("a", {"n": 0})
    await pair.replicate(PULL)
    for number in range(1, 31):
        await pair.theirs.put("a", {"n": number})
    run = await pair.replicate(PULL)
    assert (run.offered, run.counts) == (1, (0, 1))
    assert pair.mine.get("a").body == {"n": 30}


def withholding(server, error):
    """Send the first wanted revision, tell that the second will not come, send the third."""

    def on_wanted(rows, answers):
        assert answers == [[], [], []]
        for sequence, name, version, *_ in rows:
            if name == "b":
                server.send_no_revision(name, version, sequence, error)
            else:
                server.send_revision(name, version, sequence)

    server.on_wanted = on_wanted


@pytest.mark.behaviour("U12")
@pytest.mark.parametrize(("error", "reached"), [(404, 3), (410, 3), (500, 3), (503, 1), (429, 1)])
async def test_a_revision_that_will_not_come_is_passed_unless_it_may_come_later(
    pair, nursery, error, reached
):
    rows = [[number, name, rev(), 0, 2] for number, name in enumerate("abc", 1)]
    server = RawServer(nursery, rows=rows)
    withholding(server, error)
    run = await pair.replicate(PULL, target=server.connect)
    assert (run.counts, run.error) == ((0, 2), None)
    assert {name: told.code for name, told in run.pull_errors.items()} == {"b": error}
    assert sorted(await bodies(pair.mine)) == ["a", "c"]
    assert server.checkpoint() == {"remote": reached}
    nursery.cancel_scope.cancel()


SEQUENCES = [1, "7:13", "3:7:13", "3::13", "nonsense", {"a": [1]}, [2, "x"], 2**53 + 1]


@pytest.mark.behaviour("U13")
@pytest.mark.parametrize("count", range(1, len(SEQUENCES) + 1))
async def test_sequences_of_the_peer_are_opaque(pair, nursery, count, autojump_clock):
    """Each comes back as it was: with the revision, in the checkpoint, and in the next pull."""
    rows = [[sequence, f"doc{n}", rev()] for n, sequence in enumerate(SEQUENCES[:count])]
    server = RawServer(nursery, rows=rows)
    assert (await pair.replicate(PULL, target=server.connect)).counts == (0, count)
    assert server.checkpoint()["remote"] == SEQUENCES[count - 1]
    server.rows = []
    await pair.replicate(PULL, target=server.connect)
    _, again = server.told("subChanges")
    assert json.loads(again.properties["since"]) == SEQUENCES[count - 1]
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("G6")
async def test_sequences_that_the_peer_leaves_out_hold_nothing_up(pair, nursery):
    rows = [[sequence, f"doc{sequence}", rev()] for sequence in (2, 3, 9, 4_000)]
    server = RawServer(nursery, rows=rows)
    assert (await pair.replicate(PULL, target=server.connect)).counts == (0, 4)
    assert server.checkpoint() == {"remote": 4_000}
    nursery.cancel_scope.cancel()
