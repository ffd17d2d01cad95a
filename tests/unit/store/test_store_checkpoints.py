from __future__ import annotations

import pytest

from trio_p2p import limits
from trio_p2p.errors import ConflictError
from trio_p2p.store import checkpoints
from trio_p2p.store.checkpoints import PeerCheckpoint


@pytest.fixture
def set_peer(engine):
    async def set_peer(client, expected, body=b"{}"):
        return await engine.write(lambda txn: checkpoints.set_peer(txn, client, expected, body))

    return set_peer


@pytest.fixture
def peer(engine):
    def peer(client):
        with engine.read() as txn:
            return checkpoints.peer(txn, client)

    return peer


async def test_our_own_checkpoint_is_kept_by_id(engine):
    long = "cp-" + "x" * 600
    await engine.write(lambda txn: checkpoints.set_local(txn, long, b"1"))
    await engine.write(lambda txn: checkpoints.set_local(txn, long, b"2"))
    with engine.read() as txn:
        assert checkpoints.local(txn, long) == b"2"
        assert checkpoints.local(txn, "cp-other") is None


async def test_what_the_peer_had_is_kept_with_the_checkpoint(engine):
    await engine.write(lambda txn: checkpoints.set_local(txn, "a", b"{}", remote=1, seen=7))
    with engine.read() as txn:
        assert checkpoints.seen(txn, "a") == 7
        assert checkpoints.seen(txn, "b") == 0


async def test_of_our_own_the_one_that_was_kept_least_recently_gives_way(engine, monkeypatch):
    monkeypatch.setattr(limits, "LOCAL_CHECKPOINTS_MAX", 2)
    for name in ("a", "b", "a", "c"):
        await engine.write(lambda txn, name=name: checkpoints.set_local(txn, name, b"{}"))
    with engine.read() as txn:
        assert [checkpoints.local(txn, name) for name in "abc"] == [b"{}", None, b"{}"]


async def test_the_checkpoint_of_a_peer_counts_its_revisions(set_peer, peer):
    assert peer("ann") is None
    assert await set_peer("ann", "", b"1") == "1-cc"
    assert await set_peer("ann", "1-cc", b"2") == "2-cc"
    assert peer("ann") == PeerCheckpoint("2-cc", b"2")
    assert peer("bob") is None


@pytest.mark.parametrize(("kept", "expected"), [(0, "1-cc"), (1, ""), (2, "1-cc"), (1, "x")])
async def test_the_checkpoint_of_a_peer_is_replaced_only_by_the_next_one(
    set_peer, peer, kept, expected
):
    current = ""
    for _ in range(kept):
        current = await set_peer("ann", current)
    before = peer("ann")
    with pytest.raises(ConflictError) as caught:
        await set_peer("ann", expected, b"other")
    assert (caught.value.expected, caught.value.current) == (expected, current)
    assert peer("ann") == before


async def test_an_empty_name_of_a_peer_does_no_harm(set_peer, peer):
    assert await set_peer("", "") == "1-cc"
    assert peer("") == PeerCheckpoint("1-cc", b"{}")


async def test_the_checkpoint_that_was_set_least_recently_gives_way(set_peer, peer, monkeypatch):
    monkeypatch.setattr(limits, "PEER_CHECKPOINTS_MAX", 3)
    for client in ("a", "b", "c"):
        await set_peer(client, "")
    await set_peer("a", "1-cc")
    await set_peer("d", "")
    assert [client for client in "abcd" if peer(client)] == ["a", "c", "d"]
    await set_peer("b", "")
    assert [client for client in "abcd" if peer(client)] == ["a", "b", "d"]


async def test_checkpoints_of_peers_take_so_much_room_and_no_more(engine, monkeypatch):
    monkeypatch.setattr(limits, "PEER_CHECKPOINTS_BYTES_MAX", 200_000)
    revisions = {}

    def grow(txn):
        # Each is small at first, and then large.
        for size in (10, 50_000):
            for number in range(10):
                client = f"cp-{number}"
                try:
                    revisions[client] = checkpoints.set_peer(
                        txn, client, revisions.get(client, ""), bytes(size)
                    )
                except ConflictError:
                    revisions[client] = checkpoints.set_peer(txn, client, "", bytes(size))

    await engine.write(grow)
    with engine.read() as txn:
        held = [n for n in range(10) if checkpoints.peer(txn, f"cp-{n}") is not None]
    assert 2 <= len(held) <= 4
    assert held == list(range(10 - len(held), 10))


async def test_one_checkpoint_is_always_kept(engine, monkeypatch):
    monkeypatch.setattr(limits, "PEER_CHECKPOINTS_BYTES_MAX", 1)
    await engine.write(lambda txn: checkpoints.set_peer(txn, "a", "", bytes(50_000)))
    await engine.write(lambda txn: checkpoints.set_peer(txn, "b", "", bytes(50_000)))
    with engine.read() as txn:
        assert checkpoints.peer(txn, "a") is None
        assert checkpoints.peer(txn, "b") is not None
