"""Saving checkpoints."""

import pytest

from trio_p2p.errors import CollectionNotFoundError, PeerError
from trio_p2p.ids import DocumentID
from trio_p2p.model.sequence_set import SequenceSet
from trio_p2p.model.version import TreeRevisionID
from trio_p2p.replication.checkpoint import Checkpoint
from trio_p2p.replication.checkpointer import Checkpointer
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.knowledge import RemoteKnowledge
from trio_p2p.replication.link import Link, Pulse
from trio_p2p.replication.messages import HeldCheckpoint
from trio_p2p.store import checkpoints
from trio_p2p.testing.databases import open_test_database


class Peer:
    """Takes a checkpoint; meanwhile the collection is deleted here and made anew."""

    def __init__(self, database):
        self.database = database

    async def set_checkpoint(self, collection, client, revision, body):
        await self.database.delete_collection("notes")
        await self.database.create_collection("notes")
        return "1-cc"


async def test_a_collection_made_anew_does_not_find_the_checkpoint_of_the_old_one(tmp_path):
    """A session may be saving it just then; the new collection is to get everything again."""
    async with open_test_database(tmp_path / "db") as database:
        notes = await database.create_collection("notes")
        link = Link(notes, 0, Peer(database), Journal(), Pulse())
        knowledge = RemoteKnowledge(1, notes.number)
        checkpointer = Checkpointer(
            link, "cp", HeldCheckpoint("", b"{}"), knowledge, now_s=lambda: 0
        )
        with pytest.raises(CollectionNotFoundError):
            await checkpointer.save()
        with database.engine.read() as txn:
            assert checkpoints.local(txn, "cp") is None


class FullPeer:
    """Takes no checkpoint until there is room for it."""

    def __init__(self):
        self.has_room = False
        self.held = None

    async def set_checkpoint(self, collection, client, revision, body):
        if not self.has_room:
            raise PeerError("HTTP", 503, "the disk is full")
        self.held = body
        return "1-cc"


async def test_what_the_peer_cannot_save_for_now_is_saved_with_what_is_done_next(tmp_path):
    async with open_test_database(tmp_path / "db") as database:
        peer = FullPeer()
        link = Link(database.default_collection, 0, peer, Journal(), Pulse())
        knowledge = RemoteKnowledge(1, link.number)
        checkpointer = Checkpointer(
            link, "cp", HeldCheckpoint("", b"{}"), knowledge, now_s=lambda: 0
        )
        checkpointer.checkpoint.local.add(1)
        knowledge.note(DocumentID("a"), TreeRevisionID.parse("1-aa"))
        await checkpointer.save()
        following = Checkpointer(link, "cp", HeldCheckpoint("", b"{}"), knowledge, now_s=lambda: 0)
        assert following.checkpoint == Checkpoint()
        # Nobody waits for it, and nothing more is held in memory for it.
        assert (checkpointer.unsaved, knowledge.take_noted()) == (0, {})
        peer.has_room = True
        checkpointer.checkpoint.local.add(2)
        assert checkpointer.unsaved == 1
        await checkpointer.save()
        with database.engine.read() as txn:
            assert checkpoints.local(txn, "cp") == peer.held
        assert Checkpoint.from_json(peer.held).local.low_water == 2


@pytest.fixture
async def begin(tmp_path):
    """Begins sessions with a peer that has no room for another checkpoint than the first one.

    Both sides have that: 2 of 3 documents are done, and the peer vouches for what it had of all.
    """
    async with open_test_database(tmp_path / "db") as database:
        for name in "abc":
            await database.default_collection.put(name, {})
        body = Checkpoint(SequenceSet([(0, 3)]), "7").to_json(0)
        await database.engine.write(
            lambda txn: checkpoints.set_local(txn, "cp", body, remote=1, seen=3)
        )
        link = Link(database.default_collection, 0, FullPeer(), Journal(), Pulse())

        def begin():
            knowledge = RemoteKnowledge(1, link.number)
            held = HeldCheckpoint("1-cc", body)
            return Checkpointer(link, "cp", held, knowledge, now_s=lambda: 0)

        yield begin


async def test_who_starts_over_does_so_though_the_peer_cannot_save_it_for_now(begin):
    """The next session must not go on from the copies that are to be forgotten."""
    checkpointer = begin()
    assert (checkpointer.checkpoint.local.low_water, checkpointer.seen) == (2, 3)
    checkpointer.forget()
    checkpointer.checkpoint.local.add(1)
    await checkpointer.save()
    following = begin()
    assert following.checkpoint == Checkpoint(SequenceSet([(0, 2)]), None)
    assert following.seen == 0


async def test_no_copy_vouches_for_what_was_learned_after_the_peer_stored_it(begin):
    """The peer may be rolled back to that."""
    checkpointer = begin()
    checkpointer.checkpoint.local.add(3)
    await checkpointer.save()
    following = begin()
    assert (following.checkpoint.local.low_water, following.seen) == (2, 0)
