"""Cancelling a write at any moment: it either leaves no trace or has no effect, and who cancelled
knows which."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.store.database import Database
from trio_p2p.store.engine import open_engine
from trio_p2p.testing.integrity import check_store

TURNS = range(0, 120, 6)


async def batch(notes):
    async with notes.batch() as batch:
        batch.put("a", {"v": 2})
        batch.put("b", {})


WRITES = {
    "put": lambda notes: notes.put("a", {"v": 2}),
    "update": lambda notes: notes.update("a", lambda body: {"v": 2}),
    "delete": lambda notes: notes.delete("a"),
    "purge": lambda notes: notes.purge("a"),
    "batch": batch,
}


async def run_in_turns(function, *args):
    """As in a thread: other tasks have turns before and after."""
    for _ in range(3):
        await trio.lowlevel.cancel_shielded_checkpoint()
    result = function(*args)
    for _ in range(3):
        await trio.lowlevel.cancel_shielded_checkpoint()
    return result


@pytest.fixture
async def db(path, monkeypatch):
    """One write at a time is committed, one waits, and whoever comes next waits for its place."""
    monkeypatch.setattr(limits, "COMMIT_JOBS_MAX", 1)
    monkeypatch.setattr(limits, "WRITER_QUEUE_JOBS_MAX", 1)
    opening = open_engine(path, clock=lambda: 2 * 10**18, run_sync=run_in_turns, sync=False)
    async with opening as engine:
        yield Database(engine)


async def cancel_after(turns, scope):
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.parametrize("others", [0, 4])
@pytest.mark.parametrize("kind", WRITES)
async def test_a_write_that_is_cancelled_happened_or_not_as_it_was_told(
    db, notes, nursery, kind, others
):
    told = []
    for turns in TURNS:
        await notes.put("a", {"v": 1})
        before = notes.last_sequence, notes.get("a")
        for number in range(others):
            nursery.start_soon(notes.put, f"other {number}", {})
        for _ in range(2):  # By then all of them have had a turn.
            await trio.lowlevel.checkpoint()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(cancel_after, turns, scope)
                await WRITES[kind](notes)
                told.append("done")
        await wait_all_tasks_blocked()
        if len(told) <= TURNS.index(turns):
            told.append("cancelled")
            assert notes.get("a") == before[1]
            assert notes.get("b") is None
            assert notes.last_sequence == before[0] + others
        else:
            assert notes.get("a") is None or notes.get("a").body == {"v": 2}
            assert (notes.get("b") is not None) == (kind == "batch")
        await notes.purge("b")
        check_store(db.engine)
    # One that has its place at once cannot be cancelled any more.
    assert (told[0], told[-1]) == ("cancelled" if others else "done", "done")


async def test_a_write_whose_caller_was_cancelled_before_is_not_begun(db, notes):
    for write in WRITES.values():
        with trio.CancelScope() as scope:
            scope.cancel()
            await write(notes)
        assert scope.cancelled_caught
    assert (notes.last_sequence, db.statistics().writes) == (0, 0)
