"""Blobs in replication: there before their documents, fetched once, and no more of them in memory
than a window.
"""

from __future__ import annotations

import hashlib
import math
import os
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import chain, repeat

import orjson
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.blip import Message
from trio_p2p.errors import ConnectionLostError, PeerError, ReplicationError
from trio_p2p.model.blob import format_digest
from trio_p2p.model.conflict import default_conflict_resolver
from trio_p2p.peer import Peer
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.session import ActiveSession, CollectionPlan, Plan
from trio_p2p.store.blob_files import BLOB_DIRECTORY, UNFINISHED_DIRECTORY
from trio_p2p.testing.databases import open_test_database
from trio_p2p.transport.memory import Faults, memory_transport_pair

START_NS = 1_700_000_000 * 10**9
# Of the mocked clock, so it passes at once.
STALL_S = 600

TEXT = b"line of text\n" * 20_000
IMAGE = os.urandom(300_000)


def clock():
    return START_NS + round(trio.current_time() * 10**9)


@pytest.fixture
async def here(tmp_path):
    """The active side."""
    async with open_test_database(tmp_path / "here", clock=clock) as database:
        yield database


@pytest.fixture
async def there(tmp_path):
    """The passive side."""
    async with open_test_database(tmp_path / "there", clock=clock) as database:
        yield database


class Sides:
    """What both sides of a replication counted, and how it failed."""

    def __init__(self):
        self.active = Journal()
        self.passive = Journal()
        self.failure = None


async def sync(active, passive, *, faults=None, **plan):
    """Replicate one-shot, until done or failed."""
    sides = Sides()
    near, far = memory_transport_pair(faults=faults)
    parts = (CollectionPlan(active.default_collection, default_conflict_resolver, None),)
    session = ActiveSession(
        near,
        Plan("memory:there", parts, **plan),
        sides.active,
        on_activity=lambda busy: None,
        on_healthy=lambda: None,
        now_s=lambda: START_NS // 10**9,
    )
    served = PassiveSession(far, passive.collections(), sides.passive)

    async def serve():
        try:
            await served.run()
        except ReplicationError as exc:
            assert sides.failure is None
            sides.failure = exc

    with trio.fail_after(STALL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                await session.run()
            except ReplicationError as exc:
                sides.failure = exc
    return sides


def files(database, directory=BLOB_DIRECTORY):
    found = database.path / directory
    return {path.name: path.stat().st_size for path in found.iterdir()} if found.exists() else {}


def failures(journal):
    return {event.document_id: event.error for event in journal.events if event.error}


@pytest.fixture(params=["push", "pull"])
def direction(request):
    return request.param


@pytest.fixture
def sender(direction, here, there):
    return here if direction == "push" else there


@pytest.fixture
def receiver(direction, here, there):
    return there if direction == "push" else here


def of(sides, direction, sending):
    return sides.active if (direction == "push") == sending else sides.passive


@pytest.mark.behaviour("A1", "A3", "A8")
async def test_a_document_arrives_with_its_blobs(
    sender, receiver, here, there, direction, autojump_clock
):
    text = await sender.save_blob(TEXT, "text/plain")
    image = await sender.save_blob(IMAGE, "image/png")
    empty = await sender.save_blob(b"")
    body = {"text": text, "more": [{"image": image}], "empty": empty}
    await sender.default_collection.put("a", body)
    sides = await sync(here, there)
    arrived = receiver.default_collection.get("a").body
    assert arrived == body
    assert await arrived["text"].read() == TEXT
    assert await arrived["more"][0]["image"].read() == IMAGE
    assert await arrived["empty"].read() == b""
    sent = of(sides, direction, sending=True).statistics()
    received = of(sides, direction, sending=False).statistics()
    assert (sent.blobs_sent, sent.blob_bytes_sent) == (3, len(TEXT) + len(IMAGE))
    assert (received.blobs_received, received.blob_bytes_received) == (3, len(TEXT) + len(IMAGE))
    # Text was compressed, since its type told that this is worth it; random bytes were not tried.
    assert received.wire_bytes_received < len(IMAGE) + len(TEXT) / 4


@pytest.mark.behaviour("A5")
async def test_a_blob_is_fetched_once_for_all_documents_and_not_if_it_is_here(
    sender, receiver, here, there, autojump_clock
):
    await receiver.save_blob(b"held")
    for number in range(5):
        body = {"new": await sender.save_blob(b"new"), "held": await sender.save_blob(b"held")}
        await sender.default_collection.put(f"d{number}", body)
    sides = await sync(here, there)
    assert receiver.default_collection.count == 5
    fetched = sides.active.statistics().blobs_received + sides.passive.statistics().blobs_received
    assert fetched == 1


@pytest.mark.behaviour("A2")
async def test_many_blobs_arrive(sender, receiver, here, there, autojump_clock):
    for number in range(50):
        body = {"blobs": [await sender.save_blob(b"%d %d" % (number, n)) for n in range(4)]}
        await sender.default_collection.put(f"d{number}", body)
    await sync(here, there)
    assert receiver.default_collection.count == 50
    assert files(receiver) == files(sender)


async def test_documents_without_blobs_are_not_held_up_by_a_large_one(
    sender, receiver, here, there, autojump_clock
):
    """Cut while the blob is on its way: all others are stored, though they were sent later."""
    blob = await sender.save_blob(os.urandom(3_000_000))
    await sender.default_collection.put("a", {"blob": blob})
    for number in range(5):
        await sender.default_collection.put(f"b{number}", {})
    sides = await sync(here, there, faults=Faults(cut_after_messages=200))
    assert sides.failure is not None
    notes = receiver.default_collection
    assert [notes.get(f"b{number}") is not None for number in range(5)] == [True] * 5
    assert notes.get("a") is None
    assert not files(receiver)
    assert sum(files(receiver, UNFINISHED_DIRECTORY).values()) > 0


async def test_a_blob_that_was_cut_off_does_not_count_as_sent(
    sender, receiver, here, there, direction, autojump_clock
):
    blob = await sender.save_blob(os.urandom(1_500_000))
    await sender.default_collection.put("a", {"blob": blob})
    sides = await sync(here, there, faults=Faults(cut_after_messages=60))
    assert sides.failure is not None
    assert of(sides, direction, sending=True).statistics().blobs_sent == 0


async def test_what_had_come_of_a_blob_is_not_sent_again(
    sender, receiver, here, there, direction, autojump_clock
):
    content = os.urandom(1_500_000)
    await sender.default_collection.put("a", {"blob": await sender.save_blob(content)})
    received = 0
    for _ in range(20):
        sides = await sync(here, there, faults=Faults(cut_after_messages=60))
        received += of(sides, direction, sending=False).statistics().blob_bytes_received
        if sides.failure is None:
            break
    assert await receiver.default_collection.get("a")["blob"].read() == content
    assert received == len(content)


@pytest.fixture
async def elsewhere(tmp_path):
    """Another passive side."""
    async with open_test_database(tmp_path / "elsewhere", clock=clock) as database:
        yield database


async def share_a_blob(content, *databases):
    """Save it in several databases, each with a document of its own that names it."""
    for number, database in enumerate(databases):
        blob = await database.save_blob(content)
        await database.default_collection.put(f"d{number}", {"blob": blob})


async def test_a_blob_that_stalls_is_gone_on_with_from_another_peer(
    here, there, elsewhere, autojump_clock
):
    content = os.urandom(1_500_000)
    await share_a_blob(content, there, elsewhere)
    delays_s = chain([0] * 60, repeat(math.inf))
    stalling = partial(sync, here, there, faults=Faults(delay_s=partial(next, delays_s)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(stalling, push=False))
        await wait_all_tasks_blocked()
        begun_at = trio.current_time()
        sides = await sync(here, elsewhere, push=False)
        took_s = trio.current_time() - begun_at
        nursery.cancel_scope.cancel()
    assert took_s < 2 * limits.BLOB_PATIENCE_S
    assert await here.default_collection.get("d1")["blob"].read() == content
    # What had come before it stalled is not fetched again.
    assert sides.active.statistics().blob_bytes_received < len(content)


async def test_slow_peers_do_not_take_a_blob_from_each_other_for_ever(
    here, there, elsewhere, autojump_clock
):
    await share_a_blob(os.urandom(50_000), there, elsewhere)
    slow = Faults(delay_s=lambda: 1.5 * limits.BLOB_PATIENCE_S)
    async with trio.open_nursery() as nursery:
        for passive in (there, elsewhere):
            nursery.start_soon(partial(sync, here, passive, faults=slow, push=False))
    assert here.default_collection.count == 2


async def test_a_blob_that_two_peers_have_is_fetched_from_one(
    here, there, elsewhere, autojump_clock
):
    content = os.urandom(1_500_000)
    await share_a_blob(content, there, elsewhere)
    received = []

    async def pull(passive):
        # It takes far longer than the patience of either.
        sides = await sync(here, passive, faults=Faults(delay_s=lambda: 1), push=False)
        received.append(sides.active.statistics().blob_bytes_received)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull, there)
        nursery.start_soon(pull, elsewhere)
    assert here.default_collection.count == 2
    assert sorted(received) == [0, len(content)]


@asynccontextmanager
async def hand_made_passive(near_database, answer, **plan):
    """A session that pushes to, or is asked by, a peer that answers by hand."""
    near, far = memory_transport_pair()
    parts = (CollectionPlan(near_database.default_collection, default_conflict_resolver, None),)
    journal = Journal()
    session = ActiveSession(
        near,
        Plan("memory:there", parts, **plan),
        journal,
        on_activity=lambda busy: None,
        on_healthy=lambda: None,
        now_s=lambda: START_NS // 10**9,
    )
    peer = Peer(far)

    async def converse():
        with suppress(ConnectionLostError):
            await peer.run(lambda number, message: answer(peer, number, message))

    with trio.fail_after(STALL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(converse)
            yield journal, session
            nursery.cancel_scope.cancel()


def offering(blob, content, *, refusal=None):
    """A passive peer with one document that names a blob; the answers of its side."""
    digest = format_digest(hashlib.sha1(blob).digest())
    named = {"@type": "blob", "digest": digest, "length": len(blob)}
    bodies = {"a": orjson.dumps({"blob": named}), "b": b"{}"}
    asked = []

    def answer(peer, number, message):
        asked.append(message)
        match message.properties["Profile"]:
            case "getCollections":
                peer.reply(number, Message({}, b"[{}]"))
            case "subChanges":
                peer.reply(number, Message({}))
                rows = b'[[1,"a","1770000000000000@AliceAliceAliceAliceAA"],'
                rows += b'[2,"b","1770000000000000@AliceAliceAliceAliceAA"]]'
                head = {"Profile": "changes", "collection": "0"}
                peer.send(Message(head, rows), lambda reply: send(peer))
                peer.send(Message(head, b"[]", no_reply=True))
            case "getAttachment" if refusal is not None:
                peer.refuse(number, "HTTP", refusal, "no")
            case "getAttachment":
                peer.reply(number, Message({}, content))
            case _:
                peer.reply(number, Message({"rev": "1-cc"}))

    def send(peer):
        for sequence, name in ((1, "a"), (2, "b")):
            head = {
                "Profile": "rev",
                "collection": "0",
                "id": name,
                "rev": "1770000000000000@AliceAliceAliceAliceAA",
                "sequence": str(sequence),
            }
            peer.send(Message(head, bodies[name]), lambda reply: None)

    return answer, asked


@pytest.mark.behaviour("A6", "A7")
@pytest.mark.parametrize(
    ("content", "refusal", "status"),
    [
        (b"damaged!", None, 502),
        (b"short", None, 502),
        (b"much too long", None, 400),
        (b"", 404, 404),
        (b"", 503, 503),
        # What would mean something else of the document: stored, held, sent once more, refused.
        (b"", 0, 502),
        (b"", 304, 502),
        (b"", 422, 502),
        (b"", 403, 502),
    ],
)
async def test_a_blob_that_does_not_come_fails_its_document_alone(
    here, content, refusal, status, autojump_clock
):
    answer, _ = offering(b"expected", content, refusal=refusal)
    async with hand_made_passive(here, answer, push=False) as (journal, session):
        await session.run()
    notes = here.default_collection
    assert notes.get("a") is None
    assert notes.get("b") is not None
    failed = failures(journal)
    assert list(failed) == ["a"]
    assert isinstance(failed["a"], PeerError)
    assert failed["a"].code == status
    assert failed["a"].retryable == (status != 400)
    assert not files(here)
    # Of what may come yet there is a beginning, or nothing at all.
    assert 0 not in files(here, UNFINISHED_DIRECTORY).values()
    # The next run asks again, unless the document itself is at fault.
    answer, _ = offering(b"expected", b"expected")
    async with hand_made_passive(here, answer, push=False) as (_, session):
        await session.run()
    assert (notes.get("a") is not None) or status == 400


async def test_a_blob_is_asked_for_as_couchbase_lite_does(here, autojump_clock):
    answer, asked = offering(b"expected", b"expected")
    async with hand_made_passive(here, answer, push=False) as (_, session):
        await session.run()
    [request] = [m for m in asked if m.properties["Profile"] == "getAttachment"]
    assert request.properties == {
        "Profile": "getAttachment",
        "collection": "0",
        "digest": format_digest(hashlib.sha1(b"expected").digest()),
        "docID": "a",
    }


async def test_a_blob_that_begins_elsewhere_than_asked_is_received_whole(here, autojump_clock):
    """Only our own listener knows of offsets; others send the whole blob."""
    sha1 = hashlib.sha1(b"expected").digest()
    async with here.engine.blobs.receive(sha1) as incoming:
        await incoming.write(b"expe")
    answer, asked = offering(b"expected", b"expected")
    async with hand_made_passive(here, answer, push=False) as (_, session):
        await session.run()
    assert await here.default_collection.get("a")["blob"].read() == b"expected"
    assert [m.properties.get("offset") for m in asked if "digest" in m.properties] == ["4"]


async def leave_a_beginning(database, content, beginning):
    """Receive the beginning of a blob, be it right or not."""
    async with database.engine.blobs.receive(hashlib.sha1(content).digest()) as incoming:
        await incoming.write(beginning)


async def test_a_blob_whose_beginning_was_spoilt_by_another_peer_is_fetched_whole(
    sender, receiver, here, there, direction, autojump_clock
):
    content = os.urandom(300_000)
    await share_a_blob(content, sender)
    await leave_a_beginning(receiver, content, b"spoilt" * 20_000)
    sides = await sync(here, there)
    assert await receiver.default_collection.get("d0")["blob"].read() == content
    assert of(sides, direction, sending=False).statistics().documents_failed == 0
    assert not files(receiver, UNFINISHED_DIRECTORY)


@pytest.mark.parametrize("beginning", [b"", b"expe"])
async def test_a_blob_that_comes_whole_and_damaged_is_asked_for_once(
    here, beginning, autojump_clock
):
    await leave_a_beginning(here, b"expected", beginning)
    answer, asked = offering(b"expected", b"damaged!")
    async with hand_made_passive(here, answer, push=False) as (journal, session):
        await session.run()
    assert len([m for m in asked if "digest" in m.properties]) == 1
    assert failures(journal)["a"].code == 502


async def test_a_blob_that_is_damaged_in_its_rest_and_as_a_whole_fails(there, autojump_clock):
    content = b"expected"
    digest = format_digest(hashlib.sha1(content).digest())
    await leave_a_beginning(there, content, b"expe")
    async with hand_made_active(there) as (_, peer, asked):
        pending = peer.begin(pushing("a", digest))
        await wait_all_tasks_blocked()
        peer.reply(asked.pop(digest), Message({"offset": "4"}, b"rest"))
        await wait_all_tasks_blocked()
        peer.reply(asked.pop(digest), Message({}, b"damaged!"))
        with pytest.raises(PeerError) as caught:
            await pending.wait()
        assert not asked
    assert caught.value.code == 502
    assert not files(there, UNFINISHED_DIRECTORY)


async def test_a_blob_that_drips_is_gone_on_with_from_another_peer(here, there, autojump_clock):
    content = os.urandom(300_000)
    await share_a_blob(content, here)
    blob = here.default_collection.get("d0")["blob"]

    async def drops():
        while True:
            yield b"x"
            await trio.sleep(limits.BLOB_PATIENCE_S / 4)

    async with hand_made_active(there) as (_, peer, asked), trio.open_nursery() as nursery:
        peer.begin(pushing("dripping", blob.digest))
        await wait_all_tasks_blocked()
        nursery.start_soon(peer.reply_in_parts, asked[blob.digest], Message({}), drops())
        begun_at = trio.current_time()
        await sync(here, there)
        took_s = trio.current_time() - begun_at
        nursery.cancel_scope.cancel()
    assert took_s < 3 * limits.BLOB_PATIENCE_S
    assert await there.default_collection.get("d0")["blob"].read() == content


def asking(profile, digest, body=b""):
    return Message({"Profile": profile, "collection": "0", "digest": digest}, body)


OPENING = Message(
    {"Profile": "getCollections"}, b'{"checkpoint_ids":["cp-x"],"collections":["_default"]}'
)


@asynccontextmanager
async def hand_made_active(passive_database):
    """A session that is pushed to by a peer which answers by hand, the peer, and what it is asked:
    the number of each request for a blob, by the blob's digest.
    """
    near, far = memory_transport_pair()
    session, peer = PassiveSession(far, passive_database.collections(), Journal()), Peer(near)
    asked = {}

    def answer(number, message):
        asked[message.properties["digest"]] = number

    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        nursery.start_soon(peer.run, answer)
        await peer.request(OPENING)
        yield session, peer, asked
        nursery.cancel_scope.cancel()


def pushing(document_id, *digests):
    """A revision that names blobs."""
    head = {
        "Profile": "rev",
        "collection": "0",
        "id": document_id,
        "rev": "1770000000000000@AliceAliceAliceAliceAA",
        "sequence": "1",
    }
    return Message(
        head, orjson.dumps({"blobs": [{"@type": "blob", "digest": each} for each in digests]})
    )


ABSENT = [format_digest(bytes([number]) * 20) for number in range(4)]


async def test_what_only_a_failed_revision_wanted_is_not_fetched(
    there, monkeypatch, autojump_clock
):
    monkeypatch.setattr(limits, "BLOBS_FETCHED_AT_ONCE", 1)
    async with hand_made_active(there) as (_, peer, asked):
        failed = peer.begin(pushing("a", *ABSENT[:3]))
        peer.begin(pushing("b", *ABSENT[2:]))
        await wait_all_tasks_blocked()
        assert list(asked) == ABSENT[:1]
        peer.refuse(asked[ABSENT[0]], "HTTP", 404, "no")
        with pytest.raises(PeerError):
            await failed.wait()
        await wait_all_tasks_blocked()
        assert list(asked) == [ABSENT[0], ABSENT[2]]


async def test_one_blob_that_fails_leaves_the_others_on_their_way_to_who_wants_them(
    there, autojump_clock
):
    contents = {format_digest(hashlib.sha1(each).digest()): each for each in (b"1", b"2")}
    async with hand_made_active(there) as (_, peer, asked):
        failed = peer.begin(pushing("a", ABSENT[0], *contents))
        await wait_all_tasks_blocked()
        peer.refuse(asked[ABSENT[0]], "HTTP", 404, "no")
        with pytest.raises(PeerError):
            await failed.wait()
        whole = peer.begin(pushing("b", *contents))
        await wait_all_tasks_blocked()
        for digest, content in contents.items():
            peer.reply(asked[digest], Message({}, content))
        await whole.wait()
        assert len(asked) == 3
    assert there.default_collection.get("a") is None
    assert there.default_collection.get("b") is not None


@pytest.mark.parametrize("domain", ["HTTP", "Elsewhere"])
@pytest.mark.parametrize("code", [0, 304, 404])
async def test_a_document_whose_blob_is_refused_is_not_told_to_be_stored(
    there, domain, code, autojump_clock
):
    async with hand_made_active(there) as (_, peer, asked):
        pending = peer.begin(pushing("a", ABSENT[0]))
        await wait_all_tasks_blocked()
        peer.refuse(asked[ABSENT[0]], domain, code, "no")
        with pytest.raises(PeerError) as caught:
            await pending.wait()
    assert caught.value.code == (404 if (domain, code) == ("HTTP", 404) else 502)
    assert there.default_collection.get("a") is None


async def test_a_document_that_tells_a_wrong_length_fails_alone(
    sender, receiver, here, there, autojump_clock
):
    """Another one that names the same blob is not to blame."""
    named = (await sender.save_blob(TEXT, "text/plain")).blob_properties()
    await sender.default_collection.put("a", {"blob": {**named, "length": len(TEXT) - 1}})
    await sender.default_collection.put("b", {"blob": named})
    sides = await sync(here, there)
    assert failures(sides.active).keys() == {"a"}
    assert receiver.default_collection.get("a") is None
    assert await receiver.default_collection.get("b")["blob"].read() == TEXT


async def test_missing_blobs_are_held_for_the_peer_while_revisions_wait_for_them(
    there, autojump_clock
):
    async with hand_made_active(there) as (session, peer, asked):
        before = session._peer.held_bytes
        pending = [peer.begin(pushing(name, *ABSENT)) for name in "ab"]
        await wait_all_tasks_blocked()
        held_bytes = session._peer.held_bytes - before
        assert held_bytes >= 2 * len(ABSENT) * limits.BLOB_WANTED_BYTES
        peer.refuse(asked[ABSENT[3]], "HTTP", 404, "no")
        for each in pending:
            with pytest.raises(PeerError):
                await each.wait()
        assert session._peer.held_bytes == before


async def test_a_peer_that_names_too_many_missing_blobs_is_dropped(
    there, monkeypatch, autojump_clock
):
    monkeypatch.setattr(limits, "CONNECTION_BYTES_MAX", 10_000)
    monkeypatch.setattr(limits, "BLOB_WANTED_BYTES", 4_000)
    with pytest.raises(ExceptionGroup) as caught:
        async with hand_made_active(there) as (_, peer, _):
            await peer.request(pushing("a", *ABSENT))
    assert caught.group_contains(ReplicationError, match="hold too much")


async def refusal_of(peer, request):
    with pytest.raises(PeerError) as caught:
        await peer.request(request)
    return caught.value.code


@pytest.mark.parametrize("profile", ["getAttachment", "proveAttachment"])
async def test_only_blobs_of_the_collections_served_are_given(there, profile, autojump_clock):
    """Who knows the digest of another one learns not even that it is here."""
    notes, private = there.default_collection, await there.create_collection("private")
    blob = await there.save_blob(b"secret")
    near, far = memory_transport_pair()
    served, peer = PassiveSession(far, [notes], Journal()), Peer(near)
    request = asking(profile, blob.digest, b"nonce")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        nursery.start_soon(peer.run, lambda number, message: None)
        await peer.request(OPENING)
        assert await refusal_of(peer, request) == 404
        await private.put("a", {"blob": blob})
        assert await refusal_of(peer, request) == 404
        await notes.put("a", {"blob": blob})
        assert await peer.request(request)
        # It may be on its way still.
        await private.delete("a")
        await notes.put("a", {})
        assert await peer.request(request)
        await private.put("b", {"blob": blob})
        assert await refusal_of(peer, request) == 404
        nursery.cancel_scope.cancel()


async def test_some_blobs_are_sent_at_once_and_the_others_wait(there, monkeypatch, autojump_clock):
    """Each has a file open, however slowly the peer takes it."""
    monkeypatch.setattr(limits, "BLOBS_SENT_AT_ONCE", 2)
    blobs = [await there.save_blob(os.urandom(300_000)) for _ in range(5)]
    await there.default_collection.put("a", {"blobs": blobs})
    near, far = memory_transport_pair()
    served = PassiveSession(far, there.collections(), Journal())
    peer = Peer(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        nursery.start_soon(peer.run, lambda number, message: None)
        await peer.request(OPENING)
        replies = [peer.request_in_parts(asking("getAttachment", b.digest)) for b in blobs]
        await wait_all_tasks_blocked()
        assert [bool(reply._parts) for reply in replies].count(True) == 2
        for blob, reply in zip(blobs, replies, strict=True):
            content = b""
            while part := await reply.receive():
                content += part
            assert content == await blob.read()
        nursery.cancel_scope.cancel()


async def test_who_only_pulls_gives_no_blobs(here, autojump_clock):
    blob = await here.save_blob(b"secret")
    await here.default_collection.put("mine", {"blob": blob})
    answer, _ = offering(b"expected", b"expected")
    codes = []

    def ask_first(peer, number, message):
        if message.properties["Profile"] == "subChanges":
            peer.send(asking("getAttachment", blob.digest), lambda reply: codes.append(reply.code))
        answer(peer, number, message)

    async with hand_made_passive(here, ask_first, push=False) as (_, session):
        await session.run()
    assert codes == [404]


@pytest.mark.parametrize(
    ("content", "refusal", "status"),
    [
        (b"expected", None, None),
        (b"guessed!", None, 502),
        (b"much too long", None, 400),
        (b"", 404, 404),
    ],
)
async def test_who_names_a_blob_of_another_collection_must_have_it(
    here, content, refusal, status, autojump_clock
):
    """Else its digest would be enough to read it: a document would name it that the peer reads."""
    private = await here.create_collection("private")
    await private.put("a", {"blob": await here.save_blob(b"expected")})
    before = files(here)
    answer, asked = offering(b"expected", content, refusal=refusal)
    async with hand_made_passive(here, answer, push=False) as (journal, session):
        await session.run()
    assert len([m for m in asked if m.properties["Profile"] == "getAttachment"]) == 1
    notes = here.default_collection
    assert notes.get("b") is not None
    if status is None:
        assert await notes.get("a")["blob"].read() == b"expected"
    else:
        assert notes.get("a") is None
        assert failures(journal)["a"].code == status
    assert files(here) == before
    assert files(here, UNFINISHED_DIRECTORY) == {}
    assert await private.get("a")["blob"].read() == b"expected"


@pytest.mark.behaviour("A5")
async def test_what_is_asked_for_is_proved_or_refused(there, autojump_clock):
    blob = await there.save_blob(b"hello")
    await there.default_collection.put("a", {"blob": blob})
    near, far = memory_transport_pair()
    served, peer = PassiveSession(far, there.collections(), Journal()), Peer(near)
    missing = format_digest(bytes(20))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        nursery.start_soon(peer.run, lambda number, message: None)
        await peer.request(OPENING)
        reply = await peer.request(asking("getAttachment", blob.digest))
        assert reply.body == b"hello"
        # Worked example of the protocol's description.
        reply = await peer.request(asking("proveAttachment", blob.digest, bytes(range(20))))
        assert reply.body == b"sha1-amTs4+FpzXf3dGz9c2EYJ2WckF4="
        for request, code in [
            (asking("getAttachment", missing), 404),
            (asking("proveAttachment", missing, b"x"), 404),
            (asking("getAttachment", "sha1-x"), 400),
            (asking("getAttachment", "../../etc/passwd"), 400),
            (asking("proveAttachment", blob.digest), 400),
            (asking("proveAttachment", blob.digest, bytes(256)), 400),
        ]:
            assert await refusal_of(peer, request) == code
        nursery.cancel_scope.cancel()


@pytest.mark.behaviour("X5")
async def test_no_more_than_a_window_of_a_blob_is_in_memory(
    here, there, autojump_clock, monkeypatch
):
    """The sender reads on only as the receiver has written what came before."""
    await there.default_collection.put("a", {"b": await there.save_blob(os.urandom(4_000_000))})
    ahead = []
    note_sent, note_received = Journal.blob_bytes_sent, Journal.blob_bytes_received
    balance = 0

    def sent(journal, count):
        nonlocal balance
        balance += count
        ahead.append(balance)
        note_sent(journal, count)

    def received(journal, count):
        nonlocal balance
        balance -= count
        note_received(journal, count)

    monkeypatch.setattr(Journal, "blob_bytes_sent", sent)
    monkeypatch.setattr(Journal, "blob_bytes_received", received)
    await sync(here, there)
    assert len(ahead) == -(-4_000_000 // limits.BLOB_PART_BYTES)
    assert max(ahead) <= limits.UNACKNOWLEDGED_BYTES_MAX + limits.BLOB_PART_BYTES
