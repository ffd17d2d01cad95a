from __future__ import annotations

import threading

import lmdb
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import StoreClosedError, StoreCorruptError, StoreError, StoreFullError
from trio_p2p.store.engine import open_engine
from trio_p2p.testing.databases import open_test_database, run_in_place

DEFAULT = 1


def set_value(key, value=b"1"):
    def job(txn):
        txn.collection(DEFAULT).last_sequence += 1
        txn.raw.put(key, value, db=txn.tables.documents)
        txn.note_growth(len(value))
        return key

    return job


def values(engine):
    with engine.read() as txn:
        return {bytes(key): bytes(value) for key, value in txn.raw.cursor(txn.tables.documents)}


class Gate:
    """Runs nothing before it is opened."""

    def __init__(self):
        self.open = trio.Event()
        self.open.set()

    async def __call__(self, function, *args):
        with trio.CancelScope(shield=True):
            await self.open.wait()
        return await run_in_place(function, *args)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
async def gated(path, gate):
    """An engine whose commits wait for the gate."""
    async with open_engine(path, clock=lambda: 0, run_sync=gate, sync=False) as engine:
        gate.open = trio.Event()
        try:
            yield engine
        finally:
            gate.open.set()


async def outcome(results, engine, job):
    """Put what comes of a job into a list."""
    try:
        results.append(await engine.write(job))
    except (ValueError, StoreError) as exc:
        results.append(exc)


async def test_a_job_returns_its_result_and_its_changes_are_read(engine):
    assert await engine.write(set_value(b"a")) == b"a"
    assert values(engine) == {b"a": b"1"}
    assert engine.collections[DEFAULT].last_sequence == 1


async def test_a_job_that_raises_changes_nothing(engine):
    def job(txn):
        set_value(b"a")(txn)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await engine.write(job)
    assert values(engine) == {}
    assert engine.collections[DEFAULT].last_sequence == 0
    assert engine.statistics().commits == 0


async def test_jobs_that_wait_share_one_commit(gated, gate, nursery):
    results = []
    nursery.start_soon(outcome, results, gated, set_value(b"0"))
    await wait_all_tasks_blocked()
    for number in range(1, 10):
        nursery.start_soon(outcome, results, gated, set_value(b"%d" % number))
    await wait_all_tasks_blocked()
    gate.open.set()
    await wait_all_tasks_blocked()
    assert sorted(results) == [b"%d" % number for number in range(10)]
    statistics = gated.statistics()
    assert (statistics.commits, statistics.jobs) == (2, 10)
    assert gated.collections[DEFAULT].last_sequence == 10


async def test_a_commit_carries_a_bounded_number_of_jobs(gated, gate, nursery, monkeypatch):
    monkeypatch.setattr(limits, "COMMIT_JOBS_MAX", 3)
    for number in range(7):
        nursery.start_soon(gated.write, set_value(b"%d" % number))
    await wait_all_tasks_blocked()
    gate.open.set()
    await wait_all_tasks_blocked()
    assert (gated.statistics().commits, gated.statistics().jobs) == (3, 7)


async def test_a_failing_job_leaves_its_neighbours_unharmed(gated, gate, nursery):
    def failing(txn):
        set_value(b"bad")(txn)
        txn.raw.delete(b"1", db=txn.tables.documents)
        raise ValueError("mine")

    results = []
    for number in range(3):
        nursery.start_soon(outcome, results, gated, set_value(b"%d" % number))
        nursery.start_soon(outcome, results, gated, failing)
    await wait_all_tasks_blocked()
    gate.open.set()
    await wait_all_tasks_blocked()
    assert sum(isinstance(result, ValueError) for result in results) == 3
    assert sorted(values(gated)) == [b"0", b"1", b"2"]
    assert gated.collections[DEFAULT].last_sequence == 3


async def test_an_error_of_lmdb_in_a_job_comes_out_as_ours(engine):
    def job(txn):
        txn.raw.put(b"", b"", db=txn.tables.documents)

    with pytest.raises(StoreError, match="failed") as caught:
        await engine.write(job)
    assert isinstance(caught.value.__cause__, lmdb.BadValsizeError)


async def test_an_error_of_lmdb_in_a_read_comes_out_as_ours(engine):
    with pytest.raises(StoreCorruptError), engine.read():
        raise lmdb.CorruptedError("page")


@pytest.mark.parametrize("together", [False, True])
async def test_a_job_too_large_fails_alone(path, together, nursery):
    gate = Gate()
    opening = open_engine(path, clock=lambda: 0, run_sync=gate, sync=False, map_size_max=2**20)
    async with opening as engine:
        gate.open = trio.Event()
        results = []
        nursery.start_soon(outcome, results, engine, set_value(b"first"))
        await wait_all_tasks_blocked()
        if together:
            nursery.start_soon(outcome, results, engine, set_value(b"before"))
        nursery.start_soon(outcome, results, engine, set_value(b"large", bytes(2**21)))
        if together:
            nursery.start_soon(outcome, results, engine, set_value(b"after"))
        await wait_all_tasks_blocked()
        gate.open.set()
        await wait_all_tasks_blocked()
        kept = [b"after", b"before", b"first"] if together else [b"first"]
        assert sorted(values(engine)) == kept
        assert [type(result) for result in results].count(StoreFullError) == 1
        assert await engine.write(set_value(b"small")) == b"small"


async def test_jobs_that_only_together_are_too_large_are_committed_by_themselves(path, nursery):
    gate = Gate()
    opening = open_engine(path, clock=lambda: 0, run_sync=gate, sync=False, map_size_max=2**20)
    async with opening as engine:
        gate.open = trio.Event()
        results = []
        for number in range(8):
            job = set_value(b"%d" % number, bytes(200_000))
            nursery.start_soon(outcome, results, engine, job)
        await wait_all_tasks_blocked()
        gate.open.set()
        await wait_all_tasks_blocked()
        full = sum(isinstance(result, StoreFullError) for result in results)
        assert len(results) == 8
        assert 0 < full < 8
        assert len(values(engine)) == 8 - full
        assert engine.collections[DEFAULT].last_sequence == 8 - full
    async with open_test_database(path) as db:
        assert db.engine.collections[DEFAULT].last_sequence == 8 - full


async def test_cancelling_before_admission_leaves_no_trace(path, nursery, monkeypatch):
    monkeypatch.setattr(limits, "WRITER_QUEUE_JOBS_MAX", 1)
    gate = Gate()
    async with open_engine(path, clock=lambda: 0, run_sync=gate, sync=False) as engine:
        gate.open = trio.Event()
        for key in (b"running", b"queued"):
            nursery.start_soon(engine.write, set_value(key))
            await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(engine.write, set_value(b"held back"))
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        gate.open.set()
        await wait_all_tasks_blocked()
        assert sorted(values(engine)) == [b"queued", b"running"]


async def test_a_cancelled_caller_does_not_write(engine):
    with trio.CancelScope() as scope:
        scope.cancel()
        await engine.write(set_value(b"a"))
    assert scope.cancelled_caught
    assert values(engine) == {}


async def test_cancelling_after_admission_waits_for_the_fate(gated, gate, nursery):
    results = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(outcome, results, gated, set_value(b"a"))
            await wait_all_tasks_blocked()
            scope.cancel()
            gate.open.set()
    assert results == [b"a"]
    assert values(gated) == {b"a": b"1"}


async def test_leaving_the_block_writes_what_was_admitted(path, gate, nursery):
    results = []
    async with open_engine(path, clock=lambda: 0, run_sync=gate, sync=False) as engine:
        gate.open = trio.Event()
        for number in range(5):
            nursery.start_soon(outcome, results, engine, set_value(b"%d" % number))
        await wait_all_tasks_blocked()
        gate.open.set()
    await wait_all_tasks_blocked()
    assert sorted(results) == [b"0", b"1", b"2", b"3", b"4"]
    async with open_test_database(path) as db:
        assert len(values(db.engine)) == 5


async def test_leaving_the_block_by_cancellation_writes_what_was_admitted(path, nursery):
    results = []
    gate = Gate()
    with trio.CancelScope() as scope:
        async with open_engine(path, clock=lambda: 0, run_sync=gate, sync=False) as engine:
            gate.open = trio.Event()
            nursery.start_soon(outcome, results, engine, set_value(b"a"))
            await wait_all_tasks_blocked()
            nursery.start_soon(outcome, results, engine, set_value(b"b"))
            await wait_all_tasks_blocked()
            scope.cancel()
            gate.open.set()
            await trio.sleep_forever()
    await wait_all_tasks_blocked()
    assert results == [b"a", b"b"]


async def test_what_the_body_raises_leaves_as_it_was(path):
    failure = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with open_test_database(path):
            raise failure
    assert caught.value is failure


async def test_what_the_body_raises_while_cancelled_is_not_lost(path):
    async def fail(scope):
        async with open_test_database(path):
            scope.cancel()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), trio.CancelScope() as scope:
        await fail(scope)


async def test_a_closed_engine_refuses_everything(path):
    async with open_test_database(path) as db:
        engine = db.engine
    for use in (engine.read, engine.statistics):
        with pytest.raises(StoreClosedError):
            use()
    with pytest.raises(StoreClosedError):
        await engine.write(set_value(b"a"))
    with pytest.raises(StoreClosedError):
        await engine.wait_change(DEFAULT, 0)
    assert engine.closed
    engine.abort()


async def test_abort_fails_what_waits_and_keeps_what_was_committed(path, gate, nursery):
    results = []
    async with open_engine(path, clock=lambda: 0, run_sync=gate, sync=False) as engine:
        await engine.write(set_value(b"kept"))
        gate.open = trio.Event()
        nursery.start_soon(outcome, results, engine, set_value(b"taken"))
        await wait_all_tasks_blocked()
        nursery.start_soon(outcome, results, engine, set_value(b"queued"))
        nursery.start_soon(outcome, results, engine, set_value(b"queued too"))
        await wait_all_tasks_blocked()
        engine.abort()
        # The files are closed at once: the directory can be opened again right now.
        async with open_test_database(path) as again:
            assert values(again.engine) == {b"kept": b"1"}
        gate.open.set()
    await wait_all_tasks_blocked()
    assert [type(result) for result in results] == [StoreClosedError] * 3
    async with open_test_database(path) as db:
        assert values(db.engine) == {b"kept": b"1"}


async def test_abort_lets_a_running_commit_finish(path, nursery):
    results = []
    started, release = threading.Event(), threading.Event()

    def job(txn):
        started.set()
        release.wait()
        return set_value(b"a")(txn)

    async with open_engine(path, clock=lambda: 0) as engine:
        nursery.start_soon(outcome, results, engine, job)
        await trio.to_thread.run_sync(started.wait)
        release.set()
        engine.abort()
    await wait_all_tasks_blocked()
    assert results == [b"a"]
    async with open_test_database(path) as db:
        assert values(db.engine) == {b"a": b"1"}


async def test_a_change_that_happened_already_is_not_waited_for(engine, autojump_clock):
    await engine.write(set_value(b"a"))
    with trio.fail_after(1):
        await engine.wait_change(DEFAULT, 0)


async def test_every_waiter_is_woken_by_the_change_it_waits_for(engine, nursery):
    woken = []

    async def wait(after):
        await engine.wait_change(DEFAULT, after)
        woken.append(after)

    for after in (0, 0, 1, 2):
        nursery.start_soon(wait, after)
    for expected in ([], [0, 0], [0, 0, 1], [0, 0, 1, 2]):
        await wait_all_tasks_blocked()
        assert sorted(woken) == expected
        await engine.write(set_value(b"a"))


async def test_a_waiter_that_is_cancelled_leaves_the_others_waiting(engine, nursery):
    woken = []

    async def wait():
        await engine.wait_change(DEFAULT, 0)
        woken.append(True)

    nursery.start_soon(wait)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(wait)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert woken == []
    await engine.write(set_value(b"a"))
    await wait_all_tasks_blocked()
    assert woken == [True]


async def test_closing_ends_every_wait(path, nursery):
    ended = []

    async def wait(engine):
        with pytest.raises(StoreClosedError):
            await engine.wait_change(DEFAULT, 0)
        ended.append(True)

    async with open_test_database(path) as db:
        nursery.start_soon(wait, db.engine)
        nursery.start_soon(wait, db.engine)
        await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    assert ended == [True, True]


async def test_the_clock_never_falls_behind_what_was_committed_before_a_restart(path):
    now = 2 * 10**18
    async with open_test_database(path, clock=lambda: now) as db:
        before = await db.engine.write(lambda txn: txn.stamp())
    async with open_test_database(path, clock=lambda: now - 10**12) as db:
        after = await db.engine.write(lambda txn: txn.stamp())
    assert after > before
    assert after.source == before.source


async def test_durable_commits_run_in_threads(path):
    async with open_engine(path, clock=lambda: 0) as engine:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(engine.write, set_value(b"%d" % number))
        assert len(values(engine)) == 50
        assert engine.statistics().commits < 50
