from __future__ import annotations

import pytest

from trio_p2p.ids import SourceID
from trio_p2p.model.document import EMPTY_BODY
from trio_p2p.store import conflicts

C = 1
ANN = SourceID(b"a" * 16)
BOB = SourceID(b"b" * 16)


@pytest.fixture
def add(engine):
    async def add(document_id, revision, collection=C):
        await engine.write(lambda txn: conflicts.add(txn, collection, document_id, revision))

    return add


@pytest.fixture
def waiting(engine):
    def waiting(document_id, collection=C):
        with engine.read() as txn:
            return conflicts.of_document(txn, collection, document_id)

    return waiting


@pytest.fixture
def conflicted(engine):
    def conflicted(after=None, limit=100, collection=C):
        with engine.read() as txn:
            return conflicts.documents(txn, collection, after, limit)

    return conflicted


async def test_a_revision_waits_with_all_it_has(add, waiting, revision):
    one = revision(2, (1, BOB), body=bytes(1000))
    await add("a", one)
    assert waiting("a") == [one]
    assert waiting("b") == []


async def test_what_waits_is_told_without_bodies_and_read_by_its_version(add, revision, engine):
    one, other = revision(1, source=BOB, body=b"one"), revision(2, (1, BOB), body=b"two")
    await add("a", one)
    await add("b", other)
    with engine.read() as txn:
        (head,) = conflicts.heads(txn, C, "b")
        assert (head.id, head.vector, head.body) == (other.id, other.vector, EMPTY_BODY)
        assert conflicts.get(txn, C, "a", one.version) == one
        assert conflicts.get(txn, C, "a", other.version) is None


async def test_a_revision_that_waits_already_is_not_added_again(add, waiting, revision):
    await add("a", revision(2))
    await add("a", revision(2))
    assert waiting("a") == [revision(2)]


async def test_a_revision_replaces_those_it_includes(add, waiting, revision):
    await add("a", revision(2))
    await add("a", revision(1, source=BOB))
    await add("a", revision(3, (1, BOB)))
    assert waiting("a") == [revision(3, (1, BOB))]


async def test_revisions_in_conflict_wait_together_in_order_of_version(add, waiting, revision):
    await add("a", revision(3))
    await add("a", revision(1, source=BOB))
    assert waiting("a") == [revision(1, source=BOB), revision(3)]


async def test_a_revision_is_removed_by_its_version(add, waiting, revision, engine):
    await add("a", revision(3))
    await add("a", revision(1, source=BOB))
    await engine.write(lambda txn: conflicts.remove(txn, C, "a", revision(3).version))
    assert waiting("a") == [revision(1, source=BOB)]
    await engine.write(lambda txn: conflicts.remove(txn, C, "a", revision(3).version))
    assert waiting("a") == [revision(1, source=BOB)]


async def test_documents_are_told_once_each_in_order(add, conflicted, revision):
    for document_id in ("b", "a", "a b", "é", "ab"):
        await add(document_id, revision(3))
        await add(document_id, revision(1, source=BOB))
    assert conflicted() == ["a", "a b", "ab", "b", "é"]
    assert conflicted(limit=2) == ["a", "a b"]
    assert conflicted(after="a b", limit=2) == ["ab", "b"]
    assert conflicted(after="aa", limit=1) == ["ab"]
    assert conflicted(after="é") == []


async def test_collections_are_apart(add, waiting, conflicted, revision):
    await add("a", revision(1), collection=2)
    assert (waiting("a"), conflicted()) == ([], [])
    assert conflicted(collection=2) == ["a"]


async def test_no_document_waits_in_a_new_database(conflicted):
    assert conflicted() == []


async def test_a_revision_is_told_to_wait_by_its_version(add, revision, engine):
    await add("a", revision(3))
    with engine.read() as txn:
        assert conflicts.is_waiting(txn, C, "a", revision(3).version)
        assert not conflicts.is_waiting(txn, C, "a", revision(2).version)
        assert not conflicts.is_waiting(txn, C, "b", revision(3).version)


async def test_merges_of_a_document_are_counted_until_they_are_forgotten(engine):
    for count in (1, 2, 0):
        await engine.write(lambda txn, count=count: conflicts.set_merges(txn, C, "a", count))
        with engine.read() as txn:
            assert conflicts.merges(txn, C, "a") == count
            assert conflicts.merges(txn, C, "b") == 0
