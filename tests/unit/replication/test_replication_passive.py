"""A passive session, spoken to message by message."""

import json
from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.blip import Connection, Message
from trio_p2p.blip.load import Budget
from trio_p2p.errors import ConnectionLostError, PeerError, ReplicationError, StoreFullError
from trio_p2p.ids import SourceID
from trio_p2p.listener import URLEndpointListener
from trio_p2p.listener_configuration import URLEndpointListenerConfiguration
from trio_p2p.model.conflict import judge_proposal
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.peer import Peer
from trio_p2p.replication import passive
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.store import checkpoints
from trio_p2p.testing.databases import open_test_database
from trio_p2p.transport.memory import memory_transport_pair

NOW = 1_800_000_000 * 10**9
BOB = SourceID(b"b" * 16)
UUID_OF_BOB = "00000000-0000-0000-0000-000000000001"


def version(time, source=BOB):
    """One of Bob's versions, made at this time around now."""
    return Version(NOW + time, source)


class Client:
    """An active peer of raw messages: what it hears, and what it answers to offers."""

    def __init__(self, transport):
        self.transport = transport
        self.peer = Peer(transport)
        self.heard = []
        self.wants_all = False
        self.answers = True
        self.takes_revisions = True

    async def run(self):
        with suppress(ConnectionLostError):
            await self.peer.run(self._on_request)

    def _on_request(self, number, message):
        self.heard.append(message)
        if message.no_reply or not self.answers:
            return
        if message.properties["Profile"] == "rev" and not self.takes_revisions:
            return
        wanted = message.properties["Profile"] == "changes" and self.wants_all
        answers = [[]] * len(json.loads(message.body)) if wanted else []
        self.peer.reply(number, Message({}, json.dumps(answers).encode()))

    async def ask(self, profile, body=None, *, collection=0, no_reply=False, **properties):
        """Ask and return the properties and the JSON of the reply; `body` is sent as JSON."""
        message = self.message(profile, body, collection, properties, no_reply)
        reply = await self.peer.request(message)
        return reply.properties, json.loads(reply.body or b"null")

    async def refusal(self, profile, body=None, **options):
        """Ask for what is refused; the domain and code it is refused with."""
        with pytest.raises(PeerError) as caught:
            await self.ask(profile, body, **options)
        return caught.value.domain, caught.value.code

    def tell(self, profile, body=None, *, collection=0, **properties):
        """Ask for what wants no reply."""
        told = []
        self.peer.send(self.message(profile, body, collection, properties, True), told.append)
        return told

    def message(self, profile, body, collection, properties, no_reply):
        head = {"Profile": profile}
        if collection is not None:
            head["collection"] = str(collection)
        if not isinstance(body, bytes):
            body = b"" if body is None else json.dumps(body).encode()
        return Message({**head, **properties}, body, no_reply=no_reply)

    async def open(self, *names, uuid=UUID_OF_BOB):
        """Name the collections; the checkpoint IDs are `cp-` and the name."""
        names = names or ("_default",)
        body = {"collections": names, "checkpoint_ids": [f"cp-{name}" for name in names]}
        return await self.ask("getCollections", body, collection=None, uuid=uuid)

    async def propose(self, *rows):
        """Propose: the answers."""
        rows = [[str(part) for part in row] for row in rows]
        _, answers = await self.ask("proposeChanges", rows, conflictIncludesRev="true")
        return answers

    async def send_revision(self, document_id, rev, body=None, **properties):
        """Send a revision; the properties of the reply."""
        properties |= {"id": document_id, "rev": str(rev), "sequence": "1"}
        replied, _ = await self.ask("rev", {} if body is None else body, **properties)
        return replied

    def offers(self):
        """The rows of every offer that was heard; an empty one tells that all were."""
        listings = [said for said in self.heard if said.properties["Profile"] == "changes"]
        return [json.loads(listing.body) for listing in listings]

    def offered(self):
        """The documents of every offer."""
        return [[row[1] for row in rows] for rows in self.offers()]

    def revisions(self):
        """The documents of which revisions were sent, with their bodies."""
        return {
            said.properties["id"]: json.loads(said.body)
            for said in self.heard
            if said.properties["Profile"] == "rev"
        }


class Server:
    """A passive session, and how it ended."""

    def __init__(self, transport, collections, budget=None):
        self.transport = transport
        self.journal = Journal()
        self.session = PassiveSession(transport, collections, self.journal, budget)
        self.error = None
        self.ended = False

    async def run(self):
        try:
            await self.session.run()
        except ReplicationError as exc:
            self.error = exc
        self.ended = True


@pytest.fixture
async def database(tmp_path):
    async with open_test_database(tmp_path / "db", clock=lambda: NOW) as database:
        await database.create_collection("shop.sales")
        yield database


@pytest.fixture
def notes(database):
    return database.default_collection


@pytest.fixture
async def connect(database, nursery):
    """Makes connections: a client and the session that serves it."""

    def connect():
        transport, far_end = memory_transport_pair()
        server, client = Server(transport, database.collections()), Client(far_end)
        nursery.start_soon(server.run)
        nursery.start_soon(client.run)
        return client, server

    yield connect
    nursery.cancel_scope.cancel()


@pytest.fixture
def connection(connect):
    return connect()


@pytest.fixture
def client(connection):
    return connection[0]


@pytest.fixture
def server(connection):
    return connection[1]


# --- Opening --------------------------------------------------------------------------------------


@pytest.mark.behaviour("K7a")
async def test_a_collection_has_its_checkpoint_or_none_or_is_unknown(client, database, connect):
    await client.open("shop.sales")
    await client.ask("setCheckpoint", {"local": 7}, client="cp-shop.sales", rev="")
    other, _ = connect()
    properties, checkpoints = await other.open("_default", "shop.sales", "nothing")
    assert checkpoints == [{}, {"local": 7, "rev": "1-cc"}, None]
    assert properties == {"uuid": str(database.id)}


async def test_checkpoints_are_told_as_far_as_one_message_holds_them(client, connect, monkeypatch):
    await client.open("_default", "shop.sales")
    for index, name in enumerate(("_default", "shop.sales")):
        long = {"x": "y" * 1_000}
        await client.ask("setCheckpoint", long, collection=index, client=f"cp-{name}", rev="")
    monkeypatch.setattr(limits, "BODY_BYTES_MAX", 1_500)
    other, _ = connect()
    _, checkpoints = await other.open("_default", "shop.sales")
    assert checkpoints == [long | {"rev": "1-cc"}, {}]
    # The other is there all the same.
    replied, _ = await other.ask("getCheckpoint", collection=1, client="cp-shop.sales")
    assert replied == {"rev": "1-cc"}


async def test_where_a_collection_is_unknown_others_may_be_named(client):
    _, checkpoints = await client.open("nothing")
    assert checkpoints == [None]
    _, checkpoints = await client.open("_default")
    assert checkpoints == [{}]


async def test_collections_are_named_first(client):
    for profile in ("getCheckpoint", "subChanges", "proposeChanges", "rev", "setCheckpoint"):
        body = [] if profile == "proposeChanges" else {}
        properties = {"client": "cp", "id": "a", "rev": str(version(1))}
        assert await client.refusal(profile, body, **properties) == ("HTTP", 400)


@pytest.mark.behaviour("K7b")
async def test_collections_are_named_once(client):
    await client.open()
    body = {"collections": ["shop.sales"], "checkpoint_ids": ["cp"]}
    assert await client.refusal("getCollections", body) == ("HTTP", 400)


@pytest.mark.behaviour("K7b")
async def test_a_collection_is_named_once(client):
    body = {"collections": ["_default", "_default"], "checkpoint_ids": ["cp-1", "cp-2"]}
    assert await client.refusal("getCollections", body) == ("HTTP", 400)


async def test_a_copy_of_this_very_database_is_refused(client, database):
    body = {"collections": ["_default"], "checkpoint_ids": ["cp"]}
    refusal = await client.refusal("getCollections", body, uuid=str(database.id))
    assert refusal == ("HTTP", 409)


async def test_before_collections_a_peer_begins_with_the_checkpoint_of_the_default_one(client):
    properties = {"collection": None, "client": "cp"}
    assert await client.refusal("getCheckpoint", **properties) == ("HTTP", 404)
    replied, _ = await client.ask("setCheckpoint", {"local": 1}, **properties)
    assert replied == {"rev": "1-cc"}
    replied, body = await client.ask("getCheckpoint", **properties)
    assert (replied, body) == ({"rev": "1-cc"}, {"local": 1})


async def test_a_peer_of_before_collections_is_not_told_of_them(client, notes):
    await notes.put("a", {})
    client.wants_all = True
    assert await client.refusal("getCheckpoint", collection=None, client="cp") == ("HTTP", 404)
    await client.ask("subChanges", collection=None)
    await wait_all_tasks_blocked()
    assert [said.properties["Profile"] for said in client.heard] == ["changes", "changes", "rev"]
    assert not any("collection" in said.properties for said in client.heard)


@pytest.mark.parametrize("collection", [1, 999_999])
async def test_a_collection_that_was_not_named_is_refused(client, collection):
    await client.open()
    refusal = await client.refusal("getCheckpoint", collection=collection, client="cp")
    assert refusal == ("HTTP", 400)


async def test_a_message_that_nobody_knows_is_refused_as_such(client):
    await client.open()
    assert await client.refusal("getRev") == ("BLIP", 404)


async def test_to_offer_changes_is_for_passive_peers(client):
    await client.open()
    rows = [[1, "a", str(version(1))]]
    assert await client.refusal("changes", rows) == ("BLIP", 409)


# --- Checkpoints ----------------------------------------------------------------------------------


@pytest.mark.behaviour("S1", "K7c", "O4")
async def test_a_checkpoint_is_replaced_by_who_knows_its_revision(client):
    await client.open()
    assert await client.refusal("getCheckpoint", client="cp") == ("HTTP", 404)
    for rev, following in (("", "1-cc"), ("1-cc", "2-cc"), ("2-cc", "3-cc")):
        replied, _ = await client.ask("setCheckpoint", {"from": rev}, client="cp", rev=rev)
        assert replied == {"rev": following}
    replied, body = await client.ask("getCheckpoint", client="cp")
    assert (replied, body) == ({"rev": "3-cc"}, {"from": "2-cc"})


@pytest.mark.behaviour("S1")
@pytest.mark.parametrize("rev", ["", "0-cc", "2-cc", "1", "nonsense"])
async def test_a_checkpoint_is_not_replaced_by_who_does_not(client, rev):
    await client.open()
    await client.ask("setCheckpoint", {"local": 1}, client="cp")
    assert await client.refusal("setCheckpoint", {}, client="cp", rev=rev) == ("HTTP", 409)
    _, body = await client.ask("getCheckpoint", client="cp")
    assert body == {"local": 1}


@pytest.mark.behaviour("S1")
async def test_a_first_checkpoint_has_no_revision_to_name(client):
    await client.open()
    assert await client.refusal("setCheckpoint", {}, client="cp", rev="1-cc") == ("HTTP", 409)


async def test_a_checkpoint_that_a_full_disk_does_not_hold_may_be_saved_later(client, monkeypatch):
    def full(*args, **options):
        raise StoreFullError("the disk is full")

    await client.open()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "set_peer", full)
        assert await client.refusal("setCheckpoint", {}, client="cp") == ("HTTP", 503)
    replied, _ = await client.ask("setCheckpoint", {}, client="cp")
    assert replied == {"rev": "1-cc"}


# --- Being pulled from ----------------------------------------------------------------------------


@pytest.mark.behaviour("S3a")
async def test_a_subscriber_is_offered_everything_and_sent_what_it_wants(client, notes, server):
    await notes.put("a", {"n": 1})
    await notes.put("b", {"n": 2})
    await client.open()
    client.wants_all = True
    await client.ask("subChanges")
    await wait_all_tasks_blocked()
    a, b = notes.get("a").version, notes.get("b").version
    assert client.offers() == [[[1, "a", str(a), 0, 4], [2, "b", str(b), 0, 4]], []]
    assert client.revisions() == {"a": {"n": 1}, "b": {"n": 2}}
    assert server.journal.statistics().documents_pushed == 2
    assert not server.session.busy


async def test_a_document_that_no_message_holds_is_withheld_and_others_are_sent(
    client, notes, server, monkeypatch
):
    """Its JSON may be longer than what came: or whoever pushes it keeps others from pulling."""
    await notes.put("a", {"n": 1})
    await notes.put("b", {"text": "x" * 2_000})
    await notes.put("c", {"n": 3})
    client.wants_all = True
    await client.open()
    monkeypatch.setattr(limits, "MESSAGE_BYTES_MAX", 1_000)
    await client.ask("subChanges")
    await wait_all_tasks_blocked()
    assert sorted(client.revisions()) == ["a", "c"]
    [withheld] = [m.properties for m in client.heard if m.properties["Profile"] == "norev"]
    assert (withheld["id"], withheld["error"]) == ("b", "413")
    assert not server.ended
    [(failed, error)] = [(e.document_id, e.error) for e in server.journal.failures]
    assert (failed, error.status) == ("b", 413)


async def test_a_large_document_is_written_beside_the_loop(connect, notes, database, monkeypatch):
    """Any reader may ask for it over and over."""
    aside = []
    run_aside = database.engine.run_aside

    async def note(function, *args):
        aside.append(function)
        return await run_aside(function, *args)

    monkeypatch.setattr(database.engine, "run_aside", note)
    client, _ = connect()
    await notes.put("a", {"n": 1})
    await notes.put("b", {"text": "x" * limits.READ_ASIDE_BYTES})
    await notes.put("c", {"n": 3})
    client.wants_all = True
    await client.open()
    await client.ask("subChanges")
    await wait_all_tasks_blocked()
    assert sorted(client.revisions()) == ["a", "b", "c"]
    assert len(aside) == 1


@pytest.mark.behaviour("S4a")
@pytest.mark.parametrize("running", ["false", "true"])
@pytest.mark.parametrize("following", ["false", "true"])
async def test_one_subscription_to_a_collection_runs_at_a_time(client, notes, running, following):
    await notes.put("a", {})
    client.answers = False
    await client.open("_default", "shop.sales")
    await client.ask("subChanges", continuous=running)
    assert await client.refusal("subChanges", continuous=following) == ("HTTP", 500)
    await client.ask("subChanges", collection=1)


async def test_one_fetch_waits_for_the_one_before_to_be_sent_and_no_more_do(
    client, notes, monkeypatch
):
    monkeypatch.setattr(limits, "REVISION_BYTES_UNANSWERED_MAX", 1)
    for name in "abc":
        await notes.put(name, {})
    client.wants_all, client.takes_revisions = True, False
    await client.open()
    await client.ask("subChanges", {"docIDs": ["a", "b"]})
    await wait_all_tasks_blocked()
    await client.ask("subChanges", {"docIDs": ["c"]})
    assert await client.refusal("subChanges", {"docIDs": ["c"]}) == ("HTTP", 500)
    await wait_all_tasks_blocked()
    assert client.offered() == [["a", "b"], []]


@pytest.mark.parametrize("name", ["sync_gateway/bychannel", "mine"])
async def test_a_filter_that_is_asked_for_by_name_is_not_known_here(client, server, name):
    await client.open()
    assert await client.refusal("subChanges", filter=name, channels="a") == ("LiteCore", 19)
    assert not server.session.busy
    await client.ask("subChanges")


@pytest.mark.behaviour("S4a")
async def test_after_a_one_shot_subscription_has_ended_another_one_may_follow(client, notes):
    await notes.put("a", {})
    await client.open()
    for _ in range(2):
        await client.ask("subChanges")
        await wait_all_tasks_blocked()
    assert client.offered() == [["a"], [], ["a"], []]


@pytest.mark.behaviour("S3b", "U3b")
async def test_what_is_offered_can_be_narrowed(client, notes):
    for name in "abcd":
        await notes.put(name, {})
    await notes.delete("b")
    await client.open()
    body = {"docIDs": ["b", "c", "d", "x"]}
    await client.ask("subChanges", body, since="3", activeOnly="true", batch="1")
    await wait_all_tasks_blocked()
    assert client.offered() == [["d"], []]


@pytest.mark.behaviour("S3b")
async def test_batches_are_as_large_as_asked_for(client, notes):
    for name in "abcde":
        await notes.put(name, {})
    await client.open()
    await client.ask("subChanges", batch="2")
    await wait_all_tasks_blocked()
    assert client.offered() == [["a", "b"], ["c", "d"], ["e"], []]


@pytest.mark.behaviour("S3a")
async def test_a_continuous_subscriber_hears_of_what_is_written_later(client, notes):
    await client.open()
    await client.ask("subChanges", continuous="true")
    await wait_all_tasks_blocked()
    await notes.put("a", {})
    await wait_all_tasks_blocked()
    await notes.delete("a")
    await wait_all_tasks_blocked()
    assert client.offered() == [[], ["a"], ["a"]]
    assert client.offers()[-1][0][3] == 1


async def test_what_a_subscriber_pushed_itself_is_offered_and_not_sent_unasked(client):
    await client.open()
    await client.send_revision("a", version(1))
    await client.ask("subChanges")
    await wait_all_tasks_blocked()
    assert client.offered() == [["a"], []]
    assert client.revisions() == {}


# --- Being pushed to ------------------------------------------------------------------------------


@pytest.mark.behaviour("S6a")
async def test_a_new_document_is_wanted_and_stored(client, notes, server):
    await client.open()
    assert await client.propose(["a", version(1), ""]) == []
    assert await client.send_revision("a", version(1), {"n": 1}) == {}
    assert notes.get("a").body == {"n": 1}
    statistics = server.journal.statistics()
    assert (statistics.documents_offered, statistics.documents_pulled) == (1, 1)


@pytest.mark.behaviour("S6a")
async def test_a_new_revision_is_wanted_by_who_knows_the_current_one(client, notes):
    await client.open()
    await client.send_revision("a", version(1))
    assert await client.propose(["a", version(2), version(1)]) == []
    await client.send_revision("a", version(2), {"n": 2})
    assert notes.get("a").body == {"n": 2}


@pytest.mark.behaviour("S5")
async def test_proposals_are_answered_in_order(client, notes):
    mine = (await notes.put("c", {})).version
    await client.open()
    for name in "ab":
        await client.send_revision(name, version(1))
    answers = await client.propose(
        ["a", version(1), ""],
        ["new", version(1), ""],
        ["b", version(2), version(1)],
        ["c", version(1), ""],
        ["c", version(1), version(-1)],
        ["a", version(2), version(0)],
        ["other", version(1), ""],
    )
    conflict = {"status": 409, "rev": str(mine)}
    assert answers == [304, 0, 0, conflict, conflict, {"status": 409, "rev": str(version(1))}]


@pytest.mark.behaviour("S5")
async def test_a_conflict_is_told_with_the_whole_vector(client, notes):
    await client.open()
    await client.send_revision("a", version(1))
    mine = await notes.put("a", {})
    [answer] = await client.propose(["a", version(2), version(1)])
    assert answer["status"] == 409
    assert VersionVector.parse(answer["rev"]) == mine.revision.vector
    assert version(1) in mine.revision.vector.previous


async def test_a_revision_in_conflict_is_refused(client, notes, server):
    await notes.put("a", {"mine": True})
    await client.open()
    refusal = await client.refusal("rev", {}, id="a", rev=str(version(2)), sequence="1")
    assert refusal == ("HTTP", 409)
    assert notes.get("a").body == {"mine": True}
    [event] = server.journal.failures
    assert (event.document_id, event.error.status) == ("a", 409)


async def test_a_revision_that_is_here_already_is_not_stored_again(client, notes, server):
    await client.open()
    await client.send_revision("a", version(1), {"n": 1})
    assert await client.send_revision("a", version(1), {"n": 1}) == {"noop": "true"}
    assert notes.last_sequence == 1
    assert server.journal.statistics().documents_pulled == 1


@pytest.mark.behaviour("S6a")
async def test_a_tombstone_is_stored(client, notes):
    await client.open()
    await client.send_revision("a", version(1), {"n": 1})
    await client.send_revision("a", version(2), deleted="1")
    assert notes.get("a") is None
    assert notes.get("a", deleted=True).version == version(2)


@pytest.mark.behaviour("S6a")
async def test_of_concurrent_edits_of_one_document_the_latest_stands(client, notes):
    await client.open()
    async with trio.open_nursery() as nursery:
        for n in range(1, 6):
            nursery.start_soon(client.send_revision, "a", version(n), {"n": n})
    assert notes.get("a").body == {"n": 5}


@pytest.mark.behaviour("C15")
async def test_a_document_deleted_here_is_written_anew_by_who_never_knew_it(client, notes):
    await client.open()
    await client.send_revision("a", version(1))
    tombstone = await notes.delete("a")
    newer = Version(tombstone.version.time + 5, BOB)
    assert await client.propose(["a", newer, ""]) == []
    await client.send_revision("a", newer, {"n": 2})
    document = notes.get("a")
    assert document.body == {"n": 2}
    assert document.revision.has(newer)
    assert document.revision.has(tombstone.version)


async def test_a_revision_older_than_the_tombstone_does_not_revive_it(client, notes):
    await notes.put("a", {})
    await notes.delete("a")
    await client.open()
    [answer] = await client.propose(["a", version(-5), ""])
    assert answer["status"] == 409


async def test_a_promise_that_is_withdrawn_revives_nothing(client, notes):
    await client.open()
    await client.send_revision("a", version(1))
    tombstone = await notes.delete("a")
    newer = Version(tombstone.version.time + 5, BOB)
    assert await client.propose(["a", newer, ""]) == []
    client.tell("norev", id="a", rev=str(newer), sequence="1", error="404")
    refusal = await client.refusal("rev", {}, id="a", rev=str(newer), sequence="1")
    assert refusal == ("HTTP", 409)


async def test_of_promised_revivals_the_latest_are_remembered(client, notes, monkeypatch):
    monkeypatch.setattr(limits, "NOTED_DOCUMENTS_MAX", 2)
    await client.open()
    newer = {}
    for name in "abc":
        await client.send_revision(name, version(1))
        tombstone = await notes.delete(name)
        newer[name] = Version(tombstone.version.time + 5, BOB)
        assert await client.propose([name, newer[name], ""]) == []
    properties = {"id": "a", "rev": str(newer["a"]), "sequence": "1"}
    assert await client.refusal("rev", {}, **properties) == ("HTTP", 409)
    for name in "bc":
        await client.send_revision(name, newer[name])
        assert notes.get(name) is not None


async def test_a_version_from_the_future_may_come_again_later(client, notes, server):
    future = version(limits.CLOCK_SKEW_NS_MAX + 10**9)
    await client.open()
    refusal = await client.refusal("rev", {}, id="a", rev=str(future), sequence="1")
    assert refusal == ("HTTP", 429)
    assert notes.count == 0
    assert server.error is None


@pytest.mark.behaviour("S6b")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        ({"_id": "a"}, 400),
        ({"photo": {"@type": "blob", "digest": "sha1-AAAA"}}, 404),
    ],
)
async def test_a_revision_that_cannot_be_stored_is_refused_alone(client, notes, body, status):
    await client.open()
    refusal = await client.refusal("rev", body, id="a", rev=str(version(1)), sequence="1")
    assert refusal == ("HTTP", status)
    await client.send_revision("b", version(1))
    assert notes.get("b") is not None


async def test_a_collection_is_written_to_by_its_index(client, database, notes):
    await client.open("_default", "shop.sales")
    properties = {"id": "a", "rev": str(version(1)), "sequence": "1"}
    await client.ask("rev", {"in": "sales"}, collection=1, **properties)
    assert notes.get("a") is None
    assert database.collection("shop.sales").get("a").body == {"in": "sales"}


@pytest.mark.parametrize(("limit", "answers"), [(1, [304]), (2, [])])
async def test_proposals_wait_while_too_much_is_still_to_be_stored(
    client, monkeypatch, limit, answers
):
    monkeypatch.setattr(limits, "REVISIONS_REQUESTED_MAX", limit)
    await client.open()
    rows = [["a", str(version(1)), ""]]
    properties = {"id": "a", "rev": str(version(1)), "sequence": "1"}
    client.peer.begin(client.message("rev", {}, 0, properties, False))
    # Sent right behind the revision; once that is stored the answer is that it is held.
    _, answered = await client.ask("proposeChanges", rows)
    assert answered == answers


@pytest.fixture
def judged_at(monkeypatch, nursery):
    """In which turn of another task each proposal was judged; these count from the first one."""
    turns, judged_at = 0, []

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    def note(*judged):
        if not judged_at:
            nursery.start_soon(count_turns)
        judged_at.append(turns)
        return judge_proposal(*judged)

    monkeypatch.setattr(passive, "judge_proposal", note)
    return judged_at


async def test_others_have_their_turns_while_proposals_that_waited_are_answered(
    client, monkeypatch, judged_at
):
    await client.open()
    pending = []
    with monkeypatch.context() as patch:
        patch.setattr(limits, "REVISIONS_REQUESTED_MAX", 0)
        for number in range(20):
            rows = [[f"d{number}", str(version(1)), ""]]
            pending.append(client.peer.begin(client.message("proposeChanges", rows, 0, {}, False)))
        await wait_all_tasks_blocked()
        assert judged_at == []
    await client.send_revision("a", version(1))
    for one in pending:
        assert (await one.wait()).body == b"[]"
    # Trio chooses the order of tasks by chance, so that two may follow one another.
    assert max(map(judged_at.count, judged_at[1:])) <= 2
    # Whoever comes later is not forgotten.
    assert await client.propose(["a", version(1), ""]) == [304]


async def test_others_have_their_turns_while_a_long_list_is_answered(
    client, notes, monkeypatch, judged_at
):
    monkeypatch.setattr(limits, "SCAN_SLICE_ROWS", 5)
    await client.open()
    for number in range(0, 100, 2):
        await client.send_revision(f"d{number}", version(1))
    answers = await client.propose(*([f"d{number}", version(1), ""] for number in range(100)))
    assert answers == [304, 0] * 49 + [304]
    assert max(map(judged_at.count, judged_at)) <= 10


async def test_others_have_their_turns_while_long_vectors_are_read(
    client, notes, monkeypatch, judged_at
):
    """One long vector is enough: the same document may stand in a list as often as one likes."""
    monkeypatch.setattr(limits, "JUDGED_VERSIONS_SLICE", 60)
    await client.open()
    authors = [SourceID(bytes([number]) * 16) for number in range(1, 30)]
    history = ", ".join(str(version(0, author)) for author in authors)
    await client.send_revision("a", version(1), history=history)
    answers = await client.propose(*[["a", version(1), ""]] * 100)
    assert answers == [304] * 100
    assert max(map(judged_at.count, judged_at)) <= 4


async def test_lists_are_answered_in_the_order_in_which_they_came(client, monkeypatch):
    monkeypatch.setattr(limits, "SCAN_SLICE_ROWS", 5)
    await client.open()
    answered = []
    for length in (50, 1, 20):
        rows = [[f"d{number}", str(version(1)), ""] for number in range(length)]
        message = client.message("proposeChanges", rows, 0, {}, False)
        client.peer.send(message, lambda _, length=length: answered.append(length))
    await wait_all_tasks_blocked()
    assert answered == [50, 1, 20]


async def test_a_list_that_was_begun_goes_on_once_what_was_wanted_is_stored(
    client, server, monkeypatch
):
    monkeypatch.setattr(limits, "SCAN_SLICE_ROWS", 1)
    await client.open()
    rows = [[name, str(version(1)), ""] for name in "abc"]
    with monkeypatch.context() as patch:

        def fall_behind(*judged):
            patch.setattr(limits, "REVISIONS_REQUESTED_MAX", 0)
            return judge_proposal(*judged)

        patch.setattr(passive, "judge_proposal", fall_behind)
        pending = client.peer.begin(client.message("proposeChanges", rows, 0, {}, False))
        await wait_all_tasks_blocked()
        assert server.session.busy
        assert len(server.session._parts[0].proposals[0].answers) == 1
    # It is here when the rest is judged.
    await client.send_revision("c", version(1))
    assert json.loads((await pending.wait()).body) == [0, 0, 304]


async def test_a_reply_tells_so_many_whole_vectors_and_then_current_versions_alone(
    client, notes, monkeypatch
):
    """Or the same document, proposed two thousand times, would fill more than a message."""
    monkeypatch.setattr(limits, "CONFLICT_VERSIONS_MAX", 5)
    await client.open()
    await client.send_revision("long", version(1))
    long = (await notes.put("long", {})).revision.vector
    short = (await notes.put("short", {})).revision.vector
    assert (len(long), len(short)) == (2, 1)
    rows = [[name, version(2), version(0)] for name in ["long"] * 3 + ["short"] * 2]
    told = [answer["rev"] for answer in await client.propose(*rows)]
    assert told == [str(v) for v in (long, long, long.current, short, short)]
    # Each reply has as much room.
    assert await client.propose(rows[0]) == [{"status": 409, "rev": str(long)}]


# --- What wants no reply --------------------------------------------------------------------------


@pytest.mark.behaviour("B13h")
async def test_what_wants_no_reply_is_done_without_one(client, notes):
    await client.open()
    told = [
        *client.tell("rev", {"n": 1}, id="a", rev=str(version(1)), sequence="1"),
        *client.tell("rev", b"{", id="b", rev=str(version(1)), sequence="1"),
        *client.tell("proposeChanges", []),
        *client.tell("setCheckpoint", {}, client="cp"),
        *client.tell("nonsense"),
    ]
    await wait_all_tasks_blocked()
    assert told == []
    assert notes.get("a").body == {"n": 1}
    replied, _ = await client.ask("getCheckpoint", client="cp")
    assert replied == {"rev": "1-cc"}


# --- The end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "status"), [(1000, None), (1001, None), (4001, 4001)])
async def test_a_goodbye_ends_the_session(client, server, code, status):
    await client.open()
    await client.ask("subChanges", continuous="true")
    await client.transport.aclose(code)
    await wait_all_tasks_blocked()
    assert server.ended
    assert (server.error and server.error.status) == status


@pytest.mark.behaviour("B9", "S9")
async def test_a_lost_connection_ends_every_task_of_the_session(client, server, notes):
    await notes.put("a", {})
    await client.open()
    await client.ask("subChanges", continuous="true")
    client.peer.begin(client.message("setCheckpoint", {}, 0, {"client": "cp"}, False))
    client.transport.cut()
    await wait_all_tasks_blocked()
    assert server.ended
    assert (server.error.status, server.error.retryable) == (1006, True)
    moved = server.journal.statistics()
    assert moved.wire_bytes_sent > 0
    assert moved.wire_bytes_received > 0


async def test_a_peer_that_breaks_the_protocol_ends_the_session(connect):
    client, server = connect()
    await client.open()
    await client.transport.send(b"\x80")
    await wait_all_tasks_blocked()
    assert server.ended
    assert not server.error.retryable


async def test_a_session_counts_as_a_connection_once_it_is_open(client, server):
    await client.open("nothing")
    assert server.journal.statistics().connections == 0
    await client.open("_default")
    assert server.journal.statistics().connections == 1


# --- Limits --------------------------------------------------------------------------------------


async def test_a_client_that_asks_for_nothing_is_told_to_come_back(tmp_path, autojump_clock):
    here, there = memory_transport_pair()
    async with (
        open_test_database(tmp_path / "shop.p2p") as database,
        trio.open_nursery() as nursery,
    ):
        server = Server(here, [database.default_collection])
        nursery.start_soon(server.run)
        started = trio.current_time()
        with pytest.raises(ConnectionLostError) as caught:
            await there.receive()
        assert caught.value.code == 4001
        assert trio.current_time() - started == limits.FIRST_REQUEST_TIMEOUT_S


async def test_a_client_that_has_asked_may_be_silent(tmp_path, autojump_clock):
    here, there = memory_transport_pair()
    async with (
        open_test_database(tmp_path / "shop.p2p") as database,
        trio.open_nursery() as nursery,
    ):
        server, client = Server(here, [database.default_collection]), Client(there)
        nursery.start_soon(server.run)
        nursery.start_soon(client.run)
        await client.open()
        await trio.sleep(10 * limits.FIRST_REQUEST_TIMEOUT_S)
        assert not server.ended
        nursery.cancel_scope.cancel()


async def test_documents_that_a_subscription_is_restricted_to_are_held_while_it_runs(
    client, server, notes
):
    await client.open()
    names = [f"document {number}" for number in range(100)]
    peer = server.session._peer
    await client.ask("subChanges", {"docIDs": names}, continuous="true")
    await wait_all_tasks_blocked()
    held_bytes = peer.held_bytes
    characters = sum(map(len, names))
    assert held_bytes == characters + 100 * limits.SUBSCRIBED_DOCUMENT_BYTES
    # This one has nothing to offer, and ends.
    await client.ask("subChanges", {"docIDs": names})
    await wait_all_tasks_blocked()
    assert peer.held_bytes == held_bytes


async def test_all_collections_of_a_connection_share_one_window(client, database, monkeypatch):
    """A peer that wants everything and takes nothing gets no more for asking in many places."""
    monkeypatch.setattr(limits, "REVISIONS_UNANSWERED_MAX", 10)
    client.wants_all, client.takes_revisions = True, False
    names = ["_default", "shop.sales"]
    for name in names:
        collection = database.collection(name)
        for number in range(50):
            await collection.put(f"in {name} {number}", {"n": number})
    await client.open(*names)
    for index in range(2):
        await client.ask("subChanges", collection=index)
    await wait_all_tasks_blocked()
    # A slice is read at once, where there is room for any.
    assert len(client.revisions()) == 50


async def test_all_clients_together_hold_what_they_may(tmp_path):
    """One of two clients begins messages that it does not finish, and has to go for the other."""
    budget = Budget(1_000_000)
    opening = open_test_database(tmp_path / "shop.p2p")
    async with opening as database, trio.open_nursery() as nursery:
        servers = []
        for _ in range(2):
            here, there = memory_transport_pair()
            servers.append((Server(here, [database.default_collection], budget), there))
            nursery.start_soon(servers[-1][0].run)
        honest = Client(servers[1][1])
        nursery.start_soon(honest.run)
        blip = Connection()
        for _ in range(200):
            blip.send_request(Message({"Profile": "rev"}, bytes(100_000)))
        with suppress(ConnectionLostError):
            for _ in range(200):
                await servers[0][1].send(blip.next_frame())
        await wait_all_tasks_blocked()
        assert servers[0][0].ended
        assert budget.total < 1_000_000
        await honest.open()
        assert not servers[1][0].ended
        nursery.cancel_scope.cancel()


async def test_a_listener_gives_all_its_sessions_one_budget(database):
    listener = URLEndpointListener(
        URLEndpointListenerConfiguration(collections=[database.default_collection])
    )
    assert listener._budget._bytes_max == limits.LISTENER_BYTES_MAX


async def test_a_listener_has_so_many_places_unless_told_otherwise(database):
    collections = [database.default_collection]
    for told, seats in (({}, limits.LISTENER_CONNECTIONS_MAX), ({"connections_max": 7}, 7)):
        listener = URLEndpointListener(
            URLEndpointListenerConfiguration(collections=collections, **told)
        )
        places = listener._entrance.places
        assert (places._seats_max, places._waiting_max) == (seats, limits.LISTENER_WAITING_MAX)
