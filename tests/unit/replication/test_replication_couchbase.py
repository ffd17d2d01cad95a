"""The Couchbase profile: typed messages over a pair of peers, and what is read and refused."""

import math
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import PeerError, RemoteProtocolError
from trio_p2p.ids import DocumentID, SourceID
from trio_p2p.model.blob import format_digest
from trio_p2p.model.codec import decode_body, encode_body
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.version import TreeRevisionID, Version, VersionVector
from trio_p2p.peer import Peer
from trio_p2p.replication.messages import (
    Accepted,
    CheckpointSaved,
    CollectionsReply,
    Delta,
    GetCheckpoint,
    GetCollections,
    HeldCheckpoint,
    NoRevision,
    OfferChanges,
    OfferedChange,
    OffersReply,
    Proposal,
    ProposalAnswer,
    ProposalsReply,
    ProposeChanges,
    Refusal,
    RevisionOutcome,
    RevisionsReply,
    SendRevisions,
    SentRevision,
    SetCheckpoint,
    SubscribeChanges,
    Wanted,
)
from trio_p2p.replication.profiles.couchbase import CouchbaseProfile
from trio_p2p.replication.profiles.replies import outcome_of
from trio_p2p.testing.transcripts import read_transcript
from trio_p2p.transport.memory import memory_transport_pair

TRANSCRIPTS = sorted((Path(__file__).parents[2] / "vectors" / "transcripts").glob("*.jsonl"))
PROFILES = [
    "getCollections",
    "getCheckpoint",
    "setCheckpoint",
    "subChanges",
    "changes",
    "proposeChanges",
    "rev",
    "norev",
]
DOC, OTHER = DocumentID("doc"), DocumentID("müsli 7")
ANN, BOB = SourceID(b"a" * 16), SourceID(b"b" * 16)
V1, V2 = Version(2**50, ANN), Version(2**50 + 1, BOB)
TREE = TreeRevisionID.parse("2-abcd")
EDIT = Revision(VersionVector(V2, (), (V1,)), encode_body({"n": 1}), trees=(TREE,))
UUID_1 = UUID(int=1)
DEEP = b"[" * 300 + b"]" * 300


class Side:
    """A peer with its profile, which notes what it is asked and answers from a list."""

    def __init__(self, transport, *, active, deltas):
        self.transport = transport
        self.peer = Peer(transport)
        self.aside = []
        self.profile = CouchbaseProfile(
            self.peer, self._handle, active=active, deltas=deltas, run_aside=self._run_aside
        )
        self.asked = []
        self.responses = []
        self.answers = []
        self.raw_answer = None
        self.heard = []

    async def _run_aside(self, function, *args):
        self.aside.append(function)
        await trio.lowlevel.checkpoint()
        return function(*args)

    def on_request(self, number, message):
        self.heard.append(message)
        if self.raw_answer is not None:
            self.peer.reply(number, self.raw_answer)
        else:
            self.profile.on_request(number, message)

    def _handle(self, request, respond):
        self.asked.append(request)
        self.responses.append(respond)
        if self.answers:
            respond(self.answers.pop(0))


@asynccontextmanager
async def open_sides(*, deltas_here=False, deltas_there=False):
    ours, theirs = memory_transport_pair()
    active = Side(ours, active=True, deltas=deltas_here)
    passive = Side(theirs, active=False, deltas=deltas_there)
    async with trio.open_nursery() as nursery:
        for side in (active, passive):
            nursery.start_soon(side.peer.run, side.on_request)
            nursery.start_soon(side.profile.run)
        yield active, passive
        nursery.cancel_scope.cancel()


@pytest.fixture
async def sides():
    async with open_sides() as sides:
        yield sides


@pytest.fixture
def active(sides):
    return sides[0]


@pytest.fixture
def passive(sides):
    return sides[1]


class DeadEnd:
    """Stands for a peer where only what is answered matters."""

    def __init__(self):
        self.refusals = []
        self.replies = []
        self.held = {}

    def unfinished_requests(self):
        return iter(())

    def hold(self, number, size):
        self.held[number] = self.held.get(number, 0) + size

    def release(self, number):
        self.held.pop(number, None)

    def refuse(self, number, domain, code, text=""):
        self.refusals.append((domain, code, text))

    def reply(self, number, message):
        self.replies.append(message)


class Reading:
    """What a profile makes of single messages."""

    def __init__(self):
        self.peer = DeadEnd()
        self.requests = []
        self.profile = CouchbaseProfile(
            self.peer, lambda request, respond: self.requests.append(request), active=False
        )

    def read(self, message):
        """The request that the message is read as, the only one."""
        self.profile.on_request(1, message)
        assert not self.peer.refusals
        [request] = self.requests
        return request

    def refusal(self, message):
        """The domain and code it is refused with."""
        self.profile.on_request(1, message)
        [(domain, code, _)] = self.peer.refusals
        return domain, code


def read(message):
    return Reading().read(message)


def refusal(message):
    return Reading().refusal(message)


def rev(body=b"{}", **properties):
    """A `rev` message of which everything else is in order."""
    return Message({"Profile": "rev", "id": "doc", "rev": str(V1), **properties}, body)


def message(profile, body=b"", **properties):
    return Message({"Profile": profile, **properties}, body)


# --- Requests and replies, as typed messages ------------------------------------------------------


async def test_get_collections_goes_over_with_its_reply(active, passive):
    reply = CollectionsReply(
        (HeldCheckpoint("3-cc", b'{"local":7}'), HeldCheckpoint("", b"{}"), None), UUID(int=2)
    )
    passive.answers = [reply]
    request = GetCollections(("_default", "shop.a", "b"), ("cp-1", "cp-2", "cp-3"), UUID_1)
    assert await active.profile.get_collections(request) == reply
    assert passive.asked == [request]


async def test_peers_may_keep_their_identity_to_themselves(active, passive):
    passive.answers = [CollectionsReply((None,), None)]
    request = GetCollections(("_default",), ("cp-1",), None)
    assert await active.profile.get_collections(request) == CollectionsReply((None,), None)
    assert passive.asked == [request]


async def test_a_checkpoint_is_got(active, passive):
    held = HeldCheckpoint("3-cc", b'{"local":7}')
    passive.answers = [held]
    assert await active.profile.get_checkpoint(1, "cp-1") == held
    assert passive.asked == [GetCheckpoint(1, "cp-1")]


async def test_a_checkpoint_that_is_not_there_is_none(active, passive):
    passive.answers = [Refusal(404, "no such checkpoint")]
    assert await active.profile.get_checkpoint(0, "cp-1") is None


@pytest.mark.parametrize("refused", [Refusal(500, "no"), Refusal(404, "no", "BLIP")])
async def test_a_checkpoint_that_cannot_be_got_is_an_error(active, passive, refused):
    passive.answers = [refused]
    with pytest.raises(PeerError) as caught:
        await active.profile.get_checkpoint(0, "cp-1")
    error = caught.value
    assert (error.domain, error.code, error.text) == (refused.domain, refused.status, "no")


async def test_a_checkpoint_is_set(active, passive):
    passive.answers = [CheckpointSaved("4-cc")]
    assert await active.profile.set_checkpoint(2, "cp-1", "3-cc", b'{"local":7}') == "4-cc"
    assert passive.asked == [SetCheckpoint(2, "cp-1", "3-cc", b'{"local":7}')]


@pytest.mark.parametrize(
    "request_",
    [
        SubscribeChanges(0, None, False, 200, False, None),
        SubscribeChanges(1, "7", True, 1, True, ("doc", "müsli")),
        SubscribeChanges(0, '"9:7"', False, 200, False, ()),
    ],
)
async def test_a_subscription_goes_over(active, passive, request_):
    passive.answers = [Accepted()]
    await active.profile.subscribe(request_)
    assert passive.asked == [request_]
    assert passive.profile.replacements_wanted


async def test_channels_go_over_as_the_filter_that_sync_gateway_knows(active, passive):
    passive.answers = [Accepted()]
    request = SubscribeChanges(0, None, False, 200, False, ("doc",), ("shop", "all"))
    await active.profile.subscribe(request)
    [asked] = passive.asked
    assert asked.filter == "sync_gateway/bychannel"


OFFERS = (
    OfferedChange("7", DOC, V2, False, 99),
    OfferedChange("8", OTHER, TREE, True),
    OfferedChange('"9:7"', DOC, V1),
)


async def test_offered_changes_go_over_with_the_answers(active, passive):
    active.answers = [OffersReply((None, Wanted((V1, TREE)), None))]
    answers = await passive.profile.offer(1, OFFERS).wait()
    assert active.asked == [OfferChanges(1, OFFERS)]
    assert answers == [None, Wanted((V1, TREE)), None]
    assert passive.profile.replacements_wanted


PROPOSALS = (
    Proposal(DOC, V2, V1, 99),
    Proposal(OTHER, V1, None, 0),
    Proposal(DOC, V2, TREE),
    Proposal(OTHER, TREE, None),
)


@pytest.fixture
def long_lists():
    """Of one to four frames, if each were of one message."""
    name = DocumentID("x" * 200)
    return [
        tuple(OfferedChange(str(n), name, V1) for n in range(first, first + length))
        for first, length in ((1, 200), (201, 150), (351, 1), (352, 100))
    ]


async def test_lists_of_changes_are_handed_on_in_the_order_in_which_they_began(
    active, passive, long_lists, monkeypatch
):
    """Though a short one comes to its end before a long one that takes turns with it."""
    monkeypatch.setattr(limits, "OFFERS_BYTES_MAX", 10**6)
    for offered in long_lists:
        passive.profile.offer(0, offered)
    passive.profile.tell_caught_up(0)
    await wait_all_tasks_blocked()
    assert [request.changes for request in active.asked] == [*long_lists, ()]


async def test_offers_come_in_their_order_to_a_peer_that_takes_them_as_they_end(
    active, passive, long_lists, monkeypatch
):
    """As others do: so no list may be overtaken on its way."""
    monkeypatch.setattr(active.profile, "on_request", lambda *_: None)
    for offered in long_lists:
        passive.profile.offer(0, offered)
    passive.profile.tell_caught_up(0)
    await wait_all_tasks_blocked()
    lists = [orjson.loads(message.body) for message in active.heard]
    assert [row[0] for rows in lists for row in rows] == list(range(1, 452))
    assert lists[-1] == []


async def test_the_answers_to_offers_of_several_lists_are_those_to_their_changes(
    active, passive, long_lists
):
    offered, *_ = long_lists
    pending = passive.profile.offer(0, offered)
    await wait_all_tasks_blocked()
    told, requested = 0, []
    for number, request in enumerate(active.asked):
        requested.append(told + number)
        answers = [None] * len(request.changes)
        answers[number] = Wanted()
        active.responses[number](OffersReply(tuple(answers)))
        told += len(request.changes)
    answers = await pending.wait()
    assert len(requested) > 2
    assert [index for index, answer in enumerate(answers) if answer is not None] == requested
    assert len(answers) == len(offered)


async def test_a_list_of_changes_waits_for_no_other_request(active, passive, monkeypatch):
    """Nothing of a large revision is needed to understand it, and it may take minutes to come."""
    monkeypatch.setattr(limits, "UNACKNOWLEDGED_BYTES_MAX", 0)
    large = replace(EDIT, body=encode_body({"text": "x" * 60_000}))
    passive.profile.send_revisions(0, [SentRevision(DOC, "1", large)], lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(active.peer._blip, "_acknowledge", lambda *_: None)
        await wait_all_tasks_blocked()
        passive.profile.offer(0, OFFERS)
        await wait_all_tasks_blocked()
        assert [type(request) for request in active.asked] == [OfferChanges]


async def test_proposals_go_over_with_the_answers(active, passive):
    answers = [
        ProposalAnswer(304),
        ProposalAnswer(409, VersionVector(V2, (), (V1,))),
        ProposalAnswer(409, TREE),
        ProposalAnswer(409),
    ]
    passive.answers = [ProposalsReply(tuple(answers))]
    told = await active.profile.propose(1, PROPOSALS)
    assert told == [answers[0], ProposalAnswer(409, V2), *answers[2:]]
    asked = tuple(replace(proposal, body_bytes=None) for proposal in PROPOSALS)
    assert passive.asked == [ProposeChanges(1, asked)]
    assert active.profile.replacements_wanted


REVISIONS = [
    EDIT,
    Revision(VersionVector(V2, (V1, Version(3, SourceID(b"c" * 16)))), encode_body({})),
    Revision(VersionVector(V2, (), (V1,)), EMPTY_BODY, deleted=True),
    Revision(VersionVector(V2), encode_body({"why": "it left"}), deleted=True),
    Revision.from_tree((TREE, TreeRevisionID.parse("1-aa")), encode_body({"n": 1}), deleted=False),
]


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("replaced", [None, V1])
async def test_a_revision_goes_over(active, passive, revision, replaced):
    sent = SentRevision(OTHER, "7", revision, replaced)
    active.profile.send_revisions(1, [sent], lambda sent, outcome: None)
    await wait_all_tasks_blocked()
    assert passive.asked == [SendRevisions(1, (sent,))]


async def test_a_delta_goes_over_in_place_of_the_body(active, passive):
    sent = SentRevision(OTHER, "7", EDIT, V1, Delta(V1, b'{"n":1}', 99))
    active.profile.send_revisions(1, [sent], lambda sent, outcome: None)
    await wait_all_tasks_blocked()
    arrived = replace(sent, revision=replace(EDIT, body=EMPTY_BODY))
    assert passive.asked == [SendRevisions(1, (arrived,))]
    [heard] = passive.heard
    assert (heard.properties["deltaSrc"], heard.body) == (str(V1), b'{"n":1}')


async def test_large_bodies_are_written_aside_and_go_out_in_order(active, passive, monkeypatch):
    monkeypatch.setattr(limits, "READ_ASIDE_BYTES", 100)
    sent = [
        SentRevision(OTHER, str(number), replace(EDIT, body=encode_body({"x": "y" * length})))
        for number, length in enumerate([1, 200, 2, 300, 3])
    ]
    active.profile.send_revisions(1, sent[:2], lambda sent, outcome: None)
    # Before the large one is written, and behind it.
    active.profile.send_revisions(1, sent[2:], lambda sent, outcome: None)
    assert active.aside == []
    await wait_all_tasks_blocked()
    assert passive.asked == [SendRevisions(1, (one,)) for one in sent]
    assert len(active.aside) == 2


async def test_the_delta_of_a_large_body_is_written_already(active, passive, monkeypatch):
    monkeypatch.setattr(limits, "READ_ASIDE_BYTES", 0)
    sent = SentRevision(OTHER, "7", EDIT, V1, Delta(V1, b'{"n":1}', 99))
    active.profile.send_revisions(1, [sent], lambda sent, outcome: None)
    await wait_all_tasks_blocked()
    assert [len(asked.revisions) for asked in passive.asked] == [1]
    assert active.aside == []


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("there", [True, False])
async def test_deltas_are_wanted_where_both_sides_enable_them(here, there):
    async with open_sides(deltas_here=here, deltas_there=there) as (active, passive):
        active.answers = [OffersReply((None,))]
        await passive.profile.offer(0, OFFERS[:1]).wait()
        passive.answers = [ProposalsReply((ProposalAnswer(0),))]
        await active.profile.propose(0, PROPOSALS[:1])
        wanted = (active.profile.deltas_wanted, passive.profile.deltas_wanted)
        assert wanted == (here and there, here and there)


async def test_that_deltas_are_taken_is_told_once_for_each_collection():
    async with open_sides(deltas_here=True) as (active, passive):
        told = []
        for collection in (0, 1, 0, 1):
            active.answers = [OffersReply((None,))]
            pending = passive.profile.offer(collection, OFFERS[:1])
            told.append("deltas" in (await pending.lists[0][0].wait()).properties)
        assert told == [True, True, False, False]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (RevisionsReply((RevisionOutcome(),)), RevisionOutcome()),
        (RevisionsReply((RevisionOutcome(304),)), RevisionOutcome(304)),
        (RevisionsReply((RevisionOutcome(409, "no"),)), RevisionOutcome(409, "no")),
        (RevisionsReply((RevisionOutcome(429, "later"),)), RevisionOutcome(429, "later", True)),
        (Refusal(403, "no"), RevisionOutcome(403, "no")),
        (Refusal(503, "later"), RevisionOutcome(503, "later", True)),
    ],
)
async def test_the_fate_of_a_revision_comes_back(active, passive, reply, outcome):
    passive.answers = [reply]
    sent, outcomes = SentRevision(DOC, "7", EDIT), []
    active.profile.send_revisions(0, [sent], lambda *told: outcomes.append(told))
    await wait_all_tasks_blocked()
    assert outcomes == [(sent, outcome)]


@pytest.mark.parametrize("text", ["", "nonsense", "1@", "0-00"])
async def test_what_a_peer_says_to_have_made_of_a_revision_may_be_nonsense(text):
    """Couchbase Lite says nothing there; whoever says something else has taken the revision."""
    assert outcome_of(Message({"rev": text})) == RevisionOutcome()


async def test_an_error_of_another_domain_is_no_http_status(active, passive):
    passive.answers = [Refusal(9, "no", "LiteCore")]
    outcomes = []
    active.profile.send_revisions(
        0, [SentRevision(DOC, "7", EDIT)], lambda _, outcome: outcomes.append(outcome)
    )
    await wait_all_tasks_blocked()
    [outcome] = outcomes
    assert (outcome.status, outcome.retryable) == (502, False)
    assert "LiteCore/9: no" in outcome.text


async def test_a_revision_that_is_unanswered_when_the_connection_ends_has_no_outcome():
    outcomes = []
    with pytest.RaisesGroup(pytest.RaisesExc(Exception), pytest.RaisesExc(Exception)):
        async with open_sides() as (active, _):
            active.profile.send_revisions(
                0, [SentRevision(DOC, "7", EDIT)], lambda _, outcome: outcomes.append(outcome)
            )
            active.transport.cut()
            await trio.sleep_forever()
    assert outcomes == []


@pytest.mark.parametrize("reason", ["", "it is gone"])
async def test_a_revision_that_will_not_come_is_told_without_an_answer(active, passive, reason):
    told = NoRevision(1, OTHER, V1, "7", 404, reason)
    passive.profile.send_no_revision(told)
    await wait_all_tasks_blocked()
    assert active.asked == [told]


async def test_having_caught_up_is_told_without_an_answer(active, passive):
    active.profile.tell_caught_up(1)
    passive.profile.tell_caught_up(2)
    await wait_all_tasks_blocked()
    assert passive.asked == [ProposeChanges(1, ())]
    assert active.asked == [OfferChanges(2, ())]


# --- How it stands on the wire --------------------------------------------------------------------


@pytest.mark.behaviour("S2")
@pytest.mark.parametrize(
    ("answers", "body"),
    [
        ((0, 0, 0), []),
        ((0, 304, 0), [0, 304]),
        ((304, 0, 409), [304, 0, 409]),
        ((), []),
    ],
)
async def test_zeros_at_the_end_are_left_out(active, passive, answers, body):
    passive.answers = [ProposalsReply(tuple(map(ProposalAnswer, answers)))]
    reply = await active.peer.request(message("proposeChanges", b"[]"))
    assert orjson.loads(reply.body) == body


@pytest.mark.behaviour("S2")
async def test_answers_left_out_at_the_end_mean_send_it_or_not_wanted(active, passive):
    passive.raw_answer = Message({}, b"[304]")
    answers = await active.profile.propose(0, PROPOSALS)
    assert [answer.status for answer in answers] == [304, 0, 0, 0]
    active.raw_answer = Message({}, b"[[]]")
    assert await passive.profile.offer(0, OFFERS).wait() == [Wanted(), None, None]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        (409, ProposalAnswer(409)),
        ({"status": 409}, ProposalAnswer(409)),
        ({"status": 409, "rev": ""}, ProposalAnswer(409)),
        ({"status": 409, "rev": str(V1)}, ProposalAnswer(409, V1)),
        ({"status": 409, "rev": f"{V2}; {V1}"}, ProposalAnswer(409, V2)),
        ({"status": 409, "rev": "2-abcd"}, ProposalAnswer(409, TREE)),
        ({"status": 403}, ProposalAnswer(403)),
    ],
)
async def test_a_conflict_is_told_in_several_forms(active, passive, row, answer):
    passive.raw_answer = Message({}, orjson.dumps([row]))
    assert await active.profile.propose(0, PROPOSALS[:1]) == [answer]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ([], Wanted()),
        (["1-aa", str(V1)], Wanted((TreeRevisionID.parse("1-aa"), V1))),
        ([str(VersionVector(V1, (), (V2,))), "nonsense", 7], Wanted((V1,))),
        ([str(V1)] * (limits.ANCESTORS_MAX + 1), Wanted((V1,) * limits.ANCESTORS_MAX)),
        (0, None),
        (None, None),
        (409, None),
        ({"status": 409, "rev": "1-aa"}, None),
    ],
)
async def test_a_list_means_that_an_offered_revision_is_wanted(active, passive, row, answer):
    active.raw_answer = Message({}, orjson.dumps([row]))
    assert await passive.profile.offer(0, OFFERS[:1]).wait() == [answer]


async def test_rows_end_with_the_size_of_the_body_unless_there_is_none(active, passive):
    passive.profile.offer(0, OFFERS)
    active.profile.tell_caught_up(0)
    await wait_all_tasks_blocked()
    [offered] = active.heard
    assert orjson.loads(offered.body) == [
        [7, "doc", str(V2), 0, 99],
        [8, "müsli 7", "2-abcd", 1],
        ["9:7", "doc", str(V1), 0, 0],
    ]
    assert offered.urgent
    assert offered.compressed


async def test_a_revision_names_its_history_and_what_is_special_about_it(active, passive):
    active.profile.send_revisions(
        2, [SentRevision(DOC, "7", EDIT), SentRevision(DOC, "8", REVISIONS[2], V1)], lambda *_: None
    )
    await wait_all_tasks_blocked()
    edited, deleted = passive.heard
    common = {"Profile": "rev", "collection": "2", "id": "doc", "noconflicts": "1"}
    assert edited.properties == {
        **common,
        "rev": str(V2),
        "sequence": "7",
        "history": f"{V1}, 2-abcd",
    }
    assert edited.body == b'{"n":1}'
    assert deleted.properties == {
        **common,
        "rev": str(V2),
        "sequence": "8",
        "history": str(V1),
        "deleted": "1",
        "replacedRev": str(V1),
    }
    assert deleted.body == b"{}"


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("true", True),
        ("TRUE", True),
        ("yes", True),
        ("Yes", True),
        ("1", True),
        ("2", True),
        ("false", False),
        ("0", False),
        ("no", False),
        ("", False),
        ("9" * 5_000, False),
    ],
)
def test_booleans_come_in_several_spellings(spelling, expected):
    assert read(rev(deleted=spelling)).revisions[0].revision.deleted == expected
    subscription = read(message("subChanges", continuous=spelling, activeOnly=spelling))
    assert (subscription.continuous, subscription.active_only) == (expected, expected)


@pytest.mark.parametrize(
    ("text", "batch"), [("", 0), ("200", 200), ("0", 0), ("-1", 0), ("x", 0), ("9" * 5_000, 0)]
)
def test_a_batch_size_that_is_no_number_counts_as_none(text, batch):
    assert read(message("subChanges", batch=text)).batch == batch


@pytest.mark.parametrize(
    ("text", "status"), [("410", 410), ("", 404), ("gone", 404), ("9" * 5_000, 404)]
)
def test_a_revision_that_will_not_come_is_gone_unless_told_otherwise(text, status):
    told = read(message("norev", id="doc", rev=str(V1), sequence="7", error=text))
    assert told == NoRevision(0, DOC, V1, "7", status)


@pytest.mark.behaviour("U13")
@pytest.mark.parametrize(
    ("offered", "sent"),
    [
        (b"7", "7"),
        (b'"3:7"', '"3:7"'),
        (b'"\xc3\xa9"', r'"\u00e9"'),
        (b'{"a":[1]}', '{ "a": [1] }'),
    ],
)
def test_a_sequence_is_the_same_however_it_is_written(offered, sent):
    """With the offer as JSON, with the revision as a property that holds JSON."""
    body = b'[[%s,"doc","%s"]]' % (offered, str(V1).encode())
    [change] = read(message("changes", body)).changes
    [revision] = read(rev(sequence=sent)).revisions
    assert revision.sequence == change.sequence
    told = read(message("norev", id="doc", rev=str(V1), sequence=sent))
    assert told.sequence == change.sequence


@pytest.mark.parametrize("name", ["_doc", "", "x" * 241, "a\nb"])
def test_of_a_document_that_cannot_be_stored_the_change_is_left_out(name):
    """Other databases permit other IDs. Those in the same list are none the worse for it."""
    body = orjson.dumps([[7, name, str(V1)], [8, "doc", str(V1)]])
    assert read(message("changes", body)).changes == (None, OfferedChange("8", DOC, V1))


@pytest.mark.parametrize("flag", [1, True, 3])
def test_deletion_in_a_change_is_a_boolean_or_flags(flag):
    [change] = read(message("changes", orjson.dumps([[7, "doc", str(V1), flag]]))).changes
    assert change == OfferedChange("7", DOC, V1, True)


@pytest.mark.parametrize("text", [f"{V2}; {V1}", f"{V2}, {V1};", str(V2)])
def test_of_a_whole_vector_in_a_listing_the_current_version_counts(text):
    [change] = read(message("changes", orjson.dumps([[7, "doc", text]]))).changes
    assert change.revision_id == V2
    [proposal] = read(message("proposeChanges", orjson.dumps([["doc", text, text]]))).proposals
    assert proposal == Proposal(DOC, V2, V2)


@pytest.mark.parametrize("parent", [[], [""], [None]])
def test_a_proposal_may_name_no_parent(parent):
    body = orjson.dumps([["doc", str(V1), *parent]])
    assert read(message("proposeChanges", body)).proposals == (Proposal(DOC, V1, None),)


# --- Bodies ---------------------------------------------------------------------------------------

numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text()
bodies = st.dictionaries(
    texts.filter(lambda key: not key.startswith(("_", "@"))),
    st.recursive(st.none() | st.booleans() | numbers | texts, st.lists, max_leaves=8),
    max_size=5,
)


@given(st.lists(bodies, max_size=3))
def test_bodies_go_over_unchanged(bodies):
    async def main():
        async with open_sides() as (active, passive):
            vector = VersionVector(V2)
            sent = [
                SentRevision(DOC, str(number), Revision(vector, encode_body(body)))
                for number, body in enumerate(bodies)
            ]
            active.profile.send_revisions(0, sent, lambda *_: None)
            await wait_all_tasks_blocked()
            assert passive.asked == [SendRevisions(0, (one,)) for one in sent]

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.behaviour("S6d")
@pytest.mark.parametrize(
    "number", [2**63 - 1, -(2**63), 2**53 + 1, 0.1, 1e300, 5e-324, 123456789.123456789]
)
def test_large_numbers_keep_their_precision(number):
    [sent] = read(rev(orjson.dumps({"n": number}))).revisions
    assert decode_body(sent.revision.body) == {"n": number}
    assert math.copysign(1, decode_body(sent.revision.body)["n"]) == math.copysign(1, number)


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_the_body_of_a_tombstone_may_be_left_out(body):
    [sent] = read(rev(body, deleted="1")).revisions
    assert (sent.revision.body, sent.revision.deleted) == (EMPTY_BODY, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff",
        b'{"n":NaN}',
        b'{"n":9223372036854775808}',
        b'{"a":' + DEEP + b"}",
        b'{"_id":"doc"}',
        b'{"_rev":"1-aa"}',
        b'{"_deleted":true}',
        b'{"_revisions":{}}',
        b'{"_removed":true}',
    ],
)
def test_a_body_that_cannot_be_stored_is_refused(body):
    assert refusal(rev(body)) == ("HTTP", 400)


def test_a_body_that_names_a_blob_is_refused_as_not_found():
    body = orjson.dumps({"photo": {"@type": "blob", "digest": "sha1-AAAA", "length": 3}})
    assert refusal(rev(body)) == ("HTTP", 404)


# --- What cannot be read --------------------------------------------------------------------------


def collections(names, ids):
    body = orjson.dumps({"collections": names, "checkpoint_ids": ids})
    return message("getCollections", body)


def offer(*row):
    return message("changes", orjson.dumps([row]))


def proposal(*row):
    return message("proposeChanges", orjson.dumps([row]))


MALFORMED = {
    "collections, no body": message("getCollections"),
    "collections, a list": message("getCollections", b"[]"),
    "collections, without IDs": message("getCollections", b'{"collections":["a"]}'),
    "collections, other lengths": collections(["a", "b"], ["cp-1"]),
    "collections, none": collections([], []),
    "collections, an empty name": collections([""], ["cp-1"]),
    "collections, an empty ID": collections(["a"], [""]),
    "collections, a number": collections([7], ["cp-1"]),
    "collections, one twice": collections(["a", "a"], ["cp-1", "cp-2"]),
    "collections, too many": collections([f"c{n}" for n in range(1001)], ["cp"] * 1001),
    "get checkpoint, of nobody": message("getCheckpoint"),
    "get checkpoint, of the empty text": message("getCheckpoint", client=""),
    "set checkpoint, of nobody": message("setCheckpoint", b"{}"),
    "set checkpoint, no body": message("setCheckpoint", client="cp-1"),
    "set checkpoint, a list": message("setCheckpoint", b"[]", client="cp-1"),
    "set checkpoint, too large": message(
        "setCheckpoint", b'{"a":"' + bytes(2**20).hex().encode() + b'"}', client="cp-1"
    ),
    "set checkpoint, too deep": message("setCheckpoint", b'{"a":' + DEEP + b"}", client="cp-1"),
    "subscribe, a list": message("subChanges", b"[]"),
    "subscribe, IDs in a text": message("subChanges", b'{"docIDs":"doc"}'),
    "subscribe, a number as ID": message("subChanges", b'{"docIDs":[7]}'),
    "changes, no body": message("changes"),
    "changes, an object": message("changes", b"{}"),
    "changes, no list inside": message("changes", b"[7]"),
    "changes, too short": offer(7, "doc"),
    "changes, not a text as ID": offer(7, None, str(V1)),
    "changes, not a revision": offer(7, "doc", "nonsense"),
    "changes, a number as revision": offer(7, "doc", 7),
    "changes, a sequence too deep": message("changes", b"[[" + DEEP + b',"doc","1-aa"]]'),
    "proposals, no body": message("proposeChanges"),
    "proposals, an object": message("proposeChanges", b"{}"),
    "proposals, too short": proposal("doc"),
    "proposals, not a document ID": proposal("", str(V1)),
    "proposals, not a revision": proposal("doc", "nonsense"),
    "proposals, not a parent": proposal("doc", str(V1), "nonsense"),
    "rev, of no document": message("rev", b"{}", rev=str(V1)),
    "rev, of an empty ID": rev(id=""),
    "rev, an ID too long": rev(id="x" * 241),
    "rev, without its version": message("rev", b"{}", id="doc"),
    "rev, not a version": rev(rev="nonsense"),
    "rev, not a history": rev(history="nonsense"),
    "rev, replacing nonsense": rev(replacedRev="nonsense"),
    "rev, a delta from nonsense": rev(deltaSrc="nonsense"),
    "norev, of no document": message("norev", rev=str(V1)),
    "norev, of no revision": message("norev", id="doc"),
}
MALFORMED |= {
    f"collection index {text[:9]!r}": rev(collection=text, sequence="7")
    for text in ("", "-1", "x", "1.0", "\u0661", "9" * 5_000)
}


@pytest.mark.behaviour("K7b", "S6b")
@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_is_refused(malformed):
    assert refusal(malformed) == ("HTTP", 400)


@pytest.mark.behaviour("B13i")
@pytest.mark.parametrize("properties", [{}, {"Profile": ""}, {"Profile": "getRev"}])
async def test_an_unknown_message_is_refused_in_the_words_couchbase_lite_knows(active, properties):
    with pytest.raises(PeerError) as caught:
        await active.peer.request(Message(properties))
    error = caught.value
    assert (error.domain, error.code, error.text) == ("BLIP", 404, "no handler for message")


def test_a_list_is_as_long_as_a_peer_may_make_it():
    row = ["doc", "1@AliceAliceAliceAliceAA"]
    for profile, rows in (("proposeChanges", row), ("changes", [1, *row])):
        most = orjson.dumps([rows] * limits.LISTED_ROWS_MAX)
        assert read(message(profile, most))
        more = orjson.dumps([rows] * (limits.LISTED_ROWS_MAX + 1))
        assert refusal(message(profile, more)) == ("HTTP", 400)
        wide = orjson.dumps([[*rows, *[0] * limits.LISTED_VALUES_MAX]])
        assert refusal(message(profile, wide)) == ("HTTP", 400)


def test_a_subscription_to_too_many_documents_is_refused():
    ids = [str(number) for number in range(limits.SUBSCRIBED_DOCUMENTS_MAX + 1)]
    body = orjson.dumps({"docIDs": ids[:-1]})
    assert read(message("subChanges", body)).document_ids == tuple(ids[:-1])
    assert refusal(message("subChanges", orjson.dumps({"docIDs": ids}))) == ("HTTP", 400)


@pytest.mark.parametrize("sequence", ['"' + "x" * 1_100 + '"', "9" * 1_100, "[" * 600 + "]" * 600])
def test_a_sequence_is_short(sequence):
    row = f'[{sequence}, "doc", "1@AliceAliceAliceAliceAA"]'
    assert refusal(message("changes", f"[{row}]".encode())) == ("HTTP", 400)
    assert refusal(rev(sequence=sequence)) == ("HTTP", 400)


def test_what_a_request_holds_until_it_is_answered_is_counted_for_its_peer():
    reading = Reading()
    rows = orjson.dumps([["doc", "1@AliceAliceAliceAliceAA"]] * 7)
    reading.profile.on_request(1, message("proposeChanges", rows))
    reading.profile.on_request(2, replace(rev(b"{}"), no_reply=True))
    assert reading.peer.held == {1: 7 * limits.ROW_BYTES, 2: 2 + limits.REQUEST_BYTES}
    digest = format_digest(bytes(20))
    for number, asked in (
        (3, message("getAttachment", digest=digest)),
        (4, message("proveAttachment", b"nonce", digest=digest)),
        (5, message("setCheckpoint", b"{}", client="cp")),
    ):
        reading.profile.on_request(number, asked)
        assert reading.peer.held[number] == limits.TASK_BYTES


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        (message("proposeChanges", b"[]" + b" " * 1000), 0),
        (message("proposeChanges", orjson.dumps([["doc", str(V1)]])), limits.ROW_BYTES),
        (message("setCheckpoint", b"{}" + b" " * 1000, client="cp"), limits.TASK_BYTES),
        (message("subChanges", b"{}" + b" " * 1000), 0),
    ],
)
def test_what_wants_no_reply_is_counted_with_its_body_until_it_is_dealt_with(asked, more):
    """Else nothing would keep a peer from having us hold any number of them."""
    reading = Reading()
    answers = []
    reading.profile._handler = lambda request, respond: answers.append(respond)
    reading.profile.on_request(1, replace(asked, no_reply=True))
    assert reading.peer.held == {1: len(asked.body) + limits.REQUEST_BYTES + more}
    answers[0](Accepted())
    assert reading.peer.held == {}
    assert reading.peer.replies == []


@pytest.mark.parametrize("profile", ["getAttachment", "proveAttachment"])
def test_who_asks_for_a_blob_and_wants_no_reply_gets_none(profile):
    reading = Reading()
    asked = message(profile, b"nonce", digest=format_digest(bytes(20)))
    reading.profile.on_request(1, replace(asked, no_reply=True))
    assert (reading.requests, reading.peer.held) == ([], {})


def test_what_no_document_can_be_called_is_left_out_of_a_subscription():
    names = ["a", "x" * limits.DOCUMENT_ID_BYTES_MAX, "x" * (limits.DOCUMENT_ID_BYTES_MAX + 1)]
    asked = message("subChanges", orjson.dumps({"docIDs": names}))
    assert read(asked).document_ids == tuple(names[:2])


def test_collections_and_checkpoints_are_as_many_and_as_long_as_they_may_be():
    def collections(count):
        names = [f"n{number}" for number in range(count)]
        body = {"collections": names, "checkpoint_ids": names}
        return message("getCollections", orjson.dumps(body))

    most = limits.COLLECTIONS_PER_CONNECTION_MAX
    assert len(read(collections(most)).names) == most
    assert refusal(collections(most + 1)) == ("HTTP", 400)
    longest = orjson.dumps({"x": "y" * (limits.CHECKPOINT_BYTES_MAX - 8)})
    assert len(longest) == limits.CHECKPOINT_BYTES_MAX
    assert read(message("setCheckpoint", longest, client="cp")).body == longest
    assert refusal(message("setCheckpoint", longest + b" ", client="cp")) == ("HTTP", 400)
    wide = orjson.dumps({"x": [0] * limits.LISTED_VALUES_MAX})
    assert refusal(message("setCheckpoint", wide, client="cp")) == ("HTTP", 400)


@pytest.mark.behaviour("B13h")
@pytest.mark.parametrize("malformed", [message("nonsense"), rev(b"["), message("changes", b"7")])
def test_what_wants_no_reply_is_not_even_refused(malformed):
    reading = Reading()
    reading.profile.on_request(1, replace(malformed, no_reply=True))
    assert (reading.peer.refusals, reading.peer.replies) == ([], [])


def test_of_a_revision_that_cannot_be_read_the_handler_is_told_that_it_will_not_come():
    reading = Reading()
    assert reading.refusal(rev(b"[", sequence="7", collection="3")) == ("HTTP", 400)
    [told] = reading.requests
    assert (told.collection, told.document_id, told.sequence, told.status) == (3, DOC, "7", 400)


@pytest.mark.parametrize(
    ("body", "ask"),
    [
        (b"{}", lambda profile: profile.propose(0, PROPOSALS[:1])),
        (b"[0,0]", lambda profile: profile.propose(0, PROPOSALS[:1])),
        (b'["no"]', lambda profile: profile.propose(0, PROPOSALS[:1])),
        (b'[{"status":"409"}]', lambda profile: profile.propose(0, PROPOSALS[:1])),
        (b'[{"status":409,"rev":7}]', lambda profile: profile.propose(0, PROPOSALS[:1])),
        (b'[{"status":409,"rev":"x"}]', lambda profile: profile.propose(0, PROPOSALS[:1])),
        (b"7", lambda profile: profile.offer(0, OFFERS[:1]).wait()),
        (b"[[],[]]", lambda profile: profile.offer(0, OFFERS[:1]).wait()),
        (b'["no"]', lambda profile: profile.offer(0, OFFERS[:1]).wait()),
        (b"nonsense", lambda profile: profile.get_collections(ONE_COLLECTION)),
        (b"[]", lambda profile: profile.get_collections(ONE_COLLECTION)),
        (b"[7]", lambda profile: profile.get_collections(ONE_COLLECTION)),
        (b'[{"rev":7}]', lambda profile: profile.get_collections(ONE_COLLECTION)),
        (b'[{"a":' + DEEP + b"}]", lambda profile: profile.get_collections(ONE_COLLECTION)),
    ],
)
async def test_a_reply_that_cannot_be_read_breaks_the_protocol(active, passive, body, ask):
    passive.raw_answer = Message({}, body)
    with pytest.raises(RemoteProtocolError):
        await ask(active.profile)


ONE_COLLECTION = GetCollections(("a",), ("cp-1",), None)


@pytest.mark.parametrize("text", ["", "nonsense", "1-2"])
async def test_a_peer_whose_uuid_cannot_be_read_has_none(active, passive, text):
    passive.raw_answer = Message({"uuid": text}, b"[{}]")
    assert (await active.profile.get_collections(ONE_COLLECTION)).database_id is None
    body = b'{"collections":["a"],"checkpoint_ids":["cp-1"]}'
    assert read(message("getCollections", body, uuid=text)).database_id is None


# --- Peers before Couchbase Lite 3.1 --------------------------------------------------------------


async def test_a_peer_that_does_not_name_collections_is_not_told_of_them(active, passive):
    passive.answers = [HeldCheckpoint("1-cc", b"{}"), Accepted()]
    await active.peer.request(message("getCheckpoint", client="cp-1"))
    await active.peer.request(message("subChanges"))
    passive.profile.tell_caught_up(0)
    await wait_all_tasks_blocked()
    assert [request.collection for request in passive.asked] == [0, 0]
    assert [heard.properties for heard in active.heard] == [{"Profile": "changes"}]


# --- Anything -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_everything_that_couchbase_lite_was_recorded_to_ask_is_read(path):
    for script in read_transcript(path):
        for said in script:
            if said.is_reply or said.profile in ("getAttachment", "proveAttachment"):
                continue
            reading = Reading()
            reading.profile.on_request(1, said.message)
            assert len(reading.requests) == 1, said


json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.sampled_from(["doc", str(V1), "1-aa"]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(texts, values, max_size=4),
    max_leaves=12,
)
rows = st.lists(st.lists(json_values, max_size=5), max_size=3)
any_body = st.one_of(
    st.binary(),
    st.one_of(
        json_values,
        rows,
        st.fixed_dictionaries({"collections": json_values, "checkpoint_ids": json_values}),
        st.fixed_dictionaries({"docIDs": json_values}),
    ).map(orjson.dumps),
)
property_names = st.sampled_from(
    [
        *("client", "rev", "collection", "since", "continuous", "batch", "activeOnly", "filter"),
        *("id", "sequence", "history", "deleted", "deltaSrc", "replacedRev", "error", "reason"),
        *("versioning", "sendReplacementRevs", "noconflicts", "uuid"),
    ]
)
property_values = texts | st.sampled_from(
    ["0", "1", "true", "doc", str(V1), f"{V2}; {V1}", "1-aa", "9" * 5_000, "²", "-1", "nonsense"]
)


@given(
    st.sampled_from(PROFILES),
    st.dictionaries(property_names, property_values),
    any_body,
    st.booleans(),
)
def test_any_message_is_read_or_refused(profile, properties, body, no_reply):
    reading = Reading()
    asked = Message({"Profile": profile, **properties}, body, no_reply=no_reply)
    reading.profile.on_request(1, asked)
    is_read = any(not isinstance(request, NoRevision) for request in reading.requests)
    is_refused = bool(reading.peer.refusals)
    if profile != "norev" and not no_reply:
        assert is_read != is_refused
