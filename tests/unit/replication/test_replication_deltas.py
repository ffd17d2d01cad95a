"""Deltas in replication: what goes as one, what is put together from it, and what is counted."""

from __future__ import annotations

import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from trio_p2p import (
    ReplicatorConfiguration,
    URLEndpointListener,
    URLEndpointListenerConfiguration,
    limits,
    replicate,
)
from trio_p2p.blip import Message
from trio_p2p.errors import ConnectionLostError, PeerError
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import default_conflict_resolver
from trio_p2p.peer import Peer
from trio_p2p.replication.deltas import Restorer
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.replication.sender import Sender
from trio_p2p.replication.session import ActiveSession, CollectionPlan, Plan
from trio_p2p.store import bases, documents
from trio_p2p.testing.databases import open_test_database
from trio_p2p.transport.memory import memory_transport_pair

START_NS = 1_700_000_000 * 10**9
# Of the mocked clock, so it passes at once.
STALL_S = 600
FILLING = {f"f{number:02}": "x" * 30 for number in range(20)}


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
    """What both sides of a replication counted."""

    def __init__(self):
        self.active = Journal()
        self.passive = Journal()

    @property
    def deltas(self):
        """How many deltas each side sent and received."""
        return [
            (statistics.deltas_sent, statistics.deltas_received)
            for statistics in (self.active.statistics(), self.passive.statistics())
        ]

    @property
    def failures(self):
        return [e for journal in (self.active, self.passive) for e in journal.events if e.error]


def active_session(database, transport, journal, *, pull_filter=None, **plan):
    part = CollectionPlan(
        database.default_collection, default_conflict_resolver, pull_filter=pull_filter
    )
    return ActiveSession(
        transport,
        Plan("memory:there", (part,), **({"deltas": True} | plan)),
        journal,
        on_activity=lambda busy: None,
        on_healthy=lambda: None,
        now_s=lambda: START_NS // 10**9,
    )


async def sync(here, there, *, taken_there=True, **plan):
    """Replicate one-shot, with deltas enabled on either side unless told otherwise."""
    sides = Sides()
    near, far = memory_transport_pair()
    served = PassiveSession(far, there.collections(), sides.passive, deltas=taken_there)
    with trio.fail_after(STALL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            await active_session(here, near, sides.active, **plan).run()
    return sides


@pytest.fixture(params=["push", "pull"])
def direction(request):
    return request.param


@pytest.fixture
def sender(direction, here, there):
    return (here if direction == "push" else there).default_collection


@pytest.fixture
def receiver(direction, here, there):
    return (there if direction == "push" else here).default_collection


def between(direction, sent, received=None):
    """What `Sides.deltas` tells of so many deltas in this direction."""
    received = sent if received is None else received
    counts = [(sent, 0), (0, received)]
    return counts if direction == "push" else counts[::-1]


def bodies(database):
    async def read():
        return {d.id: d.body async for d in database.default_collection.documents()}

    return read()


# --- What goes as a delta -------------------------------------------------------------------------


@pytest.mark.behaviour("D1")
async def test_documents_that_changed_go_as_what_changed(
    sender, receiver, here, there, direction, autojump_clock
):
    """D1, and D3 where it is a pull. What both sides saved is told to the byte."""
    for number in range(100):
        await sender.put(f"d{number}", {"n": number, **FILLING})
    assert (await sync(here, there)).deltas == between(direction, 0)
    whole = delta = 0
    for number in range(0, 100, 7):
        body = {"n": -1, **FILLING, "f07": "edited"}
        await sender.put(f"d{number}", body)
        whole += len(orjson.dumps(body))
        delta += len(b'{"n":-1,"f07":"edited"}')
    sides = await sync(here, there)
    assert sides.deltas == between(direction, 15)
    assert sides.active.statistics().delta_bytes_saved == whole - delta
    assert sides.passive.statistics().delta_bytes_saved == whole - delta
    assert await bodies(here) == await bodies(there)
    assert not sides.failures


@pytest.mark.behaviour("D2")
async def test_large_arrays_of_which_a_quarter_changed_go_as_deltas(
    sender, receiver, here, there, direction, autojump_clock
):
    """D2."""
    for document in range(100):
        await sender.put(f"d{document}", {"a": [document * n for n in range(1_000)]})
    await sync(here, there)
    for document in range(100):
        changed = [document * n if n % 4 else -n for n in range(1_000)]
        await sender.put(f"d{document}", {"a": changed})
    assert (await sync(here, there)).deltas == between(direction, 100)
    assert await bodies(here) == await bodies(there)


@pytest.mark.behaviour("D3")
async def test_what_was_pushed_first_and_edited_there_comes_back_as_a_delta(
    here, there, autojump_clock
):
    """D3."""
    await here.default_collection.put("a", {"n": 1, **FILLING})
    await sync(here, there)
    await there.default_collection.put("a", {"n": 2, **FILLING})
    assert (await sync(here, there)).deltas == [(0, 1), (1, 0)]
    await here.default_collection.put("a", {"n": 3, **FILLING})
    assert (await sync(here, there)).deltas == [(1, 0), (0, 1)]
    assert there.default_collection.get("a")["n"] == 3


async def test_many_deltas_of_large_documents_are_put_together_one_after_the_other(
    sender, receiver, here, there, direction, autojump_clock, monkeypatch
):
    """Or small messages would fill the memory with large bodies."""
    monkeypatch.setattr(limits, "DELTA_BODIES_BYTES_MAX", 1)
    held = []
    hold = Restorer._hold

    def noting(self, restored, on_restored):
        held.append(self._held_bytes)
        hold(self, restored, on_restored)

    monkeypatch.setattr(Restorer, "_hold", noting)
    for n in range(2):
        for number in range(20):
            await sender.put(f"d{number}", {"n": n, **FILLING})
        sides = await sync(here, there)
    assert sides.deltas == between(direction, 20)
    assert held == [0] * 20
    assert await bodies(here) == await bodies(there)


async def test_several_edits_go_as_one_delta(
    sender, receiver, here, there, direction, autojump_clock
):
    await sender.put("a", {"n": 1, **FILLING})
    await sync(here, there)
    for n in range(2, 5):
        await sender.put("a", {"n": n, **FILLING})
    assert (await sync(here, there)).deltas == between(direction, 1)
    assert receiver.get("a")["n"] == 4


async def test_each_edit_goes_as_a_delta_while_connected(here, there, autojump_clock):
    sides = Sides()
    near, far = memory_transport_pair()
    served = PassiveSession(far, there.collections(), sides.passive, deltas=True)
    session = active_session(here, near, sides.active, continuous=True)
    notes_here, notes_there = here.default_collection, there.default_collection
    await notes_here.put("a", {"n": 0, **FILLING})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        nursery.start_soon(session.run)
        for n in range(1, 6):
            await trio.sleep(10)
            await (notes_here if n % 2 else notes_there).put("a", {"n": n, **FILLING})
        await trio.sleep(10)
        session.request_stop()
    assert notes_here.get("a")["n"] == notes_there.get("a")["n"] == 5
    assert sides.deltas == [(3, 2), (2, 3)]


async def test_large_bodies_are_compared_and_put_together_aside(
    sender, receiver, here, there, direction, autojump_clock, monkeypatch
):
    aside = []

    def noting(engine):
        run_aside = engine.run_aside

        async def note(function, *args):
            aside.append(engine)
            return await run_aside(function, *args)

        return note

    for engine in (here.engine, there.engine):
        monkeypatch.setattr(engine, "run_aside", noting(engine))
    for size, expected in (
        (100, []),
        (2 * limits.DELTA_BYTES_IN_PLACE_MAX, [sender.database.engine, receiver.database.engine]),
    ):
        await sender.put("a", {"n": 1, "text": "x" * size, **FILLING})
        await sync(here, there)
        aside.clear()
        await sender.put("a", {"n": 2, "text": "x" * size, **FILLING})
        assert (await sync(here, there)).deltas == between(direction, 1)
        assert aside == expected
        assert receiver.get("a")["n"] == 2


async def test_a_revision_in_place_of_the_promised_one_goes_as_a_delta(
    sender, receiver, here, there, direction, autojump_clock, monkeypatch
):
    """The document changes between the answer to the offer and the sending."""
    await sender.put("a", {"n": 1, **FILLING})
    await sync(here, there)
    await sender.put("a", {"n": 2, **FILLING})
    edited = Sender.send

    async def edit_first(self, promises, on_settled):
        monkeypatch.setattr(Sender, "send", edited)
        await sender.put("a", {"n": 3, **FILLING})
        await edited(self, promises, on_settled)

    monkeypatch.setattr(Sender, "send", edit_first)
    sides = await sync(here, there)
    assert receiver.get("a")["n"] == 3
    assert sides.deltas == between(direction, 1)


# --- What goes whole ------------------------------------------------------------------------------


@pytest.mark.behaviour("D6")
@pytest.mark.parametrize("enabled", [(True, False), (False, True), (False, False)])
async def test_nothing_goes_as_a_delta_unless_both_sides_enable_them(
    sender, here, there, direction, enabled, autojump_clock
):
    """D6."""
    await sender.put("a", {"n": 1, **FILLING})
    await sync(here, there)
    await sender.put("a", {"n": 2, **FILLING})
    sides = await sync(here, there, deltas=enabled[0], taken_there=enabled[1])
    assert sides.deltas == [(0, 0), (0, 0)]
    assert await bodies(here) == await bodies(there)


@pytest.mark.behaviour("D6")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"n": 1}, {"n": 2}),
        ({"a": "x" * 400}, {"b": "y" * 300}),
        ({}, {"n": 1, **FILLING}),
        (FILLING, None),
        (None, FILLING),
        (FILLING, {}),
    ],
    ids=["small", "no shorter", "from nothing", "to a tombstone", "from a tombstone", "to nothing"],
)
async def test_what_is_not_worth_a_delta_goes_whole(
    sender, receiver, here, there, old, new, autojump_clock
):
    """D6."""
    if old is None:
        await sender.put("a", {"n": 1})
        await sync(here, there)
        await sender.delete("a")
    else:
        await sender.put("a", old)
    await sync(here, there)
    if new is None:
        await sender.delete("a")
    else:
        await sender.put("a", new)
    sides = await sync(here, there)
    assert sides.deltas == [(0, 0), (0, 0)]
    assert await bodies(here) == await bodies(there) == ({} if new is None else {"a": new})


@pytest.mark.behaviour("D4")
async def test_attachments_of_the_older_kind_go_whole(here, there, autojump_clock):
    """D4. A document that has some goes as a delta if they stay."""
    notes = here.default_collection

    async def put(body):
        encoded = encode_body(body, reserved=frozenset())
        await here.engine.write(lambda txn: documents.edit(txn, notes.number, "a", encoded))
        return (await sync(here, there)).deltas[0]

    held = {"_attachments": {"old": {"length": 1}}, **FILLING}
    assert await put({"n": 1, **held}) == (0, 0)
    assert await put({"n": 2, **held}) == (1, 0)
    assert await put({"n": 2, **held, "_attachments": {"new": {"length": 1}}}) == (0, 0)
    assert await bodies(here) == await bodies(there)


async def test_only_databases_that_permit_them_send_deltas(tmp_path):
    """Of the four switches each can forbid them."""
    counted = []
    for off in range(5):
        switches = [number != off for number in range(4)]
        async with (
            open_test_database(tmp_path / f"h{off}", delta_sync=switches[0]) as here,
            open_test_database(tmp_path / f"t{off}", delta_sync=switches[1]) as there,
        ):
            await here.default_collection.put("a", {"n": 1, **FILLING})
            await replicate_by_stream(here, there, *switches[2:])
            await here.default_collection.put("a", {"n": 2, **FILLING})
            result = await replicate_by_stream(here, there, *switches[2:])
            assert there.default_collection.get("a")["n"] == 2
            counted.append(result.statistics.deltas_sent)
    assert counted == [0, 0, 0, 0, 1]


async def replicate_by_stream(here, there, enabled_here, enabled_there):
    listener = URLEndpointListener(
        URLEndpointListenerConfiguration(
            collections=[there.default_collection],
            disable_tls=True,
            enable_delta_sync=enabled_there,
        )
    )
    near, far = memory_stream_pair()

    async def connect():
        await trio.lowlevel.checkpoint()
        return near

    configuration = ReplicatorConfiguration(
        target=connect,
        target_id="there",
        collections=[here.default_collection],
        enable_delta_sync=enabled_here,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.handle, far)
        return await replicate(configuration)


async def test_what_a_peer_has_to_be_sent_again_goes_whole(here, autojump_clock):
    """It says to have lost its checkpoint, and wants what it had: that is no base."""
    await here.default_collection.put("a", {"n": 1, **FILLING})
    for _ in range(2):
        _, peer = await sync_with(here, takes_no_deltas)
        [whole] = peer.of("rev")
        assert orjson.loads(whole.body) == {"n": 1, **FILLING}


# --- Blobs ----------------------------------------------------------------------------------------


@pytest.mark.behaviour("D4")
async def test_blobs_come_along_with_deltas(
    sender, receiver, here, there, direction, autojump_clock
):
    """D4: one that stays is not sent again, one that changed or is new is fetched."""
    save = sender.database.save_blob
    body = {"kept": await save(b"kept"), "changed": await save(b"old"), **FILLING}
    await sender.put("a", body)
    await sync(here, there)
    edited = body | {"changed": await save(b"new"), "more": [{"added": await save(b"added")}]}
    await sender.put("a", edited)
    sides = await sync(here, there)
    assert sides.deltas == between(direction, 1)
    fetching = sides.passive if direction == "push" else sides.active
    assert fetching.statistics().blobs_received == 2
    arrived = receiver.get("a").body
    assert arrived == edited
    assert await arrived["kept"].read() == b"kept"
    assert await arrived["changed"].read() == b"new"
    assert await arrived["more"][0]["added"].read() == b"added"


# --- Deltas that cannot be applied ---------------------------------------------------------------


class RawPeer:
    """The other side of a session, by messages: notes what it hears and answers as it is told."""

    def __init__(self, transport, answer):
        self.peer = Peer(transport)
        self.heard = []
        self._answer = answer

    async def run(self):
        with suppress(ConnectionLostError):
            await self.peer.run(self._on_request)

    def of(self, profile):
        return [m for m in self.heard if m.properties["Profile"] == profile]

    def _on_request(self, number, message):
        self.heard.append(message)
        reply = self._answer(message)
        if isinstance(reply, int):
            self.peer.refuse(number, "HTTP", reply, "")
        elif not message.no_reply:
            self.peer.reply(number, reply)


def takes_no_deltas(message):
    """Answers as a passive peer that announces deltas and can apply none."""
    match message.properties["Profile"]:
        case "getCollections":
            return Message({"uuid": str(UUID(int=7))}, b"[{}]")
        case "getCheckpoint":
            return 404
        case "proposeChanges":
            return Message({"blobs": "true", "deltas": "true"}, b"[]")
        case "rev" if "deltaSrc" in message.properties:
            return 422
    return Message({"rev": "1-cc"})


@pytest.mark.behaviour("D5")
async def test_after_422_the_pusher_sends_the_body_at_once(here, there, autojump_clock):
    """D5."""
    await here.default_collection.put("a", {"n": 1, **FILLING})
    await sync_with(here, takes_no_deltas)
    await here.default_collection.put("a", {"n": 2, **FILLING})
    journal, peer = await sync_with(here, takes_no_deltas)
    delta, whole = peer.of("rev")
    assert orjson.loads(delta.body) == {"n": 2}
    assert orjson.loads(whole.body) == {"n": 2, **FILLING}
    without = {k: v for k, v in delta.properties.items() if k != "deltaSrc"}
    assert whole.properties == without
    assert len(peer.of("proposeChanges")) == 1
    statistics = journal.statistics()
    assert (statistics.documents_pushed, statistics.documents_failed) == (1, 0)
    assert (statistics.deltas_sent, statistics.delta_bytes_saved) == (0, 0)


async def sync_with(here, answer):
    """Push to a raw peer; returns what was counted and that peer."""
    journal = Journal()
    near, far = memory_transport_pair()
    peer = RawPeer(far, answer)
    with trio.fail_after(STALL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            await active_session(here, near, journal, pull=False).run()
    return journal, peer


@asynccontextmanager
async def serving(there, answer=lambda message: Message({}), **settings):
    """Serve a raw peer; yields what was counted and that peer."""
    journal = Journal()
    near, far = memory_transport_pair()
    served = PassiveSession(near, there.collections(), journal, **({"deltas": True} | settings))
    peer = RawPeer(far, answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        nursery.start_soon(peer.run)
        names = b'{"checkpoint_ids":["cp-1"],"collections":["_default"]}'
        await peer.peer.request(Message({"Profile": "getCollections"}, names))
        yield journal, peer
        await far.aclose()


@pytest.mark.behaviour("D5")
async def test_after_422_the_feeder_sends_the_body_at_once(there, autojump_clock):
    """D5."""
    notes = there.default_collection
    first = await notes.put("a", {"n": 1, **FILLING})
    # Who set this checkpoint has the first revision, so it is kept.
    checkpoint = orjson.dumps({"remote": first.sequence})

    def answer(message):
        match message.properties["Profile"]:
            case "changes" if message.body != b"[]":
                return Message(
                    {"blobs": "true", "deltas": "true"}, orjson.dumps([[str(first.version)]])
                )
            case "rev" if "deltaSrc" in message.properties:
                return 422
        return Message({})

    async with serving(there, answer) as (journal, peer):
        properties = {"Profile": "setCheckpoint", "collection": "0", "client": "cp-1"}
        await peer.peer.request(Message(properties, checkpoint))
        await notes.put("a", {"n": 2, **FILLING})
        await peer.peer.request(Message({"Profile": "subChanges", "collection": "0"}))
        await wait_all_tasks_blocked()
        delta, whole = peer.of("rev")
        assert orjson.loads(delta.body) == {"n": 2}
        assert orjson.loads(whole.body) == {"n": 2, **FILLING}
        assert whole.properties["sequence"] == delta.properties["sequence"]
        assert len([m for m in peer.of("changes") if m.body != b"[]"]) == 1
        assert journal.statistics().deltas_sent == 0
        assert journal.statistics().documents_pushed == 1


def rev(document, base, body):
    """A `rev` message about an edit of a document."""
    made = document.version._replace(time=document.version.time + 1)
    properties = {
        "Profile": "rev",
        "collection": "0",
        "id": document.id,
        "rev": str(made),
        "sequence": "7",
        "noconflicts": "1",
    }
    return Message(properties | ({} if base is None else {"deltaSrc": base}), body)


@pytest.mark.parametrize(
    ("base", "delta"),
    [
        ("1@AliceAliceAliceAliceAA", b'{"n":2}'),
        ("1-abcd", b'{"n":2}'),
        (None, b'{"z":[]}'),
        (None, b'{"n":{}}'),
        (None, b"not JSON"),
        (None, b'{"_id":7}'),
        (None, b"[[]]"),
    ],
)
@pytest.mark.parametrize("in_place_max", [limits.DELTA_BYTES_IN_PLACE_MAX, 0])
async def test_a_delta_that_yields_no_body_is_refused_until_the_body_comes(
    there, base, delta, in_place_max, autojump_clock, monkeypatch
):
    """D5."""
    monkeypatch.setattr(limits, "DELTA_BYTES_IN_PLACE_MAX", in_place_max)
    held = await there.default_collection.put("a", {"n": 1, **FILLING})
    async with serving(there) as (journal, peer):
        with pytest.raises(PeerError) as caught:
            await peer.peer.request(rev(held, base or str(held.version), delta))
        assert (caught.value.domain, caught.value.code) == ("HTTP", 422)
        assert there.default_collection.get("a") == held
        whole = orjson.dumps({"n": 2, **FILLING})
        assert not (await peer.peer.request(rev(held, None, whole))).properties
        assert there.default_collection.get("a")["n"] == 2
        statistics = journal.statistics()
        assert (statistics.documents_pulled, statistics.documents_failed) == (1, 0)
        assert (statistics.deltas_received, statistics.delta_bytes_saved) == (0, 0)


@pytest.mark.behaviour("D6")
async def test_a_delta_from_a_tombstone_is_refused(there, autojump_clock):
    """D6."""
    await there.default_collection.put("a", FILLING)
    dead = await there.default_collection.delete("a")
    async with serving(there) as (_, peer):
        with pytest.raises(PeerError) as caught:
            await peer.peer.request(rev(dead, str(dead.version), b'{"n":1}'))
        assert caught.value.code == 422


async def test_a_delta_that_was_not_asked_for_is_refused(there, autojump_clock):
    """D6."""
    held = await there.default_collection.put("a", {"n": 1, **FILLING})
    async with serving(there, deltas=False) as (_, peer):
        with pytest.raises(PeerError) as caught:
            await peer.peer.request(rev(held, str(held.version), b'{"n":2}'))
        assert caught.value.code == 422


@pytest.mark.behaviour("D5")
async def test_a_puller_waits_for_the_body_after_it_refused_a_delta(here, there, autojump_clock):
    """D5: the base was dropped at the receiver after it was announced."""
    await there.default_collection.put("a", {"n": 1, **FILLING})
    await sync(here, there)
    await there.default_collection.put("a", {"n": 2, **FILLING})
    sides = Sides()
    near, far = memory_transport_pair()

    class Meddled:
        """A transport on which the receiver's document is purged once its base was announced."""

        def __init__(self, transport):
            self.transport = transport
            self.sent = 0

        def __getattr__(self, name):
            return getattr(self.transport, name)

        async def send_all(self, messages):
            await self.transport.send_all(messages)
            if any(b"deltas" in bytes(message) for message in messages):
                await here.default_collection.purge("a")

    served = PassiveSession(far, there.collections(), sides.passive, deltas=True)
    with trio.fail_after(STALL_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            session = active_session(
                here, Meddled(near), sides.active, push=False, compression=False
            )
            await session.run()
    assert here.default_collection.get("a")["n"] == 2
    assert sides.deltas == [(0, 0), (0, 0)]
    assert not sides.failures
    assert sides.active.statistics().documents_pulled == 1


async def test_ancestors_are_announced_only_if_their_bodies_are_held(here, there, autojump_clock):
    """After an edit here, what the peer has is a base as long as it is kept."""
    base = await there.default_collection.put("a", {"n": 1, **FILLING})
    await sync(here, there)
    edited = await here.default_collection.put("a", {"n": 1, "here": True, **FILLING})
    await there.default_collection.put("a", {"n": 2, **FILLING})
    asked = await offered_ancestors(here, there)
    assert asked == [str(edited.version), str(base.version)]
    await here.engine.write(
        lambda txn: bases.drop_all(txn, here.default_collection.number, base.id)
    )
    assert await offered_ancestors(here, there) == [str(edited.version)]


async def offered_ancestors(here, there):
    """What a pull answers to the only change it is offered."""
    change = there.default_collection.get("a")
    offer = orjson.dumps([[change.sequence, "a", str(change.version), 0, 600]])
    answers = []

    def answer(message):
        match message.properties["Profile"]:
            case "getCollections":
                return Message({"uuid": str(there.id)}, b"[{}]")
            case "getCheckpoint":
                return 404
            case "subChanges":
                head = {"Profile": "changes", "collection": "0"}
                peer.peer.send(Message(head, offer), answers.append)
        return Message({"rev": "1-cc"})

    near, far = memory_transport_pair()
    peer = RawPeer(far, answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        nursery.start_soon(active_session(here, near, Journal(), push=False).run)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return orjson.loads(answers[0].body)[0]


async def test_a_pull_filter_sees_the_whole_document(here, there, autojump_clock):
    """D1, with a filter: what it rejects is no failure of the delta."""
    for name in ("kept", "rejected"):
        await there.default_collection.put(name, {"name": name, "n": 1, **FILLING})
    await sync(here, there)
    for name in ("kept", "rejected"):
        await there.default_collection.put(name, {"name": name, "n": 2, **FILLING})
    seen = []

    def pull_filter(document, flags):
        seen.append(document.body)
        return document["name"] == "kept"

    sides = await sync(here, there, pull_filter=pull_filter)
    assert sorted(body["name"] for body in seen) == ["kept", "rejected"]
    assert all(body == {"name": body["name"], "n": 2, **FILLING} for body in seen)
    assert sides.deltas == [(0, 1), (1, 0)]
    assert [event.document_id for event in sides.active.failures] == ["rejected"]
    found = {name: here.default_collection.get(name)["n"] for name in ("kept", "rejected")}
    assert found == {"kept": 2, "rejected": 1}


# --- Conflicts ------------------------------------------------------------------------------------


async def test_a_conflicting_revision_comes_as_a_delta(here, there, autojump_clock):
    """It starts from the last revision that both had, which either side keeps."""
    await here.default_collection.put("a", {"n": 1, **FILLING})
    await sync(here, there)
    await here.default_collection.put("a", {"n": 1, "here": True, **FILLING})
    await trio.sleep(1)
    await there.default_collection.put("a", {"n": 1, "there": True, **FILLING})
    sides = await sync(here, there)
    assert sides.active.statistics().conflicts_resolved == 1
    assert sides.active.statistics().deltas_received == 1
    assert await bodies(here) == await bodies(there)
    assert here.default_collection.get("a")["there"]


# --- Anything -------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["here", "there"]),
        st.sampled_from(["a", "b"]),
        st.none() | st.dictionaries(st.sampled_from(["f00", "f01", "g"]), st.integers(0, 9)),
    )
    | st.sampled_from(["push", "pull", "both", "compact"]),
    max_size=12,
)


@given(steps)
def test_whatever_is_edited_where_both_sides_end_up_with_it(history):
    trio.run(play, history, clock=MockClock(autojump_threshold=0))


async def play(history):
    with tempfile.TemporaryDirectory() as directory:
        async with (
            open_test_database(Path(directory) / "here", clock=clock) as here,
            open_test_database(Path(directory) / "there", clock=clock) as there,
        ):
            for step in [*history, "both", "both"]:
                await trio.sleep(1)
                match step:
                    case "compact":
                        await here.compact()
                    case str():
                        sides = await sync(here, there, push=step != "pull", pull=step != "push")
                        (sent, received), (sent_back, received_back) = sides.deltas
                        assert (sent, received) == (received_back, sent_back)
                    case where, name, changes:
                        await edit(here if where == "here" else there, name, changes)
            assert await bodies(here) == await bodies(there)


async def edit(database, name, changes):
    notes = database.default_collection
    current = notes.get(name)
    if changes is not None:
        await notes.put(name, {**(current.body if current else FILLING), **changes})
    elif current is not None:
        await notes.delete(name)
