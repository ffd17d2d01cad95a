"""Saving checkpoints."""

import pytest

from trio_p2p.errors import CollectionNotFoundError
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
