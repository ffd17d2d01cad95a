"""Documents that were edited on both sides."""

import pytest
import trio
from loopback import PULL, PUSH, Pair, bodies, contents

from trio_p2p import CollectionConfiguration
from trio_p2p.errors import CallbackError
from trio_p2p.store import conflicts


def resolving(pair, resolver):
    """Settings by which this resolver decides."""
    return {"collections": {pair.mine: CollectionConfiguration(conflict_resolver=resolver)}}


def local(conflict):
    return conflict.local


def remote(conflict):
    return conflict.remote


def fail(conflict):
    raise LookupError("nobody is here to decide")


def waiting(database, document_id):
    """The versions that wait for a resolver."""
    with database.engine.read() as txn:
        found = conflicts.of_document(txn, database.default_collection.number, document_id)
    return [str(revision.version) for revision in found]


HERE, THERE = {"by": "here"}, {"by": "there"}


async def edit_both(pair, document_id="a", *, here=HERE, there=THERE):
    """Edit a document on both sides, or delete it for None."""
    for collection, body in ((pair.mine, here), (pair.theirs, there)):
        if body is None:
            await collection.delete(document_id)
        else:
            await collection.put(document_id, body)


@pytest.fixture
async def synced(pair):
    """Two peers with the same document."""
    await pair.mine.put("a", {"by": "both"})
    await pair.replicate()
    return pair


# --- Unresolved -----------------------------------------------------------------------------------


@pytest.mark.behaviour("C1", "C13b")
async def test_a_pull_keeps_both_revisions_of_a_conflict_that_is_left_open(synced):
    pair = synced
    await edit_both(pair)
    before = pair.mine.last_sequence
    run = await pair.replicate(PULL, **resolving(pair, fail))
    assert run.error is None
    assert isinstance(run.pull_errors["a"], CallbackError)
    assert pair.mine.get("a").body == {"by": "here"}
    assert pair.mine.last_sequence == before
    assert waiting(pair.here, "a") == [str(pair.theirs.get("a").version)]
    (checkpoint,) = pair.checkpoints()
    assert checkpoint["remote"] == 2


@pytest.mark.behaviour("C2")
async def test_a_push_of_a_document_in_conflict_fails_alone_and_changes_nothing_there(synced):
    pair = synced
    await edit_both(pair)
    await pair.mine.put("b", {})
    before = await contents(pair.theirs)
    run = await pair.replicate(PUSH)
    assert run.error is None
    assert {name: error.code for name, error in run.push_errors.items()} == {"a": 409}
    assert run.counts == (1, 0)
    after = await contents(pair.theirs)
    assert after.pop("b")
    assert after == before
    # It stays pending: 2 is its sequence.
    (checkpoint,) = pair.checkpoints()
    assert checkpoint == {"local": 1, "localCompleted": [0, 2, 3, 1]}
    # A pull then finds and resolves it.
    run = await pair.replicate(**resolving(pair, local))
    assert run.statistics.conflicts_resolved == 1
    await pair.assert_equal()
    assert pair.checkpoints() == [{"local": 4, "remote": 3}]


@pytest.mark.behaviour("C9a", "C13b")
async def test_conflicts_left_open_are_found_in_order_at_the_next_start(pair):
    names = ["c", "a", "b"]
    for name in names:
        await edit_both(pair, name)
    await pair.replicate(PULL, **resolving(pair, fail))
    with pair.here.engine.read() as txn:
        found = conflicts.documents(txn, pair.mine.number, None, 10)
    assert found == ["a", "b", "c"]
    asked = []

    def remember(conflict):
        asked.append((conflict.document_id, conflict.local.body, conflict.remote.body))
        return conflict.remote

    run = await pair.replicate(PULL, **resolving(pair, remember))
    assert asked == [(name, {"by": "here"}, {"by": "there"}) for name in "abc"]
    assert (run.statistics.conflicts_resolved, run.pull_errors) == (3, {})
    await pair.assert_equal()
    # Whoever only pushes asks nobody.
    await edit_both(pair)
    await pair.replicate(PULL, **resolving(pair, fail))
    await pair.replicate(PUSH, **resolving(pair, remember))
    assert len(asked) == 3


# --- Resolved -------------------------------------------------------------------------------------


@pytest.mark.behaviour("C3", "C13a", "C14b")
async def test_pulling_resolving_and_pushing_ends_with_both_equal(synced):
    pair = synced
    await edit_both(pair)
    merged_from = {str(side.get("a").version) for side in (pair.mine, pair.theirs)}
    run = await pair.replicate(
        PULL, **resolving(pair, lambda c: {"by": [c.local["by"], c.remote["by"]]})
    )
    assert run.statistics.conflicts_resolved == 1
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors) == ((1, 0), {})
    await pair.assert_equal()
    assert pair.theirs.get("a").body == {"by": ["here", "there"]}
    # The versions that were merged came along.
    merged = {str(version) for version in pair.theirs.get("a").vector.merged}
    assert merged == merged_from


@pytest.mark.behaviour("C13a")
@pytest.mark.parametrize(
    ("resolver", "body"),
    [
        (local, {"by": "here"}),
        (remote, {"by": "there"}),
        (lambda conflict: {"by": "a resolver"}, {"by": "a resolver"}),
        (lambda conflict: None, None),
    ],
)
async def test_a_resolver_keeps_either_side_merges_or_deletes(synced, resolver, body):
    pair = synced
    await edit_both(pair)
    run = await pair.replicate(**resolving(pair, resolver))
    assert (run.statistics.conflicts_resolved, run.pull_errors, run.push_errors) == (1, {}, {})
    await pair.assert_equal()
    found = pair.theirs.get("a")
    assert (None if found is None else found.body) == body
    assert not waiting(pair.here, "a")
    assert (await pair.replicate()).offered == 0


@pytest.mark.behaviour("C13c")
async def test_another_document_that_a_resolver_returns_is_refused(synced):
    """Couchbase Lite takes its body, with a warning; but it can be nothing but a mistake."""
    pair = synced
    await pair.mine.put("other", {"by": "another document"})
    await edit_both(pair)
    run = await pair.replicate(**resolving(pair, lambda conflict: pair.mine.get("other")))
    assert isinstance(run.pull_errors["a"], CallbackError)
    assert pair.mine.get("a").body == {"by": "here"}
    assert waiting(pair.here, "a")


@pytest.mark.behaviour("C6")
async def test_after_the_remote_revision_was_kept_there_is_nothing_to_push(synced, autojump_clock):
    pair = synced
    await pair.mine.put("a", {"by": "here"})
    await trio.sleep(1)
    await pair.theirs.put("a", {"by": "there"})
    run = await pair.replicate(**resolving(pair, remote))
    assert run.counts == (0, 1)
    assert pair.mine.get("a").version == pair.theirs.get("a").version
    await pair.assert_equal()


@pytest.mark.behaviour("C5a")
@pytest.mark.parametrize("deleted", ["here", "there"])
async def test_a_deletion_against_an_edit_is_a_conflict_for_the_resolver(synced, deleted):
    pair = synced
    await edit_both(pair, **{deleted: None})
    asked = []

    def undelete(conflict):
        asked.append((conflict.local, conflict.remote))
        return conflict.local or conflict.remote

    run = await pair.replicate(**resolving(pair, undelete))
    ((ours, theirs),) = asked
    assert (ours is None, theirs is None) == (deleted == "here", deleted == "there")
    assert run.statistics.conflicts_resolved == 1
    await pair.assert_equal()
    assert pair.theirs.get("a").body == {"by": "there" if deleted == "here" else "here"}


@pytest.mark.behaviour("C5b")
@pytest.mark.parametrize(("here", "there"), [(None, {}), ({}, None), ({"x": 1}, {"x": 2})])
async def test_after_the_remote_side_won_the_next_edit_is_pushed_cleanly(synced, here, there):
    pair = synced
    await edit_both(pair, here=here, there=there)
    await pair.replicate(**resolving(pair, remote))
    await pair.mine.put("a", {"by": "here again"})
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors) == ((1, 0), {})
    await pair.assert_equal()


@pytest.mark.behaviour("C11")
async def test_the_same_document_made_on_both_sides_ends_as_one_of_the_two(pair):
    await edit_both(pair, here={"n": 1}, there={"n": 1})
    versions = {pair.mine.get("a").version, pair.theirs.get("a").version}
    run = await pair.replicate()
    assert run.statistics.conflicts_resolved == 1
    await pair.assert_equal()
    assert pair.mine.get("a").version == max(versions)


@pytest.mark.behaviour("C12", "C14a")
@pytest.mark.parametrize("later", ["here", "there"])
@pytest.mark.parametrize("deleted", [None, "here", "there", "both"])
async def test_by_default_a_deletion_wins_then_the_later_edit(
    synced, later, deleted, autojump_clock
):
    pair = synced
    for side in ("here", "there") if later == "there" else ("there", "here"):
        collection = pair.mine if side == "here" else pair.theirs
        if deleted in (side, "both"):
            await collection.delete("a")
        else:
            await collection.put("a", {"by": side})
        await trio.sleep(1)
    await pair.replicate()
    await pair.assert_equal()
    found = await bodies(pair.theirs)
    assert found == ({} if deleted else {"a": {"by": later}})
    assert (await pair.replicate()).offered == 0


@pytest.mark.behaviour("C14a")
@pytest.mark.parametrize("deleted", [None, "here", "there", "both"])
async def test_of_edits_at_the_same_time_both_sides_keep_the_same_one(
    synced, deleted, autojump_clock
):
    """The larger source decides; whichever side is the active one, the outcome is the same."""
    pair = synced
    await trio.sleep(1)
    sides = {side: None for side in ("here", "there") if deleted in (side, "both")}
    await edit_both(pair, **sides)
    ours, theirs = (c.get("a", deleted=True).version for c in (pair.mine, pair.theirs))
    assert ours.time == theirs.time
    await pair.replicate()
    await pair.assert_equal()
    kept = pair.mine.get("a", deleted=True)
    assert kept.deleted == (deleted is not None)
    if deleted in (None, "both"):
        assert kept.version == max(ours, theirs)


@pytest.mark.behaviour("C14c")
@pytest.mark.parametrize(("edits_here", "edits_there"), [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("common", [False, True])
async def test_histories_of_any_length_conflict_and_are_resolved(
    pair, edits_here, edits_there, common
):
    if common:
        await pair.mine.put("a", {})
        await pair.replicate()
    for number in range(edits_here):
        await pair.mine.put("a", {"here": number})
    for number in range(edits_there):
        await pair.theirs.put("a", {"there": number})
    run = await pair.replicate(**resolving(pair, lambda c: c.local.body | c.remote.body))
    assert run.statistics.conflicts_resolved == 1
    await pair.assert_equal()
    assert pair.theirs.get("a").body == {"here": edits_here - 1, "there": edits_there - 1}


@pytest.mark.behaviour("C15")
async def test_a_deleted_document_is_made_again_by_a_push(synced):
    pair = synced
    await pair.mine.delete("a")
    await pair.replicate()
    await pair.mine.put("a", {"by": "here again"})
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors) == ((1, 0), {})
    await pair.assert_equal()
    # So it is by a peer that never knew it, after its deletion there.
    await pair.theirs.delete("a")
    await pair.mine.purge("a")
    await pair.mine.put("a", {"by": "here anew"})
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors) == ((1, 0), {})
    assert pair.theirs.get("a").body == {"by": "here anew"}


# --- Without end ----------------------------------------------------------------------------------


@pytest.mark.behaviour("C4", "C7")
async def test_both_ends_resolve_at_the_same_time_and_come_to_rest(pair, nursery, autojump_clock):
    """Each is the active peer of a replication with the other."""

    def merge(conflict):
        if conflict.local is None or conflict.remote is None:
            return None
        return conflict.local.body | conflict.remote.body

    opposite = Pair(nursery, pair.there, pair.here, pair.clock)
    async with (
        pair.replicating(**resolving(pair, merge)) as ours,
        opposite.replicating(**resolving(opposite, merge)) as theirs,
    ):
        for number in range(5):
            await edit_both(pair, here={f"here{number}": 1}, there={f"there{number}": 1})
            await trio.sleep(0.5 * number)
        await trio.sleep(60)
        before = [replicator.statistics() for replicator in (ours, theirs)]
        await pair.assert_equal()
        await trio.sleep(600)
        assert [replicator.statistics() for replicator in (ours, theirs)] == before
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("C7")
async def test_a_continuous_replication_of_edits_on_both_sides_converges(pair, autojump_clock):
    async with pair.replicating() as replicator:
        for number in range(100):
            await pair.mine.put("a", {"here": number})
            await trio.sleep(0.01 * (number % 3))
            await pair.theirs.put("a", {"there": number})
            await trio.sleep(0.01 * (number % 5))
        await trio.sleep(60)
        await pair.assert_equal()
    assert replicator.status.error is None
    assert not replicator.result().errors
    assert not waiting(pair.here, "a")


@pytest.mark.behaviour("C10")
async def test_a_pusher_that_forgot_its_peer_pushes_on_top_of_what_a_refusal_names(synced):
    pair = synced
    await pair.mine.put("a", {"n": 2})
    await pair.here.engine.write(lambda txn: txn.raw.drop(txn.tables.known_revisions, delete=False))
    run = await pair.replicate(PUSH)
    assert (run.counts, run.push_errors) == ((1, 0), {})
    await pair.assert_equal()
