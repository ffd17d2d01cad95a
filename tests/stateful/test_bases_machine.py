"""Old revisions are kept while a peer may need them, and no longer.

A model keeps every revision that ever was and tells, after each step, which ones some peer has and
which ones a resolver may ask for; the store must hold just those, with their bodies.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trio_p2p import limits
from trio_p2p.errors import DocumentNotFoundError
from trio_p2p.ids import SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import merge_revisions
from trio_p2p.model.document import Revision
from trio_p2p.model.version import Version
from trio_p2p.store import bases, checkpoints, conflicts, documents, remotes
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.driver import TrioDriver
from trio_p2p.testing.integrity import check_store

NOW = 1_800_000_000 * 10**9
OTHERS = [SourceID(letter * 16) for letter in (b"a", b"b")]
NAMES = ["_default", "other"]
REMOTES_MAX = 3
CLIENTS_MAX = 2
BASES_MAX = 3

# Few, so that much happens to each: neighbours in one collection, and one in another.
names = st.sampled_from(NAMES)
places = st.sampled_from(
    [("_default", "a"), ("_default", "a"), ("_default", "a b"), ("other", "a")]
)
peers = st.sampled_from(["one", "two", "three", "four"])
clients = st.sampled_from(["ann", "bob", "eve"])


@dataclass
class Base:
    """A revision that was overwritten; `until` if clients can come past it."""

    revision: Revision
    since: int
    until: int | None


@dataclass
class Model:
    """What is known of one document."""

    history: list[Revision] = field(default_factory=list)
    current: Revision | None = None
    sequence: int = 0
    waiting: list[Revision] = field(default_factory=list)
    bases: list[Base] = field(default_factory=list)
    # What each peer is known to have, by the number of the peer.
    known: dict[int, object] = field(default_factory=dict)


class BasesMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="bases-"))
        self.patches = [
            mock.patch.object(limits, "REMOTES_MAX", REMOTES_MAX),
            mock.patch.object(limits, "PEER_CHECKPOINTS_MAX", CLIENTS_MAX),
            mock.patch.object(limits, "BASES_PER_DOCUMENT_MAX", BASES_MAX),
            # Less than one checkpoint may pass.
            mock.patch.object(limits, "TIDY_RECORDS", 1),
        ]
        for patch in self.patches:
            patch.start()
        self.driver = TrioDriver()
        self.edits = 0
        self.models: dict[tuple[str, str], Model] = defaultdict(Model)
        self.remotes: dict[str, int] = {}  # The one that was met least recently first.
        self.marks: dict[str, tuple[str, int]] = {}  # As above.
        self.open()

    def open(self):
        self.closing = trio.Event()
        self.db = self.driver.run(self.driver.nursery.start, self.hold_open, self.closing)
        self.collections = {
            name: self.driver.run(self.db.create_collection, name) for name in NAMES
        }

    async def hold_open(self, closing, task_status):
        async with open_test_database(self.directory / "db", clock=lambda: NOW) as db:
            task_status.started(db)
            await closing.wait()

    def teardown(self):
        self.driver.close()
        for patch in self.patches:
            patch.stop()
        shutil.rmtree(self.directory)

    def write(self, job):
        """Run a job, and whatever the janitor has to do after it."""
        result = self.driver.run(self.db.engine.write, job)
        self.db.engine.tidy_soon()
        self.driver.settle()
        return result

    def body(self):
        self.edits += 1
        return encode_body({"n": self.edits})

    def stamp(self):
        """A version by another database, later than all so far."""
        self.edits += 1
        return Version(NOW + (self.edits << 20), OTHERS[self.edits % 2])

    # --- The model ---

    def is_known(self, model, revision):
        return revision.id in model.known.values()

    def is_marked(self, name, since, until):
        return any(at == name and since <= reached < until for at, reached in self.marks.values())

    def replace(self, place, revision):
        """A revision became current."""
        name, _ = place
        model = self.models[place]
        old, since = model.current, model.sequence
        model.sequence = self.collections[name].last_sequence
        model.current = revision
        model.history.append(revision)
        if revision.deleted:
            model.bases.clear()
        elif old is not None and not old.deleted:
            until = model.sequence if self.is_marked(name, since, model.sequence) else None
            if until or self.is_known(model, old):
                self.keep(model, Base(old, since, until))
            elif (
                self.is_ours(revision)
                and not self.is_ours(old)
                and self.marks
                and not self.is_passed(name, model.sequence)
            ):
                # It was pushed. The latest is enough.
                model.bases = [base for base in model.bases if self.is_claimed(model, name, base)]
                self.keep(model, Base(old, since, model.sequence))

    def keep(self, model, base):
        model.bases.append(base)
        model.bases.sort(key=lambda base: base.revision.version)
        # The one that was added is not dropped: it is the newest, unless it waited for a resolver.
        while len(model.bases) > BASES_MAX:
            del model.bases[model.bases[0] is base]

    def is_claimed(self, model, name, base):
        return (
            self.is_known(model, base.revision)
            or (base.until and self.is_marked(name, base.since, base.until))
            or any(waiting.has(base.revision.id) for waiting in model.waiting)
        )

    def is_awaited(self, name, base):
        pushed = base.until and not self.is_ours(base.revision)
        return pushed and not self.is_passed(name, base.until)

    def is_ours(self, revision):
        return revision.version.source == self.db.engine.source

    def is_passed(self, name, sequence):
        return any(at == name and sequence <= reached for at, reached in self.marks.values())

    def drop_unneeded(self):
        for (name, _), model in self.models.items():
            model.bases = [
                base
                for base in model.bases
                if self.is_claimed(model, name, base) or self.is_awaited(name, base)
            ]

    # --- Steps ---

    @rule(place=places)
    def put(self, place):
        name, document_id = place
        body = self.body()
        collection = self.collections[name].number
        stored = self.write(lambda txn: documents.edit(txn, collection, document_id, body))
        self.replace(place, stored.revision)

    @rule()
    def put_all(self):
        """So that a client that catches up passes several bases at once."""
        for place in sorted(self.models):
            self.put(place)

    @rule(place=places)
    def delete(self, place):
        name, document_id = place
        collection = self.collections[name].number
        with suppress(DocumentNotFoundError):
            stored = self.write(lambda txn: documents.edit(txn, collection, document_id, None))
            self.replace(place, stored.revision)

    @rule(place=places, deleted=st.booleans())
    def receive(self, place, deleted):
        """A revision made elsewhere on top of the current one."""
        name, document_id = place
        model = self.models[place]
        if model.current is None:
            return
        body = encode_body({}) if deleted else self.body()
        revision = model.current.edited(self.stamp(), body, deleted=deleted)
        collection = self.collections[name].number
        self.write(lambda txn: documents.put_revision(txn, collection, document_id, revision))
        self.replace(place, revision)

    @rule(place=places, data=st.data())
    def receive_conflict(self, place, data):
        """A revision made elsewhere on top of an older one, to wait for a resolver."""
        name, document_id = place
        model = self.models[place]
        if len(model.history) < 2:
            return
        parent = data.draw(st.sampled_from(model.history[:-1]))
        revision = parent.edited(self.stamp(), self.body())
        collection = self.collections[name].number

        def job(txn):
            txn.clock.see(revision.version.time)
            if conflicts.add(txn, collection, document_id, revision):
                bases.drop_unneeded(txn, collection, document_id)
            return conflicts.of_document(txn, collection, document_id)

        model.waiting = self.write(job)

    @rule(place=places)
    def resolve(self, place):
        name, document_id = place
        model = self.models[place]
        if not model.waiting or model.current is None:
            return
        waiting = model.waiting.pop(0)
        body, collection = self.body(), self.collections[name].number

        def job(txn):
            conflicts.remove(txn, collection, document_id, waiting.version)
            merged = merge_revisions(model.current, waiting, body, False, txn.stamp())
            documents.put_revision(txn, collection, document_id, merged)
            bases.keep_merged(txn, collection, document_id, waiting)
            bases.drop_unneeded(txn, collection, document_id)
            return merged

        merged = self.write(job)
        self.replace(place, merged)
        if self.is_known(model, waiting):
            self.keep(model, Base(waiting, 0, None))

    @rule(place=places, peer=peers, data=st.data())
    def learn(self, place, peer, data):
        """A peer is met, and has one of the revisions that there ever were."""
        name, document_id = place
        model = self.models[place]
        if not model.history:
            return
        revision = data.draw(st.sampled_from(model.history + model.waiting))
        collection = self.collections[name].number
        number = self.meet(peer)
        args = (number, collection, document_id, revision.id)
        self.write(lambda txn: remotes.set_known(txn, *args))
        model.known[number] = revision.id

    @rule(peer=peers)
    def meet_without_learning(self, peer):
        self.meet(peer)

    def meet(self, peer):
        number = self.write(lambda txn: remotes.number(txn, peer))
        if peer not in self.remotes and len(self.remotes) == REMOTES_MAX:
            forgotten = self.remotes.pop(next(iter(self.remotes)))
            for model in self.models.values():
                model.known.pop(forgotten, None)
            self.drop_unneeded()
        assert self.remotes.pop(peer, number) == number
        self.remotes[peer] = number
        return number

    @rule(client=clients, name=names, back=st.integers(0, 6), ahead=st.integers(0, 2))
    def save_checkpoint(self, client, name, back, ahead):
        """A client says how far it has come, which may be less than before, or nonsense."""
        collection = self.collections[name]
        reached = max(collection.last_sequence - back, 0) + ahead

        def job(txn):
            kept = checkpoints.peer(txn, client)
            expected = kept.revision if kept else ""
            where = {"collection": collection.number, "reached": reached}
            checkpoints.set_peer(txn, client, expected, b"{}", **where)

        self.write(job)
        if client not in self.marks and len(self.marks) == CLIENTS_MAX:
            del self.marks[next(iter(self.marks))]
        self.marks.pop(client, None)
        self.marks[client] = (name, reached)

    @rule(
        what=st.sampled_from(
            ["purge", "delete_other_collection", "renew_identity", "compact", "reopen"]
        ),
        place=places,
    )
    def do_something_rare(self, what, place):
        getattr(self, what)(*[place] if what == "purge" else [])

    def purge(self, place):
        name, document_id = place
        self.driver.run(self.collections[name].purge, document_id)
        self.models.pop(place, None)

    def delete_other_collection(self):
        self.driver.run(self.db.delete_collection, "other")
        self.driver.settle()
        self.collections["other"] = self.driver.run(self.db.create_collection, "other")
        self.marks.clear()
        for place in list(self.models):
            if place[0] == "other":
                del self.models[place]

    def renew_identity(self):
        self.driver.run(self.db.renew_identity)
        self.marks.clear()
        self.remotes.clear()
        for model in self.models.values():
            model.known.clear()
            model.bases.clear()

    def compact(self):
        self.driver.run(self.db.compact)

    def reopen(self):
        self.closing.set()
        self.driver.settle()
        self.open()

    # --- What must hold ---

    @invariant()
    def the_bases_are_those_of_the_model(self):
        self.drop_unneeded()
        expected = {}
        for (name, document_id), model in self.models.items():
            collection = self.collections[name].number
            for base in model.bases:
                expected[collection, document_id, base.revision.version] = base.revision
        with self.db.engine.read() as txn:
            count = txn.raw.stat(txn.tables.bases)["entries"]
            ends = txn.raw.stat(txn.tables.base_ends)["entries"]
            found = {
                (collection, name, version): bases.get(txn, collection, name, version)
                for collection, name, version in expected
            }
        assert found == expected
        assert count == len(expected)
        assert ends == sum(
            base.until is not None for model in self.models.values() for base in model.bases
        )

    @invariant()
    def a_conflict_has_the_newest_base_that_both_sides_include(self):
        for (name, document_id), model in self.models.items():
            collection = self.collections[name].number
            for waiting in model.waiting if model.current is not None else ():
                with self.db.engine.read() as txn:
                    found = bases.common(txn, collection, document_id, model.current, waiting)
                shared = [base.revision for base in model.bases if waiting.has(base.revision.id)]
                assert found == (shared[-1] if shared else None)

    @invariant()
    def what_the_store_tells_twice_agrees(self):
        check_store(self.db.engine)

    @invariant()
    def nothing_is_left_to_tidy(self):
        with self.db.engine.read() as txn:
            for table in (txn.tables.passed, txn.tables.forgotten):
                assert txn.raw.stat(table)["entries"] == 0


TestBases = BasesMachine.TestCase
TestBases.settings = settings(stateful_step_count=40)
