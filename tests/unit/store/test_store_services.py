"""What works on a database in the background ends before the database is closed."""

import pytest
import trio

from trio_p2p import limits
from trio_p2p.errors import StoreClosedError
from trio_p2p.testing.databases import open_test_database


class Worker:
    """A service that ends when asked to, after a while."""

    def __init__(self, database, *, ends_after_s=0.0):
        self.database = database
        self.ends_after_s = ends_after_s
        self.asked = trio.Event()
        self.was_cut = False
        self.wrote_last = False

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        with self.database.services.running(self.asked.set) as service:
            task_status.started(service)
            try:
                await self.asked.wait()
                await trio.sleep(self.ends_after_s)
                await self.database.default_collection.put("last", {})
                self.wrote_last = True
            except trio.Cancelled:
                self.was_cut = True
                raise


@pytest.fixture
def path(tmp_path):
    return tmp_path / "db.p2p"


async def test_closing_asks_every_service_to_end_and_waits(path, nursery, autojump_clock):
    async with open_test_database(path) as database:
        workers = [Worker(database), Worker(database, ends_after_s=5)]
        for worker in workers:
            await nursery.start(worker.run)
    assert all(worker.wrote_last for worker in workers)
    assert trio.current_time() < limits.STOP_TIMEOUT_S


async def test_a_service_that_does_not_end_is_cut_off_in_time(path, nursery, autojump_clock):
    async with open_test_database(path) as database:
        quick, slow = Worker(database), Worker(database, ends_after_s=1_000)
        for worker in (quick, slow):
            await nursery.start(worker.run)
        before = trio.current_time()
    assert trio.current_time() - before == limits.STOP_TIMEOUT_S
    assert slow.was_cut
    assert quick.wrote_last
    # What was cut off has ended like any other: the task that ran it goes on.
    nursery.cancel_scope.cancel()


async def test_one_that_cannot_be_cancelled_holds_up_the_closing_only_so_long(
    path, nursery, autojump_clock
):
    async def hold_on(database, *, task_status):
        with database.services.running(lambda: None):
            task_status.started()
            with trio.CancelScope(shield=True):
                await trio.sleep(1_000)

    async with open_test_database(path) as database:
        await nursery.start(hold_on, database)
        before = trio.current_time()
    assert trio.current_time() - before == limits.STOP_TIMEOUT_S + limits.CUT_TIMEOUT_S


async def test_on_a_closed_database_no_service_begins(path):
    async with open_test_database(path) as database:
        pass
    with pytest.raises(StoreClosedError), database.services.running(lambda: None):
        pass


async def test_none_begins_while_others_are_waited_for(path, nursery, autojump_clock):
    async with open_test_database(path) as database:
        worker = Worker(database, ends_after_s=1)
        await nursery.start(worker.run)
        late = []

        async def begin_late():
            await worker.asked.wait()
            with pytest.raises(StoreClosedError), database.services.running(lambda: None):
                late.append("began")

        nursery.start_soon(begin_late)
    assert worker.wrote_last
    assert late == []


async def test_none_begins_on_a_store_that_was_aborted(path):
    async with open_test_database(path) as database:
        database.engine.abort()
        with pytest.raises(StoreClosedError), database.services.running(lambda: None):
            pass


async def test_a_name_is_claimed_by_one_service_at_a_time(path):
    async with open_test_database(path) as database:
        services = database.services
        with services.running(lambda: None) as first, services.running(lambda: None) as second:
            assert first.claim("name")
            assert first.claim("name")
            assert not second.claim("name")
            assert second.claim("other")
        with services.running(lambda: None) as third:
            assert third.claim("name")


async def test_a_name_that_was_released_may_be_claimed_by_others(path):
    async with open_test_database(path) as database:
        services = database.services
        with services.running(lambda: None) as first, services.running(lambda: None) as second:
            first.claim("name")
            second.release("name")
            assert not second.claim("name")
            first.release("name")
            assert second.claim("name")
            assert not first.claim("name")


async def test_what_a_service_raises_leaves_as_it_was_and_frees_its_names(path):
    def fail(database):
        with database.services.running(lambda: None) as service:
            service.claim("name")
            raise LookupError("mine")

    async with open_test_database(path) as database:
        with pytest.raises(LookupError, match="mine"):
            fail(database)
        with database.services.running(lambda: None) as service:
            assert service.claim("name")


async def test_a_closing_that_is_cancelled_still_lets_services_end(path, nursery, autojump_clock):
    with trio.CancelScope() as scope:
        async with open_test_database(path) as database:
            worker = Worker(database, ends_after_s=1)
            await nursery.start(worker.run)
            scope.cancel()
    assert worker.wrote_last
