from __future__ import annotations

import pytest

from trio_p2p.model.document import Revision
from trio_p2p.model.version import TreeRevisionID
from trio_p2p.store import changes, documents

C = 1


@pytest.fixture
def put(engine):
    async def put(*items, collection=C):
        def job(txn):
            for document_id, revision in items:
                documents.put_revision(txn, collection, document_id, revision)

        await engine.write(job)

    return put


@pytest.fixture
def since(engine):
    def since(after, limit=100, collection=C):
        with engine.read() as txn:
            return changes.read_since(txn, collection, after, limit).rows

    return since


@pytest.fixture
def end(engine):
    def end(after, limit=100, collection=C):
        with engine.read() as txn:
            return changes.read_since(txn, collection, after, limit).end

    return end


async def test_a_row_tells_what_a_peer_must_be_offered(put, since, revision):
    tombstone = revision(2, deleted=True)
    tree = Revision.from_tree((TreeRevisionID(1, b"\x01"),), b"\xa0", deleted=False)
    await put(("é", revision(1, body=bytes(300))), ("b", tombstone), ("c", tree))
    assert since(0) == [
        (1, "é", revision(1).version, False, 300),
        (2, "b", tombstone.version, True, 4),
        (3, "c", tree.trees[0], False, 1),
    ]


async def test_each_document_stands_once_under_its_latest_change(put, since, revision):
    await put(("a", revision(1)), ("b", revision(1)), ("a", revision(2)), ("c", revision(1)))
    assert [(row.sequence, row.document_id) for row in since(0)] == [(2, "b"), (3, "a"), (4, "c")]


async def test_reading_goes_on_after_a_sequence(put, since, revision):
    await put(*((f"d{number}", revision(1)) for number in range(10)))
    assert [row.sequence for row in since(3, limit=4)] == [4, 5, 6, 7]
    assert since(10) == []
    assert since(99) == []


async def test_reading_ends_with_the_collection(put, since, revision, db):
    second = (await db.create_collection("second")).number
    third = (await db.create_collection("third")).number
    await put(("a", revision(1)))
    await put(("b", revision(1)), collection=third)
    assert [row.document_id for row in since(0)] == ["a"]
    assert since(0, collection=second) == []
    assert [row.document_id for row in since(0, collection=third)] == ["b"]


async def test_the_end_of_a_slice_is_where_the_next_one_begins(put, end, revision):
    await put(*((f"d{number}", revision(1)) for number in range(5)))
    assert [end(after, limit=2) for after in (0, 2, 4)] == [2, 4, 5]
    assert end(5) == 5
    assert end(99) == 99


async def test_the_end_of_the_feed_is_the_last_sequence_though_that_is_missing(
    db, put, end, revision
):
    await put(*((f"d{number}", revision(1)) for number in range(5)))
    await db.default_collection.purge("d4")
    await db.default_collection.purge("d3")
    assert end(0) == 5
    assert end(3) == 5
    other = await db.create_collection("other")
    assert end(0, collection=other.number) == 0
    assert end(0, collection=99) == 0
