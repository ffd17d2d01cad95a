"""What the active side asks for, and what it makes of answers that are not what it asked for."""

import tracemalloc
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import ClockSkewError, PeerError, RemoteProtocolError
from trio_p2p.ids import SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import default_conflict_resolver
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.replication.checkpoint import RemoteSequences
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.knowledge import RemoteKnowledge
from trio_p2p.replication.link import Link, Pulse
from trio_p2p.replication.messages import (
    NoRevision,
    OfferChanges,
    OfferedChange,
    SendRevisions,
    SentRevision,
)
from trio_p2p.replication.puller import Puller
from trio_p2p.replication.resolver import Resolver
from trio_p2p.testing.databases import open_test_database

SECOND_NS = 10**9
NOW = 1_800_000_000 * SECOND_NS
ANN, BOB = SourceID(b"a" * 16), SourceID(b"b" * 16)


def revision(time=1, body=None, author=BOB):
    return Revision(VersionVector(Version(NOW + time, author)), encode_body(body or {"t": time}))


class Profile:
    """Takes every subscription."""

    def __init__(self):
        self.subscriptions = []

    async def subscribe(self, request):
        self.subscriptions.append(request)


class Pull:
    """A puller, and what a peer says to it."""

    def __init__(self, database):
        self.collection = database.default_collection
        self.journal = Journal()
        self.profile = Profile()
        self.sequences = RemoteSequences(None)
        link = Link(self.collection, 0, self.profile, self.journal, Pulse())
        knowledge = RemoteKnowledge(1, self.collection.number)
        resolver = Resolver(link, default_conflict_resolver)
        self.puller = Puller(link, knowledge, self.sequences, resolver)

    async def offer(self, *changes):
        """Offer (sequence, ID, revision) triples; what is wanted of them."""
        replies = []
        offered = [OfferedChange(s, name, one.id) for s, name, one in changes]
        self.puller.offered(OfferChanges(0, tuple(offered)), replies.append)
        await wait_all_tasks_blocked()
        (reply,) = replies
        return [answer is not None for answer in reply.answers]

    async def send(self, sequence, document_id, one):
        replies = []
        request = SendRevisions(0, (SentRevision(document_id, sequence, one),))
        self.puller.arrived(request, replies.append)
        await wait_all_tasks_blocked()
        return replies[0].outcomes[0].status

    async def withhold(self, sequence, document_id, status):
        self.puller.withheld(NoRevision(0, document_id, None, sequence, status))
        await wait_all_tasks_blocked()

    @property
    def failures(self):
        return {event.document_id: event.error for event in self.journal.failures}


@pytest.fixture
async def database(tmp_path):
    async with open_test_database(tmp_path / "db", clock=lambda: NOW) as database:
        yield database


@pytest.fixture
async def pull(database, nursery):
    pull = Pull(database)
    nursery.start_soon(pull.puller.run, True, None)
    nursery.start_soon(pull.puller.run_inserter)
    await pull.offer()
    assert not pull.puller.busy
    yield pull
    nursery.cancel_scope.cancel()


async def test_what_is_missing_is_asked_for_and_stored(pull):
    assert await pull.offer(("1", "a", revision()), ("2", "b", revision())) == [True, True]
    assert pull.puller.busy
    await pull.send("1", "a", revision())
    assert pull.sequences.reached == "1"
    await pull.send("2", "b", revision())
    assert pull.sequences.reached == "2"
    assert not pull.puller.busy
    assert await pull.offer(("1", "a", revision())) == [False]


async def test_what_cannot_be_stored_here_is_left_out(pull):
    replies = []
    offered = OfferedChange("2", "b", revision().id)
    pull.puller.offered(OfferChanges(0, (None, offered, None)), replies.append)
    await wait_all_tasks_blocked()
    assert [answer is not None for answer in replies[0].answers] == [False, True, False]
    await pull.send("2", "b", revision())
    assert pull.sequences.reached == "2"


async def test_what_is_on_its_way_is_not_asked_for_again(pull):
    """As when it is offered by two subscriptions."""
    await pull.offer(("1", "a", revision()))
    assert await pull.offer(("1", "a", revision())) == [False]
    await pull.send("1", "a", revision())
    assert not pull.puller.busy
    assert pull.sequences.reached == "1"


async def test_what_stands_in_for_a_revision_may_bring_a_sequence_of_its_own(pull):
    await pull.offer(("1", "a", revision()), ("2", "b", revision()))
    await pull.send("7", "a", revision(5))
    await pull.send("2", "b", revision())
    assert pull.sequences.reached == "2"
    assert not pull.puller.busy


async def test_a_revision_that_was_not_asked_for_is_refused_and_holds_nothing_up(pull):
    await pull.offer(("1", "a", revision()))
    assert await pull.send("2", "b", revision()) == 403
    assert pull.collection.get("b") is None
    assert (pull.sequences.reached, pull.puller.busy) == (None, True)
    for _ in range(2):
        await pull.send("1", "a", revision())
    assert (pull.sequences.reached, pull.puller.busy) == ("1", False)


async def turns_until_answered(pull, *changes):
    """As `offer`; how many turns this task has until the answer comes."""
    replies, turns = [], 0
    offered = [OfferedChange(s, name, one.id) for s, name, one in changes]
    pull.puller.offered(OfferChanges(0, tuple(offered)), replies.append)
    while not replies:
        await trio.lowlevel.checkpoint()
        turns += 1
    assert len(replies[0].answers) == len(changes)
    return turns


async def test_others_have_their_turns_while_a_long_list_is_answered(pull, monkeypatch):
    monkeypatch.setattr(limits, "SCAN_SLICE_ROWS", 5)
    changes = [(str(number), f"d{number}", revision()) for number in range(1, 101)]
    assert await turns_until_answered(pull, *changes) >= 20


async def test_others_have_their_turns_while_long_vectors_are_read(pull, monkeypatch):
    """Those of what waits for a resolver, too."""
    monkeypatch.setattr(limits, "JUDGED_VERSIONS_SLICE", 60)
    long = [revision(2, author=ANN), revision(2)]
    for sequence, one in enumerate(long, 1):
        before = tuple(Version(NOW, SourceID(bytes([n]) * 16)) for n in range(1, 15))
        one = replace(one, vector=replace(one.vector, previous=before))
        await pull.offer((str(sequence), "a", one))
        await pull.send(str(sequence), "a", one)
    changes = [(str(sequence), "a", revision()) for sequence in range(3, 103)]
    assert await turns_until_answered(pull, *changes) >= 50


async def test_an_offer_is_answered_without_reading_what_waits_for_its_resolver(pull):
    """A peer can let very much wait."""
    await pull.collection.put("a", {})
    for time in range(1, 11):
        one = revision(time, {"t": "x" * 1_000_000}, author=SourceID(bytes([time]) * 16))
        await pull.offer((str(time), "a", one))
        await pull.send(str(time), "a", one)
    tracemalloc.start()
    try:
        assert await pull.offer(("11", "a", revision(11))) == [True]
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


async def test_of_very_many_that_failed_for_now_some_wait_for_the_next_session(pull, monkeypatch):
    monkeypatch.setattr(limits, "SEQUENCE_GAPS_MAX", 2)
    for number in range(1, 5):
        await pull.offer((str(number), f"d{number}", revision()))
        await pull.withhold(str(number), f"d{number}", 503)
    assert list(pull.puller._failed) == ["d1", "d2"]
    assert pull.sequences.reached is None
    assert not pull.puller.busy


async def test_documents_that_were_not_subscribed_to_are_not_wanted(database, nursery):
    pull = Pull(database)
    nursery.start_soon(pull.puller.run, True, ("a", "c"))
    nursery.start_soon(pull.puller.run_inserter)
    offers = [(str(n), name, revision()) for n, name in enumerate("abcd", 1)]
    assert await pull.offer(*offers) == [True, False, True, False]
    for sequence, name, one in offers:
        await pull.send(sequence, name, one)
    assert [pull.collection.get(name) is not None for name in "abcd"] == [True, False, True, False]
    assert pull.sequences.reached == "4"
    nursery.cancel_scope.cancel()


async def test_two_documents_of_one_sequence_break_the_protocol(database):
    pull = Pull(database)
    offered = [OfferedChange("1", name, revision().id) for name in ("a", "b")]
    pull.puller.offered(OfferChanges(0, tuple(offered)), pytest.fail)
    with pytest.raises(RemoteProtocolError, match="one sequence"):
        await pull.puller.run(True, None)


async def test_sequences_may_come_in_any_order(pull):
    """Couchbase Lite offers again what failed, in whatever order it failed."""
    await pull.offer(("5", "a", revision()), ("2", "b", revision()))
    await pull.send("5", "a", revision())
    await pull.send("2", "b", revision())
    assert pull.sequences.reached == "5"


@pytest.mark.parametrize("status", [404, 410, 500])
async def test_what_will_not_come_is_a_failure_and_done(pull, status):
    await pull.offer(("1", "a", revision()))
    await pull.withhold("1", "a", status)
    assert isinstance(pull.failures["a"], PeerError)
    assert (pull.sequences.reached, pull.puller.has_failed) == ("1", False)


@pytest.mark.parametrize("status", [429, 503])
async def test_what_will_not_come_for_now_is_asked_for_again(pull, nursery, status):
    await pull.offer(("1", "a", revision()), ("2", "b", revision()))
    await pull.withhold("1", "a", status)
    await pull.send("2", "b", revision())
    assert isinstance(pull.failures["a"], PeerError)
    assert (pull.sequences.reached, pull.puller.has_failed) == (None, True)
    assert not pull.puller.busy
    nursery.start_soon(pull.puller.retry_failed)
    await wait_all_tasks_blocked()
    assert pull.profile.subscriptions[-1].document_ids == ("a",)
    assert await pull.offer(("1", "a", revision())) == [True]
    await pull.send("1", "a", revision())
    await pull.offer()
    assert (pull.sequences.reached, pull.puller.has_failed) == ("2", False)


async def fetch(pull, nursery, *document_ids):
    nursery.start_soon(pull.puller.fetch, document_ids)
    await wait_all_tasks_blocked()
    assert pull.profile.subscriptions[-1].document_ids == document_ids


async def test_what_a_fetch_offers_tells_nothing_of_what_stands_before_it(pull, nursery):
    """Even if it is offered again, as when it is edited meanwhile: 8 is yet to be offered."""
    await pull.offer(("1", "a", revision()))
    await pull.send("1", "a", revision())
    await fetch(pull, nursery, "d")
    for sequence, one in (("5", revision(1)), ("9", revision(2))):
        assert await pull.offer((sequence, "d", one)) == [True]
        await pull.send(sequence, "d", one)
    await pull.offer()
    assert (pull.sequences.reached, pull.puller.busy) == ("1", False)
    await pull.offer(("8", "x", revision()))
    await pull.send("8", "x", revision())
    assert pull.sequences.reached == "8"
    assert await pull.offer(("9", "d", revision(2))) == [False]
    assert pull.sequences.reached == "9"


async def fail(pull, sequence, one):
    """A revision of `d` is offered and does not come for now."""
    assert await pull.offer((sequence, "d", one)) == [True]
    await pull.withhold(sequence, "d", 503)


async def test_of_a_document_that_fails_again_and_again_the_last_failure_is_open(pull, nursery):
    await fail(pull, "1", revision(1))
    await fail(pull, "2", revision(2))
    await pull.offer(("3", "x", revision()))
    await pull.send("3", "x", revision())
    assert pull.sequences.reached == "1"
    nursery.start_soon(pull.puller.retry_failed)
    await wait_all_tasks_blocked()
    await pull.offer(("2", "d", revision(2)))
    await pull.send("2", "d", revision(2))
    await pull.offer()
    assert (pull.sequences.reached, pull.puller.has_failed) == ("3", False)


async def test_an_older_revision_that_comes_late_leaves_the_failure_of_a_newer_one_open(pull):
    """As when a filter or a blob held it up."""
    await pull.offer(("1", "d", revision(1)))
    await fail(pull, "2", revision(2))
    await pull.send("1", "d", revision(1))
    assert (pull.sequences.reached, pull.puller.has_failed) == ("1", True)


async def test_an_older_revision_that_fails_late_leaves_the_failure_of_a_newer_one_open(
    pull, nursery
):
    await pull.offer(("1", "d", revision(1)))
    await fail(pull, "2", revision(2))
    await pull.withhold("1", "d", 503)
    nursery.start_soon(pull.puller.retry_failed)
    await wait_all_tasks_blocked()
    await pull.offer(("2", "d", revision(2)))
    await pull.withhold("2", "d", 503)
    await pull.offer()
    assert (pull.sequences.reached, pull.puller.has_failed) == (None, True)


async def test_what_the_feed_offers_of_a_fetched_document_is_open_however_sequences_look(
    pull, nursery
):
    await pull.offer(('"1:1"', "a", revision()))
    await pull.send('"1:1"', "a", revision())
    await fetch(pull, nursery, "d")
    await pull.offer(('"1:5"', "d", revision()), ('"1:6"', "x", revision()))
    await pull.send('"1:6"', "x", revision())
    assert pull.sequences.reached == '"1:1"'


async def test_a_failure_stays_open_if_the_one_after_it_could_not_be_taken_note_of(
    pull, monkeypatch
):
    monkeypatch.setattr(limits, "SEQUENCE_GAPS_MAX", 1)
    await fail(pull, "1", revision(1))
    await fail(pull, "2", revision(2))
    assert (pull.sequences.reached, pull.puller.has_failed) == (None, True)


async def test_what_failed_for_now_and_is_gone_from_the_peer_is_done(pull, nursery):
    await fail(pull, "1", revision())
    await pull.offer(("2", "x", revision()))
    await pull.send("2", "x", revision())
    nursery.start_soon(pull.puller.retry_failed)
    await wait_all_tasks_blocked()
    await pull.offer()
    assert (pull.sequences.reached, pull.puller.has_failed) == ("2", False)
    assert not pull.puller.busy


async def test_what_failed_and_is_on_its_way_again_when_it_is_fetched_is_not_taken_for_gone(
    pull, nursery
):
    """The feed has brought a newer revision meanwhile, which the fetch offers, too."""
    await fail(pull, "1", revision(1))
    await pull.offer(("2", "d", revision(2)))
    nursery.start_soon(pull.puller.retry_failed)
    await wait_all_tasks_blocked()
    assert await pull.offer(("2", "d", revision(2))) == [False]
    await pull.withhold("2", "d", 503)
    await pull.offer()
    assert (pull.sequences.reached, pull.puller.has_failed) == ("1", True)


async def test_what_was_never_promised_cannot_be_withheld(pull):
    await pull.withhold("1", "a", 404)
    assert not pull.failures


async def test_a_version_from_the_future_waits_and_that_is_told(pull):
    future = revision(500 * SECOND_NS)
    await pull.offer(("1", "a", future), ("2", "b", revision()))
    await pull.send("1", "a", future)
    await pull.send("2", "b", revision())
    assert isinstance(pull.failures["a"], ClockSkewError)
    assert pull.journal.clock_skew is pull.failures["a"]
    assert (pull.sequences.reached, pull.puller.has_failed) == (None, True)
    # Another revision of it, which we can take.
    await pull.offer(("3", "a", revision(7)))
    await pull.send("3", "a", revision(7))
    assert pull.journal.clock_skew is None
    assert pull.sequences.reached == "3"
