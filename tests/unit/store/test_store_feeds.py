"""Live change feeds: any number, each at its own pace, cancelled at any moment, holding nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.testing.databases import open_test_database

FEEDS = 50


def snapshots(db):
    """How many are open, by LMDB's table of readers."""
    _, *lines = db.engine._environment.env.readers().splitlines()
    return sum(not line.endswith("-") for line in lines)


async def follow(feed, seen):
    async for change in feed:
        seen.append(change.sequence)


def latest(changes):
    """The feed of documents that changed in this order: each once, under its latest sequence."""
    last = {document_id: sequence for sequence, document_id in enumerate(changes, 1)}
    return sorted(last.values())


async def test_each_feed_has_its_own_cursor(notes, nursery):
    seen = {since: [] for since in range(0, 2 * FEEDS, 2)}
    for since, found in seen.items():
        nursery.start_soon(follow, notes.changes(since), found)
    for number in range(2 * FEEDS):
        await notes.put(f"d{number}", {})
    await wait_all_tasks_blocked()
    for since, found in seen.items():
        assert found == list(range(since + 1, 2 * FEEDS + 1))


async def test_a_slow_feed_holds_up_nobody(notes, nursery):
    slow, fast = notes.changes(), []
    nursery.start_soon(follow, notes.changes(), fast)
    await notes.put("first", {})
    assert (await anext(slow)).sequence == 1
    for number in range(3 * limits.SCAN_SLICE_ROWS):
        await notes.put(f"d{number}", {})
    await wait_all_tasks_blocked()
    assert len(fast) == 1 + 3 * limits.SCAN_SLICE_ROWS
    # And it misses nothing when it goes on.
    assert [(await anext(slow)).sequence for _ in fast[1:]] == fast[1:]


async def test_a_feed_that_stands_still_keeps_no_pages(db, notes, nursery):
    """Pages that were overwritten are used again, as without any feed."""
    feeds = [notes.changes() for _ in range(FEEDS)]
    await notes.put("a", {"text": "x" * 4000})
    for feed in feeds:
        await anext(feed)
    waiting = [notes.changes(1) for _ in range(FEEDS)]
    for feed in waiting:
        nursery.start_soon(follow, feed, [])
    await wait_all_tasks_blocked()
    assert snapshots(db) == 0
    before = db.statistics().file_bytes
    for _ in range(500):
        await notes.put("a", {"text": "y" * 4000})
    assert snapshots(db) == 0
    assert db.statistics().file_bytes - before < 200_000


async def test_an_open_snapshot_would_have_kept_them(db, notes):
    """What the test before sees if there is one."""
    await notes.put("a", {"text": "x" * 4000})
    before = db.statistics().file_bytes
    with db.engine._environment.env.begin():
        assert snapshots(db) == 1
        for _ in range(500):
            await notes.put("a", {"text": "y" * 4000})
    assert db.statistics().file_bytes - before > 2_000_000


async def test_feeds_that_ended_leave_nothing_behind(db, notes, nursery):
    await notes.put("a", {})
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            for _ in range(FEEDS):
                inner.start_soon(follow, notes.changes(), [])
            await wait_all_tasks_blocked()
            scope.cancel()
    assert snapshots(db) == 0
    lots = db.engine._watchers.values()
    assert sum(len(lot) for lot in lots) == 0


names = st.sampled_from("abcdef")
steps = st.lists(names | st.integers(1, 5), max_size=30)
# By feed: after which of its turns it is cancelled; it goes on then, or is given up.
cancellations = st.lists(
    st.tuples(st.lists(st.integers(0, 12), max_size=4), st.booleans()), min_size=1, max_size=4
)


async def follow_with_interruptions(feed, seen, pauses, goes_on, ended):
    """Consume a feed; the n-th time, cancel after so many steps of the scheduler."""
    for turns in pauses:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_after, turns, scope)
                await follow(feed, seen)
        assert scope.cancelled_caught
    if goes_on:
        await follow(feed, seen)
    ended.set()


async def cancel_after(turns, scope):
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@given(steps, cancellations)
def test_a_feed_may_be_cancelled_at_any_moment(steps, cancellations):
    """Nobody else notices, and one that goes on misses nothing and repeats nothing."""

    async def main(path):
        async with open_test_database(path) as db:
            notes = db.default_collection
            changed = []
            followers = [([], goes_on, trio.Event()) for _, goes_on in cancellations]
            async with trio.open_nursery() as nursery:
                for (pauses, _), (seen, goes_on, ended) in zip(
                    cancellations, followers, strict=True
                ):
                    nursery.start_soon(
                        follow_with_interruptions, notes.changes(), seen, pauses, goes_on, ended
                    )
                for step in steps:
                    if isinstance(step, str):
                        await notes.put(step, {})
                        changed.append(step)
                    else:
                        await trio.sleep(step)
                await wait_all_tasks_blocked()
                for seen, goes_on, ended in followers:
                    assert ended.is_set() == (not goes_on)
                    # Ascending: nothing comes twice, nothing out of order.
                    assert seen == sorted(set(seen))
                    if goes_on:
                        # A change that was superseded before it was read may be missing.
                        assert set(latest(changed)) <= set(seen)
                        assert set(seen) <= set(range(1, len(changed) + 1))
                assert snapshots(db) == 0
                nursery.cancel_scope.cancel()
            assert sum(len(lot) for lot in db.engine._watchers.values()) == 0

    with tempfile.TemporaryDirectory() as directory:
        trio.run(main, Path(directory) / "db", clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("slice_rows", [1, 2, 3])
async def test_a_feed_loses_nothing_when_cancelled_between_its_slices(
    notes, monkeypatch, slice_rows
):
    monkeypatch.setattr(limits, "SCAN_SLICE_ROWS", slice_rows)
    for number in range(7):
        await notes.put(f"d{number}", {})
    feed, seen = notes.changes(), []
    for _ in range(7):
        # What was read is given before a cancellation is noticed; the rest is not lost.
        with trio.CancelScope() as scope:
            scope.cancel()
            await follow(feed, seen)
        assert scope.cancelled_caught
        if len(seen) < 7:
            seen.append((await anext(feed)).sequence)
    assert seen == list(range(1, 8))
