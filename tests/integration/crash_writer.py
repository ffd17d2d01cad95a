"""What the crash test kills: a process that writes to a database from several tasks at once.

It tells on a pipe, one JSON value a line, what it found at its opening, what each task is about to
do, and that this was acknowledged. The state of a database is told as a flat mapping of strings:

* `@shop` for a collection;
* `shop/a` for a document: a digest of its body, or that it was deleted;
* `shop/a!` for its expiration;
* `shop/a#3` for what task 3 counted in a document that all tasks update.

Everything belongs to one task, which does one thing at a time. So what a task's part of the state
must be after a crash is known but for the one thing that was under way, and that must have happened
whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import trio

from trio_p2p.errors import ConflictError, DocumentNotFoundError
from trio_p2p.model.blob import format_digest
from trio_p2p.store.database import open_database
from trio_p2p.testing.integrity import check_store

TASKS = 6
DOCUMENTS = 5
SHARED = 2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Some bodies are larger than a page.
LENGTHS = [0, 10, 100, 1000, 5000, 40_000]


def write(path, seed, durable, behind_ns, operations, pipe):
    """Write to the database until killed, or if told a number of operations, until all are done.

    The clock is so much behind the real one.
    """
    trio.run(_write, Path(path), seed, durable, behind_ns, operations, Teller(pipe))


class Teller:
    def __init__(self, pipe):
        self._pipe = pipe

    def tell(self, *values):
        line = json.dumps(values).encode() + b"\n"
        while line:
            line = line[os.write(self._pipe, line) :]


async def _write(path, seed, durable, behind_ns, operations, teller):
    opening = open_database(path, durable=durable, clock=lambda: time.time_ns() - behind_ns)
    async with opening as db:
        check_store(db.engine)
        teller.tell("found", await tell_state(db))
        await check_backups(db, path)
        async with trio.open_nursery() as nursery:
            for number in range(TASKS):
                random = Random(f"{seed} {number}")
                nursery.start_soon(Writer(db, number, random, teller).run, operations)


async def tell_state(db):
    """The state as told above; of each document its sequence and time; of each collection the last
    sequence."""
    state, stamps, last = {}, {}, {}
    for collection in db.collections():
        state[f"@{collection.full_name}"] = "is there"
        last[collection.full_name] = collection.last_sequence
        async for document in collection.documents(include_deleted=True):
            name = f"{collection.full_name}/{document.id}"
            stamps[name] = stamp(document)
            if document.id.startswith("shared"):
                for task, count in document.body.items():
                    state[f"{name}#{task}"] = str(count)
            else:
                state[name] = "deleted" if document.deleted else digest(document.body)
            if (when := collection.expiration(document.id)) is not None:
                state[f"{name}!"] = str(when)
        # The feed tells the same documents in order of their sequences.
        changes = [change async for change in collection.changes(live=False)]
        fed = {
            f"{collection.full_name}/{change.document_id}": [change.sequence, change.version.time]
            for change in changes
        }
        assert fed == {name: stamps[name] for name in fed}
        assert len(fed) == sum(name.startswith(f"{collection.full_name}/") for name in stamps)
        assert sorted(change.sequence for change in changes) == [c.sequence for c in changes]
    return state, stamps, last


async def check_backups(db, path):
    """Whatever stands where a backup was to go is a whole database with an identity of its own."""
    for directory in path.parent.glob("backup-*"):
        async with open_database(directory) as backup:
            check_store(backup.engine)
            assert backup.id != db.id
            assert backup.source_id != db.source_id
        # This may be interrupted too.
        shutil.rmtree(directory.rename(directory.with_name(f"old-{directory.name}")))


def stamp(document):
    return [document.sequence, document.version.time]


def digest(body):
    """Of a body; a blob counts by its own digest."""
    text = json.dumps(body, sort_keys=True, default=lambda blob: blob.digest)
    return hashlib.sha1(text.encode()).hexdigest()


class Writer:
    """One of the tasks."""

    def __init__(self, db, number, random, teller):
        self.db = db
        self.shop = db.default_collection
        self.number = number
        self.random = random
        self.teller = teller
        self.made = 0
        self.names = [f"t{number}-{i}" for i in range(DOCUMENTS)]

    async def run(self, operations):
        kinds = [
            self.put,
            self.put,
            self.put_unexpected,
            self.delete,
            self.purge,
            self.put_blobs,
            self.put_blobs,
            self.update,
            self.count,
            self.count,
            self.batch,
            self.batch,
            self.fail_batch,
            self.expire,
            self.collect,
            self.tidy,
        ]
        while operations is None or self.made < operations:
            await self.random.choice(kinds)()

    async def do(self, effects, act):
        """Tell what will have changed, do it, and tell that it was acknowledged.

        `act` returns documents; a name without a value in `effects` is gone afterwards.
        """
        self.made += 1
        self.teller.tell("begins", self.number, effects)
        documents = await act()
        stamps = {f"{d.collection.full_name}/{d.id}": stamp(d) for d in documents}
        self.teller.tell("done", self.number, stamps)

    def body(self):
        return {
            "by": [self.number, self.made, self.random.getrandbits(53)],
            "text": "x" * self.random.choice(LENGTHS),
        }

    async def put(self, collection=None):
        collection = collection or self.shop
        name, body = self.random.choice(self.names), self.body()

        async def act():
            return [await collection.put(name, body)]

        await self.do({f"{collection.full_name}/{name}": digest(body)}, act)

    async def put_blobs(self):
        """Some of them others have too, or had."""
        contents = [b"shared %d" % self.random.randrange(5), self.random.randbytes(60_000)]
        if self.random.randrange(2):
            del contents[1]
        name, body = self.random.choice(self.names), self.body()
        digests = [format_digest(hashlib.sha1(content).digest()) for content in contents]

        async def act():
            blobs = [await self.db.save_blob(content) for content in contents]
            return [await self.shop.put(name, body | {"blobs": blobs})]

        await self.do({f"_default/{name}": digest(body | {"blobs": digests})}, act)

    async def put_unexpected(self):
        """It must not exist but may: nothing changes then."""
        name, body = self.random.choice(self.names), self.body()
        is_free = self.shop.get(name) is None

        async def act():
            try:
                document = await self.shop.put(name, body, expected=None)
            except ConflictError:
                assert not is_free
                return []
            assert is_free
            return [document]

        await self.do({f"_default/{name}": digest(body)} if is_free else {}, act)

    async def delete(self):
        name = self.random.choice(self.names)
        if self.shop.get(name) is None:
            return await self.put()

        async def act():
            return [await self.shop.delete(name)]

        await self.do({f"_default/{name}": "deleted"}, act)

    async def purge(self):
        name = self.random.choice(self.names)

        async def act():
            await self.shop.purge(name)
            return []

        await self.do({f"_default/{name}": None, f"_default/{name}!": None}, act)

    async def update(self):
        name, body = self.random.choice(self.names), self.body()

        async def act():
            return [await self.shop.update(name, lambda before: body)]

        await self.do({f"_default/{name}": digest(body)}, act)

    async def count(self):
        """Several tasks update one document, each its own field of it."""
        name, key = f"shared-{self.random.randrange(SHARED)}", str(self.number)
        found = self.shop.get(name)
        next_count = (found.body if found else {}).get(key, 0) + 1

        async def act():
            return [await self.shop.update(name, lambda body: (body or {}) | {key: next_count})]

        await self.do({f"_default/{name}#{key}": str(next_count)}, act)

    async def batch(self):
        effects, edits = {}, []
        live = {name for name in self.names if self.shop.get(name)}
        for _ in range(self.random.randrange(1, 12)):
            name, kind = self.random.choice(self.names), self.random.choice(["put", "put", "gone"])
            if kind == "put":
                body = self.body()
                edits.append((name, body))
                effects[f"_default/{name}"] = digest(body)
                live.add(name)
            elif name in live:
                edits.append((name, "delete"))
                effects[f"_default/{name}"] = "deleted"
                live.remove(name)
            else:
                edits.append((name, "purge"))
                effects[f"_default/{name}"] = effects[f"_default/{name}!"] = None
        await self.do(effects, lambda: self.write_batch(edits))

    async def write_batch(self, edits):
        async with self.shop.batch() as batch:
            for name, body in edits:
                if body == "delete":
                    batch.delete(name)
                elif body == "purge":
                    batch.purge(name)
                else:
                    batch.put(name, body)
        found = (self.shop.get(name, deleted=True) for name in {name for name, _ in edits})
        return [document for document in found if document]

    async def fail_batch(self):
        """The last edit cannot be done, so none is."""
        edits = [(name, self.body()) for name in self.names]

        async def act():
            try:
                await self.write_batch([*edits, ("never", "delete")])
            except DocumentNotFoundError:
                return []
            raise AssertionError("a document was deleted that was never there")

        await self.do({}, act)

    async def expire(self):
        """Far in the future, or never."""
        name = self.random.choice(self.names)
        if self.shop.get(name) is None:
            return await self.put()
        days = self.random.choice([None, *range(100_000, 100_009)])
        when = None if days is None else EPOCH + timedelta(days=days)

        async def act():
            await self.shop.set_expiration(name, when)
            return []

        await self.do({f"_default/{name}!": None if when is None else str(when)}, act)

    async def collect(self):
        """Make a collection of this task's own, write to it, or delete it."""
        name = f"own{self.number}"
        found = [c for c in self.db.collections() if c.full_name == name]
        if not found:

            async def create():
                await self.db.create_collection(name)
                return []

            await self.do({f"@{name}": "is there"}, create)
        elif self.random.randrange(4):
            await self.put(found[0])
        else:
            effects = {f"@{name}": None}
            async for document in found[0].documents(include_deleted=True):
                effects[f"{name}/{document.id}"] = None

            async def delete():
                await self.db.delete_collection(name)
                return []

            await self.do(effects, delete)

    async def tidy(self):
        """What changes nothing that users see."""
        target = self.db.path.with_name(f"backup-{self.random.getrandbits(64)}")

        async def act():
            if self.random.randrange(4):
                await self.db.compact()
            else:
                await self.db.backup(target)
            return []

        await self.do({}, act)
