"""The identity of those who have no other."""

from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_p2p import limits
from trio_p2p.errors import ConfigurationError, KeyStoreError
from trio_p2p.security.anonymous import AnonymousIdentity
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.security.keystore import FileKeyStore, MemoryKeyStore
from trio_p2p.testing.databases import run_in_place

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MARGIN = timedelta(days=limits.IDENTITY_RENEWAL_DAYS)


def anonymous(store):
    return AnonymousIdentity("listener", store, run_sync=run_in_place)


async def test_it_is_made_once_and_found_again(tmp_path):
    first = await anonymous(FileKeyStore(tmp_path / "keys")).current(NOW)
    again = await anonymous(FileKeyStore(tmp_path / "keys")).current(NOW + timedelta(days=100))
    assert again.certificates == first.certificates


async def test_it_is_renewed_before_it_expires_also_while_it_is_in_use():
    store = MemoryKeyStore()
    source = anonymous(store)
    first = await source.current(NOW)
    due = first.expiration - MARGIN
    soon = await source.current(due - timedelta(seconds=1))
    assert soon is first
    later = await source.current(due)
    assert later.expiration > due + timedelta(days=300)
    assert (await anonymous(store).current(due)).certificates == later.certificates
    assert store.labels() == ("listener",)


async def test_one_that_expired_while_nobody_used_it_is_replaced():
    store = MemoryKeyStore()
    first = await anonymous(store).current(NOW)
    after = first.expiration + timedelta(days=1)
    assert (await anonymous(store).current(after)).expiration > after


async def test_tasks_that_need_it_at_once_get_the_same_one():
    source = AnonymousIdentity("listener", MemoryKeyStore())
    found = []

    async def need():
        found.append(await source.current(NOW))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(need)
    assert len(set(map(id, found))) == 1


async def test_two_processes_that_need_it_at_once_get_the_same_one():
    class Racing(MemoryKeyStore):
        def load(self, label):
            found = super().load(label)
            self.add(label, theirs.to_pkcs12())
            return found

    theirs = TLSIdentity.create("theirs", now=NOW)
    assert (await anonymous(Racing()).current(NOW)).certificates == theirs.certificates


async def test_what_is_damaged_is_not_replaced():
    store = MemoryKeyStore()
    store.save("listener", b"junk")
    with pytest.raises(ConfigurationError):
        await anonymous(store).current(NOW)
    assert store.load("listener") == b"junk"


async def test_one_that_cannot_be_renewed_is_used_on(caplog):
    class Locked(MemoryKeyStore):
        def save(self, label, data):
            raise KeyStoreError("locked")

    source = anonymous(Locked())
    first = await source.current(NOW)
    due = first.expiration - MARGIN
    pause = timedelta(seconds=limits.IDENTITY_RENEWAL_PAUSE_S)
    # Nobody can make it be tried all the time by connecting all the time.
    for at, attempts in ((due, 1), (due, 1), (due + pause / 2, 1), (due + pause, 2)):
        assert await source.current(at) is first
        assert caplog.text.count("cannot be renewed") == attempts


async def test_others_use_the_old_one_while_a_locked_store_keeps_the_renewal_waiting(nursery):
    """They would wait before they have a place, as many as connect."""
    unlocked = trio.Event()

    async def run_sync(function, *args):
        if due in args:
            await unlocked.wait()
        return function(*args)

    due = None
    source = AnonymousIdentity("listener", MemoryKeyStore(), run_sync=run_sync)
    first = await source.current(NOW)
    due = first.expiration - MARGIN
    nursery.start_soon(source.current, due)
    await wait_all_tasks_blocked()
    for _ in range(3):
        assert await source.current(due) is first
    unlocked.set()
    await wait_all_tasks_blocked()
    assert await source.current(due) is not first
