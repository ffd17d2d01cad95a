"""Our passive peer, told what the recorded active peers said, answers as the recorded one did.

The conversations of the peer S build on each other, so each function here plays the one before it
first, and does to S what was done between the two.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p.blip import Message
from trio_p2p.errors import ConnectionLostError, PeerError
from trio_p2p.peer import Peer
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.store import checkpoints
from trio_p2p.store.database import Database
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.transcripts import (
    Names,
    RecordedClock,
    Spoken,
    altered,
    error_message,
    read_transcript,
    recorded_blob,
    with_version_vectors,
    without_deltas,
)
from trio_p2p.transport.memory import memory_transport_pair

TRANSCRIPTS = Path(__file__).parents[1] / "vectors" / "transcripts"
SOURCE_OF_S = "B6XBa838QXavYMIYOZYcpw"


@dataclass
class Side:
    """Our passive peer, in the place of the recorded one."""

    database: Database
    clock: RecordedClock
    names: Names

    async def edit(self, time, document_id, body):
        await self.clock.edit(self.database.default_collection, time, document_id, body)

    async def edit_as_recorded(self, script, said):
        """Make the edits that the recorded passive peer is about to offer and will send."""
        if said.by_client or said.is_reply or said.profile != "changes":
            return
        sent = [s.message for s in script if s.profile == "rev" and not (s.by_client or s.is_reply)]
        bodies = {message.properties["rev"]: json.loads(message.body) for message in sent}
        for _, document_id, rev, *_ in json.loads(said.message.body):
            if rev in bodies:
                await self.edit(int(rev.split("@")[0], 16), document_id, bodies[rev])
                await wait_all_tasks_blocked()


@pytest.fixture
async def s(tmp_path):
    clock = RecordedClock()
    async with open_test_database(tmp_path / "s", clock=clock) as database:
        yield Side(database, clock, Names({database.source_id: SOURCE_OF_S}))


class RecordedClient:
    """Says what the recorded active peer said, and notes what the other side says."""

    def __init__(self, transport, script, names):
        self.heard = []
        self._transport = transport
        self._script = script
        self._names = names
        self._peer = Peer(transport)
        self._asked = {s.number: s for s in script if not s.by_client and not s.is_reply}
        self._unanswered = {}

    async def listen(self):
        with suppress(ConnectionLostError):
            await self._peer.run(self._on_request)

    async def speak(self, meanwhile):
        """Say everything, each once the other side has done all it can about the one before.

        `meanwhile` is called with the script and each message of it, before that is said.
        """
        for said in self._script:
            await meanwhile(self._script, said)
            if said.by_client:
                self._say(said)
                await wait_all_tasks_blocked()
        await self._transport.aclose()

    def _say(self, said):
        message = self._names.to_ours(said.message)
        if not said.is_reply:
            self._peer.send(message, lambda reply: self._on_reply(said, reply))
            return
        # The numbers of requests may differ: the reply goes to the one that says the same. If it
        # never came, the comparison tells.
        number = self._unanswered.pop(self._asked[said.number].line, None)
        if number is not None:
            self._peer.reply(number, message)

    def _on_request(self, number, message):
        asked = self._note(False, number, message.properties["Profile"], message)
        if not message.no_reply:
            self._unanswered[asked.line] = number

    def _on_reply(self, said, reply):
        if isinstance(reply, PeerError):
            reply = error_message(reply)
        if isinstance(reply, Message):
            self._note(True, said.number, said.profile, reply)

    def _note(self, is_reply, number, profile, message):
        spoken = Spoken(False, is_reply, number, profile, self._names.to_recorded(message))
        self.heard.append(spoken)
        return spoken


async def nothing(script, said):
    await trio.lowlevel.checkpoint()


async def replay(side, script, meanwhile=nothing):
    """Serve one recorded connection; returns what we said and what the recorded peer said."""
    transport, far_end = memory_transport_pair()
    session = PassiveSession(transport, side.database.collections(), Journal(), deltas=True)
    client = RecordedClient(far_end, script, side.names)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        nursery.start_soon(client.listen)
        await client.speak(meanwhile)
    return client.heard, [said for said in script if not said.by_client]


async def converse(side, name, adapt=lambda scripts: scripts):
    for script in adapt(read_transcript(TRANSCRIPTS / f"{name}.jsonl")):
        ours, recorded = await replay(side, script)
        assert sorted(said.line for said in ours) == sorted(said.line for said in recorded)


async def converse_live(side, name, adapt=lambda script: script):
    """A continuous conversation; how often we say that we have caught up is our own business."""
    (script,) = read_transcript(TRANSCRIPTS / f"{name}.jsonl")
    said_by_each = await replay(side, adapt(script), side.edit_as_recorded)
    ours, recorded = (sorted(s.line for s in said if not s.is_caught_up) for said in said_by_each)
    assert ours == recorded


# --- The conversations of S -----------------------------------------------------------------------


async def push5(s):
    await converse(s, "push5-vv")


async def pull5(s):
    await push5(s)
    await converse(s, "pull5-vv")


async def noop(s):
    await pull5(s)
    await converse(s, "noop-vv")


async def push_update_delete(s):
    await noop(s)
    await converse(s, "push-update-delete-vv")


async def pull_update_delete(s):
    await push_update_delete(s)
    await s.edit(0x18EA7BF708E20000, "doc3", {"type": "note", "n": 3, "text": "edited by S"})
    await s.edit(0x18EA7BF709A60000, "doc4", None)
    await converse(s, "pull-update-delete-vv")


async def blobs(s):
    await pull_update_delete(s)
    await converse(s, "push-blob-vv")
    (script,) = read_transcript(TRANSCRIPTS / "pull-blob-vv.jsonl")
    await s.database.save_blob(recorded_blob(script))
    for said in script:
        await s.edit_as_recorded(script, said)
    await converse(s, "pull-blob-vv")


async def conflict(s):
    await blobs(s)
    await s.edit(0x18EA7BF806940000, "doc5", {"who": "S"})
    await converse(s, "conflict-vv")


async def conflict_remote_wins(s):
    await conflict(s)
    await s.edit(0x18EA7BF8B1F20001, "doc5", {"who": "S2"})
    await converse(s, "conflict-remote-wins-vv")


async def between(s):
    """Of what was not recorded, doc3 being settled, both sides remember this."""
    await s.edit(0x18EA7BF9A0000000, "doc3", {})
    client, body = "cp-+x5+wkpqluI9gMz1qU/XHdPJGOU=", b'{"local":18,"remote":15}'
    for n in range(16, 20):
        await s.database.engine.write(
            lambda txn, n=n: checkpoints.set_peer(txn, client, f"{n}-cc", body)
        )


async def delta(s):
    await conflict_remote_wins(s)
    await between(s)
    await converse(s, "delta-vv", adapt=lambda scripts: scripts[:3])
    *_, pulling = without_deltas(read_transcript(TRANSCRIPTS / "delta-vv.jsonl"))
    (edited,) = (said for said in pulling if said.profile == "rev" and not said.is_reply)
    await s.edit(0x18EA7BFA42EE0000, "big0000000", json.loads(edited.message.body))
    await converse(s, "delta-vv", adapt=lambda scripts: scripts[3:])


def with_echoes(script):
    """As if the recorded peer had offered at once, as ours does, what it had just been sent.

    It keeps it for the next connection, where the checkpoint then is behind.
    """
    sequences = iter(range(20, 30))
    told = []
    for said in script:
        told.append(said)
        if said.profile == "rev" and said.is_reply:
            sent = next(s.message for s in script if s.by_client and s.number == said.number)
            sequence = next(sequences)
            row = [sequence, sent.properties["id"], sent.properties["rev"], 0, 0]
            properties = {"Profile": "changes", "collection": "0"}
            offer = Message(properties, json.dumps([row]).encode(), urgent=True, compressed=True)
            # In the recording, no request has such a number.
            told.append(Spoken(False, False, 1_000 + sequence, "changes", offer))
            told.append(Spoken(True, True, 1_000 + sequence, "changes", Message({}, b"[]")))
    return told


async def continuous(s):
    await delta(s)
    await converse_live(s, "continuous-vv", adapt=with_echoes)


async def continuous_pull_live(s):
    await continuous(s)
    await converse_live(s, "continuous-pull-live-vv")


async def pull_docids(s):
    await continuous_pull_live(s)
    await converse(s, "pull-docids-vv")


async def test_push5_five_documents_are_taken(s):
    await push5(s)
    assert s.database.default_collection.count == 5


async def test_pull5_five_documents_are_offered_and_sent(s):
    await pull5(s)


async def test_noop_nothing_is_offered_nor_taken(s):
    await noop(s)


async def test_push_update_delete_an_edit_and_a_deletion_are_taken(s):
    await push_update_delete(s)
    assert s.database.default_collection.get("doc1")["text"] == "edited by B twice"
    assert s.database.default_collection.get("doc2") is None


async def test_pull_update_delete_an_edit_and_a_deletion_are_sent(s):
    await pull_update_delete(s)


@pytest.mark.behaviour("S5", "C2")
async def test_conflict_the_proposal_is_refused_and_the_merge_taken(s):
    await conflict(s)
    assert s.database.default_collection.get("doc5").body == {"who": "B", "merged": True}


async def test_conflict_remote_wins_the_proposal_is_refused_and_our_revision_sent(s):
    await conflict_remote_wins(s)


async def test_delta_each_edit_of_a_large_document_is_taken_and_one_sent(s):
    await delta(s)


async def test_continuous_each_edit_is_taken_while_connected(s):
    await continuous(s)
    assert s.database.default_collection.get("w2")["name"] == "Bob Anderson"


async def test_continuous_pull_live_each_edit_is_offered_and_sent_while_connected(s):
    await continuous_pull_live(s)


@pytest.mark.behaviour("S3b")
async def test_pull_docids_only_the_documents_asked_for_are_offered(s):
    await pull_docids(s)


async def test_already_have_documents_are_sent_once_and_not_wanted_back(s):
    await pull_docids(s)
    await converse(s, "already-have-vv")


# --- Other conversations --------------------------------------------------------------------------


async def test_collections_two_collections_are_served_at_once(s):
    await s.database.create_collection("inventory.hotels")
    await s.database.create_collection("inventory.airports")
    await converse(s, "collections-vv")
    hotels = s.database.collection("inventory.hotels")
    assert hotels.get("h1").body == {"in": "inventory.hotels"}


@pytest.mark.behaviour("K7a")
async def test_collections_missing_the_unknown_one_is_named_as_such(s):
    await s.database.create_collection("inventory.hotels")
    await s.database.create_collection("inventory.airports")
    await converse(s, "collections-missing-vv")


async def test_mixed_revtree_to_vv_documents_with_tree_revisions_are_taken(s):
    await converse(s, "mixed-revtree-to-vv")
    assert s.database.default_collection.count == 5


@pytest.mark.behaviour("O10")
async def test_v32_to_v32_default_a_session_that_names_no_collection_is_about_the_default_one(s):
    await converse(s, "v32-to-v32-default", adapt=with_version_vectors)
    assert s.database.default_collection.get("d1").body == {"edit": 1}


# --- The comparison itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pull5-vv", {"profile": "rev", "is_reply": False, "properties": {"sequence": "9"}}),
        ("pull5-vv", {"profile": "changes", "is_reply": False, "body": b"[]"}),
        ("pull5-vv", {"profile": "rev", "is_reply": False, "body": b"{}"}),
        ("pull5-vv", {"profile": "getCollections", "is_reply": True, "body": b"[null]"}),
        ("push5-vv", {"profile": "proposeChanges", "is_reply": True, "body": b"[304]"}),
        ("push5-vv", {"profile": "setCheckpoint", "is_reply": True, "properties": {"rev": "2-cc"}}),
        ("push5-vv", {"profile": "rev", "is_reply": True, "properties": {"noop": "true"}}),
    ],
)
async def test_a_recording_that_was_tampered_with_is_noticed(s, name, change):
    if name == "pull5-vv":
        await push5(s)
    with pytest.raises(AssertionError):
        await converse(s, name, adapt=lambda scripts: altered(scripts, by_client=False, **change))


async def test_an_answer_that_never_comes_is_noticed(s):
    def twice(scripts):
        return [[*script, script[1]] for script in scripts]

    with pytest.raises(AssertionError):
        await converse(s, "push5-vv", adapt=twice)
