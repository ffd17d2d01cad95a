"""Putting conflicts to resolvers: once each, several documents at once, and what may go wrong."""

import math
from collections import Counter

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import (
    BlobNotFoundError,
    CallbackError,
    ConflictError,
    InvalidDocumentError,
    StoreFullError,
)
from trio_p2p.ids import SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import default_conflict_resolver
from trio_p2p.model.document import EMPTY_BODY, Revision
from trio_p2p.model.resolvers import merge_fields
from trio_p2p.model.version import Version, VersionVector
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.link import Link, Pulse
from trio_p2p.replication.resolver import Resolver
from trio_p2p.store import bases, conflicts, remotes
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.integrity import check_store

NOW = 1_800_000_000 * 10**9
BOB, EVE = SourceID(b"b" * 16), SourceID(b"e" * 16)
PEER = 1


def theirs(time=100, body=None, *, source=BOB, deleted=False, merged=()):
    """A revision of a peer that includes nothing of ours."""
    vector = VersionVector(Version(NOW + time, source), merged)
    encoded = EMPTY_BODY if deleted else encode_body(body or {"by": "them"})
    return Revision(vector, encoded, deleted)


class Conflicts:
    """A database with conflicts, and resolvers for them."""

    def __init__(self, database, nursery):
        self.database = database
        self.collection = database.default_collection
        self.engine = database.engine
        self.journals = []
        self._nursery = nursery

    async def wait_for(self, document_id, *revisions):
        """Let revisions wait for a resolver."""

        def job(txn):
            for revision in revisions:
                txn.clock.see(revision.vector.greatest().time)
                conflicts.add(txn, self.collection.number, document_id, revision)

        await self.engine.write(job)

    async def make(self, *document_ids, body=None):
        """Documents of ours, each with a revision of theirs that waits."""
        for document_id in document_ids:
            await self.collection.put(document_id, {"by": "us"})
            await self.wait_for(document_id, theirs(body=body))

    async def start(self, function):
        """A resolver that runs until the test ends; returns it once it has nothing more to do."""
        journal = Journal()
        self.journals.append(journal)
        resolver = Resolver(Link(self.collection, 0, None, journal, Pulse()), function)
        resolver.find_existing()
        self.latest = resolver
        self._nursery.start_soon(resolver.run)
        await wait_all_tasks_blocked()
        return resolver

    async def resolve(self, function):
        """Resolve all there is; returns what failed, by document."""
        resolver = await self.start(function)
        assert not resolver.busy
        return self.failures()

    def failures(self):
        return {event.document_id: event.error for event in self.journals[-1].failures}

    @property
    def resolved(self):
        return self.journals[-1].statistics().conflicts_resolved

    def waiting(self, document_id="a"):
        with self.engine.read() as txn:
            return conflicts.of_document(txn, self.collection.number, document_id)

    def body(self, document_id="a"):
        document = self.collection.get(document_id)
        return document and document.body

    def revision(self, document_id="a"):
        return self.collection.get(document_id, deleted=True).revision


@pytest.fixture
async def database(tmp_path):
    async with open_test_database(tmp_path / "db", clock=lambda: NOW) as database:
        yield database
        check_store(database.engine)


@pytest.fixture
async def found(database, nursery):
    return Conflicts(database, nursery)


# --- What becomes of a decision -------------------------------------------------------------------


async def test_the_side_that_is_returned_is_kept_with_its_version_if_that_is_the_greatest(found):
    await found.make("a")
    ours = found.revision()
    assert not await found.resolve(lambda conflict: conflict.remote)
    assert (found.body(), found.revision().version) == ({"by": "them"}, theirs().version)
    assert found.revision().has(ours.version)
    assert not found.waiting()
    assert found.resolved == 1


async def test_an_older_side_that_is_kept_is_a_new_revision(found):
    await found.make("a")
    await found.resolve(lambda conflict: conflict.local)
    assert found.body() == {"by": "us"}
    assert found.revision().version.source == found.engine.source
    assert found.revision().has(theirs().version)


async def test_a_mapping_is_a_merge_revision(found):
    await found.make("a")
    ours = found.revision()

    async def resolve(conflict):
        await trio.lowlevel.checkpoint()
        return {"by": "both"}

    await found.resolve(resolve)
    assert found.body() == {"by": "both"}
    assert set(found.revision().vector.merged) == {ours.version, theirs().version}


async def test_none_deletes(found):
    await found.make("a")
    await found.resolve(lambda conflict: None)
    assert found.body() is None
    assert found.revision().has(theirs().version)


async def test_a_document_of_this_id_is_taken_for_its_body(found):
    await found.collection.put("a", {"by": "us", "was": "before"})
    before = found.collection.get("a")
    await found.make("a")
    await found.resolve(lambda conflict: before)
    assert found.body() == {"by": "us", "was": "before"}


async def test_a_side_that_was_deleted_is_none(found):
    seen = []
    await found.make("a")
    await found.collection.put("b", {})
    await found.collection.delete("b")
    await found.wait_for("b", theirs())

    def resolve(conflict):
        seen.append((conflict.document_id, conflict.local and conflict.local.body))
        return conflict.remote

    await found.resolve(resolve)
    assert seen == [("a", {"by": "us"}), ("b", None)]
    assert found.body("b") == {"by": "them"}


async def test_two_deletions_are_not_put_to_the_resolver(found):
    await found.collection.put("a", {})
    await found.collection.delete("a")
    await found.wait_for("a", theirs(deleted=True))
    await found.resolve(pytest.fail)
    assert found.revision().deleted
    assert not found.waiting()


async def test_all_that_wait_for_one_document_are_resolved(found):
    await found.make("a")
    await found.wait_for("a", theirs(200, source=EVE))
    await found.resolve(default_conflict_resolver)
    assert found.resolved == 2
    assert not found.waiting()
    assert found.revision().version == theirs(200, source=EVE).version
    assert found.revision().has(theirs().version)


# --- What both sides started from -----------------------------------------------------------------


async def test_the_resolver_is_told_what_both_sides_started_from(found):
    base = await found.collection.put("a", {"x": 1, "y": 1})
    number = found.collection.number

    def learn(txn):
        remotes.set_known(txn, remotes.number(txn, "peer"), number, "a", base.version)

    await found.engine.write(learn)
    await found.collection.put("a", {"x": 2, "y": 1})
    edited = base.revision.edited(Version(NOW + 100, BOB), encode_body({"x": 1, "y": 2}))
    seen = []

    def resolve(conflict):
        seen.append(conflict.base)
        return merge_fields(conflict)

    await found.wait_for("a", edited)
    await found.engine.write(lambda txn: remotes.set_known(txn, PEER, number, "a", edited.id))
    await found.resolve(resolve)
    assert seen == [base]
    assert found.body() == {"x": 2, "y": 2}
    # The peer may go on from its own revision, until it has the merge.
    with found.engine.read() as txn:
        assert bases.get(txn, number, "a", base.version) is None
        assert bases.get(txn, number, "a", edited.id) == edited


async def test_where_it_is_not_known_what_both_started_from_there_is_no_base(found):
    seen = []
    await found.make("a")
    await found.resolve(lambda conflict: seen.append(conflict.base))
    assert seen == [None]


# --- What goes wrong ------------------------------------------------------------------------------


def fail(conflict):
    raise ZeroDivisionError


async def fail_later(conflict):
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("resolver", "cause"),
    [
        (fail, ZeroDivisionError),
        (fail_later, ZeroDivisionError),
        (lambda conflict: 7, InvalidDocumentError),
        (lambda conflict: [conflict.local], InvalidDocumentError),
        (lambda conflict: {"x": b"bytes"}, InvalidDocumentError),
        (lambda conflict: {"x": math.nan}, InvalidDocumentError),
        (lambda conflict: {"_id": "a"}, InvalidDocumentError),
        (
            lambda conflict: {"b": {"@type": "blob", "digest": f"sha1-{'A' * 27}="}},
            BlobNotFoundError,
        ),
    ],
)
async def test_a_resolver_that_fails_leaves_the_conflict_and_is_reported(found, resolver, cause):
    await found.make("a", "b")
    before = found.revision()
    failures = await found.resolve(lambda c: resolver(c) if c.document_id == "a" else c.remote)
    assert failures.keys() == {"a"}
    assert isinstance(failures["a"], CallbackError)
    assert failures["a"].facts["document_id"] == "a"
    assert isinstance(failures["a"].__cause__, cause)
    assert found.revision() == before
    assert found.waiting() == [theirs()]
    assert found.body("b") == {"by": "them"}


async def test_a_document_of_another_id_or_collection_is_refused(found):
    other = await found.database.create_collection("other")
    strangers = [await found.collection.put("b", {}), await other.put("a", {})]
    for stranger in strangers:
        await found.make("a")
        failures = await found.resolve(lambda conflict, stranger=stranger: stranger)
        assert isinstance(failures["a"], CallbackError)
        assert "another" in str(failures["a"])
    assert found.waiting() == [theirs()]


async def test_after_a_failure_it_is_asked_again_at_the_next_start_only(found):
    calls = []

    def fail_and_count(conflict):
        calls.append(conflict.document_id)
        raise ZeroDivisionError

    await found.make("a")
    first = await found.start(fail_and_count)
    first.add("a")
    await wait_all_tasks_blocked()
    assert calls == ["a"]
    assert not await found.resolve(default_conflict_resolver)
    assert not found.waiting()


async def test_a_conflict_that_fails_does_not_hold_back_another_of_the_document(found):
    await found.make("a")
    await found.wait_for("a", theirs(200, source=EVE))

    def resolve(conflict):
        if conflict.remote.version.source == BOB:
            raise ZeroDivisionError
        return conflict.remote

    failures = await found.resolve(resolve)
    assert len(failures) == 1
    assert found.waiting() == [theirs()]
    assert found.revision().version.source == EVE


async def test_a_full_database_leaves_the_conflict(found, monkeypatch):
    await found.make("a")

    async def write(job):
        raise StoreFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(found.engine, "write", write)
        failures = await found.resolve(lambda conflict: {"by": "both"})
    assert isinstance(failures["a"], StoreFullError)
    assert found.waiting() == [theirs()]


# --- Meanwhile ------------------------------------------------------------------------------------


async def test_a_document_that_changed_meanwhile_is_put_to_the_resolver_again(found):
    seen = []

    async def resolve(conflict):
        seen.append(conflict.local.body)
        if len(seen) < 3:
            await found.collection.put("a", {"edit": len(seen)})
        return {"merged": True}

    await found.make("a")
    assert not await found.resolve(resolve)
    assert seen == [{"by": "us"}, {"edit": 1}, {"edit": 2}]
    assert found.body() == {"merged": True}


async def test_a_document_that_never_stops_changing_is_reported_and_left(found):
    seen = []

    async def resolve(conflict):
        seen.append(conflict.local.version)
        await found.collection.put("a", {"edit": len(seen)})
        return {"merged": True}

    await found.make("a")
    failures = await found.resolve(resolve)
    assert isinstance(failures["a"], ConflictError)
    assert len(seen) == len(set(seen)) == limits.RESOLVE_ATTEMPTS_MAX
    assert found.waiting() == [theirs()]


async def test_how_often_it_is_asked_again_counts_for_each_conflict(found):
    asked = Counter()

    async def resolve(conflict):
        source = conflict.remote.version.source
        asked[source] += 1
        if asked[source] < limits.RESOLVE_ATTEMPTS_MAX:
            await found.collection.put("a", {"edit": asked.total()})
        return conflict.remote

    await found.make("a")
    await found.wait_for("a", theirs(200, source=EVE))
    assert not await found.resolve(resolve)
    assert set(asked.values()) == {limits.RESOLVE_ATTEMPTS_MAX}


async def test_a_document_that_was_purged_meanwhile_stays_so(found):
    async def resolve(conflict):
        await found.collection.purge("a")
        return {"merged": True}

    await found.make("a")
    assert not await found.resolve(resolve)
    assert found.collection.get("a", deleted=True) is None


async def test_a_revision_that_was_replaced_meanwhile_is_not_taken(found):
    """The peer edited its revision again, and that came before the resolver returned."""
    newer = theirs().edited(Version(NOW + 300, BOB), encode_body({"by": "them again"}))
    seen = []

    async def resolve(conflict):
        seen.append(conflict.remote.body)
        await found.wait_for("a", newer)
        return conflict.remote

    await found.make("a")
    assert not await found.resolve(resolve)
    assert seen == [{"by": "them"}, {"by": "them again"}]
    assert found.revision().version == newer.version


async def test_what_an_edit_included_meanwhile_is_no_conflict_any_more(found):
    """As when a revision that includes both sides arrived."""
    await found.make("a")
    settled = await found.resolve(lambda conflict: {"by": "both"})
    assert not settled
    await found.wait_for("a", theirs())
    await found.resolve(pytest.fail)
    assert not found.waiting()
    assert found.body() == {"by": "both"}


# --- Several at once ------------------------------------------------------------------------------


async def test_a_slow_resolver_does_not_hold_up_others(found):
    slow = trio.Event()

    async def resolve(conflict):
        if conflict.document_id == "a":
            await slow.wait()
        return conflict.remote

    await found.make("a", "b", "c")
    resolver = await found.start(resolve)
    assert resolver.busy
    assert [found.body(name) for name in "abc"] == [
        {"by": "us"},
        {"by": "them"},
        {"by": "them"},
    ]
    slow.set()
    await wait_all_tasks_blocked()
    assert not resolver.busy
    assert found.body("a") == {"by": "them"}


async def test_no_more_than_so_many_run_at_once_and_no_document_twice(
    found, autojump_clock, monkeypatch
):
    monkeypatch.setattr(limits, "RESOLVED_DOCUMENTS_MAX", 3)
    names = [f"d{number}" for number in range(10)]
    running, most = Counter(), 0

    async def resolve(conflict):
        nonlocal most
        running[conflict.document_id] += 1
        most = max(most, running.total())
        assert running[conflict.document_id] == 1
        found.latest.add(conflict.document_id)
        await trio.sleep(1)
        running[conflict.document_id] -= 1
        return conflict.remote

    await found.make(*names)
    resolver = await found.start(resolve)
    await trio.sleep(20)
    assert not resolver.busy
    assert not found.failures()
    assert most == 3
    assert [found.body(name) for name in names] == [{"by": "them"}] * 10


async def test_many_conflicts_stand_in_the_store_and_not_in_memory(found, monkeypatch):
    monkeypatch.setattr(limits, "SCAN_SLICE_ROWS", 4)
    names = [f"d{number:02}" for number in range(21)]
    await found.make(*names[:15])
    resolver = await found.start(default_conflict_resolver)
    assert found.resolved == 15
    await found.make(*names[15:])
    for name in names[15:]:
        resolver.add(name)
    await wait_all_tasks_blocked()
    assert not resolver.busy
    assert found.resolved == 21


async def test_two_replicators_do_not_resolve_a_conflict_twice(found, autojump_clock):
    asked = []

    async def resolve(conflict):
        asked.append(conflict.document_id)
        await trio.sleep(1)
        return {"merge": len(asked)}

    await found.make("a", "b")
    resolvers = [await found.start(resolve) for _ in range(2)]
    await trio.sleep(10)
    assert not any(resolver.busy for resolver in resolvers)
    assert sorted(asked) == ["a", "b"]
    assert sum(j.statistics().conflicts_resolved for j in found.journals) == 2


async def test_where_one_replicators_resolver_fails_anothers_is_asked(found):
    await found.make("a")
    await found.start(fail_later)
    await found.start(default_conflict_resolver)
    assert found.body() == {"by": "them"}
    assert not found.waiting()


async def test_a_resolver_that_never_returns_is_cancelled_and_leaves_the_conflict(
    found, autojump_clock
):
    outcome = []

    async def resolve(conflict):
        try:
            await trio.sleep_forever()
        finally:
            outcome.append("ended")

    await found.make("a")
    link = Link(found.collection, 0, None, Journal(), Pulse())
    resolver = Resolver(link, resolve)
    resolver.find_existing()
    with trio.move_on_after(60):
        await resolver.run()
    assert outcome == ["ended"]
    assert found.waiting() == [theirs()]
    assert not await found.resolve(default_conflict_resolver)


# --- Merges of merges -----------------------------------------------------------------------------


def merge_of(time, *merged):
    return theirs(time, {"merge": time}, merged=tuple(Version(NOW + t, s) for t, s in merged))


async def test_merges_of_merges_are_left_to_the_default_resolver_after_some(found):
    asked = []

    def resolve(conflict):
        asked.append(conflict.remote.version)
        return {"mine": len(asked)}

    await found.make("a")
    await found.resolve(resolve)
    for number in range(1, limits.MERGES_OF_MERGES_MAX + 3):
        before = found.revision()
        await found.wait_for("a", merge_of(1_000 * number, (number, EVE), (number, BOB)))
        await found.resolve(resolve)
        assert not found.waiting()
        if number > limits.MERGES_OF_MERGES_MAX:
            assert found.revision().version != before.version
    assert len(asked) == 1 + limits.MERGES_OF_MERGES_MAX
    assert found.body() == {"merge": 1_000 * number}


async def test_an_edit_lets_merges_of_merges_begin_anew(found):
    asked = []

    def resolve(conflict):
        asked.append(conflict.remote.version)
        return {"mine": len(asked)}

    await found.make("a")
    await found.resolve(resolve)
    for number in range(1, 2 * limits.MERGES_OF_MERGES_MAX):
        if number == limits.MERGES_OF_MERGES_MAX:
            await found.collection.put("a", {"edited": True})
        await found.wait_for("a", merge_of(1_000 * number, (number, EVE), (number, BOB)))
        await found.resolve(resolve)
    assert len(asked) == 2 * limits.MERGES_OF_MERGES_MAX


async def test_two_merges_of_the_same_versions_are_not_put_to_the_resolver(found):
    await found.make("a")
    ours = found.revision()
    await found.resolve(lambda conflict: {"merge": "ours"})
    other = Revision(
        VersionVector(Version(NOW + 2_000, EVE), found.revision().vector.merged),
        encode_body({"merge": "theirs"}),
    )
    await found.wait_for("a", other)
    await found.resolve(pytest.fail)
    assert found.body() == {"merge": "theirs"}
    assert found.revision().has(ours.version)
