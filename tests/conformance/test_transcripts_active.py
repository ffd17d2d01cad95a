"""Our active peer, answered as the recorded one was, says what the recorded one said.

The conversations of the peer B build on each other, so each function here plays the one before it
first, and does to B what was done between the two.

By design ours differs in when and how often it saves checkpoints, so only the last one of each
conversation is compared; and a document refused with 409 stays pending instead of counting as done.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import trio

from trio_p2p.blip import Message
from trio_p2p.blip.connection import ERROR_CODE, ERROR_DOMAIN
from trio_p2p.errors import ConnectionLostError, ReplicationError
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import default_conflict_resolver
from trio_p2p.model.document import Revision
from trio_p2p.model.version import TreeRevisionID
from trio_p2p.peer import Peer
from trio_p2p.replication.checkpoint import checkpoint_id
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.session import ActiveSession, CollectionPlan, NamingRefusedError, Plan
from trio_p2p.replicator import Replicator, ReplicatorConfiguration, ReplicatorType
from trio_p2p.store import checkpoints, documents
from trio_p2p.store.database import Database
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.transcripts import (
    Names,
    RecordedClock,
    Spoken,
    altered,
    read_transcript,
    recorded_blob,
    with_version_vectors,
    without_deltas,
)
from trio_p2p.transport.memory import memory_transport_pair

TRANSCRIPTS = Path(__file__).parents[1] / "vectors" / "transcripts"
SOURCE_OF_A = "2AmZV1lLSUKyMsEoX6D5rQ"
SOURCE_OF_B = "gcvkVG4uQDWOrahV9BElPg"
SOURCE_OF_C = "kCqeA25QSK2kRQzy2huq0A"
# Requests of the passive peer, by what brings them about: a request, or a reply of ours.
PROVOKED = {
    ("subChanges", False): "changes",
    ("changes", True): "rev",
    ("rev", False): "getAttachment",
}
# Of the mocked clock, so they pass at once.
QUIET_S = 10
STALL_S = 60


@dataclass
class Side:
    """Our active peer, in the place of a recorded one."""

    database: Database
    clock: RecordedClock
    names: Names

    async def edit(self, time, document_id, body, collection="_default"):
        await self.clock.edit(self.database.collection(collection), time, document_id, body)

    async def edit_as_recorded(self, script):
        """Make the edits that the recorded active peer sent in a connection, one by one."""
        for said in script:
            if said.profile == "rev" and said.by_client and not said.is_reply:
                time, _ = said.message.properties["rev"].split("@")
                await self.edit(int(time, 16), said.message.properties["id"], _json(said.message))
                await trio.sleep(1)

    def plan(
        self,
        collections=("_default",),
        *,
        target="s",
        resolver=default_conflict_resolver,
        document_ids=None,
        **directions,
    ):
        parts = tuple(
            CollectionPlan(self.database.collection(name), resolver, document_ids)
            for name in collections
        )
        return Plan(target, parts, **({"deltas": True} | directions))


@pytest.fixture
async def open_side(tmp_path, autojump_clock):
    """Opens our peer in the place of the one that wrote with this source ID."""
    clock = RecordedClock()
    async with open_test_database(tmp_path / "active", clock=clock) as database:
        yield lambda source: Side(database, clock, Names({database.source_id: source}))


@pytest.fixture
def b(open_side):
    return open_side(SOURCE_OF_B)


class RecordedServer:
    """Answers as the recorded passive peer did, and notes what the other side says.

    Requests are matched by kind and, within a kind, by their order. Checkpoints alone are kept as
    the recorded peer kept them, since ours come in other numbers.
    """

    def __init__(self, transport, script, names, kept=()):
        """`kept`: what was saved here in earlier connections."""
        self.heard = []
        self.checkpoints = dict(kept)
        self.close_code = None
        self._peer = Peer(transport)
        self._names = names
        self._script = script
        self._held = {}
        self._unheard = [s for s in script if s.by_client and not s.is_reply]
        self._replies = {s.number: s for s in script if not s.by_client and s.is_reply}
        self._unsaid = [s for s in script if not s.by_client and not s.is_reply]

    @property
    def recorded(self):
        """What the recorded active peer said, checkpoints aside."""
        return [s for s in self._script if s.by_client and s.profile != "setCheckpoint"]

    async def run(self):
        try:
            await self._peer.run(self._on_request)
        except ConnectionLostError as exc:
            self.close_code = exc.code

    def _on_request(self, number, message):
        profile = message.properties["Profile"]
        asked = self._take_recorded(message)
        if asked is not None:
            self._learn_checkpoints(message, asked)
        message = self._names.to_recorded(message)
        if profile == "setCheckpoint":
            self._set_checkpoint(number, message)
            return
        said = Spoken(True, False, number, profile, message)
        self.heard.append(said)
        if asked is None:
            self._peer.refuse(number, "BLIP", 404, "this was not asked in the recording")
            return
        if message.no_reply:
            return
        reply = partial(self._reply, number, self._replies[asked.number].message)
        if profile != "rev":
            reply()
            self._provoke(said)
        elif not self._provoke(said, then=reply):
            reply()  # Otherwise once its blob is there.

    def _reply(self, number, recorded):
        properties = recorded.properties
        if ERROR_CODE in properties:
            self._peer.refuse(number, properties[ERROR_DOMAIN], int(properties[ERROR_CODE]))
        else:
            self._peer.reply(number, self._names.to_ours(self._with_kept(recorded)))

    def _with_kept(self, recorded):
        """A reply to getCollections gives back what we saved, under the recorded revisions."""
        if not recorded.body.startswith(b"[{") or not self.checkpoints:
            return recorded
        held = [
            checkpoint | self.checkpoints.get(client, {})
            for client, checkpoint in zip(self._held, _json(recorded), strict=True)
        ]
        return replace(recorded, body=json.dumps(held).encode())

    def _take_recorded(self, message):
        """The recorded request that this one is, or None."""
        for said in self._unheard:
            is_same_kind = all(
                said.message.properties.get(key) == message.properties.get(key)
                for key in ("Profile", "collection")
            )
            if is_same_kind and said.message.no_reply == message.no_reply:
                self._unheard.remove(said)
                return said
        return None

    def _learn_checkpoints(self, message, asked):
        """Note which checkpoints are asked for, and their revisions."""
        if asked.profile == "getCheckpoint":
            client = asked.message.properties["client"]
            self._names.learn([message.properties["client"]], [client])
            self._held = {client: self._replies[asked.number].message.properties.get("rev", "")}
        elif asked.profile == "getCollections":
            recorded = _checkpoint_ids(asked.message)
            self._names.learn(_checkpoint_ids(message), recorded)
            held = _json(self._replies[asked.number].message)
            self._held = {
                client: checkpoint.get("rev", "")
                for client, checkpoint in zip(recorded, held, strict=True)
                if checkpoint is not None
            }

    def _set_checkpoint(self, number, message):
        client, revision = message.properties["client"], message.properties["rev"]
        if revision != self._held[client]:
            self._peer.refuse(number, "HTTP", 409, "revision mismatch")
            return
        generation = int(revision.partition("-")[0] or 0) + 1
        self._held[client] = f"{generation}-cc"
        self.checkpoints[client] = _contents(message)
        self._peer.reply(number, Message({"rev": self._held[client]}))

    def _provoke(self, said, then=lambda: None):
        """Say what the recorded peer said because of this; `then` follows on a reply to it."""
        profile = PROVOKED.get((said.profile, said.is_reply))
        collection = said.message.properties.get("collection")
        provoked = False
        for mine in list(self._unsaid):
            properties = mine.message.properties
            if properties["Profile"] == profile and properties.get("collection") == collection:
                self._unsaid.remove(mine)
                self._say(mine, then)
                provoked = True
        return provoked

    def _say(self, mine, then):
        def on_reply(reply):
            if isinstance(reply, Message):
                message = self._names.to_recorded(reply)
                self.heard.append(Spoken(True, True, mine.number, mine.profile, message))
                where = {k: v for k, v in mine.message.properties.items() if k == "collection"}
                here = replace(message, properties={**message.properties, **where})
                self._provoke(Spoken(True, True, mine.number, mine.profile, here))
                then()

        no_reply = mine.message.no_reply
        self._peer.send(self._names.to_ours(mine.message), None if no_reply else on_reply)


def _json(message):
    return json.loads(message.body)


def _checkpoint_ids(message):
    return _json(message)["checkpoint_ids"]


def _contents(message):
    """What a checkpoint says; the time is for people."""
    return {key: value for key, value in _json(message).items() if key != "time"}


async def nothing(script):
    await trio.lowlevel.checkpoint()


async def replay(side, script, plan, meanwhile=nothing, kept=()):
    """Replicate as planned with the recorded peer; returns that peer and how it ended for us.

    A continuous replication is stopped once there is nothing left to say after `meanwhile`.
    """
    transport, far_end = memory_transport_pair()
    server = RecordedServer(far_end, script, side.names, kept)
    session = ActiveSession(
        transport,
        plan,
        Journal(),
        on_activity=lambda busy: None,
        on_healthy=lambda: None,
        now_s=lambda: 1795383697,
    )
    failure = None

    async def stop():
        await meanwhile(script)
        await trio.sleep(QUIET_S)
        session.request_stop()

    with trio.fail_after(STALL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            if plan.continuous:
                nursery.start_soon(stop)
            try:
                await session.run()
            except ReplicationError as exc:
                failure = exc
    return server, failure


def lines(said, plan):
    """What is compared of what was said."""
    return sorted(s.line for s in said if not (plan.continuous and s.is_caught_up))


async def converse(
    side, name, *plans, adapt=lambda scripts: scripts, before=nothing, meanwhile=nothing
):
    """Replay a recording, a plan for each of its connections, and compare what we said."""
    scripts = adapt(read_transcript(TRANSCRIPTS / f"{name}.jsonl"))
    saved = {}
    for script, plan in zip(scripts, plans, strict=True):
        await before(script)
        server, failure = await replay(side, script, plan, meanwhile, saved)
        assert lines(server.heard, plan) == lines(server.recorded, plan)
        assert failure is None
        assert server.close_code == 1000
        saved |= server.checkpoints
    assert saved == last_checkpoints(scripts)


def last_checkpoints(scripts):
    """What the recorded active peer saved last, for each checkpoint."""
    return {
        said.message.properties["client"]: _contents(said.message)
        for script in scripts
        for said in script
        if said.profile == "setCheckpoint" and said.by_client
    }


# --- The conversations of B -----------------------------------------------------------------------


async def pull5(b):
    await converse(b, "pull5-vv", b.plan(push=False))


async def noop(b):
    await pull5(b)
    await converse(b, "noop-vv", b.plan(push=False), b.plan(pull=False))


async def push_update_delete(b):
    await noop(b)
    await b.edit(0x18EA7BF6B5050000, "doc1", {"type": "note", "n": 1, "text": "edited by B"})
    await b.edit(0x18EA7BF6B5050001, "doc1", {"type": "note", "n": 1, "text": "edited by B twice"})
    await b.edit(0x18EA7BF6B6000000, "doc2", None)
    await converse(b, "push-update-delete-vv", b.plan(pull=False))


async def pull_update_delete(b):
    await push_update_delete(b)
    await converse(b, "pull-update-delete-vv", b.plan(push=False))


async def blobs(b):
    await pull_update_delete(b)
    (script,) = read_transcript(TRANSCRIPTS / "push-blob-vv.jsonl")
    await b.database.save_blob(recorded_blob(script))
    await b.edit_as_recorded(script)
    await converse(b, "push-blob-vv", b.plan(pull=False))
    await converse(b, "pull-blob-vv", b.plan(push=False))


def refuse_to_resolve(conflict):
    raise LookupError("nobody is here to decide")


def merge_as_recorded(conflict):
    assert [conflict.local.body, conflict.remote.body] == [{"who": "B"}, {"who": "S"}]
    return {"who": "B", "merged": True}


def proposing_again(scripts):
    """In the second connection, ours proposes what was refused in the first; so it is again."""
    first, second, third = scripts
    proposed, refused = (
        next(s for s in first if (s.profile, s.is_reply) == ("proposeChanges", is_reply))
        for is_reply in (False, True)
    )
    at = next(i for i, s in enumerate(second) if s.profile == "proposeChanges")
    number = second[at].number
    again = [replace(proposed, number=number), replace(refused, number=number)]
    return [first, [*second[:at], *again, *second[at + 1 :]], third]


async def conflict(b):
    """The conflict is left alone in the second connection, and merged in the third."""
    await blobs(b)
    await b.edit(0x18EA7BF805E80000, "doc5", {"who": "B"})
    await b.clock.make_next(b.database.engine, 0x18EA7BF872EF0001)
    await converse(
        b,
        "conflict-vv",
        b.plan(pull=False),
        b.plan(resolver=refuse_to_resolve),
        b.plan(resolver=merge_as_recorded),
        adapt=proposing_again,
    )


async def conflict_remote_wins(b):
    await conflict(b)
    await b.edit(0x18EA7BF8B0DC0001, "doc5", {"who": "B2"})
    plan = b.plan(resolver=lambda conflict: conflict.remote)
    await converse(b, "conflict-remote-wins-vv", plan, plan)


async def between(b):
    """Of what was not recorded, doc3 being settled, both sides remember this."""
    await b.edit(0x18EA7BF9A0000000, "doc3", {})
    await b.edit(0x18EA7BF9A0000001, "doc3", None)
    engine = b.database.engine
    client = checkpoint_id(engine.id, "s", "_default", None)
    await engine.write(lambda txn: checkpoints.set_local(txn, client, b'{"local":18,"remote":15}'))


async def delta(b):
    """The conversation about deltas; the third edit was pushed without one."""
    await conflict_remote_wins(b)
    await between(b)
    edits = iter(without_deltas(read_transcript(TRANSCRIPTS / "delta-vv.jsonl")))

    async def edit(_):
        await b.edit_as_recorded(next(edits))

    push, pull = b.plan(pull=False), b.plan(push=False)
    await converse(b, "delta-vv", push, push, replace(push, deltas=False), pull, before=edit)


async def continuous(b):
    await delta(b)
    plan = b.plan(continuous=True)
    await converse(b, "continuous-vv", plan, meanwhile=b.edit_as_recorded)


async def continuous_pull_live(b):
    await continuous(b)
    await converse(b, "continuous-pull-live-vv", b.plan(push=False, continuous=True))


async def test_pull5_five_documents_are_pulled_into_an_empty_database(b):
    await pull5(b)
    assert b.database.default_collection.count == 5


async def test_noop_nothing_is_pulled_nor_pushed(b):
    await noop(b)


@pytest.mark.behaviour("P5", "P6")
async def test_push_update_delete_an_edit_and_a_deletion_are_pushed(b):
    await push_update_delete(b)


async def test_pull_update_delete_an_edit_and_a_deletion_are_pulled(b):
    await pull_update_delete(b)
    assert b.database.default_collection.get("doc3")["text"] == "edited by S"
    assert b.database.default_collection.get("doc4") is None


@pytest.mark.behaviour("C3", "C14b")
async def test_conflict_after_a_409_the_merge_of_both_is_pushed(b):
    await conflict(b)
    assert b.database.default_collection.get("doc5").body == {"who": "B", "merged": True}


@pytest.mark.behaviour("C6")
async def test_conflict_remote_wins_nothing_is_pushed_when_the_remote_revision_is_kept(b):
    await conflict_remote_wins(b)
    assert b.database.default_collection.get("doc5").body == {"who": "S2"}


async def test_delta_each_edit_of_a_large_document_is_pushed_and_one_pulled(b, autojump_clock):
    await delta(b)
    assert b.database.default_collection.get("big0000000")["counter"] == 3


@pytest.mark.behaviour("P19a")
async def test_continuous_each_edit_is_pushed_while_connected(b, autojump_clock):
    await continuous(b)


async def test_continuous_pull_live_each_edit_of_the_peer_is_pulled_while_connected(
    b, autojump_clock
):
    await continuous_pull_live(b)
    found = [b.database.default_collection.get(name)["name"] for name in ("s0", "s1", "s2")]
    assert found == ["Dmitri Anderson", "Grace Clark", "Bob Anderson"]


# --- The conversations of others ------------------------------------------------------------------


def note(n):
    text = f"hello {n}"
    return {"type": "note", "n": n, "text": text, "nested": {"a": [1, 2.5, True, None]}}


async def push5(open_side, **options):
    a = open_side(SOURCE_OF_A)
    times = (
        0x18EA7BF5A0EA0000,
        0x18EA7BF5A2100000,
        0x18EA7BF5A3040000,
        0x18EA7BF5A3F80000,
        0x18EA7BF5A4F60000,
    )
    for n, time in enumerate(times, 1):
        await a.edit(time, f"doc{n}", note(n))
    await converse(a, "push5-vv", a.plan(pull=False), **options)


async def test_push5_five_documents_are_pushed(open_side):
    await push5(open_side)


@pytest.mark.behaviour("P21")
async def test_pull_docids_two_documents_are_pulled_by_id(open_side):
    e = open_side("nothing is written here")
    plan = e.plan(push=False, document_ids=("doc1", "doc5"))
    await converse(e, "pull-docids-vv", plan)
    assert e.database.default_collection.get("doc5").body == {"who": "S2"}
    assert e.database.default_collection.count == 2


@pytest.mark.behaviour("U4", "P14", "P12")
async def test_already_have_nothing_is_sent_again_to_a_peer_met_anew_nor_after_a_reset(open_side):
    g = open_side("nothing is written here")
    await converse(
        g,
        "already-have-vv",
        g.plan(push=False, document_ids=("doc1", "doc5")),
        g.plan(pull=False, target="s under another identity"),
        g.plan(push=False, document_ids=("doc1", "doc5"), reset_checkpoint=True),
    )


async def create_collections(c, *names):
    for name in names:
        await c.database.create_collection(name)


@pytest.mark.behaviour("K3")
async def test_collections_two_collections_are_replicated_at_once(open_side):
    c = open_side(SOURCE_OF_C)
    names = ("inventory.hotels", "inventory.airports")
    await create_collections(c, *names)
    for name, time in zip(names, (0x18EA7BFA6D6D0000, 0x18EA7BFA6E580000), strict=True):
        await c.edit(time, "h1", {"in": name}, collection=name)
    await converse(c, "collections-vv", c.plan(names))


@pytest.mark.behaviour("K2")
async def test_collections_missing_the_session_ends_when_the_peer_lacks_one(open_side):
    c = open_side(SOURCE_OF_C)
    names = ("inventory.hotels", "inventory.nosuch")
    await create_collections(c, *names)
    (script,) = read_transcript(TRANSCRIPTS / "collections-missing-vv.jsonl")
    server, failure = await replay(c, script, c.plan(names))
    assert lines(server.heard, c.plan(names)) == lines(server.recorded, c.plan(names))
    assert failure.status == 404
    assert not failure.retryable
    assert server.close_code == 1000


async def put_trees(side, revisions):
    """Put documents that bear tree revision IDs, newest first, as if written by version 3."""
    collection = side.database.default_collection

    def store(txn):
        for document_id, (texts, body) in revisions.items():
            trees = tuple(TreeRevisionID.parse(text) for text in texts)
            revision = Revision.from_tree(trees, encode_body(body), deleted=False)
            documents.put_revision(txn, collection.number, document_id, revision)

    await side.database.engine.write(store)


async def test_mixed_revtree_to_vv_documents_with_tree_revisions_are_pushed(open_side):
    a = open_side("nothing is written here")
    revisions = (
        "1-2e3b8835879a48b406856e6ddb3691754efb5364",
        "1-30aad1274b311514eabc9f2613ebddb378b396d8",
        "1-f0196fcef6cf702905ccaf46e3bb07e75b07ffcd",
        "1-81934956ca1118f36753fca1893ee8a424f3c320",
        "1-ec019262c86295924ccd8e10906a67462a461e0b",
    )
    await put_trees(a, {f"doc{n}": ([text], note(n)) for n, text in enumerate(revisions, 1)})
    await converse(a, "mixed-revtree-to-vv", a.plan(pull=False))


D1 = "1-c77600c949f23888e611671dce26c0edacecf7d7"
D1_EDITED = "2-fe25bbb18152063dbb30ccfbc3fc3196e36cf3eb"
D2 = "1-b2d8f7810d3a291fc7766d908a5a85240d7ed377"


@pytest.mark.behaviour("O10")
async def test_v32_to_v32_default_a_session_that_names_no_collection_replicates_the_default_one(
    open_side,
):
    """The first connection is of one peer, the other two of another."""
    scripts = with_version_vectors(read_transcript(TRANSCRIPTS / "v32-to-v32-default.jsonl"))
    a = open_side("nothing is written here")
    await put_trees(a, {"d1": ([D1], {"v": "3.2", "n": 1}), "d2": ([D2], {"v": "3.2", "n": 2})})
    plan = a.plan(pull=False, names_collections=False)
    await converse(a, "v32-to-v32-default", plan, adapt=lambda _: scripts[:1])


async def test_v32_to_v32_default_a_session_that_names_no_collection_pulls_and_pushes(open_side):
    """The first connection is of one peer, the other two of another."""
    _, *scripts = with_version_vectors(read_transcript(TRANSCRIPTS / "v32-to-v32-default.jsonl"))
    b = open_side("nothing is written here")
    pull = b.plan(push=False, names_collections=False)
    await converse(b, "v32-to-v32-default", pull, adapt=lambda _: scripts[:1])
    await put_trees(b, {"d1": ([D1_EDITED, D1], {"edit": 1})})
    both = b.plan(names_collections=False)
    await converse(b, "v32-to-v32-default", both, adapt=lambda _: scripts[1:])


async def test_v41_to_v32_default_a_peer_that_knows_no_collections_is_told_apart(open_side):
    a = open_side("nothing is written here")
    tree = "1-76596c99bc731ad3cdfc8f67931e0ab3137d5ee0"
    await put_trees(a, {name: ([tree], {"v": "4.1"}) for name in ("e1", "e2")})
    (script,) = read_transcript(TRANSCRIPTS / "v41-to-v32-default.jsonl")
    plan = a.plan(pull=False)
    server, failure = await replay(a, script, plan)
    assert lines(server.heard, plan) == lines(server.recorded, plan)
    assert isinstance(failure, NamingRefusedError)
    assert server.close_code == 4002


class RecordedServers:
    """Recorded passive peers behind one address: each connection meets the next one."""

    def __init__(self, side, scripts, nursery):
        self.met = []
        self._side = side
        self._scripts = iter(scripts)
        self._nursery = nursery

    async def connect(self):
        await trio.lowlevel.checkpoint()
        transport, far_end = memory_transport_pair()
        server = RecordedServer(far_end, next(self._scripts), self._side.names)
        self.met.append(server)
        self._nursery.start_soon(server.run)
        return transport


@pytest.fixture
def push(nursery):
    """Runs a replicator that pushes to these recorded peers, one at each connection."""

    async def push(side, scripts, **collections):
        servers = RecordedServers(side, scripts, nursery)
        config = ReplicatorConfiguration(
            target=servers.connect,
            target_id="s",
            collections=collections.get("collections", [side.database.default_collection]),
            replicator_type=ReplicatorType.PUSH,
        )
        replicator = Replicator(config)
        await replicator.run()
        return replicator, servers.met

    return push


def read_one(name):
    return read_transcript(TRANSCRIPTS / f"{name}.jsonl")[0]


@pytest.mark.behaviour("O10")
async def test_a_replicator_that_is_refused_for_naming_collections_starts_again_without(
    open_side, push, autojump_clock
):
    a = open_side("nothing is written here")
    await put_trees(a, {"d1": ([D1], {"v": "3.2", "n": 1}), "d2": ([D2], {"v": "3.2", "n": 2})})
    refusing = read_one("v41-to-v32-default")
    (taking,) = with_version_vectors([read_one("v32-to-v32-default")])
    before = trio.current_time()
    replicator, (_, second) = await push(a, [refusing, taking])
    assert trio.current_time() - before < 2
    assert replicator.status.error is None
    assert replicator.statistics().documents_pushed == 2
    plan = a.plan()
    assert lines(second.heard, plan) == lines(second.recorded, plan)


@pytest.mark.behaviour("O10")
async def test_a_replicator_that_is_refused_both_ways_ends_with_the_last_refusal(open_side, push):
    a = open_side("nothing is written here")
    await put_trees(a, {"d1": ([D1], {"v": "3.2", "n": 1})})
    scripts = [read_one("v41-to-v32-default"), read_one("v32-to-v41-default")]
    replicator, met = await push(a, scripts)
    assert [server.close_code for server in met] == [4002, 4002]
    assert replicator.status.error.status == 400


async def test_a_replicator_of_a_named_collection_has_no_other_way(open_side, push):
    a = open_side("nothing is written here")
    shop = await a.database.create_collection("shop")
    await shop.put("d1", {})
    replicator, met = await push(a, [read_one("v41-to-v32-default")], collections=[shop])
    assert len(met) == 1
    assert replicator.status.error.status == 400


# --- The comparison itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "subChanges", "is_reply": False, "properties": {"batch": "100"}},
        {"profile": "changes", "is_reply": True, "body": b"[[],[],[],[]]"},
        {"profile": "rev", "is_reply": True, "properties": {"noop": "true"}},
        {"profile": "setCheckpoint", "is_reply": False, "body": b'{"remote":4}'},
    ],
)
async def test_a_recorded_pull_that_was_tampered_with_is_noticed(b, change):
    with pytest.raises(AssertionError):
        await converse(
            b,
            "pull5-vv",
            b.plan(push=False),
            adapt=lambda scripts: altered(scripts, by_client=True, **change),
        )


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "proposeChanges", "is_reply": False, "body": b"[]"},
        {"profile": "rev", "is_reply": False, "properties": {"sequence": "9"}},
        {"profile": "rev", "is_reply": False, "body": b"{}"},
    ],
)
async def test_a_recorded_push_that_was_tampered_with_is_noticed(open_side, change):
    with pytest.raises(AssertionError):
        await push5(open_side, adapt=lambda scripts: altered(scripts, by_client=True, **change))


async def test_a_message_that_the_recording_lacks_is_noticed(open_side):
    def without_revisions(scripts):
        return [[said for said in script if said.profile != "rev"] for script in scripts]

    with pytest.raises(AssertionError):
        await push5(open_side, adapt=without_revisions)
