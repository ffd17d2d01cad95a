"""Expiration: documents purged when their time comes, by the wall clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import (
    CollectionNotFoundError,
    DocumentNotFoundError,
    InvalidDocumentError,
    StoreError,
)
from trio_p2p.ids import Sequence
from trio_p2p.store import changes, janitor
from trio_p2p.testing.databases import open_test_database

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


class WallClock:
    """Runs with Trio's clock, and may be set; tests with it ask for a clock that jumps."""

    def __init__(self):
        self.set(START)

    def set(self, now):
        self._offset = now - timedelta(seconds=trio.current_time())

    def now(self):
        return self._offset + timedelta(seconds=trio.current_time())

    def __call__(self):
        return (self.now() - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


@pytest.fixture
async def wall():
    return WallClock()


@pytest.fixture
async def db(path, wall):
    async with open_test_database(path, clock=wall) as db:
        yield db


def feed(collection):
    with collection.read() as txn:
        rows = changes.read_since(txn, collection.number, Sequence(0), 100).rows
    return [row.document_id for row in rows]


async def test_a_document_is_purged_when_it_is_due(notes, autojump_clock):
    await notes.put("a", {})
    await notes.put("b", {})
    await notes.set_expiration("a", START + 10 * SECOND)
    await trio.sleep(9.9)
    assert notes.get("a") is not None
    await trio.sleep(0.2)
    assert notes.get("a", deleted=True) is None
    assert notes.expiration("a") is None
    assert (notes.count, feed(notes)) == (1, ["b"])


async def test_documents_are_purged_in_the_order_of_their_time(notes, autojump_clock):
    for number in range(10):
        await notes.put(f"d{number}", {})
        await notes.set_expiration(f"d{number}", START + (100 - number) * SECOND)
    await trio.sleep(95.5)
    assert feed(notes) == ["d0", "d1", "d2", "d3", "d4"]


async def test_an_expiration_can_be_read_moved_and_taken_back(notes, autojump_clock):
    await notes.put("a", {})
    assert notes.expiration("a") is None
    await notes.set_expiration("a", START + DAY)
    assert notes.expiration("a") == START + DAY
    sooner = START + timedelta(seconds=5, microseconds=7)
    await notes.set_expiration("a", sooner.astimezone(timezone(timedelta(hours=5))))
    assert notes.expiration("a") == sooner
    await notes.set_expiration("a", None)
    assert notes.expiration("a") is None
    await trio.sleep(2 * DAY.total_seconds())
    assert notes.get("a") is not None


async def test_an_earlier_expiration_wakes_who_waits_for_a_later_one(notes, autojump_clock):
    await notes.put("a", {})
    await notes.put("b", {})
    await notes.set_expiration("a", START + DAY)
    await wait_all_tasks_blocked()
    await notes.set_expiration("b", START + SECOND)
    await trio.sleep(1.5)
    assert feed(notes) == ["a"]


async def test_a_later_expiration_is_honoured(notes, autojump_clock):
    await notes.put("a", {})
    await notes.set_expiration("a", START + SECOND)
    await notes.set_expiration("a", START + 3 * SECOND)
    await trio.sleep(2)
    assert notes.get("a") is not None
    await trio.sleep(1.5)
    assert notes.get("a") is None


async def test_an_edit_keeps_the_expiration(notes, autojump_clock):
    await notes.put("a", {"n": 1})
    await notes.set_expiration("a", START + SECOND)
    await notes.put("a", {"n": 2})
    assert notes.expiration("a") == START + SECOND
    await notes.delete("a")
    assert notes.expiration("a") == START + SECOND
    await trio.sleep(1.5)
    assert notes.get("a", deleted=True) is None


async def test_what_is_past_is_purged_at_once(notes, autojump_clock):
    await notes.put("a", {})
    await notes.set_expiration("a", datetime(1900, 1, 1, tzinfo=UTC))
    await wait_all_tasks_blocked()
    assert notes.get("a") is None


async def test_the_farthest_time_is_kept(notes, autojump_clock):
    await notes.put("a", {})
    farthest = datetime.max.replace(tzinfo=UTC)
    await notes.set_expiration("a", farthest)
    assert notes.expiration("a") == farthest


async def test_the_wall_clock_decides_even_if_it_was_set(notes, wall, autojump_clock):
    await notes.put("a", {})
    await notes.set_expiration("a", START + DAY)
    await wait_all_tasks_blocked()
    wall.set(START + 2 * DAY)
    await trio.sleep(limits.TIDY_INTERVAL_S + 1)
    assert notes.get("a") is None


async def test_a_clock_set_back_delays_the_purge(notes, wall, autojump_clock):
    await notes.put("a", {})
    await notes.set_expiration("a", START + 10 * SECOND)
    wall.set(START - 100 * SECOND)
    await trio.sleep(50)
    assert notes.get("a") is not None
    await trio.sleep(61)
    assert notes.get("a") is None


async def test_what_came_due_while_closed_is_purged_at_the_opening(path, wall, autojump_clock):
    async with open_test_database(path, clock=wall) as db:
        await db.default_collection.put("a", {})
        await db.default_collection.set_expiration("a", START + DAY)
    wall.set(START + 2 * DAY)
    async with open_test_database(path, clock=wall) as db:
        await wait_all_tasks_blocked()
        assert db.default_collection.get("a", deleted=True) is None


async def test_a_crash_leaves_the_expiration_standing(path, wall, autojump_clock):
    async with open_test_database(path, clock=wall) as db:
        await db.default_collection.put("a", {})
        await db.default_collection.set_expiration("a", START + DAY)
        db.engine.abort()
    async with open_test_database(path, clock=wall) as db:
        assert db.default_collection.expiration("a") == START + DAY


@pytest.mark.behaviour("P10")
async def test_a_due_document_is_offered_to_nobody_before_it_is_purged(notes, wall, autojump_clock):
    for name in ("a", "b", "c"):
        await notes.put(name, {})
    await notes.set_expiration("a", START + DAY)
    await notes.set_expiration("c", START + DAY)
    await notes.set_expiration("b", START + 3 * DAY)
    wall.set(START + 2 * DAY)
    assert feed(notes) == ["b"]
    assert [change.document_id async for change in notes.changes(live=False)] == ["b"]


async def test_due_documents_do_not_make_a_slice_of_the_feed_longer(notes, wall, autojump_clock):
    for name in ("a", "b", "c"):
        await notes.put(name, {})
    for name in ("a", "b"):
        await notes.set_expiration(name, START + DAY)
    wall.set(START + 2 * DAY)

    def read(after):
        with notes.read() as txn:
            rows, end = changes.read_since(txn, notes.number, after, 2)
        return [row.document_id for row in rows], end

    assert read(Sequence(0)) == ([], 2)
    assert read(Sequence(2)) == (["c"], 3)
    assert [change.document_id async for change in notes.changes(live=False)] == ["c"]


async def test_a_due_document_cannot_be_kept_any_more(notes, wall, autojump_clock):
    await notes.put("a", {})
    await notes.set_expiration("a", START + DAY)
    wall.set(START + 2 * DAY)
    with pytest.raises(DocumentNotFoundError):
        await notes.set_expiration("a", None)


async def test_more_documents_than_one_transaction_purges(notes, monkeypatch, autojump_clock):
    monkeypatch.setattr(limits, "TIDY_RECORDS", 3)
    async with notes.batch() as batch:
        for number in range(10):
            batch.put(f"d{number}", {})
    for number in range(10):
        await notes.set_expiration(f"d{number}", START + SECOND)
    await trio.sleep(1.5)
    assert (notes.count, feed(notes)) == (0, [])


async def test_a_purge_that_fails_is_tried_again_later(notes, monkeypatch, caplog, autojump_clock):
    def fail(txn, limit):
        raise StoreError("the disk is gone")

    await notes.put("a", {})
    with monkeypatch.context() as patch:
        patch.setattr(janitor.purging, "purge_due", fail)
        await notes.set_expiration("a", START + SECOND)
        await trio.sleep(2)
    assert notes.get("a") is not None
    assert "the disk is gone" in caplog.text
    await trio.sleep(limits.TIDY_INTERVAL_S)
    assert notes.get("a") is None


async def test_only_a_live_document_can_expire(notes, autojump_clock):
    await notes.put("deleted", {})
    await notes.delete("deleted")
    for name in ("never", "deleted"):
        for when in (START + DAY, None):
            with pytest.raises(DocumentNotFoundError) as caught:
                await notes.set_expiration(name, when)
            assert caught.value.facts["document_id"] == name
        assert notes.expiration(name) is None


async def test_a_time_without_zone_is_refused(notes, autojump_clock):
    await notes.put("a", {})
    with pytest.raises(InvalidDocumentError, match="time zone"):
        await notes.set_expiration("a", START.replace(tzinfo=None))
    assert notes.expiration("a") is None


async def test_expirations_of_collections_are_their_own(db, notes, autojump_clock):
    other = await db.create_collection("other")
    for collection in (notes, other):
        await collection.put("a", {})
    await other.set_expiration("a", START + SECOND)
    await trio.sleep(1.5)
    assert notes.get("a") is not None
    assert other.get("a") is None
    await db.delete_collection("other")
    with pytest.raises(CollectionNotFoundError):
        await other.set_expiration("a", START)
    with pytest.raises(CollectionNotFoundError):
        other.expiration("a")
