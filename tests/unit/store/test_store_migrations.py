"""A database of an older format version is brought to the present one when it is opened."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from trio_p2p import limits
from trio_p2p.errors import StoreCorruptError, StoreFormatError
from trio_p2p.ids import SourceID
from trio_p2p.model.codec import encode_body
from trio_p2p.model.version import Version
from trio_p2p.store import bases, checkpoints, conflicts, keys, migrations, remotes, schema
from trio_p2p.store.environment import DATA_FILE
from trio_p2p.testing.databases import open_test_database
from trio_p2p.testing.integrity import check_store

VECTORS = Path(__file__).parents[2] / "vectors"
FORMAT_1 = VECTORS / "store_format_1.mdb.xz"
FORMAT_2 = VECTORS / "store_format_2.mdb.xz"
FORMAT_3 = VECTORS / "store_format_3.mdb.xz"
NOW = 1_800_000_000 * 10**9


def unpacked(vector, path):
    path.mkdir()
    (path / DATA_FILE).write_bytes(lzma.decompress(vector.read_bytes()))
    return path


@pytest.fixture
def old(path):
    return unpacked(FORMAT_1, path)


async def test_a_database_of_format_1_is_read_whole(old):
    async with open_test_database(old, clock=lambda: NOW) as db:
        assert str(db.id) == "13b2869a-92ca-4c9b-971e-817f86c90532"
        assert db.source_id == "2e2k8sSygYxtDSPhTZzaiQ"
        notes = db.default_collection
        assert (notes.count, notes.last_sequence) == (2, 4)
        assert notes.get("b").body == {"n": 2}
        assert notes.get("ö").body == {"t": "x"}
        assert notes.get("a", deleted=True).deleted
        changes = [change[:2] async for change in notes.changes(live=False)]
        assert changes == [(2, "b"), (3, "a"), (4, "ö")]
        other = db.collection("shop.notes")
        assert other.get("only").body == {"here": True}
        with db.engine.read() as txn:
            assert [r.version.source for r in conflicts.of_document(txn, 1, "b")] == [b"z" * 16]
            assert remotes.known(txn, 2, 1, "b") == Version(NOW, SourceID(b"a" * 16))
            assert remotes.peer_at(txn, "ws://x/y") == "peer two"
            assert checkpoints.local(txn, "cp-1") == b'{"local":3}'
            assert checkpoints.peer(txn, "client").body == b'{"remote":1}'
            assert txn.raw.get(b"known") is txn.raw.get(b"checkpoint_uses") is None


async def test_what_was_kept_in_format_1_takes_part_in_what_is_bounded_now(old, monkeypatch):
    async with open_test_database(old, clock=lambda: NOW) as db:
        for name in ("REMOTES_MAX", "TARGETS_MAX", "LOCAL_CHECKPOINTS_MAX", "PEER_CHECKPOINTS_MAX"):
            monkeypatch.setattr(limits, name, 1)

        def job(txn):
            remotes.number(txn, "peer three")
            remotes.set_peer_at(txn, "ws://new", "peer three")
            checkpoints.set_local(txn, "cp-2", b"{}")
            checkpoints.set_peer(txn, "client", checkpoints.peer(txn, "client").revision, b"2")
            checkpoints.set_peer(txn, "other", "", b"3")

        await db.engine.write(job)
        with db.engine.read() as txn:
            assert remotes.find(txn, "peer one") is None
            assert remotes.find(txn, "peer three") == 3
            assert remotes.peer_at(txn, "ws://x/y") is None
            assert checkpoints.local(txn, "cp-1") is None
            assert checkpoints.peer(txn, "client") is None
            assert checkpoints.peer(txn, "other").body == b"3"


async def test_numbers_go_on_after_those_of_format_1(old):
    async with open_test_database(old, clock=lambda: NOW) as db:
        assert (await db.create_collection("third")).number == 3
        assert await db.engine.write(lambda txn: remotes.number(txn, "peer three")) == 3
        assert (await db.default_collection.put("new", {})).sequence == 5


async def test_a_migration_is_done_once(old, monkeypatch):
    async with open_test_database(old, clock=lambda: NOW):
        pass
    monkeypatch.setattr(migrations, "MIGRATIONS", {})
    async with open_test_database(old, clock=lambda: NOW) as db:
        with db.engine.read() as txn:
            version = txn.raw.get(schema.META_FORMAT, db=txn.tables.meta)
            assert keys.read_number(version)[0] == schema.FORMAT_VERSION


async def test_a_migration_that_fails_changes_nothing(old, monkeypatch):
    def fail(env, txn, tables):
        txn.put(b"half", b"done", db=tables.meta)
        raise StoreFormatError("cannot")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", {1: fail})
        with pytest.raises(StoreFormatError, match="cannot"):
            async with open_test_database(old):
                pass
    async with open_test_database(old, clock=lambda: NOW) as db:
        assert db.default_collection.count == 2
        with db.engine.read() as txn:
            assert txn.raw.get(b"half", db=txn.tables.meta) is None


async def test_a_database_of_format_2_is_read_whole(path):
    async with open_test_database(unpacked(FORMAT_2, path), clock=lambda: NOW) as db:
        check_store(db.engine)
        assert str(db.id) == "ed828c76-1c5c-480e-b197-ed7eaedb1191"
        assert db.source_id == "7iWIacZlHwSfM3gj/TuQjw"
        notes = db.default_collection
        assert (notes.count, notes.last_sequence) == (5, 7)
        bodies = {document.id: document.body async for document in notes.documents()}
        assert bodies == {
            "b": {"n": 2},
            "long": {"t": "y" * 10_000},
            "merged": {"n": 4},
            "tree": {"n": 3},
            "ö": {"t": "x"},
        }
        assert notes.get("a", deleted=True).deleted
        assert notes.expiration("b").year == 2100
        changes = [change[:2] async for change in notes.changes(live=False)]
        assert changes == [(2, "b"), (3, "a"), (4, "ö"), (5, "long"), (6, "tree"), (7, "merged")]
        assert db.collection("shop.notes").get("only").body == {"here": True}
        with db.engine.read() as txn:
            assert [r.version.source for r in conflicts.of_document(txn, 1, "b")] == [b"z" * 16]


@pytest.fixture
def of_format_3(path):
    return unpacked(FORMAT_3, path)


async def test_the_keys_of_bodies_of_format_3_are_put_in_order(of_format_3):
    async with open_test_database(of_format_3, clock=lambda: NOW) as db:
        check_store(db.engine)
        assert str(db.id) == "bf721277-360e-445e-adf7-18368e7caa34"
        notes = db.default_collection
        body = {"a": {"c": "t", "d": True}, "b": [{"x": None, "y": 1.5}, 2], "z": 1}
        found = {document.id: document async for document in notes.documents()}
        assert sorted(found) == ["a", "k", "sorted"]
        assert found["a"].body == body
        assert found["sorted"].body == {"a": 1, "b": 2}
        assert notes.get("gone", deleted=True).deleted
        with db.engine.read() as txn:
            (waiting,) = conflicts.of_document(txn, 1, "a")
            kept = bases.get(txn, 1, "k", Version.parse("18fae27694000000@a8dOU8MWR/9aXtipsJGCgg"))
        assert waiting.body == encode_body({"p": 2, "q": 1})
        assert kept.body == encode_body({"m": 1, "n": 1})
        for document in found.values():
            assert document.stored.body == encode_body(document.body)


async def test_what_was_damaged_in_format_3_is_still_noticed(of_format_3):
    file = of_format_3 / DATA_FILE
    raw = file.read_bytes()
    # A key "c" and its value "t", in the body of the document "a".
    assert b"acat" in raw
    file.write_bytes(raw.replace(b"acat", b"acau"))
    async with open_test_database(of_format_3, clock=lambda: NOW) as db:
        with pytest.raises(StoreCorruptError):
            db.default_collection.get("a")


async def test_a_migrated_database_of_format_1_agrees_with_itself(old):
    async with open_test_database(old, clock=lambda: NOW) as db:
        check_store(db.engine)


def test_there_is_a_way_from_every_format_version():
    assert sorted(migrations.MIGRATIONS) == list(range(1, schema.FORMAT_VERSION))
