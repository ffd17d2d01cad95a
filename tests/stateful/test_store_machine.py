"""Databases against dictionaries, through crashes, restarts, backups and the passing of time."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_p2p.errors import (
    CollectionNotFoundError,
    ConflictError,
    DocumentNotFoundError,
    StoreClosedError,
)
from trio_p2p.model.document import Document
from trio_p2p.model.version import Order
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.driver import TrioDriver
from trio_p2p.testing.integrity import check_store

NAMES = ["_default", "other", "shop.other"]
START = datetime(2027, 1, 1, tzinfo=UTC)

names = st.sampled_from(NAMES)
document_ids = st.sampled_from(["a", "a b", "b", "é", "😀"])
bodies = st.dictionaries(st.sampled_from("xyz"), st.integers(-5, 5), max_size=2)
PURGE = "purge"
edits = st.lists(st.tuples(document_ids, bodies | st.none() | st.just(PURGE)), max_size=6)
seconds = st.integers(0, 20)
contents = st.sampled_from([b"", b"one", b"two"])


@dataclass
class Model:
    """What a collection must hold."""

    sequence: int = 0
    live: dict[str, dict[str, Any]] = field(default_factory=dict)
    # The latest document object of each ID, tombstones included.
    last: dict[str, Document] = field(default_factory=dict)
    expires: dict[str, datetime] = field(default_factory=dict)

    def note(self, document):
        """An edit was acknowledged: every one is later than all before it."""
        before = self.last.get(document.id)
        assert before is None or document.vector.compare(before.vector) is Order.NEWER
        assert document.sequence > self.sequence
        self.sequence = document.sequence
        self.last[document.id] = document
        if document.deleted:
            del self.live[document.id]
        else:
            self.live[document.id] = document.body

    def forget(self, document_id):
        self.live.pop(document_id, None)
        self.last.pop(document_id, None)
        self.expires.pop(document_id, None)


async def hold_open(path, clock, closing, task_status):
    async with open_test_database(path, clock=clock) as db:
        task_status.started(db)
        await closing.wait()


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.driver = TrioDriver()
        self.now = START
        self.models = {"_default": Model()}
        self.dropped = []  # Objects of deleted collections.
        self.floor = 0  # The greatest sequence of any of them.
        self.identities = set()  # All that there ever were but the present one.
        self.copies = 0
        self.path = Path(self.directory.name) / "db"
        self.open()
        self.identity = self.db.id

    def open(self):
        self.closing = trio.Event()
        self.db = self.driver.run(
            self.driver.nursery.start, hold_open, self.path, self.clock, self.closing
        )
        check_store(self.db.engine)

    def close(self):
        self.closing.set()
        self.driver.settle()

    def clock(self):
        return (self.now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000

    def collection(self, name):
        """The collection, and its model; made if it is missing."""
        collection = self.driver.run(self.db.create_collection, name)
        return collection, self.models.setdefault(name, Model(self.floor))

    def teardown(self):
        self.driver.close()
        self.directory.cleanup()

    @rule(name=names, document_id=document_ids, body=bodies)
    def put(self, name, document_id, body):
        collection, model = self.collection(name)
        document = self.driver.run(collection.put, document_id, body)
        assert document.body == body
        model.note(document)

    @rule(name=names, document_id=document_ids, content=contents, write=st.booleans())
    def put_blob(self, name, document_id, content, write):
        """Some are saved and never named."""
        blob = self.driver.run(self.db.save_blob, content)
        if write:
            collection, model = self.collection(name)
            model.note(self.driver.run(collection.put, document_id, {"blob": blob}))

    @rule(name=names, document_id=document_ids)
    def delete(self, name, document_id):
        collection, model = self.collection(name)
        try:
            document = self.driver.run(collection.delete, document_id)
        except DocumentNotFoundError:
            assert document_id not in model.live
        else:
            model.note(document)

    @rule(name=names, document_id=document_ids)
    def purge(self, name, document_id):
        collection, model = self.collection(name)
        assert self.driver.run(collection.purge, document_id) == (document_id in model.last)
        model.forget(document_id)

    @rule(name=names, document_id=document_ids, after=seconds | st.none())
    def set_expiration(self, name, document_id, after):
        collection, model = self.collection(name)
        when = None if after is None else self.now + timedelta(seconds=after)
        try:
            self.driver.run(collection.set_expiration, document_id, when)
        except DocumentNotFoundError:
            assert document_id not in model.live
            return
        assert document_id in model.live
        model.expires.pop(document_id, None)
        if when is not None:
            model.expires[document_id] = when
        self.pass_time(0)

    @rule(after=seconds)
    def pass_time(self, after):
        self.now += timedelta(seconds=after)
        self.driver.run(self.db.compact)
        for model in self.models.values():
            for document_id, when in list(model.expires.items()):
                if when <= self.now:
                    model.forget(document_id)

    @rule(name=names, document_id=document_ids, expected=document_ids | st.none(), body=bodies)
    def put_expecting(self, name, document_id, expected, body):
        """With the latest document of some ID, or with None, as what must be current."""
        collection, model = self.collection(name)
        wanted = model.last.get(expected)
        current = model.last.get(document_id)

        async def put():
            return await collection.put(document_id, body, expected=wanted)

        if wanted == current if wanted else document_id not in model.live:
            model.note(self.driver.run(put))
            return
        with pytest.raises(ConflictError) as caught:
            self.driver.run(put)
        assert caught.value.current == current

    @rule(name=names, document_id=document_ids)
    def update(self, name, document_id):
        collection, model = self.collection(name)
        before = model.live.get(document_id)

        def count(body):
            assert body == before
            return {"x": (body or {}).get("x", 0) + 1}

        model.note(self.driver.run(collection.update, document_id, count))

    @rule(name=names, edits=edits)
    def batch(self, name, edits):
        collection, model = self.collection(name)

        async def write():
            async with collection.batch() as batch:
                for document_id, body in edits:
                    if body is None:
                        batch.delete(document_id)
                    elif body == PURGE:
                        batch.purge(document_id)
                    else:
                        batch.put(document_id, body)

        after, fails = dict(model.live), False
        for document_id, body in edits:
            if body is None or body == PURGE:
                found = after.pop(document_id, None)
                fails |= body is None and found is None
            else:
                after[document_id] = body
        try:
            self.driver.run(write)
        except DocumentNotFoundError:
            assert fails
            return
        assert not fails
        model.sequence += sum(body != PURGE for _, body in edits)
        for document_id, body in edits:
            if body == PURGE:
                model.forget(document_id)
        model.live = after
        for document_id in {document_id for document_id, _ in edits}:
            if document := collection.get(document_id, deleted=True):
                model.last[document_id] = document

    @rule(name=st.sampled_from(NAMES[1:]))
    def delete_collection(self, name):
        if name not in self.models:
            with pytest.raises(CollectionNotFoundError):
                self.driver.run(self.db.delete_collection, name)
            return
        self.dropped.append(self.db.collection(name))
        self.driver.run(self.db.delete_collection, name)
        self.floor = max(self.floor, self.models.pop(name).sequence)

    @rule()
    def renew_identity(self):
        self.driver.run(self.db.renew_identity)
        self.identities.add(self.identity)
        self.identity = self.db.id
        assert self.identity not in self.identities

    @rule(write=st.booleans())
    def go_on_with_a_backup(self, write):
        """The copy is as the database was, whatever is written afterwards, but has another ID."""
        self.copies += 1
        target = self.path.with_name(f"copy{self.copies}")
        self.driver.run(self.db.backup, target)
        if write:
            self.driver.run(self.db.default_collection.put, "a", {"written": "later"})
        self.close()
        self.path = target
        self.dropped.clear()
        self.open()
        self.identities.add(self.identity)
        self.identity = self.db.id
        assert self.identity not in self.identities

    @rule(
        name=names, puts=st.dictionaries(document_ids, bodies, max_size=4), turns=st.integers(0, 8)
    )
    def crash_during_puts(self, name, puts, turns):
        """What was acknowledged is there afterwards; the rest is there wholly or not at all."""
        collection, model = self.collection(name)
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
        self.reopen()
        for document in sorted(acknowledged, key=lambda document: document.sequence):
            model.note(document)
        assert self.db.collection(name).last_sequence == model.sequence

    @precondition(lambda self: any(model.sequence for model in self.models.values()))
    @rule()
    def close_and_reopen(self):
        self.reopen()

    def reopen(self):
        self.close()
        self.dropped.clear()
        self.open()
        assert self.db.id == self.identity

    @invariant()
    def collections_are_those_of_the_model(self):
        assert {found.full_name for found in self.db.collections()} == set(self.models)
        for collection in self.dropped:
            with pytest.raises(CollectionNotFoundError):
                collection.get("a")

    @invariant()
    def documents_are_those_of_the_model(self):
        for name, model in self.models.items():
            collection = self.db.collection(name)
            assert collection.count == len(model.live)
            assert {i: d.body for i, d in self.scan(collection).items()} == model.live
            assert list(self.scan(collection)) == sorted(model.live)
            assert self.scan(collection, include_deleted=True) == model.last
            for document_id in model.last:
                assert collection.get(document_id, deleted=True) == model.last[document_id]
                assert collection.expiration(document_id) == model.expires.get(document_id)

    @invariant()
    def blobs_that_documents_name_are_there(self):
        for model in self.models.values():
            for body in model.live.values():
                if blob := body.get("blob"):
                    found = self.db.engine.blobs.named(blob.blob_properties())
                    content = self.driver.run(found.read)
                    assert len(content) == blob.length

    @invariant()
    def changes_are_the_latest_of_each_document(self):
        for name, model in self.models.items():
            collection = self.db.collection(name)
            assert collection.last_sequence == model.sequence

            async def read(collection=collection):
                return [change async for change in collection.changes(live=False)]

            expected = sorted((d.sequence, d.id, d.version, d.deleted) for d in model.last.values())
            assert self.driver.run(read) == expected

    @invariant()
    def statistics_count_what_there_is(self):
        told = self.db.statistics()
        assert told.collections == len(self.models)
        assert told.documents == sum(len(model.live) for model in self.models.values())
        assert told.expirations == sum(len(model.expires) for model in self.models.values())

    def scan(self, collection, **options):
        async def read():
            return {document.id: document async for document in collection.documents(**options)}

        return self.driver.run(read)


TestStore = StoreMachine.TestCase
