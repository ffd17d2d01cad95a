"""Tables of bounded size give up the entry that was put least recently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p.store import checkpoints, recent, remotes
from trio_p2p.store.recent import Bounded
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.driver import TrioDriver

ONE: Bounded = remotes.REMOTES
OTHER: Bounded = remotes.PEERS_AT

names = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
steps = st.lists(st.tuples(st.sampled_from(["put", "remove", "clear"]), names), max_size=30)


@pytest.fixture
def contents(engine):
    def contents(table=ONE):
        with engine.read() as txn:
            return {entry.key: entry.content for entry in recent.entries(txn, table)}

    return contents


async def put(engine, key, content=b"", table=ONE, entries_max=3):
    def job(txn):
        if recent.get(txn, table, key) is None:
            recent.make_room(txn, table, entries_max)
        return recent.put(txn, table, key, content)

    return await engine.write(job)


async def test_an_entry_is_replaced_under_its_key(engine, contents):
    await put(engine, b"a", b"1")
    await put(engine, b"a", b"2")
    assert contents() == {b"a": b"2"}


async def test_later_puts_have_greater_uses(engine):
    uses = [await put(engine, key) for key in (b"a", b"a", b"b", b"a", b"b", b"b")]
    assert uses == sorted(set(uses))


async def test_what_was_put_least_recently_gives_way(engine, contents):
    for key in (b"a", b"b", b"c", b"a", b"d"):
        await put(engine, key)
    assert contents().keys() == {b"a", b"c", b"d"}


async def test_room_is_made_only_where_it_is_lacking(engine, contents):
    await put(engine, b"a")
    assert await engine.write(lambda txn: recent.make_room(txn, ONE, 2)) is None
    removed = await engine.write(lambda txn: recent.make_room(txn, ONE, 1))
    assert removed.key == b"a"
    assert contents() == {}


async def test_tables_do_not_disturb_each_other(engine, contents):
    await put(engine, b"a", b"1")
    await put(engine, b"a", b"2", table=OTHER)
    await engine.write(lambda txn: recent.remove(txn, ONE, b"a"))
    assert (contents(), contents(OTHER)) == ({}, {b"a": b"2"})


def test_each_table_has_a_sign_of_its_own():
    tables = (checkpoints.LOCAL, checkpoints.PEERS, remotes.REMOTES, remotes.PEERS_AT)
    assert len({table.sign for table in tables}) == len({table.name for table in tables}) == 4


@given(steps)
def test_any_history_leaves_the_entries_that_were_put_last(tmp_path_factory, steps):
    order: list[bytes] = []  # The model: keys, the one put least recently first.

    async def play():
        path = tmp_path_factory.mktemp("recent") / "db"
        async with open_test_database(path) as db:
            for step, key in steps:
                if step == "put":
                    await put(db.engine, key, entries_max=3)
                    if key in order:
                        order.remove(key)
                    order[:] = [*order, key][-3:]
                elif step == "remove":
                    await db.engine.write(lambda txn, key=key: recent.remove(txn, ONE, key))
                    order[:] = [kept for kept in order if kept != key]
                else:
                    await db.engine.write(lambda txn: recent.clear(txn, ONE))
                    order.clear()
                with db.engine.read() as txn:
                    kept = sorted(recent.entries(txn, ONE), key=lambda entry: entry.use)
                    assert [entry.key for entry in kept] == order
                    assert txn.raw.stat(txn.tables.uses)["entries"] == len(order)

    driver = TrioDriver()
    try:
        driver.run(play)
    finally:
        driver.close()
