"""An active and a passive session, joined in memory."""

import shutil
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from trio_p2p import limits
from trio_p2p.errors import (
    CallbackError,
    ClockSkewError,
    DuplicateDatabaseError,
    PeerError,
    ReplicationError,
)
from trio_p2p.model.conflict import default_conflict_resolver
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.replication.session import ActiveSession, CollectionPlan, Plan
from trio_p2p.replication.status import Direction
from trio_p2p.store import checkpoints, conflicts, recent, records, schema
from trio_p2p.testing.databases import open_test_database
from trio_p2p.transport.memory import Faults, memory_transport_pair

SECOND_NS = 10**9
START_NS = 1_700_000_000 * SECOND_NS
# Of the mocked clock, so it passes at once.
STALL_S = 600


class Clock:
    """The wall clock of one database."""

    ahead_s = 0

    def __call__(self):
        return START_NS + round((trio.current_time() + self.ahead_s) * SECOND_NS)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def here(tmp_path):
    """The active side."""
    async with open_test_database(tmp_path / "here", clock=Clock()) as database:
        yield database


@pytest.fixture
async def there(tmp_path, clock):
    """The passive side; `clock` is its clock."""
    async with open_test_database(tmp_path / "there", clock=clock) as database:
        yield database


@asynccontextmanager
async def linked(
    active,
    passive,
    *,
    names=("_default",),
    document_ids=None,
    resolver=default_conflict_resolver,
    target="memory:there",
    delay_s=None,
    **plan,
):
    """Replicate while the block runs, or, one-shot, until done; gives the active side's journal."""
    near, far = memory_transport_pair(faults=Faults(delay_s=delay_s))
    parts = tuple(CollectionPlan(active.collection(name), resolver, document_ids) for name in names)
    journal = Journal()
    session = ActiveSession(
        near,
        Plan(target, parts, **plan),
        journal,
        on_activity=lambda busy: None,
        on_healthy=lambda: None,
        now_s=lambda: START_NS // SECOND_NS,
    )
    served = PassiveSession(far, passive.collections(), Journal())
    with trio.fail_after(STALL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, served)
            nursery.start_soon(session.run)
            yield journal
            if plan.get("continuous"):
                session.request_stop()


async def serve(session):
    """What the active side does wrong is its own failure."""
    try:
        await session.run()
    except ReplicationError as exc:
        assert exc.status in (4001, 4002)  # noqa: PT017


async def sync(active, passive, **settings):
    async with linked(active, passive, **settings) as journal:
        pass
    return journal


def counts(journal):
    """Documents offered, pushed, pulled and failed."""
    told = journal.statistics()
    return (
        told.documents_offered,
        told.documents_pushed,
        told.documents_pulled,
        told.documents_failed,
    )


def failures(journal):
    return {event.document_id: event.error for event in journal.events if event.error}


def bodies(database, name="_default"):
    collection = database.collection(name)
    found = (collection.get(document_id) for document_id in "abcdefgh")
    return {document.id: document.body for document in found if document is not None}


def waiting(database, document_id):
    with database.engine.read() as txn:
        return conflicts.of_document(txn, database.default_collection.number, document_id)


async def put(database, document_id, **body):
    return await database.default_collection.put(document_id, body)


# --- Directions ----------------------------------------------------------------------------------


async def test_a_pull_does_not_end_while_a_list_is_on_its_way_that_shorter_ones_overtook(
    here, there, autojump_clock, monkeypatch
):
    """Long IDs let a list take several frames; of the last, short one all is here already."""
    monkeypatch.setattr(limits, "OFFERS_BYTES_MAX", 10**6)  # As other peers have it.
    names = [f"{number:03}" + "x" * 200 for number in range(410)]
    async with there.default_collection.batch() as batch:
        for name in names:
            batch.put(name, {})
    await sync(here, there, push=False, document_ids=tuple(names[400:]))
    for expected in (400, 0):
        journal = await sync(here, there, push=False, delay_s=lambda: 0.01)
        assert journal.statistics().documents_pulled == expected
    assert here.default_collection.count == 410


async def test_two_empty_databases_have_nothing_to_say(here, there):
    assert counts(await sync(here, there)) == (0, 0, 0, 0)


async def test_a_push_only_sends(here, there):
    await put(here, "a", x=1)
    await put(there, "b", x=2)
    assert counts(await sync(here, there, pull=False)) == (1, 1, 0, 0)
    assert bodies(there) == {"a": {"x": 1}, "b": {"x": 2}}
    assert bodies(here) == {"a": {"x": 1}}


async def test_a_pull_only_receives(here, there):
    await put(here, "a", x=1)
    await put(there, "b", x=2)
    assert counts(await sync(here, there, push=False)) == (1, 0, 1, 0)
    assert bodies(here) == {"a": {"x": 1}, "b": {"x": 2}}
    assert bodies(there) == {"b": {"x": 2}}


async def test_both_directions_at_once(here, there):
    await put(here, "a", x=1)
    await put(there, "b", x=2)
    assert counts(await sync(here, there)) == (2, 1, 1, 0)
    assert bodies(here) == bodies(there) == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.behaviour("U4")
async def test_a_second_run_has_nothing_to_say(here, there):
    for number, name in enumerate("abcd"):
        await put(here, name, x=number)
        await put(there, name * 2, x=number)
    await sync(here, there)
    # What was pushed stands in the peer's feed and comes back once; it is no offer.
    assert counts(await sync(here, there)) == (0, 0, 0, 0)


async def test_a_deletion_is_replicated(here, there):
    await put(here, "a", x=1)
    await put(there, "b", x=1)
    await sync(here, there)
    await here.default_collection.delete("a")
    await there.default_collection.delete("b")
    assert counts(await sync(here, there)) == (2, 1, 1, 0)
    assert bodies(here) == bodies(there) == {}


async def test_edits_arrive_while_a_continuous_link_is_open(here, there, autojump_clock):
    async with linked(here, there, continuous=True):
        for number in range(3):
            await put(here, "a", x=number)
            await put(there, "b", x=number)
            await trio.sleep(0.1)
            assert bodies(here) == bodies(there) == {"a": {"x": number}, "b": {"x": number}}


async def test_only_the_documents_named_are_replicated(here, there):
    for name in "ab":
        await put(here, name, x=1)
    for name in "cd":
        await put(there, name, x=1)
    assert counts(await sync(here, there, document_ids=("a", "c"))) == (2, 1, 1, 0)
    assert bodies(there).keys() == {"a", "c", "d"}
    assert bodies(here).keys() == {"a", "b", "c"}
    # All documents have a checkpoint of their own.
    assert counts(await sync(here, there))[1:] == (1, 1, 0)


# --- Collections and identity --------------------------------------------------------------------


@pytest.mark.behaviour("K3")
async def test_collections_are_matched_by_name_whatever_their_order(here, there):
    for name in ("notes", "sales.orders"):
        await (await here.create_collection(name)).put("a", {"in": name})
    for name in ("sales.orders", "notes"):
        await (await there.create_collection(name)).put("b", {"in": name})
    await sync(here, there, names=("sales.orders", "_default", "notes"))
    for name in ("notes", "sales.orders"):
        assert bodies(here, name) == bodies(there, name) == {"a": {"in": name}, "b": {"in": name}}
    assert bodies(here) == bodies(there) == {}


@pytest.mark.behaviour("K2", "K8")
async def test_a_collection_that_the_peer_lacks_is_an_error(here, there):
    await here.create_collection("notes")
    with pytest.RaisesGroup(
        pytest.RaisesExc(ReplicationError, match="notes", check=lambda e: e.status == 404)
    ):
        await sync(here, there, names=("_default", "notes"))


async def test_two_copies_of_one_database_refuse_each_other(here, tmp_path):
    def take_identity(txn):
        txn.raw.put(schema.META_DATABASE_ID, here.id.bytes, db=txn.tables.meta)

    async with open_test_database(tmp_path / "copy") as copy:
        await copy.engine.write(take_identity)
    async with open_test_database(tmp_path / "copy") as copy:
        refused = pytest.RaisesExc(
            ReplicationError, check=lambda e: e.__cause__.split(DuplicateDatabaseError)[0]
        )
        with pytest.RaisesGroup(refused):
            await sync(here, copy)


# --- Conflicts -----------------------------------------------------------------------------------


@pytest.mark.behaviour("C12")
async def test_by_default_the_later_edit_wins_a_conflict(here, there, autojump_clock):
    await put(here, "a", by="here")
    await put(there, "b", by="there")
    await trio.sleep(1)
    await put(there, "a", by="there")
    await put(here, "b", by="here")
    assert (await sync(here, there)).statistics().conflicts_resolved == 2
    assert bodies(here) == bodies(there) == {"a": {"by": "there"}, "b": {"by": "here"}}


@pytest.mark.behaviour("C12")
async def test_by_default_a_deletion_wins_a_conflict(here, there, autojump_clock):
    await put(here, "a", by="here")
    await sync(here, there)
    await there.default_collection.delete("a")
    await trio.sleep(1)
    await put(here, "a", by="here again")
    await sync(here, there)
    assert bodies(here) == bodies(there) == {}


@pytest.mark.behaviour("C3")
async def test_a_merge_goes_to_both_sides(here, there):
    await put(here, "a", x=1)
    await put(there, "a", y=2)
    await sync(here, there, resolver=lambda c: c.local.body | c.remote.body)
    assert bodies(here) == bodies(there) == {"a": {"x": 1, "y": 2}}
    assert counts(await sync(here, there)) == (0, 0, 0, 0)


@pytest.mark.behaviour("C1", "C9a", "C13b")
async def test_a_conflict_whose_resolver_fails_waits_for_the_next_start(
    here, there, autojump_clock
):
    def fail(conflict):
        raise ZeroDivisionError

    await put(here, "a", by="here")
    await trio.sleep(1)
    await put(there, "a", by="there")
    journal = await sync(here, there, resolver=fail)
    assert isinstance(failures(journal)["a"], CallbackError)
    assert isinstance(failures(journal)["a"].__cause__, ZeroDivisionError)
    assert len(waiting(here, "a")) == 1
    assert bodies(here) == {"a": {"by": "here"}}

    await sync(here, there)
    assert not waiting(here, "a")
    assert bodies(here) == bodies(there) == {"a": {"by": "there"}}


@pytest.mark.behaviour("C2")
async def test_a_push_that_conflicts_stays_pending(here, there):
    await put(here, "a", by="here")
    await put(there, "a", by="there")
    for _ in range(2):
        journal = await sync(here, there, pull=False)
        assert counts(journal) == (1, 0, 0, 1)
        assert failures(journal)["a"].code == 409
    assert bodies(there) == {"a": {"by": "there"}}


@pytest.mark.behaviour("C10")
async def test_a_push_goes_on_after_its_acknowledgement_was_lost(here, there):
    """The peer's revision is an ancestor of ours, though nothing here says that it has it."""
    await put(here, "a", x=1)
    await sync(here, there, pull=False)
    await here.engine.write(lambda txn: txn.raw.drop(txn.tables.known_revisions, delete=False))
    await put(here, "a", x=2)
    assert counts(await sync(here, there, pull=False)) == (1, 1, 0, 0)
    assert bodies(there) == {"a": {"x": 2}}


async def test_the_current_version_is_enough_to_go_on_from(here, there, monkeypatch):
    """The peer tells no more of what it has than that, where lists are long."""
    monkeypatch.setattr(limits, "CONFLICT_VERSIONS_MAX", 0)
    await put(here, "a", x=1)
    await sync(here, there)
    await put(there, "a", x=2)
    await sync(here, there)
    await here.engine.write(lambda txn: txn.raw.drop(txn.tables.known_revisions, delete=False))
    await put(here, "a", x=3)
    assert counts(await sync(here, there, pull=False)) == (1, 1, 0, 0)
    await put(here, "b", by="here")
    await trio.sleep(1)
    await put(there, "b", by="there")
    await sync(here, there)
    assert bodies(here) == bodies(there) == {"a": {"x": 3}, "b": {"by": "there"}}


@pytest.mark.parametrize("continuous", [False, True])
async def test_a_document_that_was_written_anew_is_the_same_here_and_there(
    here, there, autojump_clock, continuous
):
    """It stands there in place of a tombstone, which is forgotten here."""
    await put(there, "a", x=1)
    await there.default_collection.delete("a")
    await sync(here, there)
    await here.default_collection.purge("a")
    await trio.sleep(1)
    await put(here, "a", x=2)
    async with linked(here, there, continuous=continuous):
        await trio.sleep(2)
    assert bodies(here) == bodies(there) == {"a": {"x": 2}}
    versions = {database.default_collection.get("a").version for database in (here, there)}
    assert len(versions) == 1
    assert counts(await sync(here, there))[1:] == (0, 0, 0)


async def test_who_only_pushes_goes_on_with_a_document_that_was_written_anew(
    here, there, autojump_clock
):
    await put(there, "a", x=1)
    await there.default_collection.delete("a")
    for x in (2, 3, 4):
        await trio.sleep(1)
        await put(here, "a", x=x)
        assert counts(await sync(here, there, pull=False)) == (1, 1, 0, 0)
        assert bodies(there) == {"a": {"x": x}}
    await here.default_collection.delete("a")
    assert counts(await sync(here, there, pull=False)) == (1, 1, 0, 0)
    assert bodies(there) == {}


# --- Checkpoints ---------------------------------------------------------------------------------


async def test_after_a_reset_all_is_offered_and_nothing_sent(here, there):
    await put(here, "a", x=1)
    await put(there, "b", x=1)
    await sync(here, there)
    assert counts(await sync(here, there, reset_checkpoint=True))[1:] == (0, 0, 0)
    assert counts(await sync(here, there)) == (0, 0, 0, 0)


@pytest.mark.parametrize("copy", ["ours", "theirs"])
async def test_after_a_peer_got_more_than_there_is_both_directions_start_over(
    here, there, caplog, copy
):
    """This database was put back to an earlier state: its sequences are given to others now."""
    await put(here, "a", x=1)
    await put(there, "b", x=1)
    await sync(here, there)
    claimed = b'{"local":1000,"remote":2}'

    def claim(txn):
        if copy == "ours":
            (kept,) = recent.entries(txn, checkpoints.LOCAL)
            record = records.pack_local_checkpoint(records.LocalCheckpoint(1, 0, claimed))
            recent.put(txn, checkpoints.LOCAL, kept.key, record)
        else:
            (kept,) = recent.entries(txn, checkpoints.PEERS)
            generation, *_ = records.unpack_peer_checkpoint(kept.content)
            record = records.pack_peer_checkpoint(generation, 0, 0, claimed)
            recent.put(txn, checkpoints.PEERS, kept.key, record)

    await (here if copy == "ours" else there).engine.write(claim)
    await here.default_collection.purge("b")
    assert counts(await sync(here, there))[1:] == (0, 1, 0)
    assert "was rolled back, and starts over" in caplog.text
    assert bodies(here) == {"a": {"x": 1}, "b": {"x": 1}}


def fail_to_resolve(conflict):
    raise RuntimeError("later")


def keep_theirs(conflict):
    return conflict.remote


@pytest.mark.parametrize("stopped_after_s", [0, 1.5, 3])
async def test_a_revision_that_a_peer_was_rolled_back_behind_is_proposed_once_it_is_kept(
    here, tmp_path, autojump_clock, stopped_after_s
):
    """It waited here as a conflict, learned by a session that the peer has lost."""
    async with open_test_database(tmp_path / "there", clock=Clock()) as there:
        await put(there, "a", x=1)
        await sync(here, there)
    shutil.copytree(tmp_path / "there", tmp_path / "copy")
    async with open_test_database(tmp_path / "there", clock=Clock()) as there:
        await put(here, "a", x=2)
        await trio.sleep(1)
        lost = await put(there, "a", x=3)
        await sync(here, there, resolver=fail_to_resolve)
        assert waiting(here, "a") == [lost.revision]
    async with open_test_database(tmp_path / "copy", clock=Clock()) as there:
        slow = {"delay_s": lambda: 0.5, "continuous": True, "resolver": keep_theirs}
        async with linked(here, there, **slow):
            await trio.sleep(stopped_after_s)
        await sync(here, there, resolver=keep_theirs)
        assert bodies(here) == bodies(there) == {"a": {"x": 3}}
        assert counts(await sync(here, there))[1:] == (0, 0, 0)


@pytest.mark.parametrize("after_s", [0, 1, 2])
async def test_a_revision_that_a_peer_lost_is_proposed_though_another_session_keeps_it(
    here, tmp_path, autojump_clock, after_s
):
    """It gets a new sequence, behind all that was known when this session began."""
    async with open_test_database(tmp_path / "elsewhere", clock=Clock()) as elsewhere:
        async with open_test_database(tmp_path / "there", clock=Clock()) as there:
            await put(there, "a", x=1)
            await sync(here, there)
            await sync(here, elsewhere, target="memory:elsewhere")
        shutil.copytree(tmp_path / "there", tmp_path / "copy")
        await put(elsewhere, "a", x=9)
        await trio.sleep(1)
        async with open_test_database(tmp_path / "there", clock=Clock()) as there:
            await put(here, "a", x=2)
            await sync(here, there)
        async with open_test_database(tmp_path / "copy", clock=Clock()) as there:
            async with linked(here, there, delay_s=lambda: 0.5, continuous=True):
                await trio.sleep(after_s)
                await sync(here, elsewhere, target="memory:elsewhere")
                await trio.sleep(20)
            assert bodies(here) == bodies(there) == {"a": {"x": 2}}


@pytest.mark.behaviour("P14", "G2a")
@pytest.mark.parametrize("lost", ["local_checkpoints", "peer_checkpoints"])
async def test_after_one_copy_of_a_checkpoint_was_lost_nothing_is_sent_twice(here, there, lost):
    await put(here, "a", x=1)
    await put(there, "b", x=1)
    await sync(here, there)
    for database in (here, there):
        await database.engine.write(
            lambda txn: txn.raw.drop(getattr(txn.tables, lost), delete=False)
        )
    assert counts(await sync(here, there))[1:] == (0, 0, 0)
    assert counts(await sync(here, there)) == (0, 0, 0, 0)


@pytest.mark.behaviour("P11")
async def test_a_peer_that_was_made_anew_gets_everything(here, there, tmp_path):
    await put(here, "a", x=1)
    await put(there, "b", x=1)
    await sync(here, there)
    async with open_test_database(tmp_path / "anew") as anew:
        assert counts(await sync(here, anew)) == (2, 2, 0, 0)
        assert bodies(anew) == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.behaviour("O1")
async def test_a_peer_at_another_address_is_known_again(here, there):
    await put(here, "a", x=1)
    await sync(here, there)
    assert counts(await sync(here, there, target="memory:elsewhere")) == (0, 0, 0, 0)


async def test_a_checkpoint_that_others_always_save_first_may_be_saved_later(
    here, there, monkeypatch
):
    async def set_checkpoint(self, collection, client, revision, body):
        raise PeerError("HTTP", 409, "revision mismatch")

    await put(here, "a", x=1)
    with (
        monkeypatch.context() as patch,
        pytest.RaisesGroup(
            pytest.RaisesExc(ReplicationError, check=lambda e: e.retryable and e.status == 409)
        ),
    ):
        patch.setattr(CouchbaseProfile, "set_checkpoint", set_checkpoint)
        await sync(here, there)
    assert counts(await sync(here, there))[1:] == (0, 0, 0)


# --- Single documents ----------------------------------------------------------------------------


@pytest.mark.behaviour("X4")
async def test_a_version_from_the_future_waits_alone_until_its_time(
    here, there, clock, autojump_clock
):
    await put(there, "a", x=1)
    clock.ahead_s = 200
    await put(there, "b", x=1)
    for _ in range(2):
        journal = await sync(here, there)
        assert failures(journal).keys() == {"b"}
        assert isinstance(failures(journal)["b"], ClockSkewError)
        assert bodies(here) == {"a": {"x": 1}}
    await trio.sleep(100)
    assert not failures(await sync(here, there))
    assert bodies(here) == {"a": {"x": 1}, "b": {"x": 1}}


@pytest.mark.behaviour("X4")
async def test_a_peer_whose_clock_is_behind_takes_a_pushed_version_later(
    here, there, clock, autojump_clock
):
    await put(here, "a", x=1)
    clock.ahead_s = -200
    error = failures(await sync(here, there, pull=False))["a"]
    assert isinstance(error, PeerError)
    assert error.retryable
    await trio.sleep(100)
    assert counts(await sync(here, there, pull=False)) == (1, 1, 0, 0)
    assert bodies(there) == {"a": {"x": 1}}


@pytest.mark.behaviour("P17a")
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("message", range(8))
async def test_a_document_may_change_at_any_moment(
    here, there, nursery, direction, message, autojump_clock
):
    """Between the offer and the sending, too, when its revision is not there any more."""
    source, other = (here, there) if direction is Direction.PUSH else (there, here)
    await put(source, "a", x=1)
    messages = iter(range(1_000))

    def edit():
        if next(messages) == message:
            nursery.start_soon(source.default_collection.put, "a", {"x": 2})
        return 0.1

    assert not failures(await sync(here, there, delay_s=edit))
    assert bodies(other)["a"] in ({"x": 1}, {"x": 2})
    assert not failures(await sync(here, there))
    assert bodies(other) == {"a": {"x": 2}}


@pytest.mark.parametrize("direction", list(Direction))
async def test_a_document_of_a_megabyte_is_replicated(here, there, direction):
    source, other = (here, there) if direction is Direction.PUSH else (there, here)
    text = Random(1).randbytes(2**19 - 100).hex()
    await put(source, "a", text=text)
    await sync(here, there)
    assert bodies(other) == {"a": {"text": text}}


@pytest.mark.behaviour("P7")
async def test_of_many_quick_edits_the_peer_gets_the_last(here, there, autojump_clock):
    async with linked(here, there, continuous=True, pull=False) as journal:
        for number in range(5_000):
            await put(here, "a", x=number)
        await trio.sleep(10)
        assert bodies(there) == {"a": {"x": 4_999}}
    assert not failures(journal)
