"""Two collections against two dictionaries, through crashes and restarts."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_p2p.errors import ConflictError, DocumentNotFoundError, StoreClosedError
from trio_p2p.model.version import Order
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.driver import TrioDriver

names = st.sampled_from(["_default", "other"])
document_ids = st.sampled_from(["a", "a b", "b", "é", "😀"])
bodies = st.dictionaries(st.sampled_from("xyz"), st.integers(-5, 5), max_size=2)
edits = st.lists(st.tuples(document_ids, bodies | st.none()), max_size=6)
NOW = 1_800_000_000 * 10**9


async def hold_open(path, closing, task_status):
    async with open_test_database(path, clock=lambda: NOW) as db:
        await db.create_collection("other")
        task_status.started(db)
        await closing.wait()


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.driver = TrioDriver()
        self.live = {"_default": {}, "other": {}}
        self.last = {"_default": {}, "other": {}}  # The latest document object of each ID.
        self.sequence = {"_default": 0, "other": 0}
        self.open()

    def open(self):
        self.closing = trio.Event()
        path = Path(self.directory.name) / "db"
        self.db = self.driver.run(self.driver.nursery.start, hold_open, path, self.closing)

    def teardown(self):
        self.driver.close()
        self.directory.cleanup()

    def note(self, name, document):
        """An edit was acknowledged: every one is later than all before it."""
        before = self.last[name].get(document.id)
        assert before is None or document.vector.compare(before.vector) is Order.NEWER
        assert document.sequence > self.sequence[name]
        self.sequence[name] = document.sequence
        self.last[name][document.id] = document
        if document.deleted:
            del self.live[name][document.id]
        else:
            self.live[name][document.id] = document.body

    @rule(name=names, document_id=document_ids, body=bodies)
    def put(self, name, document_id, body):
        collection = self.db.collection(name)
        document = self.driver.run(collection.put, document_id, body)
        assert document.body == body
        self.note(name, document)

    @rule(name=names, document_id=document_ids)
    def delete(self, name, document_id):
        collection = self.db.collection(name)
        try:
            document = self.driver.run(collection.delete, document_id)
        except DocumentNotFoundError:
            assert document_id not in self.live[name]
        else:
            self.note(name, document)

    @rule(name=names, document_id=document_ids, expected=document_ids | st.none(), body=bodies)
    def put_expecting(self, name, document_id, expected, body):
        """With the latest document of some ID, or with None, as what must be current."""
        collection = self.db.collection(name)
        wanted = self.last[name].get(expected)
        current = self.last[name].get(document_id)

        async def put():
            return await collection.put(document_id, body, expected=wanted)

        if wanted == current if wanted else document_id not in self.live[name]:
            self.note(name, self.driver.run(put))
            return
        with pytest.raises(ConflictError) as caught:
            self.driver.run(put)
        assert caught.value.current == current

    @rule(name=names, document_id=document_ids)
    def update(self, name, document_id):
        collection = self.db.collection(name)
        before = self.live[name].get(document_id)

        def count(body):
            assert body == before
            return {"x": (body or {}).get("x", 0) + 1}

        self.note(name, self.driver.run(collection.update, document_id, count))

    @rule(name=names, edits=edits)
    def batch(self, name, edits):
        collection = self.db.collection(name)

        async def write():
            async with collection.batch() as batch:
                for document_id, body in edits:
                    if body is None:
                        batch.delete(document_id)
                    else:
                        batch.put(document_id, body)

        after = dict(self.live[name])
        fails = False
        for document_id, body in edits:
            if body is None:
                fails |= after.pop(document_id, None) is None
            else:
                after[document_id] = body
        try:
            self.driver.run(write)
        except DocumentNotFoundError:
            assert fails
            return
        assert not fails
        self.live[name] = after
        self.sequence[name] += len(edits)
        for document_id, _ in edits:
            self.last[name][document_id] = collection.get(document_id, deleted=True)

    @rule(
        name=names, puts=st.dictionaries(document_ids, bodies, max_size=4), turns=st.integers(0, 8)
    )
    def crash_during_puts(self, name, puts, turns):
        """What was acknowledged is there afterwards; the rest is there wholly or not at all."""
        collection = self.db.collection(name)
        acknowledged = []

        async def put(document_id, body):
            with suppress(StoreClosedError):
                acknowledged.append(await collection.put(document_id, body))

        async def crash():
            async with trio.open_nursery() as nursery:
                for document_id, body in puts.items():
                    nursery.start_soon(put, document_id, body)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                self.db.engine.abort()

        self.driver.run(crash)
        self.closing.set()
        self.open()
        for document in sorted(acknowledged, key=lambda document: document.sequence):
            self.note(name, document)
        assert self.db.collection(name).last_sequence == self.sequence[name]

    @precondition(lambda self: any(self.sequence.values()))
    @rule()
    def close_and_reopen(self):
        self.closing.set()
        self.driver.settle()
        self.open()

    @invariant()
    def documents_are_those_of_the_model(self):
        for name, live in self.live.items():
            collection = self.db.collection(name)
            assert collection.count == len(live)
            assert {i: d.body for i, d in self.scan(collection).items()} == live
            assert list(self.scan(collection)) == sorted(live)
            assert self.scan(collection, include_deleted=True) == self.last[name]
            for document_id in self.last[name]:
                assert collection.get(document_id, deleted=True) == self.last[name][document_id]

    @invariant()
    def changes_are_the_latest_of_each_document(self):
        for name, last in self.last.items():
            collection = self.db.collection(name)
            assert collection.last_sequence == self.sequence[name]

            async def read(collection=collection):
                return [change async for change in collection.changes(live=False)]

            expected = sorted((d.sequence, d.id, d.version, d.deleted) for d in last.values())
            assert self.driver.run(read) == expected

    def scan(self, collection, **options):
        async def read():
            return {document.id: document async for document in collection.documents(**options)}

        return self.driver.run(read)


TestStore = StoreMachine.TestCase
