"""Storing the revisions that arrive."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import StoreFullError
from trio_p2p.ids import DocumentID, SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.version import TreeRevisionID, Version, VersionVector
from trio_p2p.replication.inserter import Inserter
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.knowledge import RemoteKnowledge
from trio_p2p.replication.link import Link, Pulse
from trio_p2p.replication.messages import RevisionOutcome, SentRevision
from trio_p2p.store import conflicts, documents, remotes
from trio_p2p.testing.databases import open_test_database

NOW = 1_800_000_000 * 10**9
A, B = DocumentID("a"), DocumentID("b")
ANN, BOB = SourceID(b"a" * 16), SourceID(b"b" * 16)
STORED, HELD = RevisionOutcome(), RevisionOutcome(304)


def revision(time, *previous, source=ANN, deleted=False, body=None):
    """A revision made at this time around now, on top of others: (time, source) pairs."""
    before = tuple(Version(NOW + time, author) for time, author in previous)
    body = EMPTY_BODY if deleted else encode_body(body or {"time": time})
    return Revision(VersionVector(Version(NOW + time, source), (), before), body, deleted)


class Receiver:
    """An inserter with the database it stores in."""

    def __init__(self, database, knowledge):
        self.collection = database.default_collection
        self.engine = database.engine
        self.knowledge = knowledge
        link = Link(self.collection, 0, None, Journal(), Pulse())
        self.inserter = Inserter(link, knowledge)

    async def insert(self, *arrived, may_revive=False):
        """Let revisions of document `a` arrive, or (ID, revision) pairs; what became of them."""
        insertions = []
        for item in arrived:
            document_id, one = item if isinstance(item, tuple) else (A, item)
            sent = SentRevision(document_id, "1", one)
            self.inserter.add(sent, insertions.append, may_revive=may_revive)
        assert self.inserter.backlog == len(arrived)
        await wait_all_tasks_blocked()
        assert self.inserter.backlog == 0
        return insertions

    async def outcomes(self, *arrived, **options):
        """As `insert`, but for whether a conflict now waits."""
        return [insertion.outcome for insertion in await self.insert(*arrived, **options)]

    def current(self, document_id=A):
        with self.engine.read() as txn:
            stored = documents.get(txn, self.collection.number, document_id)
        return stored and stored.revision

    def waiting(self, document_id=A):
        with self.engine.read() as txn:
            return conflicts.of_document(txn, self.collection.number, document_id)

    def bases(self):
        with self.engine.read() as txn:
            return txn.raw.stat(txn.tables.bases)["entries"]

    def known(self, document_id=A):
        with self.engine.read() as txn:
            return self.knowledge.of(txn, document_id)


@pytest.fixture
async def database(tmp_path):
    async with open_test_database(tmp_path / "db", clock=lambda: NOW) as database:
        yield database


@pytest.fixture
async def active(database, nursery):
    """The receiver of an active peer."""
    receiver = Receiver(database, RemoteKnowledge(1, 1))
    nursery.start_soon(receiver.inserter.run)
    yield receiver
    nursery.cancel_scope.cancel()


@pytest.fixture
async def passive(database, nursery):
    """The receiver of a passive peer."""
    receiver = Receiver(database, None)
    nursery.start_soon(receiver.inserter.run)
    yield receiver
    nursery.cancel_scope.cancel()


# --- Both sides -----------------------------------------------------------------------------------


async def test_a_new_document_is_stored_as_it_arrived(passive):
    assert await passive.outcomes(revision(1, (0, BOB))) == [STORED]
    assert passive.current() == revision(1, (0, BOB))


async def test_what_is_there_already_is_held(passive):
    await passive.insert(revision(2, (1, BOB)))
    arrived = [revision(2, (1, BOB)), revision(1, source=BOB), revision(1)]
    assert await passive.outcomes(*arrived) == [HELD, HELD, HELD]
    assert passive.current() == revision(2, (1, BOB))


async def test_a_newer_revision_takes_the_place_of_an_older_one(passive):
    await passive.insert(revision(1))
    assert await passive.outcomes(revision(2, (1, ANN), source=BOB)) == [STORED]
    assert passive.current() == revision(2, (1, ANN), source=BOB)


async def test_revisions_of_one_document_may_arrive_together(passive):
    arrived = [revision(1), revision(2, (1, ANN), source=BOB), revision(1)]
    assert await passive.outcomes(*arrived) == [STORED, STORED, HELD]
    assert passive.collection.last_sequence == 2


async def test_a_tombstone_is_stored_though_the_document_never_was_here(passive):
    assert await passive.outcomes(revision(1, deleted=True)) == [STORED]
    assert passive.current().deleted
    assert passive.collection.count == 0


async def test_a_document_with_tree_revisions_is_stored(passive):
    trees = (TreeRevisionID.parse("2-bb"), TreeRevisionID.parse("1-aa"))
    second = Revision.from_tree(trees, encode_body({"n": 2}), deleted=False)
    first = Revision.from_tree(trees[1:], encode_body({"n": 1}), deleted=False)
    assert await passive.outcomes(first, second, first) == [STORED, STORED, HELD]
    assert passive.current() == second


TOO_FAR_NS = limits.CLOCK_SKEW_NS_MAX + 10**9


@pytest.mark.parametrize("time", [TOO_FAR_NS, -NOW + 1, 2**63 - NOW])
async def test_a_version_that_cannot_be_from_now_fails_alone_and_for_now(passive, time):
    outcomes = await passive.outcomes((A, revision(1)), (B, revision(time)), (A, revision(2)))
    assert [(outcome.status, outcome.retryable) for outcome in outcomes] == [
        (0, False),
        (429, True),
        (0, False),
    ]
    assert passive.current(B) is None


async def test_a_version_from_the_future_is_found_behind_the_current_one_too(passive):
    [outcome] = await passive.outcomes(revision(1, (TOO_FAR_NS, BOB)))
    assert outcome.status == 429


async def test_what_arrives_while_a_batch_is_stored_goes_into_the_next_ones(passive):
    count = 2 * limits.INSERT_BATCH_REVISIONS_MAX + 1
    outcomes = await passive.outcomes(*((DocumentID(f"doc{n}"), revision(n)) for n in range(count)))
    assert outcomes == [STORED] * count
    assert passive.collection.count == count


async def test_a_blob_that_is_here_stays_until_the_revision_that_names_it_is_stored(
    database, nursery
):
    """Nothing names it any more as the revision arrives: just then, it might be dropped."""
    notes = database.default_collection
    blob = (await database.save_blob(b"x")).blob_properties()
    await notes.put("b", {"blob": blob})
    await notes.delete("b")
    receiver = Receiver(database, None)
    insertions = []
    sent = SentRevision(A, "1", revision(1, body={"blob": blob}))
    receiver.inserter.add(sent, insertions.append)
    assert (await database.compact()).blobs_removed == 0
    nursery.start_soon(receiver.inserter.run)
    await wait_all_tasks_blocked()
    assert [insertion.outcome for insertion in insertions] == [STORED]
    assert await notes.get("a")["blob"].read() == b"x"
    nursery.cancel_scope.cancel()


async def test_a_full_database_takes_no_more_but_may_later(tmp_path, nursery):
    async with open_test_database(
        tmp_path / "small", map_size_max=2**20, clock=lambda: NOW
    ) as database:
        receiver = Receiver(database, None)
        nursery.start_soon(receiver.inserter.run)
        large = revision(1, body={"text": "x" * 2**21})
        outcomes = await receiver.outcomes((A, large), (B, revision(1)))
        assert [(outcome.status, outcome.retryable) for outcome in outcomes] == [(503, True)] * 2
        assert await receiver.outcomes((B, revision(1))) == [STORED]
        nursery.cancel_scope.cancel()


async def test_a_full_database_ends_a_replication_that_pulls(tmp_path):
    async with open_test_database(
        tmp_path / "small", map_size_max=2**20, clock=lambda: NOW
    ) as database:
        receiver = Receiver(database, RemoteKnowledge(1, 1))
        sent = SentRevision(A, "1", revision(1, body={"text": "x" * 2**21}))
        receiver.inserter.add(sent, lambda insertion: None)
        with pytest.RaisesGroup(StoreFullError):
            await receiver.inserter.run()


async def test_a_batch_that_is_being_stored_when_it_is_cancelled_is_stored(database):
    receiver = Receiver(database, None)
    with trio.CancelScope() as scope:
        receiver.inserter.add(SentRevision(A, "1", revision(1)), lambda insertion: None)
        scope.cancel()
        await receiver.inserter.run()
    assert scope.cancelled_caught
    assert receiver.current() in (None, revision(1))


# --- The passive side -----------------------------------------------------------------------------


async def test_a_conflict_is_refused_on_the_passive_side(passive):
    await passive.insert(revision(1))
    [insertion] = await passive.insert(revision(2, source=BOB))
    assert (insertion.outcome.status, insertion.outcome.retryable) == (409, False)
    assert not insertion.conflicted
    assert passive.current() == revision(1)
    assert passive.waiting() == []


async def test_a_document_deleted_here_may_be_written_anew(passive):
    await passive.insert(revision(1, deleted=True))
    outcomes = await passive.outcomes(revision(2, source=BOB), may_revive=True)
    current = passive.current()
    assert outcomes == [RevisionOutcome()]
    assert (current.body, current.deleted) == (revision(2).body, False)
    # Those who have the tombstone take it for newer, and who sent it goes on from there.
    assert current.has(Version(NOW + 1, ANN))
    assert current.version == Version(NOW + 2, BOB)
    assert await passive.outcomes(revision(3, source=BOB)) == [RevisionOutcome()]
    assert passive.current().version == Version(NOW + 3, BOB)


async def test_a_revision_older_than_the_tombstone_does_not_revive_the_document(passive):
    await passive.insert(revision(2, deleted=True))
    [outcome] = await passive.outcomes(revision(1, source=BOB), may_revive=True)
    assert outcome.status == 409


async def test_a_tombstone_in_conflict_is_not_revived_unasked(passive):
    await passive.insert(revision(1, deleted=True))
    [outcome] = await passive.outcomes(revision(2, source=BOB))
    assert outcome.status == 409


async def test_a_document_that_lives_is_not_overwritten_as_if_it_were_deleted(passive):
    await passive.insert(revision(1))
    [outcome] = await passive.outcomes(revision(2, source=BOB), may_revive=True)
    assert outcome.status == 409


# --- The active side ------------------------------------------------------------------------------


async def test_a_base_goes_with_the_waiting_revision_that_included_it(active):
    """Whoever wrote the later one may have lost what the earlier one was made from."""
    await active.insert(revision(1, source=BOB))
    await active.collection.put("a", {"edited": "here"})
    await active.insert(revision(5, (1, BOB)))
    assert active.bases() == 1
    await active.insert(revision(6))
    assert active.waiting() == [revision(6)]
    assert active.bases() == 0


async def test_a_conflict_waits_for_the_resolver_on_the_active_side(active):
    await active.insert(revision(1))
    [insertion] = await active.insert(revision(2, source=BOB))
    assert (insertion.outcome, insertion.conflicted) == (STORED, True)
    assert active.current() == revision(1)
    assert active.waiting() == [revision(2, source=BOB)]


async def test_two_deletions_are_one_deletion(active):
    await active.insert(revision(1, deleted=True))
    [insertion] = await active.insert(revision(2, source=BOB, deleted=True))
    assert (insertion.outcome, insertion.conflicted) == (STORED, False)
    assert active.current().version == Version(NOW + 2, BOB)
    assert active.current().has(Version(NOW + 1, ANN))


async def test_the_peer_is_known_to_have_what_it_sent(active):
    await active.insert(revision(1))
    assert active.known() == Version(NOW + 1, ANN)
    await active.insert(revision(2, source=BOB))
    assert active.known() == Version(NOW + 2, BOB)


async def test_what_a_peer_sent_of_what_is_here_is_stored_with_the_next_checkpoint(active):
    """Until then the peer may lose it, and what was saved before tells of this sequence, too."""
    await active.insert(revision(1))
    await active.engine.write(lambda txn: remotes.forget_revision(txn, 1, A, Version(NOW + 1, ANN)))
    assert await active.outcomes(revision(1)) == [HELD]
    assert active.known() == Version(NOW + 1, ANN)
    assert active.knowledge.take_noted() == {A: Version(NOW + 1, ANN)}
    with active.engine.read() as txn:
        assert remotes.known(txn, 1, 1, A) is None


async def test_what_was_noted_before_gives_way_to_what_was_sent(active):
    active.knowledge.note(A, Version(NOW, BOB))
    await active.insert(revision(1))
    assert active.known() == Version(NOW + 1, ANN)


async def test_what_was_noted_stays_when_nothing_could_be_stored(active):
    active.knowledge.note(A, Version(NOW, BOB))
    await active.insert(revision(TOO_FAR_NS))
    assert active.known() == Version(NOW, BOB)
