"""Old revisions that peers have: kept, found and dropped."""

from __future__ import annotations

import base64

import pytest
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.ids import SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.conflict import keep, merge_revisions
from trio_p2p.model.document import Revision
from trio_p2p.model.version import TreeRevisionID, Version, VersionVector
from trio_p2p.store import bases, checkpoints, conflicts, documents, keys, remotes
from trio_p2p.testing.integrity import check_store

C = 1
PEER, OTHER_PEER = 1, 2
BOB = SourceID(b"b" * 16)


@pytest.fixture
def write(engine):
    """Runs a function of a transaction, with arguments."""

    async def write(function, *args, **options):
        return await engine.write(lambda txn: function(txn, *args, **options))

    return write


@pytest.fixture
def kept(engine):
    """The documents that have bases, as often as they have any."""

    def kept():
        with engine.read() as txn:
            return [keys.read_base(key)[0] for key, _ in txn.raw.cursor(txn.tables.bases)]

    return kept


@pytest.fixture
def get(engine):
    def get(document_id, revision_id, collection=C):
        with engine.read() as txn:
            return bases.get(txn, collection, document_id, revision_id)

    return get


@pytest.fixture
def common(engine):
    def common(document_id, first, second):
        with engine.read() as txn:
            return bases.common(txn, C, document_id, first, second)

    return common


@pytest.fixture
def set_known(write):
    """A peer is known to have the revision of a document or of an ID."""

    async def set_known(document_id, revision, remote=PEER):
        revision_id = getattr(revision, "id", revision)
        await write(remotes.set_known, remote, C, document_id, revision_id)

    return set_known


@pytest.fixture
def set_reached(write):
    """A client saves how far it has come."""

    async def set_reached(sequence, client="till", collection=C):
        def job(txn):
            held = checkpoints.peer(txn, client)
            expected = held.revision if held else ""
            where = {"collection": collection, "reached": sequence}
            checkpoints.set_peer(txn, client, expected, b"{}", **where)

        await write(job)

    return set_reached


# --- Keeping --------------------------------------------------------------------------------------


async def test_nothing_is_kept_as_long_as_no_peer_has_anything(notes, kept):
    for number in range(3):
        await notes.put("a", {"n": number})
    assert kept() == []


async def test_a_revision_that_a_peer_is_known_to_have_is_kept_when_it_is_overwritten(
    notes, kept, get, set_known
):
    old = await notes.put("a", {"n": 1})
    await set_known("a", old.version)
    await notes.put("a", {"n": 2})
    assert kept() == ["a"]
    assert get("a", old.version) == old.revision


async def test_a_revision_that_no_peer_has_is_not_kept_beside_one(notes, kept, get, set_known):
    old = await notes.put("a", {"n": 1})
    await set_known("a", old.version)
    newer = await notes.put("a", {"n": 2})
    await notes.put("a", {"n": 3})
    assert kept() == ["a"]
    assert get("a", newer.version) is None


async def test_a_revision_that_a_client_has_come_to_is_kept(notes, kept, get, set_reached):
    old = await notes.put("a", {"n": 1})
    await notes.put("b", {"n": 1})
    await set_reached(1)
    await notes.put("a", {"n": 2})
    await notes.put("b", {"n": 2})
    assert kept() == ["a"]
    assert get("a", old.version) == old.revision


async def test_a_client_that_claims_to_have_what_is_not_there_yet_keeps_nothing(
    notes, kept, set_reached
):
    await notes.put("a", {"n": 1})
    await set_reached(2**63 - 1)
    await notes.put("a", {"n": 2})
    assert kept() == []


async def test_what_clients_have_in_one_collection_tells_nothing_of_another(
    db, notes, kept, set_reached
):
    other = await db.create_collection("other")
    for collection in (notes, other):
        await collection.put("a", {"n": 1})
    await set_reached(1, collection=other.number)
    await notes.put("a", {"n": 2})
    assert kept() == []
    await other.put("a", {"n": 2})
    assert kept() == ["a"]


@pytest.fixture
def push(notes, write):
    """A client pushes a revision, made elsewhere on top of what is there."""

    async def push(document_id, n):
        def job(txn):
            current = documents.get(txn, C, document_id)
            version = Version(txn.stamp().time, BOB)
            body = encode_body({"n": n})
            edited = (
                Revision(VersionVector(version), body)
                if current is None
                else current.revision.edited(version, body)
            )
            documents.put_revision(txn, C, document_id, edited)
            return edited

        return await write(job)

    return push


async def test_a_revision_that_was_pushed_is_kept_when_it_is_edited_here(
    notes, kept, get, push, set_reached
):
    """Whoever pushed it has it, and may be the first to pull the edit."""
    await set_reached(0)
    pushed = await push("a", 1)
    await notes.put("a", {"n": 2})
    await notes.put("a", {"n": 3})
    assert kept() == ["a"]
    assert get("a", pushed.version) == pushed


async def test_of_revisions_that_were_pushed_the_latest_is_kept(
    notes, kept, get, push, set_reached
):
    await set_reached(0)
    for n in range(3):
        pushed = await push("a", n)
        await notes.put("a", {"edited": n})
    assert kept() == ["a"]
    assert get("a", pushed.version) == pushed


async def test_a_revision_that_was_pushed_is_not_kept_when_the_next_is(
    notes, kept, push, set_reached
):
    await set_reached(0)
    await push("a", 1)
    await push("a", 2)
    assert kept() == []


async def test_what_was_written_elsewhere_is_not_kept_where_nobody_pushes(notes, kept, push):
    """As in a copy of a database, where all was written by another."""
    await push("a", 1)
    await notes.put("a", {"n": 2})
    assert kept() == []


@pytest.mark.parametrize("client", ["till", "another"])
async def test_what_was_pushed_goes_once_a_client_has_come_past_it(
    notes, kept, push, set_reached, client
):
    await set_reached(0)
    await push("a", 1)
    edited = await notes.put("a", {"n": 2})
    await set_reached(edited.sequence - 1, client=client)
    assert kept() == ["a"]
    await set_reached(edited.sequence, client=client)
    assert kept() == []


async def test_within_one_transaction_it_is_seen_what_peers_learn(notes, kept, write):
    """What was found out about peers is remembered for a transaction."""

    def job(txn):
        documents.edit(txn, C, "a", b"\xa0")
        first = documents.edit(txn, C, "a", b"\xa0")
        remotes.set_known(txn, PEER, C, "a", first.revision.id)
        second = documents.edit(txn, C, "b", b"\xa0")
        checkpoints.set_peer(txn, "till", "", b"{}", collection=C, reached=second.sequence)
        documents.edit(txn, C, "a", b"\xa0")
        documents.edit(txn, C, "b", b"\xa0")

    await write(job)
    assert kept() == ["a", "b"]


async def test_a_tombstone_keeps_none(notes, kept, set_known):
    old = await notes.put("a", {"n": 1})
    await set_known("a", old.version)
    await notes.put("a", {"n": 2})
    await notes.delete("a")
    assert kept() == []


async def test_a_tombstone_is_not_kept(notes, kept, set_known):
    await notes.put("a", {"n": 1})
    await set_known("a", (await notes.delete("a")).version)
    await notes.put("a", {"n": 2})
    assert kept() == []


async def test_a_revision_whose_vector_grew_stays_what_it_was(
    notes, kept, set_known, revision, write
):
    """The winner of a conflict keeps its version where no merge is needed."""
    loser, winner = revision(1), revision(2, source=BOB)
    await write(documents.put_revision, C, "a", winner)
    await set_known("a", winner)
    await write(documents.put_revision, C, "a", keep(winner, loser, stamp=None))
    assert kept() == []


async def test_a_document_of_tree_revisions_is_kept_by_its_tree_id(notes, get, set_known, write):
    tree = TreeRevisionID(1, b"\x01" * 20)
    old = Revision.from_tree((tree,), b"\xa1aa\x01", deleted=False)
    await write(documents.put_revision, C, "a", old)
    await set_known("a", tree)
    await notes.put("a", {"n": 2})
    assert get("a", tree) == old
    assert get("a", tree.as_version()) is None


async def test_of_too_many_the_oldest_goes(notes, get, set_known, monkeypatch):
    monkeypatch.setattr(limits, "BASES_PER_DOCUMENT_MAX", 2)
    versions = []
    for remote in range(4):
        versions.append((await notes.put("a", {"n": remote})).version)
        await set_known("a", versions[-1], remote=remote)
    assert [get("a", version) is not None for version in versions] == [False, True, True, True]
    await notes.put("a", {})
    assert [get("a", version) is not None for version in versions] == [False, False, True, True]


# --- Finding --------------------------------------------------------------------------------------


async def test_the_current_revision_is_found_too_and_one_that_waits(notes, get, write, revision):
    current = await notes.put("a", {"n": 1})
    await write(conflicts.add, C, "a", revision(5))
    assert get("a", current.version) == current.revision
    assert get("a", revision(5).version) == revision(5)
    assert get("a", revision(6).version) is None
    assert get("b", current.version) is None
    assert get("a", current.version, collection=2) is None


async def test_the_base_of_two_revisions_is_the_newest_that_both_include(
    notes, common, set_known, revision
):
    versions = []
    for remote in range(3):
        document = await notes.put("a", {"n": remote})
        versions.append(document)
        await set_known("a", document.version, remote=remote)
    ours = await notes.put("a", {"n": 3})
    for older, base in zip([versions[0], versions[1], versions[2]], versions, strict=True):
        theirs = older.revision.edited(revision(9).version, b"\xa0")
        assert common("a", ours.revision, theirs) == base.revision
    assert common("a", ours.revision, revision(9)) is None


# --- Dropping -------------------------------------------------------------------------------------


async def test_a_base_goes_once_the_peer_is_known_to_have_another_revision(notes, kept, set_known):
    old = await notes.put("a", {"n": 1})
    for remote in (PEER, OTHER_PEER):
        await set_known("a", old.version, remote)
    new = await notes.put("a", {"n": 2})
    await set_known("a", new.version, PEER)
    assert kept() == ["a"]
    await set_known("a", new.version, OTHER_PEER)
    assert kept() == []


async def test_a_base_goes_once_every_client_has_come_past_it(notes, kept, set_reached):
    await notes.put("a", {"n": 1})
    for client in ("one", "two"):
        await set_reached(1, client)
    await notes.put("a", {"n": 2})
    await set_reached(2, "one")
    assert kept() == ["a"]
    await set_reached(2, "two")
    assert kept() == []


async def test_a_base_goes_once_the_client_that_has_it_starts_over(notes, kept, set_reached):
    await notes.put("a", {"n": 1})
    await notes.put("b", {"n": 1})
    await set_reached(2)
    await notes.put("b", {"n": 2})
    await set_reached(1)
    assert kept() == []


async def test_a_base_stays_while_a_revision_that_includes_it_waits(
    notes, kept, set_known, write, revision
):
    old = await notes.put("a", {"n": 1})
    await set_known("a", old.version)
    ours = await notes.put("a", {"n": 2})
    theirs = old.revision.edited(revision(9).version, b"\xa0")

    def arrive(txn):
        txn.clock.see(theirs.version.time)
        conflicts.add(txn, C, "a", theirs)
        remotes.set_known(txn, PEER, C, "a", theirs.id)

    await write(arrive)
    assert kept() == ["a"]

    def resolve(txn):
        conflicts.remove(txn, C, "a", theirs.version)
        merged = merge_revisions(ours.revision, theirs, b"\xa0", False, txn.stamp())
        documents.put_revision(txn, C, "a", merged)
        bases.keep_merged(txn, C, "a", theirs)
        bases.drop_unneeded(txn, C, "a")
        return merged

    merged = await write(resolve)
    # The peer has the one that waited, and may edit it before it learns of the merge.
    assert kept() == ["a"]
    await set_known("a", merged.id)
    assert kept() == []


async def test_what_waited_is_not_kept_if_its_peer_has_another_revision_by_now(
    notes, kept, write, revision
):
    await notes.put("a", {"n": 1})
    await write(bases.keep_merged, C, "a", revision(9))
    assert kept() == []


async def test_what_waited_and_was_chosen_is_current_and_no_base(
    notes, kept, write, set_known, revision
):
    theirs = revision(9, source=BOB)
    await write(documents.put_revision, C, "a", revision(1))
    await set_known("a", theirs)
    await write(documents.put_revision, C, "a", keep(theirs, revision(1), stamp=None))
    await write(bases.keep_merged, C, "a", theirs)
    assert kept() == []


async def test_what_waited_is_not_kept_for_a_tombstone(notes, kept, write, set_known, revision):
    await notes.put("a", {"n": 1})
    await set_known("a", revision(9))
    await notes.delete("a")
    await write(bases.keep_merged, C, "a", revision(9))
    assert kept() == []


async def test_compacting_drops_what_nothing_needs(db, notes, kept, set_known, write, monkeypatch):
    """Such as what a program that was older left."""
    monkeypatch.setattr(limits, "TIDY_RECORDS", 2)
    for name in "abcde":
        await set_known(name, (await notes.put(name, {"n": 1})).version)
    for name in "abcde":
        await notes.put(name, {"n": 2})

    def lose(txn):
        for name in "abde":
            remotes.forget_document(txn, C, name)

    await write(lose)
    assert kept() == list("abcde")
    await db.compact()
    assert kept() == ["c"]


async def test_of_much_that_a_client_has_passed_each_transaction_drops_a_part(
    db, notes, kept, set_reached, monkeypatch
):
    monkeypatch.setattr(limits, "TIDY_RECORDS", 2)
    for n in range(2):
        for name in "abcdefg":
            await notes.put(name, {"n": n})
        await set_reached(7 if n == 0 else 12, client="one")
        await set_reached(7, client="two")
    assert len(kept()) == 7
    commits = db.engine.statistics().commits
    await set_reached(14, client="two")
    assert len(kept()) == 5
    db.engine.tidy_soon()
    await wait_all_tasks_blocked()
    # The first client has not come to these two.
    assert kept() == ["f", "g"]
    assert db.engine.statistics().commits - commits >= 4


async def test_growing_by_bases_is_limited_as_by_documents(notes, set_known, engine):
    """What is kept counts, and is what the size limit may refuse."""
    grown = []

    def put(txn):
        documents.edit(txn, C, "a", b"\xa0" + bytes(1000))
        grown.append(txn.grew)

    for _ in range(2):
        await engine.write(put)
        await set_known("a", notes.get("a").version)
    assert grown[1] > grown[0] + 1000


async def test_a_blob_is_kept_while_a_base_names_it(db, notes, set_known, write, monkeypatch):
    monkeypatch.setattr(limits, "BLOB_UNNAMED_S", 0)
    assert await write(remotes.number, "till") == PEER
    blob = await db.save_blob(b"picture")
    old = await notes.put("a", {"picture": blob})
    sha1 = base64.b64decode(blob.digest.removeprefix("sha1-"))
    del blob
    await set_known("a", old.version)
    new = await notes.put("a", {})
    del old
    await db.compact()
    assert db.engine.blob_files.has(sha1)
    check_store(db.engine)
    await set_known("a", new.version)
    await db.compact()
    assert not db.engine.blob_files.has(sha1)
    check_store(db.engine)
