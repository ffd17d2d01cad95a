from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import AddressesExhaustedError, StoreFullError
from trio_p2p.store import environment as environment_module
from trio_p2p.store import mapping
from trio_p2p.testing.databases import open_test_database

GIB = 2**30

# Opens a database where the process may use so many addresses, and tells what came of it.
LIMITED = """
import resource, sys
import trio, trio_p2p

async def main(path):
    async with trio_p2p.open_database(path) as db:
        await db.default_collection.put("a", {"text": "x" * 2**20})
        await db.backup(path + ".backup")
        print([doc.id async for doc in db.default_collection.documents()])
        print(db.statistics().bytes_max)

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
try:
    trio.run(main, sys.argv[1])
except trio_p2p.TrioP2PError as exc:
    print(type(exc).__name__, exc.facts["path"])
"""


def open_limited(path, addresses):
    told = subprocess.run(
        [sys.executable, "-c", LIMITED, path, str(addresses)],
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.splitlines()


@pytest.fixture
def refuse(monkeypatch):
    """Lets the system have so many addresses and no more."""

    def refuse(addresses):
        opening = lmdb.open  # noqa: TID251

        def open_small(path, *, map_size, **options):
            if map_size > addresses:
                raise lmdb.MemoryError(path)
            return opening(path, map_size=map_size, **options)

        monkeypatch.setattr(environment_module.lmdb, "open", open_small)
        monkeypatch.setattr(mapping, "are_free", lambda count: count <= addresses)

    return refuse


def test_with_few_addresses_a_database_is_smaller_but_works(path):
    ids, bytes_max = open_limited(path, 4 * GIB)
    assert ids == "['a']"
    assert GIB // 4 <= int(bytes_max) <= 2 * GIB


def test_with_too_few_addresses_a_database_does_not_open(path):
    with_python_only = 2**28
    assert open_limited(path, with_python_only) == [f"AddressesExhaustedError {path}"]
    assert open_limited(path, 4 * GIB)[0] == "['a']"


@given(st.integers(1, 2**80), st.integers(0, 2**40), st.integers(2**20, 2**50))
def test_what_is_tried_is_as_much_as_wanted_then_what_leaves_as_much_free(
    size_max, length, addresses
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "are_free", lambda count: count <= addresses)
        first, *others = mapping.sizes(size_max, length)
    assert first == max(size_max, length)
    assert len(others) <= 1
    for size in others:
        assert length <= size < first
        if size == length:
            continue
        assert 2 * mapping.map_bytes(size) <= addresses
        # Twice as much was wanted, and tried without success, or would have been too much.
        assert 2 * size + 1 >= first or 2 * mapping.map_bytes(2 * size + 1) > addresses


@given(st.integers(0, 2**50))
def test_a_map_holds_the_size_and_a_reserve_in_whole_pages(size):
    mapped = mapping.map_bytes(size)
    assert mapped >= size + max(size // limits.MAP_RESERVE_SHARE, limits.MAP_RESERVE_BYTES_MIN)
    assert mapped % 4096 == 0


def test_addresses_are_free_or_not():
    assert mapping.are_free(2**20)
    assert not mapping.are_free(2**62)
    assert not mapping.are_free(2**80)


async def test_where_addresses_are_scarce_the_limit_is_what_could_be_mapped(path, refuse):
    refuse(GIB)
    async with open_test_database(path) as db:
        assert db.statistics().bytes_max == GIB // 4
        await db.default_collection.put("a", {})
    async with open_test_database(path, map_size_max=2**20) as db:
        assert db.statistics().bytes_max == 2**20


async def test_a_size_limit_that_can_be_mapped_is_kept_though_little_is_left(path, refuse):
    refuse(GIB)
    async with open_test_database(path, map_size_max=GIB // 2) as db:
        assert db.statistics().bytes_max == GIB // 2


async def test_the_limit_of_scarce_addresses_is_one_like_any_other(path, refuse):
    refuse(2 * mapping.map_bytes(limits.MAP_RESERVE_BYTES_MIN))
    large = {"text": "x" * 10 * 2**20}
    async with open_test_database(path) as db:
        notes = db.default_collection
        assert db.statistics().bytes_max == limits.MAP_RESERVE_BYTES_MIN
        with suppress(StoreFullError):
            for number in range(8):
                await notes.put(f"d{number}", large)
        assert notes.count == 6
        for number in range(6):
            await notes.purge(f"d{number}")
        await notes.put("a", large)


async def test_what_is_there_opens_as_long_as_it_can_be_mapped(path, refuse):
    async with open_test_database(path) as db:
        for number in range(12):
            await db.default_collection.put(f"d{number}", {"text": "x" * 10 * 2**20})
        length = db.statistics().file_bytes
    refuse(mapping.map_bytes(length))
    async with open_test_database(path) as db:
        assert db.default_collection.count == 12
        assert db.statistics().bytes_max == length
        await db.default_collection.purge("d0")
    refuse(length)
    with pytest.raises(AddressesExhaustedError) as caught:
        async with open_test_database(path):
            pass
    assert caught.value.facts["path"] == str(path)
