"""An active session whose peer refuses, misbehaves, or does not say who it is."""

import json

import pytest
import trio

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import (
    ConfigurationError,
    ConnectionLostError,
    ReplicationError,
    StoreFullError,
)
from trio_p2p.model.conflict import default_conflict_resolver
from trio_p2p.peer import Peer
from trio_p2p.replication.checkpointer import Checkpointer
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.session import ActiveSession, CollectionPlan, Plan
from trio_p2p.testing.databases import open_test_database
from trio_p2p.transport.memory import memory_transport_pair

NOW = 1_800_000_000 * 10**9
THEIR_ID = "00000000-0000-0000-0000-000000000001"


class Server:
    """A passive peer of raw messages, which refuses what it is told to."""

    def __init__(self, transport):
        self.peer = Peer(transport)
        self.refusals = {}
        self.uuid = THEIR_ID
        self.asked = []
        self.kept = {}
        self.called = None
        self.ignored = set()
        self.rows = []
        self.close_code = None

    async def run(self):
        try:
            await self.peer.run(self._on_request)
        except ConnectionLostError as exc:
            self.close_code = exc.code

    def _on_request(self, number, message):
        profile = message.properties["Profile"]
        self.asked.append(profile)
        if message.no_reply or profile in self.ignored:
            return
        if profile in self.refusals:
            self.peer.refuse(number, *self.refusals[profile])
            return
        properties, body = getattr(self, "_" + profile)(message)
        self.peer.reply(number, Message(properties, json.dumps(body).encode()))
        if profile == "subChanges":
            self._offer()

    def _offer(self):
        head = {"Profile": "changes", "collection": "0"}
        for rows in self.rows or ():
            self.peer.send(Message(head, json.dumps(rows).encode()), lambda _: None)
        if self.rows is not None:
            self.peer.send(Message(head, b"[]", no_reply=True))

    def _getCollections(self, message):
        clients = json.loads(message.body)["checkpoint_ids"]
        checkpoints = [{**self._checkpoint(client), "rev": "1-cc"} for client in clients]
        return ({"uuid": self.uuid} if self.uuid else {}), checkpoints

    def _getCheckpoint(self, message):
        return {"rev": "1-cc"}, self._checkpoint(message.properties["client"])

    def _setCheckpoint(self, message):
        self.kept[message.properties["client"]] = json.loads(message.body)
        return {"rev": "1-cc"}, None

    def _checkpoint(self, client):
        return self.kept.get(client, {})

    def _subChanges(self, message):
        return {}, None

    def _proposeChanges(self, message):
        return {}, []

    def _rev(self, message):
        return {}, None


@pytest.fixture
async def database(tmp_path):
    async with open_test_database(tmp_path / "db", clock=lambda: NOW) as database:
        await database.default_collection.put("a", {})
        yield database


async def run_session(
    database, *, prepare=lambda server: None, target="there", on_peer=lambda peer: None, **plan
):
    """Run a session against a server; the server, and what the session raised, if anything."""
    near, far = memory_transport_pair()
    server = Server(far)
    prepare(server)

    def note_peer(peer_key):
        server.called = peer_key
        on_peer(peer_key)

    session = ActiveSession(
        near,
        Plan(
            target,
            (CollectionPlan(database.default_collection, default_conflict_resolver),),
            **plan,
        ),
        Journal(),
        on_activity=lambda busy: None,
        on_healthy=lambda: None,
        on_peer=note_peer,
        now_s=lambda: NOW // 10**9,
    )
    error = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        try:
            await session.run()
        except ReplicationError as exc:
            error = exc
    return server, error


def refusing(profile, *refusal):
    def prepare(server):
        server.refusals[profile] = refusal

    return prepare


REQUESTS = ["getCollections", "setCheckpoint", "subChanges", "proposeChanges"]


@pytest.mark.parametrize("profile", [each for each in REQUESTS if each != "setCheckpoint"])
async def test_503_in_a_reply_means_to_come_back_later(database, profile):
    server, error = await run_session(database, prepare=refusing(profile, "HTTP", 503, "busy"))
    assert (error.status, error.retryable) == (503, True)
    assert server.close_code == 4001


@pytest.mark.parametrize("profile", REQUESTS)
@pytest.mark.parametrize("code", [400, 401, 403, 404])
async def test_being_refused_means_not_to_come_back(database, profile, code):
    server, error = await run_session(database, prepare=refusing(profile, "HTTP", code, "no"))
    assert (error.status, error.retryable) == (code, False)
    assert server.close_code == 4002


async def test_a_checkpoint_that_the_peer_cannot_save_for_now_ends_nothing(database):
    """Its disk may be full, which keeps nobody from pulling; next time there is more to look at."""
    server, error = await run_session(
        database, prepare=refusing("setCheckpoint", "HTTP", 503, "the disk is full")
    )
    assert (error, server.close_code) == (None, 1000)
    assert server.asked.count("setCheckpoint") == 1
    server, error = await run_session(database)
    assert error is None
    assert "proposeChanges" in server.asked
    assert server.kept


@pytest.mark.parametrize("refusal", [("LiteCore", 10), ("LiteCore", 26), ("POSIX", 28)])
async def test_errors_of_couchbase_lites_own_end_it_too(database, refusal):
    server, error = await run_session(database, prepare=refusing("subChanges", *refusal))
    assert (error.status, error.retryable) == (None, False)
    assert server.close_code == 4002


async def test_a_full_database_ends_it(database, monkeypatch):
    async def full(checkpointer):
        raise StoreFullError("the database has reached its size limit")

    monkeypatch.setattr(Checkpointer, "save", full)
    server, error = await run_session(database)
    assert not error.retryable
    assert server.close_code == 4002


# --- What never comes ----------------------------------------------------------------------------


def offering(server):
    """Promise a document, and never send it."""
    server.rows = [[[1, "b", f"{NOW:x}@{'A' * 21}Q"]]]


@pytest.mark.parametrize("row", [[2], [2, "c", "nonsense"], [2, 7, f"{NOW:x}@{'A' * 21}Q"]])
async def test_a_list_that_cannot_be_read_is_not_passed_over(database, autojump_clock, row):
    """A checkpoint of what is offered behind it would cover all that stands in it."""

    def prepare(server):
        offering(server)
        server.rows = [[*server.rows[0], row], [[3, "a", f"{NOW:x}@{'A' * 21}Q"]]]

    server, error = await run_session(database, prepare=prepare, push=False)
    assert (error.status, error.retryable) == (None, False)
    assert not server.kept


@pytest.mark.parametrize("continuous", [False, True])
async def test_a_revision_that_is_promised_and_never_comes_is_not_waited_for(
    database, autojump_clock, continuous
):
    _, error = await run_session(database, prepare=offering, continuous=continuous)
    assert (error.status, error.retryable) == (1006, True)
    assert trio.current_time() <= 1.5 * limits.SILENCE_TIMEOUT_S


async def test_a_peer_that_never_tells_that_it_has_caught_up_is_not_waited_for(
    database, autojump_clock
):
    def prepare(server):
        server.rows = None

    _, error = await run_session(database, prepare=prepare)
    assert error.retryable


@pytest.mark.parametrize("profile", REQUESTS)
async def test_a_peer_that_does_not_answer_is_not_waited_for(database, autojump_clock, profile):
    def prepare(server):
        server.ignored.add(profile)

    _, error = await run_session(database, prepare=prepare)
    assert error.retryable
    assert trio.current_time() <= 1.5 * limits.SILENCE_TIMEOUT_S


# --- Who the peer is -----------------------------------------------------------------------------


async def test_a_peer_is_known_by_its_identity_else_by_its_name(database):
    def anonymous(server):
        server.uuid = None

    server, _ = await run_session(database)
    assert server.called == THEIR_ID
    server, _ = await run_session(database, prepare=anonymous)
    # Not the one that was met there before: what that one has, this one lacks.
    assert server.called == "there"
    assert "rev" in server.asked


async def test_of_peers_without_identity_or_name_none_is_taken_for_another(database):
    ann, bob = {}, {}
    for kept, has_it in ((ann, False), (bob, False), (ann, True), (bob, True)):

        def prepare(server, kept=kept):
            server.uuid, server.kept = None, kept

        server, error = await run_session(database, prepare=prepare, target=None)
        assert error is None
        assert server.called is None
        assert ("rev" not in server.asked) == has_it


async def test_a_peer_without_a_name_is_known_by_its_identity(database):
    kept = {}

    def prepare(server):
        server.kept = kept

    for asked in (True, False):
        server, error = await run_session(database, prepare=prepare, target=None)
        assert (error, server.called) == (None, THEIR_ID)
        assert ("rev" in server.asked) == asked


async def test_a_peer_may_be_refused_once_it_is_known(database):
    def refuse(peer_key):
        raise ConfigurationError("one is enough")

    server, error = await run_session(database, on_peer=refuse)
    assert "one is enough" in str(error)
    assert server.asked == ["getCollections"]
    assert server.close_code == 1000
