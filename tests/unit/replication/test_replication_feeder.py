"""Offering the changes of a collection to a peer that subscribed to them."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.replication.feeder import Feeder
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.link import Link, Pulse
from trio_p2p.replication.messages import RevisionOutcome, SubscribeChanges, Wanted
from trio_p2p.testing.databases import open_test_database

CAUGHT_UP = "caught up"
STORED = RevisionOutcome()


class Offer:
    """An offer, and the answers to it once there are any."""

    def __init__(self, changes):
        self.changes = changes
        self._answers = None
        self._answered = trio.Event()

    def answer(self, answers):
        self._answers = answers
        self._answered.set()

    async def wait(self):
        await self._answered.wait()
        return self._answers


class Subscriber:
    """Stands for the profile of a peer that subscribed: notes what it is told, in order."""

    def __init__(self):
        self.replacements_wanted = False
        self.deltas_wanted = False
        # What it answers to each change at once; None: a test answers later.
        self.wants = lambda change: None
        self.answers_at_once = True
        self.outcome = STORED
        self.told = []
        self.sent = []
        self.withheld = []
        self._unsettled = []

    @property
    def offers(self):
        return [told for told in self.told if told != CAUGHT_UP]

    @property
    def offered(self):
        """The documents of every offer."""
        return [[change.document_id for change in offer.changes] for offer in self.offers]

    def offer(self, collection, changes):
        offer = Offer(changes)
        self.told.append(offer)
        if self.answers_at_once:
            offer.answer([self.wants(change) for change in changes])
        return offer

    def tell_caught_up(self, collection):
        self.told.append(CAUGHT_UP)

    def send_revisions(self, collection, revisions, on_outcome):
        self.sent += revisions
        for sent in revisions:
            if self.outcome is None:
                self._unsettled.append((sent, on_outcome))
            else:
                on_outcome(sent, self.outcome)

    def settle(self, outcome):
        """Answer every revision that was sent and not answered yet."""
        for sent, on_outcome in self._unsettled:
            on_outcome(sent, outcome)
        self._unsettled = []

    def send_no_revision(self, message):
        self.withheld.append(message)


@pytest.fixture
async def notes(tmp_path):
    async with open_test_database(tmp_path / "db") as database:
        yield database.default_collection


@pytest.fixture
def subscriber():
    return Subscriber()


@pytest.fixture
def journal():
    return Journal()


@pytest.fixture
def feeder(notes, subscriber, journal):
    """Makes feeders of `notes`."""
    link = Link(notes, 0, subscriber, journal, Pulse())

    def make(since=None, continuous=False, batch=0, active_only=False, document_ids=None):
        request = SubscribeChanges(0, since, continuous, batch, active_only, document_ids)
        return Feeder(link, request)

    return make


async def put(notes, *names):
    for name in names:
        await notes.put(name, {"name": name})


def wants_all(change):
    return Wanted()


# --- What is offered ------------------------------------------------------------------------------


async def test_every_change_is_offered_then_the_subscriber_has_caught_up(notes, subscriber, feeder):
    await put(notes, "a", "b")
    await notes.delete("b")
    await put(notes, "c", "a")
    one_shot = feeder()
    await one_shot.run()
    assert subscriber.offered == [["b", "c", "a"]]
    assert subscriber.told[1:] == [CAUGHT_UP]
    b, c, a = subscriber.offers[0].changes
    assert (b.sequence, b.deleted, b.body_bytes) == ("3", True, 1)
    assert (c.sequence, c.deleted, c.body_bytes) == ("4", False, len(notes.get("c").revision.body))
    assert a.revision_id == notes.get("a").version
    assert one_shot.is_through
    assert one_shot.ended.is_set()


async def test_of_an_empty_collection_the_subscriber_has_caught_up_at_once(subscriber, feeder):
    await feeder().run()
    assert subscriber.told == [CAUGHT_UP]


@pytest.mark.behaviour("S3b")
@pytest.mark.parametrize(
    ("since", "offered"),
    [
        (None, [["a", "b", "c"]]),
        ("", [["a", "b", "c"]]),
        ("0", [["a", "b", "c"]]),
        ("2", [["c"]]),
        ("3", []),
        # Given before this database was rolled back.
        ("4", [["a", "b", "c"]]),
        ("9" * 19, [["a", "b", "c"]]),
        ("9" * 5_000, [["a", "b", "c"]]),
        ("-1", [["a", "b", "c"]]),
        ("\u0662", [["a", "b", "c"]]),
        ('"2"', [["a", "b", "c"]]),
        ("[2]", [["a", "b", "c"]]),
    ],
)
async def test_only_what_came_after_a_sequence_of_ours_is_offered(
    notes, subscriber, feeder, since, offered
):
    await put(notes, "a", "b", "c")
    await feeder(since).run()
    assert subscriber.offered == offered


@pytest.mark.parametrize(
    ("batch", "offered"),
    [
        (1, [["a"], ["b"], ["c"], ["d"], ["e"]]),
        (2, [["a", "b"], ["c", "d"], ["e"]]),
        (5, [["a", "b", "c", "d", "e"]]),
    ],
)
async def test_an_offer_holds_no_more_than_the_subscriber_asks_for(
    notes, subscriber, feeder, batch, offered
):
    await put(notes, *"abcde")
    await feeder(batch=batch).run()
    assert subscriber.offered == offered


@pytest.mark.parametrize("batch", [0, 10**6])
async def test_an_offer_holds_no_more_than_is_usual(notes, subscriber, feeder, batch):
    async with notes.batch() as edits:
        for n in range(limits.CHANGES_PER_MESSAGE_MAX + 1):
            edits.put(f"doc{n}", {})
    await feeder(batch=batch).run()
    assert list(map(len, subscriber.offered)) == [limits.CHANGES_PER_MESSAGE_MAX, 1]


async def test_others_have_their_turns_while_nothing_wanted_is_found(notes, subscriber, feeder):
    await put(notes, *"abcde")
    turns = 0
    async with trio.open_nursery() as nursery:

        async def count():
            nonlocal turns
            while subscriber.told != [CAUGHT_UP]:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(count)
        nursery.start_soon(feeder(document_ids=(), batch=1).run)
    assert turns >= 5


@pytest.mark.behaviour("U3b")
async def test_tombstones_can_be_left_out(notes, subscriber, feeder):
    await put(notes, "a", "b", "c")
    await notes.delete("b")
    await feeder(active_only=True).run()
    assert subscriber.offered == [["a", "c"]]


async def test_only_documents_asked_for_are_offered(notes, subscriber, feeder):
    await put(notes, *"abcde")
    await feeder(document_ids=("d", "b", "missing"), batch=1).run()
    assert subscriber.offered == [["b"], ["d"]]


async def test_no_documents_asked_for_means_none(notes, subscriber, feeder):
    await put(notes, "a")
    await feeder(document_ids=()).run()
    assert subscriber.told == [CAUGHT_UP]


async def test_a_continuous_subscription_follows_what_is_written(
    notes, subscriber, feeder, nursery
):
    await put(notes, "a")
    continuous = feeder(continuous=True)
    nursery.start_soon(continuous.run)
    await wait_all_tasks_blocked()
    assert subscriber.offered == [["a"]]
    await put(notes, "b")
    await wait_all_tasks_blocked()
    await put(notes, "a")
    await wait_all_tasks_blocked()
    assert subscriber.offered == [["a"], ["b"], ["a"]]
    assert subscriber.told.count(CAUGHT_UP) == 1
    assert (continuous.is_through, continuous.ended.is_set(), continuous.busy) == (False,) * 3
    nursery.cancel_scope.cancel()


async def test_some_offers_at_most_wait_for_their_answers(notes, subscriber, feeder, nursery):
    await put(notes, *"abcdefgh")
    subscriber.answers_at_once = False
    one_shot = feeder(batch=1)
    nursery.start_soon(one_shot.run)
    await wait_all_tasks_blocked()
    in_flight = limits.CHANGES_MESSAGES_IN_FLIGHT_MAX
    assert len(subscriber.told) == in_flight < 8
    assert one_shot.busy
    for number in range(8):
        subscriber.offers[number].answer([None])
        await wait_all_tasks_blocked()
    assert subscriber.offered == [[name] for name in "abcdefgh"]
    assert subscriber.told[-1] == CAUGHT_UP
    assert not one_shot.busy


# --- What is sent ---------------------------------------------------------------------------------


async def test_what_is_wanted_is_sent_as_it_was_offered(notes, subscriber, feeder, journal):
    await put(notes, "a", "b", "c")
    await notes.delete("c")
    subscriber.wants = lambda change: Wanted() if change.document_id != "b" else None
    await feeder().run()
    a, c = subscriber.sent
    assert (a.document_id, a.sequence, a.revision) == ("a", "1", notes.get("a").revision)
    assert (c.document_id, c.sequence, c.revision.deleted) == ("c", "4", True)
    statistics = journal.statistics()
    assert (statistics.documents_offered, statistics.documents_pushed) == (3, 2)
    assert journal.progress().completed == 3


async def answer_late(subscriber, notes, feeder, nursery, change):
    """Offer document `a`, change it, and only then let the subscriber want it."""
    await put(notes, "a")
    subscriber.answers_at_once = False
    nursery.start_soon(feeder.run)
    await wait_all_tasks_blocked()
    promised = notes.get("a").version
    await change
    subscriber.offers[0].answer([Wanted()])
    await wait_all_tasks_blocked()
    return promised


@pytest.mark.behaviour("P17b")
async def test_a_revision_that_is_no_longer_current_is_withheld(
    notes, subscriber, feeder, nursery, journal
):
    promised = await answer_late(subscriber, notes, feeder(), nursery, notes.put("a", {"n": 2}))
    assert subscriber.sent == []
    [told] = subscriber.withheld
    assert (told.document_id, told.revision_id, told.sequence) == ("a", promised, "1")
    assert told.status == 404
    assert journal.statistics().documents_failed == 0


@pytest.mark.behaviour("P17a")
async def test_what_took_its_place_is_sent_to_those_who_take_that(
    notes, subscriber, feeder, nursery
):
    subscriber.replacements_wanted = True
    promised = await answer_late(subscriber, notes, feeder(), nursery, notes.put("a", {"n": 2}))
    [sent] = subscriber.sent
    assert (sent.revision, sent.sequence) == (notes.get("a").revision, "1")
    assert sent.replaced == promised
    assert subscriber.withheld == []


@pytest.mark.parametrize(
    ("outcome", "pushed", "failed"),
    [
        (STORED, 1, 0),
        (RevisionOutcome(304), 0, 0),
        (RevisionOutcome(409, "no"), 0, 1),
        (RevisionOutcome(503, "later", True), 0, 1),
    ],
)
async def test_the_fate_of_a_revision_is_told_to_the_journal(
    notes, subscriber, feeder, journal, outcome, pushed, failed
):
    await put(notes, "a")
    subscriber.wants, subscriber.outcome = wants_all, outcome
    await feeder().run()
    statistics = journal.statistics()
    assert (statistics.documents_pushed, statistics.documents_failed) == (pushed, failed)
    assert journal.progress().completed == 1


async def test_a_feeder_is_busy_until_every_revision_is_answered(notes, subscriber, feeder):
    await put(notes, "a", "b")
    subscriber.wants, subscriber.outcome = wants_all, None
    one_shot = feeder()
    await one_shot.run()
    assert (one_shot.ended.is_set(), one_shot.busy) == (True, True)
    subscriber.settle(STORED)
    assert not one_shot.busy


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        # Many small ones may go beyond it by a slice; large ones by one.
        ("REVISIONS_UNANSWERED_MAX", [50, 100, 120]),
        ("REVISION_BYTES_UNANSWERED_MAX", list(range(1, 121))),
    ],
)
async def test_a_window_of_unanswered_revisions_is_not_exceeded(
    notes, subscriber, feeder, nursery, monkeypatch, limit, expected
):
    monkeypatch.setattr(limits, limit, 1)
    await put(notes, *(f"doc{n:03}" for n in range(120)))
    subscriber.wants, subscriber.outcome = wants_all, None
    one_shot = feeder()
    nursery.start_soon(one_shot.run)
    await wait_all_tasks_blocked()
    counts = [len(subscriber.sent)]
    while len(subscriber.sent) < 120:
        subscriber.settle(STORED)
        await wait_all_tasks_blocked()
        counts.append(len(subscriber.sent))
    assert counts == expected
